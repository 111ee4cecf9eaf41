import { once } from 'node:events'
import { Agent, type IncomingMessage, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import type { EnterModule, Tenant } from '../plugins/contracts.js'
import core from '../plugins/core.js'
import { eachDialect } from './helper.js'
import { type Service, serviceEnvironment, startService } from './service-process.js'
import { freshDatabase, startPostgres, startRedis } from './services.js'

/** The program under load while what it stands on breaks, or it is killed itself. */

const CYCLES = Number(process.env.FAULT_CYCLES ?? 3)
const CLIENTS = 12
/** How many of the acknowledged writes are sent again each time; that all are there the ledger says. */
const REPLAYED = 200

interface Outcome {
  status: number
  text: string
  milliseconds: number
  /** The server had closed the kept connection before it saw the request, which any client then sends again. */
  unsent: boolean
}

const agent = new Agent({ keepAlive: true, maxSockets: 64 })
t.teardown(() => agent.destroy())

/** Status 0: no answer came. */
async function send(service: Service, method: string, path: string, body?: object, headers = {}): Promise<Outcome> {
  const startedAt = performance.now()
  const payload = body === undefined ? undefined : JSON.stringify(body)
  const type =
    payload === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) }
  const call = request(`${service.url}${path}`, {
    method,
    agent,
    headers: { authorization: `Bearer ${service.token}`, ...type, ...headers }
  })
  const milliseconds = () => performance.now() - startedAt
  try {
    call.end(payload)
    const [response]: IncomingMessage[] = await once(call, 'response')
    const chunks: Buffer[] = []
    for await (const chunk of response ?? []) chunks.push(chunk)
    return {
      status: response?.statusCode ?? 0,
      text: Buffer.concat(chunks).toString(),
      milliseconds: milliseconds(),
      unsent: false
    }
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : ''
    const unsent = code === 'ECONNREFUSED' || (call.reusedSocket && (code === 'ECONNRESET' || code === 'EPIPE'))
    return { status: 0, text: String(error), milliseconds: milliseconds(), unsent }
  }
}

/** `Promise.withResolvers` of later versions of Node. */
function resolvable<T>() {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>((done) => {
    resolve = done
  })
  return { promise, resolve }
}

const movement = { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1, unitCost: 1 }] }
const post = (service: Service, key: string) =>
  send(service, 'POST', '/api/movements', movement, { 'idempotency-key': key })

async function createItem(t: Test, service: Service) {
  const made = await send(service, 'POST', '/api/inventory', { itemCode: 'A', name: 'A', unit: 'each' })
  t.equal(made.status, 201, made.text)
}

/** Clients that post one after the other until told to stop; what was acknowledged is in `acknowledged`, by key. */
class Load {
  readonly acknowledged = new Map<string, string>()
  readonly unanswered = new Set<string>()
  readonly outcomes: Outcome[] = []
  #running: Promise<unknown> = Promise.resolve()
  #stopped = true
  #next = 0

  constructor(t: Test) {
    t.teardown(() => this.stop())
  }

  start(service: Service, { clients = CLIENTS, pause = 0, untilGone = false } = {}): void {
    this.#stopped = false
    const client = async () => {
      while (!this.#stopped) {
        const key = `key-${this.#next++}`
        const outcome = await post(service, key)
        this.outcomes.push(outcome)
        if (outcome.status === 201) this.acknowledged.set(key, outcome.text)
        else this.unanswered.add(key)
        if (untilGone && outcome.text.includes('ECONNREFUSED')) return
        if (outcome.status !== 201 || pause > 0) await sleep(Math.max(pause, 20))
      }
    }
    this.#running = Promise.all(Array.from({ length: clients }, client))
  }

  async stop(): Promise<void> {
    this.#stopped = true
    await this.#running
  }

  /** Resolves when so many more were acknowledged. */
  async more(count: number, timeout = 20_000): Promise<boolean> {
    const goal = this.acknowledged.size + count
    const deadline = Date.now() + timeout
    while (this.acknowledged.size < goal && Date.now() < deadline) await sleep(10)
    return this.acknowledged.size >= goal
  }
}

