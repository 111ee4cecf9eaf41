import type { TlsIdentity } from '../config/secrets.js'
import type { Dialect } from '../contracts.js'

/** How a value travels between engines; see `plugins/portable/values.ts`. */
export type ColumnKind = 'integer' | 'number' | 'text' | 'boolean' | 'json' | 'bytes' | 'instant'
export interface PortableColumn {
  readonly name: string
  readonly kind: ColumnKind
}
export interface PortableTable {
  /** The same on both engines. */
  readonly name: string
  /** What this engine calls it. */
  readonly physical: string
  /** Generated ones are left out. */
  readonly columns: readonly PortableColumn[]
  /** The primary key: rows are read in its order, which is the same on both engines. */
  readonly key: readonly string[]
}
export interface PortableSchema {
  /** Each after those it refers to. */
  readonly tables: readonly PortableTable[]
  /** Applied migrations, in order, by module. */
  readonly migrations: Readonly<Record<string, readonly string[]>>
}
export type PortableValue = string | number | boolean | null
/** In the order of the table's columns. */
export type PortableRow = readonly PortableValue[]

/** Where a tenant's data is, or is to be. */
export type Place =
  | { readonly dialect: 'sqlite'; readonly path: string }
  | { readonly dialect: 'postgres'; readonly url: string; readonly tls?: TlsIdentity; readonly schema: string }

/** What a module's tables need beyond their columns to be the same on both engines. */
export interface Portability {
  /** Tables that are this engine's own business. */
  readonly notCopied?: readonly string[]
  /** By the name on PostgreSQL: the table that holds the same on SQLite, and what fills its virtual tables from it. */
  readonly onSqlite?: Readonly<Record<string, OnSqlite>>
}
interface OnSqlite {
  readonly table: string
  readonly rebuild: readonly string[]
  /** The same for one row, by its key. */
  readonly follow: { readonly remove: readonly string[]; readonly put: readonly string[] }
}

/** One consistent state of a tenant's data. It must be closed. */
export interface PortableReader {
  readonly dialect: Dialect
  readonly schema: PortableSchema
  /** Rows in the order of the key, in chunks of at most `chunk`; `after` and `through` are keys, the first not included. */
  rows(table: PortableTable, range?: RowRange): AsyncIterable<readonly PortableRow[]>
  /** The rows that have these keys; those that do not exist are missing. */
  find(table: PortableTable, keys: readonly PortableRow[]): Promise<readonly PortableRow[]>
  count(table: PortableTable): Promise<number>
  close(): Promise<void>
}
export interface RowRange {
  readonly after?: PortableRow
  readonly through?: PortableRow
  readonly chunk?: number
}

/** Writes rows past the triggers that guard them. It must be closed. */
export interface PortableWriter {
  readonly dialect: Dialect
  readonly schema: PortableSchema
  /** Empties a migrated database and takes off what slows loading down or refuses it: triggers, references, indexes. */
  startLoad(): Promise<void>
  /** Puts all of it back, which checks every reference, and sets the counters of identities past what is there. */
  finishLoad(): Promise<void>
  transaction<R>(work: () => Promise<R>): Promise<R>
  insert(table: PortableTable, rows: readonly PortableRow[]): Promise<void>
  /** Inserts, or replaces the row that has the key. */
  put(table: PortableTable, rows: readonly PortableRow[]): Promise<void>
  remove(table: PortableTable, keys: readonly PortableRow[]): Promise<void>
  close(): Promise<void>
}
