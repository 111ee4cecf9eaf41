import { type ColumnDefinitionBuilder, type Kysely, PostgresAdapter, type RawBuilder, sql } from 'kysely'

/** Portable column types and the few statements whose spelling differs. Migrations are append-only: never edit one that was released. */

export const isPostgres = <T>(db: Kysely<T>): boolean => db.getExecutor().adapter instanceof PostgresAdapter

/** A growing integer primary key. */
export const identity = <T>(
  db: Kysely<T>
): { type: RawBuilder<unknown>; build: (column: ColumnDefinitionBuilder) => ColumnDefinitionBuilder } =>
  isPostgres(db)
    ? { type: sql`bigint`, build: (column) => column.primaryKey().generatedByDefaultAsIdentity() }
    : { type: sql`integer`, build: (column) => column.primaryKey() }

/** Milliseconds since 1970, UTC: sorts, compares and fits both databases. */
export const instant = sql`bigint`
/** An integer of 10⁻⁶. */
export const micros = sql`bigint`
/** Text compared byte by byte on both databases, so that an order and a keyset page agree. */
export const text = <T>(db: Kysely<T>): RawBuilder<unknown> => (isPostgres(db) ? sql`text collate "C"` : sql`text`)

/** Refuses every UPDATE and DELETE of a table, in the database itself: history is added to, never edited. */
export async function makeAppendOnly<T>(db: Kysely<T>, table: string): Promise<void> {
  const trigger = (event: string) => sql.id(`${table}_no_${event}`)
  if (isPostgres(db)) {
    const refuse = sql.table(`${table}_refuse_change`)
    await sql`create function ${refuse}() returns trigger language plpgsql as $$
      begin raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation'; end $$`.execute(db)
    await sql`create trigger ${trigger('change')} before update or delete or truncate on ${sql.table(table)}
      for each statement execute function ${refuse}()`.execute(db)
    return
  }
  for (const event of ['update', 'delete']) {
    await sql`create trigger ${trigger(event)} before ${sql.raw(event)} on ${sql.table(table)}
      begin select raise(abort, ${sql.lit(`${table} is append-only`)}); end`.execute(db)
  }
}
