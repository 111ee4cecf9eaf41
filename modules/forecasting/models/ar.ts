import { scratch } from './scratch.js'
import { usablePeriods } from './seasons.js'
import type { Fit, FitContext, Fitted } from './types.js'

const SHORT_LAGS = 5
const WINDOW = 400

/**
 * Solves the normal equations restricted to `chosen` by Cholesky with a trace of ridge; `factor` is work space.
 * @returns the residual sum of squares, or undefined when singular; `beta` receives the coefficients
 */
function solve(
  gram: Float64Array,
  cross: Float64Array,
  total: number,
  width: number,
  chosen: readonly number[],
  beta: Float64Array,
  factor: Float64Array
): number | undefined {
  const d = chosen.length
  for (let i = 0; i < d; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = gram[chosen[i]! * width + chosen[j]!]!
      if (i === j) sum += 1e-10 * sum + 1e-12
      for (let k = 0; k < j; k++) sum -= factor[i * d + k]! * factor[j * d + k]!
      if (i === j) {
        if (!(sum > 0)) return undefined
        factor[i * d + i] = Math.sqrt(sum)
      } else factor[i * d + j] = sum / factor[j * d + j]!
    }
  }
  for (let i = 0; i < d; i++) {
    let sum = cross[chosen[i]!]!
    for (let k = 0; k < i; k++) sum -= factor[i * d + k]! * beta[k]!
    beta[i] = sum / factor[i * d + i]!
  }
  let explained = 0
  for (let i = 0; i < d; i++) explained += beta[i]! ** 2
  for (let i = d - 1; i >= 0; i--) {
    let sum = beta[i]!
    for (let k = i + 1; k < d; k++) sum -= factor[k * d + i]! * beta[k]!
    beta[i] = sum / factor[i * d + i]!
  }
  return Math.max(0, total - explained)
}

/** Sum of x[t − a] x[t − b] over t ≥ `from`; a lag left out stands for the constant. */
function laggedProduct(x: Float64Array, from: number, a: number | undefined, b: number | undefined): number {
  let sum = 0
  if (a === undefined && b === undefined) return x.length - from
  if (a === undefined || b === undefined) {
    const lag = a ?? b ?? 0
    for (let t = from - lag; t < x.length - lag; t++) sum += x[t]!
    return sum
  }
  for (let t = from; t < x.length; t++) sum += x[t - a]! * x[t - b]!
  return sum
}

interface Regression {
  lags: number[]
  coefficients: Float64Array
  intercept: number
}

/** Least squares of `x` on its own lags and a constant, the lag set by AICc. Source: FPP3 §7.5 (AICc), §9.3. */
function regress(x: Float64Array, seasonalLags: readonly number[][]): Regression | undefined {
  const all = [...Array.from({ length: SHORT_LAGS }, (_, i) => i + 1), ...seasonalLags.flat()]
  const longest = all.reduce((a, b) => Math.max(a, b), 0)
  const rows = x.length - longest
  const width = all.length + 1
  if (rows < width + 6) return seasonalLags.length > 0 ? regress(x, []) : undefined
  const gram = new Float64Array(width * width)
  const cross = new Float64Array(width)
  const total = laggedProduct(x, longest, 0, 0)
  for (let i = 0; i < width; i++) {
    const lag = i === 0 ? undefined : all[i - 1]!
    cross[i] = laggedProduct(x, longest, lag, 0)
    for (let j = 0; j <= i; j++) {
      // what two lags share is known from the lags one shorter, but for the products at both ends
      const before = i > 1 && j > 1 && all[i - 2] === lag! - 1 && all[j - 2] === all[j - 1]! - 1
      gram[i * width + j] = before
        ? gram[(i - 1) * width + j - 1]! +
          x[longest - lag!]! * x[longest - all[j - 1]!]! -
          x[x.length - lag!]! * x[x.length - all[j - 1]!]!
        : laggedProduct(x, longest, lag, j === 0 ? undefined : all[j - 1]!)
    }
  }
  let best: Regression | undefined
  let bestScore = Number.POSITIVE_INFINITY
  const beta = new Float64Array(width)
  const factor = new Float64Array(width * width)
  // seasonal lags enter from the first: none, the season itself, the season and the period after it
  for (let seasonal = 0; seasonal <= all.length - SHORT_LAGS; seasonal++) {
    for (let p = 0; p <= SHORT_LAGS; p++) {
      const chosen = [0]
      for (let j = 1; j <= p; j++) chosen.push(j)
      for (let j = 1; j <= seasonal; j++) chosen.push(SHORT_LAGS + j)
      const sse = solve(gram, cross, total, width, chosen, beta, factor)
      const k = chosen.length + 1
      if (sse === undefined || rows - k - 1 <= 0) continue
      const score = rows * Math.log(sse / rows + 1e-300) + 2 * k + (2 * k * (k + 1)) / (rows - k - 1)
      if (score >= bestScore) continue
      bestScore = score
      best = {
        lags: chosen.slice(1).map((j) => all[j - 1]!),
        coefficients: beta.slice(1, chosen.length),
        intercept: beta[0]!
      }
    }
  }
  return best
}

/** Continues `x` (data first, room for the forecasts after `n`) by its regression. */
function iterate(x: Float64Array, n: number, { lags, coefficients, intercept }: Regression): void {
  for (let t = n; t < x.length; t++) {
    let value = intercept
    for (let j = 0; j < lags.length; j++) {
      const index = t - lags[j]!
      if (index >= 0) value += coefficients[j]! * x[index]!
    }
    x[t] = value
  }
}

const viewed = scratch()

/** Autoregression on first differences or on levels, with the lags m and m + 1 of every season. */
export function autoregression(differenced: boolean): Fit {
  return (y: Float64Array, context: FitContext): Fitted | undefined => {
    if (y.length < 8) return undefined
    const view = (values: Float64Array, reach: number, room: number): Float64Array => {
      const from = Math.max(0, values.length - reach)
      const shift = differenced ? 1 : 0
      const x = viewed(values.length - from - shift + room)
      for (let i = 0; i < x.length - room; i++) {
        const value = values[from + i + shift]!
        x[i] = differenced ? value - values[from + i]! : value
      }
      return x
    }
    const seasonal = usablePeriods(y.length, context.periods).map((period) => [period, period + 1])
    const regression = regress(view(y, WINDOW + (context.periods.at(-1) ?? 0), 0), seasonal)
    if (!regression) return undefined
    const longest = regression.lags.reduce((a, b) => Math.max(a, b), 0)
    return {
      forecast(prefix, out) {
        const x = view(prefix, longest + 1, out.length)
        const n = x.length - out.length
        iterate(x, n, regression)
        let level = prefix[prefix.length - 1]!
        for (let k = 0; k < out.length; k++) {
          level = differenced ? level + x[n + k]! : x[n + k]!
          out[k] = level
        }
      }
    }
  }
}
