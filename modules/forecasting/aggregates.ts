import { setImmediate as turn } from 'node:timers/promises'
import type { Compute, Tenant } from '../../plugins/contracts.js'
import type { Forecast } from '../../schemas/forecasting.js'
import type { Aggregate } from '../../schemas/hierarchy.js'
import { chunks, createConsumptionStore } from './consumption-store.js'
import type { ConsumptionSource } from './derive.js'
import type { BaseBatch, BaseForecast, BaseSeries } from './hierarchy-worker.js'
import { bottomUp, type Errors, fitToTotal, type Hierarchy, minTrace, shrinkage } from './models/hierarchy.js'
import { moved } from './outcomes.js'
import { type DemandSeries, dayNumber, dayText, demand, MILLISECONDS_PER_DAY } from './series.js'
import { createForecastStore, type ForecastingTables } from './store.js'

/** Forecasts of categories, locations and everything, coherent with each other and with the items they are the sum of. */

const WORKER = new URL('./hierarchy-worker.js', import.meta.url)
const HORIZON_DAYS = 28
/** Origins of the back-test: the earlier one teaches the covariance, the later one judges. */
const ORIGINS = [2 * HORIZON_DAYS, HORIZON_DAYS]
const HISTORY_DAYS = 730
const HISTORY_DAYS_MIN = 2 * HORIZON_DAYS + 28
/** Items with a series of their own in the hierarchy, most used first; the others of a category are one series. */
const ITEMS_MAX = 200
const ITEMS_PER_READ = 8
const SERIES_PER_BATCH = 8
const MICROS = 1_000_000

export const NO_CATEGORY = ''
type Child = Aggregate['children'][number]

interface Bottom {
  level: Child['level']
  key: string
  category: string
  series: DemandSeries
  /** what its items serve, or undefined where one of them serves nothing for these days */
  served: Float64Array | undefined
}
interface Dependencies {
  source: ConsumptionSource
  compute: Compute
  now: () => number
}

const emptySeries = (start: number, end: number): DemandSeries => ({
  start,
  values: new Float64Array(end - start + 1),
  missing: new Uint8Array(end - start + 1)
})
function addTo(sum: DemandSeries, { start, values }: DemandSeries): void {
  for (let i = 0; i < values.length; i++) {
    const at = start + i - sum.start
    if (at >= 0 && at < sum.values.length) sum.values[at]! += values[i]!
  }
}
function windowed(series: DemandSeries, start: number, end: number): DemandSeries {
  const found = emptySeries(Math.max(start, Math.min(series.start, end)), end)
  for (let i = 0; i < series.values.length; i++) {
    const at = series.start + i - found.start
    if (at < 0 || at >= found.values.length) continue
    found.values[at] = series.values[i]!
    found.missing[at] = series.missing[i]!
  }
  return found
}

