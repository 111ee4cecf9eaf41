import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import { CompiledQuery } from 'kysely'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import { app as register } from '../app.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Auth } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { openDatabaseServer } from '../plugins/database.js'
import { UNWATCHED } from '../plugins/dialects/dialect.js'
import { explainAt } from '../plugins/dialects/postgres-explain.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { databaseMetrics } from '../plugins/metrics/index.js'
import { openRedis } from '../plugins/redis.js'
import { NO_TRACING } from '../plugins/telemetry/index.js'
import { createLogLevels } from '../plugins/telemetry/log-level.js'
import { logSlowQueries } from '../plugins/telemetry/slow-queries.js'
import { TRACE, traceparent } from './collector.js'
import { buildApp, client, DIALECTS } from './helper.js'
import { temporaryFolder } from './service-process.js'
import { freshDatabase, redisUrl, startRedis } from './services.js'

/** What the log says, at which level, and what slow statements leave of their plan. */

/** The whole service with its log in an array. */
async function logged(t: Test, env: Record<string, string>) {
  const lines: Line[] = []
  const config = loadConfig({ NODE_ENV: 'test', DATA_DIR: temporaryFolder(t), ...env })
  const options = serverOptions({ logLevel: config.LOG_LEVEL })
  const stream = { write: (line: string) => void lines.push(JSON.parse(line)) }
  const app = Fastify({ ...options, logger: { ...options.logger, stream } })
  app.addHook('onRoute', (route) => {
    if (route.url !== '/api/inventory/:itemCode' || route.method !== 'GET') return
    route.handler = async () => {
      throw Object.assign(
        new Error('cannot read postgres://me:canary@db/stock', { cause: new Error('Bearer canary') }),
        {
          code: '42601',
          detail: 'Key (name)=(canary) exists.',
          config: { headers: { authorization: 'canary' } },
          parameters: ['canary']
        }
      )
    }
  })
  await register(app, config)
  await app.ready()
  t.teardown(() => app.close())
  return { app, lines }
}
type Line = Record<string, unknown>

t.test('every line of a request says whose it is, and no line tells a secret', async (t) => {
  const { app, lines } = await logged(t, { LOG_LEVEL: 'debug' })
  const headers = { traceparent, 'x-request-id': 'request-1', cookie: 'session=canary' }
  const answer = await app.inject({
    url: '/api/inventory/canary',
    headers: {
      ...headers,
      authorization: `Bearer ${app.getDecorator<Auth>('auth').sign({ subject: 'u-7', role: 'staff', tenant: 'main' }, 60)}`
    }
  })
  t.equal(answer.statusCode, 500)
  const own = lines.filter(({ reqId }) => reqId === 'request-1')
  t.same(own.map(({ msg }) => msg).sort(), ['answered', 'request failed'])
  for (const line of own) {
    t.match(line, { tenant: 'main', actor: 'u-7', role: 'staff', traceId: TRACE, route: '/api/inventory/:itemCode' })
  }
  t.match(
    own.find(({ msg }) => msg === 'request failed'),
    {
      code: 'INTERNAL_ERROR',
      err: {
        type: 'Error',
        code: '42601',
        message: 'cannot read postgres://***@db/stock',
        stack: /telemetry-logs\.test/,
        cause: { message: 'Bearer ***' }
      }
    }
  )
  t.match(
    own.find(({ msg }) => msg === 'answered'),
    { method: 'GET', code: 500, milliseconds: Number }
  )
  app.log.warn(
    { password: 'canary', user: { token: 'canary', secret: 'canary' }, headers: { cookie: 'canary' } },
    'a line'
  )
  app.log.warn({ err: 'il_main_canarycanarycanary of eyJhbGciOi.canary.canary' }, 'no error at all')
  t.match(lines.at(-2), { password: '[Redacted]', user: { token: '[Redacted]', secret: '[Redacted]' } })
  t.notMatch(JSON.stringify(lines), /canary/)
})

const eventually = async (check: () => boolean) => {
  for (const deadline = Date.now() + 5_000; !check() && Date.now() < deadline; ) await sleep(20)
  return check()
}

t.test('the level of the log is changed for a while, on every node', async (t) => {
  const { url, drop } = await freshDatabase()
  t.teardown(() => drop())
  const env = {
    DATABASE_URL: url,
    REDIS_URL: redisUrl(),
    LOG_LEVEL: 'info',
    JWT_SECRET: 'Wq7-mX2zKp9vLt4yHc8sRd1nJf6bGu3e'
  }
  const [first, second] = [await logged(t, env), await logged(t, env)]
  const admin = client(first.app, 'admin')
  t.match((await admin.get('/api/log-level')).body, { level: 'info', configured: 'info', until: null })
  t.equal((await client(first.app, 'manager').get('/api/log-level')).status, 403)
  t.equal((await admin.put('/api/log-level', { level: 'silent' })).status, 400)
  t.equal((await admin.put('/api/log-level', { level: 'debug', minutes: 100_000 })).status, 400)
  const { body } = await admin.put('/api/log-level', { level: 'debug', minutes: 5 }, { 'idempotency-key': 'level-1' })
  t.match(body, { level: 'debug', configured: 'info' })
  t.ok(Math.abs(Date.parse(body.until) - Date.now() - 300_000) < 10_000)
  t.equal(first.app.log.level, 'debug')
  t.ok(await eventually(() => second.app.log.level === 'debug'), 'the other node hears of it')
  const third = await logged(t, env)
  t.ok(await eventually(() => third.app.log.level === 'debug'), 'and so does one that starts later')
  await client(second.app, 'viewer').get('/api/inventory')
  const answered = () => second.lines.find(({ msg, route }) => msg === 'answered' && route === '/api/inventory')
  t.ok(await eventually(() => answered() !== undefined))
  t.match(answered(), { msg: 'answered', route: '/api/inventory', tenant: 'main', actor: 'test-viewer' })
  const entry = (await admin.get('/api/audit?action=log.level')).body.data[0]
  t.match(entry, { actor: 'test-admin', object: { type: 'log' } })
  t.match(JSON.stringify(entry), /"debug"/)
  await admin.put('/api/log-level', { level: 'info' })
  t.ok(await eventually(() => second.app.log.level === 'info'), 'what is configured ends it')
})

