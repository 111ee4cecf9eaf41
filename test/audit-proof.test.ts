import type { FastifyInstance } from 'fastify'
import { type Kysely, type Selectable, sql } from 'kysely'
import t, { type Test } from 'tap'
import { pruneTrail, sealTrail, verifyTrail } from '../modules/audit/index.js'
import { appendEntries, type NewEntry } from '../modules/audit/store.js'
import type { AuditTables } from '../modules/audit/tables.js'
import type { Tenant } from '../plugins/contracts.js'
import { DAY_MS, filler, tables, tenantOf, trail } from './audit-harness.js'
import { buildApp, client, type Dialect, eachDialect } from './helper.js'

/** What the trail proves: append-only tables, retention, and whatever is done to them behind the service's back. */

async function appendOnly(t: Test, app: FastifyInstance, dialect: Dialect): Promise<void> {
  const tenant = await tenantOf(app)
  await sealTrail(tenant)
  const entries = sql.table('audit_entries')
  const attempts = [
    sql`update ${entries} set actor = 'somebody' where seq = 1`,
    sql`update ${entries} set address = '203.0.113.1' where seq = 1`,
    sql`update ${entries} set address = null, address_salt = null, actor = 'x' where seq = 1`,
    sql`delete from ${entries} where seq = 1`,
    sql`update ${sql.table('audit_batches')} set root = '' where seq = 1`,
    sql`delete from ${sql.table('audit_batches')}`,
    ...(dialect === 'postgres' ? [sql`truncate ${entries}`] : [])
  ]
  for (const attempt of attempts)
    await t.rejects(
      tenant.transact(({ db }) => attempt.execute(db)),
      /append-only/,
      'the database refuses it'
    )
  t.equal((await verifyTrail(tenant)).ok, true)
}

type Rows = { [Table in keyof AuditTables]: Selectable<AuditTables[Table]>[] }

/** Somebody who owns the database: no trigger stops them. */
async function openUp(tenant: Tenant, dialect: Dialect): Promise<void> {
  const drop = async (db: Kysely<unknown>, trigger: string, table: string) => {
    const on = dialect === 'sqlite' ? sql`` : sql` on ${sql.table(table)}`
    await sql`drop trigger ${sql.id(trigger)}${on}`.execute(db)
  }
  await tenant.transact(async ({ db }) => {
    const events = dialect === 'sqlite' ? ['update', 'delete'] : ['change']
    for (const table of ['audit_entries', 'audit_batches', 'audit_checkpoints'])
      for (const event of events) await drop(db, `${table}_no_${event}`, table)
  })
}

async function save(tenant: Tenant): Promise<Rows> {
  const db = tables(tenant.db)
  return {
    audit_entries: await db.selectFrom('audit_entries').selectAll().execute(),
    audit_batches: await db.selectFrom('audit_batches').selectAll().execute(),
    audit_checkpoints: await db.selectFrom('audit_checkpoints').selectAll().execute()
  }
}

const restore = (tenant: Tenant, rows: Rows) =>
  tenant.transact(async (tx) => {
    const db = tables(tx.db)
    for (const table of ['audit_entries', 'audit_batches', 'audit_checkpoints'] as const)
      await db.deleteFrom(table).execute()
    await db.insertInto('audit_entries').values(rows.audit_entries).execute()
    await db.insertInto('audit_batches').values(rows.audit_batches).execute()
    if (rows.audit_checkpoints.length > 0)
      await db.insertInto('audit_checkpoints').values(rows.audit_checkpoints).execute()
  })

async function retention(t: Test, app: FastifyInstance): Promise<void> {
  const tenant = await tenantOf(app)
  const now = Date.now()
  const before = await verifyTrail(tenant)
  const old = now - 40 * DAY_MS
  for (const at of [old, old + DAY_MS]) {
    await tenant.transact((tx) => appendEntries(tx, filler(30, at)))
    await sealTrail(tenant, () => at + 60_000)
  }
  // What was there first is younger, and nothing behind it goes before it.
  await pruneTrail(tenant, 30, now)
  t.match(await verifyTrail(tenant), { ok: true, removed: 0, entries: before.entries + 60 })
  const later = now + 35 * DAY_MS
  await tenant.transact((tx) => appendEntries(tx, filler(5, later)))
  await sealTrail(tenant, () => later)
  const full = await verifyTrail(tenant, later)
  await pruneTrail(tenant, 30, later)
  await pruneTrail(tenant, 30, later)
  const pruned = await verifyTrail(tenant, later)
  t.match(pruned, { ok: true, mismatches: [], batches: full.batches, removed: full.entries - 5 })
  t.equal(pruned.entries, 6, 'what is young stays, and the removal itself is an entry')
  t.match((await trail(app)).at(-1), {
    action: 'audit.prune',
    actor: 'system',
    details: { entries: full.entries - 5, retentionDays: 30 }
  })
  await t.rejects(
    tenant.transact(({ db }) => sql`delete from ${sql.table('audit_entries')}`.execute(db)),
    /append-only/,
    'a checkpoint opens only what it covers'
  )
}

