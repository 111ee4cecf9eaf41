import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import Sqlite from 'better-sqlite3'
import t from 'tap'
import { createDerivation } from '../modules/forecasting/derive.js'
import { createNightly, NIGHTLY_JOB } from '../modules/forecasting/nightly.js'
import type { Breather } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import type { JobService } from '../plugins/jobs/index.js'
import { day, nightlyOf, onBothDatabases, WAIT, weeklyUse } from './ai-harness.js'
import { buildApp } from './helper.js'
import { patience } from './patience.js'
import { serviceEnvironment, startService } from './service-process.js'

/** To be killed while it writes. */
const soon = patience({ seconds: 60, pauseMs: 5 })

/** The training of the night, for each tenant its own, and what goes on of it where a process was killed. */

onBothDatabases(t, 'the nightly training', async (t, host) => {
  const { ledger, tenant, call, clock, app } = host
  const jobs = app.getDecorator<JobService>('jobs')
  await ledger.post(tenant, [...weeklyUse('A', 60, 9, 1), ...weeklyUse('B', 60, 4, 2), ...weeklyUse('C', 60, 2, 3)])
  await call('POST', '/api/ai/forecast/train', { itemCodes: ['A'], models: ['ses'], horizonDays: 10 }, WAIT)
  await call('POST', '/api/ai/forecast/train', { itemCodes: ['A'], models: ['naive'], frequency: 'week' }, WAIT)
  const node = () => nightlyOf(host)
  const started = async () =>
    (
      await tenant.db.withTables<{ jobs: { id: string; kind: string } }>().selectFrom('jobs').selectAll().execute()
    ).filter(({ kind }) => kind === NIGHTLY_JOB)
  clock.now = Date.parse(`${day(61)}T01:59:00Z`)
  await node().tick(tenant)
  t.equal((await started()).length, 0, 'not due yet')
  clock.now = Date.parse(`${day(61)}T02:01:00Z`)
  await Promise.all([node().tick(tenant), node().tick(tenant), node().tick(tenant)])
  await node().tick(tenant)
  const [first, ...others] = await started()
  t.same(others, [], 'one node starts it, once a day')
  const end = (id = '') => jobs.wait(tenant, id, 60)
  const { result } = await end(first?.id)
  t.match(
    result,
    { trained: 2, skipped: 2, failed: [] },
    'what was asked for is kept, the rest is trained by the defaults'
  )
  t.equal((await call('GET', '/api/ai/forecast/A')).body.model, 'ses')
  t.equal((await call('GET', '/api/ai/forecast/A')).body.points.length, 10)
  clock.now += 24 * 3_600_000
  await ledger.post(tenant, [{ itemCode: 'C', day: day(61), used: 2 }])
  await node().tick(tenant)
  const second = await end((await started()).find(({ id }) => id !== first?.id)?.id)
  t.match(second, { status: 'succeeded', result: { trained: 3, failed: [] }, progress: { done: 16, total: 16 } })
  t.equal((await call('GET', '/api/ai/forecast/A')).body.points.length, 10, 'as it was asked for')
})

t.test('each tenant has a night of its own', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite', tenancy: 'multi' })
  const tenants = app.getDecorator<Tenants>('tenants')
  const jobs = app.getDecorator<JobService>('jobs')
  // One moment: midnight would begin another night.
  const at = Date.now()
  const nightly = createNightly({
    jobs,
    derivation: createDerivation(
      { items: async () => [], dailyFlow: async () => [] },
      () => at,
      app.getDecorator<Breather>('breather')
    ),
    aggregate: async () => 0,
    hour: 0,
    now: () => at,
    train: async () => {
      throw new Error('the job is the service’s')
    }
  })
  for (const name of ['one', 'two']) await tenants.create(name)
  for (let round = 0; round < 2; round++) for (const tenant of await tenants.all()) await nightly.tick(tenant)
  for (const tenant of await tenants.all()) {
    const [[, job] = [], ...others] = await jobs.list(tenant, { kind: NIGHTLY_JOB })
    t.same(others, [], `${tenant.id}: one`)
    t.match(await jobs.wait(tenant, job?.id ?? '', 30), { status: 'succeeded', result: { trained: 0, failed: [] } })
  }
})

t.test('training goes on where a killed process stopped', async (t) => {
  const environment = await serviceEnvironment(t)
  let service = await startService(t, environment)
  const call = async (method: string, path: string, body?: string, headers: Record<string, string> = {}) => {
    const answer = await fetch(`${service.url}${path}`, {
      method,
      headers: { authorization: `Bearer ${service.token}`, ...headers },
      ...(body === undefined ? {} : { body })
    })
    const text = await answer.text()
    return JSON.parse(text)
  }
  const csv = { 'content-type': 'text/csv', prefer: 'wait=60' }
  const codes = Array.from({ length: 72 }, (_, i) => `K${i}`)
  await call(
    'POST',
    '/api/import/items',
    `itemCode,name,unit\n${codes.map((code) => `${code},${code},each`).join('\n')}`,
    csv
  )
  const from = Date.now() - 80 * 86_400_000
  const rows = codes.flatMap((code, i) => [
    `${code},receipt,100000,${new Date(from).toISOString()}`,
    ...Array.from({ length: 70 }, (_, n) => {
      const at = new Date(from + (n + 1) * 86_400_000).toISOString()
      return `${code},issue,${1 + ((n * 7 + i) % 13)},${at}`
    })
  ])
  const moved = await call(
    'POST',
    '/api/import/movements',
    `itemCode,type,quantity,occurredAt\n${rows.join('\n')}`,
    csv
  )
  t.equal(moved.status, 'succeeded')
  const json = { 'content-type': 'application/json' }
  const path = join(environment.DATA_DIR, 'inventory.sqlite')
  const execute = (text: string) => new Sqlite(path).exec(text).close()
  // Who would store a third one hangs instead, until it is killed.
  execute(`create trigger hang before insert on ai_models
    when (select count(*) from ai_models where status = 'active') >= 2 begin
    select (with recursive forever (n) as (select 1 union all select n + 1 from forever) select count(*) from forever); end`)
  const { id } = await call('POST', '/api/ai/forecast/train', '{}', json)
  const storedIn = () => {
    const file = new Sqlite(path)
    const rows = file.prepare("select count(*) from ai_models where status = 'active'").pluck().get()
    file.close()
    return Number(rows)
  }
  await soon('some are stored', () => storedIn() >= 2)
  await service.end('SIGKILL')
  execute('drop trigger hang')
  // Before the next process goes on with it.
  const stored = storedIn()
  t.ok(stored < codes.length, `${stored} of ${codes.length} were stored when it died`)
  service = await startService(t, environment)
  let job = await call('GET', `/api/jobs/${id}`)
  // The new process sees that the old one is dead and does not wait for its heartbeat to be missed.
  for (const deadline = Date.now() + 20_000; job.finishedAt === null && Date.now() < deadline; ) {
    await sleep(50)
    job = await call('GET', `/api/jobs/${id}`)
  }
  t.match(job, { status: 'succeeded', result: { failed: [] } })
  t.equal(job.result.trained + job.result.skipped, codes.length)
  t.ok(job.result.skipped >= stored, `${job.result.skipped} were not trained twice`)
  t.equal(await service.end('SIGTERM'), 0)
})
