import { type Kysely, type Migration, sql } from 'kysely'
import { instant, isPostgres, micros, text } from './columns.js'

export const forecastingMigrations: Record<string, Migration> = {
  '0001-consumption-and-models': {
    async up(db: Kysely<unknown>) {
      // One row a day and item: the key is the table, so that SQLite keeps it once.
      const clustered = isPostgres(db) ? sql`` : sql`without rowid`
      await db.schema
        .createTable('consumption_data')
        .addColumn('item_code', text(db), (c) => c.notNull())
        .addColumn('day', text(db), (c) => c.notNull())
        .addColumn('quantity_micros', micros, (c) => c.notNull())
        .addColumn('closing_micros', micros, (c) => c.notNull())
        .addColumn('censored', 'integer', (c) => c.notNull())
        .addPrimaryKeyConstraint('consumption_data_pk', ['item_code', 'day'])
        .modifyEnd(clustered)
        .execute()
      await db.schema
        .createTable('consumption_items')
        .addColumn('item_code', text(db), (c) => c.primaryKey())
        .addColumn('first_day', text(db))
        .addColumn('last_use_day', text(db))
        .addColumn('derived_at', instant, (c) => c.notNull())
        .execute()
      await db.schema.createIndex('consumption_items_use').on('consumption_items').column('last_use_day').execute()
      await db.schema
        .createTable('consumption_stale')
        .addColumn('item_code', text(db), (c) => c.primaryKey())
        .addColumn('from_day', text(db), (c) => c.notNull())
        .addColumn('mark', 'bigint', (c) => c.notNull())
        .execute()
      await db.schema
        .createTable('consumption_barriers')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .execute()
      await db.schema
        .createTable('ai_models')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('item_code', text(db), (c) => c.notNull())
        .addColumn('frequency', text(db), (c) => c.notNull())
        .addColumn('version', 'integer', (c) => c.notNull())
        .addColumn('model', text(db), (c) => c.notNull())
        .addColumn('status', text(db), (c) => c.notNull())
        .addColumn('trained_at', instant, (c) => c.notNull())
        .addColumn('horizon', 'integer', (c) => c.notNull())
        .addColumn('artifact', 'text', (c) => c.notNull())
        .addColumn('volume', 'double precision', (c) => c.notNull())
        .addColumn('wape', 'double precision')
        .addColumn('mase', 'double precision')
        .addColumn('bias', 'double precision')
        .addColumn('coverage80', 'double precision')
        .addColumn('coverage95', 'double precision')
        .addColumn('baseline_wape', 'double precision')
        .addColumn('serves_baseline', 'integer', (c) => c.notNull())
        .addUniqueConstraint('ai_models_version', ['item_code', 'frequency', 'version'])
        .execute()
      await db.schema.createIndex('ai_models_status').on('ai_models').columns(['status', 'id']).execute()
      await db.schema
        .createTable('ai_forecasts')
        .addColumn('item_code', text(db), (c) => c.notNull())
        .addColumn('frequency', text(db), (c) => c.notNull())
        .addColumn('model_id', text(db), (c) => c.notNull().references('ai_models.id'))
        .addColumn('data_hash', text(db), (c) => c.notNull())
        .addColumn('answer', 'text', (c) => c.notNull())
        .addColumn('distribution', 'text', (c) => c.notNull())
        .addColumn('daily_mean', 'double precision', (c) => c.notNull())
        .addPrimaryKeyConstraint('ai_forecasts_pk', ['item_code', 'frequency'])
        .execute()
    }
  }
}
