import { once } from 'node:events'
import { request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import Fastify from 'fastify'
import { sql } from 'kysely'
import pg from 'pg'
import t, { type Test } from 'tap'
import type { EnterModule, Tenant } from '../../plugins/contracts.js'
import core from '../../plugins/core.js'
import { eachDialect } from '../helper.js'
import { patience } from '../patience.js'
import { type Service, serviceEnvironment, spawnNode, startService } from '../service-process.js'
import { freshDatabase, startPostgres, startRedis } from '../services.js'
import {
  becomes,
  CYCLES,
  checkAnswers,
  checkLedger,
  createItem,
  hangUp,
  LONG,
  Load,
  type Outcome,
  post,
  send
} from './harness.js'

/** The program under load while what it stands on breaks, or it is killed itself. */

t.teardown(hangUp)

const until = patience({ seconds: 20 })

const CLI = fileURLToPath(new URL('../../cli.js', import.meta.url))
const ITEMS = 400
const DAYS = 60
interface JobRow {
  status: string
  attempts: number
  done: number
}

function history(items: readonly string[]): string[] {
  const day = (n: number) => new Date(Date.now() - (DAYS + 1 - n) * 86_400_000).toISOString()
  return items.flatMap((code, at) => [
    `${code},receipt,100000,${day(0)}`,
    ...Array.from({ length: DAYS }, (_, n) => `${code},issue,${1 + ((n + at) % 7)},${day(n + 1)}`)
  ])
}

async function imported(t: Test, service: Service, kind: string, csv: string): Promise<void> {
  const answer = await fetch(`${service.url}/api/import/${kind}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${service.token}`, 'content-type': 'text/csv', prefer: 'wait=60' },
    body: csv
  })
  t.match(await answer.json(), { status: 'succeeded' }, kind)
}

/** `Promise.withResolvers` of later versions of Node. */
function resolvable<T>() {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>((done) => {
    resolve = done
  })
  return { promise, resolve }
}

interface Run {
  service: Service
  load: Load
}

/** What three writers and a reader of each are answered while `during` goes on, and most of a second besides. */
async function underLoad(runs: readonly Run[], during?: () => Promise<unknown>): Promise<Outcome[][]> {
  let reading = true
  const answers = runs.map(async ({ service, load }) => {
    const before = load.outcomes.length
    const reads: Outcome[] = []
    load.start(service, { clients: 3, pause: 5 })
    while (reading) {
      reads.push(await send(service, 'GET', '/api/inventory?limit=50'))
      await sleep(5)
    }
    await load.stop()
    return [...load.outcomes.slice(before), ...reads]
  })
  try {
    await sleep(200)
    await during?.()
    await sleep(600)
  } finally {
    reading = false
  }
  return Promise.all(answers)
}

const slowestOf = (outcomes: readonly Outcome[] = []) => Math.max(...outcomes.map(({ milliseconds }) => milliseconds))

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
  // A connection's server outlives the postmaster by a moment, so one is answered, or its transaction breaks off.
  const answers: Outcome[] = []
  load.with('refused')
  await until('it is refused', async () => {
    const answer = await post(service, 'refused')
    answers.push(answer)
    return answer.text.includes('"code":"ID_REVOCATIONS_UNAVAILABLE"')
  })
  t.equal(answers.at(-1)?.status, 503)
  t.same(
    answers.filter(({ status }) => ![201, 503].includes(status)),
    [],
    'before that the answer is no other'
  )
  t.ok(slowestOf(answers) < 2_000, `in ${slowestOf(answers).toFixed(0)} ms`)
  await becomes(service, 'down')
  t.equal((await send(service, 'GET', '/health/live')).status, 200)
  t.equal((await send(service, 'GET', '/metrics')).status, 200, 'metrics are there when they are needed')
  await postgres.restart()
  t.ok(await load.more(50), 'it goes on by itself')
  await load.stop()
  await becomes(service, 'ok')
  checkAnswers(t, load, [201, 503])
  await checkLedger(t, service, load)
  await service.end('SIGTERM')
})

