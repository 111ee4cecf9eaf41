import type { RollingPlan } from './rolling.js'

/** Quantile levels of every forecast. */
export const LEVELS = Float64Array.of(
  0.01,
  0.025,
  0.05,
  0.1,
  0.15,
  0.2,
  0.25,
  0.3,
  0.35,
  0.4,
  0.45,
  0.5,
  0.55,
  0.6,
  0.65,
  0.7,
  0.75,
  0.8,
  0.85,
  0.9,
  0.95,
  0.975,
  0.99
)

/** Quantile of ascending values by linear interpolation at (n + 1)p, the conformal rank; flat beyond the ends. */
export function sortedQuantile(sorted: Float64Array, p: number): number {
  const n = sorted.length
  if (n === 0) return 0
  const rank = p * (n + 1) - 1
  if (rank <= 0) return sorted[0]!
  if (rank >= n - 1) return sorted[n - 1]!
  const below = Math.floor(rank)
  return sorted[below]! + (rank - below) * (sorted[below + 1]! - sorted[below]!)
}

export interface Distribution {
  /** spread of the error per step */
  scales: Float64Array
  /** standardised errors, ascending */
  shape: Float64Array
}

/** Errors of the rolled forecasts (or of their running sums) scaled per step and pooled over steps. */
export function learnErrors(
  rolled: Float64Array,
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  cumulative: boolean
): Distribution {
  const { origins, horizon } = plan
  const sums = new Float64Array(horizon)
  const counts = new Float64Array(horizon)
  const errors: number[] = []
  const steps: number[] = []
  for (let o = 0; o < origins.length; o++) {
    let running = 0
    for (let k = 0; k < horizon && origins[o]! + k < y.length; k++) {
      if (observed[origins[o]! + k] !== 1) {
        if (cumulative) break
        continue
      }
      const error = y[origins[o]! + k]! - rolled[o * horizon + k]!
      running = cumulative ? running + error : error
      sums[k]! += Math.abs(running)
      counts[k]! += 1
      errors.push(running)
      steps.push(k)
    }
  }
  const scales = smoothScales(sums, counts, cumulative)
  const shape = Float64Array.from(errors, (error, i) => error / scales[steps[i]!]!).sort()
  return { scales, shape }
}

/** Mean |error| per step made non-decreasing, steps never measured extended by the square root of time. */
function smoothScales(sums: Float64Array, counts: Float64Array, cumulative: boolean): Float64Array {
  const scales = new Float64Array(sums.length)
  let last = 0
  for (let k = 0; k < scales.length; k++) {
    const growth = k === 0 ? 1 : cumulative ? Math.sqrt((k + 1) / k) : 1
    const measured = counts[k]! > 0 ? sums[k]! / counts[k]! : last * growth
    last = Math.max(measured, last)
    scales[k] = last > 0 ? last : Number.MIN_VALUE
  }
  return scales
}

/** Quantiles per level around the point forecast, sorted so that they never cross. */
export function spread(centre: Float64Array, distribution: Distribution, floor: number): Float64Array[] {
  const { scales, shape } = distribution
  let previous: Float64Array | undefined
  return Array.from(LEVELS, (level) => {
    const q = sortedQuantile(shape, level)
    const row = new Float64Array(centre.length)
    for (let k = 0; k < row.length; k++) {
      row[k] = Math.max(centre[k]! + q * scales[k]!, floor, previous ? previous[k]! : floor)
    }
    previous = row
    return row
  })
}
