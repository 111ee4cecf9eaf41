import { readFileSync } from 'node:fs'
import type { ServerResponse } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import Sqlite from 'better-sqlite3'
import { sql } from 'kysely'
import pg from 'pg'
import { Registry } from 'prom-client'
import { Webhook as Verifier } from 'standardwebhooks'
import t from 'tap'
import { createWebhookMetrics } from '../modules/webhooks/metrics.js'
import { secretsOf } from '../modules/webhooks/secrets.js'
import { signedHeaders } from '../modules/webhooks/signature.js'
import { createDeliveryStore, createWebhookStore } from '../modules/webhooks/store.js'
import { tidy } from '../modules/webhooks/upkeep.js'
import { createSeal } from '../plugins/seal.js'
import { StockMoved } from '../schemas/inventory.js'
import { PUBLIC_TOPICS, WebhookDisabled } from '../schemas/webhooks.js'
import { buildApp, client, eachDialect } from './helper.js'
import { serviceEnvironment, startService } from './service-process.js'
import { databaseFor, dump, HOUR, itemOf, node, receiver, SECRETS_KEYS, status, until } from './webhooks-harness.js'

t.test('every topic is documented', async (t) => {
  const document = readFileSync(new URL('../../docs/webhooks.md', import.meta.url), 'utf8')
  for (const topic of PUBLIC_TOPICS) t.match(document, new RegExp(`^\\| \`${topic}\``, 'm'), topic)
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
    // Counted once it is committed.
    await until('counted', async () => (await metric('webhook_deliveries_dead_total')) > 0)
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
    await until('counted', async () => (await metric('webhooks_disabled_total{reason="failing"}')) > 0)
    t.equal(await metric('webhooks_disabled_total{reason="failing"}'), 1)
    await until('the event', () => watcher.requests.length > 0)
    t.match(JSON.parse(watcher.requests[0]?.body ?? ''), {
      type: WebhookDisabled.topic,
      data: { webhookId: webhook.id, reason: 'failing', failures: 13 }
    })
    await publish('C')
    await until('C has been handled', async () => {
      const { rows } = await sql<{ n: number }>`select count(*) as n from ${sql.table('outbox')}`.execute(
        shared.tenant.db
      )
      return Number(rows[0]?.n) === 0
    })
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
      await call('PATCH', `/webhooks/${id}`, { active: false })
      await tenant.transact(({ db }) =>
        createDeliveryStore(db, dialect).enqueue([id], { id: 'msg_1', topic: 'webhooks.ping', body: '{}' }, now())
      )
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
    let begin = () => {}
    const begun = new Promise<void>((resolve) => {
      begin = resolve
    })
    state.answer = async (response) => {
      await begun
      await sleep(4)
      response.writeHead(204).end()
    }
    const codes = Array.from({ length: 60 }, (_, n) => `I${n}`)
    await one.publish(...codes)
    // A node sends what it claimed before it claims more: with two claims both are at it.
    const claims = sql<{ n: number }>`select count(distinct claim) as n from ${sql.table('webhook_deliveries')}`
    await until('both', async () => Number((await claims.execute(one.tenant.db)).rows[0]?.n) > 1)
    begin()
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
    let sent: ServerResponse | undefined
    state.answer = (response) => {
      sent = response
    }
    await post('/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1 }] })
    const unanswered = await until('it is sent', () => requests.length === 1 && sent)
    await service.end('SIGKILL')
    unanswered.destroy()
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
