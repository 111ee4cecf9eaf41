import { inOnePass } from './ends.js'
import { minimise } from './optimise.js'
import { dominantPeriod, findSeasons } from './seasons.js'
import { slope } from './theta.js'
import type { Ends, Fit } from './types.js'

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

/** Where a pass has come to; `figures` by phase from the first value. */
interface State {
  level: number
  slope: number
  figures: Float64Array
}

/** @param figures work space for the running seasonal figures (length = period) */
export function startState({ level, slope, figures }: HoltWintersParameters, work: Float64Array): State {
  work.set(figures)
  return { level, slope, figures: work }
}

/**
 * Moves damped Holt-Winters over `y[from, to)` in error-correction form. Source: FPP3 §8.3 and §8.5 (ETS(A,Ad,A), ETS(M,Ad,M)).
 * @returns the squared one-step errors
 */
export function advance(y: Float64Array, from: number, to: number, p: HoltWintersParameters, state: State): number {
  const { alpha, beta, gamma, phi, multiplicative } = p
  const { figures } = state
  const period = figures.length
  const gain = alpha * beta
  let { level, slope: trend } = state
  let sse = 0
  let phase = from % period
  for (let i = from; i < to; i++) {
    const base = level + phi * trend
    const figure = figures[phase]!
    let error: number
    if (multiplicative) {
      error = y[i]! - base * figure
      const correction = error / Math.max(figure, 1e-6)
      figures[phase] = figure + (gamma * error) / (Math.abs(base) > 1e-9 ? base : 1e-9)
      level = base + alpha * correction
      trend = phi * trend + gain * correction
    } else {
      error = y[i]! - base - figure
      figures[phase] = figure + gamma * error
      level = base + alpha * error
      trend = phi * trend + gain * error
    }
    sse += error * error
    phase = phase + 1 === period ? 0 : phase + 1
  }
  state.level = level
  state.slope = trend
  return sse
}

/** Forecasts from each end of `y`. */
export function holtWintersForecast(y: Float64Array, p: HoltWintersParameters, ends: Ends): void {
  const { lengths, horizon, out } = ends
  const period = p.figures.length
  const state = startState(p, new Float64Array(period))
  for (let j = 0; j < lengths.length; j++) {
    advance(y, lengths[j - 1] ?? 0, lengths[j]!, p, state)
    let phase = lengths[j]! % period
    let damping = 0
    let power = 1
    for (let k = 0; k < horizon; k++) {
      power *= p.phi
      damping += power
      const base = state.level + damping * state.slope
      const figure = state.figures[phase]!
      out[j * horizon + k] = p.multiplicative ? base * figure : base + figure
      phase = phase + 1 === period ? 0 : phase + 1
    }
  }
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
      const sse = advance(y, 0, n, parameters, startState(parameters, work))
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
  return inOnePass((prefix, ends) => holtWintersForecast(prefix, parameters, ends))
}
