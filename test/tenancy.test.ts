import { createHash } from 'node:crypto'
import { readdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type FastifyInstance, type InjectOptions } from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { app as register } from '../app.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Auth, Tenant } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { eachDialect } from './helper.js'
import { temporaryFolder } from './service-process.js'
import { freshDatabase } from './services.js'

/** What two tenants must never share; the routes tried are those that the app registers, so a new one is tried too. */

const SECRET = 'Wq7-mX2zKp9vLt4yHc8sRd1nJf6bGu3e'
const DAY_MS = 86_400_000

interface Route {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  url: string
}

async function open(t: Test, env: Record<string, string>) {
  const app = Fastify(serverOptions({ logLevel: 'silent' }))
  const routes: Route[] = []
  app.addHook('onRoute', ({ method, url }) => {
    const known = (['GET', 'POST', 'PUT', 'PATCH', 'DELETE'] as const).find((each) => each === method)
    if (known !== undefined && url.startsWith('/api/')) routes.push({ method: known, url })
  })
  await register(app, loadConfig({ JWT_SECRET: SECRET, LOG_LEVEL: 'silent', ...env }))
  await app.ready()
  t.teardown(() => app.close())
  return { app, routes, tenants: app.getDecorator<Tenants>('tenants'), as: caller(app) }
}

/** Calls as an administrator of one tenant; the subject is the same in all, so that nothing is told apart by it. */
const caller = (app: FastifyInstance) => (tenant: string) => {
  const token = app.getDecorator<Auth>('auth').sign({ subject: 'admin', role: 'admin', tenant }, 600)
  return async (method: Route['method'], url: string, body?: object | string, headers = {}) => {
    const type = typeof body === 'string' ? { 'content-type': 'text/csv' } : {}
    const options: InjectOptions = { method, url, headers: { authorization: `Bearer ${token}`, ...type, ...headers } }
    if (body !== undefined) options.payload = body
    const answer = await app.inject(options)
    const isJson = /[/+]json;/.test(String(answer.headers['content-type']))
    return {
      status: answer.statusCode,
      text: answer.body,
      headers: answer.headers,
      body: isJson ? answer.json() : undefined
    }
  }
}
type Call = ReturnType<ReturnType<typeof caller>>

/** Everything that a tenant's database holds, as one hash; but for the trail, since what its owner does meanwhile is recorded. */
async function hashOf(tenant: Tenant): Promise<string> {
  const names =
    tenant.dialect === 'sqlite'
      ? sql<{ name: string }>`select name from sqlite_master where type = 'table' and sql not like '%virtual%'`
      : sql<{
          name: string
        }>`select table_name as name from information_schema.tables where table_schema = ${`tenant_${tenant.id}`}`
  const hash = createHash('sha256')
  for (const { name } of (await names.execute(tenant.db)).rows.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (name.startsWith('audit_')) continue
    const { rows } = await sql`select * from ${sql.table(name)}`.execute(tenant.db)
    hash.update(
      `${name}\n${rows
        .map((row) => JSON.stringify(row))
        .sort()
        .join('\n')}\n`
    )
  }
  return hash.digest('hex')
}

/** Waits until background work has left the database alone for a moment. */
async function settled(tenant: Tenant): Promise<string> {
  let last = ''
  for (let n = 0; n < 60; n++) {
    const now = await hashOf(tenant)
    if (now === last) return now
    last = now
    await sleep(200)
  }
  throw new Error('the database does not come to rest')
}

const EVENT = { name: 'Alpha fair', yearly: { month: 5, day: 1 } }
const OVERRIDE = { expiresOn: '2999-12-31', factor: 2, reason: 'Alpha event' }

/** Nobody listens there. */
const WEBHOOK = { url: 'http://127.0.0.1:1024/alpha', topics: ['webhooks.disabled'] }

