import { type Static, Type } from 'typebox'
import { Closed, Code, Day, Instant, List, Nullable, PageQuery, Uuid } from './common.js'

/** What a caller may ask for by name; `combination` is the default. */
export const FORECAST_MODELS = [
  'naive',
  'seasonal-naive',
  'ses',
  'holt-damped',
  'holt-winters',
  'theta',
  'dotm',
  'ar',
  'ar-levels',
  'ar-robust',
  'stl-damped',
  'stl-theta',
  'stl-ar',
  'mapa-damped',
  'mapa-theta',
  'mapa-dotm',
  'mapa-robust',
  'croston',
  'sba',
  'tsb',
  'adida',
  'imapa',
  'negative-binomial',
  'empirical',
  'arima',
  'prophet',
  'combination'
] as const
export const ModelName = Type.Enum(FORECAST_MODELS)
/** As the engine named it: an older version of a model may have served that is no longer offered. */
const ServedModel = Type.String({ minLength: 1, maxLength: 40 })

export const Frequency = Type.Union([Type.Literal('day'), Type.Literal('week')])
export type Frequency = Static<typeof Frequency>

const itemCodes = Type.Array(Code, { minItems: 1, maxItems: 10_000, uniqueItems: true })

/** Consumption is read again from the ledger: all of it, or the named items, from a day on. */
export const DeriveRequest = Closed({
  itemCodes: Type.Optional(itemCodes),
  from: Type.Optional(Day),
  to: Type.Optional(
    Type.String({ format: 'date', description: 'Later days are read again too: stock carries over from day to day' })
  )
})
export type DeriveRequest = Static<typeof DeriveRequest>

const training = {
  models: Type.Optional(Type.Array(ModelName, { minItems: 1, maxItems: FORECAST_MODELS.length, uniqueItems: true })),
  frequency: Type.Optional(Frequency),
  horizonDays: Type.Optional(Type.Integer({ minimum: 1, maximum: 365 }))
}
/** At most one of `itemCodes`, `top`, `all`; none means all. */
export const TrainRequest = Closed({
  itemCodes: Type.Optional(itemCodes),
  top: Type.Optional(Type.Integer({ minimum: 1, maximum: 100_000, description: 'most used in the last 90 days' })),
  all: Type.Optional(Type.Literal(true)),
  ...training
})
export type TrainRequest = Static<typeof TrainRequest>

const measure = Nullable(Type.Number())
const accuracy = {
  mape: measure,
  wape: measure,
  mase: measure,
  rmse: measure,
  mae: measure,
  bias: measure,
  coverage: Nullable(Type.Number({ description: 'Share of actual values inside the 80 % interval, 0 to 1' })),
  coverage95: measure,
  origins: Type.Integer({ description: 'Rolling origins measured' })
}
export const Accuracy = Closed(
  accuracy,
  'Out of sample, from rolling origins; mape, wape and bias in per cent. Null where undefined.'
)
export type Accuracy = Static<typeof Accuracy>

export const ForecastPoint = Closed({
  date: Day,
  mean: Type.Number(),
  lower80: Type.Number(),
  upper80: Type.Number(),
  lower95: Type.Number(),
  upper95: Type.Number()
})
export type ForecastPoint = Static<typeof ForecastPoint>

const Member = Closed({ model: ServedModel, weight: Type.Number() })
const described = {
  itemCode: Type.String(),
  model: ServedModel,
  modelId: Uuid,
  members: Type.Array(Member),
  trainedAt: Instant,
  frequency: Frequency,
  accuracy: Accuracy,
  baseline: Closed({ model: ServedModel, ...accuracy }, 'What a forecast must beat to serve'),
  servesBaseline: Type.Boolean({ description: 'Nothing beat the baseline out of sample, so the baseline serves' }),
  reason: Type.String(),
  demandClass: Type.String(),
  seasonalPeriods: Type.Array(Type.Integer()),
  dataFrom: Day,
  dataTo: Day,
  observations: Type.Integer(),
  censored: Type.Integer({ description: 'Periods without stock, which say nothing of demand' })
}
export const Forecast = Closed({ ...described, points: Type.Array(ForecastPoint) })
export type Forecast = Static<typeof Forecast>

export const ForecastParams = Closed({ itemCode: Code })
export const ForecastQuery = Closed({ frequency: Type.Optional(Frequency) })

export const ModelStatus = Type.Union([Type.Literal('active'), Type.Literal('archived')])
export const ModelParams = Closed({ modelId: Uuid })
export const ModelQuery = Closed({
  ...PageQuery,
  itemCode: Type.Optional(Code),
  model: Type.Optional(ModelName),
  frequency: Type.Optional(Frequency),
  status: Type.Optional(ModelStatus)
})
export const ModelRow = Closed({
  id: Uuid,
  itemCode: Type.String(),
  frequency: Frequency,
  version: Type.Integer(),
  model: ServedModel,
  status: ModelStatus,
  trainedAt: Instant,
  wape: measure,
  mase: measure,
  servesBaseline: Type.Boolean()
})
export type ModelRow = Static<typeof ModelRow>
export const ModelList = List(ModelRow)
const { modelId: _, ...withoutModelId } = described
/** What a version of a model keeps besides its forecast: figures only, never code. */
export const Artifact = Closed({ ...withoutModelId, horizon: Type.Integer() })
export type Artifact = Static<typeof Artifact>
export const ModelDetail = Closed({
  id: Uuid,
  version: Type.Integer(),
  status: ModelStatus,
  ...withoutModelId,
  horizon: Type.Integer()
})
export type ModelDetail = Static<typeof ModelDetail>

export const SeriesQuery = Closed({
  frequency: Type.Optional(Frequency),
  from: Type.Optional(Day),
  to: Type.Optional(Day)
})
export type SeriesQuery = Static<typeof SeriesQuery>
export const Series = Closed({
  itemCode: Type.String(),
  frequency: Frequency,
  from: Nullable(Day),
  to: Nullable(Day),
  points: Type.Array(
    Closed({
      date: Day,
      quantity: Type.Number(),
      censored: Type.Boolean({ description: 'No stock: the quantity says nothing of demand' })
    })
  )
})
export type Series = Static<typeof Series>

const summary = {
  series: Type.Integer(),
  wape: measure,
  mase: measure,
  bias: measure,
  coverage80: measure,
  coverage95: measure,
  baselineWape: measure,
  baselineServes: Type.Integer()
}
export const AccuracySummary = Closed({
  ...summary,
  byModel: Type.Array(Closed({ model: ServedModel, frequency: Frequency, ...summary }))
})
export type AccuracySummary = Static<typeof AccuracySummary>