t.test('Redis absent, killed and frozen under load: answers go on', async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.stop())
  await redis.kill()
  const service = await startService(t, await serviceEnvironment(t, { REDIS_URL: redis.url }))
  // Never had a Redis, and has the same load in the same moment: how slow it is says what others do to this machine.
  const control = await startService(t, await serviceEnvironment(t))
  const runs = [service, control].map((each) => ({ service: each, load: new Load(t) }))
  for (const { service } of runs) await createItem(t, service)
  await becomes(service, 'degraded')
  const phase = async (name: string, during?: () => Promise<unknown>) => {
    const [judged, normal] = await underLoad(runs, during)
    const slowest = slowestOf(judged)
    const limit = Math.max(250, 2 * slowestOf(normal))
    t.ok(
      judged?.every(({ status }) => [200, 201].includes(status)),
      `${name}: all of ${judged?.length} requests are answered`
    )
    t.ok(slowest < limit, `${name}: the slowest took ${slowest.toFixed(0)} ms (limit ${limit.toFixed(0)})`)
  }
  // The first answers of a process wait for its code to be compiled.
  await underLoad(runs)
  await phase('absent')
  await redis.restart()
  await becomes(service, 'ok')
  await phase('there')
  await phase('killed', () => redis.kill())
  await becomes(service, 'degraded')
  await redis.restart()
  await becomes(service, 'ok')
  await phase('frozen', async () => {
    redis.freeze()
    await becomes(service, 'degraded')
  })
  redis.thaw()
  t.ok((await becomes(service, 'ok')) < 10_000, 'it recovers by itself')
  await phase('thawed')
  for (const { service, load } of runs) {
    checkAnswers(t, load, [201])
    await checkLedger(t, service, load)
    t.equal(await service.end('SIGTERM'), 0)
  }
})

if (LONG) {
  await t.test('two nodes that start at once on a new database', async (t) => {
    const database = await freshDatabase()
    t.teardown(() => database.drop())
    const nodes = await Promise.all(
      [1, 2, 3].map(async () => startService(t, await serviceEnvironment(t, { DATABASE_URL: database.url })))
    )
    const [first, second] = nodes
    if (first === undefined || second === undefined) throw new Error('they were started')
    await createItem(t, first)
    const load = new Load(t)
    load.start(second)
    t.ok(await load.more(20))
    await load.stop()
    await checkLedger(t, first, load)
    for (const node of nodes) t.equal(await node.end('SIGTERM'), 0)
  })

  await t.test('workers that are told to end, and killed, in the middle of training', async (t) => {
    const database = await freshDatabase()
    t.teardown(() => database.drop())
    const redis = await startRedis()
    t.teardown(() => redis.stop())
    const env = await serviceEnvironment(t, { DATABASE_URL: database.url, REDIS_URL: redis.url, RATE_LIMITS: 'none' })
    const secret = 'Wq7-mX2zKp9vLt4yHc8sRd1nJf6bGu3e'
    let service = await startService(t, env)
    const items = Array.from({ length: ITEMS }, (_, n) => `T${n}`)
    await imported(
      t,
      service,
      'items',
      `itemCode,name,unit\n${items.map((code) => `${code},${code},each`).join('\n')}\n`
    )
    await imported(t, service, 'movements', `itemCode,type,quantity,occurredAt\n${history(items).join('\n')}\n`)
    const client = new pg.Client({ connectionString: database.url, options: '-c search_path=tenant_main' })
    await client.connect()
    t.teardown(() => client.end())
    const started = await send(service, 'POST', '/api/ai/forecast/train', { models: ['naive', 'seasonal-naive'] })
    const { id }: { id: string } = JSON.parse(started.text)
    const reaches = async (what: (job: JobRow) => boolean) => {
      const deadline = Date.now() + 90_000
      for (;;) {
        const { rows } = await client.query<JobRow>(
          'select status, attempts, progress_done as done from jobs where id = $1',
          [id]
        )
        const [job] = rows
        if (job !== undefined && what({ ...job, done: Number(job.done) })) return { ...job, done: Number(job.done) }
        if (Date.now() > deadline) throw new Error(`the job stays ${JSON.stringify(job)}`)
        await sleep(5)
      }
    }
    const worker = () => {
      const child = spawnNode([CLI, 'worker'], { env: { ...env, JWT_SECRET: secret } })
      t.teardown(() => void child.kill('SIGKILL'))
      return { child, ended: once(child, 'close') }
    }
    await reaches(({ done }) => done > 0)
    t.equal(await service.end('SIGTERM'), 0)
    const { done: byService, status } = await reaches(() => true)
    t.equal(status, 'queued', 'what was not done goes back to the queue')
    const killed = worker()
    const taken = await reaches((job) => job.status === 'running' && job.done > byService)
    killed.child.kill('SIGKILL')
    await killed.ended
    t.ok(taken.done < ITEMS, `${taken.done} of ${ITEMS} items were done`)
    const last = worker()
    const ended = await reaches((job) => job.status !== 'running' && job.status !== 'queued')
    t.match(ended, { status: 'succeeded', attempts: taken.attempts + 1 })
    last.child.kill('SIGTERM')
    t.same(await last.ended, [0, null])
    service = await startService(t, env)
    for (const code of [items[0], items.at(-1)])
      t.equal((await send(service, 'GET', `/api/ai/forecast/${code}`)).status, 200)
    const { rows } = await client.query<{ n: string }>('select count(distinct item_code) as n from ai_forecasts')
    t.equal(Number(rows[0]?.n), ITEMS, 'each item has its forecast')
    t.equal(await service.end('SIGTERM'), 0)
  })
}
