import type { RollingPlan } from './rolling.js'

const POWER = 2

/** Sum of |error| per member over targets that lie before position `before`, and how many there were. */
function errorsBefore(
  members: readonly Float64Array[],
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  before: number,
  sums: Float64Array
): number {
  const { origins, horizon } = plan
  sums.fill(0)
  let count = 0
  for (let o = 0; o < origins.length; o++) {
    const start = origins[o]!
    const steps = Math.min(horizon, before - start)
    for (let k = 0; k < steps; k++) {
      if (observed[start + k] !== 1) continue
      const actual = y[start + k]!
      for (let m = 0; m < members.length; m++) sums[m]! += Math.abs(members[m]![o * horizon + k]! - actual)
      count++
    }
  }
  return count
}

/**
 * Weights that sum to 1: error to the power −2, drawn towards equal weights while few errors have been seen.
 * Source: Bates & Granger (1969); shrinkage after Stock & Watson (2004).
 */
export function weigh(
  members: readonly Float64Array[],
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  before: number,
  weights: Float64Array
): void {
  const count = errorsBefore(members, y, observed, plan, before, weights)
  const equal = 1 / members.length
  if (count === 0) {
    weights.fill(equal)
    return
  }
  let best = Number.POSITIVE_INFINITY
  for (const sum of weights) best = Math.min(best, sum)
  let total = 0
  for (let m = 0; m < weights.length; m++) {
    const ratio = (weights[m]! + 1e-12) / (best + 1e-12)
    weights[m] = ratio ** -POWER
    total += weights[m]!
  }
  const trust = count / (count + plan.horizon)
  for (let m = 0; m < weights.length; m++) weights[m] = (trust * weights[m]!) / total + (1 - trust) * equal
}

/**
 * What the combination would have forecast at each origin, weighted only by errors known at that origin, so that its
 * accuracy is out of sample in the weights too.
 */
export function combineRolled(
  members: readonly Float64Array[],
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan
): Float64Array {
  const { origins, horizon } = plan
  const combined = new Float64Array(origins.length * horizon)
  const weights = new Float64Array(members.length)
  for (let o = 0; o < origins.length; o++) {
    weigh(members, y, observed, plan, origins[o]!, weights)
    for (let m = 0; m < members.length; m++) {
      const member = members[m]!
      const weight = weights[m]!
      for (let k = 0; k < horizon; k++) combined[o * horizon + k]! += weight * member[o * horizon + k]!
    }
  }
  return combined
}