export function createAggregation({ source, compute, now }: Dependencies) {
  const storesOf = (tenant: Tenant) => {
    const db = tenant.db.withTables<ForecastingTables>()
    return { consumption: createConsumptionStore(db, tenant.dialect), forecasts: createForecastStore(db) }
  }

  /** Every item that was ever used, with its category. */
  async function categoriesOf(tenant: Tenant): Promise<Map<string, string>> {
    const found = new Map<string, string>()
    for (let after: string | undefined; ; ) {
      const page = await source.items(tenant, { limit: 500, ...(after === undefined ? {} : { afterItemCode: after }) })
      for (const { itemCode, category } of page) found.set(itemCode, category ?? NO_CATEGORY)
      if (page.length < 500) return found
      after = page.at(-1)?.itemCode
    }
  }

  async function mostUsed(tenant: Tenant, end: number): Promise<Set<string>> {
    const { consumption } = storesOf(tenant)
    const volumes: { item_code: string; quantity_micros: number }[] = []
    for (let after = ''; ; ) {
      const page = await consumption.volumes(dayText(end - 90), after, 100)
      volumes.push(...page)
      if (page.length < 100) break
      after = page.at(-1)?.item_code ?? ''
      await turn()
    }
    volumes.sort((a, b) => b.quantity_micros - a.quantity_micros || (a.item_code < b.item_code ? -1 : 1))
    return new Set(volumes.slice(0, ITEMS_MAX).map(({ item_code }) => item_code))
  }

  /** What items serve for the days after `end`. */
  async function servedOf(tenant: Tenant, itemCodes: readonly string[], end: number) {
    const found = new Map<string, Float64Array>()
    for (const { item_code, frequency, answer } of await storesOf(tenant).forecasts.answers(itemCodes)) {
      if (frequency !== 'day') continue
      const { points }: Forecast = JSON.parse(answer)
      const skip = end + 1 - dayNumber(points[0]?.date ?? dayText(0))
      const means = points.slice(Math.max(0, skip), skip + HORIZON_DAYS).map(({ mean }) => mean)
      if (skip >= 0 && means.length === HORIZON_DAYS) found.set(item_code, Float64Array.from(means))
    }
    return found
  }

  /** The bottom series: the most used items, and for each category the sum of its others. */
  async function bottomsOf(tenant: Tenant, start: number, end: number, signal: AbortSignal): Promise<Bottom[]> {
    const { consumption } = storesOf(tenant)
    const categories = await categoriesOf(tenant)
    const top = await mostUsed(tenant, end)
    const closures = await consumption.closures(end)
    const bottoms: Bottom[] = []
    const rests = new Map<string, Bottom>()
    for (const codes of chunks([...categories.keys()], ITEMS_PER_READ)) {
      signal.throwIfAborted()
      const served = await servedOf(tenant, codes, end)
      for (const [code, days] of await consumption.days(codes)) {
        if (!days.some(({ used }) => used > 0)) continue
        const category = categories.get(code) ?? NO_CATEGORY
        const series = demand(days, end, 'day', closures)
        if (top.has(code)) {
          const path = served.get(code)
          bottoms.push({ level: 'item', key: code, category, series: windowed(series, start, end), served: path })
          continue
        }
        const rest = rests.get(category) ?? {
          level: 'rest' as const,
          key: category,
          category,
          series: emptySeries(start, end),
          served: new Float64Array(HORIZON_DAYS)
        }
        addTo(rest.series, series)
        const path = served.get(code)
        rest.served = path && rest.served?.map((value, k) => value + path[k]!)
        rests.set(category, rest)
      }
      await turn()
    }
    return [...bottoms, ...rests.values()]
  }

  async function locationsOf(tenant: Tenant, start: number, end: number, signal: AbortSignal) {
    const found = new Map<string, DemandSeries>()
    if (source.dailyUseByLocation === undefined) return found
    const codes = [...(await categoriesOf(tenant)).keys()]
    for (const part of chunks(codes, ITEMS_PER_READ)) {
      signal.throwIfAborted()
      const query = { itemCodes: part, fromDay: dayText(start), toDay: dayText(end) }
      for (const { location, day, usedMicros } of await source.dailyUseByLocation(tenant, query)) {
        const series = found.get(location) ?? emptySeries(start, end)
        series.values[dayNumber(day) - start]! += usedMicros / MICROS
        found.set(location, series)
      }
      await turn()
    }
    const sums = [...found].map(([location, series]): [string, DemandSeries] => [
      location,
      { ...series, values: series.values.map((value) => Math.max(0, value)) }
    ])
    return new Map(sums)
  }

  async function baseForecasts(series: BaseSeries[], signal: AbortSignal): Promise<BaseForecast[]> {
    const parts = await Promise.all(
      chunks(series, SERIES_PER_BATCH).map((part) =>
        compute.run<BaseBatch, BaseForecast[]>(
          WORKER,
          { series: part, horizon: HORIZON_DAYS, origins: ORIGINS },
          { signal }
        )
      )
    )
    return parts.flat()
  }

  /** Trains all aggregates of a tenant and stores their forecasts; answers how many. */
  return async function train(tenant: Tenant, signal: AbortSignal): Promise<number> {
    const { consumption } = storesOf(tenant)
    const end = await consumption.lastDay(Math.floor(now() / MILLISECONDS_PER_DAY))
    if (end === undefined) return 0
    const start = end - HISTORY_DAYS + 1
    const bottoms = await bottomsOf(tenant, start, end, signal)
    if (bottoms.length === 0) return 0
    const first = Math.max(start, Math.min(...bottoms.map(({ series }) => firstUse(series))))
    const categories = [...new Set(bottoms.map(({ category }) => category))].sort()
    const members = [bottoms.map((_, i) => i), ...categories.map((name) => indexesOf(bottoms, name))]
    const hierarchy: Hierarchy = { members, bottoms: bottoms.length }
    const sums = members.map((indexes) => {
      const sum = emptySeries(first, end)
      for (const i of indexes) addTo(sum, bottoms[i]!.series)
      return sum
    })
    const locations = [...(await locationsOf(tenant, first, end, signal))].sort(([a], [b]) => (a < b ? -1 : 1))
    const base = await baseForecasts(
      [
        ...sums.map((series) => ({ ...series, ahead: true })),
        ...bottoms.map(({ series, served }) => ({ ...series, ahead: served === undefined })),
        ...locations.map(([, series]) => ({ ...series, ahead: true }))
      ],
      signal
    )
    const all = [...sums, ...bottoms.map(({ series }) => series)]
    const chosen = choose(hierarchy, all, base.slice(0, all.length), end - first + 1)
    const answers = answersOf({ hierarchy, bottoms, categories, locations, base, chosen, end, at: now() })
    await tenant.transact(async (tx) => {
      await createForecastStore(tx.db.withTables<ForecastingTables>()).replaceAggregates(answers)
      tx.invalidate('forecasting')
    })
    return answers.length
  }
}
export type Aggregation = ReturnType<typeof createAggregation>

