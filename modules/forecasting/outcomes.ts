import type { Frequency } from '../../schemas/forecasting.js'
import { type DemandSeries, dayNumber, dayText, periodDays } from './series.js'

/** What was forecast beside what happened: pure arithmetic over rows. */

/** A forecast as it was served, from its first period on; arrays have one value for each step. */
export interface ServedPath {
  mean: number[]
  lower80: number[]
  upper80: number[]
  lower95: number[]
  upper95: number[]
  /** seasonal naive, or naive where no season was found */
  baseline: number[]
}
export interface Served extends ServedPath {
  firstDay: string
  model: string
  mae: number
  rmse: number
  /** in-sample seasonal naive error, for MASE */
  scale: number
}

export interface Override {
  id: string
  /** first and last day it applies to */
  from: string
  to: string
  quantityPerDay: number | null
  factor: number | null
  /** last day of data when it was made: what it says of earlier days is hindsight */
  dataTo: string
}

export interface Outcome {
  period: string
  model: string
  /** periods after the data that the forecast was made from, 1 = the first */
  lead: number
  mean: number
  lower80: number
  upper80: number
  lower95: number
  upper95: number
  /** what the model had said, where a person said otherwise */
  modelMean: number
  overridden: boolean
  baseline: number
  actual: number
  /** false: there was no stock, or the day was said to be exceptional */
  counts: boolean
  mae: number
  rmse: number
  scale: number
}

/** The mean of a period with overrides applied to the days they name (the last one made wins), or undefined without any. */
export function overriddenMean(
  mean: number,
  date: string,
  stepDays: number,
  overrides: readonly Override[]
): number | undefined {
  const first = dayNumber(date)
  let sum = 0
  let touched = false
  for (let day = first; day < first + stepDays; day++) {
    const text = dayText(day)
    const override = overrides.findLast(({ from, to }) => from <= text && text <= to)
    touched ||= override !== undefined
    const ofModel = mean / stepDays
    sum += override === undefined ? ofModel : (override.quantityPerDay ?? ofModel * (override.factor ?? 1))
  }
  return touched ? sum : undefined
}

/** Intervals keep their width in proportion to the mean; around a mean of nil they are moved. */
export const moved = (bound: number, mean: number, newMean: number): number =>
  mean > 0 ? (bound * newMean) / mean : bound + newMean - mean

/**
 * The outcomes of all periods that are over. Each forecast counts from its first period to the one before the next forecast
 * begins: that is what a reader was shown.
 * @param served oldest first
 */
export function outcomesOf(
  served: readonly Served[],
  actual: DemandSeries,
  frequency: Frequency,
  overrides: readonly Override[]
): Outcome[] {
  const step = periodDays(frequency)
  const found: Outcome[] = []
  for (let s = 0; s < served.length; s++) {
    const path = served[s]!
    const first = dayNumber(path.firstDay)
    const next = served[s + 1]
    const until = next === undefined ? Number.POSITIVE_INFINITY : dayNumber(next.firstDay)
    for (let k = 0; k < path.mean.length && first + k * step < until; k++) {
      const at = (first + k * step - actual.start) / step
      if (at < 0 || !Number.isInteger(at)) continue
      if (at >= actual.values.length) break
      found.push(outcomeAt(path, k, dayText(first + k * step), step, actual, at, overrides))
    }
  }
  return found
}

function outcomeAt(
  path: Served,
  k: number,
  period: string,
  step: number,
  actual: DemandSeries,
  at: number,
  overrides: readonly Override[]
): Outcome {
  const modelMean = path.mean[k]!
  const mean = overriddenMean(
    modelMean,
    period,
    step,
    overrides.filter(({ dataTo }) => dataTo < period)
  )
  const bound = (value: number) => (mean === undefined ? value : moved(value, modelMean, mean))
  return {
    period,
    model: path.model,
    lead: k + 1,
    mean: mean ?? modelMean,
    lower80: bound(path.lower80[k]!),
    upper80: bound(path.upper80[k]!),
    lower95: bound(path.lower95[k]!),
    upper95: bound(path.upper95[k]!),
    modelMean,
    overridden: mean !== undefined,
    baseline: path.baseline[k]!,
    actual: actual.values[at]!,
    counts: actual.missing[at] !== 1,
    mae: path.mae,
    rmse: path.rmse,
    scale: path.scale
  }
}

