import type { CountMixture } from './counts.js'
import type { FactorColumn, Factors } from './factors.js'
import type { Intervals } from './levels.js'

/** Every model a caller may name; `combination` is the pool weighted by rolling-origin error. */
export const MODEL_NAMES = [
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

export type ModelName = (typeof MODEL_NAMES)[number]

/** Pattern of demand: average interval between demands (1.32) by squared variation of its size (0.49).
 * Source: Syntetos, Boylan & Croston (2005), JORS 56. */
export type DemandClass = 'smooth' | 'erratic' | 'intermittent' | 'lumpy' | 'none'

/** How the periods follow one another; a number is the seasonal period itself (24 for hours). */
export type Frequency = 'day' | 'week' | 'month' | number

export interface ForecastInput {
  /** demand per period, oldest first; finite wherever `missing` is not 1 */
  values: Float64Array
  /** 1 = unknown or censored (no stock): never taken for zero demand */
  missing?: Uint8Array
  frequency: Frequency
  /** periods to forecast, ≥ 1 */
  horizon: number
  /** one or several models; left out: the weighted combination of the default pool */
  models?: readonly ModelName[]
  /** YYYY-MM-DD of `values[0]`, for models that know the calendar */
  startDate?: string
  /** known beforehand: each with a value for every period of the data and of the horizon */
  factors?: readonly FactorColumn[]
  /** negative forecasts become zero (default true) */
  nonNegative?: boolean
  /** called before each fit: where others want the processor, it may wait */
  beforeFit?: () => void
}

/** Out-of-sample accuracy over rolling origins; null where the measure is undefined (nothing sold, too short). */
export interface Accuracy {
  /** mean |error / actual| over periods with demand, per cent */
  mape: number | null
  /** sum |error| / sum |actual|, per cent */
  wape: number | null
  /** mean |error| / mean |seasonal naive error in the training part| (Hyndman & Koehler 2006) */
  mase: number | null
  rmse: number
  mae: number
  /** sum (forecast − actual) / sum |actual|, per cent: positive = too much */
  bias: number | null
  /** share of actuals inside the 80 % interval, 0…1 */
  coverage80: number | null
  coverage95: number | null
  /** mean pinball loss over the quantile levels, in demand units */
  pinball?: number | null
  /** rolling origins measured */
  origins: number
}

export type Reason =
  | 'combination-beats-baseline'
  /** of demand that is the same on most days any blend lies beside what always happens; its median did as well as the baseline, or better */
  | 'usual-value'
  | 'baseline-wins'
  | 'named'
  | 'too-short'
  /** the model named says nothing of such a series: it has no season, or no usual value */
  | 'not-applicable'
  | 'all-zero'
  | 'all-missing'
  | 'constant'

export interface ForecastOutput {
  /** what serves */
  model: ModelName
  /** its parts, heaviest first; weights sum to 1 */
  members: { model: ModelName; weight: number }[]
  /** point forecast per step */
  mean: Float64Array
  /** quantile levels, ascending */
  levels: Float64Array
  /** per level, one value per step; never crossing */
  quantiles: Float64Array[]
  /** central intervals of each step; where nothing can fall below the lower end, the whole chance of a miss is above it */
  intervals: Intervals
  /** per level, quantile of the SUM of the first k periods, k = 1…horizon */
  cumulativeQuantiles: Float64Array[]
  /** out of sample, of what serves */
  accuracy: Accuracy
  baseline: { model: ModelName } & Accuracy
  /** the combination (or the named model) did not beat the baseline out of sample, so the baseline serves */
  servesBaseline: boolean
  reason: Reason
  /** what the factors do to demand, in their order; `applied` to what serves unless it did worse with them */
  factors?: { applied: boolean; perUnit: Float64Array; occurrences: Int32Array }
  /** periods of the seasons found, shortest first */
  seasonalPeriods: number[]
  demandClass: DemandClass
  /** positions of values left out as slips, if there are any */
  slips?: readonly number[]
}

export type ForecastErrorCode =
  | 'FORECAST_HORIZON_INVALID'
  | 'FORECAST_VALUE_NOT_FINITE'
  | 'FORECAST_MODEL_UNKNOWN'
  | 'FORECAST_MODEL_NOT_LOADED'
  | 'FORECAST_FREQUENCY_INVALID'
  | 'FORECAST_MISSING_LENGTH'
  | 'FORECAST_FACTOR_INVALID'

/** The only error `forecast` throws: the input is unusable, and `code` says how. */
export class ForecastInputError extends RangeError {
  readonly code: ForecastErrorCode
  constructor(code: ForecastErrorCode, message: string) {
    super(message)
    this.name = 'ForecastInputError'
    this.code = code
  }
}

/** What a model may know besides the training values. */
export interface FitContext {
  /** seasons that stand out in the training part, shortest first; empty when none is significant */
  periods: readonly number[]
  /** seasons with two cycles in the data, significant or not: shrunken figures and AICc decide what they are worth */
  candidates: readonly number[]
  /** longest horizon asked for */
  horizon: number
  /** how many values there are in all; a fit at an origin sees fewer */
  known?: number
  /** position of the first training value in the whole series, so that seasons keep their phase */
  offset: number
  startDate?: string | undefined
  frequency: Frequency
  factors?: Factors | undefined
  /** distribution of counts of the first `n` values, fitted once for whoever asks; of the series before factors are taken off */
  countsUntil?: ((n: number) => CountMixture) | undefined
  beforeFit?: (() => void) | undefined
}

/** A fitted model: forecasts from the end of any prefix `y` that starts where the training values started. */
export interface Fitted {
  /** @param y is never written to */
  forecast(y: Float64Array, out: Float64Array): void
  /** The same from several ends in one pass over the data; left out where there is nothing to gain. */
  forecastEach?(y: Float64Array, ends: Ends): void
}

/** Where to forecast from, and where to: row j of `out` is what the first `lengths[j]` values of the data tell. */
export interface Ends {
  /** ascending */
  lengths: Int32Array
  horizon: number
  /** flat, a row of `horizon` values per end */
  out: Float64Array
}

/** Fits on `y`, or answers undefined when the model does not apply (too short, no season, …). */
export type Fit = (y: Float64Array, context: FitContext) => Fitted | undefined
