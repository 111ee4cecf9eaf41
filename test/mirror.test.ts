import { randomUUID } from 'node:crypto'
import { mkdirSync, rmSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import Sqlite from 'better-sqlite3'
import type { FastifyInstance } from 'fastify'
import pg from 'pg'
import t, { type Test } from 'tap'
import { random } from '../bench/support.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Tenants } from '../plugins/core.js'
import type { MirrorOrder, MirrorOutcome, MirrorReport } from '../plugins/mirror/index.js'
import { MirrorFiles, moveTenantOf } from '../plugins/mirror/index.js'
import { MIRROR_TABLES } from '../plugins/mirror/side.js'
import { sqliteSide } from '../plugins/mirror/sqlite-side.js'
import { runCommand } from './command.js'
import { type Answer, buildApp, client } from './helper.js'
import { keptWaiting } from './own-time.js'
import { type Service, serviceEnvironment, startService, temporaryFolder } from './service-process.js'
import { freshDatabase, startPostgres } from './services.js'

/** A SQLite database and its copy on PostgreSQL: following, comparing, changing places, and dying at any moment. */

/** Enough to write at every moment, and to leave the machine to the rest. */
const PAUSE_MILLISECONDS = 40
const KILLS = Number(process.env.MIRROR_KILLS ?? 3)

const postgres = await startPostgres()
t.teardown(() => postgres.stop())

async function sql(text: string, values: unknown[] = []): Promise<Record<string, unknown>[]> {
  const client = new pg.Client({ connectionString: postgres.url })
  await client.connect()
  try {
    return (await client.query(text, values)).rows
  } finally {
    await client.end()
  }
}

type Environment = Record<string, string>

interface Told {
  code: number | null
  outcome: MirrorOutcome
  /** What the command says beside it. */
  text: string
}

/** What the command does where a service runs, without the time that Node takes to start. */
async function mirror(env: Environment, order: MirrorOrder): Promise<Told> {
  const files = new MirrorFiles(sqliteOf(env))
  const id = randomUUID()
  files.setCommand({ id, order })
  const { outcome } = await reported(env, (report) => report.outcome?.id === id && report.outcome.status !== 'running')
  if (outcome === undefined) throw new Error('it was reported')
  return { code: outcome.status === 'done' ? 0 : 1, outcome, text: outcome.error ?? '' }
}

async function send(service: Service, method: string, path: string, body?: object, headers = {}) {
  const response = await fetch(`${service.url}${path}`, {
    method,
    headers: {
      authorization: `Bearer ${service.token}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...headers
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) })
  }).catch((error: unknown) => ({ status: 0, text: async () => String(error) }))
  return { status: response.status, text: await response.text().catch(String) }
}

/** Clients that post receipts of one each; keys of what was not acknowledged are sent again. */
class Load {
  readonly acknowledged = new Map<string, string>()
  readonly refused: { status: number; text: string }[] = []
  #running: Promise<unknown> = Promise.resolve()
  #stopped = false
  static #keys = 0

  start(service: () => Service, clients = 1): this {
    const client = async () => {
      let key = `key-${Load.#keys++}`
      while (!this.#stopped) {
        const body = { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1, unitCost: 1 }] }
        const answer = await send(service(), 'POST', '/api/movements', body, { 'idempotency-key': key })
        if (answer.status === 201) {
          this.acknowledged.set(key, answer.text)
          key = `key-${Load.#keys++}`
          await sleep(PAUSE_MILLISECONDS)
        } else {
          this.refused.push(answer)
          await sleep(50)
        }
      }
    }
    this.#stopped = false
    this.#running = Promise.all(Array.from({ length: clients }, client))
    return this
  }
  async more(count: number): Promise<void> {
    const goal = this.acknowledged.size + count
    const deadline = Date.now() + 30_000
    while (this.acknowledged.size < goal) {
      if (Date.now() > deadline) throw new Error(`writes do not go on: ${JSON.stringify(this.refused.at(-1))}`)
      await sleep(10)
    }
  }
  async stop(): Promise<void> {
    this.#stopped = true
    await this.#running
  }
}

async function checkLedger(t: Test, service: Service, { acknowledged }: Load): Promise<void> {
  const item = JSON.parse((await send(service, 'GET', '/api/inventory/A')).text)
  t.ok(item.onHand >= acknowledged.size, `${acknowledged.size} acknowledged are among ${item.onHand} stored`)
  t.match(JSON.parse((await send(service, 'GET', '/api/ledger/verify')).text), { ok: true, mismatches: [] })
  for (const [key, text] of [...acknowledged].slice(-20)) {
    const body = { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1, unitCost: 1 }] }
    const again = await send(service, 'POST', '/api/movements', body, { 'idempotency-key': key })
    if (again.text !== text) t.fail(`${key} is answered otherwise: ${again.text}`)
  }
}

