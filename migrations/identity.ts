import { type Kysely, sql } from 'kysely'
import type { Migrations } from '../plugins/migrate.js'
import { instant, text } from './columns.js'

export const identityMigrations: Migrations = {
  '0001-identity': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('users')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('username', text(db), (c) => c.notNull())
        .addColumn('username_key', text(db), (c) => c.notNull().unique())
        .addColumn('display_name', text(db), (c) => c.notNull())
        .addColumn('role', text(db), (c) => c.notNull().check(sql`role in ('viewer', 'staff', 'manager', 'admin')`))
        .addColumn('password_hash', text(db), (c) => c.notNull())
        .addColumn('tokens_valid_from', instant, (c) => c.notNull().defaultTo(0))
        .addColumn('disabled_at', instant)
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('updated_at', instant, (c) => c.notNull())
        .execute()
      await db.schema.createIndex('users_tokens_valid_from').on('users').column('tokens_valid_from').execute()
      await db.schema
        .createTable('revoked_tokens')
        .addColumn('jti', text(db), (c) => c.primaryKey())
        .addColumn('subject', text(db), (c) => c.notNull())
        .addColumn('expires_at', instant, (c) => c.notNull())
        .addColumn('revoked_at', instant, (c) => c.notNull())
        .execute()
      await db.schema.createIndex('revoked_tokens_revoked_at').on('revoked_tokens').column('revoked_at').execute()
      await db.schema.createIndex('revoked_tokens_expires_at').on('revoked_tokens').column('expires_at').execute()
    }
  }
}
