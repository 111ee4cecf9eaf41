import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance, InjectOptions } from 'fastify'
import t from 'tap'
import type { Auth } from '../../plugins/contracts.js'
import { buildApp } from '../helper.js'
import { temporaryFolder } from '../service-process.js'
import { startRedis } from '../services.js'
import { openService } from './service.js'

/** What the service says of itself, and what it does with what HTTP lets a client claim. */

const admin = (app: FastifyInstance) => ({
  authorization: `Bearer ${app.getDecorator<Auth>('auth').sign({ subject: 'admin', role: 'admin', tenant: 'main' }, 600)}`
})
const SECURITY = {
  'content-security-policy': "default-src 'none';frame-ancestors 'none'",
  'referrer-policy': 'no-referrer',
  'strict-transport-security': 'max-age=31536000; includeSubDomains',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY'
}

/** Sends bytes as they are; what comes back before the server closes. */
async function raw(app: FastifyInstance, text: string): Promise<string> {
  const address = app.server.address()
  if (address === null || typeof address === 'string') throw new Error('the app does not listen')
  const socket = connect(address.port, '127.0.0.1')
  let answer = ''
  socket.on('data', (chunk) => {
    answer += chunk.toString()
  })
  socket.on('error', () => {})
  socket.setTimeout(2_000, () => socket.destroy())
  socket.write(text)
  await once(socket, 'close')
  return answer
}

const plain = await buildApp(t, { dialect: 'sqlite' })
await plain.listen({ port: 0, host: '127.0.0.1' })

t.test('V3.4.1 the headers are on what never reaches a route', async (t) => {
  const close = 'Host: a\r\nConnection: close\r\n'
  const cases: [text: string, status: number][] = [
    ['hello\r\n\r\n', 400],
    [`GET /health HTTP/1.1\r\n${close}X: ${'x'.repeat(20_000)}\r\n\r\n`, 431],
    [`GET /nowhere HTTP/1.1\r\n${close}\r\n`, 404],
    [`GET /api/inventory/%ff HTTP/1.1\r\n${close}\r\n`, 400],
    [`TRACE / HTTP/1.1\r\n${close}\r\n`, 405],
    [`OPTIONS * HTTP/1.1\r\n${close}\r\n`, 405],
    [`GET /metrics HTTP/1.1\r\n${close}\r\n`, 200]
  ]
  for (const [text, status] of cases) {
    const answer = await raw(plain, text)
    t.match(answer, new RegExp(`^HTTP/1.1 ${status} `), text.slice(0, 40))
    for (const [name, value] of Object.entries(SECURITY)) {
      if (!answer.includes(`${name}: ${value}\r\n`)) t.fail(`${text.slice(0, 40)} goes without ${name}`)
    }
    t.match(answer, /content-type: [^\r]*; charset=utf-8/, 'V4.1.1: and its text names its encoding')
  }
})

t.test('V3.4.3 the reference page runs its own scripts and no other', async (t) => {
  const page = await plain.inject('/docs/')
  const policy = String(page.headers['content-security-policy'])
  t.match(policy, /default-src 'none'/)
  t.match(policy, /frame-ancestors 'none'/)
  const scripts = policy.split('; ').find((rule) => rule.startsWith('script-src'))
  t.notMatch(scripts, /unsafe|http|\*|data:/)
  const inline = [...page.body.matchAll(/<script([^>]*)>([\s\S]*?)<\/script>/g)].filter(
    ([, attributes = '']) => !attributes.includes('src=')
  )
  t.equal(inline.length, 1)
  for (const [, , script = ''] of inline) {
    const hash = createHash('sha256').update(script).digest('base64')
    t.ok(scripts?.includes(`'sha256-${hash}'`), 'the one in the page is known by its hash')
  }
  t.notMatch(page.body, /\son\w+="/, 'and no attribute is a script')
})

t.test('V13.4.2 a failure tells its request id and nothing of its cause', async (t) => {
  const SECRET = 'postgres://me:canary@host/db'
  const { app } = await openService(t, {
    dialect: 'sqlite',
    plant: async (app) => {
      app.get('/boom', { config: { role: 'public' } }, () => {
        throw Object.assign(new Error(SECRET), { detail: SECRET, statusCode: 500, canary: SECRET })
      })
      app.get('/odd', { config: { role: 'public' } }, () => {
        throw SECRET
      })
    }
  })
  for (const url of ['/boom', '/odd']) {
    const answer = await app.inject({ url, headers: { 'x-request-id': 'trace-1' } })
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), { code: 'INTERNAL_ERROR', requestId: 'trace-1' })
    t.notMatch(answer.body + JSON.stringify(answer.headers), /canary|node_modules|\.js:|at /)
  }
})

