import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { generateX25519Identity } from 'age-encryption'
import type { FastifyInstance } from 'fastify'
import { sql } from 'kysely'
import S3rver from 's3rver'
import t, { type Test } from 'tap'
import { trailProof } from '../modules/audit/index.js'
import { ledgerProof } from '../modules/inventory/index.js'
import { releaseCapture, restoreTenant } from '../plugins/archive/index.js'
import { restoreInto } from '../plugins/archive/scratch.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Tenants } from '../plugins/core.js'
import { placeOf } from '../plugins/database.js'
import {
  archivesOf,
  asked,
  codesIn,
  covered,
  coveredAt,
  digests,
  type Environment,
  environment,
  freshUrl,
  mainOf,
  until
} from './backups-harness.js'
import { buildApp, client, eachDialect } from './helper.js'
import { freePort } from './ports.js'
import { temporaryFolder } from './service-process.js'

/** Backups of a database that is written to, and what comes back of them. */

interface Wanted {
  env: Environment
  app: FastifyInstance
  databaseUrl: string
  wanted: { id: string } | { at: number }
}
const restoreTo = (t: Test, { env, app, databaseUrl, wanted }: Wanted) =>
  restoreTenant(loadConfig({ ...env, DATA_DIR: temporaryFolder(t), DATABASE_URL: databaseUrl, LOG_LEVEL: 'silent' }), {
    tenant: 'main',
    wanted,
    sets: app.getDecorator<Tenants>('tenants').migrations(),
    prove: async (copy) => [await ledgerProof(copy), await trailProof(copy)]
  })

/** Writes of every kind until it is stopped; says how many were acknowledged. */
function load(app: FastifyInstance) {
  const admin = client(app, 'admin')
  let [acknowledged, stopped] = [0, false]
  const run = async () => {
    for (let n = 0; !stopped; n++) {
      const itemCode = `L${n}`
      await admin.post('/api/inventory', {
        itemCode,
        name: `Item ${n}`,
        unit: 'each',
        barcodes: [String(5_000_000 + n)]
      })
      for (const quantity of [3, 5]) {
        const { status } = await admin.post('/api/movements', {
          type: 'receipt',
          lines: [
            { itemCode, quantity, unitCost: 2 },
            { itemCode: 'A', quantity, unitCost: 1 }
          ]
        })
        if (status === 201) acknowledged++
      }
      await admin.post('/api/movements', { type: 'issue', lines: [{ itemCode: 'A', quantity: 1 }] })
      if (n % 3 === 0) await admin.patch(`/api/inventory/${itemCode}`, { name: `Renamed ${n}` })
      if (n % 5 === 4) await admin.delete(`/api/inventory/L${n - 1}`)
      await sleep(120)
    }
  }
  const running = run()
  return {
    acknowledged: () => acknowledged,
    stop: async () => {
      stopped = true
      await running
    }
  }
}

