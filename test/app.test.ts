import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Validator } from '@seriousme/openapi-schema-validator'
import Fastify from 'fastify'
import { sql } from 'kysely'
import t from 'tap'
import { app as register } from '../app.js'
import { ConfigError, Environment, loadConfig } from '../plugins/config/index.js'
import { openDatabaseServer } from '../plugins/database.js'
import { UNWATCHED } from '../plugins/dialects/dialect.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { bearer, item, json } from './app-harness.js'
import { buildApp, client } from './helper.js'
import { runToEnd, SERVER, serviceEnvironment, spawnNode, startService, temporaryFolder } from './service-process.js'
import { startPostgres, startRedis } from './services.js'

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
    t.equal(
      statuses.includes('304'),
      headers.includes('If-None-Match'),
      `${name}: what has an ETag may be answered 304`
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
    ['DATABASE_URL', 'postgres://u:can/ary@127.0.0.1:5432/db', true],
    ['DATABASE_URL', 'postgres://u:12/canary@127.0.0.1:5432/db', true],
    ['DATABASE_URL', 'postgres://u:can#ary@127.0.0.1:5432/db', true],
    ['DATABASE_URL', 'postgres://u:canary%ff@127.0.0.1:5432/db', true],
    ['DATABASE_URL', 'postgres://u:canary@127.0.0.1:70000/db', true],
    ['DATABASE_SERVERS', 'east=postgres://u@east/db west=postgres://u:can/ary@127.0.0.1/db', true],
    ['DATABASE_REPLICA_URL', 'postgres://u:can/ary@127.0.0.1:5432/db', true],
    ['MIRROR_URL', 'postgres://u:can/ary@127.0.0.1:5432/db', true],
    ['REDIS_URL', 'redis://:can/ary@127.0.0.1:26379', true],
    ['REDIS_URL', 'redis://:canary%@127.0.0.1:26379', true],
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
    ['DATA_DIR', '/dev/null/data'],
    ['DATA_DIR', '/dev/null'],
    ['DATA_DIR', '/proc/data']
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
    const { code, output } = await runToEnd({ DATA_DIR: folder, PORT: '0', LOG_LEVEL: 'silent', ...env })
    t.equal(code, 2, `exit code of ${Object.keys(env)}`)
    t.match(output, line)
    t.notMatch(output, /canary|\bat .*:\d+/)
  }
})

t.test('a URL of a server that its driver cannot read is refused, and how to write it is told', async (t) => {
  const strong = 'kV3-nY8wRq5tZm2xLc7pHd9sJf4bGu6e'
  const development = { DATA_DIR: temporaryFolder(t) }
  const production = { ...development, NODE_ENV: 'production', JWT_SECRET: strong, SECRETS_KEY: `x${strong}` }
  const how = /; in a password write \/ # \? % @ as %2F %23 %3F %25 %40$/
  const multi = { TENANCY: 'multi', DATABASE_URL: 'postgres://u@h/db' }
  for (const base of [development, production]) {
    for (const wrong of [
      { DATABASE_URL: 'postgres://u:nY8w/Rq5tZm2x@h/db' },
      { DATABASE_URL: 'postgres://u:nY8wRq5tZm2x%ff@h/db' },
      { ...multi, DATABASE_SERVERS: 'east=postgres://u:nY8w/Rq5tZm2x@h/db' },
      { REDIS_URL: 'redis://:nY8wRq5tZm2x%@h' }
    ]) {
      t.throws(() => loadConfig({ ...base, ...wrong }), { message: how }, JSON.stringify(wrong))
    }
    for (const right of [
      { DATABASE_URL: 'postgres://u@/db?host=/socket' },
      { DATABASE_URL: 'postgres://u:nY8w%2FRq5%23tZm2x%25@h:5432/db' },
      // The driver takes it as it stands.
      { DATABASE_URL: 'postgres://u:nY8wRq5%tZm2x@h:5432/db' },
      { DATABASE_URL: 'postgres://h/db?user=me@h' },
      { ...multi, DATABASE_SERVERS: 'east=postgres://u:nY8w%2FRq5tZm2x@[::1]:5433/db' },
      { REDIS_URL: 'rediss://:nY8w%2FRq5tZm2x@h:6379/1' }
    ]) {
      t.doesNotThrow(() => loadConfig({ ...base, ...right }), JSON.stringify(right))
    }
  }
  t.throws(() => loadConfig({ ...production, DATABASE_URL: 'postgres://u:postgres@/db?host=/socket' }), {
    message: /^DATABASE_URL .* password is refused/
  })
})

t.test('a data folder in which nothing can be made or read is told in one line', async (t) => {
  const keys = { JWT_SECRET: 'kV3-nY8wRq5tZm2xLc7pHd9sJf4bGu6e', SECRETS_KEY: 'nY8wRq5tZm2xLc7pHd9sJf4bGu6e-kV3' }
  for (const [name, env] of [
    ['jwt-secret', {}],
    ['secrets-key', {}],
    ['node-id', keys]
  ] as const) {
    const folder = temporaryFolder(t)
    // Who runs the tests may be one whom no mode keeps out.
    mkdirSync(join(folder, name))
    const { code, output } = await runToEnd({ DATA_DIR: folder, PORT: '0', LOG_LEVEL: 'silent', ...env })
    t.equal(code, 2, name)
    t.equal(
      output,
      `DATA_DIR is "${folder}", in which ${name} cannot be written and read (EISDIR); it may be a folder this user can write\n`
    )
  }
})

t.test('where the system chooses the port, the link for the first user leads there', async (t) => {
  const child = spawnNode([SERVER], { env: { DATA_DIR: temporaryFolder(t), PORT: '0', LOG_LEVEL: 'silent' } })
  t.teardown(() => void child.kill('SIGKILL'))
  let port: string | undefined
  for await (const line of createInterface({ input: child.stderr })) {
    port = /^ {2}http:\/\/localhost:(\d+)\/setup#token=/.exec(line)?.[1]
    if (port !== undefined) break
  }
  t.equal((await fetch(`http://127.0.0.1:${port}/health/live`)).status, 200)
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

t.test('a file of SQLite is made for its user alone, and one that is there keeps its mode', async (t) => {
  const folder = temporaryFolder(t)
  const modesAt = async (tenancy: 'single' | 'multi', tenant: string) => {
    const databaseUrl = `sqlite:${join(folder, 'inventory.sqlite')}`
    const server = openDatabaseServer({ databaseUrl, tenancy, poolSize: 1 }, UNWATCHED)
    await server.create(tenant)
    const { migrator } = await server.open(tenant)
    await sql`create table if not exists made (id integer)`.execute(migrator.db)
    const at = tenancy === 'multi' ? join(folder, 'tenants') : folder
    const names = readdirSync(at).filter((name) => name.includes('.sqlite'))
    const modes = Object.fromEntries(names.map((name) => [name, (statSync(join(at, name)).mode & 0o777).toString(8)]))
    await server.close()
    return modes
  }
  const files = (path: string, mode: string) => ({ [path]: mode, [`${path}-wal`]: mode, [`${path}-shm`]: mode })
  t.same(await modesAt('single', 'main'), files('inventory.sqlite', '600'))
  t.same(await modesAt('multi', 'acme'), files('acme.sqlite', '600'))
  chmodSync(join(folder, 'inventory.sqlite'), 0o640)
  t.same(await modesAt('single', 'main'), files('inventory.sqlite', '640'))
})
