import { randomUUID } from 'node:crypto'
import Sqlite from 'better-sqlite3'
import type { Portability, PortableRow, PortableSchema, PortableTable, PortableWriter } from '../contracts.js'
import { FENCED_MESSAGE } from '../http/errors.js'
import { sqliteRows, sqliteSchema, sqliteWriter } from '../portable/sqlite.js'
import { keyOf } from '../portable/values.js'
import {
  type Change,
  changesOf,
  type Mark,
  type Purpose,
  type Side,
  type State,
  Superseded,
  sameMark,
  shapeOf
} from './side.js'

const BUSY_TIMEOUT_MS = 5_000
const CHUNK_ROWS = 500
const ALL = '9223372036854775807'

const id = (name: string): string => `"${name.replaceAll('"', '""')}"`
const text = (value: string): string => `'${value.replaceAll("'", "''")}'`

/** The last change noted, and the greatest key of each table that is followed by its keys. */
interface Position {
  readonly seq: number
  readonly grown: Readonly<Record<string, number>>
}

/**
 * `history`: rows are only ever added, under growing keys, so their keys alone tell what is new. `numbered`: so it is with
 * new rows whose key is one more than the greatest, but others may change. What the tables themselves tell need not be noted:
 * that is what keeps the price of a write low.
 */
type Growth = 'history' | 'numbered' | 'none'

function growthOf(db: Sqlite.Database, { physical, key }: PortableTable): Growth {
  const types = db.prepare<[string], { name: string; type: string }>('select name, type from pragma_table_xinfo(?)')
  const first =
    types
      .all(physical)
      .find(({ name }) => name === key[0])
      ?.type.toLowerCase() ?? ''
  const guards = db
    .prepare<[string], string>("select sql from sqlite_schema where type = 'trigger' and tbl_name = ?")
    .pluck()
    .all(physical)
  const refuses = (event: string) => guards.some((sql) => new RegExp(`before ${event} on \\S+\\s+begin`, 'i').test(sql))
  if (/int/.test(first) && refuses('update') && refuses('delete')) return 'history'
  const { wr } = db
    .prepare<[string], { wr: number }>('select wr from pragma_table_list where name = ?')
    .get(physical) ?? {
    wr: 1
  }
  // A key that is another table's is given, not drawn, and `insert or replace` may put a row in the place of the last one.
  const given = db
    .prepare<[string], string>('select "from" from pragma_foreign_key_list(?)')
    .pluck()
    .all(physical)
    .includes(key[0] ?? '')
  return key.length === 1 && first === 'integer' && wr === 0 && !given ? 'numbered' : 'none'
}

/** `create trigger` statements that note the keys of changed rows. */
function captureTriggers(purpose: Purpose, { physical, key }: PortableTable, growth: Growth): string[] {
  if (growth === 'history') return []
  const value = (row: string) => {
    const values = key.map((name) => `${row}.${id(name)}`)
    return values.length === 1 ? values[0] : `json_array(${values.join(', ')})`
  }
  const trigger = (event: string, row: string, when = '', suffix = event) =>
    `create trigger ${id(`${purpose}_note_${physical}_${suffix}`)} after ${event} on ${id(physical)} ${when}
     begin insert into ${purpose}_changes (name, k) values (${text(physical)}, ${value(row)}); end`
  const first = id(key[0] ?? '')
  const inserted = growth === 'numbered' ? `when new.${first} <> (select max(${first}) from ${id(physical)})` : ''
  const moved = `when ${key.map((name) => `old.${id(name)} is not new.${id(name)}`).join(' or ')}`
  return [
    trigger('insert', 'new', inserted),
    trigger('update', 'new'),
    trigger(`update of ${key.map(id).join(', ')}`, 'old', moved, 'moved'),
    trigger('delete', 'old')
  ]
}

const fenceTriggers = ({ physical }: PortableTable): string[] =>
  ['insert', 'update', 'delete'].map(
    (event) => `create trigger ${id(`mirror_fence_${physical}_${event}`)} before ${event} on ${id(physical)}
      when (select fenced from mirror_fence) begin select raise(abort, ${text(FENCED_MESSAGE)}); end`
  )

