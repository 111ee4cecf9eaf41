import { type Kysely, type RawBuilder, type SqlBool, sql } from 'kysely'
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

interface BulkInsert {
  table: keyof InventoryTables
  /** Column → whether it holds an integer. */
  columns: Record<string, 'integer' | 'text'>
  rows: readonly Cell[][]
  /** Updates the other columns where a row with this key exists. */
  upsertOn?: string
  returning?: readonly string[]
}

/** The one parameter that `amongSlot` stands for. */
export const listOf = (db: Kysely<unknown>, values: readonly (string | number)[]): unknown =>
  isPostgres(db) ? values : JSON.stringify(values)

/** `among` in a prepared query, whose value is made by `listOf`. */
export const amongSlot = (db: Kysely<unknown>, column: string, list: RawBuilder<unknown>): RawBuilder<SqlBool> =>
  isPostgres(db)
    ? sql<SqlBool>`${sql.ref(column)} = any(${list})`
    : sql<SqlBool>`${sql.ref(column)} in (select value from json_each(${list}))`

type Insert = ReturnType<typeof prepared<{ rows: string }, unknown>>
const inserts = new Map<string, Insert>()

/**
 * Inserts any number of rows with one statement and one parameter: binding each value apart costs more than the insert
 * itself, and both engines limit how many may be bound.
 */
export async function insertRows<Row>(db: Kysely<unknown>, insert: BulkInsert): Promise<Row[]> {
  const { table, columns, rows, upsertOn, returning = [] } = insert
  if (rows.length === 0) return []
  const shape = `${table} ${Object.keys(columns).join()} ${upsertOn ?? ''} ${returning.join()}`
  const run =
    inserts.get(shape) ?? prepared<{ rows: string }, unknown>((root, slot) => insertion(root, insert, slot('rows')))
  inserts.set(shape, run)
  const { rows: returned } = await db.executeQuery<Row>(run(db, { rows: JSON.stringify(rows) }))
  return returned
}

function insertion(
  db: Kysely<unknown>,
  { table, columns, upsertOn, returning = [] }: BulkInsert,
  rows: RawBuilder<string>
) {
  const names = Object.keys(columns)
  const list = sql.join(names.map((name) => sql.ref(name)))
  const values = Object.values(columns)
  const source = isPostgres(db)
    ? sql`select ${sql.join(values.map((type, i) => sql.raw(type === 'integer' ? `(row ->> ${i})::bigint` : `row ->> ${i}`)))}
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
