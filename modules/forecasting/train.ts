import { availableParallelism } from 'node:os'
import type { Breather, Compute, JobContext, Tenant, Transaction } from '../../plugins/contracts.js'
import type { FactorEffect } from '../../schemas/calendar.js'
import type { Frequency, TrainRequest } from '../../schemas/forecasting.js'
import type { Calendar, Known } from './calendar.js'
import { CALENDAR_DAYS, calendarOf, scopedItems } from './calendar-store.js'
import { chunks, createConsumptionStore } from './consumption-store.js'
import type { ConsumptionSource, Derivation } from './derive.js'
import { createRealisation, forgetGone, type Realisation } from './learn.js'
import { createLearningStore } from './learning-store.js'
import type { ForecastMetrics } from './metrics.js'
import { toOverride } from './people-store.js'
import { saveTrained } from './save.js'
import { dayText, demand, fingerprint, MILLISECONDS_PER_DAY, periodDays } from './series.js'
import { createForecastStore, type ForecastingTables } from './store.js'
import type { Failure, TrainingBatch, TrainingResult, TrainingSeries } from './worker.js'

const WORKER = new URL('./worker.js', import.meta.url)
/** Part of every data hash: raise it when the engine changes, and unchanged data are trained again. */
const ENGINE_VERSION = 7
const SERIES_PER_READ = 4
const SERIES_PER_BATCH = 24
/** One transaction holds the event loop from its first statement to its last, where the database is a file. */
const SERIES_PER_TRANSACTION = 2
const ITEMS_PER_PAGE = 500
const HORIZON_DAYS = { day: 28, week: 91 } as const
const TOP_DAYS = 90
/** Bounds a series that never ends; the others of its batch are then computed again one by one. */
const SERIES_TIMEOUT_MILLISECONDS = 20_000

export interface TrainingReport {
  trained: number
  skipped: number
  failed: Failure[]
  /** figures known beforehand that were left out, and why */
  unusedRegressors: { name: string; reason: string }[]
  models: Record<string, number>
  frequency: Frequency
  horizonDays: number
  /** last day of the data, and so the day before the first forecast of a daily series */
  dataTo: string | null
  durationSeconds: number
  wape: number | null
  baselineWape: number | null
  mase: number | null
}

interface Dependencies {
  source: ConsumptionSource
  derivation: Derivation
  compute: Compute
  metrics: ForecastMetrics
  now: () => number
  breather: Breather
  observe(tenant: Tenant): Promise<void>
  /** what one series may take (20 s); a batch of several, three times as much */
  seriesTimeoutMilliseconds?: number
}