/** One of everything, under names and ids that only this tenant may see. */
async function furnish(t: Test, call: Call) {
  const must = async (method: Route['method'], url: string, body?: object | string, headers = {}) => {
    const answer = await call(method, url, body, headers)
    if (answer.status >= 300) t.fail(`${method} ${url}: ${answer.status} ${answer.text}`)
    return answer.body
  }
  const today = Date.now()
  await must('POST', '/api/inventory/categories', { name: 'Alpha-category' })
  await must('POST', '/api/inventory/units', { unit: 'alphabox', name: 'Alpha box' })
  await must('POST', '/api/locations', { location: 'alpha-store', name: 'Alpha store' })
  await must('POST', '/api/inventory', {
    itemCode: 'ALPHA-1',
    name: 'Alpha item',
    unit: 'each',
    category: 'Alpha-category'
  })
  await must('POST', '/api/inventory', { itemCode: 'ALPHA-L', name: 'Alpha lot item', unit: 'each', tracking: 'lot' })
  await must('PUT', '/api/inventory/lots', { itemCode: 'ALPHA-L', lot: 'alpha-lot' })
  await must('PUT', '/api/inventory/ALPHA-1/units/alphabox', { numerator: 12 })
  const at = (days: number) => new Date(today - days * DAY_MS).toISOString()
  const line = (quantity: number) => ({ itemCode: 'ALPHA-1', quantity, location: 'alpha-store' })
  await must('POST', '/api/movements', {
    type: 'receipt',
    occurredAt: at(62),
    lines: [{ ...line(5_000), unitCost: 2 }]
  })
  let movement: { id: string } = { id: '' }
  for (let days = 60; days >= 1; days--) {
    const quantity = days === 10 ? 400 : 10 + ((days * 7) % 5)
    movement = await must('POST', '/api/movements', { type: 'issue', occurredAt: at(days), lines: [line(quantity)] })
  }
  const reservation = await must('POST', '/api/reservations', {
    itemCode: 'ALPHA-1',
    quantity: 2,
    location: 'alpha-store'
  })
  const user = await must('POST', '/api/users', {
    username: 'alpha',
    role: 'viewer',
    password: 'correct horse battery staple'
  })
  const signedIn = await must('POST', '/api/auth/login', {
    username: 'alpha',
    password: 'correct horse battery staple',
    tenant: 'alpha'
  })
  const [session] = (await must('GET', `/api/users/${user.id}/sessions`)).data
  const own = { authorization: `Bearer ${signedIn.accessToken}` }
  const apiToken = await must('POST', '/api/tokens', { name: 'alpha script', scopes: ['*:read'] }, own)
  const imported = await must('POST', '/api/import/items', 'itemCode,name,unit\nALPHA-2,Alpha two,each\n', {
    prefer: 'wait=20'
  })
  const [run] = (await must('GET', '/api/imports')).data
  await must('POST', '/api/ai/consumption/derive', { itemCodes: ['ALPHA-1'] }, { prefer: 'wait=20' })
  const trained = await must('POST', '/api/ai/forecast/train', { itemCodes: ['ALPHA-1'] }, { prefer: 'wait=30' })
  t.equal(trained.status, 'succeeded', JSON.stringify(trained))
  const summed = await must('POST', '/api/ai/forecast/aggregate/train', undefined, { prefer: 'wait=30' })
  t.equal(summed.status, 'succeeded', JSON.stringify(summed))
  const [model] = (await must('GET', '/api/ai/models/list')).data
  const day = at(1).slice(0, 10)
  await must('POST', '/api/ai/feedback', { itemCode: 'ALPHA-1', date: day, subject: 'actual', verdict: 'right' })
  const override = await must('POST', '/api/ai/forecast/ALPHA-1/overrides', OVERRIDE)
  const event = await must('POST', '/api/ai/events', EVENT)
  const regressor = await must('POST', '/api/ai/regressors', { name: 'Alpha guests' })
  await must('PUT', `/api/ai/regressors/${regressor.id}/values`, { values: [{ date: day, value: 7 }] })
  const found = await must('POST', '/api/ai/consumption/detect-anomalies', { itemCodes: ['ALPHA-1'] })
  t.ok(found.data.length > 0, 'an anomaly was found')
  const backup = await must('POST', '/api/backups', undefined, { prefer: 'wait=30' })
  t.equal(backup.status, 'succeeded', JSON.stringify(backup))
  const [archive] = (await must('GET', '/api/backups')).data
  const webhook = await must('POST', '/api/webhooks', WEBHOOK)
  const delivery = await must('POST', `/api/webhooks/${webhook.id}/test`)
  const sent = `/api/webhooks/${webhook.id}/deliveries/${delivery.id}`
  while ((await must('GET', sent)).log.length === 0) await sleep(20)
  // Else it would be tried again while the owner's database is watched.
  await must('PATCH', `/api/webhooks/${webhook.id}`, { active: false })
  return {
    backups: String(archive?.id),
    webhooks: String(webhook.id),
    deliveries: String(delivery.id),
    movements: movement.id,
    reservations: String(reservation.id),
    users: String(user.id),
    auth: String(session?.id),
    tokens: String(apiToken.id),
    privacy: String(user.id),
    jobs: String(imported.id),
    imports: String(run?.id),
    models: String(model?.id),
    overrides: String(override.id),
    events: String(event.id),
    regressors: String(regressor.id),
    anomalies: String(found.data[0]?.id)
  }
}
type Ids = Awaited<ReturnType<typeof furnish>>

