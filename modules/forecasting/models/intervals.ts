import { type Coverage, INTERVALS, type Intervals, LEVELS, sortTogether, Z } from './levels.js'
import type { RollingPlan } from './rolling.js'

/** Student's t over normal quantile: how much wider an interval is when its scale rests on few independent errors.
 * Source: Abramowitz & Stegun (1964), 26.7.5. */
function widening(z: number, freedom: number): number {
  const s = z * z
  const f = 1 / freedom
  const third = (((3 * s + 19) * s + 17) * s - 15) / 384
  const second = ((5 * s + 16) * s + 3) / 96
  return 1 + f * ((s + 1) / 4 + f * (second + f * third))
}

/** Distribution of a forecast's errors, learnt from rolling origins. */
export interface Distribution {
  /** spread per step of errors divided by the level term */
  scales: Float64Array
  /** standardised error per quantile level and step, wider where few windows told the scale */
  shapes: Float64Array[]
  /** smallest level that counts */
  least: number
  /** how far each phase of the season strays beside the others, if they differ */
  phases: Float64Array | undefined
}

/**
 * Errors grow with the level, as the square root of it where demand is counted. The level forecast errs too, most where it is
 * high, so half of that power is left: with the whole of it, an item forecast to jump has intervals that nothing it ever did
 * speaks for.
 */
export const levelTerm = (centre: number, least: number): number =>
  Math.sqrt(Math.sqrt(Math.max(Math.abs(centre), least)))

const phaseTerm = (phases: Float64Array | undefined, t: number): number => phases?.[t % phases.length] ?? 1

/** Horizons after which an error counts half: what is uncertain now says more than what was. */
const HALF_LIFE_HORIZONS = 3
/** Fewer windows than this widen no further. */
const LEAST_WINDOWS = 2
/** Running sums have one error a window where single steps have several. */
const SUMS_SHARE = 0.7
/** Windows of which what errors lie to one side is believed by half: the errors of one window go together, and the next may miss the other way. */
const BELIEVED_WINDOWS = 2

/** Weight per origin of `from…to`, the last one's being 1. */
function originWeights({ origins, horizon }: RollingPlan, from: number, to: number): Float64Array {
  const weights = new Float64Array(Math.max(0, to - from))
  for (let o = from; o < to; o++) {
    weights[o - from] = 2 ** ((origins[o]! - origins[to - 1]!) / (HALF_LIFE_HORIZONS * horizon))
  }
  return weights
}

/** Periods that the origins cover, as many as equal weights would have to cover to say as much. Source: Kish (1965). */
function weightedSpan({ origins }: RollingPlan, weights: Float64Array, from: number, to: number): number {
  let sum = 0
  let squares = 0
  for (const weight of weights) {
    sum += weight
    squares += weight * weight
  }
  return to > from ? ((origins[to - 1]! - origins[from]! + 1) * sum * sum) / squares / (to - from) : 0
}

/** Windows that do not overlap, per step: of k periods for the k-th, but errors a third of a horizon apart are still alike. */
const windowsOf = (span: number, horizon: number): Float64Array =>
  Float64Array.from({ length: horizon }, (_, k) => span / Math.max(k + 1, horizon / 3))

/**
 * How far errors lie to one side: their mean, or their median where that says less, and nothing where the two do not agree. One
 * error that is large moves the mean away from what nearly always happens.
 */
function oneSided(errors: Float64Array, weights: Float64Array): number {
  let sum = 0
  let mass = 0
  for (let i = 0; i < errors.length; i++) {
    sum += weights[i]! * errors[i]!
    mass += weights[i]!
  }
  let middle = 0
  for (let below = weights[0]!; middle < errors.length - 1 && below < mass / 2; below += weights[middle]!) middle++
  const mean = sum / mass
  const median = errors[middle]!
  if (mean * median <= 0) return 0
  return Math.abs(mean) < Math.abs(median) ? mean : median
}

/**
 * Takes off ascending errors the part of what they lie to one side that so few windows cannot vouch for. What they scatter is known
 * from every error, but how far all of them lie to one side from each window once. Source: Efron & Morris (1975), shrinkage.
 * @returns what is left of it
 */
function recentre(errors: Float64Array, weights: Float64Array, windows: number): number {
  if (errors.length === 0) return 0
  const believed = windows / (windows + BELIEVED_WINDOWS)
  const bias = oneSided(errors, weights)
  for (let i = 0; i < errors.length; i++) errors[i]! -= (1 - believed) * bias
  return believed * bias
}

/** Share of the errors on one side that its tail is learnt from. */
const TAIL_SHARE = 0.2
/** A quantile is read off the errors only where so many independent ones lie beyond it. */
const TAIL_ERRORS = 2

/** Where a tail begins, and how far beyond the errors in it lie on average. */
interface Tail {
  from: number
  excess: number
}

