import type { DemandClass, Frequency } from './types.js'

/** Arithmetic mean of `y[from, to)`; 0 when empty. */
export function mean(y: ArrayLike<number>, from = 0, to = y.length): number {
  let sum = 0
  for (let i = from; i < to; i++) sum += y[i]!
  return to > from ? sum / (to - from) : 0
}

/** Population variance of `y[from, to)`; 0 when empty. */
export function variance(y: ArrayLike<number>, from = 0, to = y.length): number {
  const centre = mean(y, from, to)
  let sum = 0
  for (let i = from; i < to; i++) sum += (y[i]! - centre) ** 2
  return to > from ? sum / (to - from) : 0
}

/** Median of a copy of `y`; 0 when empty. */
export function median(y: ArrayLike<number>): number {
  const sorted = Float64Array.from(y).sort()
  const n = sorted.length
  if (n === 0) return 0
  const half = n >> 1
  return n % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2
}

/** Seasonal periods worth testing for a frequency, shortest first. */
export function candidatePeriods(frequency: Frequency): number[] {
  if (frequency === 'day') return [7, 365]
  if (frequency === 'week') return [52]
  if (frequency === 'month') return [12]
  const period = Math.round(frequency)
  // hours, half hours and quarters carry the week as well as the day
  return [24, 48, 96].includes(period) ? [period, 7 * period] : period > 1 ? [period] : []
}

/** Autocorrelation at lags 1…maxLag (index 0 holds lag 1). */
export function autocorrelations(y: ArrayLike<number>, maxLag: number): Float64Array {
  const n = y.length
  const centre = mean(y)
  const acf = new Float64Array(maxLag)
  let total = 0
  for (let i = 0; i < n; i++) total += (y[i]! - centre) ** 2
  if (total <= 0) return acf
  for (let lag = 1; lag <= maxLag && lag < n; lag++) {
    let sum = 0
    for (let i = lag; i < n; i++) sum += (y[i]! - centre) * (y[i - lag]! - centre)
    acf[lag - 1] = sum / total
  }
  return acf
}

/** Centred moving average over one period (2 × m for even m); the ends keep the slope of the nearest half period. */
export function movingTrend(y: Float64Array, period: number): Float64Array {
  const n = y.length
  const half = period >> 1
  const even = period % 2 === 0
  const trend = new Float64Array(n)
  let sum = 0
  for (let i = 0; i < Math.min(n, 2 * half + 1); i++) sum += y[i]!
  for (let i = half; i + half < n; i++) {
    if (i > half) sum += y[i + half]! - y[i - half - 1]!
    trend[i] = (even ? sum - (y[i - half]! + y[i + half]!) / 2 : sum) / period
  }
  const first = half
  const last = n - 1 - half
  if (last < first) return trend.fill(mean(y))
  const reach = Math.min(last - first, Math.max(1, half))
  const before = reach > 0 ? (trend[first + reach]! - trend[first]!) / reach : 0
  const after = reach > 0 ? (trend[last]! - trend[last - reach]!) / reach : 0
  for (let i = 0; i < first; i++) trend[i] = trend[first]! - (first - i) * before * 0.5
  for (let i = last + 1; i < n; i++) trend[i] = trend[last]! + (i - last) * after * 0.5
  return trend
}

/**
 * Whether the autocorrelation at the seasonal lag stands out from noise at 90 %, given the shorter lags. The trend is taken
 * off first: a random walk resembles itself at every lag. Source: the seasonality test of the M4 competition (Makridakis, Spiliotis & Assimakopoulos 2020).
 */
export function isSeasonal(y: Float64Array, period: number): boolean {
  const n = y.length
  if (period < 2 || n < 2 * period + (period > 24 ? Math.min(period, 6) : period)) return false
  const trend = movingTrend(y, period)
  const acf = autocorrelations(
    y.map((value, i) => value - trend[i]!),
    period
  )
  let squares = 0
  for (let lag = 0; lag < period - 1; lag++) squares += acf[lag]! ** 2
  return acf[period - 1]! > 1.645 * Math.sqrt((1 + 2 * squares) / n)
}

/** ADI / CV² class of demand; `missing` periods do not count. Source: Syntetos, Boylan & Croston (2005). */
export function classifyDemand(values: Float64Array, missing?: Uint8Array): DemandClass {
  let periods = 0
  let demands = 0
  let sum = 0
  let squares = 0
  for (let i = 0; i < values.length; i++) {
    if (missing?.[i] === 1) continue
    periods++
    const value = values[i]!
    if (value === 0) continue
    demands++
    sum += value
    squares += value * value
  }
  if (demands === 0) return 'none'
  const size = sum / demands
  const cv2 = size === 0 ? 0 : Math.max(0, squares / demands / (size * size) - 1)
  const adi = periods / demands
  if (adi < 1.32) return cv2 < 0.49 ? 'smooth' : 'erratic'
  return cv2 < 0.49 ? 'intermittent' : 'lumpy'
}

/**
 * Values with the gaps filled from their surroundings: same phase one and two seasons away where known, otherwise the
 * nearest four known values. The models need a value everywhere; errors are measured on known periods only.
 */
export function fillMissing(values: Float64Array, missing: Uint8Array, period: number): Float64Array {
  const filled = values.slice()
  const n = values.length
  const known = (i: number): boolean => i >= 0 && i < n && missing[i] !== 1
  for (let i = 0; i < n; i++) {
    if (missing[i] !== 1) continue
    let sum = 0
    let count = 0
    if (period > 1) {
      for (const step of [-2, -1, 1, 2]) {
        if (!known(i + step * period)) continue
        sum += values[i + step * period]!
        count++
      }
    }
    for (let away = 1; count < 2 && away < n; away++) {
      for (const j of [i - away, i + away]) {
        if (!known(j)) continue
        sum += values[j]!
        count++
      }
    }
    filled[i] = count > 0 ? sum / count : 0
  }
  return filled
}

/**
 * First index worth learning from: demand before the first sale says nothing about an item that was not yet sold. One
 * mean interval of idle periods stays before it, so that the rate is not biased upwards.
 */
export function firstActive(values: Float64Array, keepAtLeast: number): number {
  let first = -1
  let demands = 0
  for (let i = 0; i < values.length; i++) {
    if (values[i] === 0) continue
    if (first < 0) first = i
    demands++
  }
  if (first < 0) return 0
  const interval = Math.round((values.length - first) / demands) - 1
  return Math.max(0, Math.min(first - interval, values.length - keepAtLeast))
}