const CREDENTIAL = { id: 'AAAA', rawId: 'AAAA', type: 'public-key' }
const REGISTRATION = { ...CREDENTIAL, response: { clientDataJSON: 'AAAA', attestationObject: 'AAAA' } }
const ASSERTION = {
  ...CREDENTIAL,
  response: { clientDataJSON: 'AAAA', authenticatorData: 'AAAA', signature: 'AAAA' }
}

/** A valid body for each write, so that it fails for want of the thing and not for its form. */
const bodies: Record<string, object | string> = {
  'POST /api/auth/login': { username: 'alpha', password: 'correct horse battery staple' },
  'POST /api/auth/refresh': { refreshToken: `ir_alpha_${'A'.repeat(43)}` },
  'POST /api/auth/reauthenticate': { password: 'correct horse battery staple' },
  'POST /api/tokens': { name: 'mine', scopes: ['*:read'] },
  'POST /api/auth/2fa/totp/confirm': { code: '123456' },
  'POST /api/auth/2fa/verify': { recoveryCode: 'none' },
  'POST /api/auth/passkeys': { name: 'Mine', credential: REGISTRATION },
  'PATCH /api/auth/passkeys/:id': { name: 'Mine' },
  'POST /api/auth/passkeys/sign-in/options': {},
  'POST /api/auth/passkeys/sign-in': { credential: ASSERTION },
  'POST /api/auth/accept': { token: `il_alpha_${'A'.repeat(43)}`, password: 'correct horse battery staple' },
  'POST /api/auth/setup': {
    token: `il_alpha_${'A'.repeat(43)}`,
    username: 'mallory',
    password: 'correct horse battery staple'
  },
  'POST /api/auth/password': {
    currentPassword: 'correct horse battery staple',
    newPassword: 'another horse battery staple'
  },
  'POST /api/users': { username: 'alpha', role: 'viewer', password: 'correct horse battery staple' },
  'PATCH /api/users/:id': { role: 'admin' },
  'PATCH /api/privacy/me': { displayName: 'Taken' },
  'POST /api/inventory': { itemCode: 'ALPHA-1', name: 'Mine', unit: 'each' },
  'PATCH /api/inventory/:itemCode': { name: 'Taken' },
  'POST /api/inventory/categories': { name: 'Mine' },
  'POST /api/inventory/units': { unit: 'mine', name: 'Mine' },
  'PUT /api/inventory/lots': { itemCode: 'ALPHA-L', lot: 'alpha-lot', status: 'recalled' },
  'PUT /api/inventory/:itemCode/units/:unit': { numerator: 6 },
  'POST /api/locations': { location: 'mine', name: 'Mine' },
  'POST /api/movements': { type: 'waste', lines: [{ itemCode: 'ALPHA-1', quantity: 1, location: 'alpha-store' }] },
  'POST /api/movements/:id/reverse': {},
  'POST /api/reservations': { itemCode: 'ALPHA-1', quantity: 1, location: 'alpha-store' },
  'POST /api/import/:kind': 'itemCode,name,unit\nALPHA-1,Mine,each\n',
  'POST /api/ai/consumption/derive': { itemCodes: ['ALPHA-1'] },
  'POST /api/ai/forecast/train': { itemCodes: ['ALPHA-1'] },
  'POST /api/ai/consumption/detect-anomalies': { itemCodes: ['ALPHA-1'] },
  'POST /api/ai/feedback': { itemCode: 'ALPHA-1', date: '2026-01-05', subject: 'actual', verdict: 'exceptional' },
  'POST /api/ai/forecast/:itemCode/overrides': OVERRIDE,
  'POST /api/ai/events': EVENT,
  'PUT /api/ai/events/:eventId': EVENT,
  'POST /api/ai/regressors': { name: 'Mine' },
  'PUT /api/ai/regressors/:regressorId/values': { values: [{ date: '2026-01-05', value: 1 }] },
  'POST /api/anomalies/:id/acknowledge': {},
  'POST /api/anomalies/:id/resolve': { verdict: 'dismissed' },
  'POST /api/webhooks': { ...WEBHOOK, url: 'https://beta.invalid/in' },
  'PATCH /api/webhooks/:id': { active: false },
  'PUT /api/log-level': { level: 'info' }
}
/** Writes that take none. */
const BODILESS =
  /^POST \/api\/(auth\/(logout|2fa\/totp|2fa\/recovery-codes|2fa\/passkey\/options|passkeys\/options)|users\/:id\/link|reservations\/:id\/(post|void)|imports\/:id\/undo|ai\/forecast\/aggregate\/train|webhooks\/.+|backups(\/.+)?|privacy\/subjects\/:id\/erase)$|^DELETE /

