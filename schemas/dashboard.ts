import { type Static, Type } from 'typebox'
import { Closed, Day, Instant, Nullable } from './common.js'

export const InventoryHeadline = Closed({
  items: Type.Integer(),
  stockValue: Type.Number(),
  lowStock: Type.Integer(),
  outOfStock: Type.Integer(),
  movementsToday: Type.Integer({ description: 'Transactions recorded since midnight, UTC' })
})
export type InventoryHeadline = Static<typeof InventoryHeadline>

const measure = Nullable(Type.Number())
export const ForecastsHeadline = Closed({
  series: Type.Integer(),
  wape: measure,
  baselineWape: measure,
  mase: measure,
  coverage80: measure,
  baselineServes: Type.Integer(),
  byModel: Type.Array(
    Closed({ model: Type.String(), frequency: Type.String(), series: Type.Integer(), wape: measure })
  ),
  lastTrainedAt: Nullable(Instant)
})
export type ForecastsHeadline = Static<typeof ForecastsHeadline>

export const AnomaliesHeadline = Closed({
  open: Type.Integer(),
  bySeverity: Closed({ low: Type.Integer(), medium: Type.Integer(), high: Type.Integer() }),
  latest: Type.Array(
    Closed({
      id: Type.String(),
      itemCode: Type.String(),
      date: Day,
      kind: Type.String(),
      severity: Type.String(),
      observed: Type.Number(),
      expected: Type.Number(),
      explanation: Type.String()
    })
  )
})
export type AnomaliesHeadline = Static<typeof AnomaliesHeadline>

export const RunsOut = Closed({
  itemCode: Type.String(),
  name: Type.Optional(Type.String()),
  available: Type.Number(),
  daysOfCover: Type.Number(),
  date: Type.String({ format: 'date', description: 'First day that the stock does not cover' })
})
export type RunsOut = Static<typeof RunsOut>

export const DashboardStats = Closed({
  ...InventoryHeadline.properties,
  stockValue: Nullable(Type.Number({ description: 'Null without the role to see cost' })),
  runsOutFirst: Type.Array(RunsOut, { description: 'Soonest first; what lasts longer than ten years is left out' }),
  forecasts: ForecastsHeadline,
  anomalies: AnomaliesHeadline
})
export type DashboardStats = Static<typeof DashboardStats>