t.test('a database that is written to comes back on either engine, row for row, as of any moment', async (t) => {
  await eachDialect(t, async (t, dialect) => {
    const env = environment(t, dialect === 'postgres' ? await bucket(t) : {})
    const databaseUrl = await freshUrl(t, dialect)
    const app = await buildApp(t, { dialect, config: { ...env, DATABASE_URL: databaseUrl } })
    const admin = client(app, 'admin')
    await admin.post('/api/inventory', { itemCode: 'A', name: 'Äpfel', unit: 'kg' })
    const writing = load(app)
    const archives = archivesOf(app)
    // By themselves: a full one as there was none, then increments.
    await until('a full backup', async () => (await coveredAt(app)) > 0)
    await until('increments', async () => (await archives.list('main')).length >= 3)
    const full = await admin.post('/api/backups', undefined, { prefer: 'wait=30' })
    t.match(full, { status: 200, body: { status: 'succeeded', result: { backupId: /^[0-9a-f]{12}$/ } } })
    await until('an increment of the second', async () =>
      (await archives.list('main')).some(({ previous }) => previous === full.body.result.backupId)
    )
    await until('enough writes', async () => writing.acknowledged() > 10)
    await writing.stop()
    t.ok(writing.acknowledged() > 10, `${writing.acknowledged()} postings meanwhile`)

    await admin.post('/api/inventory', { itemCode: 'FIRST', name: 'First', unit: 'each' })
    const first = await covered(app)
    await admin.post('/api/inventory', { itemCode: 'SECOND', name: 'Second', unit: 'each' })
    await admin.delete('/api/inventory/FIRST')
    await exchangeCodes(app)
    // A state that is in the archives as it is: nothing was written after it was read.
    const [live, last, at] = await until('silence', async () => {
      await covered(app)
      const before = (await archives.list('main')).at(-1)
      const found = await digests(databaseUrl, app)
      const at = await covered(app)
      const after = (await archives.list('main')).at(-1)
      return before !== undefined && before.id === after?.id && ([found, after, at] as const)
    })

    const other = dialect === 'sqlite' ? 'postgres' : 'sqlite'
    const moved = await freshUrl(t, other)
    const { id, kept, proofs, rows } = await restoreTo(t, { env, app, databaseUrl: moved, wanted: { at } })
    t.same({ id, kept }, { id: last.id, kept: null })
    t.same(await digests(moved, app), live, `each of ${rows} rows, from ${dialect} on ${other}`)
    t.match(proofs, [
      { name: 'ledger', problems: [] },
      { name: 'audit trail', problems: [] }
    ])
    t.ok((proofs[0]?.checked ?? 0) > writing.acknowledged())

    const past = await freshUrl(t, dialect)
    await restoreTo(t, { env, app, databaseUrl: past, wanted: { at: first } })
    const codes = await codesIn(past)
    t.ok(codes.includes('FIRST') && !codes.includes('SECOND'), 'as it was before the second')

    const { items } = await digests(databaseUrl, app)
    await t.rejects(restoreTo(t, { env, app, databaseUrl, wanted: { at: first } }), { code: 'BACKUP_DATABASE_IN_USE' })
    t.equal((await digests(databaseUrl, app)).items, items, 'a database in use is not touched')
    t.match(await restoreTo(t, { env, app, databaseUrl: past, wanted: { id: last.id } }), { kept: /replaced[-_]/ })
    t.same(await digests(past, app), live, 'what was there is replaced, and kept')
    if (dialect === 'sqlite') await checkRoutes(t, app, full.body.result.backupId)
    await refuseAndRestore(t, { env, app, databaseUrl: past, wanted: { id: last.id } })
  })
})

/** Where the backups of PostgreSQL go: a store that speaks S3. */
async function bucket(t: Test): Promise<Environment> {
  const configureBuckets = [{ name: 'copies', configs: [] }]
  const server = new S3rver({ port: await freePort(), silent: true, directory: temporaryFolder(t), configureBuckets })
  const { port } = await server.run()
  t.teardown(() => server.close())
  return {
    BACKUP_URL: 's3://copies/site',
    BACKUP_S3_ENDPOINT: `http://127.0.0.1:${port}`,
    BACKUP_S3_ACCESS_KEY_ID: 'S3RVER',
    BACKUP_S3_SECRET_ACCESS_KEY: 'S3RVER'
  }
}

/** What the routes tell and do: the list, one of them, a proof of it, a drill. */
async function checkRoutes(t: Test, app: FastifyInstance, id: string): Promise<void> {
  const admin = client(app, 'admin')
  const { body: list } = await admin.get('/api/backups?kind=full&limit=1')
  t.match(list, { data: [{ id, kind: 'full', previous: null, rows: Number }], page: { nextCursor: String } })
  const { body: second } = await admin.get(`/api/backups?kind=full&limit=1&cursor=${list.page.nextCursor}`)
  t.equal(second.data.length, 1)
  t.not(second.data[0].id, id)
  const { body: one } = await admin.get(`/api/backups/${id}`)
  t.match(one, { id, sha256: /^[0-9a-f]{64}$/, tables: { items: Number, stock_moves: Number } })
  t.match(await admin.get('/api/backups/000000000000'), { status: 404, body: { code: 'BACKUP_UNKNOWN' } })
  const wait = { prefer: 'wait=60' }
  const verified = await admin.post(`/api/backups/${id}/verify`, undefined, wait)
  t.match(verified.body, { status: 'succeeded', result: { archives: 1, rows: one.rows, parts: one.parts } })
  const drilled = await admin.post('/api/backups/drill', undefined, wait)
  t.match(drilled.body, { status: 'succeeded', result: { seconds: Number } }, drilled.text)
  const { body: checks } = await admin.get('/api/backups/checks')
  // One is made by itself, as there was none.
  const { seconds, rows } = drilled.body.result
  const found = (wanted: object) =>
    checks.data.some((each: object) => Object.entries(wanted).every(([key, value]) => Reflect.get(each, key) === value))
  t.ok(found({ kind: 'drill', outcome: 'success', seconds, rows }))
  t.ok(found({ kind: 'verify', outcome: 'success', backupId: id, rows: one.rows }))
  const metrics = (await app.inject('/metrics')).body
  t.match(metrics, /^backup_restore_checks_total\{outcome="success"\} [12]$/m)
  await until('the drill in the metrics', async () =>
    /^backup_restore_check_last_duration_seconds [0-9.]*[1-9]/m.test((await app.inject('/metrics')).body)
  )
  t.match(metrics, /^backup_last_success_timestamp_seconds\{type="incremental"\} 1\d{9}/m)
  t.match(metrics, /^backup_last_size_bytes\{type="full"\} [1-9]/m)
  t.match(metrics, /^backup_duration_seconds_count\{type="full"\} 2$/m)
  for (const action of [
    'backup.create',
    'backup.verify',
    'backup.drill',
    'backups.full.start',
    'backups.drill.start'
  ]) {
    const { body: trail } = await admin.get(`/api/audit?action=${action}`)
    t.ok(trail.data.length > 0, `${action} is in the audit trail`)
  }
  t.equal((await admin.delete(`/api/jobs/${drilled.body.id}`)).body.code, 'JOB_ENDED')
}

