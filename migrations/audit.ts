import { type Kysely, sql } from 'kysely'
import type { Migrations } from '../plugins/migrate/index.js'
import { identity, instant, isPostgres, makeAppendOnly, text } from './columns.js'

export const auditMigrations: Migrations = { '0001-trail': { up: trail } }

async function trail(db: Kysely<unknown>): Promise<void> {
  const id = identity(db)
  const t = text(db)
  await db.schema
    .createTable('audit_entries')
    .addColumn('seq', id.type, id.build)
    .addColumn('recorded_at', instant, (c) => c.notNull())
    .addColumn('action', t, (c) => c.notNull())
    .addColumn('outcome', t, (c) => c.notNull().check(sql`outcome in ('success', 'failure', 'denied')`))
    .addColumn('actor', t)
    .addColumn('role', t)
    .addColumn('method', t)
    .addColumn('session', t)
    .addColumn('object_type', t)
    .addColumn('object_id', t)
    .addColumn('changes', 'text')
    .addColumn('details', 'text')
    .addColumn('request_id', t)
    .addColumn('trace_id', t)
    // Part of the chain by its salted digest alone, so that it can be erased.
    .addColumn('address', t)
    .addColumn('address_salt', t)
    .addColumn('address_digest', t)
    // More than one where alike entries of a flood were put together.
    .addColumn('occurrences', 'integer', (c) => c.notNull().defaultTo(1))
    .addColumn('first_at', instant)
    .addColumn('last_at', instant)
    .execute()
  for (const column of ['recorded_at', 'action', 'actor', 'object_id', 'request_id'])
    await db.schema.createIndex(`audit_entries_${column}`).on('audit_entries').columns([column, 'seq']).execute()

  await db.schema
    .createTable('audit_batches')
    .addColumn('seq', 'bigint', (c) => c.primaryKey())
    // The highest entry sealed so far.
    .addColumn('through_seq', 'bigint', (c) => c.notNull())
    // Ranges of entries: on PostgreSQL one that commits late belongs to a later batch than its neighbours.
    .addColumn('members', 'text', (c) => c.notNull())
    .addColumn('entries', 'integer', (c) => c.notNull())
    .addColumn('newest_at', instant, (c) => c.notNull())
    .addColumn('root', t, (c) => c.notNull())
    .addColumn('previous', t, (c) => c.notNull())
    .addColumn('hash', t, (c) => c.notNull())
    .addColumn('sealed_at', instant, (c) => c.notNull())
    .execute()
  await db.schema
    .createTable('audit_checkpoints')
    .addColumn('seq', 'bigint', (c) => c.primaryKey())
    .addColumn('through_batch', 'bigint', (c) => c.notNull())
    .addColumn('through_seq', 'bigint', (c) => c.notNull())
    .addColumn('older_than', instant, (c) => c.notNull())
    .addColumn('entries', 'bigint', (c) => c.notNull())
    .addColumn('batch_hash', t, (c) => c.notNull())
    .addColumn('previous', t, (c) => c.notNull())
    .addColumn('hash', t, (c) => c.notNull())
    .addColumn('created_at', instant, (c) => c.notNull())
    .execute()
  await makeAppendOnly(db, 'audit_batches')
  await makeAppendOnly(db, 'audit_checkpoints')
  await (isPostgres(db) ? guardPostgres(db) : guardSqlite(db))
}

/** The columns that the chain covers: none of them ever changes. */
const COVERED = [
  'seq',
  'recorded_at',
  'action',
  'outcome',
  'actor',
  'role',
  'method',
  'session',
  'object_type',
  'object_id',
  'changes',
  'details',
  'request_id',
  'trace_id',
  'address_digest',
  'occurrences',
  'first_at',
  'last_at'
]

/** Append-only but for two ways: an address is taken out, and what a checkpoint covers is deleted. */
async function guardSqlite(db: Kysely<unknown>): Promise<void> {
  const entries = sql.table('audit_entries')
  const refuse = sql`begin select raise(abort, 'audit_entries is append-only'); end`
  const same = sql.join(
    COVERED.map((column) => sql`new.${sql.ref(column)} is old.${sql.ref(column)}`),
    sql` and `
  )
  await sql`create trigger audit_entries_no_update before update on ${entries}
    when not (new.address is null and new.address_salt is null and ${same}) ${refuse}`.execute(db)
  await sql`create trigger audit_entries_no_delete before delete on ${entries}
    when not exists (select 1 from audit_checkpoints where through_seq >= old.seq and older_than > old.recorded_at) ${refuse}`.execute(
    db
  )
}

async function guardPostgres(db: Kysely<unknown>): Promise<void> {
  const entries = sql.table('audit_entries')
  const guard = sql.table('audit_entries_guard')
  await sql`create function ${guard}() returns trigger language plpgsql as $$
    declare covered boolean;
    begin
      if tg_op = 'UPDATE' then
        if new.address is null and new.address_salt is null
          and to_jsonb(new) - 'address' - 'address_salt' = to_jsonb(old) - 'address' - 'address_salt'
        then return new; end if;
      elsif tg_op = 'DELETE' then
        execute format('select exists (select 1 from %I.audit_checkpoints where through_seq >= $1 and older_than > $2)',
          tg_table_schema) into covered using old.seq, old.recorded_at;
        if covered then return old; end if;
      end if;
      raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation';
    end $$`.execute(db)
  await sql`create trigger audit_entries_no_change before update or delete on ${entries}
    for each row execute function ${guard}()`.execute(db)
  await sql`create trigger audit_entries_no_truncate before truncate on ${entries}
    for each statement execute function ${guard}()`.execute(db)
}
