import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { type Kysely, sql } from 'kysely'
import type { Test } from 'tap'
import { openDatabaseServer } from '../../plugins/database.js'
import { UNWATCHED } from '../../plugins/dialects/dialect.js'
import { type MigrateOptions, type MigrationSet, migrate } from '../../plugins/migrate/index.js'
import type { Dialect } from '../helper.js'
import { temporaryFolder } from '../service-process.js'
import { freshDatabase } from '../services.js'

/** Databases as earlier versions left them, and what is in them. */

export interface Opened {
  readonly db: Kysely<unknown>
  readonly schema: string | undefined
  migrate(sets: readonly MigrationSet[], options?: MigrateOptions): Promise<string[]>
}
export interface Place {
  readonly url: string
  readonly dialect: Dialect
  /** As another process would: connections of its own. */
  open(): Promise<Opened>
}

export async function newPlace(t: Test, dialect: Dialect): Promise<Place> {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const url = database?.url ?? `sqlite:${join(temporaryFolder(t), 'inventory.sqlite')}`
  return { url, dialect, open: () => openPlace(t, url) }
}

async function openPlace(t: Test, databaseUrl: string): Promise<Opened> {
  const server = openDatabaseServer({ databaseUrl, tenancy: 'single', poolSize: 4 }, UNWATCHED)
  t.teardown(() => server.close())
  await server.create('main')
  const { migrator } = await server.open('main')
  const { db, schema } = migrator
  return {
    db,
    schema,
    migrate: (sets, options = {}) => migrate(db, sets, { ...(schema === undefined ? {} : { schema }), ...options })
  }
}

/** The migrations of every module, found and not listed, so that a new module is among them. */
export async function allSets(): Promise<MigrationSet[]> {
  const folder = new URL('../../migrations/', import.meta.url)
  const files = readdirSync(folder).filter((name) => name.endsWith('.js') && name !== 'columns.js')
  return Promise.all(
    files.sort().map(async (name) => {
      const exported: Record<string, MigrationSet['migrations']> = await import(new URL(name, folder).href)
      const migrations = Object.entries(exported).find(([key]) => key.endsWith('Migrations'))?.[1]
      if (migrations === undefined) throw new Error(`migrations/${name} exports no migrations`)
      return { module: name.replace('.js', ''), migrations }
    })
  )
}

/** What each module had after its first `steps` migrations. */
export const after = (sets: readonly MigrationSet[], steps: number): MigrationSet[] =>
  sets.map(({ module, migrations }) => ({
    module,
    migrations: Object.fromEntries(Object.entries(migrations).sort().slice(0, steps))
  }))

export interface Column {
  readonly type: string
  readonly required: boolean
  readonly defaulted: boolean
}
export interface Table {
  readonly columns: Record<string, Column>
  /** Columns of each unique index, the primary key's too, as one text. */
  readonly unique: string[]
}
export type Schema = Record<string, Table>

const isOurs = (table: string) => !/^migrations_|^sqlite_|_(data|idx|content|docsize|config)$/.test(table)

/** Tables but the ledgers of migrations and what the search index of SQLite keeps for itself. */
export async function schemaOf({ db, schema }: Opened): Promise<Schema> {
  const rows = schema === undefined ? await sqliteColumns(db) : await postgresColumns(db, schema)
  const unique = schema === undefined ? await sqliteUnique(db) : await postgresUnique(db, schema)
  const tables: Schema = {}
  for (const { table, name, type, required, defaulted } of rows) {
    if (!isOurs(table)) continue
    tables[table] ??= { columns: {}, unique: [] }
    tables[table].columns[name] = { type, required: Boolean(required), defaulted: Boolean(defaulted) }
  }
  for (const { table, columns } of unique) tables[table]?.unique.push(columns)
  for (const table of Object.values(tables)) table.unique.sort()
  return tables
}

interface ColumnRow {
  table: string
  name: string
  type: string
  required: boolean | number
  defaulted: boolean | number
}
const sqliteColumns = async (db: Kysely<unknown>) =>
  (
    await sql<ColumnRow>`select m.name as "table", c.name, lower(c.type) as type, c."notnull" or c.pk > 0 as required,
      c.dflt_value is not null or (c.pk > 0 and lower(c.type) = 'integer') as defaulted
      from sqlite_master m join pragma_table_info(m.name) c where m.type = 'table' order by m.name, c.cid`.execute(db)
  ).rows
