import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type AddressInfo, connect } from 'node:net'
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import { Validator } from '@seriousme/openapi-schema-validator'
import Fastify, { type FastifyInstance, type InjectOptions } from 'fastify'
import t from 'tap'
import { app as register } from '../app.js'
import { ConfigError, Environment, loadConfig } from '../plugins/config/index.js'
import type { Auth } from '../plugins/contracts.js'
import { openDatabaseServer } from '../plugins/database.js'
import { UNWATCHED } from '../plugins/dialects/dialect.js'
import { serverOptions } from '../plugins/http/server-options.js'
import type { Role } from '../schemas/common.js'
import { buildApp, client, eachDialect } from './helper.js'
import { runToEnd, serviceEnvironment, startService, temporaryFolder } from './service-process.js'
import { startPostgres, startRedis } from './services.js'

const bearer = (app: FastifyInstance, role: Role = 'admin') => ({
  authorization: `Bearer ${app.getDecorator<Auth>('auth').sign({ subject: 'test', role, tenant: 'main' }, 600)}`
})
const json = { 'content-type': 'application/json' }
const item = (itemCode: string) => ({ itemCode, name: `Item ${itemCode}`, unit: 'each' })

/** Sends bytes as they are and resolves to all that comes back before the server closes, or 2 s pass. */
async function raw(app: FastifyInstance, text: string): Promise<string> {
  const { port }: AddressInfo = addressOf(app)
  const socket = connect(port, '127.0.0.1')
  const chunks: Buffer[] = []
  socket.on('data', (chunk) => void chunks.push(chunk))
  socket.setTimeout(2_000, () => socket.destroy())
  socket.on('error', () => {})
  socket.write(text)
  await once(socket, 'close')
  return Buffer.concat(chunks).toString()
}

function addressOf(app: FastifyInstance): AddressInfo {
  const address = app.server.address()
  if (address === null || typeof address === 'string') throw new Error('the app does not listen')
  return address
}

t.test('every kind of answer wears the security headers, and every refusal is a problem', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite', config: { CORS_ORIGINS: 'https://app.example.org' } })
  const admin = bearer(app)
  const post = (url: string, payload: string, headers = {}): InjectOptions => ({
    method: 'POST',
    url,
    payload,
    headers: { ...admin, ...json, ...headers }
  })
  const get = (url: string, headers = {}): InjectOptions => ({ method: 'GET', url, headers: { ...admin, ...headers } })
  const made = await app.inject(post('/api/inventory', JSON.stringify(item('A-1'))))
  t.equal(made.statusCode, 201)
  const preflight = { origin: 'https://app.example.org', 'access-control-request-method': 'PATCH' }
  const cases: [InjectOptions, number, code?: string][] = [
    [get('/health'), 200],
    [get('/metrics'), 200],
    [get('/openapi.json'), 200],
    [get('/docs/'), 200],
    [get('/api/inventory'), 200],
    [{ ...get('/api/inventory'), method: 'HEAD' }, 200],
    [{ method: 'OPTIONS', url: '/api/inventory/A-1', headers: preflight }, 204],
    [get('/api/inventory/A-1', { 'if-none-match': '*' }), 304],
    [post('/api/inventory', '{"itemCode":'), 400, 'REQUEST_MALFORMED'],
    [post('/api/inventory', ''), 400, 'REQUEST_MALFORMED'],
    [post('/api/inventory', JSON.stringify({ ...item('B'), colour: 'red' })), 400, 'REQUEST_INVALID'],
    [get('/api/inventory/%ff'), 400, 'REQUEST_MALFORMED'],
    [{ method: 'GET', url: '/api/inventory' }, 401, 'AUTH_REQUIRED'],
    [{ ...post('/api/inventory', '{}'), headers: { ...json, ...bearer(app, 'viewer') } }, 403, 'AUTH_FORBIDDEN'],
    [get('/nowhere'), 404, 'ROUTE_NOT_FOUND'],
    [get('/api/inventory/none'), 404, 'INV_ITEM_NOT_FOUND'],
    [{ ...get('/health'), method: 'DELETE' }, 404, 'ROUTE_NOT_FOUND'],
    [post('/api/inventory', JSON.stringify(item('A-1'))), 409],
    [{ ...get('/api/inventory/A-1', { 'if-match': '"old"' }), method: 'DELETE' }, 412, 'PRECONDITION_FAILED'],
    [post('/api/inventory', JSON.stringify({ ...item('B'), name: 'x'.repeat(2 ** 21) })), 413, 'REQUEST_TOO_LARGE'],
    [post('/api/inventory', '<item/>', { 'content-type': 'application/xml' }), 415, 'REQUEST_MEDIA_TYPE']
  ]
  for (const [request, status, code] of cases) {
    const name = `${request.method} ${request.url} → ${status} ${code ?? ''}`
    const answer = await app.inject(request)
    t.equal(answer.statusCode, status, name)
    const { headers } = answer
    t.match(
      headers,
      {
        'x-content-type-options': 'nosniff',
        'x-frame-options': 'DENY',
        'referrer-policy': 'no-referrer',
        'strict-transport-security': /max-age=31536000/,
        'content-security-policy': /default-src '(none|self)'/,
        'x-request-id': /^[0-9a-f-]{36}$/
      },
      `${name} has the security headers`
    )
    t.notOk(headers['x-powered-by'] ?? headers.server, 'and names no software')
    if (status < 400) continue
    const body = answer.json()
    t.match(headers['content-type'], /^application\/problem\+json/, name)
    t.match(body, {
      type: `urn:problem:inventory:${body.code}`,
      title: String,
      status,
      detail: String,
      instance: String(request.url).split('?')[0],
      requestId: headers['x-request-id']
    })
    if (code !== undefined) t.equal(body.code, code, name)
    if (body.code === 'REQUEST_INVALID') t.match(body.errors[0], { path: 'body/colour', message: String })
    t.notMatch(answer.body, /node_modules|\.js:\d|SQLITE|select |\/tmp\//i, 'and tells nothing of the inside')
  }
})

