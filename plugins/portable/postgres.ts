import pg from 'pg'
import type {
  ColumnKind,
  Place,
  Portability,
  PortableReader,
  PortableRow,
  PortableSchema,
  PortableTable,
  PortableWriter,
  RowRange
} from '../contracts.js'
import { withoutTlsParameters } from '../dialects/postgres.js'
import { SUSPENDED } from './sqlite.js'
import { type FoundTable, inOrder, isLedger, kindOf, ledgerModule } from './tables.js'
import { decoder, forPostgres } from './values.js'

type PostgresPlace = Extract<Place, { dialect: 'postgres' }>

const CHUNK_ROWS = 500

const id = pg.escapeIdentifier
const list = (names: readonly string[]): string => names.map((name) => id(name)).join(', ')

/** A connection of its own, whose answers are texts: no digit is lost, and no name is found by a search path. */
export async function connect({ url, tls }: PostgresPlace): Promise<pg.Client> {
  const client = new pg.Client({
    connectionString: tls === undefined ? url : withoutTlsParameters(url),
    ...(tls === undefined ? {} : { ssl: { ...tls, rejectUnauthorized: true } }),
    application_name: 'inventory-enterprise copy',
    // A pooler of transactions would give the session, with what is set below, to others; it refuses to set anything at the start.
    options: '-c extra_float_digits=1',
    types: { getTypeParser: () => (text: string) => text }
  })
  // One that breaks says so to the query that waits; without a listener it would end the process.
  client.on('error', () => {})
  await client.connect().catch((error: unknown) => {
    if (error instanceof Error && /unsupported startup parameter/.test(error.message))
      throw new Error('a copy needs the PostgreSQL server itself, and the URL leads to a pooler in front of it')
    throw error
  })
  await client.query(
    `set search_path = ''; set extra_float_digits = 1; set bytea_output = hex; set timezone = 'UTC'; set statement_timeout = 0`
  )
  return client
}

async function textsOf(client: pg.Client, text: string, values: readonly string[]): Promise<string[][]> {
  const { rows } = await client.query<string[]>({ text, values: [...values], rowMode: 'array' })
  return rows
}

/** Reads one state of the schema, whatever is written meanwhile. */
export async function postgresReader(place: PostgresPlace, traits: readonly Portability[]): Promise<PortableReader> {
  const client = await connect(place)
  try {
    await client.query('begin isolation level repeatable read read only')
    const { schema, types } = await postgresSchema(client, place.schema, traits)
    return { ...postgresRows(client, place.schema, schema, types), close: () => client.end() }
  } catch (error) {
    await client.end()
    throw error
  }
}

/** The rows of a connection that is in a transaction of its own state. */
export function postgresRows(
  client: pg.Client,
  name: string,
  schema: PortableSchema,
  types: Types
): Omit<PortableReader, 'close'> {
  let cursors = 0
  return {
    dialect: 'postgres',
    schema,
    rows: (table, range) => rowsOf({ client, name, types, cursor: `c${cursors++}` }, table, range),
    find: async (table, keys) => {
      const text = `${selected(table, name)} where (${list(table.key)}) in (${unnest(table, table.key, types)})`
      const values = arrays(table, table.key, keys)
      const { rows } = await client.query<unknown[]>({ text, values, rowMode: 'array' })
      return rows.map(decoder(table))
    },
    count: async ({ physical }) => {
      const [row] = await textsOf(client, `select count(*) from ${id(name)}.${id(physical)}`, [])
      return Number(row?.[0])
    }
  }
}

/** The schema must exist and be migrated; while it is loaded nobody else may use it. */
export async function postgresWriter(
  place: PostgresPlace,
  traits: readonly Portability[],
  onto?: pg.Client
): Promise<PortableWriter> {
  const client = onto ?? (await connect(place))
  try {
    const { schema, types } = await postgresSchema(client, place.schema, traits)
    const at = (table: PortableTable) => `${id(place.schema)}.${id(table.physical)}`
    const insert = (table: PortableTable) => {
      const names = table.columns.map(({ name }) => name)
      return `insert into ${at(table)} (${list(names)}) overriding system value ${unnest(table, names, types)}`
    }
    const send = async (text: string, table: PortableTable, names: readonly string[], rows: readonly PortableRow[]) => {
      if (rows.length > 0) await client.query(text, arrays(table, names, rows))
    }
    const columns = (table: PortableTable) => table.columns.map(({ name }) => name)
    return {
      dialect: 'postgres',
      schema,
      startLoad: () => startLoad(client, place.schema, schema),
      finishLoad: () => finishLoad(client, place.schema, schema),
      transaction: async (work) => {
        await client.query('begin')
        try {
          const result = await work()
          await client.query('commit')
          return result
        } catch (error) {
          await client.query('rollback')
          throw error
        }
      },
      insert: (table, rows) => send(insert(table), table, columns(table), rows),
      put: (table, rows) => send(`${insert(table)} ${onConflict(table)}`, table, columns(table), rows),
      remove: (table, keys) =>
        send(
          `delete from ${at(table)} where (${list(table.key)}) in (${unnest(table, table.key, types)})`,
          table,
          table.key,
          keys
        ),
      close: () => client.end()
    }
  } catch (error) {
    await client.end()
    throw error
  }
}

