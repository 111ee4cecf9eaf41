/** Applications of strangers, as text: each registers one module, or shows what a host may keep or has to bring. */

/** Registers `options` of one module under a prefix, and prints what `requests` answer; then closes and must end by itself. */
export const host = (module: string, options: string, requests: string, coreOptions = '') => `
import Fastify from 'fastify'
import core from 'inventory-enterprise/core'
import plugin from 'inventory-enterprise/${module}'

for (const databaseUrl of process.argv.slice(2)) {
  const app = Fastify()
  await app.register(core, { databaseUrl${coreOptions} })
  await app.register(plugin, { prefix: '/x', authorize: async () => {}${options} })
  const answers: unknown[] = []
  const call = async (method: 'GET' | 'POST', url: string, payload?: object) => {
    const answer = await app.inject({ method, url, headers: { prefer: 'wait=30' }, ...(payload === undefined ? {} : { payload }) })
    answers.push({ status: answer.statusCode, body: answer.json() })
  }
  ${requests}
  await app.close()
  console.log(JSON.stringify(answers))
}
`

export const flow = `items: async (_tenant, { afterItemCode = '' }) => (afterItemCode < 'A' ? [{ itemCode: 'A', name: 'A' }] : []),
    dailyFlow: async () => Array.from({ length: 90 }, (_, n) => {
      const day = new Date(Date.now() - (90 - n) * 86_400_000).toISOString().slice(0, 10)
      return { itemCode: 'A', day, usedMicros: (5 + (n % 7)) * 1_000_000, changeMicros: n === 0 ? 9_000_000_000 : -(5 + (n % 7)) * 1_000_000 }
    })`

