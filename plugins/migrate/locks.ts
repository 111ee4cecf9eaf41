import { setTimeout as sleep } from 'node:timers/promises'
import { type Kysely, PostgresAdapter, type RawBuilder, sql } from 'kysely'

/** How migrations of several processes take turns, and how one that waits for a table lets the service write meanwhile. */

export interface MigrationDatabase {
  readonly db: Kysely<unknown>
  readonly schema: string | undefined
  readonly postgres: boolean
  readonly lockTimeoutMilliseconds: number
  readonly patienceMilliseconds: number
  readonly notice: (text: string) => void
}

const POLL_MILLISECONDS = 50
const RETRY_MILLISECONDS = 500
/** Failures that are no one's fault are tried again a few times; a migration that cannot succeed must not take minutes to say so. */
const ATTEMPTS_MAX = 5

/** lock_not_available; and what SQLite says while another process writes. */
const WAITING = /^(55P03|SQLITE_BUSY\w*|DATABASE_BUSY)$/
/** Two that made the same thing at once (an extension belongs to the whole database), serialization_failure, deadlock_detected. */
const COLLIDED = /^(23505|42710|42P06|42P07|40001|40P01)$/

export const isPostgres = (db: Kysely<unknown>): boolean => db.getExecutor().adapter instanceof PostgresAdapter

/** A text in SQL: the schema of the tables. */
export const schemaOf = (schema: string | undefined): RawBuilder<string> =>
  schema === undefined ? sql<string>`current_schema()` : sql<string>`${schema}`

const nameOf = (schema: string | undefined) => (schema === undefined ? sql`current_schema()` : sql.lit(schema))

export const tableOf = (schema: string | undefined, table: string): RawBuilder<unknown> =>
  schema === undefined ? sql.id(table) : sql.id(schema, table)

/**
 * The first thing in a migration's transaction. On PostgreSQL it takes the turn of this schema, which the transaction's end gives
 * back, so that it works behind a pooler of transactions; it asks again and again instead of waiting inside the server, where a
 * waiting statement would be waited for by `create index concurrently` in its turn. On SQLite `begin immediate` is the turn.
 */
export async function beginMigration({ db, schema, postgres, ...waits }: MigrationDatabase): Promise<void> {
  if (!postgres) return
  // Without parameters: a statement with some leaves its portal open, whose snapshot would be waited for as well.
  await sql`set local lock_timeout = ${sql.lit(waits.lockTimeoutMilliseconds)}`.execute(db)
  await sql`set local idle_in_transaction_session_timeout = 0`.execute(db)
  const deadline = performance.now() + waits.patienceMilliseconds
  for (let told = false; ; told = true) {
    const { rows } = await sql<{ taken: boolean }>`select pg_try_advisory_xact_lock(
      hashtextextended('inventory-enterprise migrations ' || ${nameOf(schema)}, 0)) as taken`.execute(db)
    if (rows[0]?.taken === true) return
    if (performance.now() > deadline) throw new Error('another process has been migrating this database for too long')
    if (!told) waits.notice('another process migrates this database; waiting for it')
    await sleep(POLL_MILLISECONDS)
  }
}

/** Runs it again while a table is in use; on PostgreSQL those who queued behind it have their turn in between. */
export async function waitsFor<R>(database: MigrationDatabase, title: string, attempt: () => Promise<R>): Promise<R> {
  const deadline = performance.now() + database.patienceMilliseconds
  let told = false
  for (let collisions = 0; ; ) {
    try {
      return await attempt()
    } catch (error) {
      const code = codeOf(error)
      const waiting = WAITING.test(code) && performance.now() < deadline
      if (!waiting && !(COLLIDED.test(code) && ++collisions < ATTEMPTS_MAX)) throw error
      if (waiting && !told) database.notice(`${title} waits for a table that is in use`)
      told ||= waiting
      await sleep(RETRY_MILLISECONDS)
    }
  }
}

/** A migration's own error may stand around the database's. */
function codeOf(error: unknown): string {
  if (!(error instanceof Error)) return ''
  if ('code' in error && typeof error.code === 'string') return error.code
  return codeOf(error.cause)
}