/** What a service's own writer runs from time to time: the last row stays, so that no number comes twice. */
export const pruneSqlite = (
  through: string,
  purpose: Purpose = 'mirror'
): { statement: string; values: readonly number[] } => ({
  statement: `delete from ${purpose}_changes where seq in (
    select seq from ${purpose}_changes where seq <= ? and seq < (select max(seq) from ${purpose}_changes) order by seq limit 2000)`,
  values: [seqOf(through)]
})
const parse = (position: string): Position => JSON.parse(position)
const seqOf = (position: string): number => parse(position).seq

/** Opens the file beside the service that uses it; its writes wait for the others, at most some seconds. */
export function sqliteSide(path: string, traits: readonly Portability[], purpose: Purpose = 'mirror'): Side {
  const [CAPTURE, CHANGES] = [`${purpose}_capture`, `${purpose}_changes`]
  const CAPTURES = `${purpose}_note_*`
  const options = { fileMustExist: true, timeout: BUSY_TIMEOUT_MS }
  const db = new Sqlite(path, options)
  db.pragma('foreign_keys = OFF')
  const reader = new Sqlite(path, options)
  reader.pragma('query_only = ON')
  const schema = sqliteSchema(db, traits)
  const writer = { ...sqliteWriter(path, traits, db), close: async () => {} }
  const following = alongside(db, writer, traits)
  const growth = new Map(schema.tables.map((table) => [table.physical, growthOf(db, table)]))
  const grows = schema.tables.filter(({ physical }) => growth.get(physical) !== 'none')
  // Nothing is counted again while nobody has written.
  let counted: { since: string; version: number; changes: number } | undefined
  const exists = (name: string) =>
    db.prepare("select 1 from sqlite_schema where type = 'table' and name = ?").get(name) !== undefined
  const dropTriggers = (pattern: string) => {
    const names = db
      .prepare<[string], string>("select name from sqlite_schema where type = 'trigger' and name glob ?")
      .pluck()
    for (const name of names.all(pattern)) db.exec(`drop trigger ${id(name)}`)
  }

  const position = (from: Sqlite.Database): Position => ({
    // A copy is read too, and notes nothing.
    seq: exists(CHANGES) ? number(from, `select coalesce(max(seq), 0) from ${CHANGES}`) : 0,
    grown: Object.fromEntries(
      grows.map(({ physical, key }) => [
        physical,
        number(from, `select coalesce(max(${id(key[0] ?? '')}), ${-Number.MAX_SAFE_INTEGER}) from ${id(physical)}`)
      ])
    )
  })

  return {
    schema,
    writer,
    capture: async () => {
      const shape = shapeOf(schema)
      return db
        .transaction(() => {
          if (exists(CAPTURE)) {
            const known = db.prepare<[], { id: string; shape: string }>(`select id, shape from ${CAPTURE}`).get()
            if (known?.shape === shape && !lacksTriggers(db, purpose, schema, growth)) return known.id
          }
          dropTriggers(CAPTURES)
          db.exec(`drop table if exists ${CAPTURE}; drop table if exists ${CHANGES};
            create table ${CAPTURE} (id text not null, shape text not null);
            create table ${CHANGES} (seq integer primary key, name text not null, k)`)
          for (const table of schema.tables) {
            const triggers = captureTriggers(purpose, table, growth.get(table.physical) ?? 'none')
            for (const statement of triggers) db.exec(statement)
          }
          const capture = randomUUID()
          db.prepare(`insert into ${CAPTURE} values (?, ?)`).run(capture, shape)
          return capture
        })
        .immediate()
    },
    release: async () => {
      db.transaction(() => {
        dropTriggers(CAPTURES)
        db.exec(`drop table if exists ${CAPTURE}; drop table if exists ${CHANGES}`)
      }).immediate()
    },
    fence: async (on) => {
      db.transaction(() => {
        dropTriggers(FENCES)
        db.exec('drop table if exists mirror_fence')
        if (!on) return
        db.exec('create table mirror_fence (fenced integer not null); insert into mirror_fence values (1)')
        for (const table of schema.tables) for (const statement of fenceTriggers(table)) db.exec(statement)
      }).immediate()
    },
    state: async () => {
      reader.exec('begin')
      try {
        const now = position(reader)
        return sqliteState(reader, schema, growth, now, CHANGES)
      } catch (error) {
        reader.exec('rollback')
        throw error
      }
    },
    pending: async (since) => {
      const version = number(reader, 'pragma data_version')
      if (counted?.since === since && counted.version === version) return counted.changes
      const [before, now] = [parse(since), position(reader)]
      const grown = Object.entries(now.grown).map(([name, key]) => Math.max(0, key - (before.grown[name] ?? key)))
      counted = { since, version, changes: now.seq - before.seq + grown.reduce((sum, more) => sum + more, 0) }
      return counted.changes
    },
    prune: async (through) => {
      const { statement, values } = pruneSqlite(through, purpose)
      while (db.prepare(statement).run(...values).changes > 0);
    },
    mark: async () =>
      exists('mirror_position')
        ? db.prepare<[], Mark>('select capture, position from mirror_position').get()
        : undefined,
    apply: async (from, to, work) => {
      const fenced = exists('mirror_fence')
      db.exec('create table if not exists mirror_position (capture text not null, position text not null)')
      await writer.transaction(async () => {
        const known = db.prepare<[], Mark>('select capture, position from mirror_position').get()
        if (!sameMark(known, from)) throw new Superseded()
        if (fenced) db.exec('update mirror_fence set fenced = 0')
        await work(following)
        db.exec('delete from mirror_position')
        if (to !== undefined) db.prepare('insert into mirror_position values (?, ?)').run(to.capture, to.position)
        if (fenced) db.exec('update mirror_fence set fenced = 1')
      })
    },
    // A new row is numbered by what is there.
    advance: async () => {},
    close: async () => {
      db.close()
      reader.close()
    }
  }
}