const sqliteOf = (env: Environment) => `${env.DATA_DIR}/inventory.sqlite`
async function reported(env: Environment, when: (report: MirrorReport) => boolean): Promise<MirrorReport> {
  const deadline = Date.now() + 30_000
  for (;;) {
    const report = new MirrorFiles(sqliteOf(env)).report()
    if (report !== undefined && when(report)) return report
    if (Date.now() > deadline) throw new Error(`the mirror does not get there: ${JSON.stringify(report)}`)
    await sleep(50)
  }
}
const metric = async (service: Service, name: string) =>
  Number(new RegExp(`^${name} (\\S+)$`, 'm').exec((await send(service, 'GET', '/metrics')).text)?.[1])

async function begin(t: Test) {
  await sql('drop schema if exists tenant_main cascade')
  const env: Environment = { ...(await serviceEnvironment(t, { MIRROR_URL: postgres.url })) }
  const service = await startService(t, env)
  for (const itemCode of ['A', 'B'])
    t.equal(
      (await send(service, 'POST', '/api/inventory', { itemCode, name: `Item ${itemCode}`, unit: 'each' })).status,
      201
    )
  return { env, service }
}

t.test('a copy follows, is compared, takes over and gives back', async (t) => {
  // The service outlives the subtests.
  const owner = t
  let { env, service } = await begin(t)
  const noted = () =>
    new Sqlite(sqliteOf(env)).prepare("select count(*) from sqlite_schema where name like 'mirror%'").pluck().get()
  t.equal(noted(), 0, 'nothing is noted while there is no mirror')
  t.equal(await metric(service, 'mirror_on'), 0)
  t.equal(await metric(service, 'mirror_errors_total'), 0)
  const load = new Load().start(() => service)

  t.match(await mirror(env, 'start'), { code: 0, outcome: { status: 'done' } })
  await load.more(25)
  await send(service, 'PATCH', '/api/inventory/B', { name: 'Another name' })

  await t.test('every row of both is compared, and a planted difference is named', async (t) => {
    const same = await mirror(env, 'verify')
    t.match(same, { code: 0, outcome: { verified: { main: { differing: 0 } } } }, same.text)
    t.ok((same.outcome.verified?.main?.rows ?? 0) > 100)
    t.match(await sql('select name from tenant_main.items where code = $1', ['B']), [{ name: 'Another name' }])
    t.equal(
      await sql("update tenant_main.items set name = 'x'").then(String, ({ code }) => code),
      'IE001',
      'nobody else writes to the copy'
    )
    await sql(`set session_replication_role = replica;
      update tenant_main.items set name = 'planted' where code = 'B';
      delete from tenant_main.units where code = 'tray';
      insert into tenant_main.units select 'extra', name, name_fr, dimension, numerator, denominator from tenant_main.units where code = 'l'`)
    const { code, stderr: text } = await runCommand(env, ['mirror', 'verify', '--json'])
    t.equal(code, 1)
    t.match(text, /^items \[2\]: differs$/m)
    t.match(text, /^units \["tray"\]: missing$/m)
    t.match(text, /^units \["extra"\]: extra$/m)
    t.equal(await metric(service, 'mirror_parity_mismatched_rows'), 3)
    t.match(await mirror(env, 'switch'), { code: 1, text: /3 rows of main differ/ }, 'such a copy does not take over')
    await sql(`set session_replication_role = replica;
      update tenant_main.items set name = 'Another name' where code = 'B';
      delete from tenant_main.units where code = 'extra';
      insert into tenant_main.units values ('tray', 'tray', 'plateau', null, 1, 1)`)
  })

  await t.test('PostgreSQL takes over under load, and gives back', async (t) => {
    for (const primary of ['postgres', 'sqlite']) {
      const before = load.refused.length
      const { pid } = service.child
      const kept = keptWaiting(pid)
      const { code, outcome, text } = await mirror(env, 'switch')
      t.equal(code, 0, text)
      const milliseconds = (outcome.pausedMilliseconds ?? Number.NaN) - (keptWaiting(pid) - kept)
      t.ok(milliseconds < 5_000, `writes waited ${milliseconds.toFixed(0)} ms`)
      t.same(load.refused.slice(before), [], 'and none was refused')
      t.equal(new MirrorFiles(sqliteOf(env)).state().primary, primary)
      await load.more(30)
      t.match(await mirror(env, 'verify'), { code: 0, outcome: { verified: { main: { differing: 0 } } } })
      const fenced = new Sqlite(sqliteOf(env))
      const write = () => fenced.prepare("update items set name = 'x' where code = 'none' or id = 1").run()
      if (primary === 'postgres') {
        t.throws(write, /another database is the primary/)
        await service.end('SIGKILL')
        service = await startService(owner, env)
        await load.more(5)
      }
      fenced.close()
      const found = JSON.parse((await send(service, 'GET', '/api/inventory?q=another')).text)
      t.match(found, { data: [{ itemCode: 'B' }] }, 'what is searched moves too')
    }
    await load.stop()
    await checkLedger(t, service, load)
  })

  t.match(await mirror(env, 'stop'), { code: 0 })
  t.equal(noted(), 1, 'but the mark of how far it had come')
  t.equal(await service.end('SIGTERM'), 0)
})

