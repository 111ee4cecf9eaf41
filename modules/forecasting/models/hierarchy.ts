/**
 * Forecasts of sums that agree with the sums of forecasts. Pure. Series stand in one order: aggregates first, then the bottom
 * series; `members[a]` are the bottom series (counted from 0) that aggregate a is the sum of.
 *
 * MinT: Wickramasuriya, Athanasopoulos & Hyndman (2019), JASA 114. With W the covariance of the base forecasts' errors and U the
 * constraints (aggregate − its members = 0), the reconciled forecasts are ŷ − W U (U′ W U)⁻¹ U′ ŷ, which needs the inverse of
 * a matrix as small as there are aggregates. W is shrunk to its diagonal: Schäfer & Strimmer (2005), with correlations about zero as
 * in the R package hts.
 */
export interface Hierarchy {
  members: readonly (readonly number[])[]
  bottoms: number
}

/** Errors of base forecasts: a row per period, a column per series. */
export type Errors = readonly Float64Array[]

/** How much of the covariance gives way to its diagonal, 0 to 1, and the diagonal (mean squared errors). */
export function shrinkage(errors: Errors): { lambda: number; variances: Float64Array } {
  const periods = errors.length
  const n = errors[0]?.length ?? 0
  const variances = new Float64Array(n)
  for (const row of errors) for (let i = 0; i < n; i++) variances[i]! += row[i]! ** 2 / periods
  const z = errors.map((row) => row.map((value, i) => (variances[i]! > 0 ? value / Math.sqrt(variances[i]!) : 0)))
  // Sums over all pairs of series, through the products of periods: there are fewer periods than series.
  let squaredCorrelations = 0
  let squaredProducts = 0
  for (let s = 0; s < periods; s++) {
    for (let t = 0; t < periods; t++) {
      let product = 0
      for (let i = 0; i < n; i++) product += z[s]![i]! * z[t]![i]!
      squaredCorrelations += product * product
    }
    let squares = 0
    for (let i = 0; i < n; i++) squares += z[s]![i]! ** 2
    squaredProducts += squares * squares
  }
  let ownCorrelations = 0
  let ownProducts = 0
  for (let i = 0; i < n; i++) {
    let fourth = 0
    for (let t = 0; t < periods; t++) fourth += z[t]![i]! ** 4
    ownProducts += fourth
    if (variances[i]! > 0) ownCorrelations += periods * periods
  }
  const offCorrelations = squaredCorrelations - ownCorrelations
  const offProducts = squaredProducts - ownProducts
  const variance = (offProducts - offCorrelations / periods) / (periods * (periods - 1))
  const distance = offCorrelations / (periods * periods)
  const lambda = distance > 0 && periods > 1 ? Math.min(1, Math.max(0, variance / distance)) : 1
  return { lambda, variances }
}

/** Solves A x = b for a symmetric positive definite A by Cholesky's decomposition; `a` is changed. */
function solve(a: Float64Array[], b: Float64Array): Float64Array {
  const n = b.length
  for (let j = 0; j < n; j++) {
    for (let i = j; i < n; i++) {
      let sum = a[i]![j]!
      for (let k = 0; k < j; k++) sum -= a[i]![k]! * a[j]![k]!
      a[i]![j] = i === j ? Math.sqrt(Math.max(sum, Number.MIN_VALUE)) : sum / a[j]![j]!
    }
  }
  const x = b.slice()
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) x[i]! -= a[i]![k]! * x[k]!
    x[i]! /= a[i]![i]!
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) x[i]! -= a[k]![i]! * x[k]!
    x[i]! /= a[i]![i]!
  }
  return x
}

/** aggregate − sum of its members, for each aggregate */
function gaps({ members }: Hierarchy, values: Float64Array): Float64Array {
  const m = members.length
  return Float64Array.from(members, (bottoms, a) => {
    let gap = values[a]!
    for (const bottom of bottoms) gap -= values[m + bottom]!
    return gap
  })
}

/** All series from their bottom ones. */
export function bottomUp({ members, bottoms }: Hierarchy, values: Float64Array): Float64Array {
  const m = members.length
  const result = new Float64Array(m + bottoms)
  for (let i = 0; i < bottoms; i++) result[m + i] = Math.max(0, values[m + i]!)
  for (let a = 0; a < m; a++) for (const bottom of members[a]!) result[a]! += result[m + bottom]!
  return result
}

/**
 * Reconciled forecasts of one period: coherent, and never negative at the bottom (what would be is nil, and sums follow).
 * @param base forecasts of all series
 * @param errors out-of-sample errors of base forecasts, the more rows the better
 */
export function minTrace(
  hierarchy: Hierarchy,
  base: Float64Array,
  errors: Errors,
  { lambda, variances } = shrinkage(errors)
): Float64Array {
  const { members } = hierarchy
  const m = members.length
  const n = base.length
  const floor = 1e-9 * (1 + variances.reduce((sum, value) => sum + value, 0) / n)
  const diagonal = variances.map((value) => Math.max(value, floor))
  const projected = errors.map((row) => gaps(hierarchy, row))
  const kept = (1 - lambda) / errors.length
  // U′ W U: of the diagonal what aggregates share, of the covariance the products of projected errors.
  const system = Array.from({ length: m }, (_, a) => {
    const own = new Set(members[a])
    return Float64Array.from({ length: m }, (_, b) => {
      let sum = a === b ? lambda * diagonal[a]! : 0
      for (const bottom of members[b]!) if (own.has(bottom)) sum += lambda * diagonal[m + bottom]!
      for (const row of projected) sum += kept * row[a]! * row[b]!
      // Errors without variance still need a positive definite system.
      return a === b ? sum + floor : sum
    })
  })
  const weights = solve(system, gaps(hierarchy, base))
  // W U weights
  const correction = new Float64Array(n)
  for (let a = 0; a < m; a++) {
    correction[a]! += lambda * diagonal[a]! * weights[a]!
    for (const bottom of members[a]!) correction[m + bottom]! -= lambda * diagonal[m + bottom]! * weights[a]!
  }
  for (let t = 0; t < errors.length; t++) {
    let sum = 0
    for (let a = 0; a < m; a++) sum += projected[t]![a]! * weights[a]!
    for (let i = 0; i < n; i++) correction[i]! += kept * errors[t]![i]! * sum
  }
  return bottomUp(
    hierarchy,
    base.map((value, i) => value - correction[i]!)
  )
}

/**
 * Parts that add up to a total that stands: what is missing goes to each by the variance of its error (weighted least squares).
 */
export function fitToTotal(parts: Float64Array, variances: Float64Array, total: number): Float64Array {
  const sum = parts.reduce((all, value) => all + value, 0)
  const weight = variances.reduce((all, value) => all + value, 0)
  const result = parts.map((value, i) =>
    Math.max(0, value + (total - sum) * (weight > 0 ? variances[i]! / weight : 1 / parts.length))
  )
  const found = result.reduce((all, value) => all + value, 0)
  return found > 0 ? result.map((value) => (value * total) / found) : result.fill(total / parts.length)
}
