import type { FactorEffect } from '../../schemas/calendar.js'
import type { Known, KnownFactor } from './calendar.js'
import type { FactorColumn } from './models/factors.js'
import type { ForecastOutput } from './models/index.js'
import { dayText } from './series.js'

/** What is known beforehand, made ready for the models, and what became of it. Pure; used in worker threads. */

/** The periods of a series: `values` known ones from the day `start` on, then the horizon. */
export interface Span {
  start: number
  periods: number
  horizon: number
  stepDays: number
}

/** A value for each period, the horizon included: days of an event as the share of a period, a figure as its mean. */
export function columnOf(factor: KnownFactor, { start, periods, horizon, stepDays }: Span): FactorColumn {
  const all = periods + horizon
  const values = new Float64Array(all)
  for (const day of factor.days) {
    const at = Math.floor((day - start) / stepDays)
    if (at >= 0 && at < all) values[at]! += 1 / stepDays
  }
  for (let i = 0; factor.values !== undefined && i < all * stepDays; i++) {
    values[Math.floor(i / stepDays)]! += (factor.values[start + i - factor.start] ?? 0) / stepDays
  }
  return { values, event: factor.values === undefined }
}

/** Takes closed days off a forecast: nothing is used on them. Changes it. */
export function closeDays(output: ForecastOutput, closed: readonly number[], span: Span): void {
  const { start, periods, horizon, stepDays } = span
  const open = new Float64Array(horizon).fill(1)
  for (const day of closed) {
    const at = Math.floor((day - start) / stepDays) - periods
    if (at >= 0 && at < horizon) open[at] = Math.max(0, open[at]! - 1 / stepDays)
  }
  if (open.every((share) => share === 1)) return
  let before = 0
  let after = 0
  for (let k = 0; k < horizon; k++) {
    before += output.mean[k]!
    output.mean[k]! *= open[k]!
    after += output.mean[k]!
    for (const row of output.quantiles) row[k]! *= open[k]!
    for (const { lower, upper } of Object.values(output.intervals)) {
      lower[k]! *= open[k]!
      upper[k]! *= open[k]!
    }
    // The distribution of the sum shrinks as its mean does.
    for (const row of output.cumulativeQuantiles) row[k]! *= before > 0 ? after / before : open[k]!
  }
}

const percentOf = (share: number) => Math.round(share * 10_000) / 100

/** What each factor does, for those who read the forecast. */
export function effectsOf(
  output: ForecastOutput,
  { factors, unused }: Pick<Known, 'factors' | 'unused'>,
  columns: readonly FactorColumn[],
  { start, periods, horizon, stepDays }: Span
): FactorEffect[] {
  const learnt = factors.map(({ name, part }, j): FactorEffect => {
    const { values, event } = columns[j] ?? { values: new Float64Array(0), event: true }
    const data = values.subarray(0, periods)
    const mean = data.reduce((sum, value) => sum + value, 0) / Math.max(1, periods)
    const deviation = Math.sqrt(data.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, periods))
    const unit = event ? 1 / stepDays : deviation
    const dates: string[] = []
    for (let k = 0; event && k < horizon; k++) {
      if (values[periods + k]! > 0) dates.push(dayText(start + (periods + k) * stepDays))
    }
    const used = output.factors?.applied === true && !output.servesBaseline
    return {
      name,
      part,
      used,
      reason: used ? null : 'no-gain',
      effectPercent: output.factors === undefined ? null : percentOf((output.factors.perUnit[j] ?? 0) * unit),
      occurrences: output.factors?.occurrences[j] ?? 0,
      dates
    }
  })
  return [...learnt, ...unused]
}
