import { contest } from '../modules/forecasting/models/index.js'
import type { Dataset } from './forecast-data.js'
import { naiveError } from './forecast-scores.js'
import { cell } from './forecast-table.js'

/** How well the choice between combination and baseline does on what really came. */
function printSelection(set: Dataset): void {
  const total = { n: 0, baselines: 0, right: 0, claimed: 0, claimedBase: 0, served: 0, combined: 0, base: 0, best: 0 }
  for (const { train, test } of set.cases) {
    const { baseline, challenger, challengerServes } = contest({
      values: train.slice(),
      frequency: set.frequency,
      horizon: set.horizon
    })
    const scale = naiveError(train, set.scalePeriod)
    if (!challenger || !(scale > 0)) continue
    // what the choice was made by: squared errors where the baseline is TSB, absolute ones elsewhere
    const squared = baseline.baseline.model === 'tsb'
    const loss = ({ mean }: { mean: Float64Array }): number => {
      const errors = test.map((actual, k) => Math.abs(mean[k]! - actual) ** (squared ? 2 : 1))
      const average = errors.reduce((a, b) => a + b, 0) / test.length
      return (squared ? Math.sqrt(average) : average) / scale
    }
    const claim = ({ accuracy }: { accuracy: { mae: number; rmse: number } }): number =>
      (squared ? accuracy.rmse : accuracy.mae) / scale
    const ours = loss(challenger)
    const theirs = loss(baseline)
    total.n++
    if (!challengerServes) total.baselines++
    if (challengerServes === ours <= theirs) total.right++
    total.claimed += claim(challenger)
    total.claimedBase += claim(baseline)
    total.served += challengerServes ? ours : theirs
    total.combined += ours
    total.base += theirs
    total.best += Math.min(ours, theirs)
  }
  const { n } = total
  const cells = [cell(total.claimed / total.claimedBase, 3), cell(total.combined / total.base, 3)]
  cells.push(cell((100 * total.baselines) / n, 1), cell((100 * total.right) / n, 1))
  for (const sum of [total.served, total.combined, total.base, total.best]) cells.push(cell(sum / n, 3))
  console.log(set.name.padEnd(22) + cells.join(''))
}

const HEAD = ['claimed', 'real', 'base %', 'right %', 'served', 'combined', 'baseline', 'best']

/** How well the choice between combination and baseline does, set by set. */
export function printSelections(sets: readonly Dataset[]): void {
  console.log(
    '\nthe choice, out of sample: error of the combination over that of the baseline as claimed and as it came,'
  )
  console.log('baselines served, choices that were right, scaled errors of what served and of what might have')
  console.log(`${''.padEnd(22)}${HEAD.map((h) => h.padStart(9)).join('')}`)
  for (const set of sets) printSelection(set)
}
