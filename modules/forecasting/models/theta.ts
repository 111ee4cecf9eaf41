import { minimise } from './optimise.js'
import { bestSmoothing, smooth } from './smoothing.js'
import type { Fit } from './types.js'

/** Least-squares slope of `y` on time. */
export function slope(y: Float64Array): number {
  const n = y.length
  const middle = (n - 1) / 2
  let cross = 0
  let squares = 0
  for (let i = 0; i < n; i++) {
    cross += (i - middle) * y[i]!
    squares += (i - middle) ** 2
  }
  return squares > 0 ? cross / squares : 0
}

/** Theta (θ = 2) forecasts from the end of `y`: SES plus half the linear trend. Source: Assimakopoulos & Nikolopoulos (2000)
 * in the form of Hyndman & Billah (2003), as R's `thetaf`. */
export function thetaForecast(y: Float64Array, alpha: number, start: number, out: Float64Array): void {
  const level = smooth(y, alpha, start)
  const drift = slope(y) / 2
  const lead = (1 - (1 - alpha) ** y.length) / alpha
  for (let k = 0; k < out.length; k++) out[k] = level + drift * (k + lead)
}

/** Theta, smoothing constant and start level by least squares. */
export const fitTheta: Fit = (y) => {
  if (y.length < 4) return undefined
  const { alpha, start } = bestSmoothing(y)
  return {
    forecast(prefix, out) {
      thetaForecast(prefix, alpha, start, out)
    }
  }
}

/**
 * One pass of the dynamic optimised Theta model; with `out`, goes on beyond the data feeding its own forecasts.
 * @returns the squared one-step errors
 */
export function dotmPass(y: Float64Array, start: number, alpha: number, theta: number, out?: Float64Array): number {
  const n = y.length
  const share = 1 - 1 / theta
  let level = alpha * y[0]! + (1 - alpha) * start
  let average = y[0]!
  let a = y[0]!
  let b = 0
  let decay = 1 - alpha
  let sse = 0
  for (let i = 1; i < n + (out?.length ?? 0); i++) {
    const ahead = level + share * (decay * a + ((1 - decay * (1 - alpha)) / alpha) * b)
    decay *= 1 - alpha
    let value = ahead
    if (i < n) {
      value = y[i]!
      if (i > 1) sse += (value - ahead) ** 2
    } else if (out) out[i - n] = ahead
    level = alpha * value + (1 - alpha) * level
    const t = i + 1
    b = ((t - 2) * b + (6 * (value - average)) / t) / (t + 1)
    average += (value - average) / t
    a = average - (b * (t + 1)) / 2
  }
  return sse
}

/** Dynamic optimised Theta model: start level, α and θ by least squares. Source: Fiorucci et al. (2016), IJF 32. */
export const fitDotm: Fit = (y) => {
  if (y.length < 5) return undefined
  const first = y[0]!
  let spread = 1e-9
  for (let i = 0; i < Math.min(12, y.length); i++) spread = Math.max(spread, Math.abs(y[i]! - first))
  const best = minimise((x) => dotmPass(y, first + x[0]! * spread, x[1]!, x[2]!), [0, 0.3, 2], {
    low: [-2, 0.05, 1],
    high: [2, 0.99, 20]
  })
  return {
    forecast(prefix, out) {
      dotmPass(prefix, first + best[0]! * spread, best[1]!, best[2]!, out)
    }
  }
}
