import { get, type RequestListener } from 'node:http'
import { createRequire } from 'node:module'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import Fastify from 'fastify'
import type { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import type { SharedStore } from '../plugins/contracts.js'
import { openTelemetry } from '../plugins/telemetry/index.js'
import { StockMoved } from '../schemas/inventory.js'
import {
  CALLER,
  CLIENT,
  CONSUMER,
  type Collector,
  type ReceivedSpan,
  SERVER,
  startCollector,
  TRACE,
  traceparent
} from './collector.js'
import { buildApp, client, DIALECTS, type Dialect } from './helper.js'
import { ownTime } from './own-time.js'
import { freePort, listening } from './ports.js'
import { spawnNode, temporaryFolder } from './service-process.js'
import { freshDatabase, redisUrl } from './services.js'

/** Traces from the request to the worker thread and to a worker process, and what becomes of them where none takes them. */

const opening = (itemCode: string, day = 1) => ({
  type: 'opening',
  occurredAt: new Date(Date.UTC(2026, 0, day)).toISOString(),
  lines: [{ itemCode, quantity: 1000 }]
})
const issue = (itemCode: string, day: number) => ({
  ...opening(itemCode, day),
  type: 'issue',
  lines: [{ itemCode, quantity: 3 + (day % 5) }]
})

const traced = (
  t: Test,
  dialect: Dialect,
  { endpoint }: Collector,
  config: Record<string, string> = {},
  redis?: string
) =>
  buildApp(t, {
    dialect,
    config: { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, ...config },
    ...(redis === undefined ? {} : { redisUrl: redis })
  })

/** The names from a span up to the one that has no parent here. */
function path(spans: readonly ReceivedSpan[], span: ReceivedSpan | undefined): string[] {
  if (span === undefined) return []
  const above = spans.find(({ spanId }) => spanId === span.parentSpanId)
  return [span.name, ...path(spans, above)]
}
/** Somebody else's server, and which `traceparent` it was sent each time. */
async function listen(t: Test, answer: RequestListener) {
  const asked: (string | undefined)[] = []
  const { url, close } = await listening((request, response) => {
    asked.push(request.headers.traceparent?.toString())
    request.resume()
    answer(request, response)
  })
  t.teardown(close)
  return { url, asked }
}
const named = (spans: readonly ReceivedSpan[], name: string) => spans.find((span) => span.name === name)

t.test('without a collector no package of OpenTelemetry is loaded', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite' })
  t.equal((await client(app, 'viewer').get('/api/inventory', { traceparent })).status, 200)
  const loaded = Object.keys(createRequire(import.meta.url).cache)
  t.ok(loaded.some((file) => file.includes('fastify')))
  // prom-client names the API.
  t.same(
    loaded.filter((file) => /@opentelemetry\/(?!api\/)/.test(file)),
    []
  )
})

for (const dialect of DIALECTS) {
  t.test(`${dialect}: one trace from the request to the thread`, async (t) => {
    const collector = await startCollector(t)
    const receiver = await listen(t, (_request, response) => response.writeHead(204).end())
    const app = await traced(t, dialect, collector, { WEBHOOK_ALLOWED_HOSTS: '127.0.0.1' })
    const webhook = { url: `${receiver.url}/hook`, topics: [StockMoved.topic] }
    t.equal((await client(app, 'admin').post('/api/webhooks', webhook)).status, 201)
    const manager = client(app, 'manager')
    await manager.post('/api/inventory', { itemCode: 'A', name: 'Apple', unit: 'each' })
    await manager.post('/api/movements', opening('A'))
    for (let day = 2; day < 20; day++) await manager.post('/api/movements', issue('A', day))
    const posted = await manager.post('/api/movements', issue('A', 21), { traceparent })
    t.equal(posted.status, 201)
    const training = { itemCodes: ['A'], models: ['naive'] }
    const trained = await manager.post('/api/ai/forecast/train', training, { prefer: 'wait=60', traceparent })
    t.match(trained.body, { status: 'succeeded' })
    const isSent = ({ name, traceId }: ReceivedSpan) => name.startsWith('webhook ') && traceId === TRACE
    await collector.until((spans) => named(spans, 'POST /api/ai/forecast/train') !== undefined && spans.some(isSent))
    await app.close()

    const spans = collector.spans.filter(({ traceId }) => traceId === TRACE)
    const request = named(spans, 'POST /api/movements')
    t.match(request, {
      kind: SERVER,
      parentSpanId: CALLER,
      attributes: {
        'http.route': '/api/movements',
        'http.request.method': 'POST',
        'http.response.status_code': 201,
        'inventory.tenant': 'main',
        'enduser.id': 'test-manager'
      },
      resource: { 'service.name': 'inventory-enterprise', 'service.version': String }
    })
    t.equal(request?.attributes['inventory.request_id'], posted.headers['x-request-id'])
    const insert = spans.find(({ name }) => name === 'insert stock_transactions')
    t.match(insert, {
      kind: CLIENT,
      attributes: { 'db.system.name': dialect === 'postgres' ? 'postgresql' : 'sqlite' }
    })
    t.same(path(spans, insert), ['insert stock_transactions', 'transaction', 'POST /api/movements'])
    const event = named(spans, `event ${StockMoved.topic}`)
    t.match(event, { kind: CONSUMER, attributes: { 'inventory.tenant': 'main' } })
    t.same(path(spans, event).slice(1), ['transaction', 'POST /api/movements'], 'what it causes is part of it')

    const sent = spans.find(({ name }) => name === 'POST 127.0.0.1')
    t.match(sent, { kind: CLIENT, attributes: { 'http.response.status_code': 204 } })
    t.same(path(spans, sent).slice(1, 3), [`webhook ${StockMoved.topic}`, `event ${StockMoved.topic}`])
    t.equal(path(spans, sent).at(-1), 'POST /api/movements', 'the message is part of what it tells of')
    t.match(
      receiver.asked.filter((trace) => trace?.includes(TRACE)),
      [`00-${TRACE}-${sent?.parentSpanId}-01`]
    )
    const thread = named(spans, 'thread worker')
    t.match(thread, { attributes: { 'thread.id': Number } })
    t.same(path(spans, thread), [
      'thread worker',
      'compute worker',
      'job forecasting.train',
      'transaction',
      'POST /api/ai/forecast/train'
    ])
    const job = named(spans, 'job forecasting.train')
    t.match(job, { kind: CONSUMER, attributes: { 'inventory.job': trained.body.id } })
    t.ok((job?.endedAt ?? 0n) >= (thread?.endedAt ?? 1n))
    for (const span of collector.spans) t.ok(span.endedAt >= span.startedAt, span.name)
    t.notMatch(
      JSON.stringify(collector.spans, (_, value) => (typeof value === 'bigint' ? 0 : value)),
      /Apple|Bearer/
    )
    const others = collector.spans.filter(({ traceId }) => traceId !== TRACE)
    const roots = others.filter(({ parentSpanId }) => parentSpanId === '').map(({ name }) => name.split(' ')[0])
    t.same(new Set(roots), new Set(['POST']), 'upkeep and polling leave no spans')
  })
}

