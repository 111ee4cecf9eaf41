import { type Kysely, sql } from 'kysely'
import type { OnlineMigration } from '../plugins/migrate/index.js'
import { isPostgres, text } from './columns.js'

/** What items are found by: migrations of the inventory. */

/** `item_search`: one lower-case text without accents for each item, indexed by trigrams, its key the item's id. */
export async function search(db: Kysely<unknown>): Promise<void> {
  if (isPostgres(db)) {
    // In a schema of its own name: the extension is the database's, tenants come and go.
    await sql`create extension if not exists pg_trgm with schema public`.execute(db)
    await db.schema
      .createTable('item_search')
      .addColumn('item_id', 'bigint', (c) => c.primaryKey().references('items.id').onDelete('cascade'))
      .addColumn('text', 'text', (c) => c.notNull())
      .execute()
    await sql`create index item_search_trigrams on ${sql.table('item_search')} using gin (text public.gin_trgm_ops)`.execute(
      db
    )
    return
  }
  // The text itself, for words that so many items have that looking at each is faster than listing them all.
  await sql`create table item_texts (
    item_id integer primary key references items (id) on delete cascade, text text not null)`.execute(db)
  await sql`create virtual table item_search using fts5(text, content='', contentless_delete=1, tokenize='trigram')`.execute(
    db
  )
}

/**
 * Beside the text that is searched: what a search is narrowed and ordered by, so that neither asks for each item that has the
 * words. By name the texts stand in an index, and are read along it.
 */
export async function searchInOrder(db: Kysely<unknown>): Promise<void> {
  const table = isPostgres(db) ? 'item_search' : 'item_texts'
  // Made anew below: to follow each row's change takes many times as long.
  await (isPostgres(db) ? db.schema.dropIndex('item_search_trigrams') : db.schema.dropTable('item_search')).execute()
  await db.schema.alterTable(table).addColumn('category_id', 'bigint').execute()
  await db.schema
    .alterTable(table)
    .addColumn('name', text(db), (c) => c.notNull().defaultTo(''))
    .execute()
  await sql`update ${sql.table(table)} set category_id = i.category_id, name = i.name
    from ${sql.table('items')} i where i.id = ${sql.ref(`${table}.item_id`)}`.execute(db)
  if (isPostgres(db)) {
    // A node of the version before, which may still run, writes the text alone.
    const fill = sql.table('item_search_fill')
    await sql`create function ${fill}() returns trigger language plpgsql as $$ begin
      select i.name, i.category_id into new.name, new.category_id from ${sql.table('items')} i where i.id = new.item_id;
      return new; end $$`.execute(db)
    await sql`create trigger item_search_fill before insert or update on ${sql.table(table)}
      for each row execute function ${fill}()`.execute(db)
    // An entry of an index may have 2,700 bytes, so a text that is too long for it is left out and looked up.
    await sql`alter table ${sql.table(table)}
      add column head text generated always as (case when octet_length(text) <= 1500 then text end) stored`.execute(db)
    await sql`create index item_search_walk on ${sql.table(table)} (name, item_id) include (category_id, head)`.execute(
      db
    )
    await sql`create index item_search_category on ${sql.table(table)} (category_id, item_id) include (head)`.execute(
      db
    )
    // What was written lately is in a list that each search reads through; by default it may grow to 4 MB.
    await sql`create index item_search_trigrams on ${sql.table(table)} using gin (text public.gin_trgm_ops)
      with (gin_pending_list_limit = 512)`.execute(db)
    return
  }
  await db.schema.createIndex('item_texts_walk').on(table).columns(['name', 'item_id', 'category_id', 'text']).execute()
  // A category is one trigram more.
  await sql`create virtual table item_search using fts5(text, content='', contentless_delete=1, tokenize='trigram')`.execute(
    db
  )
  await sql`insert into item_search (rowid, text) select item_id, iif(category_id is null, '',
    char(2, 57344 + category_id / 6400, 57344 + category_id % 6400)) || text from item_texts`.execute(db)
}

/**
 * Trigrams that go on from one word to the next: what modules/inventory/search-text.ts looks for. What was written lately is in a
 * list that each search reads through; by default it may grow to 4 MB.
 */
export const searchAcrossWords: OnlineMigration = {
  online: [
    {
      index: 'item_search_across_words',
      on: 'item_search',
      method: 'gin',
      columns: [sql`(replace(text, ' ', 'Q')) public.gin_trgm_ops`],
      with: sql`gin_pending_list_limit = 512`
    }
  ]
}

/** The index within words, and statistics for the one across them, without which the planner takes all words for rare. */
export async function searchWithinWordsNoMore(db: Kysely<unknown>): Promise<void> {
  if (!isPostgres(db)) return
  await db.schema.dropIndex('item_search_trigrams').execute()
  await sql`analyze ${sql.table('item_search')}`.execute(db)
}
