import { minimise } from './optimise.js'
import { dominantPeriod, findSeasons } from './seasons.js'
import { slope } from './theta.js'
import type { Fit } from './types.js'

/** Constants and start state of damped Holt-Winters. */
export interface HoltWintersParameters {
  alpha: number
  beta: number
  gamma: number
  phi: number
  level: number
  slope: number
  /** start figure per phase */
  figures: Float64Array
  multiplicative: boolean
}

/**
 * One pass of damped Holt-Winters in error-correction form; with `out`, the forecasts after the data.
 * `work` holds the running seasonal figures (length = period). Source: FPP3 §8.3 and §8.5 (ETS(A,Ad,A), ETS(M,Ad,M)).
 * @returns the squared one-step errors
 */
export function holtWintersPass(
  y: Float64Array,
  p: HoltWintersParameters,
  work: Float64Array,
  out?: Float64Array
): number {
  const { alpha, beta, gamma, phi, multiplicative } = p
  const period = p.figures.length
  const n = y.length
  let { level, slope: trend } = p
  let sse = 0
  let phase = 0
  work.set(p.figures)
  for (let i = 0; i < n; i++) {
    const base = level + phi * trend
    const figure = work[phase]!
    let error: number
    if (multiplicative) {
      error = y[i]! - base * figure
      const correction = error / Math.max(figure, 1e-6)
      work[phase] = figure + (gamma * error) / (Math.abs(base) > 1e-9 ? base : 1e-9)
      level = base + alpha * correction
      trend = phi * trend + alpha * beta * correction
    } else {
      error = y[i]! - base - figure
      work[phase] = figure + gamma * error
      level = base + alpha * error
      trend = phi * trend + alpha * beta * error
    }
    sse += error * error
    phase = phase + 1 === period ? 0 : phase + 1
  }
  if (out) {
    let damping = 0
    let power = 1
    for (let k = 0; k < out.length; k++) {
      power *= phi
      damping += power
      const base = level + damping * trend
      out[k] = multiplicative ? base * work[phase]! : base + work[phase]!
      phase = phase + 1 === period ? 0 : phase + 1
    }
  }
  return sse
}

/** Damped Holt-Winters, additive or multiplicative by squared error; start state from the decomposition. */
export const fitHoltWinters: Fit = (y, { periods }) => {
  const n = y.length
  const period = dominantPeriod(y, periods)
  if (period === undefined || n < 2 * period + 4) return undefined
  const work = new Float64Array(period)
  let best: { sse: number; parameters: HoltWintersParameters } | undefined
  for (const multiplicative of y.every((value) => value > 0) ? [false, true] : [false]) {
    const seasons = findSeasons(y, [period], multiplicative, 1, false)
    const figures = seasons.figures[0]!
    const head = new Float64Array(Math.min(n, Math.max(2 * period, 10)))
    for (let i = 0; i < head.length; i++) {
      head[i] = multiplicative ? y[i]! / figures[i % period]! : y[i]! - figures[i % period]!
    }
    const rise = slope(head)
    let centre = 0
    for (const value of head) centre += value / head.length
    const parameters: HoltWintersParameters = {
      alpha: 0,
      beta: 0,
      gamma: 0,
      phi: 0,
      level: centre - (rise * (head.length + 1)) / 2,
      slope: rise,
      figures,
      multiplicative
    }
    const cost = (x: Float64Array): number => {
      parameters.alpha = x[0]!
      parameters.beta = x[1]!
      parameters.gamma = x[2]! * (1 - x[0]!)
      parameters.phi = x[3]!
      const sse = holtWintersPass(y, parameters, work)
      return Number.isFinite(sse) ? sse : Number.POSITIVE_INFINITY
    }
    const found = minimise(cost, [0.3, 0.05, 0.1, 0.95], {
      low: [0.001, 0.0001, 0.0001, 0.8],
      high: [0.9999, 0.9999, 0.9999, 0.98]
    })
    const sse = cost(found)
    if (!best || sse < best.sse) best = { sse, parameters }
  }
  if (!best || !Number.isFinite(best.sse)) return undefined
  const { parameters } = best
  return {
    forecast(prefix, out) {
      holtWintersPass(prefix, parameters, work, out)
    }
  }
}
