import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Kysely } from 'kysely'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { coreMigrations } from '../migrations/core.js'
import { inventoryMigrations } from '../migrations/inventory.js'
import { isRevoked } from '../modules/identity/revocations.js'
import { merged } from '../plugins/cluster/metrics.js'
import { loadConfig } from '../plugins/config/index.js'
import { type Auth, type Events, type OutboxEvent, prepared } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { openDatabaseServer } from '../plugins/database.js'
import { type DatabaseServer, UNWATCHED } from '../plugins/dialects/dialect.js'
import { migrate } from '../plugins/migrate/index.js'
import { buildApp, type Dialect, eachDialect } from './helper.js'
import { afresh, startsHeld } from './nodes-harness.js'
import { ownTime } from './own-time.js'
import { patience } from './patience.js'
import { runToEnd, type Service, serviceEnvironment, startService, temporaryFolder } from './service-process.js'
import { freshDatabase, redisUrl } from './services.js'

/** Several processes on one database, as `npm run verify:cluster` runs them under load; here is what can be shown in seconds. */

const SETS = [
  { module: 'core', migrations: coreMigrations },
  { module: 'inventory', migrations: inventoryMigrations }
]
const firstOf = (migrations: object) => Object.keys(migrations).sort().slice(0, 1)
const OLD = { core: firstOf(coreMigrations), inventory: firstOf(inventoryMigrations) }

async function databaseFor(t: Test, dialect: Dialect): Promise<string> {
  if (dialect === 'sqlite') return `sqlite:${temporaryFolder(t)}/inventory.sqlite`
  const database = await freshDatabase()
  t.teardown(() => database.drop())
  return database.url
}

async function connect(t: Test, databaseUrl: string) {
  const server = openDatabaseServer(
    { databaseUrl, tenancy: 'multi', poolSize: 3 },
    { query: () => {}, transaction: () => {}, waited: () => {}, grouped: () => {}, reported: () => {} }
  )
  t.teardown(() => server.close())
  return server
}

t.test('nodes that start at once migrate once, an empty database and an old one', (t) =>
  eachDialect(t, async (t, dialect) => {
    const databaseUrl = await databaseFor(t, dialect)
    const nodes = await Promise.all([1, 2, 3].map(() => connect(t, databaseUrl)))
    const start = async (tenant: string) => {
      const applied = await Promise.all(
        nodes.map(async (node) => {
          await node.create(tenant)
          const { migrator } = await node.open(tenant)
          return migrate(migrator.db, SETS, migrator)
        })
      )
      return applied.flat()
    }
    const all = SETS.flatMap(({ module, migrations }) => Object.keys(migrations).map((name) => `${module}/${name}`))
    t.same((await start('empty')).sort(), all.sort(), 'each was applied by one of them')

    const [first] = nodes
    await first?.create('old')
    const old = await first?.open('old')
    if (old === undefined) return
    await migrate(old.migrator.db, SETS, { ...old.migrator, only: OLD })
    await old.transact(async (db) => {
      await sql`insert into ${sql.table('categories')} (name) values ('kept')`.execute(db)
    })
    const missing = all.filter((name) => !Object.entries(OLD).some(([of, names]) => name === `${of}/${names[0]}`))
    t.ok(missing.length > 0 || all.length === 2, `${missing.length} are missing`)
    t.same((await start('old')).sort(), missing.sort())
    t.same(await namesOf(old.db), ['kept'])
    t.same(await start('old'), [], 'what lacks nothing is left alone')
  })
)

const namesOf = async (db: Kysely<unknown>) =>
  (await sql<{ name: string }>`select name from ${sql.table('categories')}`.execute(db)).rows.map(({ name }) => name)

