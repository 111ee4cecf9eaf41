import { bestSmoothing, smooth } from './smoothing.js'
import type { Fit } from './types.js'

/** Croston's rate after the last value: smoothed size over smoothed interval. Source: Croston (1972). */
export function crostonRate(y: Float64Array, alpha: number): number {
  let size = 0
  let interval = 0
  let since = 0
  let seen = false
  for (let i = 0; i < y.length; i++) {
    since++
    const value = y[i]!
    if (value === 0) continue
    if (!seen) {
      size = value
      interval = since
      seen = true
    } else {
      size += alpha * (value - size)
      interval += alpha * (since - interval)
    }
    since = 0
  }
  return seen ? size / interval : 0
}

const ALPHAS = [0.05, 0.1, 0.15, 0.2, 0.3]

/** One-step squared error of Croston's rate times `factor`, for choosing the constant. */
function crostonError(y: Float64Array, alpha: number, factor: number): number {
  let size = 0
  let interval = 1
  let since = 0
  let seen = false
  let sse = 0
  for (let i = 0; i < y.length; i++) {
    since++
    const value = y[i]!
    if (seen) sse += (value - (factor * size) / interval) ** 2
    if (value === 0) continue
    if (!seen) {
      size = value
      interval = since
      seen = true
    } else {
      size += alpha * (value - size)
      interval += alpha * (since - interval)
    }
    since = 0
  }
  return sse
}

function croston(corrected: boolean): Fit {
  return (y) => {
    if (y.length < 3) return undefined
    let alpha = 0.1
    let best = Number.POSITIVE_INFINITY
    for (const candidate of ALPHAS) {
      const sse = crostonError(y, candidate, corrected ? 1 - candidate / 2 : 1)
      if (sse < best) {
        best = sse
        alpha = candidate
      }
    }
    const factor = corrected ? 1 - alpha / 2 : 1
    return {
      forecast(prefix, out) {
        out.fill(factor * crostonRate(prefix, alpha))
      }
    }
  }
}

/** Croston (1972), constant by one-step squared error. */
export const fitCroston: Fit = croston(false)

/** Croston with the bias taken off: factor 1 − α / 2. Source: Syntetos & Boylan (2005). */
export const fitSba: Fit = croston(true)

/**
 * Teunter-Syntetos-Babai: probability of demand smoothed every period, size at demands. Source: TSB (2011), EJOR 214.
 * @param errors receives the squared one-step error in position 0
 */
export function tsbRate(y: Float64Array, alpha: number, beta: number, errors?: Float64Array): number {
  let probability = 0
  let size = 0
  let demands = 0
  for (let i = 0; i < y.length; i++) {
    if (y[i] === 0) continue
    if (demands === 0) size = y[i]!
    demands++
  }
  if (demands === 0) return 0
  probability = demands / y.length
  let sse = 0
  for (let i = 0; i < y.length; i++) {
    const value = y[i]!
    sse += (value - probability * size) ** 2
    if (value === 0) probability -= beta * probability
    else {
      probability += beta * (1 - probability)
      size += alpha * (value - size)
    }
  }
  if (errors) errors[0] = sse
  return probability * size
}

const TSB_ALPHAS = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5]

/** TSB with both constants from a grid of 36 by one-step squared error. */
export const fitTsb: Fit = (y) => {
  if (y.length < 3) return undefined
  const errors = new Float64Array(1)
  let best = Number.POSITIVE_INFINITY
  let alpha = 0.1
  let beta = 0.1
  for (const a of TSB_ALPHAS) {
    for (const b of TSB_ALPHAS) {
      tsbRate(y, a, b, errors)
      if (errors[0]! >= best) continue
      best = errors[0]!
      alpha = a
      beta = b
    }
  }
  return {
    forecast(prefix, out) {
      out.fill(tsbRate(prefix, alpha, beta))
    }
  }
}

/** Sums of `width` periods, aligned to the end. */
function aggregate(y: Float64Array, width: number): Float64Array {
  const buckets = Math.floor(y.length / width)
  const sums = new Float64Array(buckets)
  const first = y.length - buckets * width
  for (let i = 0; i < buckets * width; i++) sums[Math.floor(i / width)]! += y[first + i]!
  return sums
}

/** Mean interval between demands in periods, 1…a quarter of the data. */
function meanInterval(y: Float64Array): number {
  let demands = 0
  for (let i = 0; i < y.length; i++) if (y[i] !== 0) demands++
  return Math.max(1, Math.min(Math.round(y.length / Math.max(1, demands)), Math.floor(y.length / 4)))
}

function aggregated(widths: (interval: number) => number[]): Fit {
  return (y) => {
    if (y.length < 4) return undefined
    const levels = widths(meanInterval(y)).map((width) => ({ width, ...bestSmoothing(aggregate(y, width)) }))
    return {
      forecast(prefix, out) {
        let rate = 0
        for (const { width, alpha, start } of levels) {
          rate += smooth(aggregate(prefix, width), alpha, start) / width / levels.length
        }
        out.fill(rate)
      }
    }
  }
}

/** ADIDA: SES on sums over the mean interval. Source: Nikolopoulos et al. (2011), JORS 62. */
export const fitAdida: Fit = aggregated((interval) => [interval])

/** IMAPA: mean over all aggregation levels up to the mean interval. Source: Petropoulos & Kourentzes (2015), JORS 66. */
export const fitImapa: Fit = aggregated((interval) => {
  const top = Math.min(interval, 12)
  return Array.from({ length: top }, (_, i) => i + 1)
})