t.test('V13.4.4 TRACE and other methods of no route answer 405', async (t) => {
  for (const path of ['/', '/health', '/api/inventory']) {
    const answer = await raw(plain, `TRACE ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nCookie: canary\r\n\r\n`)
    t.match(answer, /^HTTP\/1.1 405 [\s\S]*\nallow: GET, HEAD/)
    t.notMatch(answer, /canary/, 'and nothing is echoed')
  }
})

t.test('V13.4.5 metrics and the reference can be closed', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite', config: { METRICS_TOKEN: 'scrape-me-if-you-can', DOCS: 'off' } })
  for (const url of ['/docs', '/docs/', '/docs/openapi.json', '/openapi.json'])
    t.equal((await app.inject({ url, headers: admin(app) })).statusCode, 404, url)
  t.equal((await app.inject('/metrics')).statusCode, 401)
  t.equal((await app.inject({ url: '/metrics', headers: admin(app) })).statusCode, 401, 'no user’s token opens them')
})

t.test('Peers: no link and no redirect is made of what a client claims', async (t) => {
  const forged = {
    host: 'evil.example',
    'x-forwarded-host': 'evil.example',
    'x-forwarded-proto': 'gopher',
    forwarded: 'host=evil.example',
    'x-original-url': '/api/users',
    'x-rewrite-url': '/api/users',
    'x-http-method-override': 'DELETE'
  }
  const made = await plain.inject({
    method: 'POST',
    url: '/api/inventory',
    headers: { ...admin(plain), ...forged },
    payload: { itemCode: 'A', name: 'A', unit: 'each' }
  })
  t.match(made, { statusCode: 201, headers: { location: '/api/inventory/A' } })
  const job = await plain.inject({
    method: 'POST',
    url: '/api/ai/consumption/derive',
    headers: { ...admin(plain), ...forged }
  })
  t.match(job, { statusCode: 202, headers: { location: /^\/api\/jobs\/[0-9a-f-]{36}$/ } })
  t.equal(
    (await plain.inject({ url: '/api/inventory/A', headers: { ...admin(plain), ...forged } })).statusCode,
    200,
    'no header rewrites the URL or the method'
  )
  for (const url of [
    '/docs',
    '/docs?url=//evil.example',
    '//evil.example/docs',
    '/docs//evil.example',
    '/\\evil.example',
    '/openapi.json'
  ]) {
    const answer = await plain.inject({ url, headers: forged })
    const { location } = answer.headers
    t.ok(location === undefined || /^\/docs\/(\?|$)/.test(location), `${url} → ${answer.statusCode} ${location}`)
    t.notMatch(answer.body.slice(0, 10_000).replaceAll(url, ''), /evil\.example\/api/)
  }
})

t.test('Peers: what is stored is never answered as a page', async (t) => {
  const name = '<script>alert(1)</script>'
  const payload = { itemCode: name, name, unit: 'each' }
  t.equal(
    (await plain.inject({ method: 'POST', url: '/api/inventory', headers: admin(plain), payload })).statusCode,
    201
  )
  for (const url of [
    '/api/inventory',
    `/api/inventory/${encodeURIComponent(name)}`,
    `/api/inventory/${encodeURIComponent(name)}x`,
    '/api/export/items',
    '/api/export/items?format=ndjson'
  ]) {
    const { headers } = await plain.inject({ url, headers: { ...admin(plain), accept: 'text/html' } })
    t.match(headers['content-type'], /^(application\/(problem\+)?json|text\/csv|application\/x-ndjson);/, url)
    t.match(headers, {
      'x-content-type-options': 'nosniff',
      'content-security-policy': SECURITY['content-security-policy']
    })
  }
  t.match(
    (await plain.inject({ url: '/api/export/items', headers: admin(plain) })).headers['content-disposition'],
    /^attachment/,
    'and a file is saved, not shown'
  )
})

const LIMITED = 'sign-in:3,export:3,import:3,report:3,training:3,write:3,read:3'
/** A request of each class. */
const OF_CLASS: Record<string, InjectOptions> = {
  'sign-in': { method: 'POST', url: '/api/auth/login', payload: { username: 'a', password: 'b' } },
  export: { url: '/api/export/items' },
  import: { method: 'POST', url: '/api/import/items', payload: 'a', headers: { 'content-type': 'text/csv' } },
  report: { url: '/api/ledger/verify' },
  training: { method: 'POST', url: '/api/ai/consumption/detect-anomalies' },
  write: { method: 'POST', url: '/api/inventory', payload: {} },
  read: { url: '/api/inventory' }
}

