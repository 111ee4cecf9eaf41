import { minimiseLine } from './optimise.js'
import type { Fit } from './types.js'

/** Level after the last value, for a smoothing constant and a start level. */
export function smooth(y: Float64Array, alpha: number, start: number): number {
  let level = start
  for (let i = 0; i < y.length; i++) level += alpha * (y[i]! - level)
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

/** Simple exponential smoothing, smoothing constant and start level by least squares. Source: FPP3 §8.1. */
export const fitSes: Fit = (y) => {
  if (y.length < 3) return undefined
  const alpha = minimiseLine((a) => bestStart(y, a).sse, 0.0001, 0.9999)
  const { start } = bestStart(y, alpha)
  return {
    forecast(prefix, out) {
      out.fill(smooth(prefix, alpha, start))
    }
  }
}
