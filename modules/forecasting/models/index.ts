import { closedPhases, onlyOpen, openSeasons, withClosed } from './closed.js'
import { blendSteps, combineRolled, medianShare, tabulate, weigh } from './combine.js'
import { withFactors } from './factors.js'
import { type Judged, judgeByCounts, judgeByErrors } from './judge.js'
import { LEVELS } from './levels.js'
import { DEFAULT_MEMBERS, LEVEL_MEMBERS, POOL, SLOW_MODELS, SPARSE_MEMBERS } from './pool.js'
import { check, type Prepared, prepare } from './prepare.js'
import { hold, planOrigins, type RollingPlan, roll } from './rolling.js'
import { candidatePeriods } from './series.js'
import { alsoMissing, slipsIn } from './slips.js'
import { type ForecastInput, ForecastInputError, type ForecastOutput, type ModelName, type Reason } from './types.js'

export { COVERAGES, type Intervals, LEVELS } from './levels.js'
export { loadModels } from './pool.js'
export * from './types.js'

const MAX_ORIGINS = 36
const REFITS = 3
const SLOW_ORIGINS = 6
/** Relative error from which the bias correction works in full. */
const FULL_NOISE = 0.5

interface Members {
  names: ModelName[]
  rolled: Float64Array[]
  finals: Float64Array[]
}

/** Rolls the members asked for; those that do not apply are left out, those that explode are held. */
function rollMembers(names: readonly ModelName[], { y, context }: Prepared, plan: RollingPlan): Members {
  const members: Members = { names: [], rolled: [], finals: [] }
  const low = y.reduce((a, b) => Math.min(a, b), y[0] ?? 0)
  const high = y.reduce((a, b) => Math.max(a, b), y[0] ?? 0)
  for (const name of names) {
    const fit = POOL[name]
    const result = fit && roll(withFactors(name, fit), y, plan, context)
    if (!result) continue
    const final = new Float64Array(context.horizon)
    result.final.forecast(y.slice(), final)
    if (!hold(final, low, high) || !hold(result.forecasts, low, high)) continue
    members.names.push(name)
    members.rolled.push(result.forecasts)
    members.finals.push(final)
  }
  return members
}

function requireLoaded(names: readonly ModelName[]): void {
  for (const name of names) {
    if (POOL[name]) continue
    throw new ForecastInputError(
      'FORECAST_MODEL_NOT_LOADED',
      `${name} must be loaded first: await loadModels(['${name}'])`
    )
  }
}

/**
 * Factor that takes half of the bias seen out of sample off noisy demand, whose median and logarithm lie below its mean.
 * That gap grows fast with the relative error: precise forecasts are left alone. Source: Duan (1983), smearing.
 */
function biasFactor(rolled: Float64Array, { y, observed }: Prepared, plan: RollingPlan): number {
  const { origins, horizon } = plan
  let forecasts = 0
  let actuals = 0
  let errors = 0
  for (let o = 0; o < origins.length; o++) {
    for (let k = 0; k < horizon && origins[o]! + k < y.length; k++) {
      if (observed[origins[o]! + k] !== 1) continue
      const point = Math.max(0, rolled[o * horizon + k]!)
      forecasts += point
      actuals += y[origins[o]! + k]!
      errors += Math.abs(y[origins[o]! + k]! - point)
    }
  }
  if (!(forecasts > 0 && actuals > 0)) return 1
  const noise = Math.min(1, (errors / actuals / FULL_NOISE) ** 4)
  return 1 + 0.5 * noise * (Math.min(1.4, Math.max(0.7, actuals / forecasts)) - 1)
}

function scaleBy(values: Float64Array, factor: number): Float64Array {
  for (let i = 0; i < values.length; i++) values[i]! *= factor
  return values
}

function judge(
  rolled: Float64Array,
  point: Float64Array,
  prepared: Prepared,
  plan: RollingPlan,
  floor: number
): Judged {
  return prepared.sparse && floor === 0
    ? judgeByCounts(rolled, point, prepared, plan)
    : judgeByErrors(rolled, point, prepared, plan, floor)
}

/** Seasonal naive where a season exists; otherwise naive for smooth demand and TSB for uneven demand. */
function baselineName({ context, demandClass }: Prepared): ModelName {
  if (context.periods.length > 0) return 'seasonal-naive'
  return demandClass === 'smooth' || demandClass === 'none' ? 'naive' : 'tsb'
}

/** What was judged, and its forecasts at the origins. */
interface Rolled {
  judged: Judged
  rolled: Float64Array
}

function judgeBaseline(prepared: Prepared, plan: RollingPlan, floor: number): Rolled & { name: ModelName } {
  const { names, rolled: all, finals } = rollMembers([baselineName(prepared), 'naive'], prepared, plan)
  const rolled = all[0]!.slice()
  return { name: names[0]!, rolled, judged: judge(rolled, finals[0]!.slice(), prepared, plan, floor) }
}

