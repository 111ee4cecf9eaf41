import { type Kysely, type RawBuilder, sql } from 'kysely'
import type { Migrations } from '../plugins/migrate/index.js'
import { identity, instant, isPostgres, makeAppendOnly, micros, text } from './columns.js'

export const inventoryMigrations: Migrations = {
  '0001-catalogue': { up: catalogue },
  '0002-ledger': { up: ledger },
  '0003-reservations-imports': { up: reservationsAndImports },
  '0004-search': { up: search },
  '0005-balances-by-rowid': { up: balancesByRowid },
  '0006-search-in-order': { up: searchInOrder },
  '0007-moves-checked-together': { up: movesCheckedTogether },
  // What modules/inventory/search-text.ts looks for; its list of what was written lately as in `searchInOrder`.
  '0008-search-across-words': {
    online: [
      {
        index: 'item_search_across_words',
        on: 'item_search',
        method: 'gin',
        columns: [sql`(replace(text, ' ', 'Q')) public.gin_trgm_ops`],
        with: sql`gin_pending_list_limit = 512`
      }
    ]
  },
  '0009-search-within-words-no-more': { up: searchWithinWordsNoMore }
}

async function catalogue(db: Kysely<unknown>): Promise<void> {
  const [id, t] = [identity(db), text(db)]
  await db.schema
    .createTable('categories')
    .addColumn('id', id.type, id.build)
    .addColumn('name', t, (c) => c.notNull().unique())
    .addColumn('name_fr', t)
    .execute()
  await db.schema
    .createTable('units')
    .addColumn('code', t, (c) => c.primaryKey())
    .addColumn('name', t, (c) => c.notNull())
    .addColumn('name_fr', t)
    .addColumn('dimension', t)
    .addColumn('numerator', 'bigint', (c) => c.notNull())
    .addColumn('denominator', 'bigint', (c) => c.notNull())
    .execute()
  await db.schema
    .createTable('items')
    .addColumn('id', id.type, id.build)
    .addColumn('code', t, (c) => c.notNull().unique())
    .addColumn('name', t, (c) => c.notNull())
    .addColumn('name_fr', t)
    .addColumn('category_id', 'bigint', (c) => c.references('categories.id'))
    .addColumn('unit', t, (c) => c.notNull().references('units.code'))
    .addColumn('tracking', t, (c) => c.notNull())
    .addColumn('shelf_life_days', 'integer')
    .addColumn('reorder_point', micros)
    .addColumn('par_level', micros)
    .addColumn('unit_cost', micros)
    .addColumn('created_at', instant, (c) => c.notNull())
    .addColumn('updated_at', instant, (c) => c.notNull())
    .addColumn('archived_at', instant)
    .execute()
  await db.schema.createIndex('items_name').on('items').columns(['name', 'id']).execute()
  for (const column of ['code', 'name'] as const) {
    await db.schema.createIndex(`items_category_${column}`).on('items').columns(['category_id', column, 'id']).execute()
  }
  await db.schema
    .createTable('item_units')
    .addColumn('id', id.type, id.build)
    .addColumn('item_id', 'bigint', (c) => c.notNull().references('items.id'))
    .addColumn('unit', t, (c) => c.notNull().references('units.code'))
    .addColumn('numerator', 'bigint', (c) => c.notNull())
    .addColumn('denominator', 'bigint', (c) => c.notNull())
    .addColumn('valid_from', instant, (c) => c.notNull())
    .addColumn('superseded_at', instant)
    .execute()
  await db.schema.createIndex('item_units_item').on('item_units').columns(['item_id', 'unit']).execute()
  await db.schema
    .createTable('item_barcodes')
    .addColumn('barcode', t, (c) => c.primaryKey())
    .addColumn('item_id', 'bigint', (c) => c.notNull().references('items.id'))
    .execute()
  await db.schema.createIndex('item_barcodes_item').on('item_barcodes').column('item_id').execute()
  await db.schema
    .createTable('locations')
    .addColumn('id', id.type, id.build)
    .addColumn('code', t, (c) => c.notNull().unique())
    .addColumn('name', t, (c) => c.notNull())
    .addColumn('name_fr', t)
    .addColumn('kind', t, (c) => c.notNull())
    .addColumn('parent_id', 'bigint', (c) => c.references('locations.id'))
    .addColumn('walk_sequence', 'integer', (c) => c.notNull())
    .execute()
  await db.schema
    .createTable('lots')
    .addColumn('id', id.type, id.build)
    .addColumn('item_id', 'bigint', (c) => c.notNull().references('items.id'))
    .addColumn('code', t, (c) => c.notNull())
    .addColumn('expires_on', t)
    .addColumn('status', t, (c) => c.notNull())
    .addUniqueConstraint('lots_item_code', ['item_id', 'code'])
    .execute()
  await db.schema.createIndex('lots_expiry').on('lots').column('expires_on').execute()
  await seed(db)
}

