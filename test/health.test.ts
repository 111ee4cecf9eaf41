import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { gunzipSync } from 'node:zlib'
import Fastify from 'fastify'
import { sql } from 'kysely'
import pg from 'pg'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import type { Answer } from '../plugins/cluster/index.js'
import type { Events, Health } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { registerHealth } from '../plugins/health.js'
import { kept } from '../plugins/metrics/kept-figures.js'
import { answerWhileStarting } from '../plugins/starting.js'
import { buildApp, client, eachDialect } from './helper.js'
import { ownTime } from './own-time.js'
import { patience } from './patience.js'
import { freePort } from './ports.js'
import { serviceEnvironment, startService, temporaryFolder } from './service-process.js'
import { freshDatabase } from './services.js'

/** What balancers and orchestrators are told; the checks of the database and Redis are in app.test.ts. */

const until = patience({ seconds: 20 })

/** For what is told for a moment, and asked for on a machine where that takes longer. */
function stopClock(t: Test): () => void {
  const now = performance.now()
  return t.intercept(performance, 'now', { value: () => now, configurable: true }).restore
}

const ask = async (url: string) => {
  const answer = await fetch(url)
  const body: object = JSON.parse(await answer.text())
  return { code: answer.status, retryAfter: answer.headers.get('retry-after'), ...body }
}

t.test('while it starts it lives, is not ready, and says so on every path', async (t) => {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const end = await answerWhileStarting(port, '127.0.0.1')
  t.match(await ask(`${url}/health/live`), { code: 200, status: 'ok' })
  for (const path of ['/health', '/health/ready?a=b']) {
    t.match(await ask(`${url}${path}`), { code: 503, retryAfter: '1', status: 'down', state: 'starting', checks: {} })
  }
  t.match(await ask(`${url}/api/inventory`), {
    code: 'SERVICE_STARTING',
    retryAfter: '1',
    status: 503,
    title: 'Unavailable',
    instance: '/api/inventory',
    requestId: /^[0-9a-f-]{36}$/
  })
  const french = await fetch(`${url}/api/inventory`, { headers: { 'accept-language': 'fr', 'x-request-id': 'mine' } })
  t.equal(french.headers.get('x-request-id'), 'mine')
  t.equal(french.headers.get('content-language'), 'fr')
  t.match(await french.json(), { title: 'Indisponible', detail: /^Le service démarre/, requestId: 'mine' })
  await t.rejects(answerWhileStarting(port, '127.0.0.1'), { code: 'EADDRINUSE' }, 'known before anything is migrated')
  await end()
  await t.rejects(fetch(url), 'the port is free for the service')
})

t.test('a module adds its check; what it can do without makes it degraded, what is slow has two seconds', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite' })
  const health = app.getDecorator<Health>('health')
  let asked = 0
  const broken = { name: 'scale', optional: true, probe: () => Promise.reject(new Error('unplugged')) }
  health.add(broken)
  health.add({ name: 'counted', optional: true, probe: async () => void asked++ })
  const go = stopClock(t)
  t.match((await app.inject('/health')).json(), { status: 'degraded', state: 'ready' })
  const text = (await app.inject('/metrics')).body
  go()
  t.equal(asked, 1, 'a scrape takes what was found a moment ago')
  t.match(text, /^app_ready\{check="scale"\} 0$/m)
  t.match(text, /^app_ready\{check="database"\} 1$/m)
  t.match(text, /^app_ready\{check="lifecycle"\} 1$/m)

  health.add({ name: 'frozen', optional: true, probe: () => new Promise(() => {}) })
  await sleep(1_001)
  const goOn = stopClock(t)
  const first = app.inject('/health')
  await until('it looks', () => asked === 2)
  const answers = await Promise.all([first, ...Array.from({ length: 499 }, () => app.inject('/health'))])
  goOn()
  t.ok(answers.every(({ statusCode }) => statusCode === 200))
  t.equal(asked, 2, 'all who asked meanwhile shared one look')
  const { status, state, checks } = answers[499]?.json() ?? {}
  t.match({ status, state }, { status: 'degraded', state: 'ready' })
  t.match(checks, {
    database: { status: 'ok' },
    disk: { status: 'ok' },
    scale: { status: 'degraded' },
    frozen: { status: 'degraded' }
  })

  health.add({ ...broken, name: 'heart', optional: false })
  await sleep(1_001)
  const down = await app.inject('/health/ready')
  t.match(down.statusCode, 503)
  const { frozen, database } = down.json().checks
  t.ok(frozen.latencyMilliseconds >= 1_990 && database.latencyMilliseconds < 1_990, 'each its own latency')
  health.drain()
  t.match((await app.inject('/health')).json(), { status: 'down', state: 'draining' })
})

