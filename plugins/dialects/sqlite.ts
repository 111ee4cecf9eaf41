import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'
import Sqlite from 'better-sqlite3'
import {
  CompiledQuery,
  type DatabaseConnection,
  Kysely,
  type LimitNode,
  type LogEvent,
  SqliteAdapter,
  SqliteDialect,
  SqliteDriver,
  SqliteQueryCompiler
} from 'kysely'
import { LRUCache } from 'lru-cache'
import type { TransactOptions } from '../contracts.js'
import { DatabaseBusy } from '../http/errors.js'
import {
  type DatabaseEvents,
  type DatabaseServer,
  type Explain,
  PLUGINS,
  type RawTransact,
  type TenantDatabase
} from './dialect.js'
import { createWriteBack, keepLog, type Log, restartsOf, sizeOf, type WriteBack } from './sqlite-log.js'

const BUSY_TIMEOUT_MS = 5_000
const BUSY_RETRY_MS = 10
/** Together. A statement's memory grows with its text, and one that lists a thousand values hardly comes again. */
const STATEMENTS_MAX_CHARS = 500_000
const STATEMENT_MAX_CHARS = 8_000
/** Looking at one takes some 20 µs, in which nothing is served. */
const FILES_AT_ONCE = 100
/** Bounds the time one fsync's worth of requests may hold the event loop. */
const GROUP_MAX = 64

interface SqliteServerOptions {
  /** A path, or `:memory:`. */
  path: string
  multi: boolean
  events: DatabaseEvents
}

/** SQLite: one file is one tenant; many tenants are files in `tenants/` beside the named one. */
export function sqliteServer({ path, multi, events }: SqliteServerOptions): DatabaseServer {
  if (path !== ':memory:') return fileServer(path, multi, events, 'FULL')
  // "In memory" is a file of the temporary folder: the same two connections and behaviour, gone when it closes.
  const folder = mkdtempSync(join(tmpdir(), 'inventory-'))
  const remove = () => rmSync(folder, { recursive: true, force: true })
  process.once('exit', remove)
  const server = fileServer(join(folder, 'main.sqlite'), multi, events, 'OFF')
  return {
    ...server,
    close: async () => {
      await server.close()
      process.off('exit', remove)
      remove()
    }
  }
}

const tenantsFolder = (path: string) => join(dirname(path), 'tenants')
/** The file that holds a tenant, where `path` is the one of the URL. */
export const tenantFile = (path: string, multi: boolean, tenant: string): string =>
  multi ? join(tenantsFolder(path), `${tenant}.sqlite`) : path

type Synchronous = 'FULL' | 'OFF'

function fileServer(path: string, multi: boolean, events: DatabaseEvents, synchronous: Synchronous): DatabaseServer {
  const folder = tenantsFolder(path)
  const fileOf = (tenant: string) => tenantFile(path, multi, tenant)
  const open = new Map<string, SqliteDatabase>()
  const writeBack = createWriteBack()
  mkdirSync(multi ? folder : dirname(path), { recursive: true, mode: 0o700 })
  return {
    dialect: 'sqlite',
    tenants: async () =>
      multi
        ? readdirSync(folder)
            .filter((name) => name.endsWith('.sqlite'))
            .map((name) => name.slice(0, -'.sqlite'.length))
            .sort()
        : ['main'],
    exists: async (tenant) => existsSync(fileOf(tenant)),
    create: async (tenant) => {
      if (existsSync(fileOf(tenant))) return
      makeFile(fileOf(tenant))
      new Sqlite(fileOf(tenant)).close()
    },
    drop: async (tenant) => {
      await open.get(tenant)?.close()
      for (const suffix of ['', '-wal', '-shm']) rmSync(fileOf(tenant) + suffix, { force: true })
    },
    open: async (tenant) => {
      const file = openFile(fileOf(tenant), events, synchronous, writeBack)
      const opened: SqliteDatabase = {
        ...file,
        close: async () => {
          if (open.get(tenant) === opened) open.delete(tenant)
          await file.close()
        }
      }
      open.set(tenant, opened)
      return opened
    },
    ping: async () => {
      const [tenant] = open.values()
      await tenant?.db.executeQuery(CompiledQuery.raw('select 1'))
    },
    pool: () => ({ idle: open.size, active: 0, waiting: 0, max: open.size }),
    statistics: async () => {
      const total = { checkpoints: 0, freeBytes: 0 }
      let looked = 0
      for (const file of open.values()) {
        if (++looked % FILES_AT_ONCE === 0) await nextTurn()
        const { checkpoints, freeBytes } = file.fileStatistics()
        total.checkpoints += checkpoints
        total.freeBytes += freeBytes
      }
      return total
    },
    close: async () => {
      for (const tenant of [...open.values()]) await tenant.close()
      await writeBack.close()
    }
  }
}

