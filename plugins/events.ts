import type { FastifyBaseLogger } from 'fastify'
import type { CompiledQuery, Generated, Kysely } from 'kysely'
import { Counter, Gauge, type Registry } from 'prom-client'
import type { EventHandler, Events, OutboxEvent, Tenant } from './contracts.js'
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

type CoreTables = {
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
export const toOutbox = (
  db: Kysely<unknown>,
  topic: string,
  payload: unknown,
  trace: string | null
): CompiledQuery<unknown> => intoOutbox(db, { topic, payload: JSON.stringify(payload), now: Date.now(), trace })

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

  /** What can be said to a handler of several events at once. @returns those that this handler has now */
  async function deliverAll(
    tenant: Tenant,
    handler: EventHandler,
    events: readonly OutboxEvent[]
  ): Promise<Set<number>> {
    const { topic, name, handleAll } = handler
    if (handleAll === undefined) return new Set()
    const attributes = { 'inventory.handler': name, 'inventory.tenant': tenant.id, 'inventory.events': events.length }
    try {
      const span = { kind: 'consumer', attributes } as const
      const rest = new Set(await tracing.span(`events ${topic}`, span, () => handleAll(events, tenant)))
      const had = events.filter((event) => !rest.has(event))
      delivered.inc({ outcome: 'success' }, had.length)
      return new Set(had.map(({ id }) => id))
    } catch (error) {
      log.warn({ err: error, topic, handler: name, tenant: tenant.id }, 'events are handled one by one')
      return new Set()
    }
  }

  /** @returns whether every handler has it */
  async function deliver(tenant: Tenant, { row, event }: Claimed, had: Had): Promise<boolean> {
    const { id, topic, attempts, trace } = row
    for (const handler of handlers) {
      if (handler.topic !== topic || had.get(handler)?.has(id) === true) continue
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
      while (begun < rows.length && !closed) {
        const run = runOf(rows, begun).map((row) => ({ row, event: eventOf(row) }))
        const had: Had = new Map()
        if (run.length > 1)
          for (const handler of handlers)
            if (handler.topic === run[0]?.event.topic)
              had.set(
                handler,
                await deliverAll(
                  tenant,
                  handler,
                  run.map(({ event }) => event)
                )
              )
        for (const one of run) {
          if (closed) break
          begun++
          if (await deliver(tenant, one, had)) done.push(one.row.id)
        }
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

interface Claimed {
  row: OutboxRow
  event: OutboxEvent
}
/** Ids of what a handler has of a run already. */
type Had = Map<EventHandler, ReadonlySet<number>>

const eventOf = ({ id, topic, payload, created_at }: OutboxRow): OutboxEvent => ({
  id,
  topic,
  payload: JSON.parse(payload),
  createdAt: created_at
})

/** Those of one topic that follow each other: what is of another topic between them keeps its place. */
function runOf(rows: readonly OutboxRow[], from: number): readonly OutboxRow[] {
  const topic = rows[from]?.topic
  const end = rows.findIndex((row, n) => n > from && row.topic !== topic)
  return rows.slice(from, end === -1 ? rows.length : end)
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
