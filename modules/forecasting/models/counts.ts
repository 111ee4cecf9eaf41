import { COVERAGES, LEVELS, Z } from './levels.js'
import type { Fit } from './types.js'

/** A weighted mixture of negative binomials: the demand of one period, in multiples of `unit`. */
export interface CountMixture {
  unit: number
  means: Float64Array
  /** smoothing constant that found each mean */
  alphas: Float64Array
  /** variance over mean, > 1 */
  dispersion: number
  weights: Float64Array
}

const ALPHAS = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
const TRENDS = [0, 0.4]
/** Likelihoods count by half: successive one-step predictions share their errors. */
const TEMPER = 0.5
const LEAST_MEAN = 0.02
const MOST_UNITS = 50

/** ln Γ(x), x > 0, by Stirling's series after shifting x above 7; error < 1e-10. */
function logGamma(x: number): number {
  let shift = 1
  let z = x
  while (z < 7) shift *= z++
  const inverse = 1 / (z * z)
  const series = (1 / 12 - inverse * (1 / 360 - inverse / 1260)) / z
  return (z - 0.5) * Math.log(z) - z + 0.9189385332046727 + series - Math.log(shift)
}

const LONGEST_PRODUCT = 12

/** ln Γ(value + shape) − ln Γ(shape): for small whole values the logarithm of a product. */
function logRising(shape: number, value: number): number {
  if (value > LONGEST_PRODUCT || !Number.isInteger(value)) return logGamma(value + shape) - logGamma(shape)
  let product = shape
  for (let j = 1; j < value; j++) product *= shape + j
  return Math.log(product)
}

/** Demand is counted in units of 1 when whole and small, otherwise in fiftieths of the mean. */
function countingUnit(y: Float64Array, mean: number): number {
  const whole = y.every((value) => Number.isInteger(value))
  return whole && mean <= MOST_UNITS ? 1 : mean / (whole ? MOST_UNITS : 10)
}

/** The level moved on by a damped ratio of the fast to the slow level: demand that dies out keeps dying out. */
function moved(fast: number, slow: number, trend: number): number {
  const level = Math.max(fast, LEAST_MEAN)
  if (trend === 0) return level
  return level * Math.min(1.3, Math.max(0.6, Math.exp(trend * Math.log(level / Math.max(slow, LEAST_MEAN)))))
}

/**
 * Negative binomial around exponentially smoothed means, averaged over smoothing constants and trends by their one-step
 * likelihood, with the historical variance-to-mean ratio. Negative values count as no demand.
 * Source: Snyder, Ord & Beaumont (2012), IJF 28 (NB around a smoothed mean); Hoeting et al. (1999) (model averaging).
 */
export function fitCounts(y: Float64Array): CountMixture {
  const n = y.length
  let mean = 0
  let squares = 0
  for (let i = 0; i < n; i++) mean += Math.max(y[i]!, 0) / n
  const unit = mean > 0 ? countingUnit(y, mean) : 1
  mean /= unit
  const counts = new Float64Array(n)
  for (let i = 0; i < n; i++) {
    counts[i] = Math.max(y[i]!, 0) / unit
    squares += (counts[i]! - mean) ** 2
  }
  const dispersion = mean > 0 && n > 1 ? Math.max(squares / (n - 1) / mean, 1.001) : 1.001
  const size = ALPHAS.length * TRENDS.length
  const means = new Float64Array(size)
  const alphas = Float64Array.from(means, (_, c) => ALPHAS[c >> 1]!)
  const weights = new Float64Array(size)
  if (mean === 0) return { unit, means, alphas, dispersion, weights: weights.fill(1 / size) }
  const logFail = Math.log(1 - 1 / dispersion)
  const logPass = -Math.log(dispersion)
  let best = Number.NEGATIVE_INFINITY
  for (let c = 0; c < size; c++) {
    const alpha = alphas[c]!
    const trend = TRENDS[c & 1]!
    let fast = mean
    let slow = mean
    let likelihood = 0
    for (let i = 0; i < n; i++) {
      const shape = moved(fast, slow, trend) / (dispersion - 1)
      const value = counts[i]!
      likelihood += shape * logPass
      if (value > 0) likelihood += logRising(shape, value) + value * logFail
      fast += alpha * (value - fast)
      slow += (alpha / 2) * (value - slow)
    }
    means[c] = fast < LEAST_MEAN ? fast : moved(fast, slow, trend)
    weights[c] = likelihood
    best = Math.max(best, likelihood)
  }
  let total = 0
  for (let c = 0; c < size; c++) {
    weights[c] = Math.exp(TEMPER * (weights[c]! - best))
    total += weights[c]!
  }
  for (let c = 0; c < size; c++) weights[c]! /= total
  return { unit, means, alphas, dispersion, weights }
}

