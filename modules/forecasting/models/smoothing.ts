import { inOnePass } from './ends.js'
import { minimise, minimiseLine } from './optimise.js'
import type { Ends, Fit } from './types.js'

/** Level after `y[from, to)`, for a smoothing constant and the level before. */
export function smooth(y: Float64Array, alpha: number, start: number, from = 0, to = y.length): number {
  let level = start
  for (let i = from; i < to; i++) level += alpha * (y[i]! - level)
  return level
}

/** Best start level for a smoothing constant: one-step errors are linear in it, so least squares has a closed form. */
export function bestStart(y: Float64Array, alpha: number): { start: number; sse: number } {
  let level = 0
  let share = 1
  let cross = 0
  let squares = 0
  let total = 0
  for (let i = 0; i < y.length; i++) {
    const error = y[i]! - level
    cross += error * share
    squares += share * share
    total += error * error
    level += alpha * error
    share *= 1 - alpha
  }
  const start = squares > 0 ? cross / squares : 0
  return { start, sse: Math.max(0, total - start * cross) }
}

/** Smoothing constant and start level with the least squared one-step error. */
export function bestSmoothing(y: Float64Array): { alpha: number; start: number } {
  const alpha = minimiseLine((a) => bestStart(y, a).sse, 0.0001, 0.9999)
  return { alpha, start: bestStart(y, alpha).start }
}

/** Simple exponential smoothing, smoothing constant and start level by least squares. Source: FPP3 §8.1. */
export const fitSes: Fit = (y) => {
  if (y.length < 3) return undefined
  const { alpha, start } = bestSmoothing(y)
  return inOnePass((prefix, { lengths, horizon, out }) => {
    let level = start
    for (let j = 0; j < lengths.length; j++) {
      level = smooth(prefix, alpha, level, lengths[j - 1] ?? 0, lengths[j]!)
      out.fill(level, j * horizon, (j + 1) * horizon)
    }
  })
}

/** Parameters of Holt's method; `beta` is the share of the level's correction that reaches the slope. */
export interface HoltParameters {
  alpha: number
  beta: number
  phi: number
  level: number
  slope: number
}

/**
 * Squared one-step errors of damped Holt with its best start state. The errors are linear in the start level and slope,
 * so three recursions in one pass give the normal equations; a weak prior holds the slope when the data say little.
 */
function holtErrors(y: Float64Array, alpha: number, beta: number, phi: number, state: Float64Array): number {
  let level = 0
  let slope = 0
  let levelL = 1
  let slopeL = 0
  let levelB = 0
  let slopeB = 1
  let ll = 0
  let lb = 0
  let bb = 0
  let le = 0
  let be = 0
  let ee = 0
  const gain = alpha * beta
  for (let i = 0; i < y.length; i++) {
    const ahead = level + phi * slope
    const aheadL = levelL + phi * slopeL
    const aheadB = levelB + phi * slopeB
    const error = y[i]! - ahead
    ll += aheadL * aheadL
    lb += aheadL * aheadB
    bb += aheadB * aheadB
    le += aheadL * error
    be += aheadB * error
    ee += error * error
    level = ahead + alpha * error
    slope = phi * slope + gain * error
    levelL = aheadL * (1 - alpha)
    slopeL = phi * slopeL - gain * aheadL
    levelB = aheadB * (1 - alpha)
    slopeB = phi * slopeB - gain * aheadB
  }
  bb += 0.01
  const det = ll * bb - lb * lb
  if (!(det > 1e-12)) return Number.POSITIVE_INFINITY
  state[0] = (le * bb - be * lb) / det
  state[1] = (be * ll - le * lb) / det
  return Math.max(0, ee - state[0] * le - state[1] * be)
}

/** Damped Holt forecasts of `y[first, …)` from each end, for given parameters. Source: Gardner & McKenzie (1985); FPP3 §8.2. */
export function holtForecast(y: Float64Array, parameters: HoltParameters, ends: Ends, first = 0): void {
  const { alpha, beta, phi } = parameters
  const { lengths, horizon, out } = ends
  const gain = alpha * beta
  let { level, slope } = parameters
  let i = first
  for (let j = 0; j < lengths.length; j++) {
    for (; i < lengths[j]!; i++) {
      const ahead = level + phi * slope
      const error = y[i]! - ahead
      level = ahead + alpha * error
      slope = phi * slope + gain * error
    }
    let damping = 0
    let power = 1
    for (let k = j * horizon; k < (j + 1) * horizon; k++) {
      power *= phi
      damping += power
      out[k] = level + damping * slope
    }
  }
}

const HOLT_WINDOW = 300

/** Damped Holt: three constants by simplex search, start state in closed form. Source: FPP3 §8.2. */
export const fitHolt: Fit = (values) => {
  if (values.length < 5) return undefined
  // what is older says nothing of the level of today, and little of the constants
  const first = Math.max(0, values.length - HOLT_WINDOW)
  const y = values.subarray(first)
  const state = new Float64Array(2)
  const best = minimise((x) => holtErrors(y, x[0]!, x[1]!, x[2]!, state), [0.3, 0.1, 0.95], {
    low: [0.001, 0.0001, 0.8],
    high: [0.9999, 0.9999, 0.98]
  })
  holtErrors(y, best[0]!, best[1]!, best[2]!, state)
  const parameters = { alpha: best[0]!, beta: best[1]!, phi: best[2]!, level: state[0]!, slope: state[1]! }
  return inOnePass((prefix, ends) => holtForecast(prefix, parameters, ends, first))
}
