import type { Tenant } from '../../plugins/contracts.js'
import type { AccuracySummary, Forecast, Frequency, Series, SeriesQuery } from '../../schemas/forecasting.js'
import { CALENDAR_DAYS, calendarOf, scopedItems } from './calendar-store.js'
import { createConsumptionStore } from './consumption-store.js'
import type { ConsumptionSource } from './derive.js'
import { createLearningStore } from './learning-store.js'
import { daily, dayNumber, dayText, estimateAt, MILLISECONDS_PER_DAY, periodDays, weekly } from './series.js'
import { dailyMeans } from './served.js'
import { createForecastStore, type ForecastingTables } from './store.js'

/** What other domains read of forecasting; a host hands these functions to them as options. */

export interface RunOut {
  itemCode: string
  available: number
  /** days that the stock lasts at the forecast pace; 0 when there is none */
  daysOfCover: number
  /** first day that the stock does not cover */
  date: string
}

export interface ForecastHeadline extends AccuracySummary {
  lastTrainedAt: string | null
}

const CANDIDATES_FACTOR = 5
/** Ten years. What lasts longer runs out at no date that anybody could plan for, and a little further there is none to name. */
const COVER_DAYS_MAX = 3_650
const ITEMS_PER_READ = 50
const round = (value: number) => Math.round(value * 1_000_000) / 1_000_000

const forecastsOf = (tenant: Tenant) => createForecastStore(tenant.db.withTables<ForecastingTables>())
const consumptionOf = (tenant: Tenant) => createConsumptionStore(tenant.db)

/** Mean forecast per day in the item's unit; items without a forecast are left out. */
export const dailyDemand = (tenant: Tenant, itemCodes: readonly string[]): Promise<Map<string, number>> =>
  dailyMeans(tenant.db, itemCodes)

export interface LeadTimeDemand {
  /** days per step */
  stepDays: number
  /** quantile levels, ascending */
  levels: number[]
  /** per level, the quantile of the sum of the first k steps */
  quantiles: number[][]
}

/** The distribution of the demand of the next k periods together, which safety stock is computed from. */
export async function leadTimeDemand(
  tenant: Tenant,
  itemCodes: readonly string[]
): Promise<Map<string, LeadTimeDemand>> {
  const found = new Map<string, LeadTimeDemand>()
  for (let at = 0; at < itemCodes.length; at += ITEMS_PER_READ) {
    // Daily comes last and so wins over weekly.
    for (const row of await forecastsOf(tenant).answers(itemCodes.slice(at, at + ITEMS_PER_READ))) {
      const distribution: Omit<LeadTimeDemand, 'stepDays'> = JSON.parse(row.distribution)
      found.set(row.item_code, { stepDays: periodDays(row.frequency), ...distribution })
    }
  }
  return found
}

/** Days that `available` lasts along the forecast path, beyond its end at its mean pace; undefined when it lasts for ever. */
export function cover(
  points: Forecast['points'],
  stepDays: number,
  firstDay: number,
  available: number
): number | undefined {
  let left = available
  let days = 0
  let sum = 0
  for (const { date, mean } of points) {
    sum += mean
    // Periods that are over no longer use stock; of one that runs, its remaining days do.
    const rest = Math.min(stepDays, dayNumber(date) + stepDays - firstDay)
    if (rest <= 0) continue
    const use = (mean * rest) / stepDays
    if (use >= left && use > 0) return days + (left / use) * rest
    left -= use
    days += rest
  }
  const pace = sum / (points.length * stepDays)
  return pace > 0 ? days + left / pace : undefined
}

/**
 * What runs out within ten years, soonest first: stock on the shelf against the cumulated forecast. Counted from today, or,
 * where the data end in the past, from the day after them.
 */