/** Sums over periods from which every measure follows; they add up over items and days. */
export const SUM_NAMES = [
  'periods',
  'actual',
  'absolute',
  'signed',
  'baselineAbsolute',
  'scaled',
  'baselineScaled',
  'scaledPeriods',
  'inside80',
  'inside95',
  'overridden',
  'overrideActual',
  'overrideAbsolute',
  'overrideModelAbsolute'
] as const
export type Sums = Record<(typeof SUM_NAMES)[number], number>
export const noSums = (): Sums => ({
  periods: 0,
  actual: 0,
  absolute: 0,
  signed: 0,
  baselineAbsolute: 0,
  scaled: 0,
  baselineScaled: 0,
  scaledPeriods: 0,
  inside80: 0,
  inside95: 0,
  overridden: 0,
  overrideActual: 0,
  overrideAbsolute: 0,
  overrideModelAbsolute: 0
})

export function sumOutcomes(outcomes: readonly Outcome[]): Sums {
  const sums = noSums()
  for (const one of outcomes) {
    if (!one.counts) continue
    const absolute = Math.abs(one.mean - one.actual)
    const baselineAbsolute = Math.abs(one.baseline - one.actual)
    sums.periods++
    sums.actual += Math.abs(one.actual)
    sums.absolute += absolute
    sums.signed += one.mean - one.actual
    sums.baselineAbsolute += baselineAbsolute
    if (one.scale > 0) {
      sums.scaled += absolute / one.scale
      sums.baselineScaled += baselineAbsolute / one.scale
      sums.scaledPeriods++
    }
    if (one.lower80 <= one.actual && one.actual <= one.upper80) sums.inside80++
    if (one.lower95 <= one.actual && one.actual <= one.upper95) sums.inside95++
    if (!one.overridden) continue
    sums.overridden++
    sums.overrideActual += Math.abs(one.actual)
    sums.overrideAbsolute += absolute
    sums.overrideModelAbsolute += Math.abs(one.modelMean - one.actual)
  }
  return sums
}

export function addSums(a: Sums, b: Sums): Sums {
  const sums = { ...a }
  for (const name of SUM_NAMES) sums[name] += b[name]
  return sums
}

const rounded = (value: number) => Math.round(value * 10_000) / 10_000
const ratio = (part: number, whole: number, scale = 1) => (whole > 0 ? rounded((scale * part) / whole) : null)

/** Realised measures; wape, bias and value added in per cent, null where undefined. */
export function measuresOf(sums: Sums) {
  return {
    periods: sums.periods,
    wape: ratio(sums.absolute, sums.actual, 100),
    mase: ratio(sums.scaled, sums.scaledPeriods),
    bias: ratio(sums.signed, sums.actual, 100),
    coverage80: ratio(sums.inside80, sums.periods),
    coverage95: ratio(sums.inside95, sums.periods),
    baselineWape: ratio(sums.baselineAbsolute, sums.actual, 100),
    baselineMase: ratio(sums.baselineScaled, sums.scaledPeriods),
    overrides: {
      periods: sums.overridden,
      wape: ratio(sums.overrideAbsolute, sums.overrideActual, 100),
      modelWape: ratio(sums.overrideModelAbsolute, sums.overrideActual, 100),
      valueAdded: ratio(sums.overrideModelAbsolute - sums.overrideAbsolute, sums.overrideActual, 100)
    }
  }
}

/**
 * Seasonal naive: each step repeats the last known value of its phase; period 1 repeats the last known value.
 * @param missing 1 = not known
 */
export function naivePath(values: Float64Array, missing: Uint8Array, period: number, horizon: number): number[] {
  const lastKnown = (from: number, stride: number) => {
    for (let i = from; i >= 0; i -= stride) if (missing[i] !== 1) return values[i]
    return undefined
  }
  const n = values.length
  return Array.from(
    { length: horizon },
    (_, k) => lastKnown(n - period + (k % period), period) ?? lastKnown(n - 1, 1) ?? 0
  )
}
