import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import Sqlite from 'better-sqlite3'
import { sql } from 'kysely'
import pg from 'pg'
import t, { type Test } from 'tap'
import { openDatabaseServer } from '../../plugins/database.js'
import { UNWATCHED } from '../../plugins/dialects/dialect.js'
import { DIALECTS } from '../helper.js'
import { type Service, serviceEnvironment, signToken, startService, temporaryFolder } from '../service-process.js'
import { freshDatabase, type Server, startPostgres } from '../services.js'
import { checkAnswers, checkLedger, createItem, findings, hangUp, LONG, Load, post, send } from './harness.js'

/** A disk that is full, a clock that jumps, and a writer that is broken on purpose, to see that it would be noticed. */

t.teardown(hangUp)
const MEGABYTE = 2 ** 20

/** A small disk of its own; undefined where none may be mounted. */
function smallDisk(t: Test, megabytes: number): string | undefined {
  const folder = mkdtempSync('/tmp/inventory-disk-')
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m,mode=1777`, 'tmpfs', folder])
  t.teardown(() => {
    if (mounted.status === 0) spawnSync('umount', ['-l', folder])
    rmdirSync(folder)
  })
  return mounted.status === 0 ? folder : undefined
}

/** Writes until nothing more fits. */
function fill(disk: string): void {
  for (let n = 0, size = MEGABYTE; size >= 4096; n++) {
    try {
      writeFileSync(join(disk, `ballast-${n}`), Buffer.alloc(size, 1))
    } catch {
      size /= 4
    }
  }
}
const makeRoom = (disk: string) => {
  for (const name of readdirSync(disk)) if (name.startsWith('ballast-')) rmSync(join(disk, name))
}

for (const dialect of DIALECTS) {
  // The server alone takes seconds to be made.
  if (dialect === 'postgres' && !LONG) continue
  await t.test(`${dialect}: the disk is full`, async (t) => {
    const disk = smallDisk(t, dialect === 'sqlite' ? 16 : 160)
    if (disk === undefined) {
      if (LONG) t.fail('a disk of its own cannot be mounted, which takes the rights of root')
      else t.pass('a full disk', { skip: 'a disk of its own cannot be mounted, which takes the rights of root' })
      return
    }
    const server = dialect === 'postgres' ? await smallPostgres(disk) : undefined
    if (server !== undefined) t.teardown(() => server.stop())
    const url = server?.url ?? `sqlite:${join(disk, 'inventory.sqlite')}`
    const service = await startService(t, await serviceEnvironment(t, { DATABASE_URL: url }))
    await createItem(t, service)
    const load = new Load(t)
    load.start(service, { clients: 4 })
    t.ok(await load.more(30), 'writes are acknowledged')
    fill(disk)
    const refused = await until(() => load.outcomes.find(({ status }) => status === 503))
    t.match(refused, { status: 503, text: /"code":"DATABASE_UNAVAILABLE"/ }, 'a write that finds no room is refused')
    await sleep(300)
    await load.stop()
    t.equal((await send(service, 'GET', '/api/inventory/A')).status, 200, 'what is there can be read')
    const [key = ''] = [...load.acknowledged.keys()].slice(-1)
    const again = await post(service, key)
    t.ok([201, 503].includes(again.status), 'and what was acknowledged is known, or cannot be asked for now')
    if (again.status === 201) t.equal(again.text, load.acknowledged.get(key))
    makeRoom(disk)
    load.start(service, { clients: 4 })
    t.ok(await load.more(30), 'it goes on when there is room')
    await load.stop()
    checkAnswers(t, load, [201, 503])
    await checkLedger(t, service, load)
    t.equal(await service.end('SIGTERM'), 0)
  })
}

/** Little of its own, so that the disk can be small. */
function smallPostgres(disk: string): Promise<Server> {
  const settings = { shared_buffers: '16MB', min_wal_size: '32MB', max_wal_size: '48MB', max_connections: '30' }
  return startPostgres(settings, {}, disk)
}

async function until<T>(look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  const deadline = Date.now() + 40_000
  for (;;) {
    const found = await look()
    if (found !== undefined) return found
    if (Date.now() > deadline) throw new Error(`never: ${look}`)
    await sleep(10)
  }
}

t.test('SQLite: what rolls back everything refuses everyone in the group', async (t) => {
  const databaseUrl = `sqlite:${join(temporaryFolder(t), 'group.sqlite')}`
  const server = openDatabaseServer({ databaseUrl, tenancy: 'single', poolSize: 1 }, UNWATCHED)
  t.teardown(() => server.close())
  const { transact, db } = await server.open('main')
  await transact((tx) => sql`create table rows (n integer primary key)`.execute(tx))
  // As SQLITE_FULL and an I/O error do, in the middle of a statement.
  await transact((tx) =>
    sql`create trigger full before insert on rows when new.n = 3 begin select raise(rollback, 'full'); end`.execute(tx)
  )
  const insert = (n: number) => transact((tx) => sql`insert into rows values (${n})`.execute(tx))
  const settled = await Promise.allSettled([1, 2, 3, 4, 5].map(insert))
  const { rows } = await sql<{ n: number }>`select n from rows`.execute(db)
  const acknowledged = settled.flatMap(({ status }, at) => (status === 'fulfilled' ? [at + 1] : []))
  t.same(
    rows.map(({ n }) => n),
    acknowledged,
    'what is stored is what was acknowledged'
  )
  t.same(acknowledged, [], 'nobody')
  for (const each of settled) t.match(each, { reason: /full/ }, 'each is told why')
  await insert(6)
  t.same((await sql`select n from rows`.execute(db)).rows, [{ n: 6 }], 'and it goes on')
})

const FAKETIME = ['x86_64-linux-gnu', 'aarch64-linux-gnu']
  .map((machine) => `/usr/lib/${machine}/faketime/libfaketime.so.1`)
  .find(existsSync)
const HOUR_MS = 3_600_000

for (const dialect of DIALECTS) {
  if (dialect === 'postgres' && !LONG) continue
  await t.test(`${dialect}: the clock jumps, forward and back`, async (t) => {
    if (FAKETIME === undefined) {
      if (LONG) t.fail('libfaketime is not installed')
      else t.pass('clock jumps', { skip: 'libfaketime is not installed (Debian: apt-get install libfaketime)' })
      return
    }
    const database = dialect === 'postgres' ? await freshDatabase() : undefined
    if (database !== undefined) t.teardown(() => database.drop())
    const clock = join(temporaryFolder(t), 'clock')
    const jump = async (hours: number) => {
      writeFileSync(clock, `${hours < 0 ? '' : '+'}${hours}h\n`)
      // It looks at the file about once a second, later where the machine is busy; its answers say when it has.
      await until(async () => {
        const { headers } = await fetch(`${service.url}/health/live`)
        const off = Date.parse(headers.get('date') ?? '') - (Date.now() + hours * HOUR_MS)
        return Math.abs(off) < HOUR_MS / 2 || undefined
      })
    }
    writeFileSync(clock, '+0\n')
    const env = await serviceEnvironment(t, {
      ...(database === undefined ? {} : { DATABASE_URL: database.url }),
      LD_PRELOAD: FAKETIME,
      FAKETIME_TIMESTAMP_FILE: clock,
      FAKETIME_CACHE_DURATION: '1',
      // Timers go on: it is the date that is wrong.
      DONT_FAKE_MONOTONIC: '1'
    })
    const service = await startService(t, env)
    await createItem(t, service)
    const load = new Load(t)
    // One after the other, so that the order is known.
    load.start(service, { clients: 1 })
    t.ok(await load.more(20))
    const brief = { ...service, token: await signToken('admin', undefined, HOUR_MS / 1000) }
    const inTwoHours = new Date(Date.now() + 2 * HOUR_MS).toISOString()
    const reserved = await send(service, 'POST', '/api/reservations', {
      itemCode: 'A',
      quantity: 1,
      expiresAt: inTwoHours
    })
    t.equal(reserved.status, 201, reserved.text)
    const [first] = await inOrder(service)
    t.ok(Math.abs(Date.parse(first?.recordedAt ?? '') - Date.now()) < HOUR_MS / 2, 'the clock is right')

    await jump(3)
    t.ok(await load.more(20), 'writes go on three hours later')
    const [late] = await inOrder(service)
    t.ok(Date.parse(late?.recordedAt ?? '') > Date.now() + 2.5 * HOUR_MS, 'it was seen')
    t.equal((await send(brief, 'GET', '/api/inventory/A')).status, 401, 'a token of an hour is over')
    // They are looked for twice a minute.
    if (LONG) await until(async () => (await itemOf(service)).reserved === 0 || undefined)

    await jump(-3)
    t.ok(await load.more(20), 'and three hours before')
    t.equal((await send(brief, 'GET', '/api/inventory/A')).status, 200, 'tokens that are younger than the clock count')
    await jump(0)
    t.ok(await load.more(20), 'and when it is right again')
    await load.stop()
    checkAnswers(t, load, [201])
    await checkLedger(t, service, load)
    const ids = await idsOf(database?.url, env.DATA_DIR)
    t.ok(ids.length >= 80, `${ids.length} movements`)
    t.same(ids, ids.toSorted(), 'ids rise in the order of the ledger, whatever the clock said')
    t.equal(await service.end('SIGTERM'), 0)
  })
}

interface Recorded {
  id: string
  recordedAt: string
}
/** The newest movements. */
async function inOrder(service: Service): Promise<Recorded[]> {
  const { data }: { data: Recorded[] } = JSON.parse((await send(service, 'GET', '/api/movements?limit=1')).text)
  return data
}

/** Of all movements, in the order of the ledger. */
async function idsOf(url: string | undefined, folder: string): Promise<string[]> {
  const query = 'select id from stock_transactions order by seq'
  if (url === undefined) {
    const file = new Sqlite(join(folder, 'inventory.sqlite'), { readonly: true })
    const rows = file.prepare<[], { id: string }>(query).all()
    file.close()
    return rows.map(({ id }) => id)
  }
  const client = new pg.Client({ connectionString: url, options: '-c search_path=tenant_main' })
  await client.connect()
  const { rows } = await client.query<{ id: string }>(query)
  await client.end()
  return rows.map(({ id }) => id)
}

async function itemOf(service: Service): Promise<{ reserved: number }> {
  return JSON.parse((await send(service, 'GET', '/api/inventory/A')).text)
}

t.test('a writer that acknowledges before it commits is caught', async (t) => {
  const broken = fileURLToPath(new URL('./acknowledges-early.js', import.meta.url))
  const env = await serviceEnvironment(t)
  const service = await startService(t, env, broken)
  await createItem(t, service)
  const load = new Load(t)
  load.start(service)
  t.ok(await load.more(150), 'it acknowledges')
  await service.end('SIGKILL')
  await load.stop()
  const after = await startService(t, env)
  const found = await findings(after, load)
  t.equal(await after.end('SIGTERM'), 0)
  t.ok(
    found.some((each) => each.includes('was acknowledged')),
    `${found.length} findings, such as ${found[0]}`
  )
})
