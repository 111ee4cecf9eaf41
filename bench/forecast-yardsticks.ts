import { forecast, type ModelName } from '../modules/forecasting/models/index.js'
import type { Forecaster } from './forecast-scores.js'

/** The product as shipped, or with models named. */
export const product =
  (models?: readonly ModelName[]): Forecaster =>
  (values, { frequency, horizon }, startDate) =>
    forecast({ values, frequency, horizon, ...(models ? { models } : {}), ...(startDate ? { startDate } : {}) })

/** Naive on seasonally adjusted values where the season is significant: the yardstick of OWA. Source: M4 (2020). */
export const naive2: Forecaster = (y, { frequency, horizon }) => {
  const period = frequency === 'month' ? 12 : 1
  const applies = period > 1 && y.length >= 3 * period && y.every((value) => value > 0)
  const indices = applies && m4Seasonal(y, period) ? classicalIndices(y, period) : undefined
  const last = y[y.length - 1]! / (indices?.[(y.length - 1) % period] ?? 1)
  return { mean: Array.from({ length: horizon }, (_, k) => last * (indices?.[(y.length + k) % period] ?? 1)) }
}

function m4Seasonal(y: Float64Array, period: number): boolean {
  const centre = y.reduce((a, b) => a + b, 0) / y.length
  const covariance = (lag: number): number =>
    y.reduce((sum, value, i) => (i < lag ? sum : sum + (value - centre) * (y[i - lag]! - centre)), 0)
  const total = covariance(0)
  let squares = 0
  for (let lag = 1; lag < period; lag++) squares += (covariance(lag) / total) ** 2
  return Math.abs(covariance(period) / total) > 1.645 * Math.sqrt((1 + 2 * squares) / y.length)
}

function classicalIndices(y: Float64Array, period: number): number[] {
  const half = period / 2
  const ratios: number[][] = Array.from({ length: period }, () => [])
  for (let i = half; i + half < y.length; i++) {
    let trend = 0
    for (let j = -half; j <= half; j++) trend += (y[i + j]! * (Math.abs(j) === half ? 0.5 : 1)) / period
    ratios[i % period]!.push(y[i]! / trend)
  }
  const means = ratios.map((list) => list.reduce((a, b) => a + b, 0) / list.length)
  const level = means.reduce((a, b) => a + b, 0) / period
  return means.map((value) => value / level)
}