const firstUse = ({ start, values }: DemandSeries) =>
  start +
  Math.max(
    0,
    values.findIndex((value) => value > 0)
  )
const indexesOf = (bottoms: readonly Bottom[], category: string) =>
  bottoms.flatMap((bottom, i) => (bottom.category === category ? [i] : []))

/** Errors of the forecasts made from an origin, a row per period. */
function errorsAt(all: readonly DemandSeries[], base: readonly BaseForecast[], origin: number): Float64Array[] {
  return Array.from({ length: HORIZON_DAYS }, (_, k) =>
    Float64Array.from(all, ({ values }, i) => {
      const actual = values[values.length - (ORIGINS[origin] ?? 0) + k] ?? 0
      return actual - (base[i]?.past[origin]?.[k] ?? 0)
    })
  )
}

interface Chosen extends Pick<Aggregate, 'method' | 'backTest'> {
  errors: Errors
}

/** Bottom-up or MinT: whichever erred less on the sums over the last 28 days, from what was known before them. */
function choose(
  hierarchy: Hierarchy,
  all: readonly DemandSeries[],
  base: readonly BaseForecast[],
  days: number
): Chosen {
  const earlier = errorsAt(all, base, 0)
  const later = errorsAt(all, base, 1)
  const errors = [...earlier, ...later]
  const { lambda } = shrinkage(errors)
  const none = { baseWape: null, bottomUpWape: null, mintWape: null, shrinkage: lambda }
  if (days < HISTORY_DAYS_MIN) return { method: 'bottom-up', backTest: none, errors }
  const learnt = shrinkage(earlier)
  const sums = { base: 0, bottomUp: 0, mint: 0, actual: 0 }
  for (let k = 0; k < HORIZON_DAYS; k++) {
    const made = Float64Array.from(base, ({ past }) => past[1]?.[k] ?? 0)
    const up = bottomUp(hierarchy, made)
    const mint = minTrace(hierarchy, made, earlier, learnt)
    for (let a = 0; a < hierarchy.members.length; a++) {
      const actual = made[a]! + later[k]![a]!
      sums.actual += Math.abs(actual)
      sums.base += Math.abs(actual - made[a]!)
      sums.bottomUp += Math.abs(actual - up[a]!)
      sums.mint += Math.abs(actual - mint[a]!)
    }
  }
  const wape = (sum: number) => (sums.actual > 0 ? Math.round((1_000_000 * sum) / sums.actual) / 10_000 : null)
  return {
    method: sums.mint < sums.bottomUp ? 'mint' : 'bottom-up',
    backTest: {
      baseWape: wape(sums.base),
      bottomUpWape: wape(sums.bottomUp),
      mintWape: wape(sums.mint),
      shrinkage: Math.round(lambda * MICROS) / MICROS
    },
    errors
  }
}

