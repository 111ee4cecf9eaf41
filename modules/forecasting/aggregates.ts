import type { Breather, Compute, JobContext, Tenant } from '../../plugins/contracts.js'
import type { Calendar, ScopedItem } from './calendar.js'
import { CALENDAR_DAYS, calendarOf } from './calendar-store.js'
import { chunks, createConsumptionStore } from './consumption-store.js'
import type { ConsumptionSource } from './derive.js'
import type { BaseBatch, BaseForecast, BaseSeries } from './hierarchy-worker.js'
import { createLearningStore } from './learning-store.js'
import { createLocations } from './locations.js'
import type { Hierarchy } from './models/hierarchy.js'
import { ownTexts, reconciledForecast } from './overrides.js'
import { toOverride } from './people-store.js'
import {
  addTo,
  type DemandSeries,
  dayNumber,
  dayText,
  demand,
  emptySeries,
  MILLISECONDS_PER_DAY,
  mondayOnOrBefore,
  since
} from './series.js'
import { createForecastStore, type ForecastingTables } from './store.js'
import {
  answersOf,
  type Bottom,
  meansFrom,
  onwards,
  originsOf,
  recentOf,
  SHAPES,
  type Shape,
  shareOf,
  sumAgain
} from './sums.js'
import type { Agreed, SumsTask } from './sums-worker.js'

/**
 * Forecasts of categories, locations and everything. What items serve is the truth, and a sum is the sum of that: where MinT did
 * better than bottom-up on the back-test, items serve the figures that it reconciled.
 */

const WORKER = new URL('./hierarchy-worker.js', import.meta.url)
const SUMS_WORKER = new URL('./sums-worker.js', import.meta.url)
/** Items with a series of their own in the hierarchy, most used first; the others of a category are one series. */
const ITEMS_MAX = 200
const ITEMS_PER_READ = 4
const SERIES_PER_BATCH = 8
const VOLUME_DAYS = 90
const RELAXED = { durability: 'relaxed' } as const
export const NO_CATEGORY = ''

/** A bottom series with the items it is made of. */
interface Part extends Bottom {
  itemCodes: string[]
  /** what its items' own models say together, as far as all of them go; undefined where one of them says nothing of these periods */
  own: number[] | undefined
}
interface Span {
  shape: Shape
  start: number
  /** last day of the data that are looked at: the end of a whole period */
  end: number
  /** first day of the first period to come */
  first: number
}
interface Dependencies {
  source: ConsumptionSource
  compute: Compute
  breather: Breather
  now: () => number
}

interface Steps {
  signal: AbortSignal
  /** Tells how many series were forecast, of how many. */
  advance(series: number, all: number): void
}

/** As far as both go. */
const add = (a: number[] | undefined, b: number[] | undefined) =>
  a && b && a.slice(0, b.length).map((value, k) => value + b[k]!)