t.test('who calls decides what is kept, and the rest by ratio', async (t) => {
  const collector = await startCollector(t)
  const sampler = { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0' }
  const app = await traced(t, 'sqlite', collector, sampler)
  const admin = client(app, 'admin')
  await admin.get('/api/inventory')
  await admin.get('/api/locations', { traceparent: `00-${TRACE}-${CALLER}-00` })
  await admin.get('/api/inventory/units', { traceparent })
  const item = { itemCode: 'A', name: 'Apple', unit: 'each' }
  await admin.post('/api/inventory', item, { traceparent: `00-${TRACE}-${CALLER}-00` })
  const kept = await admin.get('/api/audit?action=item.create')
  t.equal(kept.body.data[0].traceId, TRACE, 'the trail names the trace all the same')
  await app.close()
  const requests = collector.spans.filter(({ kind }) => kind === SERVER).map(({ name }) => name)
  t.same(requests, ['GET /api/inventory/units'])
})

t.test('a histogram says which trace was slow, in OpenMetrics alone', async (t) => {
  const collector = await startCollector(t)
  const app = await traced(t, 'sqlite', collector)
  const admin = client(app, 'admin')
  await admin.get('/api/inventory', { traceparent })
  const scrape = async (accept?: string) =>
    (await app.inject({ url: '/metrics', headers: accept === undefined ? {} : { accept } })).body
  const open = await scrape('application/openmetrics-text')
  const bucket =
    /^http_request_duration_seconds_bucket\{[^}]*route="\/api\/inventory"[^}]*\} \d+ # \{trace_id="(\w+)"\} [\d.e-]+ [\d.]+$/m
  t.equal(bucket.exec(open)?.[1], TRACE)
  t.match(open, /# EOF\n$/)
  const text = await scrape()
  t.notMatch(text, /trace_id| # \{/)
  t.match(text, /^http_requests_total\{[^}]*route="\/api\/inventory"[^}]*\} 1$/m, 'a counter keeps its name')
  t.match(await scrape('application/openmetrics-text'), /^http_requests_total\{/m, 'and its place')
})

t.test('a collector that is away disturbs nobody', async (t) => {
  const collector = await startCollector(t)
  collector.answer(0)
  const app = await traced(t, 'sqlite', collector)
  const viewer = client(app, 'viewer')
  for (let n = 0; n < 20; n++) t.equal((await viewer.get('/api/inventory')).status, 200)
  const startedAt = ownTime(process.pid)
  await app.close()
  t.ok(ownTime(process.pid) - startedAt < 4_000, 'the end waits two seconds for it')
  t.same(collector.spans, [])

  const refusing = await startCollector(t)
  refusing.answer(400)
  const second = await traced(t, 'sqlite', refusing)
  t.equal((await client(second, 'viewer').get('/api/inventory')).status, 200)
  const failures = async () =>
    Number(/^telemetry_spans_total\{outcome="failure"\} (\d+)$/m.exec((await second.inject('/metrics')).body)?.[1])
  for (const deadline = Date.now() + 10_000; (await failures()) === 0 && Date.now() < deadline; ) await sleep(100)
  t.ok((await failures()) > 0, 'and it is counted')
})

