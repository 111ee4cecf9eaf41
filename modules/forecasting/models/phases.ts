import { levelTerm } from './intervals.js'
import type { FitContext } from './types.js'

/** Seasons from which the noise of a phase can be told from luck. */
const LEAST_SEASONS = 8
/** Every value stands in two differences, so neighbouring ones are alike: means of them vary so much more. */
const OVERLAP = 1.5
const LEAST_NOISE = 0.1

/**
 * How far the phases of the first season of hours (or of another number of periods) stray, each relative to their mean: from what one season
 * did to what the next one did, per level term, over all values. Nights are quieter than noons even once their level
 * is taken into account. Drawn to 1 as far as the phases differ no more than chance would have it.
 * Source: James & Stein (1961).
 * @returns undefined for days, weeks and months (of which weekdays came out too wide), without a season, with fewer than eight of them, or when no phase stands out
 */
export function phaseNoise(
  y: Float64Array,
  observed: Uint8Array,
  { periods, frequency }: Pick<FitContext, 'periods' | 'frequency'>
): Float64Array | undefined {
  const period = periods[0]
  if (typeof frequency !== 'number' || period === undefined || y.length < LEAST_SEASONS * period) return undefined
  const longest = periods.at(-1) ?? period
  // a Saturday's hours are told from a Friday's by the week before, where there are weeks
  const lag = y.length > 3 * longest ? longest : period
  let level = 0
  for (let t = 0; t < y.length; t++) level += Math.abs(y[t]!) / y.length
  if (!(level > 0)) return undefined
  const means = new Float64Array(period)
  const squares = new Float64Array(period)
  const counts = new Float64Array(period)
  for (let t = lag; t < y.length; t++) {
    if (observed[t] !== 1 || observed[t - lag] !== 1) continue
    const stray = Math.abs(y[t]! - y[t - lag]!) / levelTerm((y[t]! + y[t - lag]!) / 2, 0.1 * level)
    means[t % period]! += stray
    squares[t % period]! += stray * stray
    counts[t % period]!++
  }
  return shrunk(means, squares, counts)
}

/** Sums per phase as means relative to their mean, drawn to 1 by what chance alone would make of them; changes `sums`. */
function shrunk(sums: Float64Array, squares: Float64Array, counts: Float64Array): Float64Array | undefined {
  let mean = 0
  let phases = 0
  for (let p = 0; p < sums.length; p++) {
    if (counts[p]! < 2) continue
    sums[p]! /= counts[p]!
    mean += sums[p]!
    phases++
  }
  mean /= phases
  let noise = 0
  let signal = 0
  for (let p = 0; p < sums.length; p++) {
    if (counts[p]! < 2) continue
    noise += (OVERLAP * (squares[p]! / counts[p]! - sums[p]! ** 2)) / (counts[p]! - 1)
    signal += (sums[p]! - mean) ** 2
  }
  const keep = signal > 0 ? 1 - noise / signal : 0
  if (!(keep > 0)) return undefined
  return sums.map((own, p) => (counts[p]! < 2 ? 1 : Math.max(LEAST_NOISE, 1 + keep * (own / mean - 1))))
}
