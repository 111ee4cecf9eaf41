import { applySeasons, dominantPeriod, findSeasons, usablePeriods } from './seasons.js'
import type { Fit, Fitted } from './types.js'

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
    let seen = new Float64Array(0)
    let logs = new Float64Array(0)
    // asked for again and again with more at the end: what has not changed is kept
    const forward = (values: Float64Array): Float64Array => {
      const next = new Float64Array(values.length)
      let i = 0
      for (; i < next.length && i < seen.length && values[i] === seen[i]; i++) next[i] = logs[i]!
      for (; i < next.length; i++) next[i] = Math.log(Math.max(values[i]! + lift, least))
      seen = values.slice()
      logs = next
      return next.slice()
    }
    const fitted = core(forward(y), context)
    return (
      fitted && {
        forecast(prefix, out) {
          fitted.forecast(forward(prefix), out)
          for (let k = 0; k < out.length; k++) out[k] = Math.exp(Math.min(out[k]!, 700)) - lift
        }
      }
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
      fitted && {
        forecast(prefix, out) {
          const n = prefix.length
          fitted.forecast(differences(prefix), out)
          for (let k = 0; k < out.length; k++) out[k]! += k < period ? prefix[n - period + k]! : out[k - period]!
        }
      }
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

/**
 * Running medians of 13 of a series that is seen again and again with more at its end: the medians whose windows have not
 * changed since are kept.
 */
function runningMedians(): (y: Float64Array) => Float64Array {
  const window = new Float64Array(2 * HALF_WINDOW + 2)
  let seen = new Float64Array(0)
  let medians = new Float64Array(0)
  return (y) => {
    const n = y.length
    let same = 0
    while (same < n && same < seen.length && y[same] === seen[same]) same++
    const first = Math.max(0, (same < n || same < seen.length ? same : n) - HALF_WINDOW)
    const updated = new Float64Array(n)
    updated.set(medians.subarray(0, first))
    let count = 0
    for (let i = Math.max(0, first - HALF_WINDOW); i < Math.min(first + HALF_WINDOW, n); i++) {
      insertSorted(window, count++, y[i]!)
    }
    for (let i = first; i < n; i++) {
      if (i + HALF_WINDOW < n) insertSorted(window, count++, y[i + HALF_WINDOW]!)
      if (i > first && i > HALF_WINDOW) removeSorted(window, count--, y[i - HALF_WINDOW - 1]!)
      const half = count >> 1
      updated[i] = count % 2 === 1 ? window[half]! : (window[half - 1]! + window[half]!) / 2
    }
    seen = y.slice()
    medians = updated
    return medians
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

/** Holds values within three robust standard deviations of their running median of 13. Source: Hampel (1974). */
export function hampel(): (y: Float64Array) => Float64Array {
  const mediansOf = runningMedians()
  return (y) => {
    const medians = mediansOf(y)
    const clean = new Float64Array(y.length)
    for (let i = 0; i < clean.length; i++) clean[i] = Math.abs(y[i]! - medians[i]!)
    const limit = 3 * 1.4826 * select(clean, y.length >> 1)
    if (!(limit > 0)) return y.slice()
    for (let i = 0; i < clean.length; i++) {
      clean[i] = Math.min(medians[i]! + limit, Math.max(medians[i]! - limit, y[i]!))
    }
    return clean
  }
}

/** A model that does not see lone extremes; what comes back every season is none. */
export function robust(core: Fit): Fit {
  return (y, context) => {
    const periods = usablePeriods(y.length, context.periods)
    const seasons = findSeasons(y, periods, false, 0.9, true)
    const holding = hampel()
    const clean = (values: Float64Array): Float64Array => {
      if (periods.length === 0) return holding(values)
      const plain = values.slice()
      applySeasons(plain, seasons, 0, -1)
      const held = holding(plain)
      applySeasons(held, seasons, 0, 1)
      return held
    }
    const fitted = core(clean(y), context)
    return (
      fitted && {
        forecast(prefix, out) {
          fitted.forecast(clean(prefix), out)
        }
      }
    )
  }
}

const WIDTHS = [1, 2, 3, 4, 6]
const LEAST_BUCKETS = 8

/** Means of `width` periods, aligned to the end. */
function bucketMeans(y: Float64Array, width: number): Float64Array {
  const buckets = Math.floor(y.length / width)
  const means = new Float64Array(buckets)
  const first = y.length - buckets * width
  for (let b = 0, i = first; b < buckets; b++) {
    let sum = 0
    for (let j = 0; j < width; j++) sum += y[i++]!
    means[b] = sum / width
  }
  return means
}

/**
 * Multiple aggregation prediction: the mean of a model's forecasts on the series and on its averages over 2, 3, 4 and 6
 * periods, read back between bucket centres. Source: Kourentzes, Petropoulos & Trapero (2014), IJF 30.
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
    return {
      forecast(prefix, out) {
        out.fill(0)
        for (const { width, fitted } of levels) {
          const ahead = new Float64Array(Math.ceil(out.length / width) + 2)
          fitted.forecast(width === 1 ? prefix : bucketMeans(prefix, width), ahead)
          for (let k = 0; k < out.length; k++) {
            const position = (k + 0.5) / width - 0.5
            const left = Math.max(0, Math.floor(position))
            const value = ahead[left]! + (position - left) * (ahead[left + 1]! - ahead[left]!)
            out[k]! += value / levels.length
          }
        }
      }
    }
  }
}
