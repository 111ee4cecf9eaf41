import { createHash } from 'node:crypto'
import { readdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { app as register } from '../app.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Tenant } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { IDENTITY } from './backups-harness.js'
import { eachDialect } from './helper.js'
import { temporaryFolder } from './service-process.js'
import { freshDatabase } from './services.js'
import { type Call, caller, fill, furnish, type Route, SHOWN_TO_NOBODY } from './tenancy-routes.js'

/** What two tenants must never share; the routes tried are those that the app registers, so a new one is tried too. */

const SECRET = 'Wq7-mX2zKp9vLt4yHc8sRd1nJf6bGu3e'

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
    BACKUP_IDENTITY: IDENTITY,
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
  // One that has begun already ends first.
  while ((await alpha('GET', '/api/jobs?status=running')).body.data.length > 0) await sleep(50)
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

  await t.test('what the document says may be answered 304 is, and nothing else', async (t) => {
    const { paths }: { paths: Record<string, { get?: { responses: object } }> } = JSON.parse(
      JSON.stringify(app.swagger())
    )
    const again = new Set(['/api/jobs', '/api/tokens', '/api/audit', '/api/auth/sessions', '/api/backups'])
    for (const route of routes) {
      const request = fill(route, ids)
      if (typeof request === 'string' || `${route.method} ${route.url}` in SHOWN_TO_NOBODY) continue
      const responses = paths[route.url.replace(/:(\w+)/g, '{$1}')]?.get?.responses
      if (route.method !== 'GET' || responses === undefined) continue
      const status = '304' in responses ? 304 : 200
      const any = await alpha('GET', request.url, undefined, { 'if-none-match': '*' })
      t.match(any, { status, text: status === 304 ? '' : /./ }, route.url)
      if (status === 304) t.match(any.headers.etag, /^"[\w-]{22}"$/, `${route.url} has an ETag`)
      if (!again.delete(route.url)) continue
      const named = { 'if-none-match': String(any.headers.etag) }
      t.equal((await alpha('GET', request.url, undefined, named)).status, 304, `${route.url} as long as it is the same`)
      t.equal((await alpha('GET', request.url, undefined, { 'if-none-match': '"other"' })).status, 200)
    }
    t.same([...again], [])
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
