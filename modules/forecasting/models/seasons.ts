import { forecastEach, inOnePass, rowOf } from './ends.js'
import { mean, movingTrend } from './series.js'
import type { Fit, FitContext } from './types.js'

/** Seasonal figures of a series, one row per period, by phase from the first training value. */
export interface Seasons {
  periods: readonly number[]
  figures: readonly Float64Array[]
  multiplicative: boolean
}

/** Circular kernel over the phases: a long season is known day by day only through its neighbours. */
function smoothPhases(figures: Float64Array, width: number): Float64Array {
  const m = figures.length
  const smoothed = new Float64Array(m)
  for (let p = 0; p < m; p++) {
    let sum = 0
    let total = 0
    for (let away = -width; away <= width; away++) {
      const weight = 1 - Math.abs(away) / (width + 1)
      sum += weight * figures[(p + away + m) % m]!
      total += weight
    }
    smoothed[p] = sum / total
  }
  return smoothed
}

/** Mean deviation from the trend per phase, recent cycles heavier by `decay` per cycle, shrunken by its reliability. */
function phaseFigures(deviations: Float64Array, period: number, decay: number, shrink: boolean): Float64Array {
  const n = deviations.length
  const sums = new Float64Array(period)
  const totals = new Float64Array(period)
  const squares = new Float64Array(period)
  let weight = 1
  for (let i = n - 1, phase = (n - 1) % period, left = period; i >= 0; i--) {
    const deviation = deviations[i]!
    sums[phase]! += weight * deviation
    squares[phase]! += weight * deviation * deviation
    totals[phase]! += weight
    phase = phase === 0 ? period - 1 : phase - 1
    if (--left > 0) continue
    left = period
    weight *= decay
  }
  let noise = 0
  for (let p = 0; p < period; p++) {
    if (totals[p]! === 0) continue
    sums[p]! /= totals[p]!
    noise += Math.max(0, squares[p]! / totals[p]! - sums[p]! ** 2) / Math.max(totals[p]! - 1, 0.5)
  }
  const centre = mean(sums)
  let signal = 0
  for (let p = 0; p < period; p++) {
    sums[p]! -= centre
    signal += sums[p]! ** 2
  }
  // James–Stein: what is left of the figures' variance once their sampling noise is taken off (Miller & Williams 2003)
  const keep = shrink && signal > 0 ? Math.max(0, 1 - ((period - 3) / period) * (noise / signal)) : 1
  for (let p = 0; p < period; p++) sums[p]! *= keep
  return sums
}

/**
 * Seasonal figures by moving averages, all periods in turn, twice. `y` is taken as additive.
 * Source: classical decomposition (FPP3 §3.4), several seasons after MSTL (Bandara, Hyndman & Bergmeir 2021).
 */
export function decompose(y: Float64Array, periods: readonly number[], decay: number, shrink: boolean): Float64Array[] {
  const figures: Float64Array[] = periods.map((period) => new Float64Array(period))
  const rounds = periods.length > 1 ? 2 : 1
  const rest = new Float64Array(y.length)
  for (let round = 0; round < rounds; round++) {
    for (let s = 0; s < periods.length; s++) {
      const period = periods[s]!
      for (let i = 0; i < y.length; i++) {
        let value = y[i]!
        for (let other = 0; other < periods.length; other++) {
          if (other !== s) value -= figures[other]![i % periods[other]!]!
        }
        rest[i] = value
      }
      const trend = movingTrend(rest, period)
      for (let i = 0; i < y.length; i++) rest[i]! -= trend[i]!
      const found = phaseFigures(rest, period, decay, shrink)
      figures[s] = period > 24 && period % 7 !== 0 ? smoothPhases(found, Math.max(1, Math.round(period / 26))) : found
    }
  }
  return figures
}

/** Takes the seasons out of `y` (sign −1) or puts them back (sign 1) in place, phases counted from `start`. */
export function applySeasons(y: Float64Array, seasons: Seasons, start: number, sign: 1 | -1): void {
  for (let s = 0; s < seasons.periods.length; s++) {
    const period = seasons.periods[s]!
    const figures = seasons.figures[s]!
    let phase = start % period
    for (let i = 0; i < y.length; i++) {
      const figure = figures[phase]!
      if (!seasons.multiplicative) y[i]! += sign * figure
      else y[i] = sign === 1 ? y[i]! * figure : y[i]! / figure
      phase = phase + 1 === period ? 0 : phase + 1
    }
  }
}

/** Seasons of `y`: multiplicative for positive data (figures found on logarithms), additive otherwise. */
export function findSeasons(
  y: Float64Array,
  periods: readonly number[],
  multiplicative: boolean,
  decay: number,
  shrink: boolean
): Seasons {
  if (!multiplicative) return { periods, figures: decompose(y, periods, decay, shrink), multiplicative }
  const figures = decompose(y.map(Math.log), periods, decay, shrink)
  return { periods, figures: figures.map((row) => row.map(Math.exp)), multiplicative }
}

/** Periods with at least two full cycles in the training part. */
export const usablePeriods = (n: number, periods: readonly number[]): number[] =>
  periods.filter((period) => n >= 2 * period)

/**
 * A model on seasonally adjusted values; without a significant season it is the model itself.
 * @param decay weight of a cycle relative to the next one
 */
export function adjusted(core: Fit, decay: number, shrink: boolean, needSeason: boolean): Fit {
  return (y, context) => {
    const periods = usablePeriods(y.length, context.periods)
    if (periods.length === 0) return needSeason ? undefined : core(y, context)
    const multiplicative = y.every((value) => value > 0)
    const seasons = findSeasons(y, periods, multiplicative, decay, shrink)
    const plain = y.slice()
    applySeasons(plain, seasons, 0, -1)
    const inner: FitContext = { ...context, periods: [], candidates: [] }
    const fitted = core(plain, inner)
    if (!fitted) return undefined
    return inOnePass((prefix, ends) => {
      const rest = prefix.slice()
      applySeasons(rest, seasons, 0, -1)
      forecastEach(fitted, rest, ends)
      for (let j = 0; j < ends.lengths.length; j++) applySeasons(rowOf(ends, j), seasons, ends.lengths[j]!, 1)
    })
  }
}

/** Of the periods with two full cycles, the one whose seasonal naive errors are smallest. */
export function dominantPeriod(y: Float64Array, periods: readonly number[]): number | undefined {
  let best: number | undefined
  let bestError = Number.POSITIVE_INFINITY
  const longest = periods.reduce((a, b) => (2 * b <= y.length && b > a ? b : a), 0)
  for (const period of periods) {
    if (y.length < 2 * period) continue
    let sum = 0
    for (let i = longest; i < y.length; i++) sum += Math.abs(y[i]! - y[i - period]!)
    const error = sum / (y.length - longest)
    if (error < bestError) {
      bestError = error
      best = period
    }
  }
  return best
}