/** Mean demand of one period. */
export function mixtureMean({ unit, means, weights }: CountMixture): number {
  let mean = 0
  for (let c = 0; c < means.length; c++) mean += weights[c]! * means[c]!
  return unit * mean
}

const MOST_STEPS = 5000

/**
 * Variance over mean of the sum of `periods` periods around a smoothed mean: what moves the mean moves all that follow, the
 * more the faster it is smoothed. Source: Hyndman, Koehler, Ord & Snyder (2008), lead-time demand, §6.3.
 */
function dispersionOfSum({ dispersion, alphas }: CountMixture, c: number, periods: number): number {
  const alpha = alphas[c]!
  return dispersion * (1 + (periods - 1) * (alpha + (alpha * alpha * (2 * periods - 1)) / 6))
}

/** Probabilities of 0, 1, 2, … units in a sum of `periods` periods, for as long as they are asked for. */
function* masses(mixture: CountMixture, periods: number, factor: number): Generator<number, never> {
  const { means, weights } = mixture
  const dispersions = means.map((_, c) => dispersionOfSum(mixture, c, periods))
  const shapes = means.map((mean, c) => (periods * factor * mean) / (dispersions[c]! - 1))
  const parts = shapes.map((shape, c) => weights[c]! * Math.exp(-shape * Math.log(dispersions[c]!)))
  const fails = dispersions.map((dispersion) => 1 - 1 / dispersion)
  for (let value = 0; ; value++) {
    let mass = 0
    for (let c = 0; c < parts.length; c++) {
      mass += parts[c]!
      parts[c]! *= ((shapes[c]! + value) / (value + 1)) * fails[c]!
    }
    yield mass
  }
}
/** Quantiles at every level of the sum of `periods` periods; `factor` scales the mixture's means. */
export function mixtureQuantiles(mixture: CountMixture, periods: number, factor = 1): Float64Array {
  const { unit, means, weights } = mixture
  const quantiles = new Float64Array(LEVELS.length)
  const scale = periods * factor
  const mean = (scale * mixtureMean(mixture)) / unit
  if (!(mean > 1e-9)) return quantiles
  // beyond a few hundred units the sum is near normal and the recursion would underflow
  if (mean > 300) {
    let variance = 0
    for (let c = 0; c < means.length; c++) {
      const own = scale * means[c]!
      variance += weights[c]! * (own * dispersionOfSum(mixture, c, periods) + (own - mean) ** 2)
    }
    const deviation = Math.sqrt(variance)
    return quantiles.map((_, l) => unit * Math.max(0, mean + Z[l]! * deviation))
  }
  const next = masses(mixture, periods, factor)
  let below = 0
  let value = -1
  for (let l = 0; l < quantiles.length; l++) {
    while (below < LEVELS[l]! - 1e-12 && value < MOST_STEPS) {
      value++
      below += next.next().value
    }
    quantiles[l] = unit * Math.max(0, value)
  }
  return quantiles
}

/**
 * Lower and upper end per nominal coverage of one period: the whole numbers whose middle lies inside, so that the
 * coverage is too high as often as too low. Nothing lies below zero: where zero is inside, the miss is all above.
 * Source: Ma, Genton & Parzen (2011), mid-distribution.
 */
export function mixtureIntervals(mixture: CountMixture, factor = 1): { lower: number; upper: number }[] {
  const mean = (factor * mixtureMean(mixture)) / mixture.unit
  if (!(mean > 1e-9)) return COVERAGES.map(() => ({ lower: 0, upper: 0 }))
  const ends = COVERAGES.map(() => ({ lower: -1, upper: 0 }))
  const wanted = COVERAGES.map((coverage) => ({ low: (100 - coverage) / 200, high: (100 + coverage) / 200 }))
  let below = 0
  let value = 0
  for (const mass of masses(mixture, 1, factor)) {
    const middle = below + mass / 2
    for (let i = 0; i < ends.length; i++) {
      const { low, high } = wanted[i]!
      const end = ends[i]!
      if (end.lower < 0 && middle >= low) end.lower = value
      const limit = end.lower === 0 ? high - low : high
      if (end.lower >= 0 && (middle <= limit || value === end.lower)) end.upper = value
    }
    below += mass
    value++
    if (below >= 0.99 || value > MOST_STEPS) break
  }
  return ends.map(({ lower, upper }) => ({ lower: mixture.unit * Math.max(0, lower), upper: mixture.unit * upper }))
}

/** Mean of the count mixture, as a member of a combination. */
export const fitNegativeBinomial: Fit = (y, { countsUntil, factors }) => {
  if (y.length < 3) return undefined
  return {
    forecast(prefix, out) {
      out.fill(mixtureMean(countsUntil && !factors ? countsUntil(prefix.length) : fitCounts(prefix)))
    }
  }
}