const item = (itemCode: string) => ({ itemCode, name: 'Flour', unit: 'kg' })
async function send(service: Service, method: string, path: string, body?: object): Promise<Response> {
  return fetch(service.url + path, {
    method,
    headers: {
      authorization: `Bearer ${service.token}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json', 'idempotency-key': randomUUID() })
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) })
  })
}
const nameAt = async (service: Service, code: string): Promise<string> => {
  const answer = await send(service, 'GET', `/api/inventory/${code}`)
  const { name }: Record<string, string> = JSON.parse(await answer.text())
  return name ?? ''
}
interface Report {
  scope: string
  processes: number
  requests: { requests: number }[]
  states: { status: string }[]
}
interface NodeHealth {
  code: number | undefined
  status: string
  workers?: { worker: number; status: string; state: string; since: string }[]
}
const until = patience({ seconds: 20, pauseMs: 20 })

t.test('a node of two processes and one of one, on an empty database', async (t) => {
  const shared = { DATABASE_URL: await databaseFor(t, 'postgres'), REDIS_URL: redisUrl() }
  const env = await serviceEnvironment(t, { ...shared, CLUSTER_WORKERS: '2', LOG_LEVEL: 'info' })
  const pair = await startService(t, env)
  const workers = () => [...pair.output().matchAll(/"worker":(\d),"pid":(\d+),"msg":"a worker serves"/g)]
  await until('both processes serve', async () => {
    // What asks for every process asks for the second while that does not listen yet.
    await fetch(`${pair.url}/health`)
    return workers().length === 2
  })
  // Whoever serves already may be held up by a busy machine, and is then said not to answer.
  const [beforeTheSecond = ''] = pair.output().split(/"worker":2,"pid":\d+,"msg":"a worker serves"/)
  t.notMatch(beforeTheSecond, /"worker":2,[^\n]*does not answer/, 'one that starts owes no answer')
  const other = await startService(t, await serviceEnvironment(t, { ...shared, LOG_LEVEL: 'warn' }))
  t.equal(
    (pair.output().match(/This link makes the first administrator/g) ?? []).length,
    1,
    'one of them prints the link'
  )

  await t.test('what one writes, the other shows within 100 ms, and the writer at once', async (t) => {
    t.equal((await send(pair, 'POST', '/api/inventory', item('FLOUR'))).status, 201)
    const delays: number[] = []
    for (let n = 0; n < 9; n++) {
      await nameAt(pair, 'FLOUR')
      const name = `Flour ${n}`
      t.equal((await send(other, 'PATCH', '/api/inventory/FLOUR', { name })).status, 200)
      const writtenAt = performance.now()
      t.equal(await nameAt(other, 'FLOUR'), name)
      await until(name, async () => (await nameAt(pair, 'FLOUR')) === name)
      delays.push(performance.now() - writtenAt)
    }
    // Not each: a busy machine may hold up a process. Without the message it would take a second.
    t.ok((delays.sort((a, b) => a - b)[2] ?? Number.NaN) < 100, `${delays.map(Math.round)} ms`)
  })

  await t.test('a scrape holds every process, and adds nothing up', async (t) => {
    const scrape = async () => (await fetch(`${pair.url}/metrics`)).text()
    const metrics = await scrape()
    t.match(metrics, /^app_build_info\{worker="1",version="[^"]+"\} 1$/m)
    t.match(metrics, /^process_resident_memory_bytes\{worker="2"\} \d+$/m)
    t.equal((metrics.match(/^# TYPE app_build_info gauge$/gm) ?? []).length, 1)
    t.match(metrics, /^cluster_workers\{state="scraped"\} 2$/m)

    const [, , pid] = workers()[0] ?? []
    process.kill(Number(pid), 'SIGKILL')
    await until('another takes its place', async () => workers().length === 3)
    await until('it is scraped', async () =>
      /^cluster_workers\{state="scraped"\} 2$/m.test(await scrape().catch(() => ''))
    )
    t.match(await scrape(), /^cluster_worker_exits_total 1$/m)
    t.equal(workers()[2]?.[1], workers()[0]?.[1], 'under the same number')
  })

  await t.test('whichever answers, the objectives are those of both processes', async (t) => {
    // Each on a connection of its own, so both answer some.
    const headers = { authorization: `Bearer ${pair.token}`, connection: 'close' }
    const get = async (path: string) => (await fetch(pair.url + path, { headers })).text()
    const report = async (): Promise<Report> => JSON.parse(await get('/api/slo'))
    await get('/api/ledger/verify')
    await Promise.all(Array.from({ length: 8 }, () => get('/api/inventory')))
    const reports = await Promise.all(Array.from({ length: 6 }, report))
    for (const found of reports) t.match(found, { scope: 'node', processes: 2, states: [{ status: 'met' }] })
    // A request is counted a moment after it is answered.
    const counted = (route: string, count: number) =>
      until(`${count} of ${route}`, async () => {
        const series = new RegExp(`^http_requests_total\\{[^}]*"GET"[^}]*"${route}"[^}]*\\} (\\d+)$`, 'gm')
        return [...(await get('/metrics')).matchAll(series)].reduce((sum, [, each]) => sum + Number(each), 0) === count
      })
    await counted('/api/ledger/verify', 1)
    await counted('/api/inventory', 8)
    await counted('/api/slo', 6)
    const [before] = (await report()).requests
    await counted('/api/slo', 7)
    const [after] = (await report()).requests
    t.equal(after?.requests, (before?.requests ?? Number.NaN) + 1, 'which was the report before')
    const told = [...(await get('/metrics')).matchAll(/^http_requests_total\{worker="(\d)"[^}]*"\/api\/slo"/gm)]
    t.equal(new Set(told.map(([, worker]) => worker)).size, 2, 'though each has counted its own')
  })

  await t.test('a process that hangs or is gone makes the node degraded, and is named', async (t) => {
    const health = async (path = '/health'): Promise<NodeHealth> => {
      const { code, body } = await afresh(pair.url + path)
      return { code, ...JSON.parse(body) }
    }
    const whole = async () => (await health()).status === 'ok'
    await until('both are well', whole)
    t.match((await health('/health/ready')).workers, [
      { worker: 1, status: 'ok', state: 'ready' },
      { worker: 2, status: 'ok', state: 'ready' }
    ])

    const pid = Number(workers().findLast(([, worker]) => worker === '2')?.[2])
    const stoppedAt = Date.now()
    process.kill(pid, 'SIGSTOP')
    // A connection that waits for the one that hangs: it is given no other.
    const held = afresh(`${pair.url}/health/live`)
    const spare = afresh(`${pair.url}/health/live`)
    await Promise.race([held, spare])
    const hung = await until('it is missed', async () => {
      const found = await health()
      return found.workers?.[1]?.state === 'silent' && found
    })
    t.match(hung, { code: 200, status: 'degraded', state: 'ready', checks: { database: { status: 'ok' } } })
    t.match(hung.workers, [
      { worker: 1, status: 'ok', state: 'ready' },
      { worker: 2, status: 'down', state: 'silent' }
    ])
    const since = Date.parse(hung.workers?.[1]?.since ?? '')
    t.ok(since >= stoppedAt && since <= Date.now(), `since ${since - stoppedAt} ms after it`)
    const [, , ready] = workers().findLast(([, worker]) => worker === '1') ?? []
    const clock = () => ownTime(process.pid, pair.child.pid, Number(ready))
    const askedAt = clock()
    t.match(await health('/health/ready'), { code: 200, status: 'degraded' }, 'who answers is ready')
    const { body: metrics } = await afresh(`${pair.url}/metrics`)
    t.ok(clock() - askedAt < 1_000, 'and nobody waits for the other again')
    t.match(
      metrics,
      /^cluster_workers\{state="wanted"\} 2\ncluster_workers\{state="running"\} 2\n.*\{state="scraped"\} 1$/m
    )
    // What it writes may come later than what it answers.
    const said = (msg: string) => until(msg, async () => pair.output().includes(`"pid":${pid},"msg":"${msg}"`))
    await said('a worker does not answer')
    process.kill(pid, 'SIGCONT')
    await until('it answers again', whole)
    await Promise.all([held, spare])
    await said('a worker answers again')

    // The others are asked anew; and none asks before it is noticed, since a connection that is given to a dying process is lost.
    await sleep(1_001)
    const letStart = await startsHeld(shared.DATABASE_URL)
    const killedAt = Date.now()
    process.kill(pid, 'SIGKILL')
    const noticed = new RegExp(`"pid":${pid},[^\\n]*"a worker ended and is replaced"`)
    await until('that is noticed', async () => noticed.test(pair.output()))
    const gone = await health()
    t.match(gone, { code: 200, status: 'degraded', workers: [{ state: 'ready' }, { status: 'down', state: 'ended' }] })
    t.ok(Date.parse(gone.workers?.[1]?.since ?? '') >= killedAt)
    await letStart()
    await until('another serves', whole)
  })

  t.equal(await pair.end('SIGTERM'), 0, 'every process ends when the first is told to')
  t.equal(await other.end('SIGTERM'), 0)

  const { code, output } = await runToEnd({
    ...env,
    LOG_LEVEL: 'silent',
    DATABASE_URL: 'postgres://nobody@127.0.0.1:1/none'
  })
  t.equal(code, 2, 'what stops the first is not tried again')
  t.match(output, /^DATABASE_URL is a value \(not shown\).*\(ECONNREFUSED\).*\n$/)
})

t.test('without Redis the level of the log is that of every process of a cluster, of a later one too', async (t) => {
  const shared = { DATABASE_URL: await databaseFor(t, 'postgres'), CLUSTER_WORKERS: '2' }
  const pair = await startService(t, await serviceEnvironment(t, { ...shared, LOG_LEVEL: 'info', DRAIN_SECONDS: '60' }))
  const workers = () => [...pair.output().matchAll(/"worker":(\d),"pid":(\d+),"msg":"a worker serves"/g)]
  await until('both processes serve', async () => workers().length === 2)
  const headers = { authorization: `Bearer ${pair.token}`, 'content-type': 'application/json', connection: 'close' }
  const change = { method: 'PUT', headers, body: '{"level":"debug","minutes":5}' }
  t.equal((await fetch(`${pair.url}/api/log-level`, change)).status, 200)
  /** As those say who answer in turn, each on a connection of its own. */
  const levels = async () => {
    const answers = Array.from({ length: 6 }, async () => {
      const answer = await fetch(`${pair.url}/api/log-level`, { headers })
      const { level }: { level: string } = JSON.parse(await answer.text())
      return level
    })
    return [...new Set(await Promise.all(answers))].join()
  }
  await until('both have it', async () => (await levels()) === 'debug')
  process.kill(Number(workers()[0]?.[2]), 'SIGKILL')
  await until('another takes its place', async () => workers().length === 3)
  const told = () => [...pair.output().matchAll(/"pid":(\d+),[^\n]*another level for a while/g)].map(([, pid]) => pid)
  await until('which has it too', async () => told().includes(workers()[2]?.[2]))
  t.equal(await levels(), 'debug')

  pair.child.kill('SIGTERM')
  const ready = async (): Promise<NodeHealth> => {
    const { code, body } = await afresh(`${pair.url}/health/ready`)
    return { code, ...JSON.parse(body) }
  }
  await until('both drain', async () => (await ready()).workers?.every(({ state }) => state === 'draining') === true)
  for (let n = 0; n < 4; n++) t.match(await ready(), { code: 503, status: 'down' }, 'whichever answers')
  t.match((await afresh(`${pair.url}/metrics`)).body, /^cluster_workers\{state="wanted"\} 0$/m, 'nobody is missed')
  t.equal(await pair.end('SIGTERM'), 0)
})

t.test('a cluster is refused where one process serves, and its metrics are one text', async (t) => {
  t.throws(() => loadConfig({ DATA_DIR: temporaryFolder(t), CLUSTER_WORKERS: '2' }), {
    name: 'Error',
    message: 'CLUSTER_WORKERS is 2; with a SQLite database it may be 1, since one process serves a file'
  })
  const one =
    '# HELP a About a.\n# TYPE a gauge\na 1\n\n# HELP b_total B.\n# TYPE b_total counter\nb_total{code="200"} 3\n'
  const two = '# HELP b_total B.\n# TYPE b_total counter\nb_total{code="200"} 4 # {trace_id="x"} 1\n# EOF\n'
  const common = '# HELP c About c.\n# TYPE c gauge\nc{} 7\n'
  const parts = new Map([
    [1, one],
    [2, two]
  ])
  t.equal(
    merged(parts, common, true),
    `${common}# HELP a About a.\n# TYPE a gauge\na{worker="1"} 1\n# HELP b_total B.\n# TYPE b_total counter\nb_total{worker="1",code="200"} 3\nb_total{worker="2",code="200"} 4 # {trace_id="x"} 1\n# EOF\n`
  )
})