function onConflict({ key, columns }: PortableTable): string {
  const others = columns.filter(({ name }) => !key.includes(name))
  const assignments = others.map(({ name }) => `${id(name)} = excluded.${id(name)}`)
  return `on conflict (${list(key)}) do ${others.length === 0 ? 'nothing' : `update set ${assignments.join(', ')}`}`
}

/** SQL types by `table.column`. */
export type Types = ReadonlyMap<string, string>
const typeOf = (types: Types, table: PortableTable, column: string) =>
  types.get(`${table.physical}.${column}`) ?? 'text'

/** Rows travel as one array for each column, so that a statement's text does not depend on how many there are. */
const unnest = (table: PortableTable, names: readonly string[], types: Types): string =>
  `select * from unnest(${names.map((name, n) => `$${n + 1}::${typeOf(types, table, name)}[]`).join(', ')})`

function arrays(table: PortableTable, names: readonly string[], rows: readonly PortableRow[]): (string | null)[][] {
  return names.map((name, n) => {
    const kind = table.columns.find((column) => column.name === name)?.kind ?? 'text'
    return rows.map((row) => forPostgres(kind, row[n] ?? null))
  })
}

const READ: Partial<Record<ColumnKind, (column: string) => string>> = {
  json: (column) => `${column}::text`,
  instant: (column) => `to_char(${column}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`
}
const selected = (table: PortableTable, schema: string): string => {
  const columns = table.columns.map(({ name, kind }) => READ[kind]?.(id(name)) ?? id(name))
  return `select ${columns.join(', ')} from ${id(schema)}.${id(table.physical)}`
}

interface Scan {
  client: pg.Client
  name: string
  types: Types
  cursor: string
}

async function* rowsOf({ client, name, types, cursor }: Scan, table: PortableTable, range: RowRange = {}) {
  const { after, through, chunk = CHUNK_ROWS } = range
  const decode = decoder(table)
  // Bytes decide, as on SQLite; an index in another order would not be used, so keys are declared so.
  const collated = (column: string) =>
    typeOf(types, table, column) === 'text' ? `${id(column)} collate "C"` : id(column)
  const keys = table.key.map(collated).join(', ')
  const values: (string | null)[] = []
  const conditions: string[] = []
  for (const [operator, key] of [
    ['>', after],
    ['<=', through]
  ] as const) {
    if (key === undefined) continue
    const parameters = table.key.map((column, n) => {
      const kind = table.columns.find((each) => each.name === column)?.kind ?? 'text'
      values.push(forPostgres(kind, key[n] ?? null))
      return `$${values.length}::${typeOf(types, table, column)}`
    })
    conditions.push(`(${keys}) ${operator} (${parameters.join(', ')})`)
  }
  const where = conditions.length === 0 ? '' : `where ${conditions.join(' and ')}`
  const query = `${selected(table, name)} ${where} order by ${keys}`
  await client.query(`declare ${cursor} no scroll cursor for ${query}`, values)
  for (;;) {
    const text = `fetch ${chunk} from ${cursor}`
    const { rows } = await client.query<unknown[]>({ text, rowMode: 'array' })
    if (rows.length > 0) yield rows.map(decode)
    if (rows.length < chunk) break
  }
  await client.query(`close ${cursor}`)
}

