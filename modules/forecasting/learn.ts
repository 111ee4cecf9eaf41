import { setImmediate as turn } from 'node:timers/promises'
import { v7 as uuid } from 'uuid'
import type { Tenant, Transaction } from '../../plugins/contracts.js'
import type { Frequency } from '../../schemas/forecasting.js'
import { createConsumptionStore } from './consumption-store.js'
import { createLearningStore, type DriftRow, type ItemOutcome } from './learning-store.js'
import type { ForecastMetrics } from './metrics.js'
import { biasAlarm, findDrift } from './models/drift.js'
import { outcomesOf } from './outcomes.js'
import { toOverride } from './people-store.js'
import { type DemandSeries, dayNumber, dayText, periodDays } from './series.js'

/** Outcomes of single items are kept this long; their sums per period and model are kept for good. */
export const OUTCOME_DAYS = 120
/** What was recorded late (returns, corrections, imports) still counts within this time. */
export const LATE_DAYS = 28
/** Periods that an alarm of bias looks at. */
export const BIAS_PERIODS = 28
const OUTCOMES_PER_TRANSACTION = 300
/** What was found can be found again from what is stored. */
const RELAXED = { durability: 'relaxed' } as const

/** Where the data end earlier than they did, as after an undone import, what was measured on the days that are gone goes too. */
export async function forgetGone(tenant: Tenant): Promise<void> {
  // As the data are, whatever the clock says: a clock that is wrong for a while must cost no history.
  const last = (await createConsumptionStore(tenant.db).lastDay(Number.POSITIVE_INFINITY)) ?? 0
  for (const frequency of ['day', 'week'] as const) {
    const lastPeriod = dayText(last + 1 - periodDays(frequency))
    const some = () =>
      tenant.transact(async (tx) => {
        const store = createLearningStore(tx.db, tenant.dialect)
        const gone = await store.forgetAfter(frequency, lastPeriod, dayText(last + 1))
        if (gone > 0) tx.invalidate('forecasting')
        return gone
      }, RELAXED)
    while ((await some()) > 0) await turn()
  }
}

/**
 * Compares what was served with what happened, item by item as a run reads them, and notes which series have drifted. What
 * it writes is written in transactions of some hundred items; a run that ends before leaves nothing half done, because what
 * is not stored yet is found again by the next.
 */