export function createAggregation({ source, compute, breather, now }: Dependencies) {
  const storesOf = (tenant: Tenant) => {
    const db = tenant.db.withTables<ForecastingTables>()
    const learning = createLearningStore(tenant.db, tenant.dialect)
    return { consumption: createConsumptionStore(tenant.db), forecasts: createForecastStore(db), learning }
  }
  const trainLocations = createLocations({ source, compute, breather, now })

  /** Every item, with its category. */
  async function categoriesOf(tenant: Tenant): Promise<Map<string, string>> {
    const found = new Map<string, string>()
    for (let after: string | undefined; ; ) {
      const page = await source.items(tenant, { limit: 500, ...(after === undefined ? {} : { afterItemCode: after }) })
      for (const { itemCode, category } of page) found.set(itemCode, category ?? NO_CATEGORY)
      if (page.length < 500) return found
      after = page.at(-1)?.itemCode
    }
  }

  async function mostUsed(tenant: Tenant, end: number): Promise<string[]> {
    const { consumption } = storesOf(tenant)
    const volumes: { item_code: string; quantity_micros: number }[] = []
    const breathe = breather()
    for (let after = ''; ; ) {
      const page = await consumption.volumes(dayText(end - VOLUME_DAYS), after, 100)
      volumes.push(...page)
      if (page.length < 100) break
      after = page.at(-1)?.item_code ?? ''
      await breathe()
    }
    volumes.sort((a, b) => b.quantity_micros - a.quantity_micros || (a.item_code < b.item_code ? -1 : 1))
    return volumes.slice(0, ITEMS_MAX).map(({ item_code }) => item_code)
  }

  /** What the models of items say of the periods from `first` on, without what people or sums made of it; or what is served. */
  async function meansOf(
    tenant: Tenant,
    itemCodes: readonly string[],
    shape: Shape,
    first: number,
    which: 'own' | 'served'
  ) {
    const rows = await storesOf(tenant).forecasts.rows(itemCodes, shape.frequency)
    const found = new Map<string, number[]>()
    for (const { item_code, answer, model_answer } of rows) {
      const means = meansFrom(JSON.parse(which === 'own' ? (model_answer ?? answer) : answer), first, shape.horizon)
      if (means !== undefined) found.set(item_code, means)
    }
    return found
  }

  /** The bottom series: the most used items, and for each category the sum of its others. */
  async function partsOf(tenant: Tenant, span: Span, calendar: Calendar, signal: AbortSignal): Promise<Part[]> {
    const { consumption, learning } = storesOf(tenant)
    const { shape, start, end, first } = span
    const categories = await categoriesOf(tenant)
    const top = new Set(await mostUsed(tenant, end))
    const closures = await consumption.closures(end)
    const exceptional = await learning.exceptional()
    const parts: Part[] = []
    const rests = new Map<string, Part>()
    const breathe = breather()
    for (const codes of chunks([...categories.keys()], ITEMS_PER_READ)) {
      signal.throwIfAborted()
      const own = await meansOf(tenant, codes, shape, first, 'own')
      for (const [code, days] of await consumption.days(codes)) {
        if (!days.some(({ used }) => used > 0)) continue
        const category = categories.get(code) ?? NO_CATEGORY
        const closed = calendar.closed({ itemCode: code, category }, end).map(dayText)
        const series = demand(days, end, shape.frequency, [...closures, ...closed], exceptional.get(code))
        if (top.has(code)) {
          const cut = since(series, start, shape.stepDays)
          parts.push({ level: 'item', key: code, category, series: cut, own: own.get(code), itemCodes: [code] })
          continue
        }
        const rest = rests.get(category) ?? {
          level: 'rest' as const,
          key: category,
          category,
          series: emptySeries(start, (end + 1 - start) / shape.stepDays),
          own: new Array<number>(shape.horizon).fill(0),
          itemCodes: []
        }
        addTo(rest.series, series, shape.stepDays)
        rest.own = add(rest.own, own.get(code))
        rest.itemCodes.push(code)
        rests.set(category, rest)
      }
      await breathe()
    }
    return [...parts, ...rests.values()]
  }

  async function usedAtLocations(tenant: Tenant, { shape, end }: Span, first: number, signal: AbortSignal) {
    const found = new Map<string, DemandSeries>()
    if (source.dailyUseByLocation === undefined) return found
    const periods = (end + 1 - first) / shape.stepDays
    const breathe = breather()
    for (const part of chunks([...(await categoriesOf(tenant)).keys()], ITEMS_PER_READ)) {
      signal.throwIfAborted()
      const query = { itemCodes: part, fromDay: dayText(first), toDay: dayText(end) }
      for (const { location, day, usedMicros } of await source.dailyUseByLocation(tenant, query)) {
        const series = found.get(location) ?? emptySeries(first, periods)
        series.values[Math.floor((dayNumber(day) - first) / shape.stepDays)]! += usedMicros / 1_000_000
        found.set(location, series)
      }
      await breathe()
    }
    for (const { values } of found.values()) for (let i = 0; i < values.length; i++) values[i] = Math.max(0, values[i]!)
    return found
  }

  async function baseForecasts(
    series: BaseSeries[],
    shape: Shape,
    { signal, advance }: Steps
  ): Promise<BaseForecast[]> {
    const { frequency, horizon } = shape
    const parts = await Promise.all(
      chunks(series, SERIES_PER_BATCH).map(async (part) => {
        const made = await compute.run<BaseBatch, BaseForecast[]>(
          WORKER,
          { series: part, frequency, horizon, origins: originsOf(shape) },
          { signal }
        )
        advance(part.length, series.length)
        return made
      })
    )
    return parts.flat()
  }

  /** Items serve what agrees with the sums, or their model's figures where sums are made from the bottom (`agreed` undefined). */
  async function serve(
    tenant: Tenant,
    shape: Shape,
    parts: readonly Part[],
    agreed: number[][] | undefined,
    first: number,
    signal: AbortSignal
  ) {
    const breathe = breather()
    for (const [i, part] of parts.entries()) {
      for (const codes of chunks(part.itemCodes, ITEMS_PER_READ)) {
        signal.throwIfAborted()
        const rows = (await storesOf(tenant).forecasts.rows(codes, shape.frequency)).filter(
          ({ reconciled }) => agreed !== undefined || reconciled !== null
        )
        await breathe()
        if (rows.length === 0) continue
        await tenant.transact(async (tx) => {
          const store = createForecastStore(tx.db.withTables<ForecastingTables>())
          const learning = createLearningStore(tx.db, tenant.dialect)
          const overrides = await learning.overrides(shape.frequency, { itemCodes: codes })
          for (const row of rows) {
            const model = ownTexts(row)
            const means = shareOf(part, agreed?.[i], meansFrom(JSON.parse(model.answer), first, shape.horizon))
            const reconciled = means === undefined ? null : { firstDay: dayText(first), means }
            if (reconciled === null && row.reconciled === null) continue
            if (!(await store.serve(row, reconciled, (overrides.get(row.item_code) ?? []).map(toOverride)))) continue
            const { answer } = reconciled === null ? model : reconciledForecast(model, reconciled)
            await learning.serveOtherwise(row.item_code, shape.frequency, JSON.parse(answer))
          }
          tx.invalidate('forecasting')
        }, RELAXED)
        await breathe()
      }
    }
  }

  function spanOf(shape: Shape, last: number): Span {
    const end = shape.frequency === 'week' ? mondayOnOrBefore(last + 1) - 1 : last
    return { shape, start: end + 1 - shape.history * shape.stepDays, end, first: end + 1 }
  }

  async function trainOne(tenant: Tenant, span: Span, calendar: Calendar, steps: Steps): Promise<number> {
    const { signal } = steps
    const { shape, end, first } = span
    const { stepDays, horizon, frequency } = shape
    const parts = (await partsOf(tenant, span, calendar, signal)).filter(({ series }) => series.values.length > 0)
    if (parts.length === 0) return 0
    const begin = Math.max(span.start, Math.min(...parts.map(({ series }) => firstUse(series, stepDays))))
    const categories = [...new Set(parts.map(({ category }) => category))].sort()
    const indexesOf = (name: string) => parts.flatMap(({ category }, i) => (category === name ? [i] : []))
    const hierarchy: Hierarchy = {
      members: [parts.map((_, i) => i), ...categories.map(indexesOf)],
      bottoms: parts.length
    }
    const sums = hierarchy.members.map((indexes) => {
      const sum = emptySeries(begin, (end + 1 - begin) / stepDays)
      for (const i of indexes) addTo(sum, parts[i]!.series, stepDays)
      return sum
    })
    const locations = [...(await usedAtLocations(tenant, span, begin, signal))].sort(([a], [b]) => (a < b ? -1 : 1))
    const known = (series: DemandSeries, item: ScopedItem) => ({
      ...series,
      known: calendar.of(item, series.start, end, end + horizon * stepDays)
    })
    const everything = (category?: string): ScopedItem => ({ itemCode: '', category: category ?? null })
    const base = await baseForecasts(
      [
        ...sums.map((series, a) => ({ ...known(series, everything(categories[a - 1])), ahead: true })),
        ...parts.map(({ series, own, key, category, level }) => ({
          ...known(series, level === 'item' ? { itemCode: key, category } : everything(category)),
          ahead: own === undefined || own.length < horizon
        })),
        ...locations.map(([, series]) => ({ ...known(series, everything()), ahead: true }))
      ],
      shape,
      steps
    )
    const m = sums.length
    const n = m + parts.length
    const all = [...sums, ...parts.map(({ series }) => series)]
    const ahead = (i: number): number[] => onwards(i < m ? undefined : parts[i - m]?.own, base[i]?.ahead?.mean ?? [])
    const { method, backTest, agreed } = await compute.run<SumsTask, Agreed>(
      SUMS_WORKER,
      {
        hierarchy,
        all: all.map((series) => recentOf(series, shape)),
        base: base.slice(0, n).map(({ past }) => ({ past })),
        periods: (end + 1 - begin) / stepDays,
        shape,
        made: all.map((_, i) => ahead(i))
      },
      { signal }
    )
    await serve(tenant, shape, parts, agreed, first, signal)
    const paths: number[][] = []
    for (const [i, part] of parts.entries()) {
      const served = await servedBy(tenant, shape, part.itemCodes, first, signal)
      paths.push(onwards(served, agreed?.[i] ?? ahead(m + i)))
    }
    const answers = answersOf({
      shape,
      bottoms: parts,
      paths,
      categories,
      base,
      locations: locations.flatMap(([location, series], i) => {
        const own = base[n + i]
        return own === undefined ? [] : [{ location, series, base: own }]
      }),
      first,
      method,
      backTest,
      trainedAt: new Date(now()).toISOString(),
      dataTo: dayText(end)
    })
    await tenant.transact(async (tx) => {
      await createForecastStore(tx.db.withTables<ForecastingTables>()).replaceAggregates(frequency, answers)
      tx.invalidate('forecasting')
    })
    return answers.length
  }

  /** What items serve together, as far as all of them go; undefined where one of them serves nothing of these periods. */
  async function servedBy(
    tenant: Tenant,
    shape: Shape,
    itemCodes: readonly string[],
    first: number,
    signal: AbortSignal
  ) {
    let sum: number[] | undefined = new Array<number>(shape.horizon).fill(0)
    const breathe = breather()
    for (const codes of chunks(itemCodes, 2 * ITEMS_PER_READ)) {
      signal.throwIfAborted()
      const served = await meansOf(tenant, codes, shape, first, 'served')
      for (const code of codes) sum = add(sum, served.get(code))
      if (sum === undefined) return undefined
      await breathe()
    }
    return sum
  }

  return {
    /** Trains all sums of a tenant, by day and by week, and the most used items at each location; answers how many sums. */
    async train(
      tenant: Tenant,
      signal: AbortSignal,
      progress: JobContext<unknown>['progress'] = () => {}
    ): Promise<number> {
      const last = await storesOf(tenant).consumption.lastDay(Math.floor(now() / MILLISECONDS_PER_DAY))
      if (last === undefined) return 0
      let count = 0
      let before = 0
      const shapes = Object.values(SHAPES)
      for (const [i, shape] of shapes.entries()) {
        let done = 0
        const advance = (series: number, all: number) => {
          done += series
          progress(before + done, before + all * (shapes.length - i))
        }
        const span = spanOf(shape, last)
        const until = dayText(span.end + shape.horizon * shape.stepDays)
        const calendar = await calendarOf(tenant, dayText(span.end - CALENDAR_DAYS), until)
        count += await trainOne(tenant, span, calendar, { signal, advance })
        await trainLocations(tenant, await mostUsed(tenant, span.end), span, calendar, signal)
        before += done
      }
      return count
    },

    /** Adds up again what items serve now, where there are sums. */
    async refresh(tenant: Tenant, signal: AbortSignal): Promise<void> {
      const { forecasts } = storesOf(tenant)
      for (const shape of Object.values(SHAPES)) {
        const stored = await forecasts.aggregates(shape.frequency)
        const start = stored[0]?.points[0]?.date
        if (start === undefined) continue
        const rests = new Map<string, string[]>()
        const single = new Set(
          stored.flatMap(({ children }) => children.flatMap(({ level, key }) => (level === 'item' ? [key] : [])))
        )
        for (const [code, category] of await categoriesOf(tenant)) {
          if (!single.has(code)) rests.set(category, [...(rests.get(category) ?? []), code])
        }
        const served = new Map<string, number[] | undefined>()
        for (const { level, key, children } of stored) {
          if (level !== 'category') continue
          for (const child of children) {
            const codes = child.level === 'item' ? [child.key] : await usedOf(tenant, rests.get(key) ?? [])
            served.set(`${child.level} ${child.key}`, await servedBy(tenant, shape, codes, dayNumber(start), signal))
          }
        }
        const again = sumAgain(stored, ({ level, key }) => served.get(`${level} ${key}`))
        await tenant.transact(async (tx) => {
          const store = createForecastStore(tx.db.withTables<ForecastingTables>())
          // Sums that were trained meanwhile are newer than what was read.
          const total = await store.aggregate(shape.frequency, 'total', '')
          if (total === undefined || JSON.parse(total.answer).trainedAt !== stored[0]?.trainedAt) return
          await store.replaceAggregates(shape.frequency, again)
          tx.invalidate('forecasting')
        })
      }
    }
  }

  /** Those of which anything was ever used. */
  async function usedOf(tenant: Tenant, itemCodes: readonly string[]): Promise<string[]> {
    const found: string[] = []
    for (const codes of chunks(itemCodes, 500)) {
      const rows = await storesOf(tenant).consumption.items(undefined, codes.length, codes)
      found.push(...rows.map(({ item_code }) => item_code))
    }
    return found
  }
}
export type Aggregation = ReturnType<typeof createAggregation>

const firstUse = ({ start, values }: DemandSeries, stepDays: number) =>
  start +
  stepDays *
    Math.max(
      0,
      values.findIndex((value) => value > 0)
    )