t.test('whoever is killed at whatever moment, the copy becomes the same', async (t) => {
  const seed = Number(process.env.MIRROR_SEED ?? Date.now() % 1_000_000)
  t.comment(`MIRROR_SEED=${seed}`)
  const next = random(seed)
  let { env, service } = await begin(t)
  const load = new Load().start(() => service)
  t.match(await mirror(env, 'start'), { code: 0 })
  const kill: Record<string, () => Promise<void>> = {
    service: async () => {
      await service.end('SIGKILL')
      // As if it had been in the middle of a switch.
      const side = sqliteSide(sqliteOf(env), [{ notCopied: MIRROR_TABLES }])
      await side.fence(true)
      await side.close()
      service = await startService(t, env)
    },
    postgres: async () => {
      await postgres.kill()
      await load.more(10)
      // The service may not have begun to follow yet since it was killed itself.
      const { tenants, error } = await reported(
        env,
        (report) => report.error !== undefined || report.tenants.some((each) => each.error !== undefined)
      )
      t.ok(error ?? tenants.find((each) => each.error !== undefined)?.error, 'why it waits is said')
      await postgres.restart()
    },
    connection: async () => {
      await sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'inventory-enterprise copy'"
      )
    }
  }
  const kinds = Object.keys(kill)
  for (let n = 0; n < KILLS; n++) {
    await sleep(next() * 400)
    const name = n < kinds.length ? (kinds[n] ?? '') : (kinds[Math.floor(next() * kinds.length)] ?? '')
    t.comment(`kill ${name}`)
    await kill[name]?.()
    await load.more(20)
  }
  // The report's next text cannot be written, as on a disk that is full.
  const { pid } = await reported(env, () => true)
  const inTheWay = `${env.DATA_DIR}/mirror/report.json.${pid}`
  for (let made = false; !made; ) {
    try {
      mkdirSync(inTheWay)
      made = true
    } catch {
      // a report is being written at this moment
      await sleep(20)
    }
  }
  await sleep(1_500)
  await load.more(5)
  rmSync(inTheWay, { recursive: true })
  await load.stop()
  await reported(env, ({ tenants }) =>
    tenants.some(
      ({ state, pendingChanges, lagSeconds }) => state === 'following' && pendingChanges === 0 && lagSeconds === 0
    )
  )
  t.match(await mirror(env, 'verify'), { code: 0, outcome: { verified: { main: { differing: 0 } } } })
  await checkLedger(t, service, load)
  await service.end('SIGTERM')
})