/** The job: derives what is stale, then trains what changed, in worker threads, and stores each batch as it is ready. */
export function createTraining({
  source,
  derivation,
  compute,
  metrics,
  now,
  breather,
  observe,
  seriesTimeoutMilliseconds = SERIES_TIMEOUT_MILLISECONDS
}: Dependencies) {
  const timedOut = `took longer than ${seriesTimeoutMilliseconds / 1000} s`
  async function scope(tenant: Tenant, params: TrainRequest, failed: Failure[], end: number): Promise<string[]> {
    const store = createConsumptionStore(tenant.db)
    if (params.itemCodes !== undefined) {
      const used: string[] = []
      for (const names of chunks(params.itemCodes, ITEMS_PER_PAGE)) {
        used.push(...(await store.items(undefined, names.length, names)).map((row) => row.item_code))
      }
      const existing = await derivation.existing(tenant, params.itemCodes)
      const found = new Set(used)
      for (const itemCode of params.itemCodes) {
        if (!existing.has(itemCode)) failed.push(noSuchItem(itemCode))
        else if (!found.has(itemCode)) failed.push({ itemCode, reason: 'nothing of it was ever used' })
      }
      return used.filter((itemCode) => existing.has(itemCode))
    }
    /** What was used stays on record of items that are archived. */
    const existingOf = async (itemCodes: readonly string[]) => {
      const existing = await derivation.existing(tenant, itemCodes)
      return itemCodes.filter((itemCode) => existing.has(itemCode))
    }
    const found: string[] = []
    if (params.top === undefined) {
      for (let after: string | undefined; ; ) {
        const page = (await store.items(after, ITEMS_PER_PAGE)).map((row) => row.item_code)
        found.push(...(await existingOf(page)))
        if (page.length < ITEMS_PER_PAGE) return found
        after = page.at(-1)
      }
    }
    const volumes: { item_code: string; quantity_micros: number }[] = []
    const breathe = breather()
    for (let after = ''; ; ) {
      const page = await store.volumes(dayText(end - TOP_DAYS + 1), after, 100)
      volumes.push(...page.filter((row) => row.quantity_micros > 0))
      if (page.length < 100) break
      after = page.at(-1)?.item_code ?? ''
      await breathe()
    }
    volumes.sort((a, b) => b.quantity_micros - a.quantity_micros || (a.item_code < b.item_code ? -1 : 1))
    for (const part of chunks(volumes, ITEMS_PER_PAGE)) {
      if (found.length >= params.top) break
      found.push(...(await existingOf(part.map((row) => row.item_code))))
    }
    return found.slice(0, params.top)
  }

  /** The series of some items that changed since they were trained. */
  async function changed(
    tenant: Tenant,
    itemCodes: readonly string[],
    end: number,
    run: Run,
    { realisation, calendar }: { realisation: Realisation; calendar: Calendar }
  ): Promise<TrainingSeries[]> {
    const db = tenant.db.withTables<ForecastingTables>()
    const step = periodDays(run.frequency)
    const days = await createConsumptionStore(tenant.db).days(itemCodes)
    const { closures, exceptionalOf } = await realisation.unknownDays()
    const hashes = await createForecastStore(db).hashes(itemCodes, run.frequency)
    const items = await scopedItems(tenant, source, calendar, itemCodes)
    const itemOf = (code: string) => items.get(code) ?? { itemCode: code }
    const all = new Map(
      [...days].map(([code, active]) => {
        const closed = calendar.closed(itemOf(code), end).map(dayText)
        return [code, demand(active, end, run.frequency, [...closures, ...closed], exceptionalOf(code))]
      })
    )
    const drifted = await realisation.take(all)
    const result: TrainingSeries[] = []
    for (const [itemCode, series] of all) {
      if (series.values.length === 0) {
        run.fail({ itemCode, reason: `less than one whole ${run.frequency} of history` })
        continue
      }
      const last = series.start + series.values.length * step - 1
      const known = calendar.of(itemOf(itemCode), series.start, last, last + run.horizon * step)
      run.note(known.unused)
      const isKnown = known.factors.length + known.closed.length + known.unused.length > 0
      const dataHash = fingerprint(series, isKnown ? [...run.parameters, hashable(known)] : run.parameters)
      if (hashes.get(itemCode) === dataHash && !drifted.has(itemCode)) run.skip()
      else result.push({ itemCode, dataHash, ...series, ...(isKnown ? { known } : {}) })
    }
    return result
  }

  async function runBatch(series: TrainingSeries[], run: Run): Promise<TrainingResult> {
    const input: TrainingBatch = {
      series,
      frequency: run.frequency,
      horizon: run.horizon,
      trainedAt: run.trainedAt,
      ...run.named
    }
    const limit = AbortSignal.timeout(seriesTimeoutMilliseconds * (series.length === 1 ? 1 : 3))
    try {
      return await compute.run<TrainingBatch, TrainingResult>(WORKER, input, {
        signal: AbortSignal.any([run.signal, limit])
      })
    } catch (error) {
      run.signal.throwIfAborted()
      const [only] = series
      if (series.length === 1 && only !== undefined) {
        const reason = limit.aborted ? timedOut : error instanceof Error ? error.message : String(error)
        return { trained: [], failed: [{ itemCode: only.itemCode, reason }] }
      }
      // Something took the whole worker down: one by one, so that only the one at fault is lost.
      const merged: TrainingResult = { trained: [], failed: [] }
      for (const one of series) {
        const { trained, failed } = await runBatch([one], run)
        merged.trained.push(...trained)
        merged.failed.push(...failed)
      }
      return merged
    }
  }

  async function finish(tenant: Tenant, series: TrainingSeries[], run: Run): Promise<void> {
    const { trained, failed } = await runBatch(series, run)
    run.signal.throwIfAborted()
    for (const part of chunks(trained, SERIES_PER_TRANSACTION)) {
      await run.inTurn(() => tenant.transact((tx) => save(tenant, tx, part, run), { durability: 'relaxed' }))
    }
    run.store(trained)
    for (const failure of failed) run.fail(failure)
  }

  async function save(tenant: Tenant, tx: Transaction, trained: TrainingResult['trained'], run: Run): Promise<void> {
    const { frequency, horizon, asked } = run
    const learning = createLearningStore(tx.db, tenant.dialect)
    const overridesOf = async (itemCodes: readonly string[]) =>
      new Map(
        [...(await learning.overrides(frequency, { itemCodes }))].map(([code, rows]) => [code, rows.map(toOverride)])
      )
    await saveTrained(tx, trained, { frequency, horizon, now: now(), parameters: asked, overridesOf })
    tx.invalidate('forecasting')
  }

  async function trainAll(tenant: Tenant, itemCodes: readonly string[], end: number, run: Run): Promise<void> {
    const realisation = createRealisation(tenant, run.frequency, end, { now, metrics })
    const until = end + (run.horizon + 1) * periodDays(run.frequency)
    const calendar = await calendarOf(tenant, dayText(end - CALENDAR_DAYS), dayText(until), run.asked.regressors)
    const pending = new Set<Promise<void>>()
    // One batch more than there are threads, so that none waits while the next is read.
    const window = availableParallelism() + 1
    let failure: { error: unknown } | undefined
    const send = async (series: TrainingSeries[]) => {
      while (pending.size >= window) await Promise.race(pending)
      const work: Promise<void> = finish(tenant, series, run)
        .catch((error: unknown) => {
          failure ??= { error }
        })
        .finally(() => pending.delete(work))
      pending.add(work)
    }
    let batch: TrainingSeries[] = []
    const breathe = breather()
    for (const part of chunks(itemCodes, SERIES_PER_READ)) {
      if (run.signal.aborted || failure !== undefined) break
      batch.push(...(await changed(tenant, part, end, run, { realisation, calendar })))
      if (batch.length >= SERIES_PER_BATCH) {
        await send(batch)
        batch = []
      }
      await breathe()
    }
    if (batch.length > 0 && failure === undefined && !run.signal.aborted) await send(batch)
    await Promise.all(pending)
    await realisation.end()
    run.signal.throwIfAborted()
    if (failure !== undefined) throw failure.error
  }

  return async ({ tenant, params, signal, progress }: JobContext<TrainRequest>): Promise<TrainingReport> => {
    const startedAt = performance.now()
    await derivation.catchUp(tenant, signal)
    await derivation.deriveStale(tenant, params.itemCodes, { signal, advance: () => {} })
    await forgetGone(tenant)
    const today = Math.floor(now() / MILLISECONDS_PER_DAY)
    const end = await createConsumptionStore(tenant.db).lastDay(today)
    const run = createRun(params, { signal, progress, metrics, now: now(), breather, timedOut })
    const itemCodes = await scope(tenant, params, run.failed, end ?? today - 1)
    run.expect(itemCodes.length)
    if (end !== undefined) await trainAll(tenant, itemCodes, end, run)
    await observe(tenant)
    metrics.ended(now())
    return run.report(end === undefined ? null : dayText(end), (performance.now() - startedAt) / 1000)
  }
}