/** What a read must be asked to show the owner's own. */
const queries: Record<string, string> = {
  'GET /api/ai/forecast/aggregate': '?level=category&key=Alpha-category'
}

/** What shows nothing to whoever asks here, owner or not. */
const SHOWN_TO_NOBODY: Record<string, number> = {
  // The tokens of this file belong to no user.
  'GET /api/privacy/me': 404,
  // Where there are many tenants, their administrators do not run the service.
  'GET /api/log-level': 403,
  // A stream; test/realtime.test.ts listens to it.
  'GET /api/realtime': 406
}

function fill({ method, url }: Route, ids: Ids): { url: string; body?: object | string } | string {
  const kind = url.split('/')[url.startsWith('/api/ai/') ? 3 : 2] ?? ''
  const id = Object.entries(ids).find(([name]) => name === kind)?.[1]
  const values: Record<string, string | undefined> = {
    id,
    modelId: ids.models,
    overrideId: ids.overrides,
    deliveryId: ids.deliveries,
    eventId: ids.events,
    regressorId: ids.regressors,
    itemCode: 'ALPHA-1',
    unit: 'alphabox',
    location: 'alpha-store',
    kind: 'items'
  }
  const path = url.replace(/:(\w+)/g, (whole, name: string) => values[name] ?? whole)
  const filled = path + (queries[`${method} ${url}`] ?? '')
  if (filled.includes(':')) return 'no value for its parameters'
  const body = bodies[`${method} ${url}`]
  if (body === undefined && method !== 'GET' && !BODILESS.test(`${method} ${url}`)) return 'no body'
  return body === undefined ? { url: filled } : { url: filled, body }
}

