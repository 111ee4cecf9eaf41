import type { Kysely, Selectable } from 'kysely'
import { v7 as uuid } from 'uuid'
import type { Dialect } from '../../plugins/contracts.js'
import type {
  AttemptOutcome,
  Delivery,
  DeliveryDetail,
  DeliveryStatus,
  DisabledReason,
  Webhook,
  WebhookTopic
} from '../../schemas/webhooks.js'
import { LIFE } from './retry.js'

type WebhookRow = {
  id: string
  url: string
  topics: string
  description: string | null
  secret: string
  previous_secret: string | null
  previous_until: number | null
  disabled_reason: DisabledReason | null
  failures: number
  failing_since: number | null
  created_at: number
  updated_at: number
}
type DeliveryRow = {
  id: string
  webhook_id: string
  message_id: string
  topic: string
  body: string
  status: DeliveryStatus
  attempts: number
  due_at: number | null
  claim: string | null
  expires_at: number
  created_at: number
  finished_at: number | null
  trace: string | null
}
type AttemptRow = {
  id: string
  delivery_id: string
  at: number
  outcome: AttemptOutcome
  http_status: number | null
  detail: string | null
  duration_ms: number
}
type WebhookTables = {
  webhooks: WebhookRow
  webhook_deliveries: DeliveryRow
  webhook_attempts: AttemptRow
}
export type StoredWebhook = Selectable<WebhookRow>
export type StoredSecrets = Pick<StoredWebhook, 'secret' | 'previous_secret' | 'previous_until'>
export type StoredDelivery = Selectable<DeliveryRow>

export const NAMESPACE = 'webhooks'

export interface Message {
  readonly id: string
  readonly topic: string
  readonly body: string
  /** The `traceparent` of what it tells of. */
  readonly trace?: string | null
}

const instantOf = (at: number) => new Date(at).toISOString()
const instantOrNull = (at: number | null) => (at === null ? null : instantOf(at))

export const toWebhook = (row: StoredWebhook): Webhook => ({
  id: row.id,
  url: row.url,
  topics: topicsOf(row),
  description: row.description,
  active: row.disabled_reason === null,
  disabledReason: row.disabled_reason,
  failingSince: instantOrNull(row.failing_since),
  previousSecretUntil: instantOrNull(row.previous_until),
  createdAt: instantOf(row.created_at),
  updatedAt: instantOf(row.updated_at)
})
const topicsOf = ({ topics }: Pick<WebhookRow, 'topics'>): WebhookTopic[] => JSON.parse(topics)

export const toDelivery = (row: StoredDelivery): Delivery => ({
  id: row.id,
  webhookId: row.webhook_id,
  messageId: row.message_id,
  topic: row.topic,
  status: row.status,
  attempts: row.attempts,
  nextAttemptAt: instantOrNull(row.due_at),
  createdAt: instantOf(row.created_at),
  finishedAt: instantOrNull(row.finished_at)
})