interface SqliteDatabase extends TenantDatabase {
  fileStatistics(): { checkpoints: number; freeBytes: number }
}

function openFile(
  path: string,
  events: DatabaseEvents,
  synchronous: Synchronous,
  writeBack: WriteBack
): SqliteDatabase {
  // A second connection reads the last committed state while a group of writes is open on the first.
  const writer = connect(path, synchronous)
  const reader = connect(path, synchronous)
  reader.pragma('query_only = ON')
  const shared = { log: observe(events, explainOn(reader)), plugins: PLUGINS }
  const writerDb = new Kysely<unknown>({ dialect: new Dialect(writer, Driver), ...shared })
  const readerDb = new Kysely<unknown>({ dialect: new Dialect(reader, ReaderDriver), ...shared })
  const exclusive = mutex()
  const log = keepLog(writer, () => writeBack.file(path), exclusive)
  const dataVersion = writer.prepare('pragma data_version').pluck()
  const freePages = reader.prepare('pragma freelist_count').pluck()
  const pageSize = Number(reader.pragma('page_size', { simple: true }))
  return {
    dialect: 'sqlite',
    db: readerDb,
    transact: groupCommit({ writer, db: writerDb, log, exclusive, events, synchronous }),
    migrator: { db: writerDb },
    foreignVersion: oncePerTurn(() => Number(dataVersion.get())),
    sizeBytes: async () => ({ database: sizeOf(path), writeAheadLog: sizeOf(`${path}-wal`) }),
    fileStatistics: () => ({ checkpoints: restartsOf(`${path}-wal`), freeBytes: Number(freePages.get()) * pageSize }),
    close: async () => {
      await log.close()
      await exclusive(async () => {
        await writerDb.destroy()
        await readerDb.destroy()
        // Kysely closes a connection only when it has used it.
        writer.close()
        reader.close()
      })
    }
  }
}

/** Requests that were read from their sockets in the same turn of the event loop share one answer: each would take 5 µs for its own. */
function oncePerTurn<T>(ask: () => T): () => T {
  let known: { readonly value: T } | undefined
  return () => {
    if (known !== undefined) return known.value
    known = { value: ask() }
    setImmediate(() => {
      known = undefined
    })
    return known.value
  }
}

/** For this user alone, as SQLite would not make it; it gives its log the mode of the file. One that is there is not touched. */
function makeFile(path: string): void {
  if (existsSync(path)) return
  try {
    closeSync(openSync(path, 'wx', 0o600))
  } catch {
    // Another process has made it, or SQLite says why it cannot be made.
  }
}

function connect(path: string, synchronous: Synchronous): Sqlite.Database {
  makeFile(path)
  // Another process may be making the same file.
  const db = new Sqlite(path, { timeout: BUSY_TIMEOUT_MS })
  db.pragma('journal_mode = WAL')
  // From here on waiting inside SQLite would block the event loop, so the wait is ours (see `whenFree`); reads never wait under WAL.
  db.pragma('busy_timeout = 0')
  db.pragma(`synchronous = ${synchronous}`)
  db.pragma('foreign_keys = ON')
  db.pragma('temp_store = MEMORY')
  // No mmap_size: with a write-ahead log, a mapped page is looked up and set up anew at every use, a cached one only once.
  db.pragma('cache_size = -32000')
  return db
}

