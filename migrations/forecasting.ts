import { type Kysely, sql } from 'kysely'
import type { Migrations } from '../plugins/migrate/index.js'
import { instant, isPostgres, micros, text } from './columns.js'

const OUTCOME_FIGURES = [
  'mean',
  'lower80',
  'upper80',
  'lower95',
  'upper95',
  'model_mean',
  'baseline',
  'actual',
  'mae',
  'rmse',
  'scale'
]

export const forecastingMigrations: Migrations = {
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
  },

  '0002-learning': {
    async up(db: Kysely<unknown>) {
      const clustered = isPostgres(db) ? sql`` : sql`without rowid`
      // Where days of use are looked for whatever the item.
      await db.schema
        .createIndex('consumption_data_use')
        .on('consumption_data')
        .column('day')
        .where(sql.ref('quantity_micros'), '>', sql.lit(0))
        .execute()
      // The model's own answer, kept while a person's override is served instead.
      await db.schema.alterTable('ai_forecasts').addColumn('model_answer', 'text').execute()
      await db.schema.alterTable('ai_forecasts').addColumn('model_distribution', 'text').execute()
      await db.schema.alterTable('ai_forecasts').addColumn('parameters', 'text').execute()
      const series = (table: string) =>
        db.schema
          .createTable(table)
          .addColumn('item_code', text(db), (c) => c.notNull())
          .addColumn('frequency', text(db), (c) => c.notNull())
      await series('forecast_served')
        .addColumn('first_day', text(db), (c) => c.notNull())
        .addColumn('path', 'text', (c) => c.notNull())
        .addPrimaryKeyConstraint('forecast_served_pk', ['item_code', 'frequency', 'first_day'])
        .execute()
      let outcomes = series('forecast_outcomes')
        .addColumn('period', text(db), (c) => c.notNull())
        .addColumn('model', text(db), (c) => c.notNull())
        .addColumn('lead', 'integer', (c) => c.notNull())
        .addColumn('overridden', 'integer', (c) => c.notNull())
        .addColumn('counts', 'integer', (c) => c.notNull())
      for (const name of OUTCOME_FIGURES) {
        outcomes = outcomes.addColumn(name, 'double precision', (c) => c.notNull())
      }
      await outcomes
        .addPrimaryKeyConstraint('forecast_outcomes_pk', ['item_code', 'frequency', 'period'])
        .modifyEnd(clustered)
        .execute()
      await db.schema
        .createIndex('forecast_outcomes_period')
        .on('forecast_outcomes')
        .columns(['period', 'frequency'])
        .execute()
      await db.schema
        .createTable('forecast_accuracy')
        .addColumn('frequency', text(db), (c) => c.notNull())
        .addColumn('period', text(db), (c) => c.notNull())
        .addColumn('model', text(db), (c) => c.notNull())
        .addColumn('sums', 'text', (c) => c.notNull())
        .addPrimaryKeyConstraint('forecast_accuracy_pk', ['frequency', 'period', 'model'])
        .execute()
      await series('forecast_drift')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('detected_on', text(db), (c) => c.notNull())
        .addColumn('kind', text(db), (c) => c.notNull())
        .addColumn('statistic', 'double precision', (c) => c.notNull())
        .addColumn('detected_at', instant, (c) => c.notNull())
        .addColumn('retrained_at', instant)
        .addUniqueConstraint('forecast_drift_once', ['item_code', 'frequency', 'detected_on', 'kind'])
        .execute()
      await db.schema
        .createIndex('forecast_drift_waiting')
        .on('forecast_drift')
        .columns(['frequency', 'retrained_at'])
        .execute()
      await series('forecast_overrides')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('from_day', text(db), (c) => c.notNull())
        .addColumn('to_day', text(db), (c) => c.notNull())
        .addColumn('quantity_per_day', 'double precision')
        .addColumn('factor', 'double precision')
        .addColumn('reason', 'text', (c) => c.notNull())
        .addColumn('data_to', text(db), (c) => c.notNull())
        .addColumn('created_by', 'text')
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('cancelled_at', instant)
        .execute()
      await db.schema
        .createIndex('forecast_overrides_item')
        .on('forecast_overrides')
        .columns(['item_code', 'id'])
        .execute()
      await series('forecast_feedback')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('day', text(db), (c) => c.notNull())
        .addColumn('subject', text(db), (c) => c.notNull())
        .addColumn('verdict', text(db), (c) => c.notNull())
        .addColumn('comment', 'text')
        .addColumn('created_by', 'text')
        .addColumn('created_at', instant, (c) => c.notNull())
        .execute()
      await db.schema
        .createIndex('forecast_feedback_item')
        .on('forecast_feedback')
        .columns(['verdict', 'item_code'])
        .execute()
      await db.schema
        .createTable('ai_aggregates')
        .addColumn('level', text(db), (c) => c.notNull())
        .addColumn('key', text(db), (c) => c.notNull())
        .addColumn('answer', 'text', (c) => c.notNull())
        .addPrimaryKeyConstraint('ai_aggregates_pk', ['level', 'key'])
        .execute()
      await db.schema
        .createTable('forecast_schedule')
        .addColumn('name', text(db), (c) => c.primaryKey())
        .addColumn('day', text(db), (c) => c.notNull())
        .addColumn('job_id', 'text')
        .addColumn('claimed_at', instant, (c) => c.notNull())
        .execute()
    }
  },

  '0003-calendar': {
    async up(db: Kysely<unknown>) {
      const scoped = (table: string) =>
        db.schema
          .createTable(table)
          .addColumn('id', text(db), (c) => c.primaryKey())
          .addColumn('name', 'text', (c) => c.notNull())
          .addColumn('category', 'text')
          .addColumn('item_code', text(db))
          .addColumn('created_by', 'text')
          .addColumn('created_at', instant, (c) => c.notNull())
      await scoped('forecast_events')
        .addColumn('kind', text(db), (c) => c.notNull())
        .addColumn('dates', 'text')
        .addColumn('yearly', 'text')
        .addColumn('days_before', 'integer', (c) => c.notNull())
        .addColumn('days_after', 'integer', (c) => c.notNull())
        .addColumn('updated_at', instant, (c) => c.notNull())
        .execute()
      await scoped('forecast_regressors')
        .addColumn('description', 'text')
        .addUniqueConstraint('forecast_regressors_name', ['name'])
        .execute()
      await db.schema
        .createTable('forecast_regressor_values')
        .addColumn('regressor_id', text(db), (c) => c.notNull())
        .addColumn('day', text(db), (c) => c.notNull())
        .addColumn('value', 'double precision', (c) => c.notNull())
        .addPrimaryKeyConstraint('forecast_regressor_values_pk', ['regressor_id', 'day'])
        .modifyEnd(isPostgres(db) ? sql`` : sql`without rowid`)
        .execute()
    }
  },

  '0004-coherent': {
    async up(db: Kysely<unknown>) {
      // Sums of days and of weeks; what was there is made again by the next night.
      await db.schema.dropTable('ai_aggregates').execute()
      await db.schema
        .createTable('ai_aggregates')
        .addColumn('frequency', text(db), (c) => c.notNull())
        .addColumn('level', text(db), (c) => c.notNull())
        .addColumn('key', text(db), (c) => c.notNull())
        .addColumn('answer', 'text', (c) => c.notNull())
        .addPrimaryKeyConstraint('ai_aggregates_frequency_pk', ['frequency', 'level', 'key'])
        .execute()
      // All that the accuracy of what serves is made of, without the artifacts beside it.
      await db.schema
        .createIndex('ai_models_accuracy')
        .on('ai_models')
        .columns([
          'status',
          'model',
          'frequency',
          'serves_baseline',
          'volume',
          'wape',
          'bias',
          'baseline_wape',
          'mase',
          'coverage80',
          'coverage95'
        ])
        .execute()
      await db.schema.createIndex('ai_models_model').on('ai_models').columns(['model', 'id']).execute()
      await db.schema
        .createIndex('ai_models_frequency')
        .on('ai_models')
        .columns(['frequency', 'status', 'id'])
        .execute()
      // Means per period that agree with the sums, where those are served instead of the model's own.
      await db.schema.alterTable('ai_forecasts').addColumn('reconciled', 'text').execute()
      await db.schema
        .createTable('ai_location_forecasts')
        .addColumn('item_code', text(db), (c) => c.notNull())
        .addColumn('frequency', text(db), (c) => c.notNull())
        .addColumn('location', text(db), (c) => c.notNull())
        .addColumn('data_hash', text(db), (c) => c.notNull())
        .addColumn('answer', 'text', (c) => c.notNull())
        .addPrimaryKeyConstraint('ai_location_forecasts_pk', ['item_code', 'frequency', 'location'])
        .execute()
    }
  },

  // A forecast's row is long, and every list of items asks for this one figure of it.
  '0005-means-by-item': {
    online: [{ index: 'ai_forecasts_means', on: 'ai_forecasts', columns: ['item_code', 'frequency', 'daily_mean'] }]
  }
}