t.test('problems speak English or French, whichever the client weighs more', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite' })
  const cases: [string | undefined, 'en' | 'fr'][] = [
    [undefined, 'en'],
    ['fr', 'fr'],
    ['fr-CA', 'fr'],
    ['FR', 'fr'],
    ['de, fr;q=0.3', 'fr'],
    ['fr;q=0.2, en;q=0.8', 'en'],
    ['en;q=0.2, fr;q=0.8', 'fr'],
    ['fr;q=0', 'en'],
    ['en;q=0, fr;q=0.1', 'fr'],
    ['*', 'en'],
    ['fro', 'en'],
    [',;;q=x', 'en'],
    ['x'.repeat(5_000), 'en']
  ]
  for (const [language, expected] of cases) {
    const headers = { ...bearer(app), ...json, ...(language === undefined ? {} : { 'accept-language': language }) }
    const answer = await app.inject({ method: 'POST', url: '/api/inventory', payload: '{}', headers })
    const { title, errors } = answer.json()
    t.equal(answer.headers['content-language'], expected, `Accept-Language: ${String(language).slice(0, 30)}`)
    t.equal(title, expected === 'fr' ? 'Requête incorrecte' : 'Bad request')
    t.match(errors[0].message, expected === 'fr' ? /propriété/ : /property/)
  }
})

