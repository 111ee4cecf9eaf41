import { DECIMAL_LIMIT } from '../../schemas/common.js'
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
/** As every number of the API is. Limited first: of larger ones the rounding itself would leave more decimals. */
const round = (value: number) =>
  Math.round(Math.max(-DECIMAL_LIMIT, Math.min(DECIMAL_LIMIT, value)) * DECIMALS) / DECIMALS

type Point = Forecast['points'][number]
/** Where a point keeps the figure that it had before. */
type Kept = 'modelMean' | 'baseMean'

/** Means that agree with the sums they are a part of, from a day on. */
export interface Reconciled {
  firstDay: string
  means: number[]
}

const withMean = (point: Point, mean: number, kept: Kept): Point => ({
  ...point,
  mean: round(mean),
  lower80: round(moved(point.lower80, point.mean, mean)),
  upper80: round(moved(point.upper80, point.mean, mean)),
  lower95: round(moved(point.lower95, point.mean, mean)),
  upper95: round(moved(point.upper95, point.mean, mean)),
  [kept]: point.mean
})

/** Other means for some points; intervals and lead-time quantiles go with them in proportion. Undefined where none changes. */
function withMeans(texts: Texts, meanOf: (point: Point) => number | undefined, kept: Kept): Texts | undefined {
  const forecast: Forecast = JSON.parse(texts.answer)
  let before = 0
  let after = 0
  let touched = false
  const sums: { before: number; after: number }[] = []
  const points = forecast.points.map((point) => {
    const mean = meanOf(point)
    const shown = mean === undefined ? point : withMean(point, mean, kept)
    touched ||= mean !== undefined
    before += point.mean
    after += shown.mean
    sums.push({ before, after })
    return shown
  })
  if (!touched) return undefined
  const { levels, quantiles }: Distribution = JSON.parse(texts.distribution)
  const shifted = quantiles.map((row) =>
    row.map((value, k) => {
      const sum = sums[k]
      return sum === undefined ? value : round(moved(value, sum.before, sum.after))
    })
  )
  return {
    answer: JSON.stringify({ ...forecast, points }),
    distribution: JSON.stringify({ levels, quantiles: shifted }),
    daily_mean: after / (points.length * periodDays(forecast.frequency))
  }
}

/** The model's forecast as it agrees with the sums. */
export function reconciledForecast(model: Texts, { firstDay, means }: Reconciled): Texts {
  const { points }: Forecast = JSON.parse(model.answer)
  const at = points.findIndex(({ date }) => date === firstDay)
  const byDate = new Map(means.map((mean, k) => [points[at + k]?.date, mean]))
  return (at < 0 ? undefined : withMeans(model, ({ date }) => byDate.get(date), 'baseMean')) ?? model
}

/** The model's own texts of a stored forecast, whatever is served instead. */
export const ownTexts = (row: Texts & { model_answer: string | null; model_distribution: string | null }): Texts => ({
  answer: row.model_answer ?? row.answer,
  distribution: row.model_distribution ?? row.distribution,
  daily_mean: row.daily_mean
})

/**
 * What is served of a model's forecast: as it agrees with the sums, where those serve, and under overrides (means as the person
 * said, the one before beside them). The model's own texts are kept beside, to go back to.
 * @param overrides oldest made first
 */
export function servedForecast(model: Texts, reconciled: Reconciled | null, overrides: readonly Override[]) {
  const { points, frequency }: Forecast = JSON.parse(model.answer)
  const step = periodDays(frequency)
  const own = { ...model, daily_mean: points.reduce((sum, { mean }) => sum + mean, 0) / (points.length * step) }
  const agreed = reconciled === null ? own : reconciledForecast(own, reconciled)
  const said =
    overrides.length === 0
      ? undefined
      : withMeans(agreed, ({ mean, date }) => overriddenMean(mean, date, step, overrides), 'modelMean')
  const served = said ?? agreed
  const isOwn = served === own
  return {
    ...served,
    reconciled: reconciled === null ? null : JSON.stringify(reconciled),
    model_answer: isOwn ? null : model.answer,
    model_distribution: isOwn ? null : model.distribution
  }
}