export const hosts: Record<string, string> = {
  inventory: host(
    'inventory',
    '',
    `await call('POST', '/x/inventory', { itemCode: 'A', name: 'Nails', unit: 'each' })
  await call('POST', '/x/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 7, unitCost: 2 }] })
  await call('GET', '/x/inventory/A')
  await call('GET', '/x/ledger/verify')
  await call('POST', '/x/inventory', { itemCode: 'B', name: 'B', unit: 'each', colour: 'red' })`
  ),
  forecasting: host(
    'forecasting',
    `, consumption: { ${flow} }`,
    `await call('POST', '/x/ai/forecast/train', { itemCodes: ['A'], models: ['seasonal-naive'] })
  await call('GET', '/x/ai/forecast/A')`
  ),
  // Long work without the routes of jobs, and with them.
  jobs: `
import Fastify from 'fastify'
import core from 'inventory-enterprise/core'
import forecasting from 'inventory-enterprise/forecasting'
import jobs from 'inventory-enterprise/jobs'

const options = { prefix: '/x', authorize: async () => {} }
for (const databaseUrl of process.argv.slice(2)) {
  const answers: unknown[] = []
  for (const served of [false, true]) {
    const app = Fastify()
    await app.register(core, { databaseUrl })
    await app.register(forecasting, { ...options, consumption: { ${flow} } })
    if (served) await app.register(jobs, options)
    const started = await app.inject({ method: 'POST', url: '/x/ai/consumption/derive' })
    const { location } = started.headers
    const shown = location === undefined ? null : (await app.inject(location)).json()
    answers.push({ status: started.statusCode, location: location ?? null, same: shown?.id === started.json().id })
    await app.close()
  }
  console.log(JSON.stringify(answers))
}
`,
  anomaly: host(
    'anomaly',
    `, series: async (_tenant, { afterItemCode = '' }) => afterItemCode >= 'A' ? [] : [
      { itemCode: 'A', start: '2026-01-05', values: Float64Array.from({ length: 60 }, (_, n) => (n === 50 ? 500 : 10 + (n % 3))), missing: new Uint8Array(60) }
    ]`,
    `await call('POST', '/x/ai/consumption/detect-anomalies', {})
  await call('GET', '/x/anomalies')`
  ),
  'cache-stats': host('cache-stats', '', `await call('GET', '/x/cache/stats')`),
  slo: host(
    'slo',
    ", states: [{ name: 'temperature', unit: 'mismatches', gauge: 'freezer_alarms', atMost: 0 }]",
    `await call('GET', '/x/slo')`
  ),
  dashboard: host(
    'dashboard',
    `, inventory: async () => ({ items: 3, stockValue: 12.5, lowStock: 1, outOfStock: 0, movementsToday: 4 }),
    forecasts: async () => ({ series: 0, wape: null, baselineWape: null, mase: null, coverage80: null, baselineServes: 0, byModel: [], lastTrainedAt: null }),
    anomalies: async () => ({ open: 0, bySeverity: { low: 0, medium: 0, high: 0 }, latest: [] }),
    runsOutFirst: async () => [{ itemCode: 'A', available: 3, daysOfCover: 1.5, date: '2026-01-05' }]`,
    `await call('GET', '/x/dashboard/stats')`
  ),
  identity: host(
    'identity',
    '',
    // A manager or administrator would have to enrol a second factor first.
    `await app.ready()
  const { createUser } = await import('inventory-enterprise/identity')
  const tenant = await app.getDecorator<import('inventory-enterprise/core').Tenants>('tenants').get('main')
  await createUser(tenant, { username: 'ada', role: 'staff', password: 'correct horse battery staple' })
  await call('POST', '/x/auth/login', { username: 'ada', password: 'correct horse battery staple' })
  await call('POST', '/x/auth/login', { username: 'ada', password: 'wrong horse battery staple' })`,
    `, jwtKeys: [{ id: 'k1', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }], secretsKeys: [{ id: 'k1', secret: 'aN5!uE0oRi7-Wt2zKx9lVb4hYc8qMd6f' }]`
  ),
  audit: host(
    'audit',
    '',
    `await app.ready()
  const tenant = await app.getDecorator<import('inventory-enterprise/core').Tenants>('tenants').get('main')
  const { sealTrail } = await import('inventory-enterprise/audit')
  await tenant.transact(async (tx) => tx.audit({ action: 'door.open', object: { type: 'door', id: '7' } }))
  await sealTrail(tenant)
  await call('GET', '/x/audit')
  await call('GET', '/x/audit/verify')`
  ),
  webhooks: host(
    'webhooks',
    '',
    `await call('POST', '/x/webhooks', { url: 'https://example.org/in', topics: ['inventory.stock.moved'] })
  await call('POST', '/x/webhooks', { url: 'https://169.254.169.254/', topics: ['inventory.stock.moved'] })`,
    `, secretsKeys: [{ id: 'k1', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }]`
  ),
  realtime: host('realtime', ', stillAllowed: async () => true', `await call('GET', '/x/realtime')`),
  privacy: host(
    'privacy',
    `, holders: [{
      holder: 'guests',
      schemas: { Guest: { type: 'object', properties: { name: { type: 'string', 'x-personal-data': { activity: 'visits', purpose: 'p', basis: 'b', retention: 'r' } } } } },
      columns: {},
      sections: { visits: async function* () { yield { day: '2026-01-05' } } },
      erase: async () => 1
    }],
    subjects: { exists: async () => true, rectify: async () => ({ username: 'a', displayName: 'A' }) }`,
    `await call('GET', '/x/privacy/register')
  await call('GET', '/x/privacy/subjects/00000000-0000-4000-8000-000000000000/export')
  await call('POST', '/x/privacy/subjects/00000000-0000-4000-8000-000000000000/erase')`
  ),
  // Two apps in one process; the host's own ways, with and without a module beside them.
  two: `
import Fastify, { type FastifyInstance } from 'fastify'
import core from 'inventory-enterprise/core'
import inventory from 'inventory-enterprise/inventory'
import { register as global, type Registry } from 'prom-client'

export async function open(databaseUrl: string | undefined): Promise<FastifyInstance> {
  const app = Fastify()
  app.setErrorHandler(async (error, _request, reply) => reply.code(418).send({ mine: String(error) }))
  app.setNotFoundHandler(async (_request, reply) => reply.code(404).send({ mine: 'nothing here' }))
  const body = { type: 'object', properties: { n: { type: 'integer' } }, additionalProperties: false } as const
  app.post('/own', { schema: { body } }, async (request) => ({ got: request.body }))
  app.get('/fails', async () => { throw new Error('on purpose') })
  if (databaseUrl !== undefined) {
    await app.register(core, { databaseUrl })
    await app.register(inventory, { prefix: '/stock', authorize: async () => {} })
  }
  await app.ready()
  return app
}

export async function own(app: FastifyInstance) {
  const calls = [
    app.inject({ method: 'POST', url: '/own', payload: { n: '5', more: 1 } }),
    app.inject({ method: 'POST', url: '/own', payload: { n: 'x' } }),
    app.inject('/fails'),
    app.inject('/nowhere')
  ]
  const answers = await Promise.all(calls)
  return answers.map(({ statusCode, body, headers: { date, ...headers } }) => ({ statusCode, body, headers }))
}

export const databaseUrl = process.argv[2] ?? ''
export const [bare, one, two] = [await open(undefined), await open('sqlite::memory:'), await open(databaseUrl)]
export const item = (itemCode: string) => ({ method: 'POST', url: '/stock/inventory', payload: { itemCode, name: itemCode, unit: 'each' } }) as const
await one.inject(item('ONE'))
await two.inject(item('TWO'))
export const codes = async (app: FastifyInstance) => (await app.inject('/stock/inventory')).json().data.map((row: { itemCode: string }) => row.itemCode)
export const [first, second] = [one, two].map((app) => app.getDecorator<Registry>('registry'))
console.log(JSON.stringify({
  bare: await own(bare),
  one: await own(one),
  codes: [await codes(one), await codes(two)],
  registries: first !== second && first !== global,
  global: global.getMetricsAsArray().length,
  problem: (await one.inject({ method: 'POST', url: '/stock/inventory', payload: {} })).headers['content-type']
}))
await Promise.all([bare.close(), one.close(), two.close()])
`,
  // What must not start, at compile time and at run time.
  refused: `
import Fastify, { type FastifyInstance } from 'fastify'
import core from 'inventory-enterprise/core'
import inventory from 'inventory-enterprise/inventory'
import forecasting from 'inventory-enterprise/forecasting'
import anomaly from 'inventory-enterprise/anomaly'
import cacheStats from 'inventory-enterprise/cache-stats'
import identity from 'inventory-enterprise/identity'

export const databaseUrl = 'sqlite::memory:'
export const authorize = async () => {}
export const said: Record<string, string> = {}
export async function attempt(name: string, start: (app: FastifyInstance) => Promise<unknown>) {
  const app = Fastify()
  try {
    await start(app)
    await app.ready()
    said[name] = 'started'
  } catch (error) {
    said[name] = String(error)
  }
  await app.close()
}
await attempt('no authorize', async (app) => {
  await app.register(core, { databaseUrl })
  // @ts-expect-error authorize is required
  await app.register(inventory, { prefix: '/stock' })
})
await attempt('authorize is no function', async (app) => {
  await app.register(core, { databaseUrl })
  // @ts-expect-error authorize is a hook
  await app.register(cacheStats, { authorize: true })
})
await attempt('no core: inventory', async (app) => { await app.register(inventory, { authorize }) })
await attempt('no core: cache-stats', async (app) => { await app.register(cacheStats, { authorize }) })
await attempt('no core: anomaly', async (app) => { await app.register(anomaly, { authorize, series: async () => [] }) })
await attempt('no core: forecasting', async (app) => {
  await app.register(forecasting, { authorize, consumption: { items: async () => [], dailyFlow: async () => [] } })
})
await attempt('no keys: identity', async (app) => {
  await app.register(core, { databaseUrl })
  await app.register(identity, { authorize })
})
await attempt('no database', async (app) => { await app.register(core, { databaseUrl: 'mysql://somewhere' }) })
console.log(JSON.stringify(said))
`,
  // No core: the host brings its own database, transactions and answers, and the module's tables through ./migrate.
  bare: `
import Sqlite from 'better-sqlite3'
import Fastify, { type FastifyInstance } from 'fastify'
import { Kysely, SqliteDialect } from 'kysely'
import { Registry } from 'prom-client'
import anomaly, { migrations } from 'inventory-enterprise/anomaly'
import cacheStats from 'inventory-enterprise/cache-stats'
import type { Answers, EnterModule, Tenant } from 'inventory-enterprise/core'
import { migrate } from 'inventory-enterprise/migrate'

export const db = new Kysely<unknown>({ dialect: new SqliteDialect({ database: new Sqlite(':memory:') }) })
export const set = { module: 'anomaly', migrations }
export const applied = [await migrate(db, [set]), await migrate(db, [set])]
export const tenant: Tenant = {
  id: 'host',
  dialect: 'sqlite',
  db,
  transact: (work) =>
    db.transaction().execute((tx) => work({ db: tx, publish: async () => {}, invalidate: () => {}, afterCommit: (run) => run(), audit: () => {} })),
  cache: { read: async () => { throw new Error('not used') } }
}
export const answers: Pick<Answers, 'read' | 'write'> = {
  read: async (_request, reply, _namespace, _key, load) => reply.send(await load()),
  write: async (_request, reply, status, work) => reply.code(status).send(await tenant.transact(work))
}
export const enterModule: EnterModule = (module: FastifyInstance, { authorize }) => void module.addHook('onRequest', authorize)

export const app = Fastify({ ajv: { customOptions: { keywords: ['x-personal-data'] } } })
app.decorateRequest('tenant', null)
app.decorateRequest('principal', null)
app.addHook('onRequest', async (request) => request.setDecorator('tenant', tenant))
app.decorate('enterModule', enterModule)
app.decorate('answers', answers)
app.decorate('registry', new Registry())
app.decorate('migrations', { add: () => {} })
app.decorate('caches', { stats: () => ({ backend: 'memory', hits: 1, misses: 1, hitRate: 0.5, keys: 1, memoryBytes: 9, byNamespace: {} }) })
await app.register(cacheStats, { prefix: '/x', authorize: async () => {} })
export const values = Float64Array.from({ length: 60 }, (_, n) => (n === 50 ? 500 : 10 + (n % 3)))
await app.register(anomaly, {
  prefix: '/x',
  authorize: async () => {},
  series: async (_tenant, { afterItemCode = '' }) => afterItemCode >= 'A' ? [] : [{ itemCode: 'A', start: '2026-01-05', values, missing: new Uint8Array(60) }]
})
export const stats = await app.inject('/x/cache/stats')
export const detected = await app.inject({ method: 'POST', url: '/x/ai/consumption/detect-anomalies', payload: {} })
export const listed = await app.inject('/x/anomalies')
await app.close()
await db.destroy()
console.log(JSON.stringify({ applied, stats: stats.json(), detected: detected.json(), listed: listed.json() }))
`
}
