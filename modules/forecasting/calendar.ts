import type { FactorEffect, YearlyRule } from '../../schemas/calendar.js'
import { dayNumber, dayText, MILLISECONDS_PER_DAY } from './series.js'

/** Days and figures known beforehand, and what of them touches a series. Pure. */

export interface Scope {
  category: string | null
  itemCode: string | null
}
export interface CalendarEvent extends Scope {
  id: string
  name: string
  kind: 'event' | 'closure'
  dates: string[] | null
  yearly: YearlyRule | null
  daysBefore: number
  daysAfter: number
}
export interface Figure extends Scope {
  id: string
  name: string
  /** by day number */
  values: ReadonlyMap<number, number>
}
export interface ScopedItem {
  itemCode: string
  category?: string | null
}

/** What a worker is told of one factor: the days it falls on, or a figure for each day from `start` on. */
export interface KnownFactor {
  name: string
  part: FactorEffect['part']
  days: number[]
  start: number
  values: Float64Array | undefined
}
export interface Known {
  factors: KnownFactor[]
  /** day numbers on which the place is closed, past ones too */
  closed: number[]
  /** what applies and cannot be used */
  unused: FactorEffect[]
}

const FIGURE_DAYS_MIN = 28
const daysOfYear = (year: number, month: number, day: number) => Date.UTC(year, month - 1, day) / MILLISECONDS_PER_DAY

/** Easter Sunday of a Gregorian year. Source: Meeus, Astronomical Algorithms (1991), ch. 8 (Butcher). */
export function easter(year: number): number {
  const a = year % 19
  const b = Math.floor(year / 100)
  const c = year % 100
  const g = Math.floor((8 * b + 13) / 25)
  const h = (19 * a + b - Math.floor(b / 4) - g + 15) % 30
  const m = Math.floor((a + 11 * h) / 319)
  const r = (2 * (b % 4) + 2 * Math.floor(c / 4) - (c % 4) - h + m + 32) % 7
  const month = Math.floor((h - m + r + 90) / 25)
  return daysOfYear(year, month, (h - m + r + month + 19) % 32)
}

/** Day number of a rule in a year; undefined where that year has none (29 February, a fifth Monday). */
export function yearlyDay(rule: YearlyRule, year: number): number | undefined {
  if ('easterOffsetDays' in rule) return easter(year) + rule.easterOffsetDays
  const first = daysOfYear(year, rule.month, 1)
  const next = daysOfYear(year, rule.month + 1, 1)
  if ('day' in rule) return first + rule.day - 1 < next ? first + rule.day - 1 : undefined
  // 1970-01-01 was a Thursday.
  const weekdayOf = (day: number) => ((((day + 3) % 7) + 7) % 7) + 1
  if (rule.nth === -1) return next - 1 - ((weekdayOf(next - 1) - rule.weekday + 7) % 7)
  const day = first + ((rule.weekday - weekdayOf(first) + 7) % 7) + 7 * (rule.nth - 1)
  return day < next ? day : undefined
}

/** Days of an event within [from, to], ascending. */
export function occurrences({ dates, yearly }: Pick<CalendarEvent, 'dates' | 'yearly'>, from: number, to: number) {
  const found = new Set<number>((dates ?? []).map(dayNumber))
  if (yearly !== null) {
    // A rule by Easter may fall into the year before or after its own.
    const last = new Date(to * MILLISECONDS_PER_DAY).getUTCFullYear() + 1
    for (let year = new Date(from * MILLISECONDS_PER_DAY).getUTCFullYear() - 1; year <= last; year++) {
      const day = yearlyDay(yearly, year)
      if (day !== undefined) found.add(day)
    }
  }
  return [...found].filter((day) => from <= day && day <= to).sort((a, b) => a - b)
}

/** The days themselves, and those before and after that are not such a day themselves. */
function partsOf(event: CalendarEvent, from: number, to: number): [FactorEffect['part'], number[]][] {
  const on = occurrences(event, from - event.daysAfter, to + event.daysBefore)
  const taken = new Set(on)
  const around = (days: number, side: 1 | -1) => {
    const found: number[] = []
    for (const day of on) {
      for (let d = 1; d <= days; d++) {
        const each = day + side * d
        if (taken.has(each)) continue
        taken.add(each)
        found.push(each)
      }
    }
    return found.sort((a, b) => a - b)
  }
  const within = (days: number[]) => days.filter((day) => from <= day && day <= to)
  const parts: [FactorEffect['part'], number[]][] = [['day', within(on)]]
  if (event.daysBefore > 0) parts.push(['before', within(around(event.daysBefore, -1))])
  if (event.daysAfter > 0) parts.push(['after', within(around(event.daysAfter, 1))])
  return parts
}