t.test('one trace across Redis and a worker process', async (t) => {
  const collector = await startCollector(t)
  const { url, drop } = await freshDatabase()
  t.teardown(() => drop())
  const env = {
    DATABASE_URL: url,
    REDIS_URL: redisUrl(),
    DATA_DIR: temporaryFolder(t),
    OTEL_EXPORTER_OTLP_ENDPOINT: collector.endpoint,
    LOG_LEVEL: 'silent'
  }
  const cli = fileURLToPath(new URL('../cli.js', import.meta.url))
  const worker = spawnNode([cli, 'worker'], { env })
  t.teardown(() => void worker.kill('SIGKILL'))
  const app = await buildApp(t, { dialect: 'postgres', redisUrl: redisUrl(), config: env })
  const manager = client(app, 'manager')
  const instance = ({ resource }: ReceivedSpan) => resource['service.instance.id']
  const abroad = (spans: readonly ReceivedSpan[]) => {
    const request = named(spans, 'POST /api/ai/consumption/derive')
    return spans.find(
      (span) => span.name.startsWith('job ') && request !== undefined && instance(span) !== instance(request)
    )
  }
  // Both processes take jobs from the queue; some time it is the other's turn.
  for (const deadline = Date.now() + 30_000; abroad(collector.spans) === undefined && Date.now() < deadline; ) {
    await manager.post('/api/ai/consumption/derive', {}, { prefer: 'wait=5', traceparent })
    await sleep(100)
  }
  const job = abroad(collector.spans)
  t.equal(job?.traceId, TRACE)
  const started = ['job forecasting.derive', 'transaction', 'POST /api/ai/consumption/derive']
  await collector.until((spans) => path(spans, job).length === started.length)
  t.same(path(collector.spans, job), started)
  const inside = collector.spans.filter((span) => path(collector.spans, span).includes('job forecasting.derive'))
  t.ok(inside.some((span) => span.name.startsWith('select ') && instance(span) === instance(job ?? span)))
  worker.kill('SIGTERM')
})

t.test('what is asked of Redis and of others is part of it, and the trace goes on there', async (t) => {
  const collector = await startCollector(t)
  const app = await traced(t, 'sqlite', collector, { RATE_LIMIT_PER_MINUTE: '1000' }, redisUrl())
  const redis = app.getDecorator<SharedStore>('sharedStore')
  // Nothing is asked of it before its line is open.
  while ((await redis.call((each: Redis) => each.ping())) === undefined) await sleep(5)
  const viewer = client(app, 'viewer')
  for (let n = 0; n < 5; n++) await viewer.get('/api/dashboard/stats', { traceparent })
  await app.close()
  const command = collector.spans.find(({ name }) => name.startsWith('redis '))
  t.match(command, { kind: CLIENT, traceId: TRACE, attributes: { 'db.system.name': 'redis' } })
  t.equal(path(collector.spans, command).at(-1), 'GET /api/dashboard/stats')

  const { url, asked } = await listen(t, (request, response) =>
    response.writeHead(request.url === '/fails' ? 503 : 200).end()
  )
  const telemetry = await openTelemetry({
    endpoint: collector.endpoint,
    serviceName: 'alone',
    version: '0',
    sampler: 'always_on',
    ratio: 1
  })
  telemetry.watch(Fastify())
  const work = { parent: traceparent } as const
  const closed = await freePort()
  await telemetry.span('work', work, async () => (await fetch(`${url}/secret-path`)).text())
  await telemetry.span(
    'work',
    work,
    () => new Promise((resolve) => get(`${url}/fails`, (answer) => resolve(answer.resume())))
  )
  await t.rejects(telemetry.span('work', work, () => fetch(`http://127.0.0.1:${closed}/`)))
  await fetch(url)
  await telemetry.close()
  const spans = collector.spans.filter(({ resource }) => resource['service.name'] === 'alone')
  t.same(spans.map(({ name }) => name).sort(), [
    'GET 127.0.0.1',
    'GET 127.0.0.1',
    'GET 127.0.0.1',
    'work',
    'work',
    'work'
  ])
  const [fetched, got, refused] = spans.filter(({ name }) => name.startsWith('GET'))
  t.match(fetched, { kind: CLIENT, attributes: { 'server.address': '127.0.0.1', 'http.response.status_code': 200 } })
  t.equal(asked[0], `00-${TRACE}-${fetched?.spanId}-01`)
  t.match(got, { attributes: { 'http.response.status_code': 503 } })
  t.match(refused, { status: 2, attributes: { 'error.type': 'ECONNREFUSED' } })
  t.same(asked.slice(1), [undefined, undefined], 'outside of a trace nobody is told of one')
  t.notMatch(JSON.stringify(spans.map(({ attributes }) => attributes)), /secret-path/)
})
