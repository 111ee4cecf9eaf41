import type { Kysely, Migration } from 'kysely'
import { instant, text } from './columns.js'

export const webhooksMigrations: Record<string, Migration> = {
  '0001-webhooks': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('webhooks')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('url', 'text', (c) => c.notNull())
        .addColumn('topics', 'text', (c) => c.notNull())
        .addColumn('description', 'text')
        // Sealed, as the previous one is, which signs as well until it ends.
        .addColumn('secret', 'text', (c) => c.notNull())
        .addColumn('previous_secret', 'text')
        .addColumn('previous_until', instant)
        .addColumn('disabled_reason', text(db))
        // Attempts that failed since the last that did not.
        .addColumn('failures', 'integer', (c) => c.notNull().defaultTo(0))
        .addColumn('failing_since', instant)
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('updated_at', instant, (c) => c.notNull())
        .execute()
      await db.schema
        .createTable('webhook_deliveries')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('webhook_id', text(db), (c) => c.notNull().references('webhooks.id').onDelete('cascade'))
        .addColumn('message_id', text(db), (c) => c.notNull())
        .addColumn('topic', text(db), (c) => c.notNull())
        .addColumn('body', 'text', (c) => c.notNull())
        .addColumn('status', text(db), (c) => c.notNull())
        .addColumn('attempts', 'integer', (c) => c.notNull().defaultTo(0))
        // When to send it next; while it is being sent, when its sender is given up for dead; null: never again.
        .addColumn('due_at', instant)
        // Who sends it now: a new value for each attempt, so that one given up for dead can no longer write.
        .addColumn('claim', 'text')
        .addColumn('expires_at', instant, (c) => c.notNull())
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('finished_at', instant)
        .addUniqueConstraint('webhook_deliveries_once', ['webhook_id', 'message_id'])
        .execute()
      await db.schema
        .createIndex('webhook_deliveries_due')
        .on('webhook_deliveries')
        .columns(['webhook_id', 'due_at'])
        .execute()
      await db.schema
        .createIndex('webhook_deliveries_listed')
        .on('webhook_deliveries')
        .columns(['webhook_id', 'status', 'id'])
        .execute()
      await db.schema
        .createIndex('webhook_deliveries_finished')
        .on('webhook_deliveries')
        .columns(['finished_at'])
        .execute()
      await db.schema
        .createTable('webhook_attempts')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('delivery_id', text(db), (c) => c.notNull().references('webhook_deliveries.id').onDelete('cascade'))
        .addColumn('at', instant, (c) => c.notNull())
        .addColumn('outcome', text(db), (c) => c.notNull())
        .addColumn('http_status', 'integer')
        .addColumn('detail', 'text')
        .addColumn('duration_ms', 'integer', (c) => c.notNull())
        .execute()
      await db.schema
        .createIndex('webhook_attempts_delivery')
        .on('webhook_attempts')
        .columns(['delivery_id', 'id'])
        .execute()
    }
  },
  '0002-trace': {
    async up(db: Kysely<unknown>) {
      // The traceparent of what it tells of.
      await db.schema.alterTable('webhook_deliveries').addColumn('trace', 'text').execute()
    }
  }
}