/** Of an item that was named and is not there, or no more. */
export const noSuchItem = (itemCode: string): Failure => ({ itemCode, reason: 'there is no such item' })

/** Periods that a training asked for in this way forecasts. */
export const horizonOf = ({ frequency = 'day', horizonDays = HORIZON_DAYS[frequency] }: TrainRequest): number =>
  Math.ceil(horizonDays / periodDays(frequency))

const hashable = ({ factors, closed, unused }: Known) => [
  factors.map(({ values, ...factor }) => ({ ...factor, values: values && Array.from(values) })),
  closed,
  unused
]

type Run = ReturnType<typeof createRun>

/** What one training run counts. */
function createRun(
  params: TrainRequest,
  {
    signal,
    progress,
    metrics,
    now,
    breather,
    timedOut
  }: Pick<JobContext<unknown>, 'signal' | 'progress'> & {
    metrics: ForecastMetrics
    now: number
    breather: Breather
    /** the reason of a series that took too long */
    timedOut: string
  }
) {
  const frequency = params.frequency ?? 'day'
  const horizon = horizonOf(params)
  const failed: Failure[] = []
  const models: Record<string, number> = {}
  const incomplete = new Map<string, string>()
  const sums = { errors: 0, baselineErrors: 0, volume: 0, mase: 0, maseCount: 0 }
  let trained = 0
  let skipped = 0
  let done = 0
  let total = 0
  let last: Promise<unknown> = Promise.resolve()
  const step = (count = 1) => {
    done += count
    progress(done, total)
  }
  return {
    /** One after the other, and between them the requests: batches that are ready together would keep several connections busy. */
    inTurn<R>(work: () => Promise<R>): Promise<R> {
      const breathes = last.then(breather)
      const result = last.then(work)
      last = Promise.allSettled([breathes, result]).then(async () => (await breathes)())
      return result
    },
    frequency,
    horizon,
    signal,
    failed,
    trainedAt: new Date(now).toISOString(),
    named: params.models === undefined ? {} : { models: params.models },
    /** What the nightly training asks for again. */
    asked: {
      ...(params.models === undefined ? {} : { models: params.models }),
      ...(params.horizonDays === undefined ? {} : { horizonDays: params.horizonDays }),
      ...(params.regressors === undefined ? {} : { regressors: params.regressors })
    },
    parameters: [ENGINE_VERSION, frequency, horizon, params.models ?? null],
    expect(count: number) {
      total = count
      progress(0, total)
    },
    /** Figures that apply and are not complete, each once. */
    note(unused: readonly FactorEffect[]) {
      for (const { name, part, reason } of unused)
        if (part === 'figure' && reason !== null) incomplete.set(name, reason)
    },
    skip() {
      skipped++
      metrics.skipped(1)
      step()
    },
    fail(failure: Failure) {
      failed.push(failure)
      metrics.failed(failure.reason === timedOut ? 'timeout' : 'failure')
      step()
    },
    store(all: TrainingResult['trained']) {
      for (const { model, accuracy, volume, baselineWape, durationSeconds } of all) {
        models[model] = (models[model] ?? 0) + 1
        metrics.trained(model, durationSeconds)
        sums.volume += volume
        sums.errors += (volume * (accuracy.wape ?? 0)) / 100
        sums.baselineErrors += (volume * (baselineWape ?? 0)) / 100
        if (accuracy.mase !== null) {
          sums.mase += accuracy.mase
          sums.maseCount++
        }
      }
      trained += all.length
      step(all.length)
    },
    report(dataTo: string | null, durationSeconds: number): TrainingReport {
      const percent = (errors: number) => (sums.volume === 0 ? null : Math.round((errors / sums.volume) * 10_000) / 100)
      return {
        trained,
        skipped,
        failed,
        unusedRegressors: [...incomplete].map(([name, reason]) => ({ name, reason })),
        models,
        frequency,
        horizonDays: horizon * periodDays(frequency),
        dataTo,
        durationSeconds: Math.round(durationSeconds * 1000) / 1000,
        wape: percent(sums.errors),
        baselineWape: percent(sums.baselineErrors),
        mase: sums.maseCount === 0 ? null : Math.round((sums.mase / sums.maseCount) * 10_000) / 10_000
      }
    }
  }
}
