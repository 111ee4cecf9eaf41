import { readFileSync } from 'node:fs'
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import Sqlite from 'better-sqlite3'
import fc from 'fast-check'
import Fastify from 'fastify'
import { sql } from 'kysely'
import pg from 'pg'
import { Registry } from 'prom-client'
import { Webhook as Verifier } from 'standardwebhooks'
import t, { type Test } from 'tap'
import webhooks, { type WebhooksOptions } from '../modules/webhooks/index.js'
import { createWebhookMetrics } from '../modules/webhooks/metrics.js'
import { isBroken, isSpent, retryAfter, retryDelay } from '../modules/webhooks/retry.js'
import { secretsOf } from '../modules/webhooks/secrets.js'
import { createSender } from '../modules/webhooks/sender.js'
import { newSecret, signedHeaders } from '../modules/webhooks/signature.js'
import { createDeliveryStore, createWebhookStore } from '../modules/webhooks/store.js'
import { createTargetPolicy, isPublic } from '../modules/webhooks/targets.js'
import { tidy } from '../modules/webhooks/upkeep.js'
import type { Tenant } from '../plugins/contracts.js'
import core, { type Tenants } from '../plugins/core.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { createSeal } from '../plugins/seal.js'
import { StockMoved } from '../schemas/inventory.js'
import { PUBLIC_TOPICS, WebhookDisabled } from '../schemas/webhooks.js'
import { buildApp, client, type Dialect, eachDialect } from './helper.js'
import { serviceEnvironment, startService, temporaryFolder } from './service-process.js'
import { freshDatabase, listening } from './services.js'

const SECRETS_KEYS = [{ id: 'default', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }] as const
const HOUR = 3_600_000
const NEVER = new AbortController().signal

interface Received {
  id: string
  headers: Record<string, string>
  body: string
  path: string
}
type Answer = (response: ServerResponse, received: Received, count: number) => unknown

/** A receiver on a real socket; it answers 204 unless told otherwise. */
async function receiver(t: Test) {
  const requests: Received[] = []
  const state: { answer: Answer } = { answer: (response) => response.writeHead(204).end() }
  const { url, port, close } = await listening((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (text) => {
      body += text
    })
    request.on('end', () => {
      const headers = flat(request.headers)
      const received = { id: headers['webhook-id'] ?? '', headers, body, path: request.url ?? '' }
      requests.push(received)
      state.answer(response, received, requests.length)
    })
  })
  t.teardown(close)
  return { url: `${url}/in`, port, requests, state }
}
const flat = (headers: IncomingHttpHeaders) =>
  Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)]))
const status =
  (code: number, headers = {}): Answer =>
  (response) =>
    response.writeHead(code, headers).end()

async function until<R>(what: string, find: () => R | undefined | false | Promise<R | undefined | false>): Promise<R> {
  const deadline = Date.now() + 8_000
  for (;;) {
    const found = await find()
    if (found !== undefined && found !== false) return found
    if (Date.now() > deadline) throw new Error(`it never came: ${what}`)
    await sleep(10)
  }
}

/** One node: the core and webhooks alone, with a clock that can be put forward. */
async function node(t: Test, databaseUrl: string, options: Partial<WebhooksOptions> = {}) {
  const clock = { ahead: 0 }
  const app = Fastify(serverOptions({ logLevel: process.env.LOG_LEVEL ?? 'silent' }))
  await app.register(core, { databaseUrl, secretsKeys: [...SECRETS_KEYS] })
  await app.register(webhooks, {
    prefix: '/api',
    authorize: async () => {},
    allowedHosts: ['127.0.0.1', 'hooks.intranet'],
    now: () => Date.now() + clock.ahead,
    pollSeconds: 0.05,
    ...options
  })
  await app.ready()
  t.teardown(() => app.close())
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  const call = async (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', url: string, payload?: object, headers = {}) => {
    const answer = await app.inject({ method, url: `/api${url}`, headers, ...(payload ? { payload } : {}) })
    return { status: answer.statusCode, body: answer.json(), headers: answer.headers, text: answer.body }
  }
  const create = async (url: string, topics: string[] = [StockMoved.topic]) => {
    const { status, body } = await call('POST', '/webhooks', { url, topics })
    if (status !== 201) throw new Error(JSON.stringify(body))
    return body
  }
  const metric = async (line: string) => {
    const text = await app.getDecorator<Registry>('registry').metrics()
    return Number(
      text
        .split('\n')
        .find((each) => each.startsWith(`${line} `))
        ?.split(' ')
        .at(-1)
    )
  }
  const publish = (...itemCodes: string[]) =>
    tenant.transact(async (tx) => {
      for (const code of itemCodes) {
        await tx.publish(StockMoved.topic, { itemCodes: [code], fromDay: '2026-01-05', toDay: '2026-01-05' })
      }
    })
  const deliveries = async (id: string, query = '') =>
    (await call('GET', `/webhooks/${id}/deliveries${query}`)).body.data
  return { app, tenant, call, create, publish, deliveries, metric, clock }
}
const itemOf = ({ body }: Received): string => JSON.parse(body).data.itemCodes[0]

