import type { Kysely, Migration } from 'kysely'
import { instant, text } from './columns.js'

export const anomalyMigrations: Record<string, Migration> = {
  '0001-findings': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('anomalies')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('item_code', text(db), (c) => c.notNull())
        .addColumn('day', text(db), (c) => c.notNull())
        .addColumn('kind', text(db), (c) => c.notNull())
        .addColumn('detector', text(db), (c) => c.notNull())
        .addColumn('severity', text(db), (c) => c.notNull())
        .addColumn('observed', 'double precision', (c) => c.notNull())
        .addColumn('expected', 'double precision', (c) => c.notNull())
        .addColumn('lower', 'double precision', (c) => c.notNull())
        .addColumn('upper', 'double precision', (c) => c.notNull())
        .addColumn('score', 'double precision', (c) => c.notNull())
        .addColumn('status', text(db), (c) => c.notNull())
        .addColumn('note', 'text')
        .addColumn('verdict', text(db))
        .addColumn('handled_by', text(db))
        .addColumn('handled_at', instant)
        .addColumn('detected_at', instant, (c) => c.notNull())
        .addUniqueConstraint('anomalies_once', ['item_code', 'day', 'kind'])
        .execute()
      await db.schema.createIndex('anomalies_listed').on('anomalies').columns(['day', 'id']).execute()
      await db.schema.createIndex('anomalies_status').on('anomalies').columns(['status', 'severity']).execute()
    }
  }
}
