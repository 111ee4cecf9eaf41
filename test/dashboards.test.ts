import { type SpawnSyncReturns, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { Type } from 'typebox'
import { Value } from 'typebox/value'
import { groupingsOf, selectorsOf } from '../alerts/promql.js'
import { ROOT, readYaml, recordingsOf, ruleFiles } from '../alerts/rules.js'
import { type Family, familiesOf, type Running, registryOf, withServices } from '../dashboards/families.js'
import { LOCALES } from '../dashboards/grafana.js'
import { DASHBOARDS } from '../dashboards/index.js'
import { DashboardJson, filled, panelsOf, RULES } from '../dashboards/lint.js'
import { metricsDocument } from '../dashboards/metrics-document.js'
import { dashboardFiles, JSON_FOLDER } from '../dashboards/write.js'
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
      await t.test('dashboards name metrics, labels and values that there are', (t) => shown(t, running))
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

/** What Node.js tells of its own resources comes and goes, and is few. */
const NODE_SERIES_MAX = 100

async function seriesOf(app: FastifyInstance): Promise<{ http: number; others: number }> {
  const families = await familiesOf(registryOf(app))
  const sum = (names: RegExp) =>
    families.filter(({ name }) => names.test(name)).reduce((total, { series }) => total + series, 0)
  const http = sum(/^http_request(s_total|_duration_seconds)$/)
  return { http, others: sum(/^(?!nodejs_)/) - http }
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
  const most = operations.length * CODES_MAX + (three.http - operations.length) + three.others + NODE_SERIES_MAX
  t.ok(most <= SERIES_MAX, `at most ${most} series`)
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

const dashboards = [...dashboardFiles()].map(([name, text]) => ({
  name,
  json: Value.Parse(DashboardJson, JSON.parse(text))
}))

t.test('dashboards/json is what the sources beside it make', async (t) => {
  const written = readdirSync(JSON_FOLDER, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.json')
  )
  t.same(written.sort(), [...dashboardFiles().keys()].sort())
  for (const [name, text] of dashboardFiles())
    t.equal(readFileSync(join(JSON_FOLDER, name), 'utf8'), text, `${name}: npm run dashboards writes it anew`)
  const panels = DASHBOARDS.flatMap(({ rows }) => rows.flatMap((row) => row.panels))
  t.ok(panels.length >= 70, `${panels.length} panels`)
  t.equal(DASHBOARDS.length, 7)
  t.equal(dashboards.length, DASHBOARDS.length * LOCALES.length)
  t.equal(new Set(dashboards.map(({ json }) => json.uid)).size, dashboards.length)
  for (const { title, runbooks = [], levels = [] } of panels) {
    t.ok(
      title.every((each) => each.length > 1 && each.length < 45),
      title[0]
    )
    for (const name of runbooks) t.ok(existsSync(join(ROOT, 'docs', 'runbooks', `${name}.md`)), name)
    t.same(
      levels.map(([from]) => from),
      levels.map(([from]) => from).sort((one, other) => one - other),
      title[0]
    )
  }
})

t.test('who reads French reads French', async (t) => {
  const written = ({ uid }: { uid: string }, locale: string) => {
    const found = dashboards.find(({ name }) => name.startsWith(`${locale}/`) && name.includes(`/${uid}`))?.json
    return { ...found, described: found === undefined ? [] : panelsOf(found).map(({ description }) => description) }
  }
  for (const dashboard of DASHBOARDS) {
    const panels = dashboard.rows.flatMap((row) => row.panels)
    for (const [en, fr] of [dashboard.about, ...panels.map(({ about }) => about)]) {
      t.match(fr, /^(?!.*').{6,}\.$/, fr)
      t.not(fr, en)
    }
    for (const [n, locale] of LOCALES.entries()) {
      const { description, described } = written(dashboard, locale)
      t.equal(description, dashboard.about[n])
      t.same(
        described,
        panels.map(({ about }) => about[n]),
        locale
      )
    }
  }
})

t.test('the rules of Grafana’s linter hold, and each is seen to fail', async (t) => {
  for (const { name, json } of dashboards) {
    for (const [rule, check] of Object.entries(RULES)) t.same(check(json), [], `${name} ${rule}`)
  }
  const [first] = dashboards
  if (first === undefined) throw new Error('there are no dashboards')
  const text = JSON.stringify(first.json)
  const broken: Record<keyof typeof RULES, [string | RegExp, string]> = {
    'template-datasource-rule': ['"query":"prometheus"', '"query":"loki"'],
    'template-job-rule': ['"label":"Job"', '"label":"J"'],
    'template-instance-rule': ['"allValue":".+"},', '"allValue":".+"},'],
    'template-label-promql-rule': ['label_values(app_build_info, job)', 'label_values(app_build_info{, job)'],
    'template-on-time-change-reload-rule': ['"refresh":2', '"refresh":1'],
    'panel-datasource-rule': [/"uid":"\$\{datasource\}"(?=[^[]*"gridPos")/, '"uid":"prometheus"'],
    'panel-title-description-rule': [/"description":"Items that[^"]+"/, '"description":""'],
    'panel-units-rule': ['"unit":"short"', '"unit":"apples"'],
    'panel-no-targets-rule': [/"targets":\[[^\]]+\]/, '"targets":[]'],
    'target-promql-rule': ['"expr":"max(', '"expr":"max(('],
    'target-rate-interval-rule': ['[$__rate_interval]', '[5m]'],
    'target-job-rule': ['job=~\\"$job\\",', ''],
    'target-instance-rule': [',instance=~\\"$instance\\"', ''],
    'target-counter-agg-rule': ['rate(inventory_stock_movements_total', 'deriv(inventory_stock_movements_total'],
    'uneditable-dashboard-rule': ['"editable":false', '"editable":true'],
    'own-legend-rule': ['"legendFormat":"{{status}}"', '"legendFormat":"{{state}}"'],
    'own-unique-rule': ['"title":"Stock value"', '"title":"Active items"'],
    'own-layout-rule': ['"w":4', '"w":25']
  }
  broken['template-instance-rule'] = ['"label":"Instance"', '"label":"I"']
  t.same(Object.keys(broken).sort(), Object.keys(RULES).sort())
  for (const [rule, [from, to]] of Object.entries(broken)) {
    const mutated = text.replace(from, () => to)
    t.not(mutated, text, `${rule}: something was changed`)
    const found = RULES[rule]?.(Value.Parse(DashboardJson, JSON.parse(mutated))) ?? []
    t.ok(found.length > 0, `${rule} notices`)
  }
})

/** What Prometheus tells of its scrapes. */
const OF_PROMETHEUS = ['up', 'scrape_duration_seconds', 'scrape_samples_post_metric_relabeling']

/** A metric that is renamed here, or a label or value that goes, is noticed by each query that names it. */
async function shown(t: Test, { sqlite, postgres }: Running): Promise<void> {
  const families = [...(await familiesOf(registryOf(sqlite))), ...(await familiesOf(registryOf(postgres)))]
  const bySeries = new Map<string, Family[]>()
  for (const family of families) {
    const names = ['', ...(family.type === 'histogram' ? ['_bucket', '_sum', '_count'] : [])].map(
      (end) => family.name + end
    )
    for (const name of names) bySeries.set(name, [...(bySeries.get(name) ?? []), family])
  }
  const recorded = new Set([...ruleFiles().values()].flatMap(recordingsOf).map(({ record }) => record))
  const wrong = new Set<string>()
  const queries = dashboards.flatMap(({ json }) =>
    panelsOf(json).flatMap(({ targets = [] }) => targets.map(({ expr }) => filled(expr)))
  )
  t.ok(queries.length > 300, `${queries.length} queries`)
  for (const query of queries) {
    const labels = new Set(['job', 'instance', 'worker', 'le'])
    for (const { metric, matchers } of selectorsOf(query)) {
      if (OF_PROMETHEUS.includes(metric) || recorded.has(metric)) continue
      const found = bySeries.get(metric)
      if (found === undefined) wrong.add(metric)
      for (const label of found?.flatMap((family) => [...family.labels.keys()]) ?? []) labels.add(label)
      for (const { label, operator, value } of matchers) {
        if (!labels.has(label)) wrong.add(`${metric}{${label}}`)
        const values = found?.flatMap((family) => family.labels.get(label) ?? []) ?? []
        if (values.length > 0 && operator === '=' && !values.includes(value))
          wrong.add(`${metric}{${label}="${value}"}`)
      }
    }
    for (const label of groupingsOf(query)) if (!labels.has(label)) wrong.add(`${label} in ${query}`)
  }
  t.same([...wrong].sort(), [])
}

const Providers = Type.Object({
  providers: Type.Array(Type.Object({ folder: Type.String(), options: Type.Object({ path: Type.String() }) }))
})
const Sources = Type.Object({
  datasources: Type.Array(
    Type.Object({
      uid: Type.String(),
      type: Type.String(),
      url: Type.String(),
      jsonData: Type.Object({
        exemplarTraceIdDestinations: Type.Array(Type.Object({ name: Type.String(), url: Type.String() }))
      })
    })
  )
})
const Compose = Type.Object({
  services: Type.Object({ grafana: Type.Object({ volumes: Type.Array(Type.String()) }) })
})

t.test('the compose file mounts the dashboards where Grafana is told to look', async (t) => {
  const deployed = join(ROOT, 'deploy', 'monitoring', 'grafana', 'provisioning')
  const { services } = readYaml(join(ROOT, 'deploy', 'compose.yaml'), Compose)
  const mounts = services.grafana.volumes.map((each) => each.split(':'))
  const [from = '', to = ''] = mounts.find(([path = '']) => path.includes('dashboards')) ?? []
  t.equal(join(ROOT, 'deploy', from), JSON_FOLDER)
  const { providers } = readYaml(join(deployed, 'dashboards', 'inventory.yml'), Providers)
  t.same(providers.map(({ options }) => options.path).sort(), LOCALES.map((locale) => join(to, locale)).sort())
  t.equal(new Set(providers.map(({ folder }) => folder)).size, providers.length)
  const { datasources } = readYaml(join(deployed, 'datasources', 'prometheus.yml'), Sources)
  const [source] = datasources
  t.match(source, { type: 'prometheus', url: 'http://prometheus:9090' })
  t.match(source?.jsonData.exemplarTraceIdDestinations, [{ name: 'trace_id', url: /\/\$\$\{__value\.raw\}$/ }])
  t.ok(mounts.some(([path]) => path === './monitoring/grafana/provisioning'))
})