/** The upper tail (sign 1) or the lower one (−1) of ascending weighted errors. */
function tailOf(errors: Float64Array, weights: Float64Array, total: number, sign: 1 | -1): Tail {
  const last = errors.length - 1
  let mass = 0
  let sum = 0
  let from = 0
  for (let i = 0; i <= last && mass < TAIL_SHARE * total; i++) {
    const at = sign === 1 ? last - i : i
    from = errors[at]!
    mass += weights[at]!
    sum += weights[at]! * from
  }
  return { from, excess: mass > 0 ? Math.abs(sum / mass - from) : 0 }
}

/**
 * Quantiles of ascending weighted errors at the conformal ranks of as many errors as are worth `independent` ones. Beyond the outermost
 * of these the tail falls off exponentially: the largest error of a short history is not the largest possible.
 * Source: Pickands (1975), peaks over a threshold.
 */
export function weightedShape(errors: Float64Array, weights: Float64Array, independent: number): Float64Array {
  const centres = new Float64Array(weights.length)
  let total = 0
  for (let i = 0; i < centres.length; i++) {
    centres[i] = total + weights[i]! / 2
    total += weights[i]!
  }
  const low = tailOf(errors, weights, total, -1)
  const high = tailOf(errors, weights, total, 1)
  let i = 0
  return LEVELS.map((p) => {
    const rank = total * ((p * (independent + 1) - 0.5) / independent)
    while (i < centres.length && centres[i]! < rank) i++
    const outside = Math.min(p, 1 - p)
    if (outside < TAIL_SHARE && outside * independent < TAIL_ERRORS) {
      const depth = Math.log(TAIL_SHARE / outside)
      return p < 0.5
        ? Math.min(low.from - depth * low.excess, errors[Math.max(0, i - 1)] ?? 0)
        : Math.max(high.from + depth * high.excess, errors[Math.min(i, errors.length - 1)] ?? 0)
    }
    if (i === 0 || i === centres.length) return errors[Math.min(i, errors.length - 1)] ?? 0
    const part = (rank - centres[i - 1]!) / (centres[i]! - centres[i - 1]!)
    return errors[i - 1]! + part * (errors[i]! - errors[i - 1]!)
  })
}

/**
 * Errors of the rolled forecasts (or of their running sums), scaled per step, pooled over steps, recent ones heavier.
 * Source: split conformal prediction (Vovk et al. 2005), normalised scores (Papadopoulos 2008), weights for what may have
 * changed (Barber et al. 2023).
 * @param from first origin used
 * @param to end of the origins used
 * @param phases noise per phase of the season, relative to their mean
 */
export function learnErrors(
  rolled: Float64Array,
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  cumulative: boolean,
  from = 0,
  to = plan.origins.length,
  phases?: Float64Array
): Distribution {
  const { origins, horizon } = plan
  const ofOrigin = originWeights(plan, from, to)
  const sums = new Float64Array(horizon)
  const masses = new Float64Array(horizon)
  const errors = new Float64Array(ofOrigin.length * horizon)
  const weights = new Float64Array(errors.length)
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
      const term = levelTerm(centre, least) * phaseTerm(phases, origins[o]! + k)
      errors[count] = term > 0 ? running / term : 0
      weights[count] = ofOrigin[o - from]!
      sums[k]! += weights[count]! * Math.abs(errors[count]!)
      masses[k]! += weights[count]!
      steps[count++] = k
    }
  }
  const scales = smoothScales(sums, masses, cumulative)
  for (let i = 0; i < count; i++) errors[i]! /= scales[steps[i]!]!
  const known = errors.subarray(0, count)
  const knownWeights = weights.subarray(0, count)
  const span = weightedSpan(plan, ofOrigin, from, to)
  sortTogether(known, knownWeights)
  const bias = recentre(known, knownWeights, span / horizon)
  const windows = windowsOf(span, horizon)
  const independent = windows.reduce((sum, count) => sum + count, 0)
  const shape = weightedShape(known, knownWeights, Math.max(1, independent))
  const freedoms = windows.map((count) => Math.max(LEAST_WINDOWS, cumulative ? SUMS_SHARE * count : count))
  const shapes = quantileRows(horizon)
  for (let l = 0; l < shapes.length; l++) {
    for (let k = 0; k < horizon; k++) shapes[l]![k] = bias + (shape[l]! - bias) * widening(Z[l]!, freedoms[k]!)
  }
  return { scales, shapes, least: 0.1 * level, phases }
}

/**
 * By which power of time the errors of steps grow that were never measured. Those of one window go together, so running sums
 * err in proportion to their length; their level term, which grows with it, has the other quarter.
 */
const UNSEEN_GROWTH = { steps: 0.25, sums: 0.75 } as const