/** The tables of a schema as both engines know them, and the types by which its values are read. */
export async function postgresSchema(
  client: pg.Client,
  name: string,
  traits: readonly Portability[]
): Promise<{ schema: PortableSchema; types: Types }> {
  const notCopied = new Set([SUSPENDED, ...traits.flatMap((trait) => trait.notCopied ?? [])])
  const columns = await textsOf(
    client,
    `select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attgenerated
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
     where n.nspname = $1 and c.relkind in ('r', 'p') order by c.relname, a.attnum`,
    [name]
  )
  const constraints = await textsOf(
    client,
    `select c.relname, k.contype, f.relname, a.attname
     from pg_catalog.pg_constraint k join pg_catalog.pg_class c on c.oid = k.conrelid
     join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     cross join lateral unnest(k.conkey) with ordinality as u (attnum, position)
     join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = u.attnum
     left join pg_catalog.pg_class f on f.oid = k.confrelid
     where n.nspname = $1 and k.contype in ('p', 'f') order by c.relname, k.conname, u.position`,
    [name]
  )
  const names = [...new Set(columns.map(([table = '']) => table))]
  const types = new Map(columns.map(([table, column, type = '']) => [`${table}.${column}`, type]))
  const found = names
    .filter((table) => !notCopied.has(table) && !isLedger(table))
    .map((table): FoundTable => {
      const constraint = (kind: string) => constraints.filter(([of, type]) => of === table && type === kind)
      return {
        name: table,
        physical: table,
        columns: columns
          .filter(([of, , , generated]) => of === table && generated === '')
          .map(([, column = '', type = '']) => ({ name: column, kind: kindOf(type, `${table}.${column}`) })),
        key: constraint('p').map(([, , , column = '']) => column),
        references: [...new Set(constraint('f').map(([, , referred = '']) => referred))]
      }
    })
  const migrations: Record<string, string[]> = {}
  for (const ledger of names) {
    const module = ledgerModule(ledger)
    if (module === undefined) continue
    const applied = await textsOf(client, `select name from ${id(name)}.${id(ledger)} order by name`, [])
    migrations[module] = applied.map(([migration = '']) => migration)
  }
  return { schema: inOrder(found, migrations), types }
}

/** What can be taken off and made again: what it is, how it is dropped, how it is made. References come first, and back last. */
const SUSPENDABLE = `
  select 3, format('alter table %s drop constraint %I', conrelid::regclass, conname),
    format('alter table %s add constraint %I %s', conrelid::regclass, conname, pg_catalog.pg_get_constraintdef(oid))
  from pg_catalog.pg_constraint where contype = 'f' and connamespace = $1::regnamespace
  union all
  select 2, format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass), pg_catalog.pg_get_triggerdef(t.oid)
  from pg_catalog.pg_trigger t join pg_catalog.pg_class c on c.oid = t.tgrelid
  where not t.tgisinternal and c.relnamespace = $1::regnamespace
  union all
  select 1, format('drop index %s', i.indexrelid::regclass), pg_catalog.pg_get_indexdef(i.indexrelid)
  from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
  where c.relnamespace = $1::regnamespace
    and not exists (select 1 from pg_catalog.pg_constraint k where k.conindid = i.indexrelid)
    and exists (select 1 from pg_catalog.pg_class o where o.oid = i.indrelid and o.relkind in ('r', 'p'))
  order by 1 desc, 2`

async function startLoad(client: pg.Client, name: string, { tables }: PortableSchema): Promise<void> {
  const kept = `${id(name)}.${SUSPENDED}`
  await client.query('begin')
  await client.query(`create table if not exists ${kept}
    (position bigint generated always as identity primary key, rank integer not null, statement text not null)`)
  for (const [rank = '', drop = '', create = ''] of await textsOf(client, SUSPENDABLE, [id(name)])) {
    await client.query(`insert into ${kept} (rank, statement) values ($1, $2)`, [rank, create])
    await client.query(drop)
  }
  await client.query(`truncate ${tables.map(({ physical }) => `${id(name)}.${id(physical)}`).join(', ')}`)
  await client.query('commit')
}

async function finishLoad(client: pg.Client, name: string, { tables }: PortableSchema): Promise<void> {
  const kept = `${id(name)}.${SUSPENDED}`
  await client.query('begin')
  const statements = await textsOf(client, `select statement from ${kept} order by rank, position`, [])
  for (const { physical } of tables) await client.query(`analyze ${id(name)}.${id(physical)}`)
  for (const [statement = ''] of statements) await client.query(statement)
  await client.query(`drop table ${kept}`)
  await advanceIdentities(client, name)
  await client.query('commit')
}

/** Sets the counter of each identity past what is there. */
export async function advanceIdentities(client: pg.Client, name: string): Promise<void> {
  const identities = await textsOf(
    client,
    `select c.relname, a.attname from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
     where c.relnamespace = $1::regnamespace and a.attidentity <> '' and not a.attisdropped`,
    [id(name)]
  )
  for (const [table = '', column = ''] of identities) {
    const at = `${id(name)}.${id(table)}`
    await client.query(
      `select pg_catalog.setval(pg_catalog.pg_get_serial_sequence($1, $2), coalesce(max(${id(column)}), 1), max(${id(column)}) is not null) from ${at}`,
      [at, column]
    )
  }
}