t.test('PostgreSQL: a transaction sends its statements on, and all of them count or none', async (t) => {
  const server = await connect(t, await databaseFor(t, 'postgres'))
  await server.create('one')
  const { db, transact } = await server.open('one')
  await sql`create table ${sql.table('things')} (n int primary key)`.execute(db)
  const insert = (n: unknown) => sql`insert into ${sql.table('things')} values (${n})`.compile(db)
  const stored = async () =>
    (await sql<{ n: number }>`select n from ${sql.table('things')} order by n`.execute(db)).rows

  const failing = transact(async (_tx, write) => {
    for (const n of [1, 'no number', 2]) write?.(insert(n))
  })
  await t.rejects(failing, { code: '22P02' }, 'what failed, and not that others were refused for it')
  t.same(await stored(), [])

  const overlooked = transact(async (tx, write) => {
    write?.(insert('no number'))
    await sql`select 1`.execute(tx)
  })
  await t.rejects(overlooked, { code: '22P02' }, 'also where something that is waited for is refused for it')
  t.same(await stored(), [])

  const hushed = transact(async (tx) => {
    await tx.executeQuery(insert(1))
    await tx.executeQuery(insert('no number')).catch(() => {})
  })
  await t.rejects(hushed, /rolled back at its commit/, 'a commit that was none is not acknowledged')
  t.same(await stored(), [])

  const thrown = transact(async (_tx, write) => {
    write?.(insert(1))
    throw new Error('changed its mind')
  })
  await t.rejects(thrown, /changed its mind/)
  t.same(await stored(), [])

  let left: Kysely<unknown> | undefined
  const seen = await transact(async (tx, write) => {
    left = tx
    write?.(insert(1))
    return (await sql`select n from ${sql.table('things')}`.execute(tx)).rows
  })
  t.same(seen, [{ n: 1 }], 'what is asked for later sees what was written before')
  await t.rejects(Promise.resolve(left?.executeQuery(insert(2))), /has left it/)
  t.same(await stored(), [{ n: 1 }])
})