await eachDialect(t, async (t, dialect) => {
  const folder = temporaryFolder(t)
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const hosts = { WEBHOOK_ALLOWED_HOSTS: '127.0.0.1' }
  const env = {
    DATA_DIR: folder,
    TENANCY: 'multi',
    ...hosts,
    // One that is asked for, and none by schedule while the owner's database is watched.
    BACKUP_URL: temporaryFolder(t),
    BACKUP_PASSPHRASE: 'correct horse battery staple',
    BACKUP_INCREMENT_SECONDS: '0',
    BACKUP_DRILL_DAYS: '0',
    ...(database === undefined ? {} : { DATABASE_URL: database.url })
  }
  const { app, routes, tenants, as } = await open(t, env)

  t.same(await tenants.list(), [], 'many-tenant service starts with none')
  for (const name of ['alpha', 'beta']) await tenants.create(name)
  await tenants.create('alpha')
  t.same(await tenants.list(), ['alpha', 'beta'])
  const alpha = as('alpha')
  const beta = as('beta')
  const ids = await furnish(t, alpha)
  // The calendar asked for a training, which would begin in the middle of what follows.
  await (await tenants.get('alpha')).transact(({ db }) =>
    sql`update ${sql.table('forecast_schedule')} set job_id = 'not now'`.execute(db)
  )
  const marks = ['ALPHA', 'Alpha', 'alpha', ...Object.values(ids)]

  await t.test('every route of one tenant with the other’s token', async (t) => {
    const before = await settled(await tenants.get('alpha'))
    // Reads first: after the writes the other tenant has things of the same names.
    const ordered = [...routes].sort((a, b) => Number(a.method !== 'GET') - Number(b.method !== 'GET'))
    t.ok(ordered.length > 50, `${ordered.length} routes`)
    for (const route of ordered) {
      const name = `${route.method} ${route.url}`
      const request = fill(route, ids)
      if (typeof request === 'string') {
        t.fail(`${name} is not tried: ${request}`)
        continue
      }
      if (route.method === 'GET') {
        const own = await alpha('GET', request.url)
        const nobodys = SHOWN_TO_NOBODY[name]
        t.equal(own.status, nobodys ?? 200, `${name}: its owner sees it`)
        for (const headers of [{}, { 'if-none-match': String(own.headers.etag) }]) {
          const other = await beta('GET', request.url, undefined, headers)
          const same = other.status === 304
          t.ok(same || [200, 404, nobodys].includes(other.status), `${name}: the other gets ${other.status}`)
          // The validator is made of the bytes: it holds where both have the same nothing to show.
          const shown = same ? own.text : other.text
          // A problem repeats the code or id that was asked for.
          if (other.status !== 404)
            t.same(
              marks.filter((mark) => shown.includes(mark)),
              [],
              `${name} shows nothing`
            )
          if (/:(\w*[iI]d|itemCode|location)/.test(route.url))
            t.equal(other.status, 404, `${name} does not exist there`)
        }
        continue
      }
      // A token of its own for each: one of the routes ends the token that calls it.
      const other = await as('beta')(route.method, request.url, request.body, { prefer: 'wait=20' })
      t.ok(other.status < 500, `${name}: ${other.status}`)
      if (/:\w*[iI]d\b/.test(route.url)) t.equal(other.status, 404, `${name} does not exist there: ${other.text}`)
    }
    t.equal(await settled(await tenants.get('alpha')), before, 'not a byte of the owner’s database has changed')
  })

  await t.test('caches, validators, cursors and idempotency keys are apart', async (t) => {
    const create = (call: Call) =>
      call('POST', '/api/inventory', { itemCode: 'SHARED', name: 'Shared', unit: 'each' }, { 'idempotency-key': 'one' })
    const made = [await create(alpha), await create(beta)]
    t.same(
      made.map(({ status }) => status),
      [201, 201],
      'one key, two tenants, two items'
    )
    await beta('PATCH', '/api/inventory/SHARED', { name: 'Renamed' })
    for (let n = 0; n < 2; n++) {
      const [ours, theirs] = await Promise.all([
        alpha('GET', '/api/inventory/SHARED'),
        beta('GET', '/api/inventory/SHARED')
      ])
      t.equal(ours.body.name, 'Shared')
      t.equal(theirs.body.name, 'Renamed', 'one URL, two answers')
      const validated = await beta('GET', '/api/inventory/SHARED', undefined, {
        'if-none-match': String(ours.headers.etag)
      })
      t.equal(validated.status, 200, 'the other’s validator is none here')
    }
    t.notSame((await alpha('GET', '/api/cache/stats')).body, (await beta('GET', '/api/cache/stats')).body)
    const page = await alpha('GET', '/api/inventory?limit=1')
    const next = await beta('GET', `/api/inventory?limit=1&cursor=${page.body.page.nextCursor}`)
    t.same(
      marks.filter((mark) => next.text.includes(mark) && mark !== 'ALPHA'),
      []
    )
  })

  await t.test('a token of no tenant, or of one that never was', async (t) => {
    const files = () => (dialect === 'sqlite' ? readdirSync(folder, { recursive: true }).map(String).sort() : [])
    const before = files()
    for (const id of ['gamma', 'main', 'public', 'information_schema']) {
      const { status, text } = await as(id)('GET', '/api/inventory')
      t.ok([401, 404].includes(status), `${id}: ${status}`)
      t.notMatch(text, 'ALPHA')
    }
    const hostile = [
      '../main',
      'alpha/../beta',
      '..',
      '',
      'Alpha',
      'alpha ',
      'alpha\0',
      'alpha"; drop schema tenant_alpha; --',
      '%2e%2e',
      'x'.repeat(41),
      '__proto__'
    ]
    for (const id of hostile) {
      const { status } = await as(id)('GET', '/api/inventory')
      t.ok([401, 404].includes(status), `${JSON.stringify(id)}: ${status}`)
      await t.rejects(tenants.create(id), { code: 'TENANT_NAME_INVALID' }, `${JSON.stringify(id)} is no name`)
      await t.rejects(tenants.drop(id), { code: 'TENANT_NOT_FOUND' })
      const login = await beta('POST', '/api/auth/login', { username: 'alpha', password: 'x', tenant: id })
      t.ok([400, 401, 404].includes(login.status), `login: ${login.status}`)
    }
    t.same(files(), before, 'and no file was made')
    t.same(await tenants.list(), ['alpha', 'beta'])
  })

  await t.test('a tenant that is dropped, here or by another process, and made again', async (t) => {
    t.equal((await beta('GET', '/api/inventory/SHARED')).status, 200)
    await tenants.drop('beta')
    t.same(await tenants.list(), ['alpha'])
    t.ok([401, 404].includes((await beta('GET', '/api/inventory/SHARED')).status))
    t.ok([401, 404].includes((await beta('POST', '/api/inventory', { itemCode: 'N', name: 'N', unit: 'each' })).status))
    await tenants.create('beta')
    t.same((await beta('GET', '/api/inventory')).body.data, [], 'its successor starts empty, in the cache too')

    const elsewhere = await open(t, env)
    await elsewhere.tenants.drop('beta')
    const deadline = Date.now() + 5_000
    let status = 200
    while (status !== 404 && status !== 401 && Date.now() < deadline) {
      await sleep(100)
      status = (await beta('GET', '/api/inventory')).status
    }
    t.ok([401, 404].includes(status), `dropped elsewhere, it ends here too: ${status}`)
    await elsewhere.tenants.create('delta')
    t.equal((await as('delta')('GET', '/api/inventory')).status, 200, 'made elsewhere, it begins here too')
    t.equal((await alpha('GET', '/api/inventory/ALPHA-1')).status, 200, 'and the others go on')
    t.equal((await app.inject('/health')).json().status, 'ok')
  })
})

t.test('a service of one tenant has no other', async (t) => {
  const { tenants, as } = await open(t, { DATA_DIR: temporaryFolder(t) })
  t.same(await tenants.list(), ['main'])
  t.equal((await as('main')('GET', '/api/inventory')).status, 200)
  for (const id of ['alpha', 'tenants']) t.ok([401, 404].includes((await as(id)('GET', '/api/inventory')).status), id)
})