const applies = ({ category, itemCode }: Scope, item: ScopedItem) =>
  (itemCode === null || itemCode === item.itemCode) && (category === null || category === (item.category ?? null))

const unusable = (name: string, part: FactorEffect['part'], reason: string, dates: string[]): FactorEffect => ({
  name,
  part,
  used: false,
  reason,
  effectPercent: null,
  occurrences: 0,
  dates
})

/** The first day of [from, to] without a value; undefined where there is none. */
export function firstGap(values: ReadonlyMap<number, number>, from: number, to: number): number | undefined {
  for (let day = from; day <= to; day++) if (!values.has(day)) return day
  return undefined
}

/** A figure from its first known day on; before it, its mean. A gap in the data or in the days to come refuses it. */
function figureOf({ name, values }: Figure, start: number, end: number, until: number): KnownFactor | FactorEffect {
  const first = Math.max(start, Math.min(...values.keys()))
  if (end - first + 1 < FIGURE_DAYS_MIN) return unusable(name, 'figure', 'not-seen', [])
  const gap = firstGap(values, first, until)
  if (gap !== undefined) return unusable(name, 'figure', `incomplete: ${dayText(gap)}`, [])
  const dense = new Float64Array(until - start + 1)
  let sum = 0
  for (let day = first; day <= until; day++) {
    dense[day - start] = values.get(day) ?? 0
    if (day <= end) sum += dense[day - start]!
  }
  dense.fill(sum / (end - first + 1), 0, first - start)
  return { name, part: 'figure', days: [], start, values: dense }
}

/** @param from first day of the oldest series; @param to last day of the horizon */
export function createCalendar(events: readonly CalendarEvent[], figures: readonly Figure[], from: number, to: number) {
  const expanded = events.map((event) => ({ event, parts: partsOf(event, from, to) }))
  return {
    needsCategories: [...events, ...figures].some(({ category }) => category !== null),

    /** What touches the days from `start` to `end` and the horizon up to `until`. */
    of(item: ScopedItem, start: number, end: number, until: number): Known {
      const known: Known = { factors: [], closed: [], unused: [] }
      for (const { event, parts } of expanded) {
        if (!applies(event, item)) continue
        for (const [part, all] of parts) {
          const days = all.filter((day) => start <= day && day <= until)
          if (event.kind === 'closure') {
            known.closed.push(...days)
            continue
          }
          const ahead = days.filter((day) => day > end).map(dayText)
          if (days.length > ahead.length) {
            known.factors.push({ name: event.name, part, days, start, values: undefined })
          } else if (ahead.length > 0) known.unused.push(unusable(event.name, part, 'not-seen', ahead))
        }
        if (event.kind !== 'closure') continue
        const ahead = parts.flatMap(([, days]) => days.filter((day) => end < day && day <= until)).sort((a, b) => a - b)
        // Closed days need no learning: nothing is used on them.
        if (ahead.length > 0) {
          known.unused.push({ ...unusable(event.name, 'closure', '', ahead.map(dayText)), used: true, reason: null })
        }
      }
      for (const figure of figures) {
        if (!applies(figure, item) || figure.values.size === 0) continue
        const found = figureOf(figure, start, end, until)
        if ('used' in found) known.unused.push(found)
        else known.factors.push(found)
      }
      known.closed.sort((a, b) => a - b)
      return known
    },

    /** Days up to `end` that are not as usual: closed, or an event. */
    unusual(item: ScopedItem, end: number): number[] {
      return expanded.flatMap(({ event, parts }) =>
        applies(event, item) ? parts.flatMap(([, days]) => days.filter((day) => day <= end)) : []
      )
    },

    /** Days up to `end` on which the place was closed. */
    closed(item: ScopedItem, end: number): number[] {
      return expanded.flatMap(({ event, parts }) =>
        event.kind === 'closure' && applies(event, item)
          ? parts.flatMap(([, days]) => days.filter((day) => day <= end))
          : []
      )
    }
  }
}
export type Calendar = ReturnType<typeof createCalendar>