const userOf = (app: FastifyInstance, subject: string) => ({
  authorization: `Bearer ${app.getDecorator<Auth>('auth').sign({ subject, role: 'admin', tenant: 'main' }, 600)}`
})

t.test('V2.4.1 each class of requests has a limit of its own, for each user', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite', config: { RATE_LIMITS: LIMITED } })
  for (const [name, request] of Object.entries(OF_CLASS)) {
    const ask = (subject: string, n = 0) => {
      // Nothing that a client chooses is part of who it is.
      const forged = {
        'x-forwarded-for': `198.51.100.${n}`,
        'x-real-ip': `198.51.100.${n}`,
        'user-agent': String(n),
        'x-request-id': `r${n}`
      }
      const payload = name === 'sign-in' ? { username: `a${n}`, password: 'b' } : request.payload
      return app.inject({
        ...request,
        ...(payload === undefined ? {} : { payload }),
        headers: { ...request.headers, ...userOf(app, subject), ...forged }
      })
    }
    const answers = []
    for (let n = 0; n < 6; n++) answers.push(await ask('ada', n))
    t.same(
      answers.map(({ statusCode }) => statusCode === 429),
      [false, false, false, true, true, true],
      name
    )
    t.match(answers[5], { headers: { 'retry-after': /^([1-9]|[1-5]\d|60)$/, 'x-content-type-options': 'nosniff' } })
    t.match(answers[5]?.json(), { code: 'RATE_LIMITED', retryAfterSeconds: Number })
    if (name !== 'sign-in') t.not((await ask('bob')).statusCode, 429, 'another user has a limit of his own')
  }
  t.match((await app.inject('/metrics')).body, /http_rate_limited_requests_total\{limiter="export"\} 3/)
  const other = await app.inject({ ...OF_CLASS['sign-in'], remoteAddress: '192.0.2.9' })
  t.not(other.statusCode, 429, 'another address has one too')
  for (let n = 0; n < 5; n++) {
    const answer = await app.inject({ ...OF_CLASS['sign-in'], remoteAddress: `2001:db8:0:1::${n}` })
    t.equal(answer.statusCode === 429, n >= 3, 'a network of IPv6 is one')
  }
  const reads = await Promise.all(
    Array.from({ length: 800 }, () => plain.inject({ url: '/api/inventory', headers: admin(plain) }))
  )
  t.ok(
    reads.every(({ statusCode }) => statusCode === 200),
    'reads and writes have none unless one is set'
  )
})

t.test('V2.4.1 nodes count together in Redis, and each alone while it is away', async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.stop())
  const DATABASE_URL = `sqlite:${temporaryFolder(t)}/shared.sqlite`
  const config = { DATABASE_URL, RATE_LIMITS: 'export:4' }
  const nodes = [
    await buildApp(t, { dialect: 'sqlite', redisUrl: redis.url, config }),
    await buildApp(t, { dialect: 'sqlite', redisUrl: redis.url, config })
  ]
  const ask = async (n: number, subject: string) => {
    const app = nodes[n % 2]
    if (app === undefined) throw new Error('two nodes')
    const startedAt = performance.now()
    const { statusCode } = await app.inject({ url: '/api/export/items', headers: userOf(app, subject) })
    return { limited: statusCode === 429, milliseconds: performance.now() - startedAt }
  }
  for (const app of nodes) await becomes(app, 'ok')
  const together = []
  for (let n = 0; n < 6; n++) together.push((await ask(n, 'ada')).limited)
  t.same(together, [false, false, false, false, true, true])
  redis.freeze()
  const alone = []
  for (let n = 0; n < 12; n++) alone.push(await ask(n, 'bob'))
  t.same(
    alone.map(({ limited }) => limited),
    [...Array(8).fill(false), ...Array(4).fill(true)],
    'frozen: four of each node'
  )
  const slow = alone.filter(({ milliseconds }) => milliseconds > 250)
  t.ok(slow.length <= 2, `each node waits once at most: ${alone.map(({ milliseconds }) => milliseconds.toFixed(0))} ms`)
  redis.thaw()
  await redis.kill()
  t.notOk((await ask(0, 'eve')).limited, 'dead: served')
})

async function becomes(app: FastifyInstance, status: string): Promise<void> {
  for (let n = 0; n < 100; n++) {
    if ((await app.inject('/health')).json().status === status) return
    await sleep(50)
  }
  throw new Error(`health does not become ${status}`)
}
