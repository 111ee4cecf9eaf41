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
  },
  '0003-second-factor': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .alterTable('users')
        .addColumn('must_change_password', 'integer', (c) => c.notNull().defaultTo(0))
        .execute()
      await db.schema.alterTable('users').addColumn('deleted_at', instant).execute()
      // `seed` and `pending_seed` are sealed. A pending one takes the other's place once a code of it was given.
      await db.schema
        .createTable('totp_factors')
        .addColumn('user_id', text(db), (c) => c.primaryKey().references('users.id'))
        .addColumn('seed', text(db))
        .addColumn('last_step', instant)
        .addColumn('pending_seed', text(db))
        .addColumn('pending_at', instant)
        .execute()
      await db.schema
        .createTable('recovery_codes')
        .addColumn('user_id', text(db), (c) => c.notNull().references('users.id'))
        .addColumn('code_hash', text(db), (c) => c.notNull())
        .addColumn('used_at', instant)
        .addPrimaryKeyConstraint('recovery_codes_key', ['user_id', 'code_hash'])
        .execute()
      await db.schema
        .createTable('passkeys')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('user_id', text(db), (c) => c.notNull().references('users.id'))
        .addColumn('credential_id', text(db), (c) => c.notNull().unique())
        .addColumn('public_key', text(db), (c) => c.notNull())
        .addColumn('counter', instant, (c) => c.notNull())
        .addColumn('transports', text(db), (c) => c.notNull())
        .addColumn('name', text(db), (c) => c.notNull())
        .addColumn('is_backed_up', 'integer', (c) => c.notNull())
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('last_used_at', instant)
        .execute()
      await db.schema.createIndex('passkeys_user_id').on('passkeys').column('user_id').execute()
      await db.schema
        .createTable('used_challenges')
        .addColumn('challenge_hash', text(db), (c) => c.primaryKey())
        .addColumn('expires_at', instant, (c) => c.notNull())
        .execute()
      // `user_id` is null for the link that makes the first user.
      await db.schema
        .createTable('one_time_links')
        .addColumn('token_hash', text(db), (c) => c.primaryKey())
        .addColumn('user_id', text(db), (c) => c.references('users.id'))
        .addColumn('expires_at', instant, (c) => c.notNull())
        .execute()
      await db.schema.createIndex('one_time_links_user_id').on('one_time_links').column('user_id').execute()
    }
  }
}
