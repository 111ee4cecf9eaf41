import type { FastifyBaseLogger } from 'fastify'
import type { Generated, Kysely } from 'kysely'
import { Counter, Gauge, type Registry } from 'prom-client'
import type { EventHandler, Events, Tenant } from './contracts.js'
import { prepared } from './prepared.js'
import type { Tracing } from './telemetry/tracing.js'

type OutboxTable = {
  id: Generated<number>
  topic: string
  payload: string
  created_at: number
  claimed_until: number
  attempts: number
  trace: string | null
}

export type CoreTables = {
  outbox: OutboxTable
}

const BATCH = 100
/** Longer than any handler takes: a claim that runs out is taken over, here or by another node. */
const CLAIM_MILLISECONDS = 60_000
/** After this many failures an event stays in the outbox, out of the way, for a person to look at. */
const ATTEMPTS_MAX = 10
const NEVER = Number.MAX_SAFE_INTEGER
/** A power cut that takes it delivers again; what the handlers have done comes before it, and so is never lost alone. */
const RELAXED = { durability: 'relaxed' } as const

const intoOutbox = prepared<{ topic: string; payload: string; now: number; trace: string | null }, unknown>(
  (db, slot) =>
    db
      .withTables<CoreTables>()
      .insertInto('outbox')
      .values({
        topic: slot('topic'),
        payload: slot('payload'),
        created_at: slot('now'),
        claimed_until: 0,
        attempts: 0,
        trace: slot('trace')
      })
)

/** `trace`: the `traceparent` of what made it true. */
export async function appendToOutbox(
  db: Kysely<unknown>,
  topic: string,
  payload: unknown,
  trace: string | null
): Promise<void> {
  await db.executeQuery(intoOutbox(db, { topic, payload: JSON.stringify(payload), now: Date.now(), trace }))
}

export interface EventService extends Events {
  /** Delivers what the tenant's outbox holds, soon and in the background. */
  wake(tenant: Tenant): void
  /** The same, and waits for it: who looks after a thousand tenants must not ask for all of them at once. */
  sweep(tenant: Tenant): Promise<void>
  /** Counts for the metrics what the tenant's outbox holds. */
  count(tenant: Tenant): Promise<void>
  /** Resolves when nothing is being delivered. */
  idle(): Promise<void>
  /** Waits for the event that is being delivered; what else is there waits for the next start, or for another node. */
  close(): Promise<void>
}

interface EventsOptions {
  log: FastifyBaseLogger
  registry: Registry
  tracing: Tracing
}

/** The outbox: written in the caller's transaction, delivered after commit, at least once, oldest first. */
export function createEvents({ log, registry, tracing }: EventsOptions): EventService {
  const handlers: EventHandler[] = []
  const delivering = new Map<string, Promise<void>>()
  const wanted = new Set<string>()
  let closed = false
  const delivered = new Counter({
    name: 'event_deliveries_total',
    help: 'Outbox events handed to subscribers, by outcome.',
    labelNames: ['outcome'] as const,
    registers: [registry]
  })
  for (const outcome of ['success', 'failure'] as const) delivered.inc({ outcome }, 0)
  const count = outboxMetrics(registry)

  /** @returns whether every handler has it */
  async function deliver(tenant: Tenant, row: OutboxRow): Promise<boolean> {
    const { id, topic, payload, created_at, attempts, trace } = row
    const event = { id, topic, payload: JSON.parse(payload), createdAt: created_at }
    for (const handler of handlers) {
      if (handler.topic !== topic) continue
      try {
        const attributes = { 'inventory.handler': handler.name, 'inventory.tenant': tenant.id }
        const span = { kind: 'consumer', parent: trace, attributes } as const
        await tracing.span(`event ${topic}`, span, () => handler.handle(event, tenant))
        delivered.inc({ outcome: 'success' })
      } catch (error) {
        delivered.inc({ outcome: 'failure' })
        log.error({ err: error, topic, handler: handler.name, event: id, tenant: tenant.id }, 'event handler failed')
        await postpone(tenant, id, attempts + 1)
        return false
      }
    }
    return true
  }

  async function drain(tenant: Tenant): Promise<void> {
    while (!closed) {
      const rows = await claim(tenant)
      const done: number[] = []
      let begun = 0
      // A batch may take longer than a process that ends has left.
      for (; begun < rows.length && !closed; begun++) {
        const row = rows[begun]
        if (row !== undefined && (await deliver(tenant, row))) done.push(row.id)
      }
      await forget(tenant, done)
      await giveBack(tenant, rows.slice(begun))
      if (rows.length < BATCH && !wanted.delete(tenant.id)) return
    }
  }

  function wake(tenant: Tenant): void {
    if (closed) return
    if (delivering.has(tenant.id)) {
      wanted.add(tenant.id)
      return
    }
    // Not part of the request that wakes it: it delivers what others published, too.
    const run = tracing
      .detached(() => drain(tenant))
      .catch((error) => log.error({ err: error, tenant: tenant.id }, 'outbox could not be read'))
      .finally(() => delivering.delete(tenant.id))
    delivering.set(tenant.id, run)
  }

  async function sweep(tenant: Tenant): Promise<void> {
    // Asking costs a quarter of claiming, and mostly there is nothing.
    if (!(await isAnyDue(tenant))) return
    wake(tenant)
    await delivering.get(tenant.id)
  }

  return {
    subscribe: (handler) => void handlers.push(handler),
    wake,
    sweep,
    count,
    idle: async () => {
      while (delivering.size > 0) await Promise.all(delivering.values())
    },
    close: async () => {
      closed = true
      await Promise.all(delivering.values())
    }
  }
}

