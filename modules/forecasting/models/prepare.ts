import { type CountMixture, fitCounts } from './counts.js'
import { Factors } from './factors.js'
import { decompose } from './seasons.js'
import { classifyDemand, fillMissing, firstActive, isSeasonal } from './series.js'
import type { DemandClass, FitContext, ForecastInput, Frequency, Reason } from './types.js'
import { ForecastInputError, MODEL_NAMES } from './types.js'

/** Older values are left out: five of the longest seasons stay, and never fewer than 300 nor more than 1,100 values. */
const SEASONS_KEPT = 5
const MIN_WINDOW = 300
const MAX_WINDOW = 1100
/**
 * Of a season given as a number from 24 on (hours, half hours) eight of the longest stay, which is the week where it is looked for: fewer
 * do not show how a Monday at noon differs from a Tuesday at noon.
 */
const LONG_SEASONS_KEPT = 8
const MOST_VALUES = 6000

/** How many of the last values the models see. */
function windowOf(frequency: Frequency, longestSeason: number, horizon: number): number {
  const isLong = typeof frequency === 'number' && frequency >= 24
  if (isLong) return Math.min(MOST_VALUES, Math.max(MIN_WINDOW, LONG_SEASONS_KEPT * longestSeason + horizon))
  return Math.min(MAX_WINDOW, Math.max(MIN_WINDOW, SEASONS_KEPT * longestSeason + horizon))
}

/** A series made ready: gaps filled, old and idle head cut off, seasons and demand class known. */
export interface Prepared {
  y: Float64Array
  /** 1 where the value was really observed */
  observed: Uint8Array
  context: FitContext
  demandClass: DemandClass
  /** idle often enough to be forecast as counts */
  sparse: boolean
  /** distribution of counts fitted on the first `n` values; baseline, combination and a member ask for the same ones */
  countsUntil(n: number): CountMixture
  /** why no model is worth trying, if so */
  trivial: Reason | undefined
}

/** @throws ForecastInputError on unusable input */
export function check({ values, missing, horizon, frequency, models, factors = [] }: ForecastInput): void {
  if (!Number.isInteger(horizon) || horizon < 1) {
    throw new ForecastInputError('FORECAST_HORIZON_INVALID', `horizon is ${horizon}; it must be a whole number ≥ 1`)
  }
  if (typeof frequency === 'number' && !(Number.isFinite(frequency) && frequency >= 1)) {
    throw new ForecastInputError('FORECAST_FREQUENCY_INVALID', `frequency is ${frequency}; a period must be ≥ 1`)
  }
  if (missing && missing.length !== values.length) {
    throw new ForecastInputError('FORECAST_MISSING_LENGTH', `missing holds ${missing.length} of ${values.length} flags`)
  }
  for (let i = 0; i < values.length; i++) {
    if (missing?.[i] !== 1 && !Number.isFinite(values[i]!)) {
      throw new ForecastInputError('FORECAST_VALUE_NOT_FINITE', `value ${i} is ${values[i]}`)
    }
  }
  for (const [j, { values: known }] of factors.entries()) {
    if (known.length !== values.length + horizon || !known.every(Number.isFinite)) {
      throw new ForecastInputError(
        'FORECAST_FACTOR_INVALID',
        `factor ${j} must hold a number for each of ${values.length} periods and ${horizon} to come`
      )
    }
  }
  for (const model of models ?? []) {
    if (!MODEL_NAMES.includes(model)) throw new ForecastInputError('FORECAST_MODEL_UNKNOWN', `no model named ${model}`)
  }
}

function triviality(y: Float64Array, observed: Uint8Array): Reason | undefined {
  if (!observed.includes(1)) return 'all-missing'
  if (y.every((value) => value === 0)) return 'all-zero'
  if (y.every((value) => value === y[0])) return 'constant'
  return y.length < 4 ? 'too-short' : undefined
}

/** Small whole numbers with idle periods between them, or demand in fewer than a quarter of the periods. */
function isSparse(y: Float64Array): boolean {
  let demands = 0
  let sum = 0
  for (let i = 0; i < y.length; i++) {
    if (y[i] !== 0) demands++
    sum += y[i]!
  }
  if (demands === 0 || 1.32 * demands > y.length) return false
  return 4 * demands < y.length || (sum < 10 * y.length && y.every((value) => Number.isInteger(value)))
}

/** Weight of a cycle relative to the next one in the figures taken off before a longer season is looked for. */
const CYCLE_DECAY = 0.9

/**
 * Seasons that stand out, shortest first. A longer one is looked for in what the shorter ones leave: a year is no whole number of weeks,
 * so that the week would hide it, and seven days are, so that the day would pass for a week. A season of sparse demand has to
 * show in when something is demanded: two large demands a week apart make none.
 */
function seasonsOf(y: Float64Array, candidates: readonly number[], sparse: boolean): number[] {
  const found: number[] = []
  const occurrences = sparse ? y.map((value) => (value === 0 ? 0 : 1)) : undefined
  let rest = y
  for (const period of candidates) {
    if (!isSeasonal(rest, period) || (occurrences && !isSeasonal(occurrences, period))) continue
    found.push(period)
    if (period === candidates.at(-1)) break
    const [figures] = decompose(rest, [period], CYCLE_DECAY, true)
    rest = rest.map((value, i) => value - figures![i % period]!)
  }
  return found
}

function rememberedCounts(y: Float64Array): (n: number) => CountMixture {
  const known = new Map<number, CountMixture>()
  return (n) => {
    const found = known.get(n) ?? fitCounts(y.slice(0, n))
    known.set(n, found)
    return found
  }
}

/**
 * Makes a checked input ready for the models.
 * @param candidates seasons to look for, shortest first
 */
export function prepare(input: ForecastInput, candidates: readonly number[]): Prepared {
  const { values, horizon, frequency } = input
  const missing = input.missing ?? new Uint8Array(values.length)
  const filled = missing.includes(1) ? fillMissing(values, missing, candidates[0] ?? 1) : values.slice()
  const window = windowOf(frequency, candidates.at(-1) ?? 0, horizon)
  const first = Math.max(firstActive(filled, Math.max(12, 2 * horizon)), filled.length - window)
  const y = filled.slice(first)
  const observed = Uint8Array.from(missing.subarray(first), (flag) => (flag === 1 ? 0 : 1))
  const sparse = isSparse(y)
  const demandClass = classifyDemand(
    y,
    observed.map((flag) => 1 - flag)
  )
  const countsUntil = rememberedCounts(y)
  return {
    y,
    observed,
    context: {
      periods: seasonsOf(y, candidates, sparse),
      candidates: candidates.filter((period) => y.length >= 2 * period + 6),
      horizon,
      known: y.length,
      offset: first,
      startDate: input.startDate,
      frequency,
      factors: input.factors?.length
        ? new Factors(
            input.factors.map((one) => ({ ...one, values: one.values.subarray(first) })),
            candidates[0] ?? 1
          )
        : undefined,
      countsUntil,
      beforeFit: input.beforeFit
    },
    demandClass,
    sparse,
    countsUntil,
    trivial: triviality(y, observed)
  }
}
