import { type Insertable, type Kysely, type Selectable, sql } from 'kysely'
import { type Agent, prepared, send, type AuditEntry as Told, type Writer } from '../../plugins/contracts.js'
import type { AuditEntry, AuditFilter } from '../../schemas/audit.js'
import { addressDigest, newSalt, type Range } from './chain.js'
import { changesOf, clean, concealed } from './changes.js'
import type { AuditTables, BatchTable, CheckpointTable, EntryTable } from './tables.js'

export type EntryRow = Selectable<EntryTable>
export type NewEntry = Insertable<EntryTable>

/** SQLite takes an expression of a thousand terms. */
const RANGES_PER_STATEMENT = 100
const TERM_MAX = 300

const term = (text: string | null) => (text === null ? null : clean(text, TERM_MAX))

/** An entry as it is stored. */
export function rowOf(agent: Agent, entry: Told, now: number): NewEntry {
  const { action, outcome = 'success', object, before, after, personal, details } = entry
  const changes = changesOf(before, after, personal)
  const salt = agent.address === null ? null : newSalt()
  return {
    recorded_at: now,
    action: clean(action, TERM_MAX),
    outcome,
    actor: term(agent.actor),
    role: agent.role,
    method: term(agent.method),
    session: term(agent.session),
    object_type: term(object?.type ?? null),
    object_id: term(object?.id ?? null),
    changes: changes === null ? null : JSON.stringify(changes),
    details: details === undefined ? null : concealed(details),
    request_id: term(agent.requestId),
    trace_id: term(agent.traceId),
    address: agent.address,
    address_salt: salt,
    address_digest: salt === null || agent.address === null ? null : addressDigest(salt, agent.address),
    occurrences: 1,
    first_at: null,
    last_at: null
  }
}

const instant = (ms: number | null) => (ms === null ? null : new Date(ms).toISOString())

export const toEntry = (row: EntryRow, tenant: string): AuditEntry => ({
  id: row.seq,
  at: new Date(row.recorded_at).toISOString(),
  tenant,
  action: row.action,
  outcome: row.outcome,
  actor: row.actor,
  role: row.role,
  method: row.method,
  session: row.session,
  object: row.object_type === null ? null : { type: row.object_type, id: row.object_id ?? '' },
  changes: row.changes === null ? null : JSON.parse(row.changes),
  details: row.details === null ? null : JSON.parse(row.details),
  requestId: row.request_id,
  traceId: row.trace_id,
  address: row.address,
  occurrences: row.occurrences,
  firstAt: instant(row.first_at),
  lastAt: instant(row.last_at)
})

const insertEntry = prepared<NewEntry, unknown>((root, slot) =>
  root
    .withTables<AuditTables>()
    .insertInto('audit_entries')
    .values({
      recorded_at: slot('recorded_at'),
      action: slot('action'),
      outcome: slot('outcome'),
      actor: slot('actor'),
      role: slot('role'),
      method: slot('method'),
      session: slot('session'),
      object_type: slot('object_type'),
      object_id: slot('object_id'),
      changes: slot('changes'),
      details: slot('details'),
      request_id: slot('request_id'),
      trace_id: slot('trace_id'),
      address: slot('address'),
      address_salt: slot('address_salt'),
      address_digest: slot('address_digest'),
      occurrences: slot('occurrences'),
      first_at: slot('first_at'),
      last_at: slot('last_at')
    })
)

/** In the caller's transaction. */
export async function appendEntries(tx: Writer, rows: readonly NewEntry[]): Promise<void> {
  for (const row of rows) await send(tx, insertEntry(tx.db, row))
}

