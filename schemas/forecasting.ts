import { type Static, Type } from 'typebox'
import { FactorEffect } from './calendar.js'
import { Amount, Closed, Code, Day, Instant, List, Name, Nullable, PageQuery, Text, Uuid } from './common.js'
import { JUDGEMENT, personal } from './personal.js'

/** What a caller may ask for by name; `combination` is the default. */
export const FORECAST_MODELS = [
  'naive',
  'seasonal-naive',
  'median',
  'ses',
  'holt-damped',
  'holt-winters',
  'theta',
  'dotm',
  'ar',
  'ar-levels',
  'ar-robust',
  'ar-seasonal',
  'stl-damped',
  'stl-theta',
  'stl-ar',
  'stl-ar-levels',
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
  horizonDays: Type.Optional(Type.Integer({ minimum: 1, maximum: 365 })),
  regressors: Type.Optional(
    Type.Array(Name, {
      maxItems: 50,
      uniqueItems: true,
      description: 'Figures to use, which must be known to the end of the horizon; left out: all that are'
    })
  )
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
  upper95: Type.Number(),
  modelMean: Type.Optional(
    Type.Number({ description: 'What the model says, where a person’s override is served instead' })
  ),
  baseMean: Type.Optional(
    Type.Number({
      description: 'What the item’s own model says, where a figure that agrees with the sums is served instead'
    })
  )
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
  factors: Type.Optional(Type.Array(FactorEffect, { description: 'What is known beforehand, and what it does' })),
  censored: Type.Integer({ description: 'Periods without stock, which say nothing of demand' }),
  leftOut: Type.Optional(
    Type.Array(Day, {
      description: 'Periods, by their first day, that are left out as slips: more than 200 times what nine in ten are'
    })
  )
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
export const Artifact = Closed({
  ...withoutModelId,
  horizon: Type.Integer(),
  /** Mean forecast of a day. */
  meanPerDay: Type.Optional(Type.Number()),
  structure: Type.Optional(
    Closed({
      level: Type.Number(),
      trend: Type.Number(),
      period: Nullable(Type.Integer()),
      seasonalStrength: Type.Number(),
      seasonalFactors: Nullable(Type.Array(Type.Number())),
      averageInterval: measure,
      sizeVariation: measure
    })
  )
})
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
      censored: Type.Boolean({ description: 'No stock: the quantity says nothing of demand' }),
      closed: Type.Boolean({ description: 'Nothing at all was used that day, though on that weekday usually much is' }),
      estimatedDemand: Nullable(
        Type.Number({
          description: 'Demand behind a period of which nothing is known; kept apart from what was recorded'
        })
      )
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

/** Realised accuracy is answered over one of these. */
export const WINDOWS_DAYS = [7, 28, 90] as const
const realised = {
  periods: Type.Integer({ description: 'Item-periods measured: over, with stock, not exceptional' }),
  wape: measure,
  mase: measure,
  bias: Nullable(Type.Number({ description: 'Per cent of what was used; positive: too much was forecast' })),
  coverage80: measure,
  coverage95: measure,
  baselineWape: Nullable(Type.Number({ description: 'Seasonal naive, or naive where no season was found' })),
  baselineMase: measure,
  overrides: Closed({
    periods: Type.Integer(),
    wape: measure,
    modelWape: measure,
    valueAdded: Nullable(
      Type.Number({ description: 'Percentage points of WAPE that people’s overrides gained (lost, when negative)' })
    )
  })
}
const window = {
  windowDays: Type.Integer(),
  frequency: Frequency,
  from: Nullable(Day),
  to: Nullable(Day)
}
export const Realised = Closed(
  { ...window, ...realised },
  'What became of the forecasts that were served, in the last days of data; wape and bias in per cent'
)
export type Realised = Static<typeof Realised>
export const AccuracyQuery = Closed({
  window: Type.Optional(Type.Integer({ enum: [...WINDOWS_DAYS], description: 'Days of data looked back on' })),
  frequency: Type.Optional(Frequency)
})
export const AccuracyAnswer = Closed({
  ...summary,
  byModel: AccuracySummary.properties.byModel,
  realised: Closed({
    ...window,
    ...realised,
    byModel: Type.Array(Closed({ model: ServedModel, ...realised }))
  })
})
export type AccuracyAnswer = Static<typeof AccuracyAnswer>
export const AccuracyHistory = Closed({
  frequency: Frequency,
  data: Type.Array(
    Closed({ month: Type.String({ description: 'YYYY-MM, by the first day of the period' }), ...realised })
  )
})
export type AccuracyHistory = Static<typeof AccuracyHistory>

export const DRIFT_KINDS = ['level-up', 'level-down', 'error-growth', 'bias-high', 'bias-low'] as const
export type DriftKind = (typeof DRIFT_KINDS)[number]
export const Drift = Closed({
  id: Uuid,
  itemCode: Type.String(),
  frequency: Frequency,
  detectedOn: Day,
  kind: Type.Enum(DRIFT_KINDS),
  statistic: Type.Number({ description: 'Cumulative sum in standard deviations; for a bias, periods looked at' }),
  reason: Type.String(),
  detectedAt: Instant,
  retrainedAt: Nullable(Instant)
})
export type Drift = Static<typeof Drift>
export const DriftQuery = Closed({
  ...PageQuery,
  itemCode: Type.Optional(Code),
  frequency: Type.Optional(Frequency),
  waiting: Type.Optional(Type.Boolean({ description: 'Not trained again yet' }))
})
export const DriftList = List(Drift)

export const ItemAccuracy = Closed({
  itemCode: Type.String(),
  frequency: Frequency,
  windows: Type.Array(Realised),
  drift: Type.Array(Drift),
  history: Type.Array(
    Closed({
      date: Day,
      model: ServedModel,
      lead: Type.Integer({ description: 'Periods after the data it was forecast from' }),
      mean: Type.Number(),
      lower80: Type.Number(),
      upper80: Type.Number(),
      lower95: Type.Number(),
      upper95: Type.Number(),
      modelMean: Type.Number(),
      overridden: Type.Boolean(),
      baseline: Type.Number(),
      actual: Type.Number(),
      counts: Type.Boolean({ description: 'False: no stock, or exceptional' })
    })
  )
})
export type ItemAccuracy = Static<typeof ItemAccuracy>

export const NewFeedback = Closed({
  itemCode: Code,
  date: Day,
  frequency: Type.Optional(Frequency),
  subject: Type.Union([Type.Literal('forecast'), Type.Literal('actual')]),
  verdict: Type.Union(
    [Type.Literal('right'), Type.Literal('too-high'), Type.Literal('too-low'), Type.Literal('exceptional')],
    {
      description: 'exceptional: what was used that day (week) is no guide; it is left out of training and of accuracy'
    }
  ),
  comment: Type.Optional(personal(Text, JUDGEMENT))
})
export type NewFeedback = Static<typeof NewFeedback>
export const Feedback = Closed({
  id: Uuid,
  itemCode: Type.String(),
  date: Day,
  frequency: Frequency,
  subject: NewFeedback.properties.subject,
  verdict: NewFeedback.properties.verdict,
  comment: Nullable(personal(Type.String(), JUDGEMENT)),
  createdBy: Nullable(personal(Type.String(), JUDGEMENT)),
  createdAt: Instant
})
export type Feedback = Static<typeof Feedback>
export const FeedbackQuery = Closed({ ...PageQuery, itemCode: Type.Optional(Code) })
export const FeedbackList = List(Feedback)

export const NewOverride = Closed(
  {
    frequency: Type.Optional(Frequency),
    from: Type.Optional(Day),
    expiresOn: Type.String({ format: 'date', description: 'Last day it applies to; one after the data' }),
    quantityPerDay: Type.Optional(Amount),
    factor: Type.Optional(Type.Number({ exclusiveMinimum: 0, maximum: 1000, multipleOf: 0.000001 })),
    reason: Type.String({ minLength: 1, maxLength: 500, pattern: '^[^\\u0000]*\\S[^\\u0000]*$' })
  },
  'One of quantityPerDay and factor (of what the model says)'
)
export type NewOverride = Static<typeof NewOverride>
export const Override = Closed({
  id: Uuid,
  itemCode: Type.String(),
  frequency: Frequency,
  from: Day,
  expiresOn: Day,
  quantityPerDay: Nullable(Type.Number()),
  factor: Nullable(Type.Number()),
  reason: Type.String(),
  createdBy: Nullable(personal(Type.String(), JUDGEMENT)),
  createdAt: Instant,
  cancelledAt: Nullable(Instant)
})
export type Override = Static<typeof Override>
export const OverrideParams = Closed({ itemCode: Code, overrideId: Uuid })
export const OverrideQuery = Closed(PageQuery)
export const OverrideList = List(Override)

export const Explanation = Closed({
  itemCode: Type.String(),
  frequency: Frequency,
  modelId: Uuid,
  version: Type.Integer(),
  model: ServedModel,
  members: Type.Array(Member),
  servesBaseline: Type.Boolean(),
  overridden: Type.Boolean({ description: 'A person’s figure is served for some periods' }),
  level: Type.Number({ description: 'Mean use per period of late' }),
  trend: Closed({ perPeriod: Type.Number(), percentPerWeek: Type.Number() }),
  seasonality: Closed({
    period: Nullable(Type.Integer({ description: 'Periods of a season' })),
    strength: Type.Number({ description: 'Share of the variance that the season explains, 0 to 1' }),
    weekdays: Nullable(
      Type.Array(Closed({ weekday: Type.Integer({ description: '1 = Monday' }), factor: Type.Number() }))
    )
  }),
  demand: Closed({ class: Type.String(), averageInterval: measure, sizeVariation: measure }),
  factors: Type.Array(FactorEffect),
  accuracy: Accuracy,
  baseline: Closed({ model: ServedModel, wape: measure, mase: measure }),
  gainPercent: Nullable(Type.Number({ description: 'How much smaller the errors are than the baseline’s' })),
  change: Nullable(
    Closed({
      sinceVersion: Type.Integer(),
      modelBefore: ServedModel,
      meanPerDayBefore: measure,
      percent: Nullable(Type.Number({ description: 'Change of the mean forecast of a day' })),
      wapeBefore: measure,
      newPeriods: Type.Integer()
    })
  ),
  sentence: Type.String()
})
export type Explanation = Static<typeof Explanation>