t.test(
  'many callers ask the other processes once, and who is asked whether it is ready does not wait for them',
  async (t) => {
    const app = Fastify()
    t.teardown(() => app.close())
    const own: (() => Promise<string>)[] = []
    let asked = 0
    let askEach = async (): Promise<Answer[]> => []
    const processes = {
      answer: (_topic: string, say: () => Promise<string>) => void own.push(say),
      askEach: () => {
        asked++
        return askEach()
      }
    }
    const health = registerHealth(app, { version: '1', registry: new Registry(), processes })
    let probed = 0
    health.add({ name: 'counted', optional: true, probe: async () => void probed++ })
    const ask = async (path: string) => {
      const answer = await app.inject(path)
      return { code: answer.statusCode, ...answer.json() }
    }
    const well = async (): Promise<Answer[]> => [
      { worker: 1, state: 'answers', text: (await own[0]?.()) ?? '' },
      { worker: 2, state: 'silent', since: 86_400_000, text: '' }
    ]
    askEach = well
    const go = stopClock(t)
    const answers = await Promise.all(
      Array.from({ length: 1_000 }, (_, n) => ask(n % 2 === 0 ? '/health' : '/health/ready'))
    )
    go()
    t.ok(answers.every(({ code, status }) => code === 200 && status === 'degraded'))
    t.match(answers[1]?.workers, [
      { worker: 1, status: 'ok', state: 'ready' },
      { worker: 2, status: 'down', state: 'silent', since: '1970-01-02T00:00:00.000Z' }
    ])
    t.ok(asked <= 2 && probed <= 2, `1,000 calls: ${asked} questions, ${probed} probes`)

    await sleep(1_001)
    askEach = () => new Promise(() => {})
    const startedAt = ownTime(process.pid)
    t.match(
      await ask('/health/ready'),
      { code: 200, workers: [{ worker: 1 }, { worker: 2 }] },
      'as they were seen last'
    )
    t.ok(ownTime(process.pid) - startedAt < 500)
    t.match(await ask('/health'), { code: 200, status: 'degraded', workers: [] }, 'nobody knows them now')
    health.drain()
    t.match(JSON.parse((await own[0]?.()) ?? ''), { status: 'down', state: 'draining' }, 'which the others are told')
  }
)

/** Makes it answer as one that was the primary until another took over. */
async function onlyRead(url: string): Promise<void> {
  const { pathname } = new URL(url)
  const there = new pg.Client({ connectionString: url })
  await there.connect()
  await there.query(`alter database ${pathname.slice(1)} set default_transaction_read_only = on`)
  await there.query(
    'select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()'
  )
  await there.end()
}

t.test('a database that takes no writes: what is read is answered, who writes is told to come again', (t) =>
  eachDialect(t, async (t, dialect) => {
    const database = dialect === 'postgres' ? await freshDatabase() : undefined
    if (database !== undefined) t.teardown(() => database.drop())
    const app = await buildApp(t, { dialect, config: database === undefined ? {} : { DATABASE_URL: database.url } })
    const admin = client(app, 'admin')
    const write = () => admin.post('/api/inventory', { itemCode: `A${Date.now()}`, name: 'A', unit: 'each' })
    t.equal((await write()).status, 201)
    if (database === undefined) {
      const { transact } = await app.getDecorator<Tenants>('tenants').get('main')
      await transact((tx) => sql`pragma query_only = on`.execute(tx.db))
    } else await onlyRead(database.url)
    // Each connection that was ended is found out by who uses it next: some are refused for that first.
    await until('it is read again, on new connections', async () => {
      const { body } = await write()
      return body.code === 'DATABASE_UNAVAILABLE' && (await admin.get('/api/inventory')).status === 200
    })
    t.match(await write(), { status: 503, body: { code: 'DATABASE_UNAVAILABLE' }, headers: { 'retry-after': String } })
    t.match((await admin.get('/api/inventory')).body, { data: [{ name: 'A' }] })
    if (database === undefined) return
    const found = await until('it is seen', async () => {
      const { statusCode, body } = await app.inject('/health/ready')
      const health = JSON.parse(body)
      return health.status !== 'ok' && { statusCode, health }
    })
    const checks = { database: { status: 'ok' }, writes: { status: 'degraded' } }
    t.match(found, { statusCode: 200, health: { status: 'degraded', checks } }, 'who reads is answered')
  })
)

t.test('a scrape tells what was found last and waits for nothing', async (t) => {
  const alive = setInterval(() => {}, 1_000)
  t.teardown(() => clearInterval(alive))
  const found: { tell(value: number): void; fail(): void }[] = []
  const find = () =>
    new Promise<number>((tell, fail) => void found.push({ tell, fail: () => fail(new Error('no database')) }))
  const turn = () => sleep(2)
  const fresh = kept(find)
  const first = [fresh(), fresh()]
  found[0]?.tell(1)
  t.same(await Promise.all(first), [1, 1], 'the first waits, and who asks meanwhile')
  t.equal(await fresh(), 1)
  await turn()
  t.equal(found.length, 1, 'which is fresh for a while')

  const read = kept(find, { freshMilliseconds: 0 })
  const begun = read()
  found[1]?.tell(1)
  t.equal(await begun, 1)
  t.equal(await read(), 1, 'then old figures are told')
  t.equal(found.length, 2, 'before new ones are looked for')
  await turn()
  t.equal(await read(), 1)
  t.equal(found.length, 3, 'once')
  found[2]?.tell(2)
  await turn()
  t.equal(await read(), 2)
  await turn()
  found[3]?.fail()
  await turn()
  t.equal(await read(), undefined, 'what cannot be found any more is left out, and one that hangs is not waited for')
  t.equal(found.length, 5, 'though looked for each time')

  const probed = kept(find, { freshMilliseconds: 0, waitMilliseconds: 300 })
  const up = probed()
  found[5]?.tell(1)
  t.equal(await up, 1)
  const down = probed()
  found[6]?.tell(0)
  t.equal(await down, 0, 'what is worth a moment is waited for')
  t.equal(await probed(), 0, 'and for a moment only')
})

