import type { Distribution } from './intervals.js'
import { LEVELS, spread } from './intervals.js'
import type { RollingPlan } from './rolling.js'
import type { Accuracy } from './types.js'

/** Mean |y[t] − y[t − period]| over known periods; 0 when there is none. Source: Hyndman & Koehler (2006). */
export function naiveScale(y: Float64Array, observed: Uint8Array, period: number): number {
  let sum = 0
  let count = 0
  for (let i = period; i < y.length; i++) {
    if (observed[i] !== 1 || observed[i - period] !== 1) continue
    sum += Math.abs(y[i]! - y[i - period]!)
    count++
  }
  return count > 0 ? sum / count : 0
}

/** Accuracy of rolled forecasts over every known target. */
export function measure(
  rolled: Float64Array,
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  scale: number,
  distribution: Distribution,
  floor: number
): Accuracy {
  const { origins, horizon } = plan
  let count = 0
  let absolute = 0
  let squares = 0
  let signed = 0
  let actuals = 0
  let percent = 0
  let percentCount = 0
  let inside80 = 0
  let inside95 = 0
  let pinball = 0
  for (let o = 0; o < origins.length; o++) {
    const steps = Math.min(horizon, y.length - origins[o]!)
    const quantiles = spread(rolled.subarray(o * horizon, (o + 1) * horizon), distribution, floor)
    for (let k = 0; k < steps; k++) {
      if (observed[origins[o]! + k] !== 1) continue
      const actual = y[origins[o]! + k]!
      const error = rolled[o * horizon + k]! - actual
      count++
      absolute += Math.abs(error)
      squares += error * error
      signed += error
      actuals += Math.abs(actual)
      if (actual !== 0) {
        percent += Math.abs(error / actual)
        percentCount++
      }
      for (let l = 0; l < LEVELS.length; l++) {
        const gap = actual - quantiles[l]![k]!
        pinball += gap >= 0 ? LEVELS[l]! * gap : (LEVELS[l]! - 1) * gap
      }
      if (actual >= quantiles[3]![k]! && actual <= quantiles[19]![k]!) inside80++
      if (actual >= quantiles[1]![k]! && actual <= quantiles[21]![k]!) inside95++
    }
  }
  return {
    mape: percentCount > 0 ? (100 * percent) / percentCount : null,
    wape: actuals > 0 ? (100 * absolute) / actuals : null,
    mase: count > 0 && scale > 0 ? absolute / count / scale : null,
    rmse: count > 0 ? Math.sqrt(squares / count) : 0,
    mae: count > 0 ? absolute / count : 0,
    bias: actuals > 0 ? (100 * signed) / actuals : null,
    coverage80: count > 0 ? inside80 / count : null,
    coverage95: count > 0 ? inside95 / count : null,
    pinball: count > 0 ? pinball / (count * LEVELS.length) : null,
    origins: origins.length
  }
}