interface Answering {
  hierarchy: Hierarchy
  bottoms: readonly Bottom[]
  categories: readonly string[]
  locations: readonly (readonly [string, DemandSeries])[]
  base: readonly BaseForecast[]
  chosen: Chosen
  end: number
  at: number
}

const round = (value: number) => Math.round(value * MICROS) / MICROS

/** The answers of all aggregates, from the total down; their children add up to them. */
function answersOf({ hierarchy, bottoms, categories, locations, base, chosen, end, at }: Answering): Aggregate[] {
  const m = hierarchy.members.length
  const n = m + bottoms.length
  const learnt = shrinkage(chosen.errors)
  const means = Array.from({ length: HORIZON_DAYS }, (_, k) => {
    const made = Float64Array.from({ length: n }, (_, i) =>
      i < m ? (base[i]?.ahead?.mean[k] ?? 0) : (bottoms[i - m]?.served?.[k] ?? base[i]?.ahead?.mean[k] ?? 0)
    )
    const found =
      chosen.method === 'mint' ? minTrace(hierarchy, made, chosen.errors, learnt) : bottomUp(hierarchy, made)
    // Rounded at the bottom and summed again, so that what is answered adds up as well.
    return bottomUp(hierarchy, found.map(round)).map(round)
  })
  const shared = {
    frequency: 'day' as const,
    method: chosen.method,
    backTest: chosen.backTest,
    trainedAt: new Date(at).toISOString(),
    dataTo: dayText(end)
  }
  const pathAt = (i: number) => means.map((row) => row[i] ?? 0)
  const pointsOf = (path: readonly number[], own: BaseForecast | undefined): Aggregate['points'] =>
    path.map((mean, k) => {
      const made = own?.ahead?.mean[k] ?? mean
      const bound = (value: number | undefined) => round(Math.max(0, moved(value ?? made, made, mean)))
      const { lower80, upper80, lower95, upper95 } = own?.ahead ?? {}
      return {
        date: dayText(end + 1 + k),
        mean,
        lower80: bound(lower80?.[k]),
        upper80: bound(upper80?.[k]),
        lower95: bound(lower95?.[k]),
        upper95: bound(upper95?.[k])
      }
    })
  const child = (level: Child['level'], key: string, path: number[]): Child => ({ level, key, means: path })
  const total: Aggregate = {
    ...shared,
    level: 'total',
    key: '',
    points: pointsOf(pathAt(0), base[0]),
    children: categories.map((name, c) => child('category', name, pathAt(1 + c)))
  }
  const ofCategories = categories.map(
    (name, c): Aggregate => ({
      ...shared,
      level: 'category',
      key: name,
      points: pointsOf(pathAt(1 + c), base[1 + c]),
      children: (hierarchy.members[1 + c] ?? []).flatMap((i) => {
        const bottom = bottoms[i]
        return bottom === undefined ? [] : [child(bottom.level, bottom.key, pathAt(m + i))]
      })
    })
  )
  const bases = base.slice(n)
  const variances = Float64Array.from(locations, ([, series], i) => {
    const own = bases[i]
    if (own === undefined) return 0
    return errorsAt([series], [own], 1).reduce((sum, row) => sum + (row[0] ?? 0) ** 2, 0) / HORIZON_DAYS
  })
  const parts = means.map((row, k) =>
    fitToTotal(
      Float64Array.from(bases, ({ ahead }) => ahead?.mean[k] ?? 0),
      variances,
      row[0] ?? 0
    ).map(round)
  )
  const ofLocations = locations.map(
    ([location], i): Aggregate => ({
      ...shared,
      level: 'location',
      key: location,
      points: pointsOf(
        parts.map((row) => row[i] ?? 0),
        bases[i]
      ),
      children: []
    })
  )
  return [total, ...ofCategories, ...ofLocations]
}
