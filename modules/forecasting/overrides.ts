import type { Forecast } from '../../schemas/forecasting.js'
import { moved, type Override, overriddenMean } from './outcomes.js'
import { periodDays } from './series.js'

/** The texts that are stored of a forecast, ready to be answered. */
interface Texts {
  answer: string
  distribution: string
  daily_mean: number
}
interface Distribution {
  levels: number[]
  quantiles: number[][]
}

const DECIMALS = 1_000_000
const round = (value: number) => Math.round(value * DECIMALS) / DECIMALS

const withMean = (point: Forecast['points'][number], mean: number): Forecast['points'][number] => ({
  date: point.date,
  mean: round(mean),
  lower80: round(moved(point.lower80, point.mean, mean)),
  upper80: round(moved(point.upper80, point.mean, mean)),
  lower95: round(moved(point.lower95, point.mean, mean)),
  upper95: round(moved(point.upper95, point.mean, mean)),
  modelMean: point.mean
})

/**
 * What is served of a model's forecast under overrides: means as the person said, the model's beside them, intervals and
 * lead-time quantiles in proportion. The model's own texts are kept beside, to go back to.
 * @param overrides oldest made first
 */
export function overrideForecast(model: Texts, overrides: readonly Override[]) {
  const forecast: Forecast = JSON.parse(model.answer)
  const step = periodDays(forecast.frequency)
  let touched = false
  const points = forecast.points.map((point) => {
    const mean = overrides.length === 0 ? undefined : overriddenMean(point.mean, point.date, step, overrides)
    if (mean === undefined) return point
    touched = true
    return withMean(point, mean)
  })
  const total = (of: (point: Forecast['points'][number]) => number) => points.reduce((sum, point) => sum + of(point), 0)
  const daily_mean = total(({ mean }) => mean) / (points.length * step)
  if (!touched) return { ...model, daily_mean, model_answer: null, model_distribution: null }
  const { levels, quantiles }: Distribution = JSON.parse(model.distribution)
  let before = 0
  let after = 0
  const sums = points.map(({ mean, modelMean = mean }) => {
    before += modelMean
    after += mean
    return { before, after }
  })
  const shifted = quantiles.map((row) =>
    row.map((value, k) => {
      const sum = sums[k]
      return sum === undefined ? value : round(moved(value, sum.before, sum.after))
    })
  )
  return {
    answer: JSON.stringify({ ...forecast, points }),
    distribution: JSON.stringify({ levels, quantiles: shifted }),
    daily_mean,
    model_answer: model.answer,
    model_distribution: model.distribution
  }
}
