import { forecastEach } from './ends.js'
import type { Fit, FitContext, Fitted } from './types.js'

/** Forecasts of one model from each origin; undefined rows where it did not apply. */
export interface Rolled {
  /** flat, origin-major: `forecasts[o * horizon + k]` */
  forecasts: Float64Array
  /** the model fitted on everything */
  final: Fitted
}

export interface RollingPlan {
  /** number of leading values each origin may see, ascending */
  origins: Int32Array
  /** origins (by index) at which the models are fitted anew; between them only the data move on */
  refits: Int32Array
  horizon: number
}

/** Horizons that the origins span where the data allow: what happened just now is not all that can happen. */
const REACH_HORIZONS = 6

/**
 * Where to forecast from: up to `maxOrigins` origins, the last one period before the end, none seeing fewer than
 * `minTrain` values. Source: Tashman (2000), rolling-origin evaluation with periodic recalibration.
 */
export function planOrigins(n: number, horizon: number, maxOrigins: number, refitCount: number): RollingPlan {
  const minTrain = Math.max(3, Math.min(Math.floor(n / 2), n - horizon))
  const span = n - 1 - minTrain
  const count = span < 0 ? 0 : Math.min(maxOrigins, span + 1)
  const origins = new Int32Array(count)
  const reach = Math.min(span, Math.max(count - 1, REACH_HORIZONS * horizon))
  for (let i = 0; i < count; i++) {
    origins[i] = n - 1 - Math.round((reach * (count - 1 - i)) / Math.max(1, count - 1))
  }
  const refits = Int32Array.from({ length: Math.min(refitCount, count) }, (_, i) =>
    Math.floor((i * count) / Math.min(refitCount, count))
  )
  return { origins, refits, horizon }
}

/**
 * Holds forecasts within one range of the training values beyond their extremes.
 * @returns false when one is not a number
 */
export function hold(out: Float64Array, low: number, high: number): boolean {
  const room = Math.max(high - low, Number.MIN_VALUE)
  for (let k = 0; k < out.length; k++) {
    const value = out[k]!
    if (Number.isNaN(value)) return false
    out[k] = Math.min(high + room, Math.max(low - room, value))
  }
  return true
}

/**
 * Forecasts from every origin of the plan. Each call of a model sees a copy of what is known at its last origin; that no
 * forecast depends on what follows its own is a property of the models, and tested.
 */
export function roll(fit: Fit, y: Float64Array, plan: RollingPlan, context: FitContext): Rolled | undefined {
  const { origins, refits, horizon } = plan
  context.beforeFit?.()
  const final = fit(y.slice(), context)
  if (!final) return undefined
  const forecasts = new Float64Array(origins.length * horizon)
  for (let r = 0; r < refits.length; r++) {
    const from = refits[r]!
    const to = refits[r + 1] ?? origins.length
    context.beforeFit?.()
    const fitted = fit(y.slice(0, origins[from]!), context)
    if (!fitted) return undefined
    const out = forecasts.subarray(from * horizon, to * horizon)
    forecastEach(fitted, y.slice(0, origins[to - 1]!), { lengths: origins.subarray(from, to), horizon, out })
  }
  return { forecasts, final }
}
