import { measure, naiveScale, type Ranges } from './accuracy.js'
import { type CountMixture, mixtureIntervals, mixtureMean, mixtureQuantiles } from './counts.js'
import { centralIntervals, coversCentrally, learnErrors, quantileRows, spread, widenFew } from './intervals.js'
import { type Intervals, LEVELS } from './levels.js'
import { phaseNoise } from './phases.js'
import type { Prepared } from './prepare.js'
import type { RollingPlan } from './rolling.js'
import type { ForecastOutput } from './types.js'

/** A candidate to serve: its forecast with intervals, and how good both were out of sample. */
export type Judged = Pick<ForecastOutput, 'mean' | 'quantiles' | 'intervals' | 'cumulativeQuantiles' | 'accuracy'>

const row = (rolled: Float64Array, o: number, horizon: number): Float64Array =>
  rolled.subarray(o * horizon, (o + 1) * horizon)

function raise(values: Float64Array, floor: number): void {
  for (let i = 0; i < values.length; i++) values[i] = Math.max(values[i]!, floor)
}

/** Running sums. */
function accumulate(values: Float64Array): Float64Array {
  const sums = values.slice()
  for (let k = 1; k < sums.length; k++) sums[k]! += sums[k - 1]!
  return sums
}

/** Rounded, in place or into `into`: nothing between two whole numbers can be the quantile of whole demand. */
function roundRows(rows: readonly Float64Array[], into: readonly Float64Array[] = rows): void {
  for (let l = 0; l < rows.length; l++) {
    for (let k = 0; k < rows[l]!.length; k++) into[l]![k] = Math.round(rows[l]![k]!)
  }
}

/**
 * Conformal intervals from the errors of the rolled forecasts. For the accuracy figures each half of the origins is
 * covered by intervals learnt on the other half, all phases alike: their noise is known from the targets too. Of whole demand
 * the quantiles are whole; the ends of intervals stay between, as whole ones would cover too much.
 */
export function judgeByErrors(
  rolled: Float64Array,
  point: Float64Array,
  prepared: Prepared,
  plan: RollingPlan,
  floor: number
): Judged {
  const { y, observed, context } = prepared
  const { origins, horizon } = plan
  raise(rolled, floor)
  raise(point, floor)
  const whole = floor === 0 && y.every((value, i) => observed[i] !== 1 || Number.isInteger(value))
  const half = origins.length >> 1
  const early = learnErrors(rolled, y, observed, plan, false, 0, half)
  const late = learnErrors(rolled, y, observed, plan, false, half)
  const rows = quantileRows(horizon)
  const wholeRows = whole ? quantileRows(horizon) : rows
  const ranges: Ranges = {
    quantiles: wholeRows,
    covers: (actual, k, coverage) => coversCentrally(rows, floor, actual, k, coverage)
  }
  const rangesAt = (o: number): Ranges => {
    spread(row(rolled, o, horizon), o < half ? late : early, floor, origins[o]!, rows)
    if (whole) roundRows(rows, wholeRows)
    return ranges
  }
  const phases = phaseNoise(y, observed, context)
  const steps = learnErrors(rolled, y, observed, plan, false, 0, origins.length, phases)
  const quantiles = spread(point, steps, floor, y.length)
  const total = accumulate(point)
  widenFew(quantiles, point, y, false, floor)
  const intervals = centralIntervals(quantiles, floor)
  const sums = learnErrors(rolled, y, observed, plan, true)
  const cumulativeQuantiles = spread(total, sums, floor, y.length)
  widenFew(cumulativeQuantiles, total, y, true, floor)
  if (whole) {
    roundRows(quantiles)
    roundRows(cumulativeQuantiles)
  }
  return {
    mean: point,
    quantiles,
    intervals,
    cumulativeQuantiles,
    accuracy: measure(rolled, y, observed, plan, naiveScale(y, observed, context.periods[0] ?? 1), rangesAt)
  }
}

/** Quantiles per level over the steps, the same for each step; or of the running sums. */
function mixtureRows(mixture: CountMixture, horizon: number, factor: number, cumulative: boolean): Float64Array[] {
  const rows = Array.from(LEVELS, () => new Float64Array(horizon))
  let quantiles = mixtureQuantiles(mixture, 1, factor)
  for (let k = 0; k < horizon; k++) {
    if (cumulative && k > 0) quantiles = mixtureQuantiles(mixture, k + 1, factor)
    for (let l = 0; l < rows.length; l++) {
      rows[l]![k] = Math.max(quantiles[l]!, cumulative && k > 0 ? rows[l]![k - 1]! : 0)
    }
  }
  return rows
}

/** Intervals per step, the same for each. */
function mixtureEnds(mixture: CountMixture, horizon: number, factor: number): Intervals {
  const [narrow, middle, wide] = mixtureIntervals(mixture, factor).map(({ lower, upper }) => ({
    lower: new Float64Array(horizon).fill(lower),
    upper: new Float64Array(horizon).fill(upper)
  }))
  return { 80: narrow!, 90: middle!, 95: wide! }
}

/** How far a forecast may move the mixture's means; it moves them half of the way (geometrically). */
const FACTOR_LIMITS = [0.5, 2] as const

/** Intervals from the count mixture fitted at each origin, its means moved towards the forecast given. */
export function judgeByCounts(
  rolled: Float64Array,
  point: Float64Array,
  prepared: Prepared,
  plan: RollingPlan
): Judged {
  const { y, observed, context } = prepared
  const { origins, horizon } = plan
  raise(rolled, 0)
  raise(point, 0)
  const factorOf = (mixture: CountMixture, forecasts: Float64Array): number => {
    const mean = mixtureMean(mixture)
    let sum = 0
    for (let k = 0; k < forecasts.length; k++) sum += forecasts[k]! / forecasts.length
    return mean > 0 ? Math.min(FACTOR_LIMITS[1], Math.max(FACTOR_LIMITS[0], sum / mean)) ** 0.5 : 1
  }
  const rangesOf = (mixture: CountMixture, factor: number) => ({
    quantiles: mixtureRows(mixture, horizon, factor, false),
    intervals: mixtureEnds(mixture, horizon, factor)
  })
  const rangesAt = (o: number): Ranges => {
    const mixture = prepared.countsUntil(origins[o]!)
    const { quantiles, intervals } = rangesOf(mixture, factorOf(mixture, row(rolled, o, horizon)))
    const covers: Ranges['covers'] = (actual, k, coverage) =>
      actual >= intervals[coverage].lower[k]! && actual <= intervals[coverage].upper[k]!
    return { quantiles, covers }
  }
  const mixture = prepared.countsUntil(y.length)
  const factor = factorOf(mixture, point)
  return {
    mean: point,
    ...rangesOf(mixture, factor),
    cumulativeQuantiles: mixtureRows(mixture, horizon, factor, true),
    accuracy: measure(rolled, y, observed, plan, naiveScale(y, observed, context.periods[0] ?? 1), rangesAt)
  }
}