const postgresColumns = async (db: Kysely<unknown>, schema: string) =>
  (
    await sql<ColumnRow>`select c.relname as "table", a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
      a.attnotnull as required, a.atthasdef or a.attidentity <> '' as defaulted
      from pg_attribute a join pg_class c on c.oid = a.attrelid
      where c.relnamespace = ${schema}::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
      order by c.relname, a.attnum`.execute(db)
  ).rows

interface UniqueRow {
  table: string
  columns: string
}
const sqliteUnique = async (db: Kysely<unknown>) =>
  (
    await sql<UniqueRow>`select m.name as "table",
      (select group_concat(x.name, ',') from (select name from pragma_index_info(l.name) order by seqno) x) as columns
      from sqlite_master m join pragma_index_list(m.name) l where m.type = 'table' and l."unique" = 1`.execute(db)
  ).rows
const postgresUnique = async (db: Kysely<unknown>, schema: string) =>
  (
    await sql<UniqueRow>`select t.relname as "table", string_agg(a.attname, ',' order by k.n) as columns
      from pg_index i join pg_class t on t.oid = i.indrelid
      cross join lateral unnest(i.indkey::int[]) with ordinality as k (attnum, n)
      join pg_attribute a on a.attrelid = t.oid and a.attnum = k.attnum
      where t.relnamespace = ${schema}::regnamespace and i.indisunique group by i.indexrelid, t.relname`.execute(db)
  ).rows

/** Values that a CHECK wants; `n` is the row's number. All else is `v<n>` or `n`, so that every reference finds its row. */
const SPECIAL: Record<string, (n: number) => string | number> = {
  'users.role': () => 'viewer',
  'api_tokens.role': () => 'viewer',
  'audit_entries.outcome': () => 'success',
  'token_ends.kind': () => 'token',
  'stock_moves.to_account': (n) => (n % ROWS) + 1
}
export const ROWS = 3

/** The database computes them itself. */
const GENERATED = new Set(['item_search.head'])

/** Rows 1 to `ROWS` in every table of ours, by each column's type. */
export async function populate(opened: Opened): Promise<void> {
  const { db, schema } = opened
  const tables = Object.entries(await schemaOf(opened)).filter(
    ([name]) => name !== 'item_search' || schema !== undefined
  )
  await db.transaction().execute(async (tx) => {
    // Rows refer to rows of tables that come later.
    if (schema === undefined) await sql`pragma defer_foreign_keys = on`.execute(tx)
    else await sql`set local session_replication_role = replica`.execute(tx)
    for (const [name, { columns }] of tables) {
      const written = Object.entries(columns).filter(([column]) => !GENERATED.has(`${name}.${column}`))
      await insertRows(tx, schema, name, Object.fromEntries(written))
    }
  })
}

async function insertRows(
  db: Kysely<unknown>,
  schema: string | undefined,
  table: string,
  columns: Table['columns']
): Promise<void> {
  const row = (n: number) =>
    Object.entries(columns).map(([name, { type }]) => {
      const special = SPECIAL[`${table}.${name}`]
      const value = special === undefined ? (/int|double|real|numeric/.test(type) ? n : `v${n}`) : special(n)
      return sql.lit(value)
    })
  const rows = Array.from({ length: ROWS }, (_, n) => sql`(${sql.join(row(n + 1))})`)
  const at = schema === undefined ? sql.id(table) : sql.id(schema, table)
  // What the migrations themselves have put there stays as it is.
  await sql`insert into ${at} (${sql.join(Object.keys(columns).map((name) => sql.id(name)))})
    values ${sql.join(rows)} on conflict do nothing`.execute(db)
}

export async function rowsOf({ db, schema }: Opened, table: string): Promise<Record<string, unknown>[]> {
  const at = schema === undefined ? sql.id(table) : sql.id(schema, table)
  return (await sql<Record<string, unknown>>`select * from ${at}`.execute(db)).rows
}