t.test('PostgreSQL: a connection keeps what is prepared, and a pooled one does not', async (t) => {
  const database = await freshDatabase()
  t.teardown(() => database.drop())
  const server = openDatabaseServer({ databaseUrl: database.url, tenancy: 'multi', poolSize: 1 }, UNWATCHED)
  t.teardown(() => server.close())
  await server.create('one')
  const { db } = await server.open('one')
  const same = prepared<{ n: number }, { n: number }>((_db, slot) => sql<{ n: number }>`select ${slot('n')}::int as n`)
  const each = prepared<{ n: number }, { n: number }>(
    (_db, slot) => sql<{ n: number }>`select ${slot('n')}::bigint as n`,
    {
      planned: 'for its values'
    }
  )
  for (const n of [1, 2, 3])
    for (const query of [same, each]) t.same((await db.executeQuery(query(db, { n }))).rows, [{ n }])
  const { rows } = await sql`select statement from pg_prepared_statements`.execute(db)
  t.same(
    rows,
    [{ statement: 'select $1::int as n' }],
    'one plan for all of its values; none for what is planned for each, or was asked for once'
  )
})

t.test('PostgreSQL: who holds a token is let in while the work of others has every connection', async (t) => {
  const app = await buildApp(t, { dialect: 'postgres', config: { POSTGRES_POOL_SIZE: '3' } })
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  const auth = app.getDecorator<Auth>('auth')
  const token = auth.sign({ subject: 'test', role: 'admin', tenant: 'main' }, 600)
  const claims = auth.verify(token)
  let letGo = () => {}
  const work = new Promise<void>((resolve) => {
    letGo = resolve
  })
  const held = Array.from({ length: 6 }, () => tenant.transact(() => work))
  const waiting = () => app.getDecorator<DatabaseServer>('database').pool().waiting
  await until('they wait for a connection', () => waiting() > 0)
  const askedAt = ownTime(process.pid)
  t.equal(await isRevoked(claims, tenant), false)
  t.ok(ownTime(process.pid) - askedAt < 1_500, 'in time')
  t.ok(waiting() > 0, `${waiting()} wait for a connection`)
  letGo()
  await Promise.all(held)
})