await eachDialect(t, async (t, dialect) => {
  const app = await buildApp(t, { dialect })
  const headers = { ...bearer(app), ...json }
  const line = (fields: string) => `{"type":"receipt","lines":[{"itemCode":"A",${fields}}]}`
  const bodies: [url: string, payload: string, names?: RegExp][] = [
    ['/api/inventory', '{"itemCode":"X","name":"X","unit":"each","unitCost":1e309}', /unitCost/],
    ['/api/inventory', '{"itemCode":"X","name":"X","unit":"each","parLevel":"5"}', /parLevel/],
    ['/api/inventory', '{"itemCode":"X","name":"X","unit":"each","__proto__":{"role":"admin"}}'],
    ['/api/inventory', '{"itemCode":"X","name":"X","unit":"each","constructor":{"prototype":{}}}'],
    ['/api/inventory', '{"itemCode":"X\\u0000","name":"X","unit":"each"}', /itemCode/],
    ['/api/inventory', '{"itemCode":" ","name":"X","unit":"each"}', /itemCode/],
    ['/api/inventory', `{"itemCode":"X","name":"${'x'.repeat(201)}","unit":"each"}`, /name/],
    ['/api/inventory', '{"itemCode":"X","name":"X","unit":"each","extra":1}', /extra/],
    ['/api/inventory', 'null'],
    ['/api/inventory', '[]'],
    ['/api/inventory', '"text"'],
    ['/api/inventory', '['.repeat(100_000)],
    ['/api/inventory', `${'['.repeat(50_000)}${']'.repeat(50_000)}`],
    ['/api/inventory', `{"a":${'{"a":'.repeat(20_000)}1${'}'.repeat(20_001)}`],
    ['/api/movements', line('"quantity":1e309'), /quantity/],
    ['/api/movements', line('"quantity":-1'), /quantity/],
    ['/api/movements', line('"quantity":0'), /quantity/],
    ['/api/movements', line('"quantity":0.0000001'), /quantity/],
    ['/api/movements', line('"quantity":1000000001'), /quantity/],
    ['/api/movements', line('"quantity":1,"qty":1'), /qty/],
    ['/api/movements', '{"type":"receipt","lines":[]}', /lines/],
    ['/api/movements', '{"type":"gift","lines":[{"itemCode":"A","quantity":1}]}', /type/],
    [
      '/api/movements',
      '{"type":"receipt","occurredAt":"yesterday","lines":[{"itemCode":"A","quantity":1}]}',
      /occurredAt/
    ]
  ]
  await app.inject({ method: 'POST', url: '/api/inventory', payload: item('A'), headers })
  for (const [url, payload, names] of bodies) {
    const answer = await app.inject({ method: 'POST', url, payload, headers })
    t.ok([400, 422].includes(answer.statusCode), `${url} ${payload.slice(0, 80)} → ${answer.statusCode}`)
    if (names !== undefined) t.match(answer.body, names, 'and it names the place')
  }
  const queries = [
    'limit=1&limit=2',
    'limit=0',
    'limit=501',
    'limit=1e309',
    'limit=abc',
    'limit=',
    'cursor=none',
    'cursor=%00',
    'sort=price',
    'status=gone',
    'colour=red',
    '__proto__=1',
    'q=',
    `q=${'x'.repeat(201)}`
  ]
  for (const query of queries) {
    const answer = await app.inject({ method: 'GET', url: `/api/inventory?${query}`, headers })
    t.equal(answer.statusCode, 400, `?${query.slice(0, 40)}`)
  }
  for (const path of ['%00', '..%2f..%2fetc%2fpasswd', 'x'.repeat(65), '%F0%28%8C%28', "'; drop table items; --"]) {
    const answer = await app.inject({ method: 'GET', url: `/api/inventory/${path}`, headers })
    t.ok([400, 404].includes(answer.statusCode), `/api/inventory/${path.slice(0, 30)} → ${answer.statusCode}`)
  }
  const all = client(app, 'admin')
  t.same(
    (await all.get('/api/inventory')).body.data.map(({ itemCode }: { itemCode: string }) => itemCode),
    ['A'],
    'nothing of it was stored'
  )
  t.match((await all.get('/api/ledger/verify')).body, { ok: true, moves: 0, transactions: 0 })

  const id = 'trace-42:a'
  const posted = await app.inject({
    method: 'POST',
    url: '/api/movements',
    payload: line('"quantity":5'),
    headers: { ...headers, 'x-request-id': id }
  })
  t.equal(posted.statusCode, 201)
  t.equal(posted.headers['x-request-id'], id, 'a request id is taken')
  t.equal(posted.json().requestId, id, 'and kept on the ledger transaction')
  for (const hostile of ['a b', '<script>', 'x'.repeat(129), '$(id)', "'--"]) {
    const answer = await app.inject({ method: 'GET', url: '/health', headers: { 'x-request-id': hostile } })
    t.match(answer.headers['x-request-id'], /^[0-9a-f-]{36}$/, `${hostile.slice(0, 20)} is replaced`)
  }
})

