import { COVERAGES } from '../modules/forecasting/models/index.js'
import type { Dataset } from './forecast-data.js'
import type { Scores } from './forecast-scores.js'

export interface Row {
  label: string
  scores: Scores
}

export const cell = (value: number, digits = 2): string =>
  (Number.isFinite(value) ? value.toFixed(digits) : '–').padStart(9)

export function printTable(set: Dataset, rows: readonly Row[], goals: string): void {
  const reference = rows.find(({ label }) => label === 'naive2')!.scores
  console.log(`\n${set.name}: ${set.cases.length} forecasts, horizon ${set.horizon}${goals && ` · goal ${goals}`}`)
  console.log(
    `${''.padEnd(18)}${['MASE', 'RMSSE', 'sMAPE', 'OWA', 'WAPE', 'sum WAPE', 'bias', 'MAPE', 'pinball', 'cov 80', 'cov 90', 'cov 95', 'rnd 80', 'rnd 90', 'rnd 95', 'sum 80', 'sum 90', 'sum 95', 'ms'].map((h) => h.padStart(9)).join('')}`
  )
  for (const { label, scores: s } of rows) {
    const owa = (s.mase / reference.mase + s.smape / reference.smape) / 2
    const cells = [cell(s.mase, 3), cell(s.rmsse, 3), cell(s.smape), cell(owa, 3), cell(s.wape), cell(s.sumWape)]
    cells.push(cell(s.bias, 1), cell(s.mape, 1))
    cells.push(s.coverage[80] >= 0 ? cell(s.pinball, 4) : cell(Number.NaN))
    cells.push(cell(s.coverage[80], 1), cell(s.coverage[90], 1), cell(s.coverage[95], 1))
    cells.push(cell(s.randomised[80], 1), cell(s.randomised[90], 1), cell(s.randomised[95], 1))
    const sums = s.coverage[80] >= 0 ? s.ofSums : { 80: Number.NaN, 90: Number.NaN, 95: Number.NaN }
    cells.push(cell(sums[80], 1), cell(sums[90], 1), cell(sums[95], 1), cell(s.milliseconds))
    console.log(label.padEnd(18) + cells.join('') + (s.baselines > 0 ? `  baseline served ${s.baselines}` : ''))
  }
}

/** Whether intervals cover what they say. Where most actuals are zero no whole ends can, and ties are broken by lot. */
export function printCoverage({ zeros, coverage, randomised }: Scores): void {
  const measured = zeros > 50 ? randomised : coverage
  const verdicts = COVERAGES.map((c) => `${c} %: ${Math.abs(measured[c] - c) <= 2 ? 'met' : 'MISSED'}`)
  console.log(
    `coverage within ± 2${zeros > 50 ? `, ties by lot (${zeros.toFixed(0)} % zeros)` : ''}: ${verdicts.join(', ')}`
  )
}
