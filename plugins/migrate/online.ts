import { setTimeout as sleep } from 'node:timers/promises'
import { type Kysely, type RawBuilder, sql } from 'kysely'
import { beginMigration, type MigrationDatabase, schemaOf, tableOf, waitsFor } from './locks.js'

/** An index, built while the table is written to. On SQLite it is built in one go: writers wait. */
export interface IndexStep {
  readonly index: string
  readonly on: string
  /** Columns, or expressions with their order. */
  readonly columns: readonly (string | RawBuilder<unknown>)[]
  readonly unique?: boolean
  /** Of a partial index. */
  readonly where?: RawBuilder<unknown>
  /** By another access method of PostgreSQL, with its options; SQLite gets no such index. */
  readonly method?: 'gin'
  readonly with?: RawBuilder<unknown>
}

/**
 * Values for rows that are there already, some at a time. What tells a row that is not done is `where`, so that a run that was
 * killed goes on where it was. Rows that come meanwhile from the version before are done too, but for the last of them.
 */
export interface BackfillStep {
  readonly backfill: string
  /** A unique column, indexed: the order of the batches. */
  readonly key: string
  readonly where: RawBuilder<unknown>
  readonly set: Readonly<Record<string, RawBuilder<unknown>>>
  /** Rows in one transaction (1000). */
  readonly batch?: number
}
export type OnlineStep = IndexStep | BackfillStep

/** Runs outside a transaction, step by step, while other nodes serve. Each step may be run again, which a kill will make happen. */
export interface OnlineMigration {
  readonly online: readonly OnlineStep[]
}

const BATCH_ROWS = 1_000
const PAUSE_MAX_MILLISECONDS = 1_000
const POLL_MILLISECONDS = 200

/** Inside the transaction that makes a new database. */
export async function runPlainly(database: MigrationDatabase, { online }: OnlineMigration): Promise<void> {
  for (const step of online) {
    if ('index' in step) await createIndex(database, step, sql``)
    else await fillBatch(database, step, undefined)
  }
}

let turn: Promise<unknown> = Promise.resolve()

/** @returns false when another process did it meanwhile */
export async function runOnline(
  database: MigrationDatabase,
  title: string,
  { online }: OnlineMigration,
  isDone: () => Promise<boolean>
): Promise<boolean> {
  const work = async () => {
    if (await isDone()) return false
    for (const step of online) {
      if ('backfill' in step) await fill(database, title, step)
      else if (database.postgres) await indexConcurrently(database, step)
      else await waitsFor(database, title, () => createIndex(database, step, sql``))
    }
    return true
  }
  if (!database.postgres) return work()
  // It holds one connection while it works on another: tenants that did so side by side could use up the pool and wait for ever.
  const before = turn
  const own = before.then(() =>
    // The turn of this schema is a transaction that only stands open. It has no snapshot, so nothing waits for it.
    database.db.transaction().execute(async (tx) => {
      await beginMigration({ ...database, db: tx })
      return work()
    })
  )
  turn = own.catch(() => {})
  return own
}

async function createIndex(
  { db, schema, postgres }: MigrationDatabase,
  step: IndexStep,
  how: RawBuilder<unknown>
): Promise<void> {
  if (step.method !== undefined && !postgres) return
  const columns = step.columns.map((column) => (typeof column === 'string' ? sql.id(column) : column))
  await sql`create ${step.unique === true ? sql`unique ` : sql``}index ${how} if not exists ${sql.id(step.index)}
    on ${tableOf(schema, step.on)} ${step.method === undefined ? sql`` : sql`using ${sql.raw(step.method)}`} (${sql.join(columns)})
    ${step.with === undefined ? sql`` : sql`with (${step.with})`}
    ${step.where === undefined ? sql`` : sql`where ${step.where}`}`.execute(db)
}

/** What PostgreSQL has under the name of the index. */
async function stateOf({ db, schema }: MigrationDatabase, { index }: IndexStep) {
  const { rows } = await sql<{ state: 'valid' | 'building' | 'invalid' }>`
    select case when i.indisvalid then 'valid'
      when exists (select 1 from pg_stat_progress_create_index p where p.index_relid = c.oid) then 'building'
      else 'invalid' end as state
    from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = ${schemaOf(schema)} and c.relname = ${index}`.execute(db)
  return rows[0]?.state ?? 'absent'
}