t.test('a level that is set while Redis is away is told when it is back', async (t) => {
  const server = await startRedis()
  t.teardown(() => server.stop())
  const node = async () => {
    const { log } = Fastify({ logger: { level: 'info', stream: { write: () => {} } } })
    const redis = await openRedis({ url: server.url, log })
    t.teardown(() => redis.close())
    return { log, redis, levels: createLogLevels(log, redis) }
  }
  const [first, second] = [await node(), await node()]
  const both = (state: string) => [first, second].every(({ redis }) => redis.state() === state)
  t.ok(await eventually(() => both('up')))
  first.levels.set('warn', 5)
  t.ok(await eventually(() => second.log.level === 'warn'))
  await server.kill()
  t.ok(await eventually(() => both('down')))
  first.levels.set('debug', 5)
  await server.restart()
  t.ok(await eventually(() => second.log.level === 'debug'), 'the other node hears of it')
  t.equal(first.log.level, 'debug')
  for (const { levels } of [first, second]) levels.close()
})

t.test('a level ends by itself', async (t) => {
  const said: string[] = []
  const app = Fastify({
    logger: { level: 'warn', stream: { write: (line: string) => void said.push(JSON.parse(line).msg) } }
  })
  const levels = createLogLevels(app.log, null)
  levels.set('trace', 0.002)
  t.match(levels.current(), { level: 'trace', configured: 'warn', until: /Z$/ })
  await sleep(250)
  t.match(levels.current(), { level: 'warn', until: null })
  t.same(said, ['the log is at another level for a while', 'the log is at its configured level again'])
  levels.close()
})

t.test('with several tenants the level is the operator’s', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite', tenancy: 'multi' })
  await app.getDecorator<Tenants>('tenants').create('acme')
  const order = { level: 'debug' }
  const refused = await client(app, 'admin', { tenant: 'acme' }).put('/api/log-level', order)
  t.match(refused, { status: 403, body: { code: 'AUTH_OPERATOR_REQUIRED' } })
  t.equal((await client(app, 'admin', { tenant: 'acme', subject: 'cli' }).put('/api/log-level', order)).status, 200)
})

t.test('a plan is made in one transaction, and what has none is refused', async (t) => {
  const database = await freshDatabase()
  t.teardown(() => database.drop())
  const explain = explainAt({ connectionString: database.url })
  const write = CompiledQuery.raw('insert into pg_catalog.pg_description (objsubid) values ($1)', [1])
  t.match((await explain(write)).join('\n'), /^Insert on pg_description/)
  await t.rejects(explain(CompiledQuery.raw('create table things (id integer)')))
  await t.rejects(explain(CompiledQuery.raw('select * from nothing')))
  t.match(await explain(CompiledQuery.raw('select 1 where $1 = 2', [2])), [/Result/, /\$1 = 2/])
})

for (const dialect of DIALECTS) {
  t.test(`${dialect}: a slow query is logged with its plan and without its values`, async (t) => {
    const database = await freshDatabase()
    t.teardown(() => database.drop())
    const databaseUrl = dialect === 'postgres' ? database.url : `sqlite:${temporaryFolder(t)}/a.sqlite`
    const lines: Line[] = []
    const { log } = Fastify({ logger: { stream: { write: (line: string) => void lines.push(JSON.parse(line)) } } })
    const registry = new Registry()
    const metrics = databaseMetrics(registry, 'any', 0)
    const options = { databaseUrl, tenancy: 'single', poolSize: 1 } as const
    const first = openDatabaseServer(options, UNWATCHED)
    await first.create('main')
    const { db: empty } = (await first.open('main')).migrator
    await empty.schema.createTable('things').addColumn('id', 'integer').addColumn('name', 'text').execute()
    await empty.schema.createIndex('things_id').on('things').column('id').execute()
    await first.close()

    const events = logSlowQueries(metrics, { seconds: 0, log, tracing: NO_TRACING, dialect: 'any' })
    const server = openDatabaseServer(options, events)
    t.teardown(() => server.close())
    const { db } = await server.open('main')
    const find = (id: number) =>
      db
        .withTables<{ things: { id: number; name: string } }>()
        .selectFrom('things')
        .select('name')
        .where('id', '=', id)
        .where('name', '=', 'canary')
        .execute()
    await find(1)
    await find(2)
    for (const deadline = Date.now() + 5_000; lines.length < 2 && Date.now() < deadline; ) await sleep(20)
    t.equal(lines.length, 2)
    const sql = /^select "name" from .*"things" where "id" = (\?|\$1) and "name" = (\?|\$2)$/
    for (const line of lines) t.match(line, { msg: 'slow query', level: 40, operation: 'select', sql, seconds: Number })
    const plans = lines.flatMap(({ plan }) => (plan === undefined ? [] : [JSON.stringify(plan)]))
    t.equal(plans.length, 1, 'one plan for many')
    t.match(plans[0], dialect === 'postgres' ? /Scan.*\$1/ : /USING INDEX things_id \(id=\?\)/)
    t.notMatch(JSON.stringify(lines), /canary/)
    t.match(await registry.metrics(), /^db_slow_queries_total\{dialect="any",operation="select"\} 2$/m)
  })
}
