import { type CompiledQuery, type Kysely, type RawBuilder, type SqlBool, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { prepared } from '../../plugins/contracts.js'
import type { InventoryTables } from './tables.js'

type Cell = string | number | null

/**
 * `column in values` with one parameter: a statement whose text depends on how many values there are is prepared anew for
 * each number of them, and kept.
 */
export const among = <V extends string | number>(
  db: Kysely<unknown>,
  column: string,
  values: readonly V[]
): RawBuilder<SqlBool> =>
  isPostgres(db)
    ? sql<SqlBool>`${sql.ref(column)} = any(${values})`
    : sql<SqlBool>`${sql.ref(column)} in (select value from json_each(${JSON.stringify(values)}))`

/** Column → whether it holds an integer. */
type Columns = Readonly<Record<string, 'integer' | 'text'>>

export interface InsertShape {
  table: keyof InventoryTables
  columns: Columns
  /** Updates the other columns where a row with this key exists. */
  upsertOn?: string
  returning?: readonly string[]
}
interface BulkInsert extends InsertShape {
  rows: readonly Cell[][]
}

/** The one parameter that `amongSlot` stands for. */
export const listOf = (db: Kysely<unknown>, values: readonly string[]): unknown =>
  isPostgres(db) ? values : JSON.stringify(values)

/**
 * `among` in a prepared query, whose value is made by `listOf`. PostgreSQL would think a plan for any number of values dearer than one for
 * those at hand, and so plan anew each time, for longer than it runs; of a list that a query makes it knows no number.
 */
export const amongSlot = (db: Kysely<unknown>, column: string, list: RawBuilder<unknown>): RawBuilder<SqlBool> =>
  isPostgres(db)
    ? sql<SqlBool>`${sql.ref(column)} = any(array(select unnest(${list}::text[])))`
    : sql<SqlBool>`${sql.ref(column)} in (select value from json_each(${list}))`

type Insert = ReturnType<typeof prepared<{ rows: string }, unknown>>
const inserts = new Map<string, Insert>()

/** Inserts any number of rows; see `insertOf`. */
export async function insertRows<Row>(db: Kysely<unknown>, insert: BulkInsert): Promise<Row[]> {
  if (insert.rows.length === 0) return []
  const { rows } = await db.executeQuery<Row>(insertOf(db, insert))
  return rows
}

/**
 * Any number of rows by one statement with one parameter: binding each value apart costs more than the insert itself, and both engines
 * limit how many may be bound.
 */
export function insertOf(db: Kysely<unknown>, insert: BulkInsert): CompiledQuery<unknown> {
  const { rows, ...shape } = insert
  const key = `${shape.table} ${Object.keys(shape.columns).join()} ${shape.upsertOn ?? ''} ${shape.returning?.join() ?? ''}`
  const run =
    inserts.get(key) ?? prepared<{ rows: string }, unknown>((root, slot) => insertion(root, shape, slot('rows')))
  inserts.set(key, run)
  return run(db, { rows: JSON.stringify(rows) })
}

/** Of a row of PostgreSQL's `jsonb_array_elements`, in the order of the columns. */
export const fieldsOf = (columns: Columns, first = 0): RawBuilder<unknown> =>
  sql.join(
    Object.values(columns).map((type, n) => {
      const field = `row ->> ${n + first}`
      return sql.raw(type === 'integer' ? `(${field})::bigint` : field)
    })
  )

/** The insert alone, as a statement or as a part of one. */
export function insertion(
  db: Kysely<unknown>,
  { table, columns, upsertOn, returning = [] }: InsertShape,
  rows: RawBuilder<string>
): RawBuilder<unknown> {
  const names = Object.keys(columns)
  const list = sql.join(names.map((name) => sql.ref(name)))
  const source = isPostgres(db)
    ? sql`select ${fieldsOf(columns)}
        from jsonb_array_elements(${rows}::jsonb) with ordinality as rows (row, position) order by position`
    : sql`select ${sql.join(names.map((_, i) => sql.raw(`json_extract(value, '$[${i}]')`)))} from json_each(${rows}) where true`
  const updates = names
    .filter((name) => name !== upsertOn)
    .map((name) => sql`${sql.ref(name)} = excluded.${sql.ref(name)}`)
  const conflict =
    upsertOn === undefined ? sql`` : sql`on conflict (${sql.ref(upsertOn)}) do update set ${sql.join(updates)}`
  const answer = returning.length === 0 ? sql`` : sql`returning ${sql.join(returning.map((name) => sql.ref(name)))}`
  return sql<unknown>`insert into ${sql.table(table)} (${list}) ${source} ${conflict} ${answer}`
}