/** What was acknowledged is there, once, with the same bytes; what was not can be sent again; the ledger is right. */
async function checkLedger(t: Test, service: Service, load: Load): Promise<void> {
  let differing = 0
  const keys = [...load.acknowledged.keys()].slice(-REPLAYED)
  const replay = async () => {
    for (let key = keys.pop(); key !== undefined; key = keys.pop()) {
      const again = await post(service, key)
      if (again.status !== 201 || again.text !== load.acknowledged.get(key)) differing++
    }
  }
  await Promise.all(Array.from({ length: CLIENTS }, replay))
  t.equal(differing, 0, 'acknowledged writes answer the same bytes again')
  for (const key of load.unanswered) {
    const again = await post(service, key)
    if (again.status !== 201) t.fail(`${key}, which was not answered: ${again.status} ${again.text}`)
    load.acknowledged.set(key, again.text)
  }
  load.unanswered.clear()
  const { size } = load.acknowledged
  const verified = JSON.parse((await send(service, 'GET', '/api/ledger/verify')).text)
  t.match(verified, { ok: true, transactions: size, moves: size, mismatches: [] }, `${size} transactions, each once`)
  const item = JSON.parse((await send(service, 'GET', '/api/inventory/A')).text)
  t.match(item, { onHand: size, value: size })
}

async function becomes(service: Service, status: string, timeout = 15_000): Promise<number> {
  const startedAt = performance.now()
  let seen = ''
  while (performance.now() - startedAt < timeout) {
    const { text } = await send(service, 'GET', '/health')
    seen = text
    if (text.includes(`{"status":"${status}"`)) return performance.now() - startedAt
    await sleep(50)
  }
  throw new Error(`health never said ${status}: ${seen}`)
}

await eachDialect(t, async (t, dialect) => {
  // The server outlives the subtests.
  const owner = t
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const env = await serviceEnvironment(t, database === undefined ? {} : { DATABASE_URL: database.url })
  let service = await startService(owner, env)
  await createItem(t, service)
  const load = new Load(t)

  await t.test(`kill -9 under write load, ${CYCLES} times`, async (t) => {
    for (let cycle = 1; cycle <= CYCLES; cycle++) {
      load.start(service)
      t.ok(await load.more(100 + Math.floor(Math.random() * 50)), 'writes are acknowledged')
      t.equal(await service.end('SIGKILL'), null)
      await load.stop()
      service = await startService(owner, env)
      await checkLedger(t, service, load)
    }
  })

  await t.test('SIGTERM under load: what was begun is answered', async (t) => {
    const before = load.outcomes.length
    load.start(service, { untilGone: true })
    t.ok(await load.more(100))
    const startedAt = performance.now()
    t.equal(await service.end('SIGTERM'), 0)
    const seconds = (performance.now() - startedAt) / 1000
    t.ok(seconds < 5, `it took ${seconds.toFixed(1)} s`)
    await load.stop()
    const outcomes = load.outcomes.slice(before)
    const failed = outcomes.filter(({ status, unsent }) => status !== 201 && !unsent)
    t.same(failed, [], `none of ${outcomes.length} requests failed`)
    service = await startService(owner, env)
    await checkLedger(t, service, load)
    await service.end('SIGTERM')
  })
})

t.test('the database outlives the handlers of clients that hung up', async (t) => {
  await eachDialect(t, async (t, dialect) => {
    const database = dialect === 'postgres' ? await freshDatabase() : undefined
    if (database !== undefined) t.teardown(() => database.drop())
    const lines: string[] = []
    const app = Fastify({ logger: { level: 'warn', stream: { write: (line: string) => void lines.push(line) } } })
    const began = resolvable<void>()
    const hungUp = resolvable<void>()
    const ended = resolvable<unknown>()
    await app.register(core, { databaseUrl: database?.url ?? 'sqlite::memory:' })
    await app.register(async (module) => {
      module.getDecorator<EnterModule>('enterModule')(module, { authorize: async () => {} })
      module.get('/slow', async (request) => {
        const tenant = request.getDecorator<Tenant>('tenant')
        began.resolve()
        await hungUp.promise
        await sleep(300)
        const found = tenant.transact(({ db }) => sql`select 1 as one`.execute(db))
        await found.then(() => ended.resolve('served'), ended.resolve)
        return {}
      })
    })
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    const call = request(`${url}/slow`).on('error', () => {})
    call.end()
    await began.promise
    call.destroy()
    await sleep(50)
    const closed = app.close()
    hungUp.resolve()
    await closed
    t.equal(await ended.promise, 'served')
    t.same(lines, [])
  })
})