const FENCES = 'mirror_fence_*'

/** A migration that makes a table anew takes its triggers away. */
function lacksTriggers(
  db: Sqlite.Database,
  purpose: Purpose,
  { tables }: PortableSchema,
  growth: ReadonlyMap<string, Growth>
): boolean {
  const known = new Set(db.prepare<[], string>("select name from sqlite_schema where type = 'trigger'").pluck().all())
  return tables.some(
    ({ physical }) => growth.get(physical) !== 'history' && !known.has(`${purpose}_note_${physical}_update`)
  )
}

/** Rows of a virtual table follow those that they are made from. */
function alongside(db: Sqlite.Database, writer: PortableWriter, traits: readonly Portability[]): PortableWriter {
  const all = new Map(traits.flatMap(({ onSqlite = {} }) => Object.entries(onSqlite)))
  const run = (statements: readonly string[], key: PortableRow) => {
    for (const statement of statements) db.prepare(statement).run(...key)
  }
  return {
    ...writer,
    put: async (table, rows) => {
      await writer.put(table, rows)
      const { remove = [], put = [] } = all.get(table.name)?.follow ?? {}
      for (const row of rows) run([...remove, ...put], keyOf(table, row))
    },
    remove: async (table, keys) => {
      await writer.remove(table, keys)
      for (const key of keys) run(all.get(table.name)?.follow?.remove ?? [], key)
    }
  }
}

function number(db: Sqlite.Database, query: string): number {
  return Number(db.prepare(query).pluck().get())
}

function sqliteState(
  db: Sqlite.Database,
  schema: PortableSchema,
  growth: ReadonlyMap<string, Growth>,
  now: Position,
  changesTable: string
): State {
  const reader = sqliteRows(db, schema)
  async function* grownRows(table: PortableTable, after: number): AsyncGenerator<Change> {
    const last = now.grown[table.physical] ?? after
    if (last <= after) return
    const rest = table.key.slice(1).map(() => ALL)
    for await (const rows of reader.rows(table, {
      after: [after, ...rest],
      through: [last, ...rest],
      chunk: CHUNK_ROWS
    }))
      yield { table, rows, gone: [] }
  }
  return {
    ...reader,
    position: JSON.stringify(now),
    changes: async function* (since) {
      const before = parse(since)
      const noted = new Map<string, Set<string | number>>()
      const changes = db.prepare<[number], { name: string; k: string | number }>(
        `select name, k from ${changesTable} where seq > ?`
      )
      for (const { name, k } of changes.iterate(before.seq)) {
        const keys = noted.get(name) ?? new Set()
        noted.set(name, keys.add(k))
      }
      for (const table of schema.tables) {
        const { physical, key } = table
        const keys = [...(noted.get(physical) ?? [])].map(
          (k): PortableRow => (key.length === 1 ? [k] : JSON.parse(String(k)))
        )
        yield* changesOf(reader, table, keys, CHUNK_ROWS)
        if (growth.get(physical) !== 'none') yield* grownRows(table, before.grown[physical] ?? -Number.MAX_SAFE_INTEGER)
      }
    },
    close: async () => void db.exec('rollback')
  }
}