async function tampering(t: Test, app: FastifyInstance, dialect: Dialect): Promise<void> {
  const tenant = await tenantOf(app)
  for (let n = 0; n < 3; n++) {
    await tenant.transact((tx) => appendEntries(tx, filler(20, Date.now())))
    await sealTrail(tenant)
  }
  await openUp(tenant, dialect)
  const honest = await save(tenant)
  const verify = () => verifyTrail(tenant, Date.now() + 36 * DAY_MS)
  t.match(await verify(), { ok: true, mismatches: [] })
  const [first, second] = honest.audit_entries.slice(-10)
  const batch = honest.audit_batches.at(-2)
  if (first === undefined || second === undefined || batch === undefined) throw new Error('too few entries')
  const [one, other] = [Number(first.seq), Number(second.seq)]
  type Db = ReturnType<typeof tables>
  const entry = (db: Db, seq: number, values: Partial<NewEntry>) =>
    db.updateTable('audit_entries').set(values).where('seq', '=', seq).execute()
  const deeds: Record<string, [(db: Db) => Promise<unknown>, object]> = {
    'an actor is changed': [(db) => entry(db, one, { actor: 'somebody else' }), { what: 'changed' }],
    'a time is changed': [(db) => entry(db, one, { recorded_at: 1 }), { what: 'changed' }],
    'details are changed': [(db) => entry(db, one, { details: '{}' }), { what: 'changed' }],
    'an address is changed': [(db) => entry(db, one, { address: '203.0.113.77' }), { what: 'changed', entry: one }],
    'an entry is removed': [
      (db) => db.deleteFrom('audit_entries').where('seq', '=', one).execute(),
      { what: 'removed', entry: one }
    ],
    'an entry is inserted where none was': [
      (db) =>
        db
          .insertInto('audit_entries')
          .values({ ...first, seq: -7 })
          .execute(),
      { what: 'inserted', entry: -7 }
    ],
    'two entries are exchanged': [
      async (db) => {
        await entry(db, one, { ...second, seq: one })
        await entry(db, other, { ...first, seq: other })
      },
      { what: 'changed' }
    ],
    'an entry and its batch are changed': [
      async (db) => {
        await entry(db, one, { actor: 'somebody else' })
        await db
          .updateTable('audit_batches')
          .set({ root: 'f'.repeat(64) })
          .where('seq', '=', batch.seq)
          .execute()
      },
      { what: 'chain', batch: batch.seq }
    ],
    'a batch is taken out': [
      (db) => db.deleteFrom('audit_batches').where('seq', '=', batch.seq).execute(),
      { what: 'chain', batch: batch.seq + 1 }
    ],
    'a checkpoint is made up': [
      (db) =>
        db
          .insertInto('audit_checkpoints')
          .values({
            ...{ seq: 99, through_batch: batch.seq, through_seq: 1, older_than: 0, entries: 0, created_at: 0 },
            ...{ batch_hash: 'x', previous: 'x', hash: 'x' }
          })
          .execute(),
      { what: 'checkpoint' }
    ]
  }
  for (const [name, [deed, mismatch]] of Object.entries(deeds)) {
    await tenant.transact((tx) => deed(tables(tx.db)))
    const { body } = await client(app, 'manager').get('/api/audit/verify')
    const found = name.includes('inserted') ? await verify() : body
    t.equal(found.ok, false, name)
    t.match(
      found.mismatches.find((each: { what: string }) => 'what' in mismatch && each.what === mismatch.what),
      mismatch,
      `${name}: ${JSON.stringify(found.mismatches).slice(0, 300)}`
    )
    await restore(tenant, honest)
    t.equal((await verify()).ok, true, `${name}, and put right`)
  }
  const head = (await verify()).head
  await tenant.transact((tx) =>
    tables(tx.db)
      .deleteFrom('audit_batches')
      .where('seq', '=', head?.batch ?? 0)
      .execute()
  )
  t.notSame((await verify()).head, head, 'a chain cut at its end is told by the head that was noted elsewhere')
  await restore(tenant, honest)
}

await eachDialect(t, async (t, dialect) => {
  const app = await buildApp(t, { dialect })
  await client(app, 'admin', { subject: 'boss' }).post('/api/inventory', { itemCode: 'A', name: 'A', unit: 'each' })
  await t.test('the database refuses to change history', (t) => appendOnly(t, app, dialect))
  await t.test('retention leaves a chain that verifies', (t) => retention(t, app))
  await t.test('whatever is done to the tables is found', (t) => tampering(t, app, dialect))
})