t.test('what is not valid HTTP is refused at the socket', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite' })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const head = 'POST /api/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n'
  const smuggled = 'GET /health HTTP/1.1\r\nHost: a\r\n\r\n'
  const cases: [name: string, text: string, status: number][] = [
    [
      'Content-Length and Transfer-Encoding',
      `${head}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${smuggled}`,
      400
    ],
    ['two different Content-Lengths', `${head}Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}${smuggled}`, 400],
    ['an unknown Transfer-Encoding', `${head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n${smuggled}`, 400],
    ['a space before the colon', `${head}Content-Length : 2\r\n\r\n{}${smuggled}`, 400],
    ['no Host', 'GET /health HTTP/1.1\r\n\r\n', 400],
    ['no HTTP at all', 'hello\r\n\r\n', 400],
    ['headers of 20 kB', `GET /health HTTP/1.1\r\nHost: a\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, 431]
  ]
  for (const [name, text, status] of cases) {
    const answer = await raw(app, text)
    t.match(answer, new RegExp(`^HTTP/1.1 ${status} `), name)
    t.equal(answer.match(/HTTP\/1\.1 /g)?.length, 1, 'and nothing behind it is served')
    if (!name.startsWith('no Host')) t.match(answer, /application\/problem\+json[\s\S]*"code":"REQUEST_MALFORMED"/)
  }
})

t.test('X-Forwarded-* counts only from a proxy that is trusted', async (t) => {
  const RATE_LIMIT_PER_MINUTE = '3'
  const statuses = async (app: FastifyInstance, remoteAddress: string) => {
    const found: number[] = []
    for (let n = 0; n < 5; n++) {
      const headers = {
        'x-forwarded-for': `198.51.100.${n}`,
        'x-forwarded-host': 'evil.example',
        'x-forwarded-proto': 'https'
      }
      const answer = await app.inject({ url: '/api/inventory', remoteAddress, headers })
      found.push(answer.statusCode)
      if (answer.statusCode !== 429) continue
      t.match(answer.headers, { 'retry-after': /^\d+$/, 'x-content-type-options': 'nosniff' })
      t.match(answer.json(), { code: 'RATE_LIMITED', retryAfterSeconds: Number })
    }
    return found
  }
  const limited = [401, 401, 401, 429, 429]
  const plain = await buildApp(t, { dialect: 'sqlite', config: { RATE_LIMIT_PER_MINUTE } })
  t.same(await statuses(plain, '192.0.2.1'), limited, 'unset: the address is the socket’s')
  t.equal(
    (await plain.inject({ url: '/health', remoteAddress: '192.0.2.1' })).statusCode,
    200,
    'health is never limited'
  )
  const behind = await buildApp(t, {
    dialect: 'sqlite',
    config: { RATE_LIMIT_PER_MINUTE, TRUST_PROXY: '10.0.0.0/8,192.0.2.7' }
  })
  t.same(await statuses(behind, '192.0.2.7'), [401, 401, 401, 401, 401], 'a trusted proxy tells who asks')
  t.same(await statuses(behind, '203.0.113.9'), limited, 'anybody else does not')
})

t.test('compression, HEAD, CORS', async (t) => {
  const app = await buildApp(t, {
    dialect: 'sqlite',
    config: { CORS_ORIGINS: 'https://app.example.org,https://b.example.org' }
  })
  const admin = client(app, 'admin')
  for (let n = 0; n < 30; n++) await admin.post('/api/inventory', item(`C-${n}`))
  const url = '/api/inventory'
  const get = (accept: string, target = url) =>
    app.inject({ url: target, headers: { ...bearer(app), ...(accept === '' ? {} : { 'accept-encoding': accept }) } })
  const plain = (await get('')).rawPayload
  t.ok(plain.length > 1024)
  const expected: [accept: string, encoding: string | undefined][] = [
    ['br', 'br'],
    ['gzip', 'gzip'],
    ['gzip, br', 'br'],
    ['br;q=0.1, gzip;q=0.9', 'gzip'],
    ['gzip;q=0, br;q=0', undefined],
    ['identity', undefined],
    ['zstd', undefined]
  ]
  const decode = { br: brotliDecompressSync, gzip: gunzipSync, identity: (body: Buffer) => body }
  for (const target of [url, '/metrics', '/openapi.json']) {
    for (const [accept, encoding] of expected) {
      const answer = await get(accept, target)
      t.equal(answer.statusCode, 200)
      t.equal(answer.headers['content-encoding'], encoding, `${target}, Accept-Encoding: ${accept}`)
      t.match(answer.headers.vary, /accept-encoding/i)
      const open = decode[encoding === 'br' || encoding === 'gzip' ? encoding : 'identity'](answer.rawPayload)
      if (target === url) t.ok(open.equals(plain), 'the same bytes come out')
    }
  }
  const cached = await app.inject({
    url,
    headers: { ...bearer(app), 'if-none-match': String((await get('')).headers.etag) }
  })
  t.match(cached, { statusCode: 304, body: '' })

  const head = await app.inject({ method: 'HEAD', url, headers: bearer(app) })
  t.match(head, { statusCode: 200, body: '' })
  t.equal(Number(head.headers['content-length']), plain.length, 'HEAD tells the length of what GET would send')
  t.equal(head.headers.etag, (await get('')).headers.etag)

  for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE']) {
    const ask = (origin: string) =>
      app.inject({
        method: 'OPTIONS',
        url: `${url}/C-1`,
        headers: {
          origin,
          'access-control-request-method': method,
          'access-control-request-headers': 'authorization, idempotency-key, if-match'
        }
      })
    const allowed = await ask('https://b.example.org')
    t.equal(allowed.headers['access-control-allow-origin'], 'https://b.example.org')
    t.match(allowed.headers['access-control-allow-methods'], new RegExp(`\\b${method}\\b`), `${method} is allowed`)
    t.match(allowed.headers['access-control-allow-headers'], /idempotency-key/)
    for (const origin of [
      'https://evil.example',
      'null',
      'https://app.example.org.evil.example',
      'http://app.example.org'
    ]) {
      t.notOk((await ask(origin)).headers['access-control-allow-origin'], `${origin} is not`)
    }
  }
  const answered = await app.inject({ url, headers: { ...bearer(app), origin: 'https://app.example.org' } })
  t.match(answered.headers, { 'access-control-allow-origin': 'https://app.example.org', vary: /origin/i })
  t.notOk(answered.headers['access-control-allow-credentials'])
})

t.test('health: one probe for many callers, down without the database, degraded without Redis', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite' })
  const probes = async () => {
    const text = (await app.inject('/metrics')).body
    return Number(/db_query_duration_seconds_count\{[^}]*operation="other"[^}]*\} (\d+)/.exec(text)?.[1])
  }
  const before = await probes()
  for (let n = 0; n < 1_000; n++) await app.inject('/health')
  const asked = (await probes()) - before
  // Each /metrics asks once more, for db_up.
  t.ok(asked > 0 && asked < 20, `1,000 calls asked the database ${asked} times`)
  t.match((await app.inject('/health')).json(), {
    status: 'ok',
    version: /^\d/,
    uptimeSeconds: Number,
    checks: { database: { status: 'ok' } }
  })
  t.equal((await app.inject('/health')).headers['cache-control'], 'no-store')

  const [postgres, redis] = await Promise.all([startPostgres(), startRedis()])
  t.teardown(() => Promise.all([postgres.stop(), redis.stop()]))
  const full = await buildApp(t, { dialect: 'postgres', redisUrl: redis.url, config: { DATABASE_URL: postgres.url } })
  const health = async (path = '/health') => {
    const answer = await full.inject(path)
    return { code: answer.statusCode, ...answer.json() }
  }
  const becomes = async (status: string) => {
    for (let n = 0; n < 60; n++) {
      if ((await health()).status === status) return
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  await becomes('ok')
  t.match(await health(), { code: 200, status: 'ok', checks: { database: { status: 'ok' }, cache: { status: 'ok' } } })
  await redis.kill()
  await becomes('degraded')
  t.match(await health(), {
    code: 200,
    status: 'degraded',
    checks: { database: { status: 'ok' }, cache: { status: 'degraded' } }
  })
  t.match(await health('/health/ready'), { code: 200 })
  await redis.restart()
  await becomes('ok')
  t.match(await health(), { code: 200, status: 'ok' })
  await postgres.kill()
  await becomes('down')
  t.match(await health(), { code: 503, status: 'down', checks: { database: { status: 'down' } } })
  t.match(await health('/health/ready'), { code: 503 })
  t.match(
    await health('/health/live'),
    { code: 200, status: 'ok' },
    'the process itself is alive: no reason to restart it'
  )
  t.match((await full.inject('/metrics')).body, /^db_up\{dialect="postgres(ql)?"\} 0$/m)
  const refused = await full.inject({ url: '/api/inventory', headers: bearer(full) })
  t.match(refused, { statusCode: 503, headers: { 'retry-after': /\d/ } })
  await postgres.restart()
  await becomes('ok')
  t.match(await health(), { code: 200, status: 'ok' })
  t.equal((await full.inject({ url: '/api/inventory', headers: bearer(full) })).statusCode, 200, 'and it serves again')
})

t.test('metrics: the format, the names, the token, and series that do not grow with what is asked', async (t) => {
  const METRICS_TOKEN = 'scrape-me-if-you-can'
  const app = await buildApp(t, { dialect: 'sqlite', config: { METRICS_TOKEN } })
  const admin = client(app, 'admin')
  await admin.post('/api/inventory', item('A'))
  await admin.post('/api/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 3 }] })
  await admin.get('/api/inventory')
  for (const authorization of [undefined, 'Bearer wrong', METRICS_TOKEN, `Bearer ${METRICS_TOKEN} `]) {
    const headers = authorization === undefined ? {} : { authorization }
    t.equal((await app.inject({ url: '/metrics', headers })).statusCode, 401, `${authorization} is refused`)
  }
  const scrape = async (accept = '') => {
    const answer = await app.inject({ url: '/metrics', headers: { authorization: `Bearer ${METRICS_TOKEN}`, accept } })
    t.equal(answer.statusCode, 200)
    return answer
  }
  const text = (await scrape()).body
  const types = new Map([...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name = '', type = '']) => [name, type]))
  const helps = new Set([...text.matchAll(/^# HELP (\S+) .+$/gm)].map(([, name = '']) => name))
  const samples = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'))
  const seen = new Set<string>()
  for (const line of samples) {
    const [, series = '', name = '', value = ''] =
      /^(([a-zA-Z_:][\w:]*)(?:\{(?:[a-zA-Z_]\w*="(?:[^"\\]|\\.)*",?)*\})?) (\S+)$/.exec(line) ?? []
    if (series === '' || Number.isNaN(Number(value.replace('+Inf', 'Infinity'))) || seen.has(series))
      t.fail(`bad or repeated: ${line}`)
    seen.add(series)
    const family = types.has(name) ? name : name.replace(/_(bucket|sum|count)$/, '')
    if (!types.has(family) || !helps.has(family)) t.fail(`${name} has no TYPE or HELP`)
  }
  t.ok(types.size > 30 && seen.size > 100, `${types.size} metrics, ${seen.size} series`)
  for (const [name, type] of types) {
    if ((type === 'counter') !== name.endsWith('_total'))
      t.fail(`${name} is a ${type}: only counters end in _total, and all do`)
    if (/_(milliseconds|ms|minutes|kb|mb|percent)(_|$)/.test(name)) t.fail(`${name} is not in a base unit`)
  }
  const promtool = spawnSync('promtool', ['check', 'metrics'], { input: text, encoding: 'utf8' })
  if (promtool.error === undefined) {
    t.equal(`${promtool.stdout}${promtool.stderr}`, '', 'promtool check metrics has nothing to say')
    t.equal(promtool.status, 0)
  } else t.comment('promtool is not on PATH: only the rules above were checked')

  const open = await scrape('application/openmetrics-text; version=1.0.0')
  t.match(open.headers['content-type'], /^application\/openmetrics-text; version=1\.0\.0/)
  t.match(open.body, /\n# EOF\n$/)
  t.notMatch((await scrape('text/plain')).body, /# EOF/)

  const count = async () => (await scrape()).body.split('\n').filter((line) => /^http_/.test(line)).length
  await app.inject('/nowhere')
  const before = await count()
  for (let n = 0; n < 300; n++) {
    await app.inject(`/nowhere/${n}?${n}`)
    await app.inject({ url: `/api/inventory/none-${n}`, headers: bearer(app) })
  }
  await app.inject({ url: '/api/inventory/none', headers: bearer(app) })
  const grown = (await count()) - before
  t.ok(grown < 60, `600 different URLs added ${grown} series, those of two routes`)
})

t.test('the OpenAPI document is valid, complete, and shown at /docs without the outside world', async (t) => {
  const service = Fastify(serverOptions({ logLevel: 'silent' }))
  t.teardown(() => service.close())
  const routes: { method: string; url: string; role: unknown; hidden: boolean }[] = []
  service.addHook('onRoute', ({ method, url, config, schema }) => {
    const role = config !== undefined && 'role' in config ? config.role : undefined
    if (method !== 'HEAD' && method !== 'OPTIONS')
      routes.push({ method: String(method), url, role, hidden: schema?.hide === true })
  })
  await register(service, loadConfig({ DATA_DIR: temporaryFolder(t), LOG_LEVEL: 'silent' }))
  await service.ready()
  const document = (await service.inject('/openapi.json')).json()
  const { valid, errors } = await new Validator().validate(document)
  t.ok(valid, `it is valid OpenAPI: ${JSON.stringify(errors)}`)
  t.match(document, {
    openapi: /^3\.1\./,
    info: { title: String, version: String, license: { name: 'Apache-2.0' } },
    servers: [{ url: '/' }]
  })

  const ids = new Set<string>()
  for (const { method, url, role, hidden } of routes) {
    const name = `${method} ${url}`
    if (hidden || url.startsWith('/docs')) continue
    const path = url.replace(/:(\w+)/g, '{$1}').replace(/(.)\/$/, '$1')
    const operation = document.paths[path]?.[method.toLowerCase()]
    if (operation === undefined) {
      t.fail(`${name} is not in the document`)
      continue
    }
    t.ok(operation.operationId && !ids.has(operation.operationId), `${name} has an operationId of its own`)
    ids.add(operation.operationId)
    t.ok(operation.summary && operation.tags.length === 1, `${name} has a summary and a tag`)
    t.ok(role !== undefined, `${name} declares who may call it`)
    t.same(operation.security, role === 'public' ? [] : undefined, `${name}: only a public route does without a token`)
    const statuses = Object.keys(operation.responses)
    t.ok(
      statuses.some((status) => /^2/.test(status)) && statuses.some((status) => /^4/.test(status)),
      `${name} answers 2xx and 4xx`
    )
    t.ok(operation.responses['4XX'].content['application/problem+json'], `${name} declares problems`)
    const headers = (operation.parameters ?? [])
      .filter((each: { in: string }) => each.in === 'header')
      .map(({ name }: { name: string }) => name)
    t.equal(
      headers.includes('Idempotency-Key'),
      method !== 'GET' && role !== 'public',
      `${name}: writes take an Idempotency-Key`
    )
  }
  t.ok(ids.size > 50)
  for (const url of ['/health', '/health/live', '/health/ready', '/metrics']) {
    t.ok(document.paths[url]?.get, `${url} is documented`)
  }

  const page = await service.inject('/docs/')
  t.equal(page.statusCode, 200)
  const policy = String(page.headers['content-security-policy'])
  t.match(policy, /default-src 'none'/)
  t.notMatch(policy, /https?:|\*/, 'the page may load and call nothing outside')
  const loaded = [...page.body.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, url = '']) => url)
  t.ok(
    loaded.some((url) => url.endsWith('.js')),
    'it has a script'
  )
  for (const url of loaded) {
    t.notMatch(url, /^(https?:)?\/\//)
    t.equal((await service.inject(new URL(url, 'http://localhost/docs/').pathname)).statusCode, 200, url)
  }
})

t.test('a bad configuration ends the program with one line', async (t) => {
  const folder = temporaryFolder(t)
  const cases: [variable: string, value: string, secret?: boolean][] = [
    ['PORT', 'http'],
    ['PORT', '65536'],
    ['PORT', '-1'],
    ['PORT', '80.5'],
    ['NODE_ENV', 'prod'],
    ['TENANCY', 'many'],
    ['DATABASE_URL', 'mysql://root:hunter2-canary@db/x', true],
    ['REDIS_URL', 'http://:hunter2-canary@cache', true],
    ['JWT_SECRET', 'short-canary', true],
    ['JWT_SECRET', `password-canary${'x'.repeat(30)}`, true],
    ['JWT_SECRET', 'a'.repeat(40), true],
    ['JWT_KEYS', 'k1', true],
    ['JWT_KEYS', `k1:${'b'.repeat(40)}`, true],
    ['SECRETS_KEY', 'short-canary', true],
    ['SECRETS_KEYS', `k1:${'b'.repeat(40)}`, true],
    ['PUBLIC_URL', 'stock.example.org'],
    ['SECOND_FACTOR', 'never'],
    ['METRICS_TOKEN', 'canary', true],
    ['POSTGRES_POOL_SIZE', '0'],
    ['RATE_LIMIT_PER_MINUTE', 'often'],
    ['CORS_ORIGINS', '*'],
    ['TRUST_PROXY', 'everyone'],
    ['CACHE', 'yes'],
    ['WORKER_THREADS', '0'],
    ['LOG_LEVEL', 'loud'],
    ['DATA_DIR', '/dev/null/data']
  ]
  for (const [variable, value, secret = false] of cases) {
    let message = ''
    try {
      loadConfig({ DATA_DIR: folder, [variable]: value })
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error
      message = error.message
    }
    t.match(message, new RegExp(`^${variable} is .+; it may be .+`), `${variable}=${value.slice(0, 20)}: ${message}`)
    t.notMatch(message, /\n/)
    if (secret) t.notMatch(message, value, 'and does not show it')
    else t.match(message, value, 'and shows it')
  }
  t.throws(() => loadConfig({ DATA_DIR: folder, NODE_ENV: 'production' }), /^JWT_SECRET is not set/)
  const production = { DATA_DIR: folder, NODE_ENV: 'production', JWT_SECRET: 'kV3-nY8wRq5tZm2xLc7pHd9sJf4bGu6e' }
  t.throws(() => loadConfig(production), /^SECRETS_KEY is not set/)
  t.equal(loadConfig({ DATA_DIR: folder, PORT: '' }).PORT, 8083, 'an empty variable is one that is not set')

  for (const [env, line] of [
    [{ PORT: 'http' }, /^PORT is "http"; it may be a port[^\n]*\n$/],
    [{ JWT_SECRET: 'canary' }, /^JWT_SECRET is [^\n]*\(not shown\)[^\n]*\n$/],
    [{ DATABASE_URL: 'postgres://me:hunter2-canary@127.0.0.1:1/none' }, /^DATABASE_URL [^\n]*\n$/],
    [{ HOST: '203.0.113.1', PORT: '0' }, /^HOST is "203.0.113.1"[^\n]*\n$/]
  ] as const) {
    const { code, output } = await runToEnd({ DATA_DIR: folder, LOG_LEVEL: 'silent', ...env })
    t.equal(code, 2, `exit code of ${Object.keys(env)}`)
    t.match(output, line)
    t.notMatch(output, /canary|\bat .*:\d+/)
  }
})

t.test('.env.example lists every variable of the configuration and no other', async (t) => {
  const text = readFileSync(new URL('../../.env.example', import.meta.url), 'utf8')
  const listed = [...text.matchAll(/^#?\s?([A-Z][A-Z0-9_]+)=/gm)].map(([, name]) => name)
  t.same(listed.sort(), Object.keys(Environment.properties).sort())
  const example = Object.fromEntries(
    [...text.matchAll(/^([A-Z][A-Z0-9_]+)=(.*)$/gm)].map(([, name, value]) => [name, value])
  )
  t.doesNotThrow(() => loadConfig({ ...example, DATA_DIR: temporaryFolder(t) }), 'and starts as it stands')
})

t.test('no token, password or key reaches the log, at any level', async (t) => {
  const METRICS_TOKEN = 'metrics-canary-0123456789'
  const JWT_SECRET = 'kV3-nY8wRq5tZm2xLc7pHd9sJf4bGu6e'
  const env = await serviceEnvironment(t, { LOG_LEVEL: 'trace', METRICS_TOKEN, JWT_SECRET })
  const { url, token, output, end } = await startService(t, env)
  // Read to the end: an answer that nobody reads keeps its connection open, and the server waits for it.
  const send = async (path: string, init: RequestInit = {}) => {
    const answer = await fetch(`${url}${path}`, init)
    return { status: answer.status, text: await answer.text() }
  }
  const authorization = `Bearer ${token}`
  const body = (value: object) => ({ method: 'POST', headers: { ...json, authorization }, body: JSON.stringify(value) })
  const user = { username: 'ada', role: 'staff', password: 'canary-horse-battery-staple' }
  t.equal((await send('/api/users', body(user))).status, 201)
  const login = await send('/api/auth/login', body({ username: 'ada', password: user.password }))
  t.equal(login.status, 200)
  const { accessToken }: { accessToken: string } = JSON.parse(login.text)
  t.equal((await send('/api/auth/login', body({ username: 'ada', password: 'canary-wrong' }))).status, 401)
  t.equal((await send('/api/users', body({ ...user, password: 'canary', extra: 1 }))).status, 400)
  t.equal((await send('/api/users', { ...body({}), body: '{"password":"canary-broken' })).status, 400)
  t.equal(
    (await send('/api/inventory', { headers: { authorization: 'Bearer canary.canary.canary', cookie: 'sid=canary' } }))
      .status,
    401
  )
  t.equal((await send('/metrics', { headers: { authorization: `Bearer ${METRICS_TOKEN}` } })).status, 200)
  t.equal(await end('SIGTERM'), 0)
  t.match(output(), /Server listening/, 'there is a log')
  for (const secret of ['canary', token, accessToken, JWT_SECRET]) {
    t.notOk(output().includes(secret), `${secret.slice(0, 8)}… is not in it`)
  }
})

t.test('a database of another kind is refused without showing its URL', async (t) => {
  const open = () =>
    openDatabaseServer({ databaseUrl: 'mysql://me:canary@host/db', tenancy: 'single', poolSize: 1 }, UNWATCHED)
  t.throws(open, { message: /^(?!.*canary).*DATABASE_URL.*sqlite:<path>/ })
})
