import { type Kysely, type Migration, sql } from 'kysely'
import type { MigrationSet } from '../contracts.js'
import { beginMigration, isPostgres, type MigrationDatabase, schemaOf, tableOf, waitsFor } from './locks.js'
import { type OnlineMigration, runOnline, runPlainly } from './online.js'

export type { MigrationSet } from '../contracts.js'
export type { BackfillStep, IndexStep, OnlineMigration, OnlineStep } from './online.js'

/** A module's migrations by name, in the order they are to be applied. */
export type Migrations = Record<string, Migration | OnlineMigration>

export interface MigrateOptions {
  /** PostgreSQL: the schema that holds the tables and the ledgers of what was applied. */
  schema?: string
  /** Only these, by module, such as those that a backup was made with. @throws MigrationError where one is not known */
  only?: Readonly<Record<string, readonly string[]>>
  /** PostgreSQL: how long writers may queue behind a migration that waits for a table (1 s); it then lets them by and tries again. */
  lockTimeoutMilliseconds?: number
  /** How long to try (10 min), and for how long another process may be at it. */
  patienceMilliseconds?: number
  /** Is told in a sentence what a migration waits for, and of migrations that only a newer program knows. */
  notice?: (text: string) => void
}

/** A migration failed; `migration` names it. Nothing of it stays applied, unless it is an online one, which goes on where it was. */
export class MigrationError extends Error {
  constructor(module: string, migration: string, cause: unknown) {
    super(`migration ${module}/${migration} failed: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause
    })
  }
}

interface Step {
  readonly module: string
  readonly ledger: string
  readonly name: string
  readonly migration: Migration | OnlineMigration
}

type Notice = (text: string) => void
/** Names applied so far, by ledger; a ledger that does not exist is left out. */
type Applied = ReadonlyMap<string, readonly string[]>

const DEFAULTS = { lockTimeoutMilliseconds: 1_000, patienceMilliseconds: 600_000, notice: () => {} }
/** What takes something away that the version before uses; a program that does not know it must not run on such a schema. */
const CONTRACTS = /^\d+-contract-/

/**
 * Applies what is missing of each set, in order. Each module has a ledger of its own (`migrations_<module>`), so modules
 * can be added, removed and upgraded apart. A new database is made in one transaction; after that each migration is one of its
 * own, and an online migration none. Any number of processes may call it at once.
 * @returns the names of the migrations that were applied now
 * @throws MigrationError
 */
export async function migrate(
  db: Kysely<unknown>,
  sets: readonly MigrationSet[],
  { schema, only, ...given }: MigrateOptions = {}
): Promise<string[]> {
  const { notice, ...waits } = { ...DEFAULTS, ...given }
  const database: MigrationDatabase = { db, schema, postgres: isPostgres(db), ...waits, notice }
  const modules = sets.map(({ module, migrations }) => ({
    module,
    ledger: ledgerOf(module),
    steps: stepsOf(module, migrations, only)
  }))
  const state = await appliedOf(
    database,
    modules.map(({ ledger }) => ledger)
  )
  const pending = modules.flatMap(({ module, ledger, steps }) =>
    pendingOf(module, steps, state.get(ledger) ?? [], only === undefined ? notice : refuseNewer(module))
  )
  if (pending.length === 0) return []
  if (state.size === 0 && (await createAll(database, pending))) return pending.map(titleOf)
  const applied: string[] = []
  for (const step of pending) if (await apply(database, step)) applied.push(titleOf(step))
  return applied
}

const titleOf = ({ module, name }: Step) => `${module}/${name}`
const bareName = (module: string) => module.replaceAll('-', '_')
const ledgerOf = (module: string) => `migrations_${bareName(module)}`
/** Where the migrations are named, a copy is to be like its original and not newer. */
const refuseNewer = (module: string) => (text: string) => {
  throw new MigrationError(module, 'ledger', text)
}

function stepsOf(module: string, known: MigrationSet['migrations'], only: MigrateOptions['only']): Step[] {
  const ledger = ledgerOf(module)
  const names = only === undefined ? Object.keys(known).sort() : (only[bareName(module)] ?? [])
  return names.map((name) => {
    const migration = known[name]
    if (migration === undefined) throw new MigrationError(module, name, 'this version of the program does not know it')
    return { module, ledger, name, migration }
  })
}

/** Two queries whatever the number of modules: a tenant that is up to date, as most are at a start, costs no more. */
async function appliedOf({ db, schema, postgres }: MigrationDatabase, ledgers: readonly string[]): Promise<Applied> {
  if (ledgers.length === 0) return new Map()
  const { rows: found } = postgres
    ? await sql<{ name: string }>`select tablename as name from pg_tables
        where schemaname = ${schemaOf(schema)} and tablename in (${sql.join(ledgers)})`.execute(db)
    : await sql<{ name: string }>`select name from sqlite_master
        where type = 'table' and name in (${sql.join(ledgers)})`.execute(db)
  const applied = new Map<string, string[]>(found.map(({ name }) => [name, []]))
  if (applied.size === 0) return applied
  const each = [...applied.keys()].map(
    (ledger) => sql`select ${sql.lit(ledger)} as ledger, name from ${tableOf(schema, ledger)}`
  )
  const { rows } = await sql<{ ledger: string; name: string }>`${sql.join(each, sql` union all `)}`.execute(db)
  for (const { ledger, name } of rows) applied.get(ledger)?.push(name)
  return applied
}

/**
 * What of one module is missing.
 * @throws MigrationError where what was applied is not what this program, or a later version of it, would have applied
 */
function pendingOf(module: string, known: readonly Step[], applied: readonly string[], notice: Notice): Step[] {
  const done = new Set(applied)
  const pending = known.filter(({ name }) => !done.has(name))
  const isKnown = new Set(known.map(({ name }) => name))
  const unknown = applied.filter((name) => !isKnown.has(name)).sort()
  const refuse = (name: string, why: string) => {
    throw new MigrationError(module, name, why)
  }
  const [missing] = pending
  const late = known.find(({ name }) => done.has(name) && missing !== undefined && name > missing.name)
  if (late !== undefined) refuse(late.name, 'it was applied before one that precedes it')
  const [newer] = unknown
  if (newer === undefined) return pending
  if (pending.length > 0 || newer < (known.at(-1)?.name ?? ''))
    refuse(newer, 'it was applied, and this program does not know it')
  const contract = unknown.find((name) => CONTRACTS.test(name))
  if (contract !== undefined) refuse(contract, 'a newer version of the program took away what this version needs')
  notice(`the database is newer than this program, which may run on it: ${module}/${unknown.join(', ')}`)
  return pending
}

/** All of a new database, or nothing; false when another process made it meanwhile. */
async function createAll(database: MigrationDatabase, steps: readonly Step[]): Promise<boolean> {
  return waitsFor(database, 'the creation of the database', () =>
    database.db.transaction().execute(async (tx) => {
      const inside = { ...database, db: tx }
      await beginMigration(inside)
      const ledgers = [...new Set(steps.map(({ ledger }) => ledger))]
      if ((await appliedOf(inside, ledgers)).size > 0) return false
      for (const ledger of ledgers) await createLedger(inside, ledger)
      for (const step of steps) {
        const { migration } = step
        await failing(step, () => ('up' in migration ? migration.up(tx) : runPlainly(inside, migration)))
        await record(inside, step)
      }
      return true
    })
  )
}

/** False when another process was first. */
async function apply(database: MigrationDatabase, step: Step): Promise<boolean> {
  const { migration } = step
  const title = titleOf(step)
  const isDone = async (at: MigrationDatabase) =>
    (await appliedOf(at, [step.ledger])).get(step.ledger)?.includes(step.name) === true
  const inTransaction = (run: (tx: Kysely<unknown>) => Promise<unknown>) =>
    waitsFor(database, title, () =>
      database.db.transaction().execute(async (tx) => {
        const inside = { ...database, db: tx }
        await beginMigration(inside)
        await createLedger(inside, step.ledger)
        if (await isDone(inside)) return false
        await run(tx)
        await record(inside, step)
        return true
      })
    )
  return failing(step, async () => {
    if ('up' in migration) return inTransaction((tx) => migration.up(tx))
    const done = await runOnline(database, title, migration, () => isDone(database))
    return done ? inTransaction(async () => {}) : false
  })
}

async function failing<R>({ module, name }: Step, work: () => Promise<R>): Promise<R> {
  try {
    return await work()
  } catch (error) {
    throw error instanceof MigrationError ? error : new MigrationError(module, name, error)
  }
}

async function createLedger({ db, schema }: MigrationDatabase, ledger: string): Promise<void> {
  await sql`create table if not exists ${tableOf(schema, ledger)} (
    name varchar(255) not null primary key, timestamp varchar(255) not null)`.execute(db)
}

async function record({ db, schema }: MigrationDatabase, { ledger, name }: Step): Promise<void> {
  await sql`insert into ${tableOf(schema, ledger)} (name, timestamp)
    values (${name}, ${new Date().toISOString()})`.execute(db)
}