/** Webhooks themselves. A transaction's `db` is a Kysely too: inside one, build a second store on it. */
export function createWebhookStore(database: Kysely<unknown>) {
  const db = database.withTables<WebhookTables>()
  return {
    count: async (): Promise<number> => {
      const { total } = await db
        .selectFrom('webhooks')
        .select(({ fn }) => fn.countAll<number>().as('total'))
        .executeTakeFirstOrThrow()
      return total
    },

    /** Those that are served, and those that are not any more. */
    counts: async (): Promise<{ active: number; disabled: number }> => {
      const { total, disabled } = await db
        .selectFrom('webhooks')
        .select(({ fn }) => [fn.countAll<number>().as('total'), fn.count<number>('disabled_reason').as('disabled')])
        .executeTakeFirstOrThrow()
      return { active: total - disabled, disabled }
    },

    page: (limit: number, after: string | undefined): Promise<StoredWebhook[]> => {
      const query = db.selectFrom('webhooks').selectAll().orderBy('id').limit(limit)
      return (after === undefined ? query : query.where('id', '>', after)).execute()
    },

    find: (id: string): Promise<StoredWebhook | undefined> =>
      db.selectFrom('webhooks').selectAll().where('id', '=', id).executeTakeFirst(),

    insert: (row: StoredWebhook): Promise<StoredWebhook> =>
      db.insertInto('webhooks').values(row).returningAll().executeTakeFirstOrThrow(),

    update: (id: string, changes: Partial<Omit<WebhookRow, 'id'>>): Promise<StoredWebhook | undefined> =>
      db.updateTable('webhooks').set(changes).where('id', '=', id).returningAll().executeTakeFirst(),

    remove: async (id: string): Promise<void> => {
      await db.deleteFrom('webhooks').where('id', '=', id).execute()
    },

    /** The active ones that want a topic. */
    subscribers: async (topic: string): Promise<string[]> => {
      const rows = await db
        .selectFrom('webhooks')
        .select(['id', 'topics'])
        .where('disabled_reason', 'is', null)
        .execute()
      return rows.filter((row) => topicsOf(row).some((each) => each === topic)).map(({ id }) => id)
    },

    /** Counts a failure, and answers how the webhook stands after it. */
    failed: (id: string, now: number): Promise<StoredWebhook | undefined> =>
      db
        .updateTable('webhooks')
        .set(({ eb, fn, val }) => ({
          failures: eb('failures', '+', 1),
          failing_since: fn.coalesce('failing_since', val(now))
        }))
        .where('id', '=', id)
        .returningAll()
        .executeTakeFirst(),

    /** Whether it had failed before. */
    succeeded: async (id: string): Promise<boolean> => {
      const row = await db
        .updateTable('webhooks')
        .set({ failures: 0, failing_since: null })
        .where('id', '=', id)
        .where('failures', '>', 0)
        .returning('id')
        .executeTakeFirst()
      return row !== undefined
    },

    secrets: (): Promise<(Pick<StoredWebhook, 'id'> & StoredSecrets)[]> =>
      db.selectFrom('webhooks').select(['id', 'secret', 'previous_secret', 'previous_until']).execute(),

    /** Does nothing when they were rotated meanwhile. */
    replaceSecrets: async (id: string, before: string, secrets: StoredSecrets): Promise<void> => {
      await db.updateTable('webhooks').set(secrets).where('id', '=', id).where('secret', '=', before).execute()
    }
  }
}

const anew = (now: number) =>
  ({ status: 'pending', attempts: 0, due_at: now, expires_at: now + LIFE, finished_at: null }) as const