/** A combination, with the weights of its members and the series as it was judged on. */
interface Candidate extends Rolled {
  weights: ReadonlyMap<ModelName, number>
  prepared: Prepared
}

/** Weighs the members, blends them and judges the result. */
function combine(members: Members, prepared: Prepared, plan: RollingPlan, floor: number): Candidate {
  const { y, observed, sparse } = prepared
  const weights = new Float64Array(members.names.length)
  const several = members.names.length > 1
  const absolute = tabulate(members.rolled, y, observed, plan, false)
  const table = sparse ? tabulate(members.rolled, y, observed, plan, true) : absolute
  weigh(table, y.length, weights)
  const point = new Float64Array(plan.horizon)
  const share = medianShare(absolute)
  blendSteps(members.finals, 0, weights, share, point)
  const rolled = combineRolled(members.rolled, table, share)
  const factor = several && !sparse ? biasFactor(rolled, prepared, plan) : 1
  const judged = judge(scaleBy(rolled, factor), scaleBy(point, factor), prepared, plan, floor)
  return { judged, rolled, weights: new Map(members.names.map((name, m) => [name, weights[m]!])), prepared }
}

/** Shares that the baseline may take of a combination which did not beat it alone. */
const BASELINE_SHARES = [0.25, 0.5] as const

/**
 * The combination as it is, or, where the baseline did better, with the smallest share of the baseline with which it is ahead;
 * undefined where none is. Of two forecasts that are about as good, the mean errs less than either: where one was ahead by luck, this
 * keeps the other.
 */
function aheadOf(
  baseline: Rolled & { name: ModelName },
  alone: Candidate,
  plan: RollingPlan,
  floor: number,
  isAhead: (judged: Judged) => boolean
): Candidate | undefined {
  if (isAhead(alone.judged)) return alone
  for (const share of BASELINE_SHARES) {
    const mixed = (own: Float64Array, other: Float64Array) =>
      own.map((value, i) => (1 - share) * value + share * other[i]!)
    const rolled = mixed(alone.rolled, baseline.rolled)
    const judged = judge(rolled, mixed(alone.judged.mean, baseline.judged.mean), alone.prepared, plan, floor)
    if (!isAhead(judged)) continue
    const weights = new Map([...alone.weights].map(([name, weight]) => [name, (1 - share) * weight]))
    weights.set(baseline.name, (weights.get(baseline.name) ?? 0) + share)
    return { judged, rolled, weights, prepared: alone.prepared }
  }
  return undefined
}

/** Uneven demand of so few values is forecast by its level: its last values and their trend are chance for the most part. */
const FEW_VALUES = 24

const denseMembers = ({ y, demandClass }: Prepared): readonly ModelName[] =>
  y.length <= FEW_VALUES && demandClass !== 'smooth' ? LEVEL_MEMBERS : DEFAULT_MEMBERS

/** A sparse series with a season is forecast both ways; the counts stand unless the season helps clearly. */
const SEASON_GAIN = 0.97

/** The combination of the models asked for, or of the pool that suits the series. */
function bestCandidate(
  asked: readonly ModelName[],
  prepared: Prepared,
  plan: RollingPlan,
  floor: number
): Candidate | undefined {
  const attempt = (names: readonly ModelName[], as: Prepared): Candidate | undefined => {
    const members = rollMembers([...new Set(names)], as, plan)
    return members.names.length > 0 ? combine(members, as, plan, floor) : undefined
  }
  if (asked.length > 0) return attempt(asked, prepared)
  const dense = (): Candidate | undefined => attempt(denseMembers(prepared), { ...prepared, sparse: false })
  if (!prepared.sparse) return dense()
  const counts = attempt(SPARSE_MEMBERS, prepared)
  const seasonal = prepared.context.periods.length > 0 ? dense() : undefined
  if (!counts || !seasonal) return counts ?? seasonal
  const loss = ({ judged: { accuracy } }: Candidate): number => accuracy.pinball ?? accuracy.mae
  return loss(seasonal) < SEASON_GAIN * loss(counts) ? seasonal : counts
}

/** What the choice is made by, out of sample: absolute errors, or squared ones where zero is the usual value (the absolute error of
 * sparse demand rewards forecasting nothing). */
const lossOf = ({ accuracy }: Judged, { sparse }: Prepared): number => (sparse ? accuracy.rmse : accuracy.mae)

/** Factors stand unless the forecast is clearly better without: what comes once a year is seldom in the periods judged. */
const FACTOR_GAIN = 0.98

/** Of fewer values than this it is not told that a model says nothing of them: they are too few. */
const TOLD_VALUES = 8

/** What may serve: the baseline, and what has to beat it. Both are judged from the same origins. */
export interface Contest {
  baseline: ForecastOutput
  /** undefined where no model applies, or none is worth trying */
  challenger: ForecastOutput | undefined
  /** the challenger did better out of sample, or was named by the caller */
  challengerServes: boolean
}

/**
 * The baseline and the combination (or the models named) side by side, for measuring how well the choice between them does.
 * @throws ForecastInputError on a value that is not finite, a horizon below 1, an unknown or not loaded model
 */
