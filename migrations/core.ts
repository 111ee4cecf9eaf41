import type { Kysely } from 'kysely'
import type { Migrations } from '../plugins/migrate/index.js'
import { identity, instant, text } from './columns.js'

/** What the core keeps in each tenant's database. */
export const coreMigrations: Migrations = {
  '0001-core': {
    async up(db: Kysely<unknown>) {
      const id = identity(db)
      await db.schema
        .createTable('outbox')
        .addColumn('id', id.type, id.build)
        .addColumn('topic', text(db), (c) => c.notNull())
        .addColumn('payload', 'text', (c) => c.notNull())
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('claimed_until', instant, (c) => c.notNull().defaultTo(0))
        .addColumn('attempts', 'integer', (c) => c.notNull().defaultTo(0))
        .execute()
      await db.schema
        .createTable('idempotency_keys')
        .addColumn('key', text(db), (c) => c.primaryKey())
        .addColumn('request_hash', text(db), (c) => c.notNull())
        .addColumn('status', 'integer')
        .addColumn('headers', 'text')
        .addColumn('body', 'text')
        .addColumn('created_at', instant, (c) => c.notNull())
        .execute()
      await db.schema.createIndex('idempotency_keys_created_at').on('idempotency_keys').column('created_at').execute()
      await db.schema
        .createTable('jobs')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('kind', text(db), (c) => c.notNull())
        .addColumn('status', text(db), (c) => c.notNull())
        .addColumn('params', 'text', (c) => c.notNull())
        .addColumn('progress_done', instant, (c) => c.notNull().defaultTo(0))
        .addColumn('progress_total', instant, (c) => c.notNull().defaultTo(0))
        .addColumn('result', 'text')
        .addColumn('error_code', 'text')
        .addColumn('error_message', 'text')
        // Where it must run; null: anywhere.
        .addColumn('node', 'text')
        // Who runs it now: a new value for each run, so that one that was given up for dead can no longer write.
        .addColumn('claim', 'text')
        .addColumn('attempts', 'integer', (c) => c.notNull().defaultTo(0))
        .addColumn('cancel_requested_at', instant)
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('heartbeat_at', instant, (c) => c.notNull())
        .addColumn('finished_at', instant)
        .execute()
      await db.schema.createIndex('jobs_status').on('jobs').columns(['status', 'created_at']).execute()
      await db.schema.createIndex('jobs_created_at').on('jobs').columns(['created_at', 'id']).execute()
    }
  },
  '0002-trace': {
    async up(db: Kysely<unknown>) {
      // The traceparent of what it belongs to, so that the trace goes on where the work does.
      await db.schema.alterTable('outbox').addColumn('trace', 'text').execute()
      await db.schema.alterTable('jobs').addColumn('trace', 'text').execute()
    }
  }
}
