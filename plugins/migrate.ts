import { setTimeout as sleep } from 'node:timers/promises'
import { type Kysely, type Migration, PostgresAdapter, sql, type Transaction as Tx } from 'kysely'
import type { MigrationSet } from './contracts.js'

export type { MigrationSet } from './contracts.js'

interface MigrateOptions {
  /** PostgreSQL: the schema that holds the tables and the ledgers of what was applied. */
  schema?: string
  /** Only these, by module, such as those that a backup was made with. @throws MigrationError where one is not known */
  only?: Readonly<Record<string, readonly string[]>>
}

/** A migration failed; `migration` names it. Nothing of it stays applied, on either database. */
export class MigrationError extends Error {
  constructor(module: string, migration: string, cause: unknown) {
    super(`migration ${module}/${migration} failed: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause
    })
  }
}

/** How long a process waits for another that migrates the same SQLite file; PostgreSQL waits for as long as it takes. */
const WAIT_MILLISECONDS = 600_000
const BUSY = /^(SQLITE_BUSY|DATABASE_BUSY)/
/**
 * serialization_failure, deadlock_detected, unique_violation: nothing was changed, and it may run again. The last is what
 * PostgreSQL says of `create … if not exists` when two of them meet, as tenants do at the extension that they share.
 */
const RETRYABLE = /^(40001|40P01|23505)$/
const RETRIES_MAX = 5
/** What versions up to 3.0 held alone while they migrated; shared, so that tenants do not wait for each other. */
const FORMER_LOCK = 3853314791062309107n

/**
 * Applies what is missing of each set, in order. Each module has a ledger of its own (`migrations_<module>`), so modules
 * can be added, removed and upgraded apart. Of many processes that start at once one applies it and the others wait.
 * @returns the names of the migrations that were applied now
 * @throws MigrationError
 */
export async function migrate(
  db: Kysely<unknown>,
  sets: readonly MigrationSet[],
  { schema, only }: MigrateOptions = {}
): Promise<string[]> {
  const wanted = sets.map(({ module, migrations: known }): Wanted => {
    const name = module.replaceAll('-', '_')
    const ledger = `migrations_${name}`
    return {
      module,
      ledger: schema === undefined ? ledger : `${schema}.${ledger}`,
      migrations: only === undefined ? known : named(module, known, only[name] ?? [])
    }
  })
  if (await isComplete(db, wanted)) return []
  const applied: string[] = []
  for (const each of wanted) {
    const names = await exclusively(db, `inventory migrations ${schema ?? ''}`, (tx) => apply(tx, each))
    applied.push(...names.map((name) => `${each.module}/${name}`))
  }
  return applied
}

interface Wanted {
  readonly module: string
  /** The table that says what was applied. */
  readonly ledger: string
  readonly migrations: Migrations
}

/** One read, which takes no lock, for a database that lacks nothing: a start with a thousand tenants is a thousand of these. */
async function isComplete(db: Kysely<unknown>, wanted: readonly Wanted[]): Promise<boolean> {
  if (wanted.length === 0) return true
  const ledgers = wanted.map(
    ({ ledger }, position) => sql`select ${sql.lit(position)} as position, name from ${sql.table(ledger)}`
  )
  const read = sql<{ position: number; name: string }>`${sql.join(ledgers, sql` union all `)}`
  // A ledger may be missing; whatever else is wrong shows again where it is written.
  const { rows } = await read.execute(db).catch(() => ({ rows: undefined }))
  if (rows === undefined) return false
  return wanted.every(({ module, migrations }, position) => {
    const names = rows.flatMap((row) => (row.position === position ? [row.name] : []))
    return missing(module, migrations, names).length === 0
  })
}

async function apply(tx: Tx<unknown>, { module, ledger, migrations }: Wanted): Promise<string[]> {
  const table = sql.table(ledger)
  await sql`create table if not exists ${table}
    (name varchar(255) not null primary key, "timestamp" varchar(255) not null)`.execute(tx)
  const { rows } = await sql<{ name: string }>`select name from ${table}`.execute(tx)
  const names = missing(
    module,
    migrations,
    rows.map(({ name }) => name)
  )
  for (const name of names) {
    try {
      await migrations[name]?.up(tx)
    } catch (error) {
      throw new MigrationError(module, name, error)
    }
    await sql`insert into ${table} (name, "timestamp") values (${name}, ${new Date().toISOString()})`.execute(tx)
  }
  return names
}

/** What is not applied yet, in order. @throws MigrationError where something was applied that is unknown, or out of order */
function missing(module: string, migrations: Migrations, applied: readonly string[]): string[] {
  const known = Object.keys(migrations).sort()
  const unknown = applied.find((name) => !known.includes(name))
  if (unknown !== undefined)
    throw new MigrationError(module, unknown, 'it was applied, and this version of the program does not know it')
  const [passed] = known.slice(0, applied.length).filter((name) => !applied.includes(name))
  if (passed !== undefined) throw new MigrationError(module, passed, 'a later one was applied before it')
  return known.slice(applied.length)
}

/**
 * In a transaction that nobody else is in who asks by this name. The lock goes with the transaction: one that belonged to the
 * session would stay with another client's connection behind a pooler.
 */
async function exclusively<R>(db: Kysely<unknown>, name: string, work: (tx: Tx<unknown>) => Promise<R>): Promise<R> {
  const isPostgres = db.getExecutor().adapter instanceof PostgresAdapter
  const deadline = performance.now() + WAIT_MILLISECONDS
  for (let attempt = 1; ; ) {
    try {
      return await db.transaction().execute(async (tx) => {
        if (isPostgres) {
          // Limits that are set for requests are not meant for this.
          await sql`select set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)`.execute(
            tx
          )
          await sql`select pg_advisory_xact_lock_shared(${sql.lit(FORMER_LOCK)}),
            pg_advisory_xact_lock(hashtextextended(${name}, 0))`.execute(tx)
        }
        return work(tx)
      })
    } catch (error) {
      const code = codeOf(error)
      if (BUSY.test(code) && performance.now() < deadline) await sleep(50)
      else if (!RETRYABLE.test(code) || ++attempt > RETRIES_MAX) throw error
    }
  }
}

function codeOf(error: unknown): string {
  const cause = error instanceof MigrationError ? error.cause : error
  return cause instanceof Error && 'code' in cause ? String(cause.code) : ''
}

function named(module: string, known: Migrations, names: readonly string[]): Migrations {
  return Object.fromEntries(
    names.map((name) => {
      const migration = known[name]
      if (migration === undefined)
        throw new MigrationError(module, name, 'this version of the program does not know it')
      return [name, migration]
    })
  )
}

/** A module's migrations by name, in the order they are to be applied. */
export type Migrations = Record<string, Migration>
