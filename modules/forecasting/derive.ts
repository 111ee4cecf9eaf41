import { randomUUID } from 'node:crypto'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import type { Breather, Tenant } from '../../plugins/contracts.js'
import {
  type ConsumptionTables,
  chunks,
  createConsumptionStore,
  replaceDays,
  type Stale,
  settle
} from './consumption-store.js'

/** The read port that a host fills from its ledger. Quantities in micros, days `YYYY-MM-DD` in UTC. */
export interface ConsumptionSource {
  /** Items in code order, after `afterItemCode`, at most `limit`; only the named ones when `itemCodes` is given. */
  items(
    tenant: Tenant,
    query: { itemCodes?: readonly string[]; afterItemCode?: string; limit: number }
  ): Promise<{ itemCode: string; name: string; category?: string | null }[]>
  /**
   * Net movement per item and day, only days with movements, ordered by item, then day. `usedMicros`: issues less returns,
   * reversals netted to the day they belong to. `changeMicros`: net change of stock on hand.
   */
  dailyFlow(
    tenant: Tenant,
    query: { itemCodes: readonly string[]; fromDay?: string; toDay?: string }
  ): Promise<DailyFlow[]>
  /** Use of the named items together, per location and day; without it there are no forecasts of locations. */
  dailyUseByLocation?(
    tenant: Tenant,
    query: { itemCodes: readonly string[]; fromDay?: string; toDay?: string }
  ): Promise<{ location: string; day: string; usedMicros: number }[]>
}
export interface DailyFlow {
  itemCode: string
  day: string
  usedMicros: number
  changeMicros: number
}

export const BARRIER_TOPIC = 'forecasting.consumption.barrier'
const BARRIER_WAIT_MILLISECONDS = 5_000
const BARRIER_POLL_MILLISECONDS = 15
const ITEMS_PER_PAGE = 500
/** What one step may take of the event loop; as long again is left to requests before the next. */
const STEP_MILLISECONDS = 2.5
const STEP_ITEMS_MAX = 400
const STEP_ITEMS_FIRST = 4
/** What is derived can be derived again. */
const RELAXED = { durability: 'relaxed' } as const

interface Step {
  signal: AbortSignal
  /** items done since the last call */
  advance(items: number): void
}

type Row = ConsumptionTables['consumption_data']

/** Stored days from daily flows; `opening` is the stock before the first of them. */
export function toRows(flows: readonly DailyFlow[], openings: ReadonlyMap<string, number>): Row[] {
  let item: string | undefined
  let stock = 0
  return flows.map(({ itemCode, day, usedMicros, changeMicros }) => {
    if (itemCode !== item) stock = openings.get(itemCode) ?? 0
    const known = item === itemCode || openings.has(itemCode)
    item = itemCode
    // Below nil the record is wrong (issues dated before their receipt), which is no evidence of an empty shelf.
    const censored = known && stock === 0 && usedMicros === 0 && changeMicros <= 0
    stock += changeMicros
    return { item_code: itemCode, day, quantity_micros: usedMicros, closing_micros: stock, censored: censored ? 1 : 0 }
  })
}

/** Derivations of one tenant take turns here: an older reading of the ledger must not overwrite a newer one. */
const turns = new Map<string, Promise<unknown>>()
function inTurn<R>(tenant: string, work: () => Promise<R>): Promise<R> {
  const result = (turns.get(tenant) ?? Promise.resolve()).then(work)
  const settled = result
    .catch(() => {})
    .then(() => {
      if (turns.get(tenant) === settled) turns.delete(tenant)
    })
  turns.set(tenant, settled)
  return result
}

