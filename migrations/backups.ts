import type { Kysely } from 'kysely'
import type { Migrations } from '../plugins/migrate/index.js'
import { instant, text } from './columns.js'

/** Bookkeeping of backups; it is not in them. */
export const backupsMigrations: Migrations = {
  '0001-backups': {
    async up(db: Kysely<unknown>) {
      // What is known of an archive beyond its name; the archives themselves are the truth of which there are.
      await db.schema
        .createTable('backup_archives')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('kind', text(db), (c) => c.notNull())
        .addColumn('state_at', instant, (c) => c.notNull())
        .addColumn('rows', 'bigint', (c) => c.notNull())
        .addColumn('counts', 'text', (c) => c.notNull())
        .addColumn('parts', 'integer', (c) => c.notNull())
        .addColumn('sha256', 'text', (c) => c.notNull())
        .addColumn('duration_ms', 'bigint', (c) => c.notNull())
        .execute()
      await db.schema.createIndex('backup_archives_state').on('backup_archives').columns(['kind', 'state_at']).execute()
      // One row: the last archive of the chain that increments go on from.
      await db.schema
        .createTable('backup_chain')
        .addColumn('one', 'integer', (c) => c.primaryKey())
        .addColumn('last', text(db), (c) => c.notNull())
        .addColumn('capture', 'text', (c) => c.notNull())
        .addColumn('position', 'text', (c) => c.notNull())
        // Up to when everything is in an archive.
        .addColumn('covered_at', instant, (c) => c.notNull())
        .execute()
      // Whose turn it is, until when.
      await db.schema
        .createTable('backup_turns')
        .addColumn('name', text(db), (c) => c.primaryKey())
        .addColumn('until', instant, (c) => c.notNull())
        .execute()
      await db.schema
        .createTable('backup_checks')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('kind', text(db), (c) => c.notNull())
        .addColumn('at', instant, (c) => c.notNull())
        .addColumn('outcome', text(db), (c) => c.notNull())
        .addColumn('archive_id', text(db))
        .addColumn('archives', 'integer', (c) => c.notNull())
        .addColumn('bytes', 'bigint', (c) => c.notNull())
        .addColumn('rows', 'bigint', (c) => c.notNull())
        .addColumn('duration_ms', 'bigint', (c) => c.notNull())
        .addColumn('error', 'text')
        .execute()
      await db.schema.createIndex('backup_checks_at').on('backup_checks').columns(['at', 'id']).execute()
    }
  }
}