export async function runOut(
  tenant: Tenant,
  stock: readonly { itemCode: string; available: number }[],
  limit = 10,
  now = Date.now()
): Promise<RunOut[]> {
  const store = forecastsOf(tenant)
  const means = await dailyMeans(
    tenant.db,
    stock.map(({ itemCode }) => itemCode)
  )
  const candidates = stock
    .map((item) => ({ ...item, pace: means.get(item.itemCode) ?? 0 }))
    .filter(({ pace }) => pace > 0)
    .sort((a, b) => a.available / a.pace - b.available / b.pace)
    .slice(0, limit * CANDIDATES_FACTOR)
  const forecasts = new Map<string, Forecast>()
  for (let at = 0; at < candidates.length; at += ITEMS_PER_READ) {
    const codes = candidates.slice(at, at + ITEMS_PER_READ).map(({ itemCode }) => itemCode)
    for (const row of await store.answers(codes)) forecasts.set(row.item_code, JSON.parse(row.answer))
  }
  const today = Math.floor(now / MILLISECONDS_PER_DAY)
  const found: RunOut[] = []
  for (const { itemCode, available } of candidates) {
    const forecast = forecasts.get(itemCode)
    const [first] = forecast?.points ?? []
    const last = forecast?.points.at(-1)
    if (forecast === undefined || first === undefined || last === undefined) continue
    const start = dayNumber(last.date) < today ? dayNumber(first.date) : Math.max(dayNumber(first.date), today)
    const days = cover(forecast.points, periodDays(forecast.frequency), start, Math.max(0, available))
    if (days === undefined || days > COVER_DAYS_MAX) continue
    found.push({
      itemCode,
      available,
      daysOfCover: Math.round(days * 10) / 10,
      date: dayText(start + Math.floor(days))
    })
  }
  return found.sort((a, b) => a.daysOfCover - b.daysOfCover || (a.itemCode < b.itemCode ? -1 : 1)).slice(0, limit)
}

type AccuracyRow = Awaited<ReturnType<ReturnType<typeof createForecastStore>['accuracy']>>[number]

const ratio = (errors: number | null, volume: number) =>
  errors === null || volume === 0 ? null : Math.round((errors / volume) * 10_000) / 10_000

function summarize(rows: readonly AccuracyRow[]) {
  const series = rows.reduce((sum, row) => sum + row.series, 0)
  const volume = rows.reduce((sum, row) => sum + row.volume, 0)
  const total = (of: (row: AccuracyRow) => number | null) => rows.reduce((sum, row) => sum + (of(row) ?? 0), 0)
  const mean = (of: (row: AccuracyRow) => number | null) => {
    const known = rows.filter((row) => of(row) !== null)
    return ratio(
      known.reduce((sum, row) => sum + row.series * (of(row) ?? 0), 0),
      known.reduce((sum, row) => sum + row.series, 0)
    )
  }
  return {
    series,
    wape: ratio(
      total((row) => row.errors),
      volume
    ),
    mase: mean((row) => row.mase),
    bias: ratio(
      total((row) => row.signed),
      volume
    ),
    coverage80: mean((row) => row.coverage80),
    coverage95: mean((row) => row.coverage95),
    baselineWape: ratio(
      total((row) => row.baselineErrors),
      volume
    ),
    baselineServes: rows.reduce((sum, row) => sum + row.baselineServes, 0)
  }
}

/** Accuracy of what serves now, in all and by model; of one frequency, or of both. */
export async function accuracySummary(tenant: Tenant, frequency?: Frequency): Promise<AccuracySummary> {
  const rows = await forecastsOf(tenant).accuracy(frequency)
  return {
    ...summarize(rows),
    byModel: rows.map((row) => ({
      model: row.model,
      frequency: row.frequency,
      ...summarize([row])
    }))
  }
}

/** For a dashboard: which models serve how many series, how well, and since when. */
export async function forecastHeadline(tenant: Tenant): Promise<ForecastHeadline> {
  const at = await forecastsOf(tenant).lastTrainedAt()
  return { ...(await accuracySummary(tenant)), lastTrainedAt: at === null ? null : new Date(at).toISOString() }
}

export interface ConsumptionSeries {
  itemCode: string
  /** `YYYY-MM-DD` of the first value */
  start: string
  /** net use per day */
  values: Float64Array
  /** 1 = there was no stock */
  missing: Uint8Array
}