/** Keeps consumption in step with the ledger, in steps short enough for the event loop. */
export function createDerivation(source: ConsumptionSource, now: () => number, breather: Breather) {
  const storeOf = (tenant: Tenant) => createConsumptionStore(tenant.db)

  async function deriveStep(tenant: Tenant, itemCodes: readonly string[], fromDay: string | undefined, stale: Stale[]) {
    const flows = await source.dailyFlow(tenant, { itemCodes, ...(fromDay === undefined ? {} : { fromDay }) })
    const openings = fromDay === undefined ? new Map() : await storeOf(tenant).closings(itemCodes, fromDay)
    const rows = toRows(flows, openings)
    await turn()
    await tenant.transact(async (tx) => {
      await replaceDays(tx, itemCodes, fromDay, rows, now())
      await settle(tx, stale)
      tx.invalidate('forecasting')
    }, RELAXED)
  }

  /** Steps of as many items as fit the time a step may take, learnt from the steps before. */
  async function inSteps<T>(all: readonly T[], step: Step, work: (part: T[]) => Promise<void>): Promise<void> {
    let size = STEP_ITEMS_FIRST
    const breathe = breather()
    for (let at = 0; at < all.length; ) {
      step.signal.throwIfAborted()
      const part = all.slice(at, at + size)
      const startedAt = performance.now()
      await work(part)
      const elapsed = performance.now() - startedAt
      size = Math.max(1, Math.min(STEP_ITEMS_MAX, Math.round((size * Math.min(2, STEP_MILLISECONDS / elapsed)) | 0)))
      at += part.length
      step.advance(part.length)
      await breathe()
    }
  }

  /** Reads the named items again from `fromDay` on; an item that was never derived is read from its beginning. */
  async function deriveItems(tenant: Tenant, itemCodes: readonly string[], fromDay: string | undefined, step: Step) {
    const store = storeOf(tenant)
    const known = fromDay === undefined ? new Set<string>() : await store.derived(itemCodes)
    // What changed meanwhile before the day that is read from stays noted.
    const derive = (from: string | undefined) => async (part: string[]) =>
      deriveStep(
        tenant,
        part,
        from,
        (await store.stale(part)).filter(({ from_day }) => from === undefined || from_day >= from)
      )
    await inSteps(
      itemCodes.filter((code) => !known.has(code)),
      step,
      derive(undefined)
    )
    if (known.size > 0) {
      const parts = itemCodes.filter((code) => known.has(code))
      // What changed before `fromDay` would leave a wrong opening stock: such items are read from where they changed.
      const earlier = new Map((await store.stale(parts)).map((stale) => [stale.item_code, stale.from_day]))
      const [from] = [...earlier.values(), ...(fromDay === undefined ? [] : [fromDay])].sort()
      await inSteps(parts, step, derive(from))
    }
  }

  async function* pages(tenant: Tenant, signal: AbortSignal) {
    for (let after: string | undefined; ; ) {
      signal.throwIfAborted()
      const query = after === undefined ? {} : { afterItemCode: after }
      const page = await source.items(tenant, { ...query, limit: ITEMS_PER_PAGE })
      if (page.length > 0) yield page.map(({ itemCode }) => itemCode)
      if (page.length < ITEMS_PER_PAGE) return
      after = page.at(-1)?.itemCode
    }
  }

  return {
    /** Which of the named items exist. */
    async existing(tenant: Tenant, itemCodes: readonly string[]): Promise<Set<string>> {
      const found = new Set<string>()
      for (const names of chunks(itemCodes, ITEMS_PER_PAGE)) {
        for (const { itemCode } of await source.items(tenant, { itemCodes: names, limit: names.length }))
          found.add(itemCode)
      }
      return found
    },

    /** Waits until the changes published so far have been noted: events come in order, and this one last. */
    async catchUp(tenant: Tenant, signal: AbortSignal): Promise<boolean> {
      const id = randomUUID()
      await tenant.transact((tx) => tx.publish(BARRIER_TOPIC, { id }))
      const deadline = performance.now() + BARRIER_WAIT_MILLISECONDS
      while (!(await storeOf(tenant).hasBarrier(id))) {
        signal.throwIfAborted()
        if (performance.now() > deadline) return false
        await sleep(BARRIER_POLL_MILLISECONDS)
      }
      await tenant.transact((tx) => createConsumptionStore(tx.db).takeBarrier(id))
      return true
    },

    /** Reads the ledger again, whatever is known of its changes. */
    deriveAgain: (tenant: Tenant, query: { itemCodes?: readonly string[]; from?: string }, step: Step): Promise<void> =>
      inTurn(tenant.id, async () => {
        if (query.itemCodes !== undefined) return deriveItems(tenant, query.itemCodes, query.from, step)
        for await (const codes of pages(tenant, step.signal)) await deriveItems(tenant, codes, query.from, step)
      }),

    /** Derives only what changed since, and what never was. */
    deriveStale: (tenant: Tenant, itemCodes: readonly string[] | undefined, step: Step): Promise<void> =>
      inTurn(tenant.id, async () => {
        const store = storeOf(tenant)
        const fresh = async (codes: readonly string[]) => {
          const known = await store.derived(codes)
          await deriveItems(
            tenant,
            codes.filter((code) => !known.has(code)),
            undefined,
            step
          )
        }
        if (itemCodes !== undefined) await fresh(itemCodes)
        else for await (const codes of pages(tenant, step.signal)) await fresh(codes)
        await inSteps(await store.stale(itemCodes), step, (part) =>
          deriveStep(
            tenant,
            part.map(({ item_code }) => item_code),
            part[0]?.from_day,
            part
          )
        )
      })
  }
}

export type Derivation = ReturnType<typeof createDerivation>