type SeedTables = {
  units: {
    code: string
    name: string
    name_fr: string
    dimension: string | null
    numerator: number
    denominator: number
  }
  locations: { code: string; name: string; name_fr: string; kind: string; walk_sequence: number }
}

async function seed(db: Kysely<unknown>): Promise<void> {
  const unit = (
    code: string,
    name: string,
    name_fr: string,
    dimension: string | null,
    numerator = 1,
    denominator = 1
  ) => ({
    code,
    name,
    name_fr,
    dimension,
    numerator,
    denominator
  })
  await db
    .withTables<SeedTables>()
    .insertInto('units')
    .values([
      unit('each', 'each', 'pièce', 'count'),
      unit('pair', 'pair', 'paire', 'count', 2),
      unit('dozen', 'dozen', 'douzaine', 'count', 12),
      unit('mg', 'milligram', 'milligramme', 'mass', 1, 1000),
      unit('g', 'gram', 'gramme', 'mass'),
      unit('kg', 'kilogram', 'kilogramme', 'mass', 1000),
      unit('t', 'tonne', 'tonne', 'mass', 1_000_000),
      unit('ml', 'millilitre', 'millilitre', 'volume'),
      unit('cl', 'centilitre', 'centilitre', 'volume', 10),
      unit('l', 'litre', 'litre', 'volume', 1000),
      unit('mm', 'millimetre', 'millimètre', 'length', 1, 1000),
      unit('cm', 'centimetre', 'centimètre', 'length', 1, 100),
      unit('m', 'metre', 'mètre', 'length'),
      unit('m2', 'square metre', 'mètre carré', 'area'),
      unit('box', 'box', 'boîte', null),
      unit('case', 'case', 'caisse', null),
      unit('pack', 'pack', 'paquet', null),
      unit('bottle', 'bottle', 'bouteille', null),
      unit('can', 'can', 'canette', null),
      unit('bag', 'bag', 'sac', null),
      unit('roll', 'roll', 'rouleau', null),
      unit('tray', 'tray', 'plateau', null),
      unit('portion', 'portion', 'portion', null)
    ])
    .execute()
  const location = (code: string, kind: string, name: string, name_fr: string) => ({
    code,
    kind,
    name,
    name_fr,
    walk_sequence: 0
  })
  await db
    .withTables<SeedTables>()
    .insertInto('locations')
    .values([
      location('main', 'internal', 'Main', 'Principal'),
      location('supplier', 'supplier', 'Suppliers', 'Fournisseurs'),
      location('customer', 'customer', 'Customers', 'Clients'),
      location('consumption', 'consumption', 'Consumption', 'Consommation'),
      location('waste', 'waste', 'Waste', 'Pertes'),
      location('production', 'production', 'Production', 'Production'),
      location('variance', 'variance', 'Count variance', 'Écart d’inventaire'),
      location('opening', 'opening', 'Opening balance', 'Solde d’ouverture')
    ])
    .execute()
}