/** As last counted, all tenants. The same rows are counted by every node: a query over nodes takes the maximum. */
function outboxMetrics(registry: Registry) {
  const found = new Map<string, { waiting: number; given_up: number; oldest: number }>()
  const sum = (of: 'waiting' | 'given_up') => [...found.values()].reduce((total, each) => total + each[of], 0)
  new Gauge({
    name: 'event_outbox_events',
    help: 'Events in the outbox, all tenants, as last counted: those that wait, and those given up, which a person has to look at.',
    labelNames: ['state'] as const,
    registers: [registry],
    collect() {
      this.set({ state: 'waiting' }, sum('waiting'))
      this.set({ state: 'given_up' }, sum('given_up'))
    }
  })
  new Gauge({
    name: 'event_outbox_oldest_age_seconds',
    help: 'Age of the oldest event that waits, as last counted.',
    registers: [registry],
    collect() {
      const now = Date.now()
      const oldest = Math.min(now, ...[...found.values()].map((each) => each.oldest))
      this.set((now - oldest) / 1000)
    }
  })
  return async (tenant: Tenant): Promise<void> => {
    const { waiting, given_up, oldest } = await tenant.db
      .withTables<CoreTables>()
      .selectFrom('outbox')
      .select(({ fn }) => [
        fn.countAll<number>().filterWhere('claimed_until', '<', NEVER).as('waiting'),
        fn.countAll<number>().filterWhere('claimed_until', '=', NEVER).as('given_up'),
        fn.min('created_at').filterWhere('claimed_until', '<', NEVER).as('oldest')
      ])
      .executeTakeFirstOrThrow()
    found.set(tenant.id, { waiting, given_up, oldest: oldest ?? Number.POSITIVE_INFINITY })
  }
}

interface OutboxRow {
  id: number
  topic: string
  payload: string
  created_at: number
  attempts: number
  trace: string | null
}

const isAnyDue = async ({ db }: Tenant): Promise<boolean> => {
  const due = db.withTables<CoreTables>().selectFrom('outbox').select('id').where('claimed_until', '<=', Date.now())
  return (await due.limit(1).execute()).length > 0
}

/** Takes a batch for this process; `skip locked` lets several nodes share one outbox without waiting for each other. */
const claim = (tenant: Tenant): Promise<OutboxRow[]> =>
  tenant.transact(async (tx) => {
    const db = tx.db.withTables<CoreTables>()
    const now = Date.now()
    const due = db.selectFrom('outbox').select('id').where('claimed_until', '<=', now).orderBy('id').limit(BATCH)
    const ids = await (tenant.dialect === 'postgres' ? due.forUpdate().skipLocked() : due).execute()
    if (ids.length === 0) return []
    const rows = await db
      .updateTable('outbox')
      .set({ claimed_until: now + CLAIM_MILLISECONDS })
      .where(
        'id',
        'in',
        ids.map(({ id }) => id)
      )
      .returning(['id', 'topic', 'payload', 'created_at', 'attempts', 'trace'])
      .execute()
    return rows.sort((a, b) => a.id - b.id)
  }, RELAXED)

/** Together: a commit for each would cost as much as what it tells of. */
async function forget(tenant: Tenant, ids: readonly number[]): Promise<void> {
  if (ids.length === 0) return
  await tenant.transact(
    ({ db }) => db.withTables<CoreTables>().deleteFrom('outbox').where('id', 'in', ids).execute(),
    RELAXED
  )
}

/** What was claimed and not begun: the next start or another node goes on at once. */
async function giveBack(tenant: Tenant, rows: readonly OutboxRow[]): Promise<void> {
  if (rows.length === 0) return
  const ids = rows.map(({ id }) => id)
  await tenant.transact(({ db }) =>
    db.withTables<CoreTables>().updateTable('outbox').set({ claimed_until: 0 }).where('id', 'in', ids).execute()
  )
}

const postpone = (tenant: Tenant, id: number, attempts: number) =>
  tenant.transact(({ db }) =>
    db
      .withTables<CoreTables>()
      .updateTable('outbox')
      .set({ attempts, claimed_until: attempts >= ATTEMPTS_MAX ? NEVER : Date.now() + 1000 * 2 ** attempts })
      .where('id', '=', id)
      .execute()
  )
