import type ARIMA from 'arima'
import { type Factors, varying } from './factors.js'
import { dominantPeriod } from './seasons.js'
import type { Fit } from './types.js'

interface Order {
  p: number
  d: number
  q: number
  P: number
  D: number
  Q: number
  s: number
}

const SHORT_ORDERS = [
  [0, 1],
  [1, 0],
  [1, 1],
  [2, 1]
] as const
/** Longer seasons cost the library seconds a fit. */
const LONGEST_SEASON = 24
const WINDOW = 400

type Library = typeof ARIMA

let library: Library | undefined

/** Loads the library. It binds `console.log` while it loads and reports every failed optimisation there, so it gets a
 * silent one. */
async function load(): Promise<void> {
  if (library) return
  const { log } = console
  console.log = () => {}
  try {
    library = (await import('arima')).default
  } finally {
    console.log = log
  }
}

/** Forecasts and one-step variance of one order, or undefined where the library fails. */
function tryOrder(
  y: Float64Array,
  order: Order,
  horizon: number,
  factors: Factors | undefined
): { mean: number[]; variance: number } | undefined {
  if (!library) return undefined
  let model: InstanceType<Library> | undefined
  try {
    const from = Math.max(0, y.length - WINDOW)
    const columns = factors ? varying(factors, from, y.length) : []
    const rows = (start: number, end: number) =>
      Array.from({ length: end - start }, (_, t) => columns.map((values) => values[start + t]!))
    model = new library({ ...order, verbose: false, transpose: columns.length > 0 })
    const recent = Array.from(y.subarray(from))
    const low = Math.min(...recent)
    const high = Math.max(...recent)
    // the library can explode by twenty orders of magnitude
    const room = 3 * (high - low)
    if (columns.length > 0) model.train(recent, rows(from, y.length))
    else model.train(recent)
    const [mean, variances] =
      columns.length > 0 ? model.predict(horizon, rows(y.length, y.length + horizon)) : model.predict(horizon)
    return mean.every((value) => value >= low - room && value <= high + room)
      ? { mean, variance: variances[0] ?? Number.NaN }
      : undefined
  } catch {
    return undefined
  } finally {
    model?.destroy()
  }
}

/** Best order by AICc for given differences; the one-step variance stands for the likelihood. Source: FPP3 §9.6. */
function searchOrders(
  y: Float64Array,
  d: number,
  D: number,
  s: number,
  factors: Factors | undefined
): Order | undefined {
  const seasonal =
    s > 0
      ? [
          [0, 1],
          [1, 0]
        ]
      : [[0, 0]]
  let best: Order | undefined
  let bestScore = Number.POSITIVE_INFINITY
  const n = Math.min(WINDOW, y.length) - d - D * s
  for (const [p, q] of SHORT_ORDERS) {
    for (const [P, Q] of seasonal) {
      const order: Order = { p, d, q, P: P!, D, Q: Q!, s }
      const tried = tryOrder(y, order, 1, factors)
      if (!tried || !(tried.variance > 0)) continue
      const k = p + q + P! + Q! + 1
      const score = n * Math.log(tried.variance) + 2 * k + (2 * k * (k + 1)) / Math.max(1, n - k - 1)
      if (score >= bestScore) continue
      bestScore = score
      best = order
    }
  }
  return best
}

/** Mean absolute error over the last horizon, forecast from before it. */
function heldOutError(y: Float64Array, order: Order, horizon: number, factors: Factors | undefined): number {
  const end = y.length - horizon
  const tried = end >= 12 ? tryOrder(y.subarray(0, end), order, horizon, factors) : undefined
  if (!tried) return Number.POSITIVE_INFINITY
  return tried.mean.reduce((sum, value, k) => sum + Math.abs(value - y[end + k]!), 0) / horizon
}

/**
 * Seasonal ARIMA, with regressors where factors are known: orders by AICc for each degree of differencing, the degree by the error over the last horizon.
 * Estimation by the library `arima` (ctsa); its own automatic search is not used. Source: Box & Jenkins (1970); FPP3 ch. 9.
 */
const fitArima: Fit = (y, { candidates, horizon, factors }) => {
  if (y.length < 12) return undefined
  const season = dominantPeriod(y, candidates)
  const s = season !== undefined && season <= LONGEST_SEASON ? season : 0
  let best: Order | undefined
  let bestError = Number.POSITIVE_INFINITY
  for (const d of [0, 1]) {
    for (const D of s > 0 ? [0, 1] : [0]) {
      const order = searchOrders(y, d, D, s, factors)
      if (!order) continue
      const error = heldOutError(y, order, Math.min(horizon, Math.floor(y.length / 4)), factors)
      if (best && error >= bestError) continue
      best = order
      bestError = error
    }
  }
  if (!best) return undefined
  const order = best
  return {
    forecast(prefix, out) {
      const tried = tryOrder(prefix, order, out.length, factors)
      if (tried) out.set(tried.mean)
      else out.fill(prefix[prefix.length - 1] ?? 0)
    }
  }
}

/** The ARIMA model, its library loaded. */
export async function loadArima(): Promise<Fit> {
  await load()
  return fitArima
}
