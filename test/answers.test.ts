import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import Fastify, { type FastifyInstance, type FastifyRequest, type InjectOptions } from 'fastify'
import t from 'tap'
import { ItemNotFound } from '../modules/inventory/errors.js'
import { type Answers, type Auth, access, type EnterModule } from '../plugins/contracts.js'
import core from '../plugins/core.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { bearer, item, json, raw } from './app-harness.js'
import { buildApp, client, eachDialect } from './helper.js'

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
  const latin1 = Buffer.from(JSON.stringify({ ...item('B'), name: 'Crème' }), 'latin1')
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
    [{ ...post('/api/inventory', ''), payload: latin1 }, 400, 'REQUEST_MALFORMED'],
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
    [post('/api/inventory', '<item/>', { 'content-type': 'application/xml' }), 415, 'REQUEST_MEDIA_TYPE'],
    [post('/api/inventory', JSON.stringify(item('B')), { 'content-type': 'text/plain' }), 415, 'REQUEST_MEDIA_TYPE']
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
    t.notMatch(answer.body, /node_modules|\.js:\d|SQLITE|select |\/tmp\/|\/shm\//i, 'and tells nothing of the inside')
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

t.test('a module reads JSON in UTF-8 alone, and its host what it likes', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(core, { databaseUrl: `sqlite:${t.testdir()}/bodies.sqlite` })
  const enterModule = app.getDecorator<EnterModule>('enterModule')
  await app.register(async (module) => {
    enterModule(module, { authorize: async () => {} })
    module.post('/module', { schema: { body: {} } }, async ({ body }) => ({ body }))
  })
  app.post('/host', async ({ body }) => ({ body }))
  const ask = async (url: string, type: string, payload: string | Buffer) => {
    const { statusCode, body } = await app.inject({ method: 'POST', url, payload, headers: { 'content-type': type } })
    return `${statusCode} ${body}`
  }
  const latin1 = Buffer.from('"\xe8"', 'latin1')
  t.equal(await ask('/module', 'application/json', '"è"'), '200 {"body":"è"}')
  t.equal(await ask('/module', 'application/json', '\ufeff"è"'), '200 {"body":"è"}', 'with a byte order mark')
  t.match(await ask('/module', 'application/json', latin1), /^400 .*REQUEST_MALFORMED/)
  t.match(await ask('/module', 'application/json', '{"__proto__":1}'), /^400 .*REQUEST_MALFORMED/)
  t.match(await ask('/module', 'text/plain', '"è"'), /^415 .*REQUEST_MEDIA_TYPE/)
  t.equal(await ask('/host', 'text/plain', '"è"'), '200 {"body":"\\"è\\""}')
  t.equal(await ask('/host', 'application/json', latin1), '200 {"body":"\ufffd"}')
})

t.test('what a handler needs is begun while the token is checked, and shown to nobody who is refused', async (t) => {
  const app = Fastify({ ...serverOptions({ logLevel: 'silent' }) })
  await app.register(core, {
    databaseUrl: `sqlite:${t.testdir()}/ahead.sqlite`,
    jwtKeys: [{ id: 'k1', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }]
  })
  const auth = app.getDecorator<Auth>('auth')
  const answers = app.getDecorator<Answers>('answers')
  const told: string[] = []
  let revoked = false
  auth.refuseWhen(async () => {
    await new Promise(setImmediate)
    told.push('checked')
    return revoked
  })
  const load = async ({ url }: FastifyRequest) => {
    told.push('read')
    if (url === '/none') throw new ItemNotFound({ itemCode: 'none' })
    return `{"n":${told.length}}`
  }
  await app.register(async (plugin) => {
    app.getDecorator<EnterModule>('enterModule')(plugin, { authorize: auth.authorize })
    const ahead = (request: FastifyRequest) => answers.ahead(request, 'test', request.url, () => load(request))
    for (const [url, role] of [
      ['/one', 'viewer'],
      ['/none', 'viewer'],
      ['/two', 'manager']
    ] as const) {
      plugin.get(url, { schema: { tags: ['test'] }, config: access(role, { ahead }) }, async (request, reply) =>
        answers.read(request, reply, 'test', url, () => load(request))
      )
    }
  })
  t.teardown(() => app.close())
  const cases: [url: string, revoked: boolean, status: number, told: string[], body: RegExp][] = [
    ['/one', true, 401, ['read', 'checked'], /AUTH_REQUIRED/],
    ['/none', true, 401, ['read', 'checked'], /AUTH_REQUIRED/],
    ['/none', false, 404, ['read', 'checked'], /INV_ITEM_NOT_FOUND/],
    ['/two', false, 403, ['checked'], /AUTH_FORBIDDEN/],
    ['/two', true, 401, ['checked'], /AUTH_REQUIRED/],
    // The first of these cases has read it, and nothing has changed since.
    ['/one', false, 200, ['checked'], /^\{"n":1\}$/]
  ]
  for (const [url, ended, status, expected, body] of cases) {
    revoked = ended
    told.length = 0
    const answer = await app.inject({ url, headers: bearer(app, 'viewer') })
    const name = `${url}${ended ? ', revoked' : ''} → ${status}`
    t.equal(answer.statusCode, status, name)
    t.strictSame(told, expected, `${name}: once, and before the check has ended`)
    t.match(answer.body, body, name)
  }
})

await eachDialect(t, async (t, dialect) => {
  const app = await buildApp(t, { dialect })
  const answers = app.getDecorator<Answers>('answers')
  const { ahead } = answers
  let begun: string[] = []
  answers.ahead = (request, namespace, key, load) => {
    begun.push(key)
    ahead(request, namespace, key, load)
  }
  const ask = async (url: string) => {
    begun = []
    const { statusCode } = await app.inject({ url, headers: bearer(app, 'viewer') })
    return { statusCode, begun }
  }
  t.test('a forecast begins while the database is asked for the token, if the request is sound', async (t) => {
    const sqlite = dialect === 'sqlite'
    // What has been committed while it starts is read once.
    await ask('/api/inventory')
    t.strictSame(await ask('/api/ai/forecast/none'), { statusCode: 404, begun: sqlite ? [] : ['forecast::none'] })
    t.strictSame(await ask('/api/ai/forecast/none?frequency=week'), { statusCode: 404, begun: [] })
    t.strictSame(await ask('/api/ai/forecast/%00'), { statusCode: 400, begun: [] })
    t.strictSame(await ask(`/api/ai/forecast/${'x'.repeat(65)}`), { statusCode: 400, begun: [] })
  })
})
