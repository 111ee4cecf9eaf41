import type { RollingPlan } from './rolling.js'
import { scratch } from './scratch.js'

const POWER = 4
/** Errors that equal weights count for, while few have been seen. */
const PRIOR = 2
/** Share of the weighted median in the point forecast, for precise and for noisy series; the rest is the mean. */
const MEDIAN_SHARES = [0.4, 0.8] as const
/** Relative error from which a series counts as noisy. */
const NOISY = 0.5

/** Horizons of known targets from which weights rest on the past alone. */
const SETTLED_HORIZONS = 2

/** Errors of members over the targets of every origin, as running sums: any stretch of them is two look-ups. */
export interface Losses {
  plan: RollingPlan
  /** how many values are known in the end */
  n: number
  squared: boolean
  /** per member, `sums[o * (horizon + 1) + k]`: the first k steps from origin o */
  sums: readonly Float64Array[]
  /** the same for the number of known targets */
  counts: Float64Array
  /** the same for the sum of |actual| */
  demand: Float64Array
}

/** @param squared squared errors instead of absolute ones */
export function tabulate(
  members: readonly Float64Array[],
  y: Float64Array,
  observed: Uint8Array,
  plan: RollingPlan,
  squared: boolean
): Losses {
  const { origins, horizon } = plan
  const size = origins.length * (horizon + 1)
  const counts = new Float64Array(size)
  const demand = new Float64Array(size)
  const sums = members.map(() => new Float64Array(size))
  for (let o = 0; o < origins.length; o++) {
    for (let k = 0; k < horizon; k++) {
      const t = origins[o]! + k
      const at = o * (horizon + 1) + k
      const known = t < y.length && observed[t] === 1 ? 1 : 0
      counts[at + 1] = counts[at]! + known
      demand[at + 1] = demand[at]! + (known === 1 ? Math.abs(y[t]!) : 0)
      for (let m = 0; m < sums.length; m++) {
        const error = known === 1 ? members[m]![o * horizon + k]! - y[t]! : 0
        sums[m]![at + 1] = sums[m]![at]! + (squared ? error * error : Math.abs(error))
      }
    }
  }
  return { plan, n: y.length, squared, sums, counts, demand }
}

/**
 * Loss per member over the targets that may be used at `now`, and how many there were: those before it, or, while these are
 * fewer than two horizons, all outside the horizon that follows it.
 */
function lossesKnown({ plan, n, squared, sums, counts }: Losses, now: number, losses: Float64Array): number {
  const { origins, horizon } = plan
  const settled = now - (origins[0] ?? 0) >= SETTLED_HORIZONS * horizon
  losses.fill(0)
  let count = 0
  for (let o = 0; o < origins.length; o++) {
    const first = o * (horizon + 1)
    const last = Math.min(horizon, Math.max(0, (settled ? now : n) - origins[o]!))
    const hidden = Math.min(last, Math.max(0, now - origins[o]!))
    const shown = Math.min(last, Math.max(0, now + horizon - origins[o]!))
    count += counts[first + last]! - counts[first + shown]! + counts[first + hidden]!
    for (let m = 0; m < losses.length; m++) {
      const sum = sums[m]!
      losses[m]! += sum[first + last]! - sum[first + shown]! + sum[first + hidden]!
    }
  }
  if (squared) for (let m = 0; m < losses.length; m++) losses[m] = Math.sqrt(Math.max(0, losses[m]!))
  return count
}

/**
 * Weights that sum to 1: error to the power −4, drawn towards equal weights while few errors have been seen.
 * Source: Bates & Granger (1969); Stock & Watson (2004).
 * @param now how many values are known
 */
export function weigh(table: Losses, now: number, weights: Float64Array): void {
  const count = lossesKnown(table, now, weights)
  const equal = 1 / weights.length
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
 * @param table of absolute errors
 * @returns a share between the two of `MEDIAN_SHARES`, by the relative error of the best member
 */
export function medianShare(table: Losses): number {
  const { origins, horizon } = table.plan
  const losses = new Float64Array(table.sums.length)
  lossesKnown(table, table.n, losses)
  let best = Number.POSITIVE_INFINITY
  for (const loss of losses) best = Math.min(best, loss)
  let demand = 0
  for (let o = 0; o < origins.length; o++) demand += table.demand[o * (horizon + 1) + horizon]!
  const noise = demand > 0 ? Math.min(1, best / demand / NOISY) : 1
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

const blended = scratch()

/** Members' forecasts blended step by step: `members[m][offset + k]`. */
export function blendSteps(
  members: readonly Float64Array[],
  offset: number,
  weights: Float64Array,
  share: number,
  out: Float64Array
): void {
  const values = blended(members.length)
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
export function combineRolled(members: readonly Float64Array[], table: Losses, share: number): Float64Array {
  const { origins, horizon } = table.plan
  const combined = new Float64Array(origins.length * horizon)
  const weights = new Float64Array(members.length)
  for (let o = 0; o < origins.length; o++) {
    weigh(table, origins[o]!, weights)
    blendSteps(members, o * horizon, weights, share, combined.subarray(o * horizon, (o + 1) * horizon))
  }
  return combined
}
