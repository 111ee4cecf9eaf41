import { createHash } from 'node:crypto'
import type { Frequency } from '../../schemas/forecasting.js'

/** Days are whole numbers since 1970-01-01 inside, `YYYY-MM-DD` in UTC outside. */
export const MILLISECONDS_PER_DAY = 86_400_000
export const dayNumber = (day: string): number => Date.parse(day) / MILLISECONDS_PER_DAY
export const dayText = (day: number): string => new Date(day * MILLISECONDS_PER_DAY).toISOString().slice(0, 10)

/** 1970-01-01 was a Thursday; ISO weeks start on Monday. */
export const mondayOnOrBefore = (day: number): number => day - ((((day + 3) % 7) + 7) % 7)

/** A nil stock that lasts longer than this is an item given up, not a shortage: its later days count as no demand. */
export const CENSORED_RUN_DAYS_MAX = 56
/** A return is taken off what was issued at most this long before. */
const RETURN_DAYS_MAX = 90

/** One stored day with movements: what was used, and the stock at its end. */
export interface ActiveDay {
  day: number
  /** net use, in units */
  used: number
  /** stock was nil all day */
  censored: boolean
  /** stock was nil at the end of the day */
  emptyAtEnd: boolean
}

export interface DemandSeries {
  /** first day of the first period */
  start: number
  values: Float64Array
  /** 1 = there was no stock, so the value says nothing of demand */
  missing: Uint8Array
}

/** Every day from the first movement to `end` (inclusive); days without movements are zero, or censored while stock is nil. */
export function daily(days: readonly ActiveDay[], end: number): DemandSeries {
  const start = days[0]?.day ?? end + 1
  const length = Math.max(0, end - start + 1)
  const values = new Float64Array(length)
  const missing = new Uint8Array(length)
  for (let i = 0; i < days.length; i++) {
    const { day, used, censored, emptyAtEnd } = days[i]!
    if (day > end) break
    values[day - start] = used
    if (censored) missing[day - start] = 1
    if (!emptyAtEnd) continue
    const next = Math.min(days[i + 1]?.day ?? end + 1, end + 1, day + 1 + CENSORED_RUN_DAYS_MAX)
    missing.fill(1, day + 1 - start, next - start)
  }
  return { start, values, missing }
}

/**
 * What came back on a day beyond what was used that day is taken off the days before it, newest first, so that demand is
 * never negative and the sum stays; what finds no use to come from is dropped. Changes `values`.
 */
export function carryReturnsBack(values: Float64Array): Float64Array {
  for (let i = 0; i < values.length; i++) {
    let excess = -values[i]!
    if (excess <= 0) continue
    values[i] = 0
    for (let j = i - 1; excess > 0 && j >= 0 && j >= i - RETURN_DAYS_MAX; j--) {
      const taken = Math.min(excess, values[j]!)
      values[j]! -= taken
      excess -= taken
    }
  }
  return values
}

const ESTIMATE_SEASONS = 4
const ESTIMATE_DAYS = 28

/**
 * The demand behind one unknown period: the mean of the known ones in the same phase up to four seasons before and after, else
 * of the known ones within 28 periods. Null where nothing near is known. It never replaces what was recorded.
 */
export function estimateAt({ values, missing }: DemandSeries, at: number, season: number): number | null {
  let sum = 0
  let count = 0
  const add = (i: number) => {
    if (i < 0 || i >= values.length || missing[i] === 1) return
    sum += Math.max(0, values[i]!)
    count++
  }
  for (let k = 1; k <= ESTIMATE_SEASONS; k++) {
    add(at - k * season)
    add(at + k * season)
  }
  for (let d = 1; count === 0 && d <= ESTIMATE_DAYS; d++) {
    add(at - d)
    add(at + d)
  }
  return count === 0 ? null : sum / count
}

const CLOSURE_WEEKS = 4
const CLOSURE_WEEKS_KNOWN_MIN = 4
const CLOSURE_OPEN_SHARE = 0.75
/** With so many items used on a usual day, a day without any is not chance: e⁻⁸ is one in 3,000. */
export const CLOSURE_ITEMS_MIN = 8

/**
 * Days on which nothing at all was used although the same weekday is usually open: at least three quarters of those up to four
 * weeks before and after. Each with the days it was judged by, since whether it is a closure also depends on how much is used on them.
 */
