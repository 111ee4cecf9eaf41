import { forecastEach, inOnePass, rowOf } from './ends.js'
import { scratch } from './scratch.js'
import { applySeasons, dominantPeriod, findSeasons, usablePeriods } from './seasons.js'
import type { Ends, Fit, Fitted } from './types.js'

/** The same model offered every season with two cycles in the data, not only the significant ones. */
export const everySeason =
  (core: Fit): Fit =>
  (y, context) =>
    core(y, { ...context, periods: context.candidates })

/** A model on logarithms (on plain values where some are negative); with zeros a third of the mean is added first. */
export function logged(core: Fit): Fit {
  return (y, context): Fitted | undefined => {
    let low = Number.POSITIVE_INFINITY
    let sum = 0
    for (let i = 0; i < y.length; i++) {
      low = Math.min(low, y[i]!)
      sum += y[i]!
    }
    if (low < 0 || !(sum > 0)) return core(y, context)
    const lift = low > 0 ? 0 : (0.3 * sum) / y.length
    // a later zero or return must not become −∞
    const least = (1e-3 * sum) / y.length
    const forward = (values: Float64Array): Float64Array =>
      values.map((value) => Math.log(Math.max(value + lift, least)))
    const fitted = core(forward(y), context)
    return (
      fitted &&
      inOnePass((prefix, ends) => {
        const { out } = ends
        forecastEach(fitted, forward(prefix), ends)
        for (let k = 0; k < out.length; k++) out[k] = Math.exp(Math.min(out[k]!, 700)) - lift
      })
    )
  }
}

/** A model on differences from one season before, by the season whose repetition errs least. */
export function seasonallyDifferenced(core: Fit): Fit {
  return (y, context) => {
    const period = dominantPeriod(y, context.periods)
    if (period === undefined || y.length < 2 * period + 12) return undefined
    const differences = (values: Float64Array): Float64Array => {
      const x = new Float64Array(values.length - period)
      for (let i = 0; i < x.length; i++) x[i] = values[i + period]! - values[i]!
      return x
    }
    const fitted = core(differences(y), { ...context, periods: [period], candidates: [] })
    return (
      fitted &&
      inOnePass((prefix, ends) => {
        const { lengths, horizon } = ends
        forecastEach(fitted, differences(prefix), { ...ends, lengths: lengths.map((n) => n - period) })
        for (let j = 0; j < lengths.length; j++) {
          const from = lengths[j]! - period
          const row = rowOf(ends, j)
          for (let k = 0; k < horizon; k++) row[k]! += k < period ? prefix[from + k]! : row[k - period]!
        }
      })
    )
  }
}

const HALF_WINDOW = 6

/** Puts `value` into the first `count` ascending values of `sorted`. */
function insertSorted(sorted: Float64Array, count: number, value: number): void {
  let at = count
  while (at > 0 && sorted[at - 1]! > value) {
    sorted[at] = sorted[at - 1]!
    at--
  }
  sorted[at] = value
}

/** Takes one occurrence of `value` out of the first `count` ascending values of `sorted`. */
function removeSorted(sorted: Float64Array, count: number, value: number): void {
  let at = 0
  while (at < count - 1 && sorted[at] !== value) at++
  for (; at < count - 1; at++) sorted[at] = sorted[at + 1]!
}

const window = new Float64Array(2 * HALF_WINDOW + 2)

/** Running medians of 13 of the first `n` values from `from` on, of fewer towards the ends, put into `medians`. */
function runningMedians(y: Float64Array, from: number, n: number, medians: Float64Array): void {
  let count = 0
  for (let i = Math.max(0, from - HALF_WINDOW); i < Math.min(from + HALF_WINDOW, n); i++) {
    insertSorted(window, count++, y[i]!)
  }
  for (let i = from; i < n; i++) {
    if (i + HALF_WINDOW < n) insertSorted(window, count++, y[i + HALF_WINDOW]!)
    if (i > from && i > HALF_WINDOW) removeSorted(window, count--, y[i - HALF_WINDOW - 1]!)
    const half = count >> 1
    medians[i] = count % 2 === 1 ? window[half]! : (window[half - 1]! + window[half]!) / 2
  }
}

/** The value that `rank` others precede in ascending order, `values` being reordered. Source: Hoare (1961), FIND. */
export function select(values: Float64Array, rank: number): number {
  let low = 0
  let high = values.length - 1
  while (low < high) {
    const pivot = values[(low + high) >> 1]!
    let i = low
    let j = high
    while (i <= j) {
      while (values[i]! < pivot) i++
      while (values[j]! > pivot) j--
      if (i > j) break
      const swapped = values[i]!
      values[i++] = values[j]!
      values[j--] = swapped
    }
    if (rank <= j) high = j
    else if (rank >= i) low = i
    else break
  }
  return values[rank] ?? 0
}

const localMedians = scratch()

