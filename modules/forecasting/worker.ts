import { v7 as uuid } from 'uuid'
import type { Accuracy, Artifact, Forecast, Frequency } from '../../schemas/forecasting.js'
import type { Known } from './calendar.js'
import { giveWay } from './give-way.js'
import { closeDays, columnOf, effectsOf, type Span } from './known.js'
import { naiveScale } from './models/accuracy.js'
import { describe } from './models/explain.js'
import { type ForecastOutput, forecast, loadModels, type Accuracy as Measured, type ModelName } from './models/index.js'
import { alsoMissing } from './models/slips.js'
import { naivePath, type Served } from './outcomes.js'
import { dayText, periodDays } from './series.js'

export interface TrainingSeries {
  itemCode: string
  dataHash: string
  start: number
  values: Float64Array
  missing: Uint8Array
  /** what is known beforehand of its days, those of the horizon included */
  known?: Known
}
export interface TrainingBatch {
  series: TrainingSeries[]
  frequency: Frequency
  /** periods */
  horizon: number
  models?: readonly ModelName[]
  trainedAt: string
}
/** A trained series, its texts ready to be stored: the event loop has nothing left to compute. */
export interface Trained {
  itemCode: string
  id: string
  model: ModelName
  dataHash: string
  answer: string
  artifact: string
  /** Per level, quantiles of the sum of the first k periods. */
  distribution: string
  dailyMean: number
  /** first period of the forecast */
  firstDay: string
  /** what is kept to be measured against what happens: the forecast and the naive one beside it */
  served: string
  accuracy: Measured
  /** mean |actual| of the periods that accuracy was measured on */
  volume: number
  baselineWape: number | null
  servesBaseline: boolean
  durationSeconds: number
}
export interface Failure {
  itemCode: string
  reason: string
}
export interface TrainingResult {
  trained: Trained[]
  failed: Failure[]
}

const DECIMALS = 1_000_000

const round = (value: number) => Math.round(value * DECIMALS) / DECIMALS
const roundMeasure = (value: number | null | undefined) =>
  value == null || !Number.isFinite(value) ? null : round(value)

const toAccuracy = (measured: Measured): Accuracy => ({
  mape: roundMeasure(measured.mape),
  wape: roundMeasure(measured.wape),
  mase: roundMeasure(measured.mase),
  rmse: roundMeasure(measured.rmse),
  mae: roundMeasure(measured.mae),
  bias: roundMeasure(measured.bias),
  coverage: roundMeasure(measured.coverage80),
  coverage95: roundMeasure(measured.coverage95),
  origins: measured.origins
})

function pointsOf(output: ForecastOutput, firstDay: number, step: number): Forecast['points'] {
  const { 80: inner, 95: outer } = output.intervals
  return Array.from(output.mean, (mean, k) => ({
    date: dayText(firstDay + k * step),
    mean: round(mean),
    lower80: round(inner.lower[k]!),
    upper80: round(inner.upper[k]!),
    lower95: round(outer.lower[k]!),
    upper95: round(outer.upper[k]!)
  }))
}

function servedPath(output: ForecastOutput, points: Forecast['points'], { values, missing }: TrainingSeries): string {
  const period = output.seasonalPeriods[0] ?? 1
  const observed = missing.map((flag) => 1 - flag)
  const path: Omit<Served, 'firstDay'> = {
    model: output.model,
    mae: round(output.accuracy.mae),
    rmse: round(output.accuracy.rmse),
    scale: round(naiveScale(values, observed, period)),
    mean: points.map(({ mean }) => mean),
    lower80: points.map(({ lower80 }) => lower80),
    upper80: points.map(({ upper80 }) => upper80),
    lower95: points.map(({ lower95 }) => lower95),
    upper95: points.map(({ upper95 }) => upper95),
    baseline: naivePath(values, missing, period, points.length).map(round)
  }
  return JSON.stringify(path)
}

function trainOne(given: TrainingSeries, batch: TrainingBatch): Trained {
  const startedAt = performance.now()
  const { itemCode, start, values } = given
  const { frequency, horizon, models, trainedAt } = batch
  const step = periodDays(frequency)
  const { factors, closed, unused } = given.known ?? { factors: [], closed: [], unused: [] }
  const span: Span = { start, periods: values.length, horizon, stepDays: step }
  const columns = factors.map((factor) => columnOf(factor, span))
  const output = forecast({
    values,
    missing: given.missing,
    frequency,
    horizon,
    startDate: dayText(start),
    beforeFit: giveWay,
    ...(models === undefined ? {} : { models }),
    ...(columns.length === 0 ? {} : { factors: columns })
  })
  closeDays(output, closed, span)
  if (!output.mean.every(Number.isFinite)) throw new RangeError('the forecast is not finite')
  const slips = output.slips ?? []
  const series = { ...given, missing: alsoMissing(values.length, given.missing, slips) }
  const { missing } = series
  const id = uuid()
  const { model: baselineModel, ...baseline } = output.baseline
  const dailyMean = output.mean.reduce((sum, value) => sum + value, 0) / (horizon * step)
  const artifact: Artifact = {
    itemCode,
    model: output.model,
    members: output.members.map(({ model, weight }) => ({ model, weight: round(weight) })),
    trainedAt,
    frequency,
    accuracy: toAccuracy(output.accuracy),
    baseline: { model: baselineModel, ...toAccuracy(baseline) },
    servesBaseline: output.servesBaseline,
    reason: output.reason,
    demandClass: output.demandClass,
    seasonalPeriods: output.seasonalPeriods,
    dataFrom: dayText(start),
    dataTo: dayText(start + values.length * step - 1),
    observations: values.length,
    ...(series.known === undefined ? {} : { factors: effectsOf(output, { factors, unused }, columns, span) }),
    censored: given.missing.reduce((sum, flag) => sum + flag, 0),
    ...(slips.length === 0 ? {} : { leftOut: slips.map((at) => dayText(start + at * step)) }),
    horizon,
    meanPerDay: round(dailyMean),
    structure: describe(values, missing, output.seasonalPeriods[0])
  }
  const { horizon: _, meanPerDay: _mean, structure: _structure, ...described } = artifact
  const firstDay = start + values.length * step
  const answer: Forecast = { ...described, modelId: id, points: pointsOf(output, firstDay, step) }
  const { wape, mae } = output.accuracy
  const volume = wape === null || wape === 0 ? 0 : mae / (wape / 100)
  return {
    itemCode,
    id,
    model: output.model,
    dataHash: series.dataHash,
    answer: JSON.stringify(answer),
    artifact: JSON.stringify(artifact),
    distribution: JSON.stringify({
      levels: Array.from(output.levels),
      quantiles: output.cumulativeQuantiles.map((row) => Array.from(row, round))
    }),
    dailyMean,
    firstDay: dayText(firstDay),
    served: servedPath(output, answer.points, series),
    accuracy: output.accuracy,
    volume,
    baselineWape: baseline.wape,
    servesBaseline: output.servesBaseline,
    durationSeconds: (performance.now() - startedAt) / 1000
  }
}

/** Trains a batch. What one series throws is its own failure, with its reason, and never its neighbours'. */
export default async function train(batch: TrainingBatch): Promise<TrainingResult> {
  // Some models come as WebAssembly, which is fetched when it is named and not before.
  await loadModels(batch.models ?? [])
  const result: TrainingResult = { trained: [], failed: [] }
  for (const series of batch.series) {
    try {
      result.trained.push(trainOne(series, batch))
    } catch (error) {
      result.failed.push({ itemCode: series.itemCode, reason: error instanceof Error ? error.message : String(error) })
    }
  }
  return result
}