/** What is sent, to whom, and what became of it. */
export function createDeliveryStore(database: Kysely<unknown>, dialect: Dialect) {
  const db = database.withTables<WebhookTables>()
  return {
    /** The same message to the same webhook is stored once. */
    enqueue: async (webhookIds: readonly string[], message: Message, now: number): Promise<StoredDelivery[]> =>
      db
        .insertInto('webhook_deliveries')
        .values(
          webhookIds.map((webhookId) => ({
            id: uuid(),
            webhook_id: webhookId,
            message_id: message.id,
            topic: message.topic,
            body: message.body,
            status: 'pending' as const,
            attempts: 0,
            due_at: now,
            claim: null,
            expires_at: now + LIFE,
            created_at: now,
            finished_at: null,
            trace: message.trace ?? null
          }))
        )
        .onConflict((conflict) => conflict.columns(['webhook_id', 'message_id']).doNothing())
        .returningAll()
        .execute(),

    /** Active webhooks that have something to be sent now. */
    due: async (now: number): Promise<string[]> => {
      const rows = await db
        .selectFrom('webhooks as w')
        .select('w.id')
        .where('w.disabled_reason', 'is', null)
        .where(({ exists, selectFrom }) =>
          exists(
            selectFrom('webhook_deliveries as d')
              .select('d.id')
              .whereRef('d.webhook_id', '=', 'w.id')
              .where('d.due_at', '<=', now)
          )
        )
        .execute()
      return rows.map(({ id }) => id)
    },

    /** Takes up to `limit` for this process until `until`; another process passes over what is taken. */
    claim: async (webhookId: string, limit: number, now: number, until: number): Promise<StoredDelivery[]> => {
      const due = db
        .selectFrom('webhook_deliveries')
        .select('id')
        .where('webhook_id', '=', webhookId)
        .where('due_at', '<=', now)
        .orderBy('due_at')
        .orderBy('id')
        .limit(limit)
      const ids = (await (dialect === 'postgres' ? due.forUpdate().skipLocked() : due).execute()).map(({ id }) => id)
      if (ids.length === 0) return []
      return db
        .updateTable('webhook_deliveries')
        .set(({ eb }) => ({ claim: uuid(), due_at: until, attempts: eb('attempts', '+', 1) }))
        .where('id', 'in', ids)
        .returningAll()
        .execute()
    },

    /** What became of an attempt. False when its claim had run out and somebody else has taken the delivery over. */
    settle: async (
      { id, claim }: Pick<DeliveryRow, 'id' | 'claim'>,
      outcome: { status: DeliveryStatus; dueAt: number | null; finishedAt: number | null; attempts?: number }
    ): Promise<boolean> => {
      const { status, dueAt, finishedAt, attempts } = outcome
      const row = await db
        .updateTable('webhook_deliveries')
        .set({
          status,
          due_at: dueAt,
          finished_at: finishedAt,
          claim: null,
          ...(attempts === undefined ? {} : { attempts })
        })
        .where('id', '=', id)
        .where('claim', '=', claim)
        .returning('id')
        .executeTakeFirst()
      return row !== undefined
    },

    log: async (attempt: Omit<AttemptRow, 'id'>): Promise<void> => {
      await db
        .insertInto('webhook_attempts')
        .values({ id: uuid(), ...attempt })
        .execute()
    },

    /** Newest first: a UUIDv7 sorts by its time. */
    list: (
      webhookId: string,
      { status, before, limit }: { status: DeliveryStatus | undefined; before: string | undefined; limit: number }
    ): Promise<StoredDelivery[]> => {
      let query = db.selectFrom('webhook_deliveries').selectAll().where('webhook_id', '=', webhookId)
      if (status !== undefined) query = query.where('status', '=', status)
      if (before !== undefined) query = query.where('id', '<', before)
      return query.orderBy('id', 'desc').limit(limit).execute()
    },

    find: (webhookId: string, id: string): Promise<StoredDelivery | undefined> =>
      db
        .selectFrom('webhook_deliveries')
        .selectAll()
        .where('webhook_id', '=', webhookId)
        .where('id', '=', id)
        .executeTakeFirst(),

    logOf: async (deliveryId: string): Promise<DeliveryDetail['log']> => {
      const rows = await db
        .selectFrom('webhook_attempts')
        .selectAll()
        .where('delivery_id', '=', deliveryId)
        .orderBy('id')
        .execute()
      return rows.map(({ at, outcome, http_status, detail, duration_ms }) => ({
        at: instantOf(at),
        outcome,
        httpStatus: http_status,
        detail,
        durationMilliseconds: duration_ms
      }))
    },

    /** Sends again one that has ended. Undefined when there is none. */
    replay: (webhookId: string, id: string, now: number): Promise<StoredDelivery | undefined> =>
      db
        .updateTable('webhook_deliveries')
        .set(anew(now))
        .where('webhook_id', '=', webhookId)
        .where('id', '=', id)
        .where('due_at', 'is', null)
        .returningAll()
        .executeTakeFirst(),

    /** @returns how many there were */
    replayDead: async (webhookId: string, now: number): Promise<number> => {
      const { numUpdatedRows } = await db
        .updateTable('webhook_deliveries')
        .set(anew(now))
        .where('webhook_id', '=', webhookId)
        .where('status', '=', 'dead')
        .executeTakeFirst()
      return Number(numUpdatedRows)
    },

    /** Ends what nobody could be sent in its time: its webhook was inactive. */
    expire: async (now: number): Promise<number> => {
      const rows = await db
        .updateTable('webhook_deliveries')
        .set({ status: 'dead', due_at: null, finished_at: now })
        .where('due_at', '<=', now)
        .where('expires_at', '<=', now)
        .returning('id')
        .execute()
      return rows.length
    },

    forget: async (endedBefore: number): Promise<number> => {
      const { numDeletedRows } = await db
        .deleteFrom('webhook_deliveries')
        .where('finished_at', '<', endedBefore)
        .executeTakeFirst()
      return Number(numDeletedRows)
    },

    waiting: async (): Promise<number> => {
      const { total } = await db
        .selectFrom('webhook_deliveries')
        .select(({ fn }) => fn.countAll<number>().as('total'))
        .where('due_at', 'is not', null)
        .executeTakeFirstOrThrow()
      return total
    }
  }
}