t.test('a scrape comes compressed to who takes it so', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite' })
  for (const accept of ['text/plain', 'application/openmetrics-text']) {
    const packed = await app.inject({ url: '/metrics', headers: { accept, 'accept-encoding': 'gzip' } })
    const plain = await app.inject({ url: '/metrics', headers: { accept, 'accept-encoding': 'gzip;q=0' } })
    t.match(packed.headers, { 'content-encoding': 'gzip', 'content-type': accept, vary: 'accept-encoding' })
    t.equal(plain.headers['content-encoding'], undefined)
    const names = (text: string) => text.split('\n').filter((line) => line.startsWith('# TYPE'))
    t.same(names(gunzipSync(packed.rawPayload).toString()), names(plain.body))
    t.ok(packed.rawPayload.length < plain.body.length / 4)
  }
})

t.test('told to end it is not ready, answers on, and ends at the second word', async (t) => {
  const env = await serviceEnvironment(t, { DRAIN_SECONDS: '60', LOG_LEVEL: 'info' })
  const { url, token, child, output, end } = await startService(t, env)
  const headers = { authorization: `Bearer ${token}` }
  child.kill('SIGTERM')
  while (!output().includes('draining')) await sleep(5)
  t.match(await ask(`${url}/health/ready`), { code: 503, status: 'down', state: 'draining' })
  t.match(await ask(`${url}/health/live`), { code: 200 })
  const served = await fetch(`${url}/api/inventory`, { headers })
  t.equal(served.status, 200, 'what is still sent here is answered')
  await served.arrayBuffer()
  t.equal(await end('SIGINT'), 0)
})

t.test('who was being answered when it closed, and keeps the connection, does not hold it up', async (t) => {
  const env = await serviceEnvironment(t, { LOG_LEVEL: 'info' })
  const { url, token, child, output } = await startService(t, env)
  const ended = once(child, 'exit')
  const body = JSON.stringify({ itemCode: 'LAST', name: 'Last', unit: 'each' })
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  t.teardown(() => socket.destroy())
  let answer = ''
  socket.on('data', (chunk) => {
    answer += chunk
  })
  socket.write(
    `POST /api/inventory HTTP/1.1\r\nhost: here\r\nauthorization: Bearer ${token}\r\ncontent-type: application/json\r\n` +
      `content-length: ${body.length}\r\nexpect: 100-continue\r\n\r\n`
  )
  const goOn = 'HTTP/1.1 100 Continue\r\n\r\n'
  await until('it is being answered', () => answer === goOn)
  socket.write(body.slice(0, 10))
  child.kill('SIGTERM')
  while (!output().includes('"closing"')) await sleep(5)
  socket.write(body.slice(10))
  const startedAt = performance.now()
  t.equal((await ended)[0], 0)
  t.match(answer.slice(goOn.length), /^HTTP\/1\.1 201 /)
  t.ok(performance.now() - startedAt < 4_000, 'it did not wait for the client to go')
})

await eachDialect(t, async (t, dialect) => {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const config = { DATABASE_URL: database?.url ?? `sqlite:${join(temporaryFolder(t), 'inventory.sqlite')}` }
  /** A service that notes which events reached it; each takes it so long. */
  const start = async (milliseconds: number) => {
    const app = await buildApp(t, { dialect, config })
    const seen: unknown[] = []
    app.getDecorator<Events>('events').subscribe({
      topic: 'test.told',
      name: 'slow',
      handle: async ({ payload }) => {
        seen.push(payload)
        await sleep(milliseconds)
      }
    })
    return { app, seen, tenant: await app.getDecorator<Tenants>('tenants').get('main') }
  }
  const told = Array.from({ length: 60 }, (_, n) => ({ n }))
  const first = await start(100)
  await first.tenant.transact(async (tx) => {
    for (const payload of told) await tx.publish('test.told', payload)
  })
  while (first.seen.length < 3) await sleep(1)
  await first.app.close()
  t.ok(first.seen.length < told.length, 'the one that is being delivered is waited for, and not the rest of its batch')
  const second = await start(0)
  await second.tenant.transact((tx) => tx.publish('test.told', { n: 60 }))
  const startedAt = performance.now()
  while (first.seen.length + second.seen.length < 61) await sleep(5)
  t.ok(performance.now() - startedAt < 30_000, 'the next process has the others before the claim of the first runs out')
  t.same([...first.seen, ...second.seen], [...told, { n: 60 }], 'each once, in their order')
})