export function contest(input: ForecastInput): Contest {
  check(input)
  const slips = slipsIn(input.values, input.missing)
  if (slips.length === 0) return contestWhole(input)
  const missing = alsoMissing(input.values.length, input.missing, slips)
  const { baseline, challenger, challengerServes } = contestWhole({ ...input, missing })
  return { baseline: { ...baseline, slips }, challenger: challenger && { ...challenger, slips }, challengerServes }
}

function contestWhole(input: ForecastInput): Contest {
  const asked = input.models?.filter((model) => model !== 'combination') ?? []
  requireLoaded(asked)
  const periods = candidatePeriods(input.frequency)
  // who names a model gets that model, of the series as it is
  const closed = asked.length === 0 ? closedPhases(input, periods[0] ?? 1) : undefined
  if (!closed) return contestOf(input, asked, periods)
  const open = onlyOpen(input, closed, periods)
  const { baseline, challenger, challengerServes } = contestOf(open.input, asked, openSeasons(open))
  return {
    baseline: withClosed(baseline, open),
    challenger: challenger && withClosed(challenger, open),
    challengerServes
  }
}

function contestOf(input: ForecastInput, asked: readonly ModelName[], periods: readonly number[]): Contest {
  const prepared = prepare(input, periods)
  const floor = input.nonNegative === false ? Number.NEGATIVE_INFINITY : 0
  const slow = asked.some((model) => SLOW_MODELS.includes(model))
  const plan = planOrigins(prepared.y.length, input.horizon, slow ? SLOW_ORIGINS : MAX_ORIGINS, slow ? 1 : REFITS)
  const { factors } = prepared.context
  const plain = { ...prepared, context: { ...prepared.context, factors: undefined } }
  // The baseline is what any forecast must beat, so it knows nothing beforehand.
  const base = judgeBaseline(plain, plan, floor)
  const { name, judged } = base
  const shared = {
    levels: LEVELS.slice(),
    seasonalPeriods: [...prepared.context.periods],
    demandClass: prepared.demandClass,
    baseline: { model: name, ...judged.accuracy }
  }
  const asBaseline = (reason: Reason): ForecastOutput => ({
    model: name,
    members: [{ model: name, weight: 1 }],
    ...judged,
    ...shared,
    servesBaseline: true,
    reason
  })
  const alone = (reason: Reason): Contest => ({
    baseline: asBaseline(reason),
    challenger: undefined,
    challengerServes: false
  })
  if (prepared.trivial) return alone(prepared.trivial)
  const named = asked.length > 0
  let candidate = bestCandidate(asked, prepared, plan, floor)
  let applied = factors !== undefined
  if (factors && !named) {
    const without = bestCandidate(asked, plain, plan, floor)
    if (
      without &&
      (!candidate || lossOf(without.judged, prepared) < FACTOR_GAIN * lossOf(candidate.judged, prepared))
    ) {
      candidate = without
      applied = false
    }
  }
  if (!candidate) return alone(named && prepared.y.length >= TOLD_VALUES ? 'not-applicable' : 'too-short')
  const isAhead = (one: Judged): boolean => lossOf(one, prepared) < lossOf(judged, prepared)
  let reason: Reason = named ? 'named' : 'combination-beats-baseline'
  let ahead = named ? candidate : aheadOf(base, candidate, plan, floor, isAhead)
  if (!ahead && !prepared.sparse) {
    const usual = bestCandidate(['median'], plain, plan, floor)
    const differs = usual?.judged.mean.some((value, k) => value !== judged.mean[k])
    const isUse = usual?.judged.mean.some((value) => value !== 0)
    if (usual && differs && isUse && lossOf(usual.judged, prepared) <= lossOf(judged, prepared)) {
      ahead = usual
      applied = false
      reason = 'usual-value'
    }
  }
  const { judged: served, weights } = ahead ?? candidate
  const [only] = weights.keys()
  const challenger: ForecastOutput = {
    model: weights.size === 1 && only ? only : 'combination',
    members: [...weights]
      .map(([model, weight]) => ({ model, weight }))
      .sort((a, b) => b.weight - a.weight || a.model.localeCompare(b.model)),
    ...served,
    ...shared,
    ...(factors ? { factors: { applied, ...factors.effects(prepared.y) } } : {}),
    servesBaseline: false,
    reason
  }
  return { baseline: asBaseline('baseline-wins'), challenger, challengerServes: ahead !== undefined }
}

/**
 * Forecasts demand: the models asked for (or the default pool) are judged from rolling origins at the horizon used,
 * weighted by their error, and serve only if they beat the baseline out of sample.
 * @throws ForecastInputError on a value that is not finite, a horizon below 1, an unknown or not loaded model
 */
export function forecast(input: ForecastInput): ForecastOutput {
  const { baseline, challenger, challengerServes } = contest(input)
  return challenger && challengerServes ? challenger : baseline
}