t.test('events that wait are handled together, where a handler can', (t) =>
  eachDialect(t, async (t, dialect) => {
    const app = await buildApp(t, { dialect })
    const tenant = await app.getDecorator<Tenants>('tenants').get('main')
    const events = app.getDecorator<Events>('events')
    const had: Record<string, unknown[]> = { together: [], alone: [], failing: [] }
    const numberOf = ({ payload }: OutboxEvent) => payload
    events.subscribe({
      topic: 'test.told',
      name: 'all but the second',
      handle: async (event) => void had.alone?.push(numberOf(event)),
      handleAll: async (all) => {
        had.together?.push(all.map(numberOf))
        return all.slice(1, 2)
      }
    })
    events.subscribe({
      topic: 'test.told',
      name: 'none together',
      handle: async (event) => void had.failing?.push(numberOf(event)),
      handleAll: async () => {
        throw new Error('not these')
      }
    })
    await tenant.transact(async (tx) => {
      for (const n of [1, 2, 3]) await tx.publish('test.told', n)
      await tx.publish('test.other', 0)
      await tx.publish('test.told', 4)
    })
    await until('all are handled', () => had.failing?.length === 4 && had.alone?.length === 2)
    t.same(had, { together: [[1, 2, 3]], alone: [2, 4], failing: [1, 2, 3, 4] })
  })
)
