import { inOnePass } from './ends.js'
import { minimise } from './optimise.js'
import { scratch } from './scratch.js'
import { bestSmoothing, smooth } from './smoothing.js'
import type { Ends, Fit } from './types.js'

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

/** Theta (θ = 2) forecasts from each end of `y`: SES plus half the linear trend. Source: Assimakopoulos & Nikolopoulos (2000)
 * in the form of Hyndman & Billah (2003), as R's `thetaf`. */
export function thetaForecast(y: Float64Array, alpha: number, start: number, { lengths, horizon, out }: Ends): void {
  const base = y[0] ?? 0
  let level = start
  let sum = 0
  let moment = 0
  let i = 0
  for (let j = 0; j < lengths.length; j++) {
    const n = lengths[j]!
    level = smooth(y, alpha, level, i, n)
    for (; i < n; i++) {
      sum += y[i]! - base
      moment += i * (y[i]! - base)
    }
    // the least-squares slope from running sums
    const drift = n > 1 ? (6 * (moment - ((n - 1) / 2) * sum)) / (n * (n * n - 1)) : 0
    const lead = (1 - (1 - alpha) ** n) / alpha
    for (let k = 0; k < horizon; k++) out[j * horizon + k] = level + drift * (k + lead)
  }
}

/** Theta, smoothing constant and start level by least squares. */
export const fitTheta: Fit = (y) => {
  if (y.length < 4) return undefined
  const { alpha, start } = bestSmoothing(y)
  return inOnePass((prefix, ends) => thetaForecast(prefix, alpha, start, ends))
}

/** Least-squares lines through the first 1, 2, 3, … values: intercepts at time 0 and slopes. */
function runningLines(
  y: Float64Array,
  intercepts = new Float64Array(y.length),
  slopes = new Float64Array(y.length)
): { intercepts: Float64Array; slopes: Float64Array } {
  let average = 0
  let b = 0
  for (let i = 0; i < y.length; i++) {
    const t = i + 1
    b = i === 0 ? 0 : ((t - 2) * b + (6 * (y[i]! - average)) / t) / (t + 1)
    average += (y[i]! - average) / t
    slopes[i] = b
    intercepts[i] = average - (b * (t + 1)) / 2
  }
  return { intercepts, slopes }
}

/** Constants and start level of the dynamic optimised Theta model. */
export interface DotmParameters {
  alpha: number
  theta: number
  start: number
}

/**
 * The dynamic optimised Theta model for many constants: the lines it follows are those of the data alone.
 * @returns the squared one-step errors from the third value on
 */
export function dotmErrors(y: Float64Array): (p: DotmParameters) => number {
  const { intercepts, slopes } = runningLines(y)
  return ({ alpha, theta, start }) => {
    const rest = 1 - alpha
    const share = 1 - 1 / theta
    const perSlope = share / alpha
    let level = alpha * y[0]! + rest * start
    let decay = rest
    let sse = 0
    for (let i = 1; i < y.length; i++) {
      const next = decay * rest
      const ahead = level + share * decay * intercepts[i - 1]! + perSlope * (1 - next) * slopes[i - 1]!
      const error = y[i]! - ahead
      if (i > 1) sse += error * error
      level = alpha * y[i]! + rest * level
      decay = next
    }
    return sse
  }
}

const lineIntercepts = scratch()
const lineSlopes = scratch()

/** Forecasts from each end of `y`, going on beyond the data by feeding the model its own. */
export function dotmForecast(y: Float64Array, { alpha, theta, start }: DotmParameters, ends: Ends): void {
  const { lengths, horizon, out } = ends
  const { intercepts, slopes } = runningLines(y, lineIntercepts(y.length), lineSlopes(y.length))
  const rest = 1 - alpha
  const share = 1 - 1 / theta
  let level = start
  for (let j = 0, i = 0; j < lengths.length; j++) {
    for (; i < lengths[j]!; i++) level = alpha * y[i]! + rest * level
    let decay = rest ** i
    let a = intercepts[i - 1]!
    let b = slopes[i - 1]!
    let average = a + (b * (i + 1)) / 2
    let smoothed = level
    for (let k = 0; k < horizon; k++) {
      const value = smoothed + share * (decay * a + ((1 - decay * rest) / alpha) * b)
      out[j * horizon + k] = value
      decay *= rest
      smoothed = alpha * value + rest * smoothed
      const t = i + k + 1
      b = ((t - 2) * b + (6 * (value - average)) / t) / (t + 1)
      average += (value - average) / t
      a = average - (b * (t + 1)) / 2
    }
  }
}

/** Dynamic optimised Theta model: start level, α and θ by least squares. Source: Fiorucci et al. (2016), IJF 32. */
export const fitDotm: Fit = (y) => {
  if (y.length < 5) return undefined
  const first = y[0]!
  let spread = 1e-9
  for (let i = 0; i < Math.min(12, y.length); i++) spread = Math.max(spread, Math.abs(y[i]! - first))
  const errors = dotmErrors(y)
  const parameters = { alpha: 0, theta: 0, start: 0 }
  const cost = (x: Float64Array): number => {
    parameters.start = first + x[0]! * spread
    parameters.alpha = x[1]!
    parameters.theta = x[2]!
    return errors(parameters)
  }
  cost(minimise(cost, [0, 0.3, 2], { low: [-2, 0.05, 1], high: [2, 0.99, 20] }))
  return inOnePass((prefix, ends) => dotmForecast(prefix, parameters, ends))
}
