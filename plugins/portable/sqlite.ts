import { setImmediate as turn } from 'node:timers/promises'
import Sqlite from 'better-sqlite3'
import type {
  Portability,
  PortableReader,
  PortableRow,
  PortableSchema,
  PortableTable,
  PortableWriter,
  RowRange
} from '../contracts.js'
import { type FoundTable, inOrder, isLedger, kindOf, ledgerModule } from './tables.js'
import { decoder, forSqlite, keyOf } from './values.js'

const CHUNK_ROWS = 500
const BUSY_TIMEOUT_MS = 5_000
/** What was taken off before a load, so that it can be put back after a crash too. */
export const SUSPENDED = 'portable_suspended'

const id = (name: string): string => `"${name.replaceAll('"', '""')}"`
const list = (names: readonly string[]): string => names.map(id).join(', ')
const marks = (count: number): string => Array.from({ length: count }, () => '?').join(', ')

/** Reads one state of the file, whatever is written meanwhile: a read transaction under WAL blocks no writer. */
export function sqliteReader(path: string, traits: readonly Portability[]): PortableReader {
  const db = new Sqlite(path, { fileMustExist: true, timeout: BUSY_TIMEOUT_MS })
  db.pragma('query_only = ON')
  db.exec('begin')
  // The first read is what fixes the state.
  return { ...sqliteRows(db, sqliteSchema(db, traits)), close: async () => void db.close() }
}

/** The rows of a connection that is in a read transaction. */
export const sqliteRows = (db: Sqlite.Database, schema: PortableSchema): Omit<PortableReader, 'close'> => ({
  dialect: 'sqlite',
  schema,
  rows: (table, range) => rowsOf(db, table, range),
  find: async (table, keys) => findRows(db, table, keys),
  count: async ({ physical }) =>
    Number(
      db
        .prepare(`select count(*) from ${id(physical)}`)
        .pluck()
        .get()
    )
})

/** The file must exist and be migrated; nobody else may use it while it is loaded. */
export function sqliteWriter(path: string, traits: readonly Portability[], onto?: Sqlite.Database): PortableWriter {
  const db = onto ?? new Sqlite(path, { fileMustExist: true, timeout: BUSY_TIMEOUT_MS })
  db.pragma('foreign_keys = OFF')
  const schema = sqliteSchema(db, traits)
  const write = (verb: string) => async (table: PortableTable, rows: readonly PortableRow[]) => {
    const names = table.columns.map(({ name }) => name)
    const kinds = table.columns.map(({ kind }) => kind)
    const statement = db.prepare(`${verb} into ${id(table.physical)} (${list(names)}) values (${marks(names.length)})`)
    for (const row of rows) statement.run(row.map((value, n) => forSqlite(kinds[n] ?? 'text', value)))
  }
  return {
    dialect: 'sqlite',
    schema,
    startLoad: async () => startLoad(db, schema),
    finishLoad: async () => finishLoad(db, schema, traits),
    transaction: async (work) => {
      db.exec('begin immediate')
      try {
        const result = await work()
        db.exec('commit')
        return result
      } catch (error) {
        if (db.inTransaction) db.exec('rollback')
        throw error
      }
    },
    insert: write('insert'),
    put: write('insert or replace'),
    remove: async (table, keys) => {
      const statement = db.prepare(`delete from ${id(table.physical)} where ${keyIs(table)}`)
      for (const key of keys) statement.run(bound(table, key))
    },
    close: async () => void db.close()
  }
}

/** The tables of a file as both engines know them. */
export function sqliteSchema(db: Sqlite.Database, traits: readonly Portability[]): PortableSchema {
  const notCopied = new Set([SUSPENDED, ...traits.flatMap((trait) => trait.notCopied ?? [])])
  const renamed = new Map(
    traits.flatMap(({ onSqlite = {} }) => Object.entries(onSqlite).map(([name, { table }]) => [table, name] as const))
  )
  const names = textsOf(
    db,
    String.raw`select name from pragma_table_list where schema = 'main' and type = 'table' and name not like 'sqlite\_%' escape '\'`
  )
  const found = names
    .filter((name) => !notCopied.has(name) && !isLedger(name))
    .map((physical) => foundTable(db, physical, renamed.get(physical) ?? physical))
  const migrations: Record<string, string[]> = {}
  for (const ledger of names.sort()) {
    const module = ledgerModule(ledger)
    if (module !== undefined) migrations[module] = textsOf(db, `select name from ${id(ledger)} order by name`)
  }
  return inOrder(found, migrations)
}

