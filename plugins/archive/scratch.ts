import { randomBytes } from 'node:crypto'
import { existsSync, linkSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import Sqlite from 'better-sqlite3'
import pg from 'pg'
import type { ArchiveProof, MigrationSet, Place, PortableSchema, TenantCopy } from '../contracts.js'
import { type DatabaseOptions, openDatabaseServer, placeOf } from '../database.js'
import { UNWATCHED } from '../dialects/dialect.js'
import { migrate } from '../migrate/index.js'
import { createPlace } from '../portable/index.js'
import { connect } from '../portable/postgres.js'
import { DatabaseInUse, RestoreUnproved } from './errors.js'
import { holdScratch, whereFileUnused, whereSchemaUnused } from './in-use.js'
import type { Loaded } from './operations.js'

/** A restored database beside the real one: a file of another name, or a schema of another name on the same server. */
export interface Scratch {
  readonly place: Place
  remove(): Promise<void>
  /**
   * Puts it in the place of the real one, in one step.
   * @returns the name under which the former one is kept, where there was one
   * @throws BACKUP_DATABASE_IN_USE
   */
  replace(): Promise<string | undefined>
}

interface Restore {
  readonly database: Omit<DatabaseOptions, 'poolSize'>
  readonly tenant: string
  readonly purpose: 'restoring' | 'drill'
  readonly sets: readonly MigrationSet[]
  /** Those that the archive was made with. */
  readonly migrations: PortableSchema['migrations']
  load(place: Place): Promise<Loaded>
  prove(copy: TenantCopy): Promise<readonly ArchiveProof[]>
}

type PostgresPlace = Extract<Place, { dialect: 'postgres' }>
type Where = Omit<DatabaseOptions, 'poolSize'>
const id = pg.escapeIdentifier

/**
 * Makes a database beside the real one, loads it, brings it up to date and proves it. Whatever fails, it is removed and the
 * real one was never touched. What a killed process has left is removed first; what another works on stays.
 * @throws BACKUP_RESTORE_UNPROVED and what `load` throws
 */
export async function restoreInto({ database, tenant, purpose, sets, migrations, load, prove }: Restore): Promise<{
  scratch: Scratch
  rows: number
  proofs: readonly ArchiveProof[]
}> {
  const real = placeOf(database, tenant)
  const mark = randomBytes(4).toString('hex')
  if (purpose === 'restoring') await requireUnused(real)
  await removeLeft(real, tenant, purpose)
  const where: Where =
    real.dialect === 'sqlite'
      ? { databaseUrl: `sqlite:${real.path}.${purpose}-${mark}`, tenancy: 'single' }
      : {
          ...database,
          servers: undefined,
          urlOf: undefined,
          databaseUrl: real.url,
          schemaPrefix: `${purpose}_${mark}_`
        }
  const place = placeOf(where, tenant)
  const release = await holdScratch(place)
  const remove = async () => {
    try {
      if (place.dialect === 'sqlite') removeFile(place.path)
      else await withClient(place, (client) => client.query(`drop schema if exists ${id(place.schema)} cascade`))
    } finally {
      await release()
    }
  }
  try {
    await createPlace(where, tenant, sets, migrations)
    const { rows } = await load(place)
    const proofs = await proved(where, tenant, sets, prove)
    const putInPlace = async () => {
      if (real.dialect === 'sqlite' && place.dialect === 'sqlite') return replaceFile(real.path, place.path)
      if (real.dialect === 'postgres' && place.dialect === 'postgres') return replaceSchema(real, place.schema, tenant)
      throw new Error('a database is not replaced by one of another engine')
    }
    const replace = async () => {
      const kept = await putInPlace()
      await release()
      return kept
    }
    return { scratch: { place, remove, replace }, rows, proofs }
  } catch (error) {
    await remove()
    throw error
  }
}

async function proved(where: Where, tenant: string, sets: readonly MigrationSet[], prove: Restore['prove']) {
  const server = openDatabaseServer({ ...where, poolSize: 2 }, UNWATCHED)
  try {
    const { db, dialect, migrator, close } = await server.open(tenant)
    await migrate(migrator.db, sets, migrator)
    const proofs = await prove({ id: tenant, dialect, db })
    const problems = proofs.flatMap(({ name, problems }) => problems.map((found) => `${name}: ${found}`))
    if (problems.length > 0) throw new RestoreUnproved({ reason: problems.slice(0, 5).join('; ') })
    await close()
    return proofs
  } finally {
    await server.close()
  }
}

async function withClient<R>(place: PostgresPlace, work: (client: pg.Client) => Promise<R>): Promise<R> {
  const client = await connect(place)
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}

function removeFile(path: string): void {
  for (const suffix of ['-wal', '-shm', '']) rmSync(path + suffix, { force: true })
}

async function removeLeft(real: Place, tenant: string, purpose: string): Promise<void> {
  if (real.dialect === 'sqlite') {
    const folder = dirname(real.path)
    const pattern = new RegExp(`^\\.${purpose}-[0-9a-f]{8}(-wal|-shm|\\.lock)?$`)
    const isLeft = (name: string) =>
      name.startsWith(basename(real.path)) && pattern.test(name.slice(basename(real.path).length))
    const names = existsSync(folder) ? readdirSync(folder) : []
    const left = new Set(names.filter(isLeft).map((name) => name.replace(/-wal$|-shm$|\.lock$/, '')))
    for (const name of left) whereFileUnused(join(folder, name), () => removeFile(join(folder, name)))
    return
  }
  await withClient(real, async (client) => {
    const { rows } = await client.query<{ nspname: string }>(
      'select nspname from pg_catalog.pg_namespace where nspname ~ $1',
      [`^${purpose}_[0-9a-f]{8}_${tenant}$`]
    )
    for (const { nspname } of rows) {
      const drop = () => client.query(`drop schema if exists ${id(nspname)} cascade`)
      await whereSchemaUnused(client, nspname, drop)
    }
  })
}

const stamp = () => String(Date.now())

/** Asked before anything is loaded, and again before anything is replaced. @throws BACKUP_DATABASE_IN_USE */
async function requireUnused(real: Place): Promise<void> {
  if (real.dialect === 'postgres') await withClient(real, requireNoService)
  else if (existsSync(real.path)) closeForGood(real.path)
}

/** A rename, while nobody has the old file open. What a crash leaves is the old one or the new one. */
async function replaceFile(real: string, fresh: string): Promise<string | undefined> {
  let kept: string | undefined
  if (existsSync(real)) {
    closeForGood(real)
    kept = `${real}.replaced-${stamp()}`
    // One that cannot be opened may have left its log, which must not meet the new file.
    for (const suffix of ['', '-wal']) if (existsSync(real + suffix)) linkSync(real + suffix, kept + suffix)
    for (const suffix of ['-wal', '-shm']) rmSync(real + suffix, { force: true })
  }
  renameSync(fresh, real)
  const folder = await open(dirname(real), 'r')
  await folder.sync().finally(() => folder.close())
  return kept
}

/** Brings the log into the file. One that is damaged stays as it is. @throws BACKUP_DATABASE_IN_USE */
function closeForGood(path: string): void {
  let db: Sqlite.Database | undefined
  try {
    db = new Sqlite(path, { timeout: 500 })
    // Whoever has it open holds a lock on it, even while it does nothing.
    db.pragma('locking_mode = EXCLUSIVE')
    db.exec('begin exclusive; commit')
    db.pragma('wal_checkpoint(TRUNCATE)')
  } catch (error) {
    if (error instanceof Sqlite.SqliteError && /^SQLITE_(BUSY|LOCKED)/.test(error.code))
      throw new DatabaseInUse({ reason: `another process has ${path} open` })
    if (!(error instanceof Sqlite.SqliteError)) throw error
  } finally {
    db?.close()
  }
}

/** How services call themselves at the database; one that is idle looks for work every few seconds, so it holds a connection. */
const SERVICE = 'inventory-enterprise'

/** A process of the server ends a moment after its client has gone, as a service has that was stopped just now. */
const LEAVING_MILLISECONDS = 1_000
const LOOKED_AGAIN_MILLISECONDS = 50

async function requireNoService(client: pg.Client): Promise<void> {
  for (const deadline = performance.now() + LEAVING_MILLISECONDS; ; await sleep(LOOKED_AGAIN_MILLISECONDS)) {
    const { rows } = await client.query<{ count: string }>(
      `select count(*) from pg_catalog.pg_stat_activity
       where datname = current_database() and application_name = $1 and pid <> pg_backend_pid()`,
      [SERVICE]
    )
    const others = Number(rows[0]?.count)
    if (others === 0) return
    if (performance.now() > deadline) throw new DatabaseInUse({ reason: `services hold ${others} connections to it` })
  }
}

/** Both names change in one transaction, under which nobody uses either. */
async function replaceSchema(real: PostgresPlace, fresh: string, tenant: string): Promise<string | undefined> {
  return withClient(real, async (client) => {
    await requireNoService(client)
    const { rowCount } = await client.query('select 1 from pg_catalog.pg_namespace where nspname = $1', [real.schema])
    const kept = rowCount === 0 ? undefined : `replaced_${tenant}_${stamp()}`
    await client.query('begin')
    if (kept !== undefined) await client.query(`alter schema ${id(real.schema)} rename to ${id(kept)}`)
    await client.query(`alter schema ${id(fresh)} rename to ${id(real.schema)}`)
    await client.query('commit')
    return kept
  })
}