/** Preparing costs more than running a small statement, so each connection keeps the statements it has prepared. */
function withStatementCache(db: Sqlite.Database) {
  const statements = new LRUCache<string, Sqlite.Statement>({
    maxSize: STATEMENTS_MAX_CHARS,
    maxEntrySize: STATEMENT_MAX_CHARS,
    sizeCalculation: (_statement, sql) => sql.length
  })
  return {
    close: () => void db.close(),
    prepare: (sql: string) => {
      const known = statements.get(sql)
      if (known !== undefined) return known
      const statement = db.prepare(sql)
      statements.set(sql, statement)
      return statement
    }
  }
}

class Driver extends SqliteDriver {
  override async beginTransaction(connection: DatabaseConnection): Promise<void> {
    // A deferred transaction that upgrades to a write fails at once when another wrote meanwhile; an immediate one waits.
    await whenFree(() => connection.executeQuery(CompiledQuery.raw('begin immediate')))
  }
}

/** Each read is a call of its own, begun and ended at once, so all share the connection; in a queue, every one wakes all that wait. */
class ReaderDriver extends Driver {
  #connection: Promise<DatabaseConnection> | undefined
  override acquireConnection(): Promise<DatabaseConnection> {
    this.#connection ??= super.acquireConnection()
    return this.#connection
  }
  override async releaseConnection(): Promise<void> {}
}

/** Kysely assumes that SQLite cannot undo DDL; it can, and a failed migration must not stay half applied. */
class TransactionalDdlAdapter extends SqliteAdapter {
  override get supportsTransactionalDdl(): boolean {
    return true
  }
}

/** The value of a bare parameter would be looked at to plan with, and so each time one is bound the statement is prepared anew. */
class QueryCompiler extends SqliteQueryCompiler {
  protected override visitLimit(node: LimitNode): void {
    super.visitLimit(node)
    this.append(' + 0')
  }
}

class Dialect extends SqliteDialect {
  readonly #database: ReturnType<typeof withStatementCache>
  readonly #driver: typeof Driver
  constructor(db: Sqlite.Database, driver: typeof Driver) {
    const database = withStatementCache(db)
    super({ database })
    this.#database = database
    this.#driver = driver
  }
  override createDriver(): Driver {
    return new this.#driver({ database: this.#database })
  }
  override createQueryCompiler(): QueryCompiler {
    return new QueryCompiler()
  }
  override createAdapter(): TransactionalDdlAdapter {
    return new TransactionalDdlAdapter()
  }
}

export const observe = (events: DatabaseEvents, explain: Explain) => (event: LogEvent) => {
  const operation = OPERATIONS[event.query.query.kind] ?? 'other'
  const error = event.level === 'error' ? event.error : undefined
  events.query(operation, event.queryDurationMillis / 1000, error, event.query, explain)
}

/** On the connection that reads, so never inside a transaction. Its plans name columns and no values. */
const explainOn =
  (reader: Sqlite.Database): Explain =>
  async ({ sql, parameters }) =>
    reader
      .prepare<unknown[], { id: number; parent: number; detail: string }>(`explain query plan ${sql}`)
      .all(parameters.map(() => null))
      .map(({ detail }) => detail)

const OPERATIONS: Record<string, string> = {
  SelectQueryNode: 'select',
  InsertQueryNode: 'insert',
  UpdateQueryNode: 'update',
  DeleteQueryNode: 'delete',
  RawNode: 'other'
}

function mutex() {
  let tail: Promise<unknown> = Promise.resolve()
  return <R>(work: () => Promise<R>): Promise<R> => {
    const result = tail.then(work)
    tail = result.catch(() => {})
    return result
  }
}

interface Pending {
  readonly relaxed: boolean
  readonly since: number
  run(db: Kysely<unknown>): Promise<void>
  settle(failure?: unknown): void
}