async function ledger(db: Kysely<unknown>): Promise<void> {
  const id = identity(db)
  const t = text(db)
  await db.schema
    .createTable('stock_accounts')
    .addColumn('id', id.type, id.build)
    .addColumn('item_id', 'bigint', (c) => c.notNull().references('items.id'))
    .addColumn('location_id', 'bigint', (c) => c.notNull().references('locations.id'))
    .addColumn('lot_id', 'bigint', (c) => c.notNull().references('lots.id'))
    .addUniqueConstraint('stock_accounts_key', ['item_id', 'location_id', 'lot_id'])
    .execute()
  await db.schema
    .createIndex('stock_accounts_location')
    .on('stock_accounts')
    .columns(['location_id', 'item_id'])
    .execute()
  await db.schema
    .createTable('stock_transactions')
    .addColumn('seq', id.type, id.build)
    .addColumn('id', t, (c) => c.notNull().unique())
    .addColumn('type', t, (c) => c.notNull())
    .addColumn('occurred_at', instant, (c) => c.notNull())
    .addColumn('recorded_at', instant, (c) => c.notNull())
    .addColumn('actor', t, (c) => c.notNull())
    .addColumn('reason', t)
    .addColumn('reference', t)
    .addColumn('reverses', 'bigint', (c) => c.unique().references('stock_transactions.seq'))
    .addColumn('import_id', t)
    .addColumn('request_id', t, (c) => c.notNull())
    .execute()
  await db.schema
    .createIndex('stock_transactions_occurred')
    .on('stock_transactions')
    .columns(['occurred_at', 'seq'])
    .execute()
  await db.schema
    .createIndex('stock_transactions_reference')
    .on('stock_transactions')
    .column('reference')
    .where('reference', 'is not', null)
    .execute()
  await db.schema
    .createIndex('stock_transactions_import')
    .on('stock_transactions')
    .columns(['import_id', 'seq'])
    .where('import_id', 'is not', null)
    .execute()
  const moves = db.schema
    .createTable('stock_moves')
    .addColumn('transaction_seq', 'bigint', (c) => c.notNull().references('stock_transactions.seq'))
    .addColumn('line', 'integer', (c) => c.notNull())
    .addColumn('item_id', 'bigint', (c) => c.notNull().references('items.id'))
    .addColumn('from_account', 'bigint', (c) => c.notNull().references('stock_accounts.id'))
    .addColumn('to_account', 'bigint', (c) => c.notNull().references('stock_accounts.id'))
    .addColumn('quantity', micros, (c) => c.notNull())
    .addColumn('entered_quantity', micros, (c) => c.notNull())
    .addColumn('entered_unit', t, (c) => c.notNull())
    .addColumn('request_line', 'integer', (c) => c.notNull())
    .addColumn('unit_cost', micros, (c) => c.notNull())
    .addColumn('value', micros, (c) => c.notNull())
    .addColumn('occurred_at', instant, (c) => c.notNull())
    .addPrimaryKeyConstraint('stock_moves_key', ['transaction_seq', 'line'])
    .addCheckConstraint('stock_moves_positive', sql`quantity > 0`)
    .addCheckConstraint('stock_moves_apart', sql`from_account <> to_account`)
  // The key is the order of reading and writing, so on SQLite the rows live in it.
  await (isPostgres(db) ? moves : moves.modifyEnd(sql`without rowid`)).execute()
  await db.schema
    .createIndex('stock_moves_item')
    .on('stock_moves')
    .columns(['item_id', 'occurred_at', 'transaction_seq', 'line'])
    .execute()
  await db.schema
    .createTable('stock_balances')
    .addColumn('account_id', 'bigint', (c) => c.primaryKey().references('stock_accounts.id'))
    .addColumn('item_id', 'bigint', (c) => c.notNull().references('items.id'))
    .addColumn('on_hand', micros, (c) => c.notNull())
    .addColumn('reserved', micros, (c) => c.notNull())
    .addCheckConstraint('stock_balances_on_hand', sql`on_hand >= 0`)
    .addCheckConstraint('stock_balances_reserved', sql`reserved >= 0 and reserved <= on_hand`)
    .execute()
  await db.schema.createIndex('stock_balances_item').on('stock_balances').column('item_id').execute()
  await db.schema
    .createTable('item_totals')
    .addColumn('item_id', 'bigint', (c) => c.primaryKey().references('items.id'))
    .addColumn('on_hand', micros, (c) => c.notNull())
    .addColumn('reserved', micros, (c) => c.notNull())
    .addColumn('value', micros, (c) => c.notNull())
    .addColumn('status', t, (c) => c.notNull())
    .addCheckConstraint('item_totals_value', sql`value >= 0`)
    .execute()
  for (const column of ['on_hand', 'value', 'status']) {
    await db.schema.createIndex(`item_totals_${column}`).on('item_totals').columns([column, 'item_id']).execute()
  }
  await makeAppendOnly(db, 'stock_transactions')
  await makeAppendOnly(db, 'stock_moves')
}

