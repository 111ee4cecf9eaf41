import { expressionBuilder, type Kysely } from 'kysely'
import { send, type Tenant, type Transaction } from '../contracts.js'
import { prepared } from '../prepared.js'
import { IdempotencyInProgress, IdempotencyKeyReused } from './errors.js'

type IdempotencyTable = {
  key: string
  request_hash: string
  status: number | null
  headers: string | null
  body: string | null
  created_at: number
}
type IdempotencyTables = {
  idempotency_keys: IdempotencyTable
}

/** An answer as it is kept, to be given again. */
export interface Stored {
  status: number
  headers: Record<string, string>
  body: string
}

/** A key that was free, and when it was taken: who holds it is told by that instant. */
interface Taken {
  readonly at: number
}

/** A key whose request has not been heard of for so long belongs to a process that died. */
const ABANDONED_MILLISECONDS = 60_000
const LEASE_RENEWED_MILLISECONDS = 20_000
/** A key counts for a week; a retry comes within minutes. */
const KEY_LIFE_MILLISECONDS = 7 * 86_400_000

const insertKey = prepared<{ key: string; hash: string; now: number }, unknown>((db, slot) =>
  db
    .withTables<IdempotencyTables>()
    .insertInto('idempotency_keys')
    .values({
      key: slot('key'),
      request_hash: slot('hash'),
      status: null,
      headers: null,
      body: null,
      created_at: slot('now')
    })
    .onConflict((conflict) => conflict.column('key').doNothing())
)
const fillKey = prepared<{ key: string; status: number; headers: string; body: string }, unknown>((db, slot) =>
  db
    .withTables<IdempotencyTables>()
    .updateTable('idempotency_keys')
    .set({ status: slot('status'), headers: slot('headers'), body: slot('body') })
    .where('key', '=', slot('key'))
)

/**
 * Takes the key for this request, or answers what is stored under it. On PostgreSQL a second request with the same key
 * waits in the insert until the first commits; on SQLite writers take turns anyway.
 * @throws IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_IN_PROGRESS
 */
export async function takeKey(root: Kysely<unknown>, key: string, hash: string): Promise<Stored | Taken> {
  const db = root.withTables<IdempotencyTables>()
  const now = Date.now()
  const { numAffectedRows = 0n } = await root.executeQuery(insertKey(root, { key, hash, now }))
  if (numAffectedRows > 0n) return { at: now }
  const row = await db.selectFrom('idempotency_keys').selectAll().where('key', '=', key).executeTakeFirst()
  // The first request has just failed and let it go.
  if (row === undefined) throw new IdempotencyInProgress({ retryAfterSeconds: 1 })
  if (row.request_hash !== hash) throw new IdempotencyKeyReused({})
  if (row.status !== null) return { status: row.status, headers: JSON.parse(row.headers ?? '{}'), body: row.body ?? '' }
  if (row.created_at > now - ABANDONED_MILLISECONDS || !(await moveLease(root, key, row.created_at, now)))
    throw new IdempotencyInProgress({ retryAfterSeconds: 1 })
  return { at: now }
}

/** Keeps the answer under a key that the same transaction took. */
export const keepAnswer = (tx: Transaction, key: string, { headers, ...answer }: Stored): Promise<void> =>
  send(tx, fillKey(tx.db, { key, headers: JSON.stringify(headers), ...answer }))

/** A key that is held across transactions: nobody else has it as long as this process is heard of. */
export interface KeyLease {
  /**
   * Keeps the answer in the transaction that does the work, after `stop`.
   * @throws IDEMPOTENCY_IN_PROGRESS where a retry has taken the key over meanwhile: the work is that one's
   */
  keep(tx: Transaction, answer: Stored): Promise<void>
  /** Lets the key go, so that what did not start may be tried again under it. */
  release(): Promise<void>
  /** Renews it no longer. */
  stop(): Promise<void>
}

/**
 * Takes the key for work that is more than one transaction, such as an upload that is read before it counts.
 * @returns what is stored under it, where it was used before
 * @throws IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_IN_PROGRESS
 */
export async function leaseKey(
  tenant: Tenant,
  key: string,
  hash: string,
  renewedMilliseconds = LEASE_RENEWED_MILLISECONDS
): Promise<Stored | KeyLease> {
  const taken = await tenant.transact((tx) => takeKey(tx.db, key, hash))
  if (!('at' in taken)) return taken
  let { at } = taken
  let renewing = Promise.resolve()
  const renew = async () => {
    const now = Date.now()
    // What fails is tried again; what comes too late is found out by `keep`.
    if (await tenant.transact((tx) => moveLease(tx.db, key, at, now)).catch(() => false)) at = now
  }
  const timer = setInterval(() => {
    renewing = renewing.then(renew)
  }, renewedMilliseconds)
  timer.unref()
  return {
    keep: async (tx, { headers, ...answer }) => {
      const { numUpdatedRows } = await tx.db
        .withTables<IdempotencyTables>()
        .updateTable('idempotency_keys')
        .set({ ...answer, headers: JSON.stringify(headers) })
        .where(held(key, at))
        .executeTakeFirst()
      if (Number(numUpdatedRows) === 0) throw new IdempotencyInProgress({ retryAfterSeconds: 1 })
    },
    release: async () => {
      await tenant.transact((tx) =>
        tx.db.withTables<IdempotencyTables>().deleteFrom('idempotency_keys').where(held(key, at)).execute()
      )
    },
    stop: async () => {
      clearInterval(timer)
      await renewing
    }
  }
}

/** The key as its holder left it: without an answer, taken or renewed at that instant. */
const held = (key: string, at: number) => {
  const eb = expressionBuilder<IdempotencyTables, 'idempotency_keys'>()
  return eb.and([eb('key', '=', key), eb('created_at', '=', at), eb('status', 'is', null)])
}

/** @returns whether it was still where it was seen */
async function moveLease(root: Kysely<unknown>, key: string, from: number, to: number): Promise<boolean> {
  const { numUpdatedRows } = await root
    .withTables<IdempotencyTables>()
    .updateTable('idempotency_keys')
    .set({ created_at: to })
    .where(held(key, from))
    .executeTakeFirst()
  return Number(numUpdatedRows) > 0
}

/** Removes the keys, and with them the answers, that no retry can ask for any more. */
export async function forgetOldKeys(tenant: Tenant): Promise<void> {
  await tenant.transact(({ db }) =>
    db
      .withTables<IdempotencyTables>()
      .deleteFrom('idempotency_keys')
      .where('created_at', '<', Date.now() - KEY_LIFE_MILLISECONDS)
      .execute()
  )
}
