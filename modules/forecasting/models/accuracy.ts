import { type Coverage, LEVELS } from './levels.js'
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

/** Mean pinball loss of one actual over all levels. Source: Koenker & Bassett (1978). */
function pinballLoss(actual: number, quantiles: readonly Float64Array[], k: number): number {
  let loss = 0
  for (let l = 0; l < LEVELS.length; l++) {
    const gap = actual - quantiles[l]![k]!
    loss += gap >= 0 ? LEVELS[l]! * gap : (LEVELS[l]! - 1) * gap
  }
  return loss / LEVELS.length
}

/** What a forecast says of its uncertainty. */
export interface Ranges {
  quantiles: readonly Float64Array[]
  covers(actual: number, k: number, coverage: Coverage): boolean
}

/**
 * Accuracy of rolled forecasts over every known target.
 * @param scale in-sample seasonal naive error, for MASE
 * @param rangesAt what is forecast at an origin, learnt without that origin's targets; good until the next call
 */
export function measure(
  rolled: Float64Array,
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  scale: number,
  rangesAt: (origin: number) => Ranges
): Accuracy {
  const { origins, horizon } = plan
  const sums = { count: 0, absolute: 0, squares: 0, signed: 0, actuals: 0, percent: 0, percents: 0 }
  let inside80 = 0
  let inside95 = 0
  let pinball = 0
  for (let o = 0; o < origins.length; o++) {
    const ranges = rangesAt(o)
    for (let k = 0; k < horizon && origins[o]! + k < y.length; k++) {
      if (observed[origins[o]! + k] !== 1) continue
      const actual = y[origins[o]! + k]!
      const error = rolled[o * horizon + k]! - actual
      sums.count++
      sums.absolute += Math.abs(error)
      sums.squares += error * error
      sums.signed += error
      sums.actuals += Math.abs(actual)
      if (actual !== 0) {
        sums.percent += Math.abs(error / actual)
        sums.percents++
      }
      pinball += pinballLoss(actual, ranges.quantiles, k)
      if (ranges.covers(actual, k, 80)) inside80++
      if (ranges.covers(actual, k, 95)) inside95++
    }
  }
  const { count, absolute, actuals } = sums
  return {
    mape: sums.percents > 0 ? (100 * sums.percent) / sums.percents : null,
    wape: actuals > 0 ? (100 * absolute) / actuals : null,
    mase: count > 0 && scale > 0 ? absolute / count / scale : null,
    rmse: count > 0 ? Math.sqrt(sums.squares / count) : 0,
    mae: count > 0 ? absolute / count : 0,
    bias: actuals > 0 ? (100 * sums.signed) / actuals : null,
    coverage80: count > 0 ? inside80 / count : null,
    coverage95: count > 0 ? inside95 / count : null,
    pinball: count > 0 ? pinball / count : null,
    origins: origins.length
  }
}