async function reservationsAndImports(db: Kysely<unknown>): Promise<void> {
  const id = identity(db)
  const t = text(db)
  await db.schema
    .createTable('reservations')
    .addColumn('seq', id.type, id.build)
    .addColumn('id', t, (c) => c.notNull().unique())
    .addColumn('account_id', 'bigint', (c) => c.notNull().references('stock_accounts.id'))
    .addColumn('quantity', micros, (c) => c.notNull())
    .addColumn('reference', t)
    .addColumn('status', t, (c) => c.notNull())
    .addColumn('expires_at', instant)
    .addColumn('movement_id', t)
    .addColumn('created_at', instant, (c) => c.notNull())
    .execute()
  await db.schema.createIndex('reservations_pending').on('reservations').columns(['status', 'expires_at']).execute()
  await db.schema
    .createTable('imports')
    .addColumn('seq', id.type, id.build)
    .addColumn('id', t, (c) => c.notNull().unique())
    .addColumn('kind', t, (c) => c.notNull())
    .addColumn('status', t, (c) => c.notNull())
    .addColumn('total_rows', 'bigint', (c) => c.notNull())
    .addColumn('done_rows', 'bigint', (c) => c.notNull())
    .addColumn('spool', t)
    .addColumn('options', 'text', (c) => c.notNull())
    .addColumn('actor', t, (c) => c.notNull())
    .addColumn('request_id', t, (c) => c.notNull())
    .addColumn('created_at', instant, (c) => c.notNull())
    .addColumn('finished_at', instant)
    .execute()
  await db.schema
    .createTable('import_changes')
    .addColumn('import_id', t, (c) => c.notNull())
    .addColumn('item_code', t, (c) => c.notNull())
    .addColumn('before', 'text')
    .addPrimaryKeyConstraint('import_changes_key', ['import_id', 'item_code'])
    .execute()
}

const FTS = `create virtual table item_search using fts5(text, content='', contentless_delete=1, tokenize='trigram')`
/** `item_search`: one lower-case text without accents for each item, indexed by trigrams, its key the item's id. */
async function search(db: Kysely<unknown>): Promise<void> {
  if (isPostgres(db)) {
    // In a schema of its own name: the extension is the database's, tenants come and go.
    await sql`create extension if not exists pg_trgm with schema public`.execute(db)
    await db.schema
      .createTable('item_search')
      .addColumn('item_id', 'bigint', (c) => c.primaryKey().references('items.id').onDelete('cascade'))
      .addColumn('text', 'text', (c) => c.notNull())
      .execute()
    await sql`create index item_search_trigrams on ${sql.table('item_search')}
      using gin (text public.gin_trgm_ops)`.execute(db)
    return
  }
  // The text itself, for words that so many items have that looking at each is faster than listing them all.
  await sql`create table item_texts (
    item_id integer primary key references items (id) on delete cascade, text text not null)`.execute(db)
  await sql.raw(FTS).execute(db)
}