export function closureCandidates(open: ReadonlySet<number>, start: number, end: number) {
  const found: { day: number; around: number[] }[] = []
  for (let day = start; day <= end; day++) {
    if (open.has(day)) continue
    const weeks: number[] = []
    for (let k = 1; k <= CLOSURE_WEEKS; k++) weeks.push(day - 7 * k, day + 7 * k)
    const known = weeks.filter((each) => each >= start && each <= end)
    const around = known.filter((each) => open.has(each))
    if (known.length >= CLOSURE_WEEKS_KNOWN_MIN && around.length >= CLOSURE_OPEN_SHARE * known.length) {
      found.push({ day, around })
    }
  }
  return found
}

/** Whole ISO weeks only; a week is unknown when more than half of its days are. */
export function weekly({ start, values, missing }: DemandSeries): DemandSeries {
  const first = mondayOnOrBefore(start + 6)
  const weeks = Math.max(0, Math.floor((start + values.length - first) / 7))
  const sums = new Float64Array(weeks)
  const gaps = new Uint8Array(weeks)
  for (let week = 0; week < weeks; week++) {
    let censored = 0
    for (let i = first - start + week * 7, last = i + 7; i < last; i++) {
      sums[week]! += values[i]!
      censored += missing[i]!
    }
    if (censored > 3) gaps[week] = 1
  }
  return { start: first, values: sums, missing: gaps }
}

/** Mean of the known days of a stretch; undefined where there are none. */
function knownMean({ values, missing }: DemandSeries, from: number, to: number): number | undefined {
  let sum = 0
  let count = 0
  for (let i = Math.max(0, from); i < Math.min(values.length, to); i++) {
    if (missing[i] === 1) continue
    sum += values[i]!
    count++
  }
  return count === 0 ? undefined : sum / count
}

/**
 * In place of these days the mean of the known days of their week, or of all where there are none, so that sums over days and over items
 * are made of what is usual. Changes `values`.
 */
function fromKnownDays(series: DemandSeries, days: readonly number[]): void {
  for (const at of days) {
    const monday = mondayOnOrBefore(series.start + at) - series.start
    const { length } = series.values
    series.values[at] = knownMean(series, monday, monday + 7) ?? knownMean(series, 0, length) ?? 0
  }
}

/**
 * What a model learns from: returns netted, whole periods.
 * @param closed days on which the place was closed: unknown, and nothing was used
 * @param exceptional days that people said are not representative: what was used on them counts for nothing, in sums either
 */
export function demand(
  days: readonly ActiveDay[],
  end: number,
  frequency: Frequency,
  closed: Iterable<string> = [],
  exceptional: Iterable<string> = []
): DemandSeries {
  const series = daily(days, end)
  carryReturnsBack(series.values)
  const mark = (unknown: Iterable<string>) => {
    const found = Array.from(unknown, (day) => dayNumber(day) - series.start).filter(
      (at) => at >= 0 && at < series.missing.length
    )
    for (const at of found) series.missing[at] = 1
    return found
  }
  mark(closed)
  const left = mark(exceptional)
  fromKnownDays(series, left)
  return frequency === 'week' ? weekly(series) : series
}

export const emptySeries = (start: number, periods: number): DemandSeries => ({
  start,
  values: new Float64Array(periods),
  missing: new Uint8Array(periods)
})
/** Adds a series to a sum, as far as that goes. */
export function addTo(sum: DemandSeries, { start, values }: DemandSeries, stepDays: number): void {
  const shift = (start - sum.start) / stepDays
  for (let i = 0; i < values.length; i++) {
    if (i + shift >= 0 && i + shift < sum.values.length) sum.values[i + shift]! += values[i]!
  }
}
/** The part of a series from a day on. */
export function since({ start, values, missing }: DemandSeries, day: number, stepDays: number): DemandSeries {
  const skip = Math.max(0, Math.min(values.length, (day - start) / stepDays))
  return { start: start + skip * stepDays, values: values.slice(skip), missing: missing.slice(skip) }
}

export const periodDays = (frequency: Frequency): number => (frequency === 'week' ? 7 : 1)

/** Names the exact data and parameters of a training, so that what has not changed is not computed again. */
export function fingerprint({ start, values, missing }: DemandSeries, parameters: unknown): string {
  return createHash('sha256')
    .update(JSON.stringify([start, parameters]))
    .update(values)
    .update(missing)
    .digest('base64url')
}
