import { measure, naiveScale } from './accuracy.js'
import { combineRolled, weigh } from './combine.js'
import { LEVELS, learnErrors, spread } from './intervals.js'
import { DEFAULT_MEMBERS, POOL } from './pool.js'
import type { Rolled, RollingPlan } from './rolling.js'
import { isSane, planOrigins, roll } from './rolling.js'
import { candidatePeriods, classifyDemand, fillMissing, firstActive, isSeasonal } from './series.js'
import type { Accuracy, FitContext, ForecastInput, ForecastOutput, ModelName, Reason } from './types.js'
import { ForecastInputError, MODEL_NAMES } from './types.js'

export { LEVELS } from './intervals.js'
export * from './types.js'

const MAX_ORIGINS = 24
const REFITS = 3

interface Prepared {
  y: Float64Array
  /** 1 where the value was really observed */
  observed: Uint8Array
  context: FitContext
  reason: Reason | undefined
}

function check(input: ForecastInput): void {
  const { values, missing, horizon, frequency, models } = input
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
  for (const model of models ?? []) {
    if (!MODEL_NAMES.includes(model)) throw new ForecastInputError('FORECAST_MODEL_UNKNOWN', `no model named ${model}`)
  }
}

function prepare(input: ForecastInput): Prepared {
  const { values, horizon, frequency } = input
  const missing = input.missing ?? new Uint8Array(values.length)
  const candidates = candidatePeriods(frequency)
  const filled = missing.includes(1) ? fillMissing(values, missing, candidates[0] ?? 1) : values.slice()
  const first = firstActive(filled, Math.max(12, 2 * horizon))
  const y = filled.slice(first)
  const observed = Uint8Array.from(missing.subarray(first), (flag) => (flag === 1 ? 0 : 1))
  const periods = candidates.filter((period) => isSeasonal(y, period))
  const context: FitContext = {
    periods,
    horizon,
    positive: y.every((value) => value > 0),
    offset: first,
    startDate: input.startDate,
    frequency
  }
  return { y, observed, context, reason: triviality(y, observed) }
}

function triviality(y: Float64Array, observed: Uint8Array): Reason | undefined {
  if (!observed.includes(1)) return 'all-missing'
  if (y.every((value) => value === 0)) return 'all-zero'
  if (y.every((value) => value === y[0])) return 'constant'
  return y.length < 4 ? 'too-short' : undefined
}

function clamp(values: Float64Array, floor: number): Float64Array {
  for (let i = 0; i < values.length; i++) values[i] = Math.max(values[i]!, floor)
  return values
}

/** Rolls the members asked for; those that do not apply or that explode are left out. */
function rollMembers(
  names: readonly ModelName[],
  prepared: Prepared,
  plan: RollingPlan
): { names: ModelName[]; rolled: Rolled[]; finals: Float64Array[] } {
  const { y, context } = prepared
  const kept: ModelName[] = []
  const rolled: Rolled[] = []
  const finals: Float64Array[] = []
  const low = y.reduce((a, b) => Math.min(a, b), 0)
  const high = y.reduce((a, b) => Math.max(a, b), 0)
  for (const name of names) {
    const fit = POOL[name]
    const result = fit && roll(fit, y, plan, context)
    if (!result) continue
    const final = new Float64Array(context.horizon)
    result.final.forecast(y.slice(), final)
    if (!isSane(final, low, high) || !isSane(result.forecasts, low, high)) continue
    kept.push(name)
    rolled.push(result)
    finals.push(final)
  }
  return { names: kept, rolled, finals }
}

/** Point forecast, intervals and accuracy of one candidate to serve. */
function judge(
  rolled: Float64Array,
  point: Float64Array,
  prepared: Prepared,
  plan: RollingPlan,
  floor: number
): Pick<ForecastOutput, 'mean' | 'quantiles' | 'cumulativeQuantiles' | 'accuracy'> {
  const { y, observed, context } = prepared
  clamp(rolled, floor)
  clamp(point, floor)
  const steps = learnErrors(rolled, y, observed, plan, false)
  const sums = learnErrors(rolled, y, observed, plan, true)
  const scale = naiveScale(y, observed, context.periods[0] ?? 1)
  const cumulative = Float64Array.from(point)
  for (let k = 1; k < cumulative.length; k++) cumulative[k]! += cumulative[k - 1]!
  const accuracy: Accuracy = measure(rolled, y, observed, plan, scale, steps, floor)
  return {
    mean: point,
    quantiles: spread(point, steps, floor),
    cumulativeQuantiles: spread(cumulative, sums, floor),
    accuracy
  }
}

/**
 * Forecasts demand: the models asked for (or the default pool) are judged from rolling origins at the horizon used,
 * weighted by their error, and serve only if they beat the baseline out of sample.
 * @throws ForecastInputError on a value that is not finite, a horizon below 1, an unknown model or frequency
 */
export function forecast(input: ForecastInput): ForecastOutput {
  check(input)
  const prepared = prepare(input)
  const { y, observed, context } = prepared
  const floor = input.nonNegative === false ? Number.NEGATIVE_INFINITY : 0
  const plan = planOrigins(y.length, input.horizon, MAX_ORIGINS, REFITS)
  const baselineName: ModelName = context.periods.length > 0 ? 'seasonal-naive' : 'naive'
  const asked = input.models?.filter((name) => name !== 'combination') ?? []
  const wanted = asked.length > 0 ? asked : DEFAULT_MEMBERS
  const members = rollMembers(wanted, prepared, plan)
  const base = rollMembers([baselineName], prepared, plan)
  const baseline = judge(base.rolled[0]!.forecasts.slice(), base.finals[0]!.slice(), prepared, plan, floor)
  const shared = {
    levels: LEVELS.slice(),
    seasonalPeriods: [...context.periods],
    demandClass: classifyDemand(
      y,
      Uint8Array.from(observed, (flag) => 1 - flag)
    ),
    baseline: { model: baselineName, ...baseline.accuracy }
  }
  const asBaseline = (reason: Reason): ForecastOutput => ({
    model: baselineName,
    members: [{ model: baselineName, weight: 1 }],
    ...baseline,
    ...shared,
    servesBaseline: true,
    reason
  })
  if (prepared.reason) return asBaseline(prepared.reason)
  if (members.names.length === 0) return asBaseline('too-short')
  const rolled = members.rolled.map((result) => result.forecasts)
  const weights = new Float64Array(rolled.length)
  weigh(rolled, y, observed, plan, y.length, weights)
  const point = new Float64Array(input.horizon)
  members.finals.forEach((final, m) => {
    for (let k = 0; k < point.length; k++) point[k]! += weights[m]! * final[k]!
  })
  const served = judge(combineRolled(rolled, y, observed, plan), point, prepared, plan, floor)
  const named = asked.length > 0
  if (!named && served.accuracy.mae >= baseline.accuracy.mae) return asBaseline('baseline-wins')
  return {
    model: members.names.length === 1 ? members.names[0]! : 'combination',
    members: members.names
      .map((model, m) => ({ model, weight: weights[m]! }))
      .sort((a, b) => b.weight - a.weight || a.model.localeCompare(b.model)),
    ...served,
    ...shared,
    servesBaseline: false,
    reason: named ? 'named' : 'combination-beats-baseline'
  }
}
