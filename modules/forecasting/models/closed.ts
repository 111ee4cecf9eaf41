import type { Intervals } from './levels.js'
import type { Accuracy, ForecastInput, ForecastOutput } from './types.js'

/** Seasons for which a phase has to have been idle. */
const LEAST_SEASONS = 8
/** Chance below which an idle phase is not taken for luck. */
const LUCK = 1e-3

/** Per phase from the first value, how often in a row nothing was demanded up to the end. */
function idleRuns({ values, missing }: ForecastInput, period: number): Int32Array {
  const runs = new Int32Array(period)
  const ended = new Uint8Array(period)
  let left = period
  for (let i = values.length - 1; i >= 0 && left > 0; i--) {
    const phase = i % period
    if (ended[phase] === 1 || missing?.[i] === 1) continue
    if (values[i] === 0) runs[phase]!++
    else {
      ended[phase] = 1
      left--
    }
  }
  return runs
}

/** Share of the periods from `from` on with demand, those of some phases left out; 0 when there are none. */
function demandShare({ values, missing }: ForecastInput, left: readonly boolean[], from: number): number {
  let known = 0
  let demands = 0
  for (let i = from; i < values.length; i++) {
    if (left[i % left.length] || missing?.[i] === 1) continue
    known++
    if (values[i] !== 0) demands++
  }
  return known > 0 ? demands / known : 0
}

/**
 * Phases of the season, from the first value on, in which nothing is demanded any more: idle at least eight times running
 * while demand in the others was too frequent for that to be luck. A shop shut on Sundays, a ward that orders on weekdays.
 * @returns undefined when there are none
 */
export function closedPhases(input: ForecastInput, period: number): readonly boolean[] | undefined {
  if (period < 2 || input.values.length < LEAST_SEASONS * period) return undefined
  const runs = idleRuns(input, period)
  const idle = Array.from(runs, (run) => run >= LEAST_SEASONS)
  if (!idle.includes(true) || !idle.includes(false)) return undefined
  const closed = idle.map((is, phase) => {
    const share = is ? demandShare(input, idle, Math.max(0, input.values.length - runs[phase]! * period)) : 0
    return is && (1 - share) ** runs[phase]! < LUCK
  })
  return closed.includes(true) ? closed : undefined
}

/** A series without its closed phases, and how to read a forecast of it. */
export interface OpenPeriods {
  input: ForecastInput
  /** share of the periods that is open */
  share: number
  /** its seasons beside those of the whole series, first the one that the phases are of */
  seasons: { open: number; whole: number }[]
  /** per step of the whole horizon the step of the open one, −1 where closed */
  steps: Int32Array
}

/** Seasons of the open periods worth testing. */
export const openSeasons = ({ seasons }: OpenPeriods): number[] =>
  seasons.map(({ open }) => open).filter((period) => period > 1)

/** @param periods candidate seasons of the whole series; the phases are those of the first */
export function onlyOpen(input: ForecastInput, closed: readonly boolean[], periods: readonly number[]): OpenPeriods {
  const { values, missing, factors, horizon } = input
  const season = closed.length
  const share = closed.filter((is) => !is).length / season
  const isOpen = (i: number): boolean => !closed[i % season]
  const keep = (_: number, i: number): boolean => isOpen(i)
  let ahead = 0
  const steps = Int32Array.from({ length: horizon }, (_, k) => (isOpen(values.length + k) ? ahead++ : -1))
  // where the whole horizon is closed one step is forecast and not read
  const asked = Math.max(1, ahead)
  const padded = (column: Float64Array): Float64Array =>
    ahead > 0 ? column.filter(keep) : Float64Array.of(...column.filter(keep), 0)
  return {
    input: {
      ...input,
      values: values.filter(keep),
      ...(missing ? { missing: missing.filter(keep) } : {}),
      ...(factors ? { factors: factors.map((one) => ({ ...one, values: padded(one.values) })) } : {}),
      horizon: asked
    },
    share,
    seasons: periods.map((whole) => ({ open: Math.round(whole * share), whole })),
    steps
  }
}

/** Errors of a mean period, closed ones included: those are forecast without error. */
function ofAll<T extends Accuracy>(accuracy: T, share: number): T {
  const { rmse, mae, pinball, coverage80, coverage95 } = accuracy
  const covered = (inside: number | null) => (inside === null ? null : 1 - share * (1 - inside))
  return {
    ...accuracy,
    rmse: rmse * Math.sqrt(share),
    mae: mae * share,
    coverage80: covered(coverage80),
    coverage95: covered(coverage95),
    ...(typeof pinball === 'number' ? { pinball: pinball * share } : {})
  }
}

/** A forecast of the open periods read as one of all: nothing where closed, and sums stand still there. */
export function withClosed(output: ForecastOutput, { steps, seasons, share }: OpenPeriods): ForecastOutput {
  const each = (row: Float64Array): Float64Array => Float64Array.from(steps, (at) => (at < 0 ? 0 : row[at]!))
  const running = (row: Float64Array): Float64Array => {
    let last = 0
    return Float64Array.from(steps, (at) => {
      if (at >= 0) last = row[at]!
      return last
    })
  }
  const ends = ({ lower, upper }: Intervals[80]) => ({ lower: each(lower), upper: each(upper) })
  const found = seasons.filter(({ open }, s) => s === 0 || output.seasonalPeriods.includes(open))
  return {
    ...output,
    mean: each(output.mean),
    quantiles: output.quantiles.map(each),
    intervals: { 80: ends(output.intervals[80]), 90: ends(output.intervals[90]), 95: ends(output.intervals[95]) },
    cumulativeQuantiles: output.cumulativeQuantiles.map(running),
    accuracy: ofAll(output.accuracy, share),
    baseline: ofAll(output.baseline, share),
    seasonalPeriods: found.map(({ whole }) => whole)
  }
}