/** Everything that the database holds, as text. */
async function dump({ db, dialect, id }: Tenant): Promise<string> {
  const names =
    dialect === 'sqlite'
      ? sql<{ name: string }>`select name from sqlite_master where type = 'table'`
      : sql<{
          name: string
        }>`select table_name as name from information_schema.tables where table_schema = ${`tenant_${id}`}`
  let text = ''
  for (const { name } of (await names.execute(db)).rows) {
    text += JSON.stringify((await sql`select * from ${sql.table(name)}`.execute(db)).rows)
  }
  return text
}

async function databaseFor(t: Test, dialect: Dialect): Promise<string> {
  if (dialect === 'sqlite') return `sqlite:${temporaryFolder(t)}/main.sqlite`
  const database = await freshDatabase()
  t.teardown(() => database.drop())
  return database.url
}

t.test('signatures: what the public library of the standard accepts', async (t) => {
  const [old, fresh] = [newSecret(), newSecret()]
  const now = Math.floor(Date.now() / 1000)
  const headers = signedHeaders([fresh, old], 'msg_1', now, '{"é":1}')
  t.same(new Verifier(old).verify('{"é":1}', headers), { é: 1 })
  t.same(new Verifier(fresh).verify('{"é":1}', headers), { é: 1 })
  const refused: [string, Record<string, string>, string][] = [
    ['{"é":2}', headers, 'another body'],
    ['{"é":1}', { ...headers, 'webhook-id': 'msg_2' }, 'another id'],
    ['{"é":1}', { ...headers, 'webhook-timestamp': String(now + 1) }, 'another time'],
    ['{"é":1}', signedHeaders([fresh], 'msg_1', now - 600, '{"é":1}'), 'too old']
  ]
  for (const [body, changed, what] of refused) t.throws(() => new Verifier(fresh).verify(body, changed), what)
  t.throws(() => new Verifier(newSecret()).verify('{"é":1}', headers), 'another secret')
  // The example of the specification's own test suite.
  t.equal(
    signedHeaders(
      ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'],
      'msg_p5jXN8AQM9LWM0D4loKWxJek',
      1614265330,
      '{"test": 2432232314}'
    )['webhook-signature'],
    'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
  )
})

t.test('every topic is documented', async (t) => {
  const document = readFileSync(new URL('../../docs/webhooks.md', import.meta.url), 'utf8')
  for (const topic of PUBLIC_TOPICS) t.match(document, new RegExp(`^\\| \`${topic}\``, 'm'), topic)
})

t.test('retries: longer each time, never all at once, and not for ever', async (t) => {
  const whole = [10, 30, 90, 270, 810, 2430, 7290, 21_600, 21_600].map((seconds) => seconds * 1000)
  t.same(
    whole.map((_, n) => [retryDelay(n + 1, 0), retryDelay(n + 1, 1)]),
    whole.map((each) => [each / 2, each])
  )
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 1000 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.nat(),
      (n, chance, asked) => {
        const delay = retryDelay(n, chance, asked)
        return delay >= 5_000 && delay <= 6 * HOUR && delay >= Math.min(asked, 6 * HOUR)
      }
    )
  )
  t.same([isSpent(11, 5, 10), isSpent(12, 5, 10), isSpent(1, 10, 10)], [false, true, true])
  const day = 24 * HOUR
  t.same(
    [isBroken(9, 0, 30 * day), isBroken(10, 0, 3 * day - 1), isBroken(10, 0, 3 * day)],
    [false, false, true],
    'often and long, not one of both'
  )
  const at = Date.UTC(2026, 0, 5)
  const headers: [string | undefined, number][] = [
    [undefined, 0],
    ['120', 120_000],
    ['Mon, 05 Jan 2026 00:02:00 GMT', 120_000],
    ['Mon, 05 Jan 2015 00:02:00 GMT', 0],
    ['soon', 0],
    ['-5', 0]
  ]
  for (const [header, expected] of headers) t.equal(retryAfter(header, at), expected, String(header))
})