t.test('PostgreSQL itself is killed under load, and comes back', async (t) => {
  const postgres = await startPostgres()
  t.teardown(() => postgres.stop())
  const service = await startService(t, await serviceEnvironment(t, { DATABASE_URL: postgres.url }))
  await createItem(t, service)
  const load = new Load(t)
  load.start(service)
  t.ok(await load.more(100))
  await postgres.kill()
  const refused = await post(service, 'refused')
  t.match(refused, { status: 503, text: /"code":"ID_REVOCATIONS_UNAVAILABLE"/ })
  t.ok(refused.milliseconds < 2_000, `in ${refused.milliseconds.toFixed(0)} ms`)
  await becomes(service, 'down')
  t.equal((await send(service, 'GET', '/health/live')).status, 200)
  t.equal((await send(service, 'GET', '/metrics')).status, 200, 'metrics are there when they are needed')
  await postgres.restart()
  t.ok(await load.more(50), 'it goes on by itself')
  await load.stop()
  await becomes(service, 'ok')
  const answers = new Set(load.outcomes.map(({ status }) => status))
  t.same(
    [...answers].filter((status) => status !== 201 && status !== 503),
    [],
    'nothing but 201 and 503 was answered'
  )
  await checkLedger(t, service, load)
  await service.end('SIGTERM')
})

t.test('Redis absent, killed and frozen under load: answers go on', async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.stop())
  await redis.kill()
  const service = await startService(t, await serviceEnvironment(t, { REDIS_URL: redis.url }))
  await createItem(t, service)
  const reads: Outcome[] = []
  const phase = async (
    name: string,
    { during = async () => {}, limit }: { during?: () => Promise<unknown>; limit?: number }
  ) => {
    const load = new Load(t)
    reads.length = 0
    load.start(service, { clients: 3, pause: 5 })
    let reading = true
    const reader = (async () => {
      while (reading) {
        reads.push(await send(service, 'GET', '/api/inventory?limit=50'))
        await sleep(5)
      }
    })()
    await sleep(200)
    await during()
    await sleep(600)
    await load.stop()
    reading = false
    await reader
    const all = [...load.outcomes, ...reads]
    const slowest = Math.max(...all.map(({ milliseconds }) => milliseconds))
    t.same(
      all.filter(({ status }) => status !== 200 && status !== 201),
      [],
      `${name}: all of ${all.length} requests are answered`
    )
    if (limit !== undefined)
      t.ok(slowest < limit, `${name}: the slowest took ${slowest.toFixed(0)} ms (limit ${limit.toFixed(0)})`)
    for (const key of load.acknowledged.keys()) known.add(key)
    return slowest
  }
  const known = new Set<string>()
  await becomes(service, 'degraded')
  // On a machine that others load too, the same requests without any fault say how slow is normal.
  const usual = await phase('absent', {})
  const limit = Math.max(250, usual * 2)
  await redis.restart()
  await becomes(service, 'ok')
  await phase('there', { limit })
  await phase('killed', { limit, during: () => redis.kill() })
  await becomes(service, 'degraded')
  await redis.restart()
  await becomes(service, 'ok')
  await phase('frozen', {
    limit,
    during: async () => {
      redis.freeze()
      await becomes(service, 'degraded')
    }
  })
  redis.thaw()
  t.ok((await becomes(service, 'ok')) < 10_000, 'it recovers by itself')
  await phase('thawed', { limit })
  t.match(JSON.parse((await send(service, 'GET', '/api/ledger/verify')).text), { ok: true, mismatches: [] })
  t.equal(await service.end('SIGTERM'), 0)
})