/** Whatever is wrong with a backup, what was there stays, and nothing is left beside it. */
async function refuseAndRestore(t: Test, order: Wanted): Promise<void> {
  const before = await digests(order.databaseUrl, order.app)
  const refused = async (code: string, wanted = order.wanted, env = order.env) =>
    t.rejects(restoreTo(t, { ...order, env, wanted }), { code })
  await refused('BACKUP_NOT_FOUND', { at: 0 })
  const another = { ...order.env, BACKUP_IDENTITY: await generateX25519Identity() }
  await refused('BACKUP_KEY_REFUSED', order.wanted, another)
  const folder = join(order.env.BACKUP_URL ?? '', 'tenants', 'main')
  if (!folder.startsWith('s3:')) await damage(t, order, folder, refused)
  t.same(await digests(order.databaseUrl, order.app), before, 'nothing was touched')
  const place = placeOf({ databaseUrl: order.databaseUrl, tenancy: 'single' }, 'main')
  const left =
    place.dialect === 'sqlite'
      ? readdirSync(dirname(place.path)).filter((name) => /restoring|drill/.test(name))
      : await asked(
          order.databaseUrl,
          async ({ db }) =>
            (await sql`select nspname from pg_namespace where nspname ~ '^(restoring|drill)_'`.execute(db)).rows
        )
  t.same(left, [], 'and nothing is left')
}

async function damage(
  t: Test,
  { app }: Wanted,
  folder: string,
  refused: (code: string, wanted: { id: string }) => Promise<unknown>
): Promise<void> {
  // The first increment: what comes after needs it.
  const names = readdirSync(folder).sort()
  const name = names.find((each) => each.includes('.increment.')) ?? ''
  const [, id = ''] = /\.increment\.([0-9a-f]{12})/.exec(name) ?? []
  const [, next = ''] = new RegExp(`\\.([0-9a-f]{12})\\.${id}\\.age`).exec(names.join(' ')) ?? []
  const whole = readFileSync(join(folder, name))
  const broken = Buffer.from(whole)
  broken[whole.length - 20] = (broken[whole.length - 20] ?? 0) ^ 1
  writeFileSync(join(folder, name), broken)
  await refused('BACKUP_DAMAGED', { id: next })
  const verified = await client(app, 'admin').post(`/api/backups/${id}/verify`, undefined, { prefer: 'wait=30' })
  t.match(verified.body, { status: 'failed', error: { code: 'BACKUP_DAMAGED', message: /archive\.json/ } })
  rmSync(join(folder, name))
  await refused('BACKUP_NOT_FOUND', { id: next })
  writeFileSync(join(folder, name), whole)
}