t.test('V1.3.6 webhook URLs: a corpus of addresses that are refused, and of those that are not', async (t) => {
  const policy = createTargetPolicy([])
  const refused: [string, string][] = [
    ...['0.0.0.0', '0.1.2.3', '10.0.0.1', '10.255.255.255', '100.64.0.1', '100.100.100.200', '100.127.255.255'],
    ...['127.0.0.1', '127.1.2.3', '127.255.255.255', '168.63.129.16', '169.254.0.1', '169.254.169.254'],
    ...['172.16.0.1', '172.31.255.255', '192.0.0.1', '192.0.0.192', '192.0.2.1', '192.31.196.1', '192.52.193.1'],
    ...['192.88.99.1', '192.168.0.1', '192.168.255.255', '192.175.48.1', '198.18.0.1', '198.19.255.255'],
    ...['198.51.100.7', '203.0.113.9', '224.0.0.1', '239.255.255.250', '240.0.0.1', '255.255.255.255']
  ].map((address) => [`https://${address}/`, 'address'])
  refused.push(
    ...[
      ...['::', '::1', '::2', '::127.0.0.1', '::ffff:127.0.0.1', '::ffff:7f00:1', '::ffff:10.0.0.1', '::ffff:8.8.8.8'],
      ...[
        '::ffff:0:127.0.0.1',
        '64:ff9b::7f00:1',
        '64:ff9b::8.8.8.8',
        '64:ff9b:1::1',
        '100::1',
        '2001::1',
        '2001:2::1'
      ],
      ...[
        '2001:0:4136:e378:8000:63bf:3fff:fdd2',
        '2001:10::1',
        '2001:20::1',
        '2001:db8::1',
        '2002:7f00:1::',
        '3fff::1'
      ],
      ...['2002:808:808::1', '2620:4f:8000::1', '5f00::1', 'fc00::1', 'fd00:ec2::254', 'fdff::1', 'fe80::1', 'fec0::1'],
      ...['febf::1', 'ff02::1', 'ff05::2', '4000::1', '8000::1', 'e000::1']
    ].map((address): [string, string] => {
      // As a URL spells it; another spelling is refused for that alone.
      return [`https://${new URL(`https://[${address}]/`).hostname}/`, 'address']
    })
  )
  const otherwise: [string, string][] = [
    ['https://2130706433/', 'host'],
    ['https://0x7f000001/', 'host'],
    ['https://0x7f.1/', 'host'],
    ['https://0177.0.0.1/', 'host'],
    ['https://127.1/', 'host'],
    ['https://134744072/', 'host'],
    ['https://8.8.8.8./', 'host'],
    ['https://①②⑦.⓪.⓪.①/', 'host'],
    ['https://127。0。0。1/', 'host'],
    ['https://%31%32%37.0.0.1/', 'host'],
    ['https://[0:0:0:0:0:0:0:1]/', 'host'],
    ['https://[::ffff:127.0.0.1]/', 'host'],
    ['https://localhost/', 'host'],
    ['https://LOCALHOST:8443/', 'host'],
    ['https://a.localhost./', 'host'],
    ['http://example.org/', 'scheme'],
    ['ftp://example.org/', 'scheme'],
    ['file:///etc/passwd', 'scheme'],
    ['gopher://127.0.0.1:6379/_FLUSHALL', 'scheme'],
    ['javascript:alert(1)', 'scheme'],
    ['https://user:password@example.org/', 'credentials'],
    ['https://user@example.org/', 'credentials'],
    ['https://example.org@127.0.0.1/', 'credentials'],
    ['https://example.org/#here', 'fragment'],
    ['https://example.org/#', 'fragment'],
    ['https://example.org:22/', 'port'],
    ['https://example.org:25/', 'port'],
    ['https://example.org:0/', 'port'],
    ['https://example.org:99999/', 'syntax'],
    ['https://', 'syntax'],
    ['https://[::1/', 'syntax'],
    ['https://[fe80::1%25eth0]/', 'syntax'],
    ['https://256.1.1.1/', 'syntax'],
    ['//example.org/', 'syntax'],
    ['', 'syntax']
  ]
  const all = [...refused, ...otherwise]
  t.ok(all.length >= 60, `${all.length} refused`)
  for (const [url, reason] of all) t.equal(policy.refusalOf(url), reason, url)
  const accepted = [
    ...['https://example.org/', 'https://EXAMPLE.org/in?key=1', 'https://example.org:8443/', 'https://bücher.example/'],
    ...[
      'https://8.8.8.8/',
      'https://172.15.0.1/',
      'https://172.32.0.1/',
      'https://100.63.0.1/',
      'https://100.128.0.1/'
    ],
    ...['https://[2606:4700::1111]/', 'https://[2a00:1450:4001::200e]:443/', 'https://223.255.255.254/']
  ]
  for (const url of accepted) t.equal(policy.refusalOf(url), undefined, url)
  for (const text of ['', 'localhost', 'fe80::1%eth0', '127.0.0.1:80', '0x7f.1']) t.notOk(isPublic(text), text)

  const intranet = createTargetPolicy(['10.1.0.0/16', 'Hooks.Intranet', '::1', 'fd12::/16'])
  const own: [string, string | undefined][] = [
    ['http://10.1.2.3:8080/', undefined],
    ['http://10.2.0.1/', 'scheme'],
    ['https://10.2.0.1/', 'address'],
    ['http://hooks.intranet/', undefined],
    ['http://other.intranet/', 'scheme'],
    ['http://evil-hooks.intranet/', 'scheme'],
    ['https://[::1]/', undefined],
    ['http://[fd12::5]/', undefined],
    ['http://[fd13::5]/', 'scheme'],
    ['http://169.254.169.254/', 'scheme'],
    ['ftp://10.1.2.3/', 'scheme']
  ]
  for (const [url, reason] of own) t.equal(intranet.refusalOf(url), reason, url)
  t.same(
    [
      intranet.mayReach('10.9.9.9', 'hooks.intranet'),
      intranet.mayReach('10.1.9.9', 'other.example'),
      intranet.mayReach('10.9.9.9', 'other.example'),
      intranet.mayReach('8.8.8.8', 'other.example')
    ],
    [true, true, false, true]
  )
  for (const bad of ['10.0.0.0/33', '10.0.0.0/x', 'a b', 'name/8', ''])
    t.throws(() => createTargetPolicy([bad]), RangeError, bad)
})

t.test('V1.3.6 what a name stands for: rebinding, mixed answers, redirects, slow and endless answers', async (t) => {
  const { url, port, requests, state } = await receiver(t)
  const policy = createTargetPolicy(['127.0.0.1'])
  const attempt = async (answers: readonly string[][], target = `https://rebind.example:${port}/`) => {
    let asked = 0
    const sender = createSender({ policy, resolve: async () => answers[Math.min(asked++, answers.length - 1)] ?? [] })
    return { ...(await sender.send(target, {}, '{}', NEVER)), asked }
  }
  t.match(
    await attempt([['127.0.0.1'], ['169.254.169.254']]),
    { outcome: 'network', asked: 1, detail: /SSL|EPROTO|WRONG_VERSION/ },
    'asked once, and connected to that: what answers there speaks no TLS'
  )
  t.match(await attempt([['169.254.169.254'], ['127.0.0.1']]), { outcome: 'refused', detail: 'address', asked: 1 })
  t.match(await attempt([['8.8.8.8', '10.0.0.1']]), { outcome: 'refused', detail: 'address' }, 'one private is enough')
  t.match(await attempt([['::ffff:169.254.169.254']]), { outcome: 'refused', detail: 'address' })
  t.match(await attempt([['not an address']]), { outcome: 'refused' })
  t.match(await attempt([[]]), { outcome: 'network', detail: 'ENOTFOUND' })
  t.match(await attempt([['8.8.8.8']], 'http://plain.example/'), { outcome: 'refused', detail: 'scheme', asked: 0 })
  t.match(await attempt([['8.8.8.8']], 'https://10.0.0.1/'), { outcome: 'refused', detail: 'address', asked: 0 })
  t.equal(requests.length, 0, 'none of these has reached anybody')

  const listed = createTargetPolicy(['hooks.intranet'])
  const byName = createSender({ policy: listed, resolve: async () => ['127.0.0.1'] })
  t.match(await byName.send(`http://hooks.intranet:${port}/in`, {}, '{}', NEVER), {
    outcome: 'success',
    httpStatus: 204
  })
  t.match(requests.at(-1)?.headers, { host: `hooks.intranet:${port}`, connection: 'close' })

  const send = (timeoutMilliseconds = 2_000) => createSender({ policy, timeoutMilliseconds }).send(url, {}, '{}', NEVER)
  for (const code of [301, 302, 303, 307, 308]) {
    const before = requests.length
    state.answer = status(code, { location: `${url}/elsewhere` })
    t.match(await send(), { outcome: 'status', httpStatus: code })
    t.equal(requests.length, before + 1, `${code} is not followed`)
  }
  let written = 0
  state.answer = (response) => {
    response.writeHead(200)
    const more = () => {
      if (response.destroyed) return
      written += 65_536
      response.write(Buffer.alloc(65_536), () => setImmediate(more))
    }
    more()
  }
  t.match(await send(), { outcome: 'success', httpStatus: 200 }, 'an endless answer is cut off')
  t.ok(written < 20_000_000, `${written} bytes`)
  state.answer = (response) => response.writeHead(200, { 'x-long': 'x'.repeat(30_000) }).end()
  t.match(await send(), { outcome: 'network', detail: 'HPE_HEADER_OVERFLOW' })
  state.answer = () => {}
  const slow = await send(60)
  t.match(slow, { outcome: 'timeout', httpStatus: null })
  t.ok(slow.durationMilliseconds < 1_000)
  state.answer = (response) => response.writeHead(200).write('drip')
  t.match(await send(100), { outcome: 'success' }, 'who has said 200 has taken it')
  state.answer = (response) => response.destroy()
  t.match(await send(), { outcome: 'network', detail: 'ECONNRESET' })
  const never = createSender({ policy, timeoutMilliseconds: 50, resolve: () => new Promise(() => {}) })
  t.match(await never.send('https://slow-dns.example/', {}, '{}', NEVER), { outcome: 'timeout' })
  const stop = new AbortController()
  stop.abort(new Error('closing'))
  await t.rejects(createSender({ policy }).send(url, {}, '{}', stop.signal), /closing/)
})

t.test('the whole service: a movement becomes a message', async (t) => {
  const { url, requests, state } = await receiver(t)
  const app = await buildApp(t, { dialect: 'sqlite', config: { WEBHOOK_ALLOWED_HOSTS: '127.0.0.1' } })
  const admin = client(app, 'admin')
  const made = await admin.post('/api/webhooks', { url, topics: [StockMoved.topic], description: 'ERP' })
  t.match(made, { status: 201, headers: { 'cache-control': 'no-store' }, body: { active: true, failingSince: null } })
  state.answer = (response, _received, count) => response.writeHead(count === 1 ? 500 : 200).end('text')
  await admin.post('/api/inventory', { itemCode: 'A', name: 'Nails', unit: 'each' })
  await admin.post('/api/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 7 }] })
  const [received] = await until('a message', () => requests.length > 0 && requests)
  t.match(new Verifier(made.body.secret).verify(received?.body ?? '', received?.headers ?? {}), {
    type: StockMoved.topic,
    timestamp: /^\d{4}-\d\d-\d\dT[\d:.]+Z$/,
    data: { itemCodes: ['A'] }
  })
  t.match(received?.headers, { 'content-type': 'application/json', 'user-agent': /inventory/ })
  const home = `/api/webhooks/${made.body.id}`
  const [delivery] = await until('its failure', async () => {
    const { body } = await admin.get(`${home}/deliveries?status=pending`)
    return body.data[0]?.attempts === 1 && Date.parse(body.data[0].nextAttemptAt) < Date.now() + 11_000 && body.data
  })
  t.match((await admin.get(`${home}/deliveries/${delivery.id}`)).body, {
    messageId: received?.id,
    body: received?.body,
    log: [{ outcome: 'status', httpStatus: 500, detail: null }]
  })
  t.match((await admin.get(home)).body.failingSince, /^\d{4}/)
  t.match((await admin.post(`${home}/test`)).body, { topic: 'webhooks.ping', status: 'pending' })
  await until('the ping', () => requests.some(({ body }) => JSON.parse(body).type === 'webhooks.ping'))
  await until('its success', async () => (await admin.get(home)).body.failingSince === null)
  for (const role of ['manager', 'staff', 'viewer'] as const) {
    t.equal((await client(app, role).get('/api/webhooks')).status, 403, role)
    t.equal((await client(app, role).post(`${home}/test`)).status, 403, role)
  }
  t.match(await admin.get(`${home}/deliveries?status=lost`), { status: 400 })
  const [entry] = (await admin.get('/api/audit?action=webhook.create')).body.data
  t.match(entry, { object: { type: 'webhook', id: made.body.id }, outcome: 'success' }, 'the audit trail knows')
  t.notMatch(JSON.stringify(entry), /whsec_|\/in"/, 'of the URL its host alone, and no secret')
})

await eachDialect(t, async (t, dialect) => {
  const shared = await node(t, await databaseFor(t, dialect))

  await t.test('webhooks: create, read, change, delete; the secret is shown once and sealed at rest', async (t) => {
    const { tenant, call } = shared
    const input = { url: 'https://example.org/in', topics: [StockMoved.topic] }
    const made = await call('POST', '/webhooks', input, { 'idempotency-key': 'one' })
    t.match(made, {
      status: 201,
      body: { url: input.url, topics: input.topics, description: null, disabledReason: null }
    })
    t.match(made.body.secret, /^whsec_[A-Za-z0-9+/]{43}=$/)
    const again = await call('POST', '/webhooks', input, { 'idempotency-key': 'one' })
    t.equal(again.text, made.text, 'a retry answers the same bytes')
    const { secret, ...shown } = made.body
    const home = `/webhooks/${shown.id}`
    t.equal(made.headers.location, `/api${home}`)
    const read = await call('GET', home)
    t.same(read.body, shown, 'and nobody else sees it')
    t.same((await call('GET', '/webhooks')).body, { data: [shown], page: { limit: 50, nextCursor: null } })
    const rotated = await call('POST', `${home}/rotate-secret`, undefined, { 'idempotency-key': 'two' })
    t.match(rotated, { status: 200, body: { previousSecretUntil: /^\d{4}/ } })
    t.not(rotated.body.secret, secret)
    const held = await dump(tenant)
    t.match(held, /v1\.default\./)
    for (const each of [secret, rotated.body.secret]) t.notOk(held.includes(each.slice(6)), 'not in the database')

    t.match(await call('PATCH', home, { active: false }, { 'if-match': String(read.headers.etag) }), {
      status: 412,
      body: { code: 'PRECONDITION_FAILED' }
    })
    t.match(await call('PATCH', home, { active: false, description: 'off' }), {
      status: 200,
      body: { active: false, disabledReason: 'manual', description: 'off' }
    })
    t.match(await call('POST', `${home}/test`), { status: 409, body: { code: 'WEBHOOK_INACTIVE' } })
    t.match(await call('POST', `${home}/replay`), { status: 409 })
    t.match(await call('PATCH', home, { active: true, topics: [WebhookDisabled.topic] }), {
      status: 200,
      body: { active: true, disabledReason: null, topics: [WebhookDisabled.topic], url: input.url }
    })
    const none = '00000000-0000-7000-8000-000000000000'
    const refusals: [Awaited<ReturnType<typeof call>>, number, string][] = [
      [await call('POST', '/webhooks', { ...input, url: 'https://127.0.0.2/' }), 422, 'WEBHOOK_TARGET_REFUSED'],
      [await call('PATCH', home, { url: 'http://example.org/' }), 422, 'WEBHOOK_TARGET_REFUSED'],
      [await call('POST', '/webhooks', { ...input, url: 'https://exa mple.org/' }), 400, 'REQUEST_INVALID'],
      [await call('POST', '/webhooks', { ...input, url: 'https:\\\\127.0.0.1/' }), 400, 'REQUEST_INVALID'],
      [await call('POST', '/webhooks', { ...input, topics: ['forecasting.barrier'] }), 400, 'REQUEST_INVALID'],
      [await call('POST', '/webhooks', { ...input, secret: 'mine' }), 400, 'REQUEST_INVALID'],
      [await call('PATCH', home, {}), 400, 'REQUEST_INVALID'],
      [await call('POST', `${home}/rotate-secret`, { overlapSeconds: 1e9 }), 400, 'REQUEST_INVALID'],
      [await call('GET', `/webhooks/${none}`), 404, 'WEBHOOK_NOT_FOUND'],
      [await call('GET', `/webhooks/${none}/deliveries`), 404, 'WEBHOOK_NOT_FOUND'],
      [await call('GET', `${home}/deliveries/${none}`), 404, 'WEBHOOK_DELIVERY_NOT_FOUND'],
      [await call('POST', `${home}/deliveries/${none}/replay`), 404, 'WEBHOOK_DELIVERY_NOT_FOUND'],
      [await call('POST', `/webhooks/${none}/rotate-secret`), 404, 'WEBHOOK_NOT_FOUND']
    ]
    for (const [{ status, body }, expected, code] of refusals)
      t.match({ status, body }, { status: expected, body: { code } })
    t.match(await call('DELETE', home), { status: 200, body: { id: shown.id } })
    t.equal((await call('DELETE', home)).status, 404)
    await tenant.transact(async ({ db }) => {
      const store = createWebhookStore(db)
      const at = Date.now()
      const rest = { previous_secret: null, previous_until: null, failures: 0, failing_since: null, description: null }
      for (let n = 0; n < 100; n++) {
        const id = `00000000-0000-7000-8000-${String(n).padStart(12, '0')}`
        const row = { id, url: input.url, topics: '[]', secret: '', created_at: at, updated_at: at, ...rest }
        await store.insert({ ...row, disabled_reason: 'manual' })
      }
    })
    t.match(await call('POST', '/webhooks', input), {
      status: 409,
      body: { code: 'WEBHOOK_LIMIT_REACHED', maximum: 100 }
    })
    const first = (await call('GET', '/webhooks?limit=60')).body
    const second = (await call('GET', `/webhooks?limit=60&cursor=${first.page.nextCursor}`)).body
    t.equal(new Set([...first.data, ...second.data].map(({ id }) => id)).size, 100)
    await tenant.transact(({ db }) => sql`delete from ${sql.table('webhooks')}`.execute(db))
  })

  await t.test('deliveries: retried under one id, given up, replayed, and a broken webhook is taken out', async (t) => {
    const { url, requests, state } = await receiver(t)
    const { call, create, publish, deliveries, metric, clock } = shared
    const webhook = await create(url)
    const home = `/webhooks/${webhook.id}`
    const watcher = await receiver(t)
    await create(watcher.url, [WebhookDisabled.topic])

    state.answer = status(503, { 'retry-after': '7200' })
    await publish('A')
    const sent = (count: number) => until(`${count} requests`, () => requests.length >= count && requests)
    await sent(1)
    const postponed = await until('postponed', async () => {
      const [one] = await deliveries(webhook.id)
      return Date.parse(one?.nextAttemptAt) > Date.now() + HOUR && one
    })
    t.match(postponed, { status: 'pending', attempts: 1 }, 'Retry-After counts when it is longer')
    t.match(await call('POST', `${home}/deliveries/${postponed.id}/replay`), {
      status: 409,
      body: { code: 'WEBHOOK_DELIVERY_PENDING' }
    })
    state.answer = status(500)
    for (let n = 2; n <= 12; n++) {
      clock.ahead += 6 * HOUR
      await sent(n)
      await until('noted', async () => (await call('GET', `${home}/deliveries/${postponed.id}`)).body.log.length === n)
    }
    const [dead] = await until('given up', async () => {
      const list = await deliveries(webhook.id, '?status=dead')
      return list.length > 0 && list
    })
    t.match(dead, { id: postponed.id, attempts: 12, nextAttemptAt: null })
    t.equal(requests.length, 12)
    t.same([...new Set(requests.map(({ id }) => id))], [dead.messageId], 'one id over all attempts')
    const times = requests.map(({ headers }) => Number(headers['webhook-timestamp']))
    t.equal(new Set(times).size, 12, 'each signed anew')
    t.equal(await metric('webhook_deliveries_dead_total'), 1)
    t.equal(await metric('webhook_attempts_total{outcome="status"}'), 12)
    t.equal((await call('GET', `${home}/deliveries/${dead.id}`)).body.log.length, 12)
    t.match((await call('GET', home)).body, { active: true, failingSince: /^\d{4}/ }, 'not yet three days')

    clock.ahead += 8 * HOUR
    await publish('B')
    await sent(13)
    const gone = await until('taken out', async () => {
      const { body } = await call('GET', home)
      return body.active === false && body
    })
    t.match(gone, { disabledReason: 'failing' })
    t.equal(await metric('webhooks_disabled_total{reason="failing"}'), 1)
    await until('the event', () => watcher.requests.length > 0)
    t.match(JSON.parse(watcher.requests[0]?.body ?? ''), {
      type: WebhookDisabled.topic,
      data: { webhookId: webhook.id, reason: 'failing', failures: 13 }
    })
    await publish('C')
    await sleep(120)
    t.equal(requests.length, 13, 'nothing goes to one that is out of service')

    state.answer = status(204)
    await call('PATCH', home, { active: true })
    t.same((await call('POST', `${home}/replay`)).body, { replayed: 1 })
    await until('A again', () => requests.slice(13).some(({ id }) => id === dead.messageId))
    clock.ahead += HOUR
    await until('B', async () => (await deliveries(webhook.id, '?status=delivered')).length === 2)
    t.same(requests.slice(13).map(itemOf).sort(), ['A', 'B'], 'and C was never meant for it')
    t.match((await call('GET', home)).body, { failingSince: null })
    await call('POST', `${home}/deliveries/${dead.id}/replay`)
    await until('A once more', () => requests.slice(13).filter(({ id }) => id === dead.messageId).length === 2)

    state.answer = status(410)
    await publish('D')
    await until('gone', async () => (await call('GET', home)).body.disabledReason === 'gone')
    const page = await call('GET', `${home}/deliveries?limit=2`)
    const next = await call('GET', `${home}/deliveries?limit=2&cursor=${page.body.page.nextCursor}`)
    t.same(
      [...page.body.data, ...next.body.data].map(({ topic, status }) => [topic, status]),
      [
        [StockMoved.topic, 'pending'],
        [StockMoved.topic, 'delivered'],
        [StockMoved.topic, 'delivered']
      ]
    )
    t.match(await call('GET', `${home}/deliveries?limit=2&status=dead&cursor=${page.body.page.nextCursor}`), {
      status: 400,
      body: { code: 'CURSOR_INVALID' }
    })
  })

  await t.test('secrets are rotated without a pause', async (t) => {
    const { url, requests } = await receiver(t)
    const { call, create, clock } = shared
    const { id, secret: old } = await create(url)
    const verifies = async (secret: string, count: number) => {
      await call('POST', `/webhooks/${id}/test`)
      const last = await until('a ping', () => requests.length === count && requests.at(-1))
      // The library holds the time against its own clock.
      const at = Number(last.headers['webhook-timestamp'])
      const expected = signedHeaders([secret], last.id, at, last.body)['webhook-signature']
      return String(last.headers['webhook-signature']).split(' ').includes(expected)
    }
    const { secret: fresh } = (await call('POST', `/webhooks/${id}/rotate-secret`, { overlapSeconds: 3600 })).body
    t.ok(await verifies(old, 1), 'the old one still signs')
    t.ok(await verifies(fresh, 2), 'and the new one')
    clock.ahead += HOUR + 1000
    t.notOk(await verifies(old, 3), 'until its time is over')
    t.ok(await verifies(fresh, 4))
    const { secret: now } = (await call('POST', `/webhooks/${id}/rotate-secret`, { overlapSeconds: 0 })).body
    t.notOk(await verifies(fresh, 5), 'or at once')
    t.ok(await verifies(now, 6))
  })

  await t.test(
    'upkeep: what waits too long is given up, what ended long ago forgotten, secrets sealed anew',
    async (t) => {
      const { tenant, call, create, deliveries, clock } = shared
      const now = () => Date.now() + clock.ahead
      const { id, secret: old } = await create('https://example.org/upkeep')
      const { secret } = (await call('POST', `/webhooks/${id}/rotate-secret`, { overlapSeconds: 60 })).body
      await tenant.transact(({ db }) =>
        createDeliveryStore(db, dialect).enqueue([id], { id: 'msg_1', topic: 'webhooks.ping', body: '{}' }, now())
      )
      await call('PATCH', `/webhooks/${id}`, { active: false })
      const [old1, new1] = [SECRETS_KEYS[0], { id: 'next', secret: 'aN5!uE0oRi7-Wt2zKx9lVb4hYc8qMd6f' }]
      const seal = createSeal([new1, old1])
      const metrics = createWebhookMetrics(new Registry())
      const sealed = async () => {
        const row = await createWebhookStore(tenant.db).find(id)
        return row === undefined ? [] : secretsOf(createSeal([new1]), row, now())
      }
      const day = 24 * HOUR
      await tidy(tenant, seal, metrics, now())
      t.same(await sealed(), [secret, old], 'the new key alone opens both')
      await tidy(tenant, seal, metrics, now() + day)
      t.same(await sealed(), [secret], 'the previous one is forgotten when its time is over')
      t.equal((await call('GET', `/webhooks/${id}`)).body.previousSecretUntil, null)
      t.notMatch((await deliveries(id))[0], { status: 'dead' })
      await tidy(tenant, seal, metrics, now() + 3 * day + 1000)
      const [dead] = await deliveries(id, '?status=dead')
      t.match(dead, { messageId: 'msg_1', nextAttemptAt: null })
      await tidy(tenant, seal, metrics, now() + 20 * day)
      t.equal((await deliveries(id)).length, 1)
      await tidy(tenant, seal, metrics, now() + 40 * day)
      t.same(await deliveries(id), [])
      await call('DELETE', `/webhooks/${id}`)
    }
  )

  await t.test('two nodes over one database send each attempt once; what is closed lets go', async (t) => {
    const { url, requests, state } = await receiver(t)
    const database = await databaseFor(t, dialect)
    const one = await node(t, database)
    const two = await node(t, database)
    const { id } = await one.create(url)
    state.answer = async (response) => {
      await sleep(4)
      response.writeHead(204).end()
    }
    const codes = Array.from({ length: 60 }, (_, n) => `I${n}`)
    await one.publish(...codes)
    await until('all', () => requests.length >= 60)
    await until('all', async () => (await one.deliveries(id, '?status=delivered&limit=200')).length === 60)
    t.same(requests.map(itemOf).sort(), [...codes].sort(), 'each exactly once')
    t.equal(new Set(requests.map(({ id }) => id)).size, 60)
    const shares = [
      await one.metric('webhook_attempts_total{outcome="success"}'),
      await two.metric('webhook_attempts_total{outcome="success"}')
    ]
    t.ok(
      shares.every((share) => share > 0),
      `both took part: ${shares}`
    )
    t.equal(shares[0]! + shares[1]!, 60)

    await two.app.close()
    let answering: ServerResponse | undefined
    state.answer = (response) => {
      answering = response
    }
    await one.publish('LAST')
    await until('it is being sent', () => answering)
    const closing = one.app.close()
    await sleep(20)
    answering?.writeHead(200).end()
    await closing
    const three = await node(t, database, { drainMilliseconds: 30 })
    t.equal((await three.deliveries(id, '?status=delivered&limit=200')).length, 61, 'what is under way is waited for')

    answering = undefined
    await three.publish('HANGS')
    await until('it hangs', () => answering)
    await three.app.close()
    state.answer = status(204)
    const four = await node(t, database)
    await until(
      'sent by the next',
      async () => (await four.deliveries(id, '?status=delivered&limit=200')).length === 62
    )
    const [first, second] = requests.slice(-2)
    t.same([first?.id, itemOf(first!)], [second?.id, 'HANGS'], 'under the same id, at once')
  })

  await t.test('a node that dies between sending and noting it: the message comes again under its id', async (t) => {
    const { url, requests, state } = await receiver(t)
    const database = await databaseFor(t, dialect)
    const env = await serviceEnvironment(t, {
      DATABASE_URL: database,
      WEBHOOK_ALLOWED_HOSTS: '127.0.0.1',
      SECRETS_KEY: SECRETS_KEYS[0].secret,
      LOG_LEVEL: 'silent'
    })
    const service = await startService(t, env)
    const post = async (path: string, body: object) => {
      const headers = { authorization: `Bearer ${service.token}`, 'content-type': 'application/json' }
      const answer = await fetch(`${service.url}/api${path}`, { method: 'POST', headers, body: JSON.stringify(body) })
      t.equal(answer.status, 201, path)
    }
    await post('/webhooks', { url, topics: [StockMoved.topic] })
    await post('/inventory', { itemCode: 'A', name: 'A', unit: 'each' })
    let killed: Promise<unknown> | undefined
    state.answer = (response) => {
      killed = service.end('SIGKILL').finally(() => response.destroy())
    }
    await post('/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1 }] })
    await until('the kill', () => killed !== undefined && requests.length === 1)
    await killed
    // A minute passes: the claim of the dead process runs out.
    if (dialect === 'sqlite') {
      const file = new Sqlite(database.slice('sqlite:'.length))
      t.equal(file.prepare('update webhook_deliveries set due_at = 0 where due_at > 0').run().changes, 1)
      file.close()
    } else {
      const connection = new pg.Client({ connectionString: database })
      await connection.connect()
      t.equal(
        (await connection.query('update tenant_main.webhook_deliveries set due_at = 0 where due_at > 0')).rowCount,
        1
      )
      await connection.end()
    }
    state.answer = status(204)
    await node(t, database)
    await until('the repetition', () => requests.length === 2)
    t.equal(requests[1]?.id, requests[0]?.id)
    t.equal(requests[1]?.body, requests[0]?.body)
  })
})
