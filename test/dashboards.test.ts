import { type SpawnSyncReturns, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { ROOT } from '../alerts/rules.js'
import { familiesOf, type Running, registryOf, withServices } from '../dashboards/families.js'
import { metricsDocument } from '../dashboards/metrics-document.js'
import type { Tenants } from '../plugins/core.js'
import { client } from './helper.js'

/** What can be said of metrics and dashboards without running Prometheus; `npm run verify:observability` does the rest. */

const SERIES_MAX = 6_000
/** Codes that one operation answers with, over a life: its success, 304, 400, 401, 403, 404, 409, 429, 500, 503. */
const CODES_MAX = 10
const TENANTS = ['north', 'south', 'west']

t.test('the metrics of the running program', async (t) => {
  // Many tenants and one have the same metrics.
  await withServices(
    async (running) => {
      await t.test('docs/metrics.md is what the program would write', async (t) => {
        const written = readFileSync(join(ROOT, 'docs', 'metrics.md'), 'utf8')
        t.equal(written, await metricsDocument(running), 'npm run docs:metrics writes it anew')
      })
      await t.test('names, units and labels', (t) => named(t, running))
      await t.test('promtool check metrics', (t) => checked(t, running))
      for (const app of Object.values(running)) await t.test('series are bounded', (t) => bounded(t, app))
      await t.test('what is counted at the seams', (t) => counted(t, running.sqlite))
    },
    { TENANCY: 'multi' }
  )
})

const SUFFIX: Readonly<Record<string, RegExp>> = { counter: /_total$/, histogram: /_(seconds|bytes|transactions)$/ }
/** Prometheus adds the first two; the others could have a value for each customer. */
const FORBIDDEN = ['job', 'instance', 'tenant', 'item', 'user', 'path', 'url', 'id']

async function named(t: Test, { sqlite, postgres }: Running): Promise<void> {
  const all = [...(await familiesOf(registryOf(sqlite))), ...(await familiesOf(registryOf(postgres)))]
  const own = new Set(all.map(({ name }) => name).filter((name) => !/^(nodejs|process)_/.test(name)))
  t.ok(own.size >= 90, `${own.size} metrics of our own`)
  for (const { name, type, help, labels } of all) {
    t.match(name, /^[a-z]+(_[a-z0-9]+)*$/)
    t.match(name, SUFFIX[type] ?? /(?<!_total)$/, `${name} is a ${type}`)
    t.notMatch(name, /_(ms|milliseconds|minutes|hours|kb|mb|percent)(_|$)/, `${name} is in base units`)
    if (own.has(name)) t.match(help, /^[A-Z0-9].{5,200}\.$/, name)
    for (const label of labels.keys()) t.notOk(FORBIDDEN.includes(label), `${name}{${label}}`)
  }
}

async function checked(t: Test, running: Running): Promise<void> {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/bin', '/usr/local/bin']
  const promtool = folders.map((folder) => join(folder, 'promtool')).find(existsSync)
  if (promtool === undefined)
    return void t.comment('promtool is not installed here; npm run verify:observability runs it')
  for (const app of Object.values(running)) {
    const { body } = await app.inject('/metrics')
    const answer: SpawnSyncReturns<string> = spawnSync(promtool, ['check', 'metrics'], {
      input: body,
      encoding: 'utf8'
    })
    t.equal(answer.status, 0, `${answer.stdout}${answer.stderr}`)
  }
}

async function seriesOf(app: FastifyInstance): Promise<{ http: number; others: number; total: number }> {
  const families = await familiesOf(registryOf(app))
  const sum = (names: RegExp) =>
    families.filter(({ name }) => names.test(name)).reduce((total, { series }) => total + series, 0)
  const http = sum(/^http_request(s_total|_duration_seconds)$/)
  return { http, others: sum(/./) - http, total: sum(/./) }
}

/** Every operation is asked without a token, by every tenant nothing changes, and what could still come is added up. */
async function bounded(t: Test, app: FastifyInstance): Promise<void> {
  const tenants = app.getDecorator<Tenants>('tenants')
  await tenants.create(TENANTS[0] ?? '')
  const operations = Object.entries(app.swagger().paths ?? {}).flatMap(([path, methods]) =>
    Object.keys(methods ?? {}).map((method) => ({ method: method.toUpperCase(), url: path.replace(/\{\w+\}/g, 'x') }))
  )
  t.ok(operations.length > 100)
  for (const { method, url } of operations) {
    if (method === 'GET' || method === 'POST' || method === 'PUT' || method === 'PATCH' || method === 'DELETE')
      await app.inject({ method, url })
  }
  await client(app, 'admin', { tenant: TENANTS[0] ?? '' }).get('/api/inventory')
  const one = await seriesOf(app)
  for (const tenant of TENANTS.slice(1)) {
    await tenants.create(tenant)
    await client(app, 'admin', { tenant }).get('/api/inventory')
  }
  const three = await seriesOf(app)
  t.same(three, one, 'tenants add none')
  const ofOne = await app.inject('/api/no-such-thing').then(() => seriesOf(app))
  t.ok(ofOne.http - three.http <= 16, 'and neither do paths that do not exist, beyond the one label for all of them')
  await app.inject('/api/nor-this')
  t.same(await seriesOf(app), ofOne)
  const most = operations.length * CODES_MAX + (three.http - operations.length) + three.others
  t.ok(most <= SERIES_MAX, `${three.total} series, at most ${most}`)
  t.comment(`${three.total} series, at most ${most}`)
}

async function sumOf(app: FastifyInstance, name: string, labels: Record<string, string> = {}): Promise<number> {
  const { values = [] } = (await registryOf(app).getSingleMetric(name)?.get()) ?? {}
  return values
    .filter((each) => Object.entries(labels).every(([label, value]) => each.labels[label] === value))
    .reduce((sum, { value }) => sum + value, 0)
}

async function counted(t: Test, app: FastifyInstance): Promise<void> {
  const [tenant = ''] = TENANTS
  const admin = client(app, 'admin', { tenant })
  const grew = async (by: number, name: string, labels: Record<string, string>, work: () => Promise<unknown>) => {
    const before = await sumOf(app, name, labels)
    await work()
    t.equal((await sumOf(app, name, labels)) - before, by, `${name} ${JSON.stringify(labels)}`)
  }
  const item = { itemCode: 'A', name: 'A', unit: 'each' }
  const idempotent = 'http_idempotency_outcomes_total'
  const again = { 'idempotency-key': 'k1' }
  await grew(1, idempotent, { outcome: 'stored' }, () => admin.post('/api/inventory', item, again))
  await grew(1, idempotent, { outcome: 'replayed' }, () => admin.post('/api/inventory', item, again))
  await grew(0, idempotent, { outcome: 'stored' }, () => admin.post('/api/inventory', item, again))
  await grew(1, idempotent, { outcome: 'conflict' }, () => admin.post('/api/inventory', { ...item, name: 'B' }, again))
  const invalid = 'http_validation_failures_total'
  await grew(1, invalid, { part: 'body' }, () => admin.post('/api/inventory', { ...item, nonsense: 1 }))
  await grew(1, invalid, { part: 'query' }, () => admin.get('/api/inventory?limit=0'))
  await grew(0, invalid, {}, () => admin.get('/api/inventory/unknown'))
  const receipt = { type: 'receipt', lines: [{ itemCode: 'A', quantity: 3 }] }
  await grew(1, 'inventory_movement_lines_total', { type: 'receipt' }, () => admin.post('/api/movements', receipt))
  const waits = { dialect: 'sqlite', le: '+Inf' }
  t.ok(
    (await sumOf(app, 'db_wait_seconds', waits)) >= (await sumOf(app, 'db_group_commit_transactions', { le: '+Inf' }))
  )
  t.ok((await sumOf(app, 'db_group_commit_transactions', { le: '+Inf' })) > 0)
  await grew(1, 'auth_revocation_checks_total', {}, () => admin.get('/api/inventory'))
  const wrong = { username: 'nobody', password: 'not the password', tenant }
  await grew(1, 'auth_lockouts_total', { limit: 'pair' }, async () => {
    for (let n = 0; n < 7; n++) await admin.post('/api/auth/login', wrong)
  })
  t.ok((await sumOf(app, 'nodejs_eventloop_seconds_total', { state: 'active' })) > 0)
  t.ok((await sumOf(app, 'process_memory_limit_bytes')) > 1e8)
  t.ok((await sumOf(app, 'app_start_duration_seconds')) > 0)
  t.equal(await sumOf(app, 'db_tenants'), TENANTS.length)
}
