import type { Breather, Compute, Tenant } from '../../plugins/contracts.js'
import type { Forecast, Frequency } from '../../schemas/forecasting.js'
import type { ItemLocations } from '../../schemas/hierarchy.js'
import type { Calendar } from './calendar.js'
import { chunks, createConsumptionStore } from './consumption-store.js'
import type { ConsumptionSource } from './derive.js'
import { fitToTotal } from './models/hierarchy.js'
import { carryReturnsBack, type DemandSeries, dayNumber, dayText, fingerprint, weekly } from './series.js'
import { createForecastStore, type ForecastingTables } from './store.js'
import { pointsOf, type Shape } from './sums.js'
import type { TrainingBatch, TrainingResult, TrainingSeries } from './worker.js'

/** Forecasts of an item at each location where it is used. */

const WORKER = new URL('./worker.js', import.meta.url)
const SERIES_PER_BATCH = 16
const SERIES_PER_TRANSACTION = 2
/** Part of every data hash, as for items. */
const VERSION = 1
/** Separates an item from a location in one name; neither may hold it. */
const SEPARATOR = '\u0000'

interface Span {
  shape: Shape
  start: number
  end: number
}
interface Dependencies {
  source: ConsumptionSource
  compute: Compute
  breather: Breather
  now: () => number
}

export function createLocations({ source, compute, breather, now }: Dependencies) {
  /** Daily or weekly use of one item per location; nothing where it is used at one place only. */
  async function seriesOf(tenant: Tenant, itemCode: string, { shape, start, end }: Span, unknown: Iterable<number>) {
    const use =
      (await source.dailyUseByLocation?.(tenant, {
        itemCodes: [itemCode],
        fromDay: dayText(start),
        toDay: dayText(end)
      })) ?? []
    const first = dayText(Math.min(end, ...use.map(({ day }) => dayNumber(day))))
    const found = new Map<string, DemandSeries>()
    for (const { location, day, usedMicros } of use) {
      const length = end + 1 - dayNumber(first)
      const series = found.get(location) ?? {
        start: dayNumber(first),
        values: new Float64Array(length),
        missing: new Uint8Array(length)
      }
      series.values[dayNumber(day) - series.start]! += usedMicros / 1_000_000
      found.set(location, series)
    }
    if (found.size < 2) return []
    return [...found].map(([location, series]): [string, DemandSeries] => {
      carryReturnsBack(series.values)
      for (const day of unknown) {
        const at = day - series.start
        if (at >= 0 && at < series.missing.length) series.missing[at] = 1
      }
      return [location, shape.frequency === 'week' ? weekly(series) : series]
    })
  }

  /** Trains what changed of the named items, each at each of its locations; forgets the locations of all others. */
  return async function train(
    tenant: Tenant,
    itemCodes: readonly string[],
    span: Span,
    calendar: Calendar,
    signal: AbortSignal
  ): Promise<void> {
    if (source.dailyUseByLocation === undefined) return
    const { shape, end } = span
    const { frequency, horizon, stepDays } = shape
    const db = tenant.db.withTables<ForecastingTables>()
    const store = createForecastStore(db)
    const closures = (await createConsumptionStore(tenant.db).closures(end)).map(dayNumber)
    const categories = new Map<string, string | null>()
    for (const codes of chunks(itemCodes, 500)) {
      for (const { itemCode, category } of await source.items(tenant, { itemCodes: codes, limit: codes.length })) {
        categories.set(itemCode, category ?? null)
      }
    }
    const kept: { itemCode: string; location: string }[] = []
    let batch: TrainingSeries[] = []
    const breathe = breather()
    const send = async () => {
      const input: TrainingBatch = { series: batch, frequency, horizon, trainedAt: new Date(now()).toISOString() }
      batch = []
      const { trained } = await compute.run<TrainingBatch, TrainingResult>(WORKER, input, { signal })
      for (const part of chunks(trained, SERIES_PER_TRANSACTION)) {
        const rows = part.map(({ itemCode: name, dataHash, answer }) => {
          const [item_code = '', location = ''] = name.split(SEPARATOR)
          return { item_code, frequency, location, data_hash: dataHash, answer }
        })
        await tenant.transact((tx) => createForecastStore(tx.db.withTables<ForecastingTables>()).saveLocations(rows), {
          durability: 'relaxed'
        })
        await breathe()
      }
    }
    for (const itemCode of itemCodes) {
      signal.throwIfAborted()
      const category = categories.get(itemCode)
      if (category === undefined) continue
      const item = { itemCode, category }
      const hashes = new Map((await store.locations(itemCode, frequency)).map((row) => [row.location, row.data_hash]))
      const unknown = [...closures, ...calendar.closed(item, end)]
      for (const [location, series] of await seriesOf(tenant, itemCode, span, unknown)) {
        if (series.values.length === 0) continue
        kept.push({ itemCode, location })
        const last = series.start + series.values.length * stepDays - 1
        const known = calendar.of(item, series.start, last, last + horizon * stepDays)
        const dataHash = fingerprint(series, [
          VERSION,
          frequency,
          horizon,
          known.factors.map(({ name, days }) => [name, days]),
          known.closed
        ])
        if (hashes.get(location) === dataHash) continue
        batch.push({ itemCode: `${itemCode}${SEPARATOR}${location}`, dataHash, ...series, known })
        if (batch.length >= SERIES_PER_BATCH) await send()
      }
      await breathe()
    }
    if (batch.length > 0) await send()
    await tenant.transact(async (tx) => {
      await createForecastStore(tx.db.withTables<ForecastingTables>()).keepLocations(frequency, kept)
      tx.invalidate('forecasting')
    })
  }
}

/**
 * An item at each of its locations: forecasts made for each alone, fitted to what the item serves, so that they add up to it. What
 * is missing or too much goes to each by the variance of its errors.
 */
export function locationsOf(
  itemCode: string,
  frequency: Frequency,
  served: Forecast,
  rows: readonly { location: string; answer: string }[]
): ItemLocations {
  const alone = rows.map(({ location, answer }) => {
    const forecast: Forecast = JSON.parse(answer)
    return { location, forecast }
  })
  const variances = Float64Array.from(alone, ({ forecast }) => (forecast.accuracy.rmse ?? 0) ** 2)
  const means = served.points.map(({ date, mean }) => {
    const parts = Float64Array.from(
      alone,
      ({ forecast }) => forecast.points.find((point) => point.date === date)?.mean ?? 0
    )
    return fitToTotal(parts, variances, mean)
  })
  const first = dayNumber(served.points[0]?.date ?? dayText(0))
  const stepDays = frequency === 'week' ? 7 : 1
  return {
    itemCode,
    frequency,
    locations: alone.map(({ location, forecast }, i) => {
      const { model, trainedAt, accuracy, baseline, servesBaseline, points } = forecast
      const byDate = new Map(points.map((point) => [point.date, point]))
      const own = served.points.map(({ date }) => byDate.get(date))
      const path = (name: 'mean' | 'lower80' | 'upper80' | 'lower95' | 'upper95') =>
        own.map((point, k) => point?.[name] ?? means[k]?.[i] ?? 0)
      const around = {
        mean: path('mean'),
        lower80: path('lower80'),
        upper80: path('upper80'),
        lower95: path('lower95'),
        upper95: path('upper95')
      }
      return {
        location,
        model,
        trainedAt,
        accuracy,
        baseline,
        servesBaseline,
        points: pointsOf(
          means.map((row) => Math.round((row[i] ?? 0) * 1e6) / 1e6),
          around,
          first,
          stepDays
        )
      }
    })
  }
}
