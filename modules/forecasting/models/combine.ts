import type { RollingPlan } from './rolling.js'

const POWER = 4
/** Errors that equal weights count for, while few have been seen. */
const PRIOR = 2
/** Share of the weighted median in the point forecast, for precise and for noisy series; the rest is the mean. */
const MEDIAN_SHARES = [0.4, 0.8] as const
/** Relative error from which a series counts as noisy. */
const NOISY = 0.5

/** Horizons of known targets from which weights rest on the past alone. */
const SETTLED_HORIZONS = 2

/**
 * Loss per member over the targets that may be used at `now`, and how many there were: those before it, or, while these are
 * fewer than two horizons, all outside the horizon that follows it.
 * @param squared squared errors instead of absolute ones
 */
function lossesKnown(
  members: readonly Float64Array[],
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  now: number,
  squared: boolean,
  losses: Float64Array
): number {
  const { origins, horizon } = plan
  const settled = now - (origins[0] ?? 0) >= SETTLED_HORIZONS * horizon
  losses.fill(0)
  let count = 0
  for (let o = 0; o < origins.length; o++) {
    const end = Math.min(settled ? now : y.length, origins[o]! + horizon)
    for (let t = origins[o]!; t < end; t++) {
      if (observed[t] !== 1 || (t >= now && t < now + horizon)) continue
      const actual = y[t]!
      const at = o * horizon + t - origins[o]!
      for (let m = 0; m < members.length; m++) {
        const error = members[m]![at]! - actual
        losses[m]! += squared ? error * error : Math.abs(error)
      }
      count++
    }
  }
  if (squared) for (let m = 0; m < losses.length; m++) losses[m] = Math.sqrt(losses[m]!)
  return count
}

/**
 * Weights that sum to 1: error to the power −4, drawn towards equal weights while few errors have been seen.
 * Source: Bates & Granger (1969); Stock & Watson (2004).
 * @param now how many values are known
 */
export function weigh(
  members: readonly Float64Array[],
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  now: number,
  squared: boolean,
  weights: Float64Array
): void {
  const count = lossesKnown(members, y, observed, plan, now, squared, weights)
  const equal = 1 / members.length
  if (count === 0) {
    weights.fill(equal)
    return
  }
  let best = Number.POSITIVE_INFINITY
  for (const loss of weights) best = Math.min(best, loss)
  let total = 0
  for (let m = 0; m < weights.length; m++) {
    weights[m] = best > 0 ? (best / weights[m]!) ** POWER : weights[m] === 0 ? 1 : 0
    total += weights[m]!
  }
  const trust = count / (count + PRIOR)
  for (let m = 0; m < weights.length; m++) weights[m] = (trust * weights[m]!) / total + (1 - trust) * equal
}

/**
 * How much the weighted median counts: the heavier the noise, the less a mean can be trusted.
 * @returns a share between the two of `MEDIAN_SHARES`, by the relative error of the best member
 */
export function medianShare(
  members: readonly Float64Array[],
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan
): number {
  const losses = new Float64Array(members.length)
  const zero = new Float64Array(plan.origins.length * plan.horizon)
  const actuals = new Float64Array(1)
  lossesKnown(members, y, observed, plan, y.length, false, losses)
  lossesKnown([zero], y, observed, plan, y.length, false, actuals)
  let best = Number.POSITIVE_INFINITY
  for (const loss of losses) best = Math.min(best, loss)
  const noise = actuals[0]! > 0 ? Math.min(1, best / actuals[0]! / NOISY) : 1
  return MEDIAN_SHARES[0] + noise * (MEDIAN_SHARES[1] - MEDIAN_SHARES[0])
}

/** Weighted mean and weighted median of the members' forecasts: neither one wild member nor noise in the weights decides
 * alone. `order` is work space, one slot per member. */
export function blend(weights: Float64Array, values: Float64Array, share: number, order: Int32Array): number {
  let average = 0
  for (let m = 0; m < values.length; m++) {
    average += weights[m]! * values[m]!
    let at = m
    while (at > 0 && values[order[at - 1]!]! > values[m]!) {
      order[at] = order[at - 1]!
      at--
    }
    order[at] = m
  }
  let mass = 0
  for (let i = 0; i < order.length; i++) {
    mass += weights[order[i]!]!
    if (mass >= 0.5 - 1e-12) return (1 - share) * average + share * values[order[i]!]!
  }
  return average
}

/** Members' forecasts blended step by step: `members[m][offset + k]`. */
export function blendSteps(
  members: readonly Float64Array[],
  offset: number,
  weights: Float64Array,
  share: number,
  out: Float64Array
): void {
  const values = new Float64Array(members.length)
  const order = new Int32Array(members.length)
  for (let k = 0; k < out.length; k++) {
    for (let m = 0; m < values.length; m++) values[m] = members[m]![offset + k]!
    out[k] = blend(weights, values, share, order)
  }
}

/**
 * What the combination would have forecast at each origin. Its weights come from the errors known there and then, on short
 * histories from all windows but the one that is forecast: its accuracy is out of sample in the weights too.
 * Source: Dawid (1984), the prequential approach; Burman, Chow & Nolan (1994), cross-validation of dependent data.
 */
export function combineRolled(
  members: readonly Float64Array[],
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  squared: boolean,
  share: number
): Float64Array {
  const { origins, horizon } = plan
  const combined = new Float64Array(origins.length * horizon)
  const weights = new Float64Array(members.length)
  for (let o = 0; o < origins.length; o++) {
    weigh(members, y, observed, plan, origins[o]!, squared, weights)
    blendSteps(members, o * horizon, weights, share, combined.subarray(o * horizon, (o + 1) * horizon))
  }
  return combined
}