/**
 * Holds the first so many values within three robust standard deviations of their running median of 13, as if no more were
 * known. Source: Hampel (1974).
 */
export function hampel(y: Float64Array): (length: number) => Float64Array {
  const medians = new Float64Array(y.length)
  runningMedians(y, 0, y.length, medians)
  return (length) => {
    const local = localMedians(length)
    local.set(medians.subarray(0, length))
    // only the windows that reach beyond the end differ
    if (length < y.length) runningMedians(y, Math.max(0, length - HALF_WINDOW), length, local)
    const clean = new Float64Array(length)
    for (let i = 0; i < length; i++) clean[i] = Math.abs(y[i]! - local[i]!)
    const limit = 3 * 1.4826 * select(clean, length >> 1)
    if (!(limit > 0)) return y.slice(0, length)
    for (let i = 0; i < length; i++) clean[i] = Math.min(local[i]! + limit, Math.max(local[i]! - limit, y[i]!))
    return clean
  }
}

/** A model that does not see lone extremes; what comes back every season is none. */
export function robust(core: Fit): Fit {
  return (y, context) => {
    const periods = usablePeriods(y.length, context.periods)
    const seasons = findSeasons(y, periods, false, 0.9, true)
    const cleaner = (values: Float64Array): ((length: number) => Float64Array) => {
      const plain = values.slice()
      applySeasons(plain, seasons, 0, -1)
      const hold = hampel(plain)
      return (length) => {
        const held = hold(length)
        applySeasons(held, seasons, 0, 1)
        return held
      }
    }
    const fitted = core(cleaner(y)(y.length), context)
    return (
      fitted &&
      inOnePass((prefix, ends) => {
        const clean = cleaner(prefix)
        // what holds the last values depends on the end, so each end has a series of its own
        for (let j = 0; j < ends.lengths.length; j++) fitted.forecast(clean(ends.lengths[j]!), rowOf(ends, j))
      })
    )
  }
}

const WIDTHS = [1, 2, 3, 4, 6]
const LEAST_BUCKETS = 8

/** Means of `width` periods, aligned to the end of the first `length` values. */
function bucketMeans(
  y: Float64Array,
  width: number,
  length = y.length,
  means = new Float64Array(Math.floor(length / width))
): Float64Array {
  for (let b = 0, i = length % width; b < means.length; b++) {
    let sum = 0
    for (let j = 0; j < width; j++) sum += y[i++]!
    means[b] = sum / width
  }
  return means
}

const levelAhead = scratch()
const levelMeans = scratch()

/** Adds `share` of the forecasts made of averages over `width` periods, read back between bucket centres. */
function addLevel(fitted: Fitted, width: number, share: number, y: Float64Array, ends: Ends): void {
  const { lengths, horizon, out } = ends
  const reach = Math.ceil(horizon / width) + 2
  const rows = new Int32Array(lengths.length)
  for (let residue = 0; residue < width; residue++) {
    // ends a whole number of buckets apart see the same buckets
    let count = 0
    for (let j = 0; j < lengths.length; j++) if (lengths[j]! % width === residue) rows[count++] = j
    if (count === 0) continue
    const ahead = levelAhead(count * reach).fill(0)
    const buckets = new Int32Array(count)
    for (let r = 0; r < count; r++) buckets[r] = Math.floor(lengths[rows[r]!]! / width)
    const known = lengths[rows[count - 1]!]!
    const means = width === 1 ? y : bucketMeans(y, width, known, levelMeans(Math.floor(known / width)))
    forecastEach(fitted, means, { lengths: buckets, horizon: reach, out: ahead })
    for (let k = 0; k < horizon; k++) {
      const position = (k + 0.5) / width - 0.5
      const left = Math.max(0, Math.floor(position))
      const part = position - left
      for (let r = 0, at = left; r < count; r++, at += reach) {
        out[rows[r]! * horizon + k]! += share * (ahead[at]! + part * (ahead[at + 1]! - ahead[at]!))
      }
    }
  }
}

/**
 * Multiple aggregation prediction: the mean of a model's forecasts on the series and on its averages over 2, 3, 4 and 6
 * periods. Source: Kourentzes, Petropoulos & Trapero (2014), IJF 30.
 */
export function aggregated(core: Fit): Fit {
  return (y, context) => {
    const levels: { width: number; fitted: Fitted }[] = []
    for (const width of WIDTHS) {
      if (Math.floor(y.length / width) < LEAST_BUCKETS) break
      const fitted = core(width === 1 ? y : bucketMeans(y, width), context)
      if (fitted) levels.push({ width, fitted })
    }
    if (levels.length === 0) return undefined
    return inOnePass((prefix, ends) => {
      ends.out.fill(0)
      for (const { width, fitted } of levels) addLevel(fitted, width, 1 / levels.length, prefix, ends)
    })
  }
}