/** SQLite finds a row by an `integer primary key` in one step; any other key is an index beside the table, and so two. */
async function balancesByRowid(db: Kysely<unknown>): Promise<void> {
  if (isPostgres(db)) return
  const rebuild = async (table: string, columns: RawBuilder<unknown>) => {
    const [old, fresh] = [sql.table(table), sql.table(`${table}_by_rowid`)]
    await sql`create table ${fresh} (${columns})`.execute(db)
    await sql`insert into ${fresh} select * from ${old}`.execute(db)
    await db.schema.dropTable(table).execute()
    await sql`alter table ${fresh} rename to ${old}`.execute(db)
  }
  await rebuild(
    'stock_balances',
    sql`account_id integer primary key references stock_accounts (id),
      item_id bigint not null references items (id),
      on_hand bigint not null,
      reserved bigint not null,
      constraint stock_balances_on_hand check (on_hand >= 0),
      constraint stock_balances_reserved check (reserved >= 0 and reserved <= on_hand)`
  )
  await db.schema.createIndex('stock_balances_item').on('stock_balances').column('item_id').execute()
  await rebuild(
    'item_totals',
    sql`item_id integer primary key references items (id),
      on_hand bigint not null,
      reserved bigint not null,
      value bigint not null,
      status text not null,
      constraint item_totals_value check (value >= 0)`
  )
  for (const column of ['on_hand', 'value', 'status']) {
    await db.schema.createIndex(`item_totals_${column}`).on('item_totals').columns([column, 'item_id']).execute()
  }
}

/**
 * Beside the text that is searched: what a search is narrowed and ordered by, so that neither asks for each item that has the
 * words. By name the texts stand in an index, and are read along it.
 */
async function searchInOrder(db: Kysely<unknown>): Promise<void> {
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
    await sql`create index item_search_walk on ${sql.table(table)}
      (name, item_id) include (category_id, head)`.execute(db)
    await sql`create index item_search_category on ${sql.table(table)}
      (category_id, item_id) include (head)`.execute(db)
    // What was written lately is in a list that each search reads through; by default it may grow to 4 MB.
    await sql`create index item_search_trigrams on ${sql.table(table)} using gin (text public.gin_trgm_ops)
      with (gin_pending_list_limit = 512)`.execute(db)
    return
  }
  await db.schema.createIndex('item_texts_walk').on(table).columns(['name', 'item_id', 'category_id', 'text']).execute()
  await sql.raw(FTS).execute(db)
  // A category is one trigram more.
  await sql`insert into item_search (rowid, text) select item_id, iif(category_id is null, '',
    char(2, 57344 + category_id / 6400, 57344 + category_id % 6400)) || text from item_texts`.execute(db)
}

/**
 * On PostgreSQL each reference of each row is looked up by a query of its own, which took more than two thirds of the time that moves
 * are written in. One query for all rows of a statement checks more: both accounts are of the move's item. What moves refer to is never
 * deleted: transactions and, from here on, accounts are append-only, and an item that has an account is held by that.
 */
async function movesCheckedTogether(db: Kysely<unknown>): Promise<void> {
  if (!isPostgres(db)) return
  const [moves, check] = [sql.table('stock_moves'), sql.table('stock_moves_check')]
  for (const column of ['transaction_seq', 'item_id', 'from_account', 'to_account'])
    await sql`alter table ${moves} drop constraint ${sql.id(`stock_moves_${column}_fkey`)}`.execute(db)
  await sql`create function ${check}() returns trigger language plpgsql as $$ begin
    if exists (select from fresh m
      left join ${sql.table('stock_transactions')} h on h.seq = m.transaction_seq
      left join ${sql.table('stock_accounts')} f on f.id = m.from_account and f.item_id = m.item_id
      left join ${sql.table('stock_accounts')} t on t.id = m.to_account and t.item_id = m.item_id
      where h.seq is null or f.id is null or t.id is null)
    then raise exception 'a move refers to a transaction or to accounts of its item that are not there'
      using errcode = 'foreign_key_violation'; end if;
    return null; end $$`.execute(db)
  await sql`create trigger stock_moves_check after insert on ${moves} referencing new table as fresh
    for each statement execute function ${check}()`.execute(db)
  await makeAppendOnly(db, 'stock_accounts')
}

/** The index within words, and statistics for the one across them, without which the planner takes all words for rare. */
async function searchWithinWordsNoMore(db: Kysely<unknown>): Promise<void> {
  if (!isPostgres(db)) return
  await db.schema.dropIndex('item_search_trigrams').execute()
  await sql`analyze ${sql.table('item_search')}`.execute(db)
}