t.test('a tenant moves to another PostgreSQL server while it is in use', async (t) => {
  const home = await freshDatabase()
  t.teardown(() => home.drop())
  const east = postgres
  const config = { DATABASE_URL: home.url, DATABASE_SERVERS: `east=${east.url}`, TENANCY: 'multi' }
  const nodes = []
  for (const _ of [1, 2]) nodes.push(await buildApp(t, { dialect: 'postgres', tenancy: 'multi', config }))
  const [app, other] = nodes
  if (app === undefined || other === undefined) throw new Error('two nodes were built')
  const tenants = app.getDecorator<Tenants>('tenants')
  for (const name of ['moves', 'stays']) await tenants.create(name)
  const of = (node: FastifyInstance, tenant: string) => client(node, 'admin', { tenant })
  for (const tenant of ['moves', 'stays'])
    t.equal((await of(app, tenant).post('/api/inventory', { itemCode: 'A', name: 'A', unit: 'each' })).status, 201)
  let [posted, stopped] = [0, false]
  const refused: Answer[] = []
  let kept = 0
  const post = (tenant: string, node = app) =>
    of(node, tenant).post('/api/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1 }] })
  const loading = (async () => {
    while (!stopped) {
      const answer = await post('moves', posted % 2 === 0 ? app : other)
      if (answer.status === 201) posted++
      else if (refused.push(answer) === 1) kept = keptWaiting(process.pid)
      await sleep(PAUSE_MILLISECONDS)
    }
  })()
  const settings = loadConfig({ ...config, DATA_DIR: temporaryFolder(t) })
  const moved = await moveTenantOf(settings, tenants.migrations(), 'moves', 'east')
  t.match(moved, { verified: { differing: 0 } })
  if (moved === undefined) throw new Error('it was not there')
  const milliseconds = moved.pausedMilliseconds - (keptWaiting(process.pid) - kept)
  t.ok(milliseconds < 5_000, `no writes for ${milliseconds.toFixed(0)} ms`)
  const before = posted
  while (posted < before + 10) await sleep(10)
  stopped = true
  await loading
  t.ok(refused.length > 0, 'meanwhile writers are told to come again')
  t.same([...new Set(refused.map(({ status, body }) => `${status} ${body.code}`))], ['503 DATABASE_SWITCHING'])
  for (const node of nodes) {
    t.match((await of(node, 'moves').get('/api/inventory/A')).body, { onHand: posted })
    t.match((await of(node, 'moves').get('/api/ledger/verify')).body, { ok: true, transactions: posted })
    t.equal((await post('stays', node)).status, 201, 'the other stays where it was')
  }
  const there = new pg.Client({ connectionString: east.url })
  await there.connect()
  t.match((await there.query('select count(*)::int as n from tenant_moves.stock_transactions')).rows, [{ n: posted }])
  t.match((await there.query("select to_regclass('tenant_stays.items')")).rows, [{ to_regclass: null }])
  await there.end()
  t.equal(await moveTenantOf(settings, tenants.migrations(), 'moves', 'east'), undefined, 'it is there already')
  await t.rejects(moveTenantOf(settings, tenants.migrations(), 'moves', 'west'), { message: /there is no server west/ })
})