/** Weighted mean |error| per step, smoothed over neighbours and non-decreasing. */
function smoothScales(sums: Float64Array, masses: Float64Array, cumulative: boolean): Float64Array {
  const scales = new Float64Array(sums.length)
  let last = 0
  for (let k = 0; k < scales.length; k++) {
    let sum = 0
    let mass = 0
    for (let j = cumulative ? k : Math.max(0, k - 1); j <= Math.min(k + (cumulative ? 0 : 1), sums.length - 1); j++) {
      sum += sums[j]!
      mass += masses[j]!
    }
    const growth = k === 0 ? 1 : ((k + 1) / k) ** (cumulative ? UNSEEN_GROWTH.sums : UNSEEN_GROWTH.steps)
    last = mass > 0 ? Math.max(sum / mass, last) : last * growth
    scales[k] = last > 0 ? last : Number.MIN_VALUE
  }
  return scales
}

/** Rows for the quantiles of every level. */
export function quantileRows(horizon: number): Float64Array[] {
  const all = new Float64Array(LEVELS.length * horizon)
  return Array.from(LEVELS, (_, l) => all.subarray(l * horizon, (l + 1) * horizon))
}

/**
 * Quantiles per level around the point forecast, sorted so that they never cross.
 * @param start which value of the series the first step is
 */
export function spread(
  centre: Float64Array,
  { scales, shapes, least, phases }: Distribution,
  floor: number,
  start: number,
  rows = quantileRows(centre.length)
): Float64Array[] {
  for (let k = 0; k < centre.length; k++) {
    const unit = scales[k]! * levelTerm(centre[k]!, least) * phaseTerm(phases, start + k)
    let lowest = floor
    for (let l = 0; l < rows.length; l++) {
      lowest = Math.max(centre[k]! + shapes[l]![k]! * unit, lowest)
      rows[l]![k] = lowest
    }
  }
  return rows
}

/** With a quarter of the chance on the floor it holds a value that comes, not only forecasts that were cut off there. */
const QUARTER = LEVELS.indexOf(0.25)

/**
 * Upper end of a central interval. Where the lower end is the floor itself nothing falls below it, and the whole chance of a
 * miss is above: taking two tails off would cover too much.
 */
function upperEnd(quantiles: readonly Float64Array[], k: number, coverage: Coverage, floor: number): number {
  const [, high, single] = INTERVALS[coverage]
  return quantiles[quantiles[QUARTER]![k]! > floor ? high : single]![k]!
}

/** Whether `actual` lies inside the central interval of step `k`. */
export const coversCentrally = (
  quantiles: readonly Float64Array[],
  floor: number,
  actual: number,
  k: number,
  coverage: Coverage
): boolean => actual >= quantiles[INTERVALS[coverage][0]]![k]! && actual <= upperEnd(quantiles, k, coverage, floor)

/** Central intervals of every step. */
export function centralIntervals(quantiles: readonly Float64Array[], floor: number): Intervals {
  const interval = (coverage: Coverage) => ({
    lower: quantiles[INTERVALS[coverage][0]]!.slice(),
    upper: quantiles[0]!.map((_, k) => upperEnd(quantiles, k, coverage, floor))
  })
  return { 80: interval(80), 90: interval(90), 95: interval(95) }
}

/** So many values tell how far demand strays. */
const TELLING_VALUES = 8
/** Standard deviation over mean that demand is taken to have then, beside that of counts; it counts as one value does. */
const ASSUMED_VARIATION = 0.6

/**
 * Widens quantiles of a short history, in place, to what its values and an assumption say together: three that are alike are no proof
 * that the fourth will be. The more values, the less of it.
 * @param centre point forecast per step, or its running sums
 * @param y the history
 */
export function widenFew(
  quantiles: readonly Float64Array[],
  centre: Float64Array,
  y: Float64Array,
  cumulative: boolean,
  floor: number
): void {
  const known = Math.max(1, y.length)
  if (known >= TELLING_VALUES) return
  const share = Math.sqrt((TELLING_VALUES - known) / (TELLING_VALUES - 1))
  const average = y.reduce((sum, value) => sum + value / known, 0)
  const scatter = Math.hypot(...y.map((value) => value - average))
  for (let k = 0; k < centre.length; k++) {
    const periods = cumulative ? k + 1 : 1
    const mean = Math.abs(centre[k]!) / periods
    const ofOne = Math.hypot(Math.sqrt(mean), ASSUMED_VARIATION * mean, scatter) / Math.sqrt(known)
    // The mean is as uncertain as so few values leave it, and of a sum it is wrong in each period.
    const deviation = share * ofOne * Math.sqrt(periods * (1 + periods / known))
    for (let l = 0; l < quantiles.length; l++) {
      const assumed = Math.max(floor, centre[k]! + Z[l]! * deviation)
      const row = quantiles[l]!
      if (Z[l]! < 0) row[k] = Math.min(row[k]!, assumed)
      if (Z[l]! > 0) row[k] = Math.max(row[k]!, assumed)
    }
  }
}