/** A page of daily series in item order, for detectors: at most `limit`, after `afterItemCode`. */
export async function consumptionSeries(
  tenant: Tenant,
  query: { itemCodes?: readonly string[]; afterItemCode?: string; limit: number },
  now = Date.now()
): Promise<ConsumptionSeries[]> {
  const store = consumptionOf(tenant)
  const end = await store.lastDay(Math.floor(now / MILLISECONDS_PER_DAY))
  if (end === undefined) return []
  const items = await store.items(query.afterItemCode, query.limit, query.itemCodes)
  if (items.length === 0) return []
  const days = await store.days(items.map((item) => item.item_code))
  return [...days].map(([itemCode, active]) => {
    const { start, values, missing } = daily(active, end)
    return { itemCode, start: dayText(start), values, missing }
  })
}

/**
 * Days up to yesterday that are not as usual: the place was closed, something known beforehand happened, or people said that
 * they are exceptional. What is used on them is no anomaly, and no guide to other days.
 */
export async function unusualDays(
  tenant: Tenant,
  source: ConsumptionSource,
  now = Date.now()
): Promise<(itemCodes: readonly string[]) => Promise<Map<string, Set<string>>>> {
  const end = Math.floor(now / MILLISECONDS_PER_DAY) - 1
  const closures = await consumptionOf(tenant).closures(end)
  const exceptional = await createLearningStore(tenant.db, tenant.dialect).exceptional()
  const calendar = await calendarOf(tenant, dayText(end - CALENDAR_DAYS), dayText(end), [])
  return async (itemCodes) => {
    const items = await scopedItems(tenant, source, calendar, itemCodes)
    return new Map(
      [...items].map(([code, item]) => [
        code,
        new Set([...closures, ...(exceptional.get(code) ?? []), ...calendar.unusual(item, end).map(dayText)])
      ])
    )
  }
}

/** The stored series of one item, as recorded: returns show as negative days; what is not known of demand is estimated beside. */
export async function seriesOf(
  tenant: Tenant,
  source: ConsumptionSource,
  itemCode: string,
  query: SeriesQuery,
  now: number
): Promise<Series> {
  const frequency = query.frequency ?? 'day'
  const store = consumptionOf(tenant)
  const nothing: Series = { itemCode, frequency, from: null, to: null, points: [] }
  const end = await store.lastDay(Math.floor(now / MILLISECONDS_PER_DAY))
  const active = (await store.days([itemCode])).get(itemCode) ?? []
  if (end === undefined || !active.some(({ used }) => used > 0)) return nothing
  const days = daily(active, end)
  const censored = (frequency === 'week' ? weekly(days) : days).missing
  const calendar = await calendarOf(tenant, dayText(days.start), dayText(end), [])
  const item = (await scopedItems(tenant, source, calendar, [itemCode])).get(itemCode) ?? { itemCode }
  const closed = [...(await store.closures(end)).map(dayNumber), ...calendar.closed(item, end)]
  const closures = new Set(closed.map((day) => day - days.start))
  const unknown = { ...days, missing: days.missing.map((flag, i) => (closures.has(i) ? 1 : flag)) }
  const series = frequency === 'week' ? weekly(unknown) : unknown
  const step = periodDays(frequency)
  const points = Array.from(series.values, (value, i) => {
    const estimate = series.missing[i] === 1 ? estimateAt(series, i, frequency === 'day' ? 7 : 1) : null
    return {
      date: dayText(series.start + i * step),
      quantity: round(value),
      censored: censored[i] === 1,
      closed: series.missing[i] === 1 && censored[i] !== 1,
      estimatedDemand: estimate === null ? null : round(estimate)
    }
  }).filter(
    ({ date }) => (query.from === undefined || date >= query.from) && (query.to === undefined || date <= query.to)
  )
  return { ...nothing, from: points[0]?.date ?? null, to: points.at(-1)?.date ?? null, points }
}
