import { type Static, Type } from 'typebox'
import { Closed, Day, Instant, Nullable } from './common.js'
import { Accuracy, ForecastPoint, Frequency } from './forecasting.js'

const measure = Nullable(Type.Number())

export const AggregateLevel = Type.Union([Type.Literal('total'), Type.Literal('category'), Type.Literal('location')])
export const AggregateQuery = Closed({
  level: AggregateLevel,
  frequency: Type.Optional(Frequency),
  key: Type.Optional(
    Type.String({
      maxLength: 200,
      description: 'Category (empty: items without one) or location code; not for the total'
    })
  )
})
export const Aggregate = Closed({
  level: AggregateLevel,
  key: Type.String(),
  frequency: Frequency,
  method: Type.Union([Type.Literal('bottom-up'), Type.Literal('mint')], {
    description:
      'Whichever erred less on items and sums over the last horizon, forecast from before it; items serve accordingly'
  }),
  backTest: Closed({
    baseWape: measure,
    bottomUpWape: measure,
    mintWape: measure,
    shrinkage: Type.Number({ description: '0 to 1: how much of the errors’ covariance gave way to its diagonal' })
  }),
  trainedAt: Instant,
  dataTo: Day,
  points: Type.Array(ForecastPoint),
  children: Type.Array(
    Closed({
      level: Type.Union([Type.Literal('category'), Type.Literal('item'), Type.Literal('rest')]),
      key: Type.String(),
      means: Type.Array(Type.Number())
    }),
    { description: 'What the figures are the sum of, day by day; rest: the less used items of a category together' }
  )
})
export type Aggregate = Static<typeof Aggregate>

export const ItemLocations = Closed({
  itemCode: Type.String(),
  frequency: Frequency,
  locations: Type.Array(
    Closed({
      location: Type.String(),
      model: Type.String(),
      trainedAt: Instant,
      accuracy: Accuracy,
      baseline: Closed({ model: Type.String(), ...Accuracy.properties }),
      servesBaseline: Type.Boolean(),
      points: Type.Array(ForecastPoint)
    }),
    { description: 'They add up to what the item serves; none where it is used at one place, or too little' }
  )
})
export type ItemLocations = Static<typeof ItemLocations>