function foundTable(db: Sqlite.Database, physical: string, name: string): FoundTable {
  const info = db
    .prepare<[string], { name: string; type: string; pk: number; hidden: number }>(
      'select name, type, pk, hidden from pragma_table_xinfo(?) order by cid'
    )
    .all(physical)
  // Hidden ones are generated: the target makes them anew.
  const stored = info.filter(({ hidden }) => hidden === 0)
  const keys = stored.filter(({ pk }) => pk > 0).sort((a, b) => a.pk - b.pk)
  return {
    name,
    physical,
    columns: stored.map((column) => ({ name: column.name, kind: kindOf(column.type, `${name}.${column.name}`) })),
    key: keys.map((column) => column.name),
    references: textsOf(db, 'select distinct "table" from pragma_foreign_key_list(?)', physical)
  }
}

const textsOf = (db: Sqlite.Database, query: string, ...parameters: string[]): string[] =>
  db
    .prepare(query)
    .pluck()
    .all(...parameters)
    .map(String)

const keyIs = (table: PortableTable): string => table.key.map((name) => `${id(name)} = ?`).join(' and ')
const bound = (table: PortableTable, key: PortableRow) =>
  table.key.map((name, n) => {
    const kind = table.columns.find((column) => column.name === name)?.kind ?? 'text'
    return forSqlite(kind, key[n] ?? null)
  })

const selected = (table: PortableTable): string =>
  `select ${list(table.columns.map(({ name }) => name))} from ${id(table.physical)}`

async function* rowsOf(db: Sqlite.Database, table: PortableTable, range: RowRange = {}) {
  const { through, chunk = CHUNK_ROWS } = range
  const decode = decoder(table)
  const keys = list(table.key)
  const from = `(${keys}) > (${marks(table.key.length)})`
  const to = through === undefined ? [] : [`(${keys}) <= (${marks(table.key.length)})`]
  const statement = (conditions: readonly string[]) => {
    const where = conditions.length === 0 ? '' : `where ${conditions.join(' and ')}`
    return db
      .prepare(`${selected(table)} ${where} order by ${keys} limit ${chunk}`)
      .raw()
      .safeIntegers()
  }
  const following = statement([from, ...to])
  const bounds = through === undefined ? [] : bound(table, through)
  for (let after = range.after; ; ) {
    const raw = after === undefined ? statement(to).all(...bounds) : following.all(...bound(table, after), ...bounds)
    const rows = raw.map((row) => decode(Array.isArray(row) ? row : []))
    const last = rows.at(-1)
    if (last === undefined) return
    yield rows
    if (rows.length < chunk) return
    after = keyOf(table, last)
    await turn()
  }
}

function findRows(db: Sqlite.Database, table: PortableTable, keys: readonly PortableRow[]): PortableRow[] {
  const decode = decoder(table)
  const statement = db
    .prepare(`${selected(table)} where ${keyIs(table)}`)
    .raw()
    .safeIntegers()
  return keys.flatMap((key) => {
    const row = statement.get(...bound(table, key))
    return Array.isArray(row) ? [decode(row)] : []
  })
}

function startLoad(db: Sqlite.Database, { tables }: PortableSchema): void {
  db.pragma('synchronous = OFF')
  db.transaction(() => {
    db.exec(`create table if not exists ${SUSPENDED} (position integer primary key, statement text not null)`)
    const suspended = db
      .prepare<[], { type: string; name: string; sql: string }>(
        "select type, name, sql from sqlite_schema where type in ('index', 'trigger') and sql is not null order by rowid"
      )
      .all()
    const keep = db.prepare(`insert into ${SUSPENDED} (statement) values (?)`)
    for (const { type, name, sql } of suspended) {
      keep.run(sql)
      db.exec(`drop ${type} ${id(name)}`)
    }
    for (const { physical } of [...tables].reverse()) db.exec(`delete from ${id(physical)}`)
  })()
}

/** @throws Error that names rows which refer to something that is not there */
function finishLoad(db: Sqlite.Database, { tables }: PortableSchema, traits: readonly Portability[]): void {
  db.transaction(() => {
    for (const statement of textsOf(db, `select statement from ${SUSPENDED} order by position`)) db.exec(statement)
    db.exec(`drop table ${SUSPENDED}`)
    const loaded = new Set(tables.map(({ name }) => name))
    for (const [name, { rebuild }] of traits.flatMap(({ onSqlite = {} }) => Object.entries(onSqlite)))
      if (loaded.has(name)) for (const statement of rebuild) db.exec(statement)
    const broken = textsOf(
      db,
      `select distinct "table" || ' refers to a row of ' || parent || ' that is not there' from pragma_foreign_key_check`
    )
    if (broken.length > 0) throw new Error(broken.join('; '))
  })()
  db.pragma('synchronous = FULL')
  db.exec('analyze')
  db.pragma('wal_checkpoint(TRUNCATE)')
}
