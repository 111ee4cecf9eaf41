import { type Kysely, sql } from 'kysely'
import type { Migrations } from '../plugins/migrate/index.js'
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
  '0002-sessions': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('sessions')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('user_id', text(db), (c) => c.notNull().references('users.id'))
        .addColumn('epoch', instant, (c) => c.notNull())
        .addColumn('methods', text(db), (c) => c.notNull())
        .addColumn('authenticated_at', instant, (c) => c.notNull())
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('seen_at', instant, (c) => c.notNull())
        .addColumn('expires_at', instant, (c) => c.notNull())
        .addColumn('ended_at', instant)
        .addColumn('address', text(db), (c) => c.notNull())
        .addColumn('user_agent', text(db), (c) => c.notNull())
        .execute()
      await db.schema.createIndex('sessions_user').on('sessions').column('user_id').execute()
      await db.schema.createIndex('sessions_expires_at').on('sessions').column('expires_at').execute()
      await db.schema
        .createTable('refresh_tokens')
        .addColumn('hash', text(db), (c) => c.primaryKey())
        .addColumn('session_id', text(db), (c) => c.notNull().references('sessions.id').onDelete('cascade'))
        .addColumn('used_at', instant)
        .addColumn('seed', text(db))
        .execute()
      await db.schema.createIndex('refresh_tokens_session').on('refresh_tokens').column('session_id').execute()
      await db.schema
        .createTable('api_tokens')
        .addColumn('id', text(db), (c) => c.primaryKey())
        .addColumn('user_id', text(db), (c) => c.notNull().references('users.id'))
        .addColumn('epoch', instant, (c) => c.notNull())
        .addColumn('name', text(db), (c) => c.notNull())
        .addColumn('hash', text(db), (c) => c.notNull().unique())
        .addColumn('hint', text(db), (c) => c.notNull())
        .addColumn('role', text(db), (c) => c.notNull().check(sql`role in ('viewer', 'staff', 'manager', 'admin')`))
        .addColumn('scopes', text(db), (c) => c.notNull())
        .addColumn('created_at', instant, (c) => c.notNull())
        .addColumn('expires_at', instant, (c) => c.notNull())
        .addColumn('used_at', instant)
        .execute()
      await db.schema.createIndex('api_tokens_user').on('api_tokens').column('user_id').execute()
      // One number orders what ended: whoever has read up to one misses nothing by asking for what is above it.
      await db.schema
        .createTable('token_ends_counter')
        .addColumn('id', sql`integer`, (c) => c.primaryKey())
        .addColumn('version', sql`bigint`, (c) => c.notNull())
        .execute()
      await db.schema
        .createTable('token_ends')
        .addColumn('version', sql`bigint`, (c) => c.primaryKey())
        .addColumn('kind', text(db), (c) => c.notNull().check(sql`kind in ('subject', 'session', 'token')`))
        .addColumn('key', text(db), (c) => c.notNull())
        .addColumn('epoch', instant, (c) => c.notNull())
        .addColumn('expires_at', instant, (c) => c.notNull())
        .execute()
      await sql`insert into ${sql.table('token_ends')} (version, kind, key, epoch, expires_at)
        select row_number() over (order by jti), 'token', jti, 0, expires_at from ${sql.table('revoked_tokens')}`.execute(
        db
      )
      await sql`insert into ${sql.table('token_ends')} (version, kind, key, epoch, expires_at)
        select (select count(*) from ${sql.table('revoked_tokens')}) + row_number() over (order by id),
          'subject', id, tokens_valid_from, 9007199254740991
        from ${sql.table('users')} where tokens_valid_from > 0`.execute(db)
      await sql`insert into ${sql.table('token_ends_counter')} (id, version)
        select 1, count(*) from ${sql.table('token_ends')}`.execute(db)
      await db.schema.dropTable('revoked_tokens').execute()
      await db.schema.dropIndex('users_tokens_valid_from').execute()
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
  },
  '0004-oidc': {
    async up(db: Kysely<unknown>) {
      await db.schema
        .createTable('oidc_identities')
        .addColumn('issuer', text(db), (c) => c.notNull())
        .addColumn('subject', text(db), (c) => c.notNull())
        .addColumn('user_id', text(db), (c) => c.notNull().references('users.id'))
        .addColumn('created_at', instant, (c) => c.notNull())
        .addPrimaryKeyConstraint('oidc_identities_key', ['issuer', 'subject'])
        .execute()
      await db.schema.createIndex('oidc_identities_user_id').on('oidc_identities').column('user_id').execute()
    }
  }
}
