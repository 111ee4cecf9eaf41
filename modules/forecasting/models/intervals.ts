import { type Coverage, INTERVALS, type Intervals, LEVELS, sortedQuantile, Z } from './levels.js'
import type { RollingPlan } from './rolling.js'

/** Student's t over normal quantile: how much wider an interval is when its scale rests on few independent errors.
 * Source: Abramowitz & Stegun (1964), 26.7.5. */
function widening(z: number, freedom: number): number {
  const s = z * z
  return (
    1 +
    (s + 1) / (4 * freedom) +
    (5 * s * s + 16 * s + 3) / (96 * freedom ** 2) +
    (3 * s ** 3 + 19 * s * s + 17 * s - 15) / (384 * freedom ** 3)
  )
}

/** Distribution of a forecast's errors, learnt from rolling origins. */
export interface Distribution {
  /** spread per step of errors divided by the level term */
  scales: Float64Array
  /** standardised error per quantile level */
  shape: Float64Array
  /** smallest level that counts */
  least: number
}

/** Errors grow with the level, less than in proportion: as the standard deviation of a count or retail series does. */
const levelTerm = (centre: number, least: number): number => Math.sqrt(Math.max(Math.abs(centre), least))

/**
 * Errors of the rolled forecasts (or of their running sums), scaled per step, pooled over steps and widened for the few
 * windows that do not overlap. Source: split conformal prediction (Vovk et al. 2005), normalised scores (Papadopoulos 2008).
 * @param from first origin used
 * @param to end of the origins used
 */
export function learnErrors(
  rolled: Float64Array,
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  cumulative: boolean,
  from = 0,
  to = plan.origins.length
): Distribution {
  const { origins, horizon } = plan
  const sums = new Float64Array(horizon)
  const counts = new Float64Array(horizon)
  const errors = new Float64Array(Math.max(0, to - from) * horizon)
  const steps = new Int32Array(errors.length)
  let level = 0
  for (let i = 0; i < y.length; i++) level += Math.abs(y[i]!) / y.length
  let count = 0
  for (let o = from; o < to; o++) {
    let running = 0
    let centre = 0
    for (let k = 0; k < horizon && origins[o]! + k < y.length; k++) {
      const forecast = rolled[o * horizon + k]!
      if (observed[origins[o]! + k] !== 1) {
        if (cumulative) break
        continue
      }
      const error = y[origins[o]! + k]! - forecast
      running = cumulative ? running + error : error
      centre = cumulative ? centre + forecast : forecast
      const least = 0.1 * level * (cumulative ? k + 1 : 1)
      errors[count] = least > 0 ? running / levelTerm(centre, least) : 0
      sums[k]! += Math.abs(errors[count]!)
      counts[k]! += 1
      steps[count++] = k
    }
  }
  const scales = smoothScales(sums, counts, cumulative)
  const sorted = errors.subarray(0, count)
  for (let i = 0; i < count; i++) sorted[i]! /= scales[steps[i]!]!
  sorted.sort()
  const span = to > from ? origins[to - 1]! - origins[from]! + 1 : 0
  // windows without overlap; running sums have one error a window where single steps have several
  const freedom = cumulative ? Math.max(1.8, (0.7 * span) / horizon) : Math.max(2, span / horizon + 1)
  const shape = Float64Array.from(LEVELS, (p, l) => widening(Z[l]!, freedom) * sortedQuantile(sorted, p))
  return { scales, shape, least: 0.1 * level }
}

/** Mean |error| per step, smoothed over neighbours and non-decreasing; steps never measured grow with √time. */
function smoothScales(sums: Float64Array, counts: Float64Array, cumulative: boolean): Float64Array {
  const scales = new Float64Array(sums.length)
  let last = 0
  for (let k = 0; k < scales.length; k++) {
    let sum = 0
    let count = 0
    for (let j = cumulative ? k : Math.max(0, k - 1); j <= Math.min(k + (cumulative ? 0 : 1), sums.length - 1); j++) {
      sum += sums[j]!
      count += counts[j]!
    }
    const growth = k === 0 ? 1 : ((k + 1) / k) ** 0.25
    last = count > 0 ? Math.max(sum / count, last) : last * growth
    scales[k] = last > 0 ? last : Number.MIN_VALUE
  }
  return scales
}

/** Quantiles per level around the point forecast, sorted so that they never cross. */
export function spread(centre: Float64Array, distribution: Distribution, floor: number): Float64Array[] {
  const { scales, shape, least } = distribution
  const units = centre.map((value, k) => scales[k]! * levelTerm(value, least))
  const lowest = new Float64Array(centre.length).fill(floor)
  return Array.from(shape, (error) => {
    const row = new Float64Array(centre.length)
    for (let k = 0; k < row.length; k++) {
      row[k] = Math.max(centre[k]! + error * units[k]!, lowest[k]!)
      lowest[k] = row[k]!
    }
    return row
  })
}

/**
 * Central intervals. Where the median lies on the floor nothing falls below it, and the whole chance of a miss is above:
 * taking two tails off would cover too much.
 */
export function centralIntervals(quantiles: readonly Float64Array[], floor: number): Intervals {
  const middle = quantiles[LEVELS.length >> 1]!
  const interval = (coverage: Coverage) => {
    const [low, high, single] = INTERVALS[coverage]
    const upper = quantiles[high]!.map((value, k) => (middle[k]! > floor ? value : quantiles[single]![k]!))
    return { lower: quantiles[low]!.slice(), upper }
  }
  return { 80: interval(80), 90: interval(90), 95: interval(95) }
}