/**
 * `create index concurrently` waits, without being in anyone's way, for whoever was reading or writing when it began. One that was
 * broken off leaves an index that costs writes and serves no read: that is dropped and built again. The server may still be
 * building for a client that was killed; then it is left to end.
 */
async function indexConcurrently(database: MigrationDatabase, step: IndexStep): Promise<void> {
  await database.db.connection().execute(async (connection) => {
    const own = { ...database, db: connection }
    const drop = () => sql`drop index concurrently if exists ${tableOf(own.schema, step.index)}`.execute(connection)
    await sql`set lock_timeout = 0`.execute(connection)
    await sql`set statement_timeout = 0`.execute(connection)
    try {
      for (;;) {
        const state = await stateOf(own, step)
        if (state === 'valid') return
        if (state === 'building') await sleep(POLL_MILLISECONDS)
        else if (state === 'invalid') await drop()
        else await createIndex(own, step, sql`concurrently`)
      }
    } catch (error) {
      // It cannot be built, such as a unique one of values that are not; what is left of it would cost every write.
      await drop().catch(() => {})
      throw error
    } finally {
      await settingsBack(connection)
    }
  })
}

/** Of a connection that goes back to the pool; one that is broken is thrown away there. */
const settingsBack = async (connection: Kysely<unknown>) => {
  for (const name of ['lock_timeout', 'statement_timeout'])
    await sql`reset ${sql.raw(name)}`.execute(connection).catch(() => {})
}

async function fill(database: MigrationDatabase, title: string, step: BackfillStep): Promise<void> {
  const limit = step.batch ?? BATCH_ROWS
  for (;;) {
    let after: unknown
    let batches = 0
    for (let rows = limit; rows === limit; batches++) {
      const startedAt = performance.now()
      const batch = await waitsFor(database, title, () =>
        database.db.transaction().execute(async (tx) => {
          if (database.postgres)
            await sql`set local lock_timeout = ${sql.lit(database.lockTimeoutMilliseconds)}`.execute(tx)
          return fillBatch({ ...database, db: tx }, step, after, limit)
        })
      )
      rows = batch.rows
      after = batch.last
      // As long again for everybody else.
      await sleep(Math.min(performance.now() - startedAt, PAUSE_MAX_MILLISECONDS))
    }
    // All that was there when this pass began is done. A node of the version before may add rows for ever: it goes when this one serves.
    if (batches === 1) return
  }
}

/** @returns how many rows there were after `after`, at most `limit`, and the key of the last */
async function fillBatch(
  { db, schema }: MigrationDatabase,
  { backfill, key, where, set }: BackfillStep,
  after: unknown,
  limit?: number
): Promise<{ rows: number; last: unknown }> {
  const [table, column] = [tableOf(schema, backfill), sql.id(key)]
  const beyond = after === undefined ? sql`` : sql`and ${column} > ${after}`
  const { rows } = await sql<{ key: unknown }>`select ${column} as key from ${table}
    where (${where}) ${beyond} order by ${column} ${limit === undefined ? sql`` : sql`limit ${sql.lit(limit)}`}`.execute(
    db
  )
  const keys = rows.map((row) => row.key)
  if (keys.length === 0) return { rows: 0, last: after }
  const values = Object.entries(set).map(([name, value]) => sql`${sql.id(name)} = ${value}`)
  // The rows of the batch and no others, and only if they are still to be done.
  await sql`update ${table} set ${sql.join(values)}
    where ${column} >= ${keys[0]} and ${column} <= ${keys.at(-1)} and (${where})`.execute(db)
  const left = await sql`select 1 from ${table} where ${column} = ${keys[0]} and (${where})`.execute(db)
  if (left.rows.length > 0)
    throw new Error(`the backfill of ${backfill} would never end: "set" does not make "where" untrue`)
  return { rows: keys.length, last: keys.at(-1) }
}