/** The trail's tables. A transaction's `db` is a Kysely too: inside one, build a second store on it. */
export function createAuditStore(root: Kysely<unknown>) {
  const db = root.withTables<AuditTables>()
  const inRanges = (ranges: readonly Range[]) =>
    sql<boolean>`(${sql.join(
      ranges.map(([from, to]) => sql`seq between ${from} and ${to}`),
      sql` or `
    )})`

  return {
    /** Newest first. */
    list: (filter: AuditFilter, before: number, limit: number): Promise<EntryRow[]> => {
      const { actor, action, outcome, objectType, objectId, requestId, from, to } = filter
      let query = db.selectFrom('audit_entries').selectAll().where('seq', '<', before)
      if (actor !== undefined) query = query.where('actor', '=', actor)
      if (action?.endsWith('*')) {
        const prefix = action.slice(0, -1)
        query = query.where('action', '>=', prefix).where('action', '<', `${prefix}\u{10ffff}`)
      } else if (action !== undefined) query = query.where('action', '=', action)
      if (outcome !== undefined) query = query.where('outcome', '=', outcome)
      if (objectType !== undefined) query = query.where('object_type', '=', objectType)
      if (objectId !== undefined) query = query.where('object_id', '=', objectId)
      if (requestId !== undefined) query = query.where('request_id', '=', requestId)
      if (from !== undefined) query = query.where('recorded_at', '>=', Date.parse(from))
      if (to !== undefined) query = query.where('recorded_at', '<=', Date.parse(to))
      return query.orderBy('seq', 'desc').limit(limit).execute()
    },

    after: (seq: number, limit: number): Promise<EntryRow[]> =>
      db.selectFrom('audit_entries').selectAll().where('seq', '>', seq).orderBy('seq').limit(limit).execute(),

    within: async (ranges: readonly Range[]): Promise<EntryRow[]> => {
      const found: EntryRow[] = []
      for (let at = 0; at < ranges.length; at += RANGES_PER_STATEMENT) {
        const part = ranges.slice(at, at + RANGES_PER_STATEMENT)
        found.push(...(await db.selectFrom('audit_entries').selectAll().where(inRanges(part)).orderBy('seq').execute()))
      }
      return found
    },

    /** Which of them hold an entry; a few hundred at most are told. */
    foundIn: async (gaps: readonly Range[]): Promise<number[]> => {
      const found: number[] = []
      for (let at = 0; at < gaps.length && found.length < 500; at += RANGES_PER_STATEMENT) {
        const part = gaps.slice(at, at + RANGES_PER_STATEMENT)
        const rows = await db
          .selectFrom('audit_entries')
          .select('seq')
          .where(inRanges(part))
          .orderBy('seq')
          .limit(500)
          .execute()
        found.push(...rows.map(({ seq }) => seq))
      }
      return found
    },

    count: async (): Promise<number> => {
      const row = await db
        .selectFrom('audit_entries')
        .select(({ fn }) => fn.countAll<number>().as('n'))
        .executeTakeFirstOrThrow()
      return Number(row.n)
    },

    /** Forgets where the requests of a user, and attempts to be that user, came from; the chain covers digests alone. */
    eraseAddresses: async (subject: string): Promise<number> => {
      const { numUpdatedRows } = await db
        .updateTable('audit_entries')
        .set({ address: null, address_salt: null })
        .where('address', 'is not', null)
        .where(({ eb, and, or }) =>
          or([
            eb('actor', '=', subject),
            and([eb('object_type', '=', 'user'), eb('object_id', '=', subject), eb('actor', 'is', null)])
          ])
        )
        .executeTakeFirst()
      return Number(numUpdatedRows)
    },

    lastBatch: (): Promise<BatchTable | undefined> =>
      db.selectFrom('audit_batches').selectAll().orderBy('seq', 'desc').limit(1).executeTakeFirst(),
    batchesAfter: (seq: number, limit: number): Promise<BatchTable[]> =>
      db.selectFrom('audit_batches').selectAll().where('seq', '>', seq).orderBy('seq').limit(limit).execute(),
    batch: (seq: number): Promise<BatchTable | undefined> =>
      db.selectFrom('audit_batches').selectAll().where('seq', '=', seq).executeTakeFirst(),
    /** The newest of those sealed before. */
    lastBatchSealedBefore: (time: number): Promise<BatchTable | undefined> =>
      db
        .selectFrom('audit_batches')
        .selectAll()
        .where('sealed_at', '<', time)
        .orderBy('seq', 'desc')
        .limit(1)
        .executeTakeFirst(),
    insertBatch: (batch: BatchTable) => db.insertInto('audit_batches').values(batch).execute(),

    checkpoints: (): Promise<CheckpointTable[]> =>
      db.selectFrom('audit_checkpoints').selectAll().orderBy('seq').execute(),
    lastCheckpoint: (): Promise<CheckpointTable | undefined> =>
      db.selectFrom('audit_checkpoints').selectAll().orderBy('seq', 'desc').limit(1).executeTakeFirst(),
    insertCheckpoint: (checkpoint: CheckpointTable) => db.insertInto('audit_checkpoints').values(checkpoint).execute(),
    /** Only what a checkpoint covers; the database refuses anything else. */
    remove: async (ranges: readonly Range[]): Promise<void> => {
      for (let at = 0; at < ranges.length; at += RANGES_PER_STATEMENT)
        await db
          .deleteFrom('audit_entries')
          .where(inRanges(ranges.slice(at, at + RANGES_PER_STATEMENT)))
          .execute()
    }
  }
}
export type AuditStore = ReturnType<typeof createAuditStore>
