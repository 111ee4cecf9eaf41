import { type Kysely, type RawBuilder, type SqlBool, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
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

/**
 * Inserts any number of rows with one statement and one parameter: binding each value apart costs more than the insert
 * itself, and both engines limit how many may be bound.
 */
export async function insertRows<Row>(
  db: Kysely<unknown>,
  { table, columns, rows, upsertOn, returning = [] }: BulkInsert
): Promise<Row[]> {
  if (rows.length === 0) return []
  const names = Object.keys(columns)
  const list = sql.join(names.map((name) => sql.ref(name)))
  const parameter = JSON.stringify(rows)
  const values = Object.values(columns)
  const source = isPostgres(db)
    ? sql`select ${sql.join(values.map((type, i) => sql.raw(type === 'integer' ? `(row ->> ${i})::bigint` : `row ->> ${i}`)))}
        from jsonb_array_elements(${parameter}::jsonb) with ordinality as rows (row, position) order by position`
    : sql`select ${sql.join(names.map((_, i) => sql.raw(`json_extract(value, '$[${i}]')`)))} from json_each(${parameter}) where true`
  const updates = names
    .filter((name) => name !== upsertOn)
    .map((name) => sql`${sql.ref(name)} = excluded.${sql.ref(name)}`)
  const conflict =
    upsertOn === undefined ? sql`` : sql`on conflict (${sql.ref(upsertOn)}) do update set ${sql.join(updates)}`
  const answer = returning.length === 0 ? sql`` : sql`returning ${sql.join(returning.map((name) => sql.ref(name)))}`
  const { rows: returned } =
    await sql<Row>`insert into ${sql.table(table)} (${list}) ${source} ${conflict} ${answer}`.execute(db)
  return returned
}