export function createRealisation(
  tenant: Tenant,
  frequency: Frequency,
  end: number,
  { now, metrics }: { now: () => number; metrics: ForecastMetrics }
) {
  const reading = createLearningStore(tenant.db, tenant.dialect)
  const writing = (tx: Transaction) => createLearningStore(tx.db, tenant.dialect)
  const step = periodDays(frequency)
  const since = dayText(end - OUTCOME_DAYS)
  const late = dayText(end - LATE_DAYS * step)
  /** What people and earlier runs said, read once: there is little of it. */
  const prepare = async () => ({
    exceptional: await reading.exceptional(),
    closures: await createConsumptionStore(tenant.db).closures(end),
    overrides: await reading.overrides(frequency, { since }),
    drifted: await reading.lastDrifts(frequency, since),
    waiting: await reading.waiting(frequency)
  })
  let prepared: ReturnType<typeof prepare> | undefined
  const known = () => {
    prepared ??= prepare()
    return prepared
  }
  let outcomes: ItemOutcome[] = []
  let over: { itemCode: string; before: string }[] = []
  let drifts: DriftRow[] = []

  async function flush(): Promise<void> {
    if (outcomes.length === 0 && over.length === 0 && drifts.length === 0) return
    const [stored, forgotten, found] = [outcomes, over, drifts]
    outcomes = []
    over = []
    drifts = []
    await tenant.transact(async (tx) => {
      const store = writing(tx)
      await store.saveOutcomes(stored, frequency)
      await store.markPeriods(frequency, [...new Set(stored.map(({ period }) => period))])
      for (const before of new Set(forgotten.map((one) => one.before))) {
        const codes = forgotten.flatMap((one) => (one.before === before ? [one.itemCode] : []))
        await store.forgetServed(codes, frequency, before)
      }
      for (const drift of found) await store.addDrift(drift)
      tx.invalidate('forecasting')
      tx.afterCommit(() => {
        for (const { kind } of found) metrics.drifted(kind)
      })
    }, RELAXED)
  }

  /** New outcomes, and those of the last weeks whose actual value was corrected. */
  function changes(known: readonly ItemOutcome[], computed: readonly ItemOutcome[], actual: DemandSeries) {
    const periods = new Set(known.map(({ period }) => period))
    const fresh = computed.filter(({ period }) => !periods.has(period))
    const corrected = known.flatMap((one) => {
      const at = (dayNumber(one.period) - actual.start) / step
      const value = actual.values[at]
      if (one.period < late || value === undefined) return []
      const counts = actual.missing[at] !== 1
      return value === one.actual && counts === one.counts ? [] : [{ ...one, actual: value, counts }]
    })
    return { fresh, corrected }
  }

  /** Notes the first alarm since the last one, if there is any. What a person had said beforehand is no drift. */
  function drift(itemCode: string, history: readonly ItemOutcome[], after: string): boolean {
    const counted = history.filter(({ period, counts }) => counts && period > after)
    const found = findDrift(counted.map((one) => ({ error: one.actual - one.mean, mae: one.mae, rmse: one.rmse })))
    const recent = counted.slice(-BIAS_PERIODS)
    const side = biasAlarm(
      Float64Array.from(recent, (one) => one.mean - one.actual),
      recent.reduce((sum, { actual }) => sum + Math.abs(actual), 0)
    )
    const alarm =
      found ?? (side === 0 ? undefined : { kind: side > 0 ? ('bias-high' as const) : ('bias-low' as const), at: -1 })
    const period = alarm && counted.at(alarm.at)?.period
    if (alarm === undefined || period === undefined) return false
    drifts.push({
      id: uuid(),
      item_code: itemCode,
      frequency,
      detected_on: period,
      kind: alarm.kind,
      statistic: Math.round(('statistic' in alarm ? alarm.statistic : side * recent.length) * 1000) / 1000,
      detected_at: now(),
      retrained_at: null
    })
    return true
  }

  return {
    /** Days that say nothing of demand: the place was closed, or people said so of an item. */
    async unknownDays() {
      const { closures, exceptional } = await known()
      return { closures, exceptionalOf: (itemCode: string): Iterable<string> => exceptional.get(itemCode) ?? [] }
    },

    /** @returns the items whose series have drifted and wait to be trained again */
    async take(series: ReadonlyMap<string, DemandSeries>): Promise<Set<string>> {
      const { overrides, drifted, waiting } = await known()
      const codes = [...series.keys()]
      const served = await reading.served(codes, frequency)
      if (served.size === 0) return waiting
      const stored = await reading.outcomes(codes, frequency, since)
      for (const [itemCode, paths] of served) {
        const actual = series.get(itemCode)
        if (actual === undefined) continue
        const computed = outcomesOf(paths, actual, frequency, (overrides.get(itemCode) ?? []).map(toOverride))
          .filter(({ period }) => period >= since)
          .map((one) => ({ itemCode, ...one }))
        const before = stored.get(itemCode) ?? []
        const { fresh, corrected } = changes(before, computed, actual)
        outcomes.push(...fresh, ...corrected)
        const newest = paths.at(-1)?.firstDay
        if (paths.length > 1 && newest !== undefined) over.push({ itemCode, before: newest })
        if (fresh.length === 0) continue
        if (drift(itemCode, [...before, ...fresh], drifted.get(itemCode) ?? '')) waiting.add(itemCode)
      }
      // A drift is stored before the training that it causes, which then says that it was.
      if (drifts.length > 0 || outcomes.length >= OUTCOMES_PER_TRANSACTION) await flush()
      return waiting
    },

    /** Stores the rest, sums the periods that changed, and forgets what is old, all in steps short enough for the event loop. */
    async end(): Promise<void> {
      await flush()
      for (const { period, mark } of await reading.markedPeriods(frequency)) {
        const sums = await reading.sumPeriod(frequency, period, turn)
        await tenant.transact(async (tx) => {
          await writing(tx).replaceAccuracy(frequency, period, sums, mark)
          tx.invalidate('forecasting')
        }, RELAXED)
      }
      while (await tenant.transact((tx) => writing(tx).forgetOutcomes(since), RELAXED)) await turn()
    }
  }
}
export type Realisation = ReturnType<typeof createRealisation>