t.test('where increments are not made any more, nothing is noted', async (t) => {
  await eachDialect(t, async (t, dialect) => {
    const databaseUrl = await freshUrl(t, dialect)
    const notes = (url: string) =>
      asked(url, async ({ db }) => {
        const query =
          dialect === 'sqlite'
            ? sql`select 1 from sqlite_schema where name like 'backup_note%' or name = 'backup_changes'`
            : sql`select 1 from pg_trigger where tgname like 'backup_note%'`
        return (await query.execute(db)).rows.length
      })
    const app = await buildApp(t, { dialect, config: { ...environment(t), DATABASE_URL: databaseUrl } })
    await until('a full backup', async () => (await coveredAt(app)) > 0)
    t.ok((await notes(databaseUrl)) > 50)
    const archives = archivesOf(app)
    const main = await mainOf(app)
    const { rows } = await sql<{
      last: string
      capture: string
      position: string
    }>`select last, capture, position from ${sql.table('backup_chain')}`.execute(main.db)
    const [chain] = rows
    if (chain === undefined) throw new Error('there is a chain')
    const lost = await archives.increment('main', chain.last, { ...chain, capture: 'another' })
    t.match(lost, { nothing: 'broken' }, 'changes that were noted elsewhere are not known')
    await app.close()
    const without = await buildApp(t, { dialect, config: { DATABASE_URL: databaseUrl } })
    t.ok((await notes(databaseUrl)) > 50, 'a start alone ends nothing')
    const sets = without.getDecorator<Tenants>('tenants').migrations()
    await releaseCapture(await mainOf(without), { databaseUrl, tenancy: 'single' }, sets)
    t.equal(await notes(databaseUrl), 0)
    t.equal((await client(without, 'admin').post('/api/backups')).body.code, 'BACKUP_NOT_CONFIGURED')
    t.equal((await client(without, 'admin').get('/api/backups')).status, 409)
  })
})

/** Two rows change places in a unique column: no order of single rows is right. */
async function exchangeCodes(app: FastifyInstance): Promise<void> {
  const { transact } = await mainOf(app)
  const items = sql.table('items')
  await transact(async ({ db }) => {
    const { rows } = await sql<{ id: number; code: string }>`select id, code from ${items} order by id limit 2`.execute(
      db
    )
    const [a, b] = rows
    if (a === undefined || b === undefined) throw new Error('there are two')
    const set = (id: number, code: string) => sql`update ${items} set code = ${code} where id = ${id}`.execute(db)
    await set(a.id, '~')
    await set(b.id, a.code)
    await set(a.id, b.code)
  })
}

t.test('a drill leaves alone what another works on, and removes what nobody does', async (t) => {
  await eachDialect(t, async (t, dialect) => {
    const databaseUrl = await freshUrl(t, dialect)
    const app = await buildApp(t, { dialect, config: { DATABASE_URL: databaseUrl } })
    const sets = app.getDecorator<Tenants>('tenants').migrations()
    const real = placeOf({ databaseUrl, tenancy: 'single' }, 'main')
    const left = async () =>
      real.dialect === 'sqlite'
        ? readdirSync(dirname(real.path)).filter((name) => /drill/.test(name))
        : asked(databaseUrl, async ({ db }) =>
            (
              await sql<{ name: string }>`select nspname as name from pg_namespace where nspname ~ '^drill_'`.execute(
                db
              )
            ).rows.map(({ name }) => name)
          )
    if (real.dialect === 'sqlite') writeFileSync(`${real.path}.drill-0123abcd`, '')
    else await asked(databaseUrl, ({ db }) => sql`create schema drill_0123abcd_main`.execute(db))
    const header = {
      format: 'inventory-enterprise-archive' as const,
      version: 1 as const,
      program: 'test',
      id: '0123456789ab',
      kind: 'full' as const,
      previous: null,
      tenant: 'main',
      dialect,
      stateAt: new Date().toISOString(),
      migrations: {},
      tables: []
    }
    const drill = (load: () => Promise<void>) =>
      restoreInto({
        database: { databaseUrl, tenancy: 'single' },
        tenant: 'main',
        purpose: 'drill',
        sets,
        migrations: {},
        load: async () => {
          await load()
          return { rows: 0, header }
        },
        prove: async () => []
      })
    const outer = await drill(async () => {
      const mine = await left()
      t.notOk(
        mine.some((name) => name.includes('0123abcd')),
        'what was left is gone'
      )
      const inner = await drill(async () => {})
      await inner.scratch.remove()
      t.same(await left(), mine, 'and what is used is there')
    })
    await outer.scratch.remove()
    t.same(await left(), [], 'nothing is left')
  })
})