interface GroupCommitOptions {
  writer: Sqlite.Database
  db: Kysely<unknown>
  log: Log
  exclusive: ReturnType<typeof mutex>
  events: DatabaseEvents
  synchronous: Synchronous
}

/**
 * Group commit: the transactions that arrive within one turn of the event loop share one BEGIN … COMMIT and so one fsync;
 * each runs in a savepoint of its own, so that one failure undoes itself alone.
 */
function groupCommit({ writer, db, log, exclusive, events, synchronous }: GroupCommitOptions): RawTransact {
  let current: Synchronous | 'NORMAL' = synchronous
  /** A commit waits for the disk when one of its members asked for that. Nothing changes while a transaction is open. */
  const waitForDisk = (wait: boolean) => {
    const wanted = wait || synchronous === 'OFF' ? synchronous : 'NORMAL'
    if (wanted === current) return
    writer.pragma(`synchronous = ${wanted}`)
    current = wanted
  }
  const queue: Pending[] = []
  let scheduled = false

  async function commitGroup(): Promise<void> {
    const group = queue.splice(0, GROUP_MAX)
    const startedAt = performance.now()
    const finish = (outcome: 'commit' | 'rollback', member: Pending, failure?: unknown) => {
      events.transaction(outcome, (performance.now() - startedAt) / 1000)
      member.settle(failure)
    }
    try {
      waitForDisk(group.some(({ relaxed }) => !relaxed))
      await whenFree(() => writer.exec('begin immediate'))
    } catch (error) {
      for (const member of group) finish('rollback', member, error)
      return
    }
    const begunAt = performance.now()
    for (const { since } of group) events.waited((begunAt - since) / 1000)
    const succeeded: Pending[] = []
    for (const [n, member] of group.entries()) {
      try {
        writer.exec('savepoint member')
        await member.run(db)
        writer.exec('release member')
        succeeded.push(member)
      } catch (error) {
        if (!writer.inTransaction) {
          // SQLite itself has rolled everything back (disk full, I/O error). No neighbour may be acknowledged, and those that follow
          // would each be a transaction of their own.
          for (const each of [...succeeded, ...group.slice(n)]) finish('rollback', each, error)
          return
        }
        writer.exec('rollback to member; release member')
        finish('rollback', member, error)
      }
    }
    try {
      writer.exec('commit')
    } catch (error) {
      if (writer.inTransaction) writer.exec('rollback')
      for (const member of succeeded) finish('rollback', member, error)
      return
    }
    events.grouped(succeeded.length)
    for (const member of succeeded) finish('commit', member)
    log.committed()
  }

  const schedule = () => {
    if (scheduled) return
    scheduled = true
    // After the sockets of this turn were read: what arrived together commits together.
    setImmediate(() => {
      scheduled = false
      void exclusive(commitGroup).then(() => {
        if (queue.length > 0) schedule()
      })
    })
  }

  return <R>(work: (db: Kysely<unknown>) => Promise<R>, { durability = 'full' }: TransactOptions = {}) =>
    new Promise<R>((resolve, reject) => {
      let result: { value: R } | undefined
      queue.push({
        relaxed: durability === 'relaxed',
        since: performance.now(),
        run: async (connection) => {
          result = { value: await work(connection) }
        },
        settle: (failure) => {
          if (failure !== undefined || result === undefined) reject(failure)
          else resolve(result.value)
        }
      })
      schedule()
    })
}

/** Runs it again while another process writes. @throws DatabaseBusy */
async function whenFree<R>(attempt: () => R | Promise<R>): Promise<R> {
  const deadline = performance.now() + BUSY_TIMEOUT_MS
  for (;;) {
    try {
      return await attempt()
    } catch (error) {
      const busy = error instanceof Sqlite.SqliteError && error.code.startsWith('SQLITE_BUSY')
      if (!busy) throw error
      if (performance.now() > deadline) throw new DatabaseBusy({ retryAfterSeconds: 1 })
      await sleep(BUSY_RETRY_MS)
    }
  }
}
