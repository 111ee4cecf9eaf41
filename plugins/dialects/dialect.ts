import { type CompiledQuery, HandleEmptyInListsPlugin, type Kysely, replaceWithNoncontingentExpression } from 'kysely'
import type { Dialect, Report, TransactOptions } from '../contracts.js'

/** What a transaction needs from the core while it runs; the tenant layer turns it into outbox rows and invalidations. */
export type RawTransact = <R>(work: Work<R>, options?: TransactOptions) => Promise<R>
/** `write`: see `Transaction.write`; left out where a statement is done at once. */
export type Work<R> = (db: Kysely<unknown>, write?: (query: CompiledQuery) => void) => Promise<R>

/** One tenant's database: a file on SQLite, a schema on PostgreSQL. */
export interface TenantDatabase {
  readonly dialect: Dialect
  readonly db: Kysely<unknown>
  readonly transact: RawTransact
  /** See `Tenant.gate`; left out where a read waits for nobody, and where there are too few connections. */
  readonly gate?: Kysely<unknown>
  /** Migrations run here: outside the group commit, with transactional DDL. */
  readonly migrator: { readonly db: Kysely<unknown>; readonly schema?: string }
  /** Changes when another process committed to this database before this turn of the event loop; undefined where the engine cannot tell cheaply. */
  foreignVersion(): number | undefined
  sizeBytes(): Promise<{ database: number; writeAheadLog: number }>
  /** See `Tenant.reports`; left out where there is no replica. */
  reports?(): Promise<Report>
  /** The server that it was opened on, where there are several. */
  readonly home?: string
  close(): Promise<void>
}

/** The switch: one implementation per engine, chosen by the scheme of `DATABASE_URL`. */
export interface DatabaseServer {
  readonly dialect: Dialect
  /** The names of the tenants that exist. */
  tenants(): Promise<string[]>
  exists(tenant: string): Promise<boolean>
  create(tenant: string): Promise<void>
  drop(tenant: string): Promise<void>
  open(tenant: string): Promise<TenantDatabase>
  /** Where there are several servers: which one a tenant was on when `tenants` was last asked. */
  homeOf?(tenant: string): string
  /** Answers within a short bound or rejects. */
  ping(): Promise<void>
  /** Rejects while it answers and takes no writes: a standby, or one that was set so. Where the engine can be asked. */
  takesWrites?(): Promise<void>
  pool(): { idle: number; active: number; waiting: number; max: number }
  /** What the engine counts of itself, for Prometheus. Cheap; rejects where it does not answer. */
  statistics(): Promise<DatabaseStatistics>
  close(): Promise<void>
}

/** How the engine would run a query, line by line, without running it and without its values. */
export type Explain = (query: CompiledQuery) => Promise<readonly string[]>

export interface DatabaseStatistics {
  /** Times that what is in the write-ahead log was written back. */
  readonly checkpoints: number
  /** SQLite: what the files hold and do not use. */
  readonly freeBytes?: number
  readonly server?: PostgresStatistics
}

/** Of this database on its server, whoever uses it. */
export interface PostgresStatistics {
  readonly connections: { readonly active: number; readonly idle: number; readonly in_transaction: number }
  readonly connectionsMax: number
  readonly lockWaiters: number
  readonly oldestTransactionSeconds: number
  readonly deadlocks: number
  readonly blocks: { readonly memory: number; readonly disk: number }
  readonly temporaryBytes: number
}

export interface DatabaseEvents {
  query(operation: string, seconds: number, error: unknown, query: CompiledQuery, explain: Explain): void
  transaction(outcome: 'commit' | 'rollback' | 'retry', seconds: number): void
  /** For a connection of the pool (PostgreSQL), or for the turn to write (SQLite). */
  waited(seconds: number): void
  /** How many transactions shared one commit (SQLite). */
  grouped(transactions: number): void
  /** Where a report is read, and how long it waited until the replica had all that it needs. */
  reported(place: 'replica' | 'primary', seconds: number): void
}

/** For a database that nobody watches. */
export const UNWATCHED: DatabaseEvents = { query() {}, transaction() {}, waited() {}, grouped() {}, reported() {} }

/** `x in ()` is an error on PostgreSQL and nothing on SQLite; an empty list holds nothing, on both. */
export const PLUGINS = [new HandleEmptyInListsPlugin({ strategy: replaceWithNoncontingentExpression })]
