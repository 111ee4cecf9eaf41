import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { JobTables } from '../plugins/jobs/store.js'
import { STALE, TIMINGS } from './jobs-harness.js'
import { change, rowOf, running, stage, until } from './jobs-stage.js'
import { ownTime } from './own-time.js'
import { redisUrl, startRedis } from './services.js'

// They mostly wait, each on a database of its own.
t.jobs = 4

/** For who must not take the jobs over because Redis is slow. */
const PATIENT = { redisAnswer: 10_000 }

for (const dialect of ['sqlite', 'postgres'] as const) {
  for (const queue of ['in-process', 'redis'] as const) {
    const options = () => (queue === 'redis' ? { redisUrl: redisUrl() } : {})

    t.test(`${dialect}, ${queue}: jobs run, end and say how`, async (t) => {
      const { serve } = await stage(t, dialect)
      const { jobs, tenant, lines } = await serve(options())
      const early = await jobs.start(tenant, 'add', { a: 1, b: 1 })
      t.match(early, { kind: 'add', status: 'queued', progress: { done: 0, total: 0 }, finishedAt: null })
      t.notOk('result' in early)
      await sleep(50)
      t.equal((await jobs.get(tenant, early.id)).status, 'queued', 'nothing runs before every kind is defined')
      await jobs.ready()
      const ended = await jobs.wait(tenant, early.id, 10)
      t.match(ended, { id: early.id, status: 'succeeded', progress: { done: 2, total: 2 }, result: { sum: 2 } })
      t.ok(Date.parse(ended.finishedAt ?? '') >= Date.parse(ended.createdAt))

      const end = async (kind: string, params: unknown) =>
        jobs.wait(tenant, (await jobs.start(tenant, kind, params)).id, 10)
      const problem = { code: 'TEST_OUT_OF_PAPER', message: 'Only 3 sheets are left.' }
      t.match(await end('fail', 'problem'), { status: 'failed', error: problem })
      const unknown = await end('fail', 'error')
      t.match(unknown, { status: 'failed', error: { code: 'JOB_FAILED', message: /reason that is in the log/ } })
      t.notMatch(JSON.stringify(unknown), /hunter2|secret/, 'a cause that nobody has worded stays here')
      t.ok(lines.some(({ level, fields }) => level === 'error' && 'job' in fields && fields.job === unknown.id))
      t.match(await end('fail', 'unserialisable'), { status: 'failed', error: { code: 'JOB_FAILED' } })
      const nothing = await end('fail', 'nothing')
      t.equal(nothing.status, 'succeeded')
      t.notOk('result' in nothing)

      await t.rejects(jobs.start(tenant, 'no-such-kind', {}), { code: 'JOB_KIND_UNKNOWN' })
      t.throws(() => jobs.define({ kind: 'add', run: async () => 1 }), /defined twice/)
      await t.rejects(jobs.get(tenant, 'x'), { code: 'JOB_NOT_FOUND' })
      await t.rejects(jobs.cancel(tenant, 'x'), { code: 'JOB_NOT_FOUND' })
      await t.rejects(jobs.wait(tenant, 'x', 1), { code: 'JOB_NOT_FOUND' })
    })

    t.test(`${dialect}, ${queue}: two runners never run one job twice`, async (t) => {
      const { serve } = await stage(t, dialect)
      const [a, b] = [await serve(options()), await serve(options())]
      const started = await Promise.all(
        Array.from({ length: 30 }, (_, n) => a.jobs.start(a.tenant, 'add', { a: n, b: 1 }))
      )
      // Each finds all of them queued, so each is handed every job.
      await Promise.all([a.jobs.ready(), b.jobs.ready()])
      const ended = await Promise.all(started.map(({ id }) => b.jobs.wait(b.tenant, id, 10)))
      t.same(
        ended.map(({ result }) => result),
        started.map((_, n) => ({ sum: n + 1 }))
      )
      t.same([...a.ran, ...b.ran].sort(), started.map(({ id }) => id).sort())
    })

    t.test(`${dialect}, ${queue}: cancelling`, async (t) => {
      const { serve } = await stage(t, dialect)
      const a = await serve({ ...options(), concurrency: 1, timings: PATIENT })
      const b = await serve()
      await a.jobs.ready()
      const first = await a.jobs.start(a.tenant, 'wait', null)
      await until(() => running(a.jobs, a.tenant, first.id))
      const second = await a.jobs.start(a.tenant, 'wait', null)
      const third = await a.jobs.start(a.tenant, 'deaf', null)
      const fourth = await a.jobs.start(a.tenant, 'wait-even-cancelled', null)

      t.match(await a.jobs.cancel(a.tenant, second.id), { status: 'cancelled', finishedAt: String })
      t.match(await a.jobs.cancel(a.tenant, fourth.id), { status: 'queued', finishedAt: null })
      await a.jobs.cancel(a.tenant, first.id)
      t.match(await a.jobs.wait(a.tenant, first.id, 5), { status: 'cancelled' })
      t.match(await a.jobs.cancel(a.tenant, first.id), { status: 'cancelled' }, 'once more changes nothing')

      await until(() => running(a.jobs, a.tenant, third.id))
      t.match(await b.jobs.cancel(b.tenant, third.id), { status: 'running' }, 'asked by a process that does not run it')
      await until(() => a.deaf.signal?.aborted === true)
      a.deaf.end()
      const ended = await b.jobs.wait(b.tenant, third.id, 5)
      t.match(ended, { status: 'cancelled', result: 'slept' }, 'what it did even so is told')
      t.notOk(a.ran.includes(second.id), 'a job cancelled in the queue never runs')
      t.match(await b.jobs.wait(b.tenant, fourth.id, 5), { status: 'cancelled' })
      t.ok([...a.ran, ...b.ran].includes(fourth.id), 'unless something waits for what it does then')

      const done = await a.jobs.start(a.tenant, 'add', { a: 1, b: 2 })
      await a.jobs.wait(a.tenant, done.id, 5)
      await t.rejects(a.jobs.cancel(a.tenant, done.id), { code: 'JOB_ENDED', status: 409 })
    })

    t.test(`${dialect}, ${queue}: a stop returns jobs to the queue, and the next start resumes them`, async (t) => {
      const { serve } = await stage(t, dialect)
      const a = await serve({ ...options(), timings: { close: 300 } })
      await a.jobs.ready()
      const polite = await a.jobs.start(a.tenant, 'wait', null)
      const deaf = await a.jobs.start(a.tenant, 'deaf', null)
      await until(async () => (await running(a.jobs, a.tenant, polite.id)) && running(a.jobs, a.tenant, deaf.id))
      const waited = a.jobs.wait(a.tenant, deaf.id, 30)
      const startedAt = ownTime(process.pid)
      await a.jobs.close()
      t.ok(ownTime(process.pid) - startedAt < 3_000, 'bounded though a job ignores its signal')
      t.match(await waited, { id: deaf.id }, 'nobody waits on after the stop')
      for (const { id } of [polite, deaf]) {
        t.match(await rowOf(a.tenant, id), { status: 'queued', attempts: 0, claim: null })
      }
      const late = await a.jobs.start(a.tenant, 'add', { a: 2, b: 2 })
      const b = await serve(options())
      await b.jobs.ready()
      await until(() => running(b.jobs, b.tenant, polite.id))
      t.match(await b.jobs.wait(b.tenant, late.id, 5), { result: { sum: 4 } })
      await until(() => b.ran.includes(deaf.id))
      a.deaf.end()
      await until(() => a.lines.some(({ message }) => /another run had taken over/.test(message)))
      t.ok(await running(b.jobs, b.tenant, deaf.id), 'the second goes on')
      b.deaf.end()
      t.match(await b.jobs.wait(b.tenant, deaf.id, 5), { status: 'succeeded', result: 'slept' })
      t.equal(b.ran.filter((id) => id === deaf.id).length, 1, 'what the first still did was not written')
    })
  }
}

for (const [dialect, queue] of [
  ['sqlite', 'in-process'],
  ['postgres', 'redis']
] as const) {
  t.test(`${dialect}, ${queue}: a job outlives the SIGKILL of its process`, async (t) => {
    const { serve, url, queueName } = await stage(t, dialect)
    const redis = queue === 'redis' ? redisUrl() : ''
    const options = redis === '' ? {} : { redisUrl: redis }
    const a = await serve({ ...options, consume: false, concurrency: 1, timings: PATIENT })
    const job = await a.jobs.start(a.tenant, 'wait', 1_000)
    const harness = fileURLToPath(new URL('./jobs-harness.js', import.meta.url))
    const child = spawn(process.execPath, [harness, url, redis, queueName], { stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => child.kill('SIGKILL'))
    await once(child.stdout, 'data')
    if (redis !== '') await a.jobs.ready()
    await until(() => running(a.jobs, a.tenant, job.id))
    child.kill('SIGKILL')
    await once(child, 'exit')
    t.ok(await running(a.jobs, a.tenant, job.id), 'nobody has noticed yet')
    const b = await serve({ ...options, timings: { stale: STALE } })
    await b.jobs.ready()
    t.match(await b.jobs.wait(b.tenant, job.id, 20), { status: 'succeeded', result: 'slept' })
    t.equal((await rowOf(b.tenant, job.id)).attempts, 2)
    t.match(await b.registry.metrics(), /job_retries_total\{task="wait"\} 1/)
  })
}

t.test('jobs of a dead process of the same data folder go on at once', async (t) => {
  const { serve, url, queueName } = await stage(t, 'sqlite')
  const dataDir = t.testdir()
  const timings = { ...TIMINGS, stale: 600_000 }
  const harness = fileURLToPath(new URL('./jobs-harness.js', import.meta.url))
  const starter = await serve({ dataDir, timings })
  const job = await starter.jobs.start(starter.tenant, 'wait', 300)
  const child = spawn(process.execPath, [harness, url, '', queueName, dataDir], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  t.teardown(() => child.kill('SIGKILL'))
  await once(child.stdout, 'data')
  await until(() => running(starter.jobs, starter.tenant, job.id))
  const meanwhile = await serve({ dataDir, timings })
  await meanwhile.jobs.ready()
  await meanwhile.jobs.close()
  t.equal((await rowOf(starter.tenant, job.id)).attempts, 1, 'a process that lives keeps its job')
  child.kill('SIGKILL')
  await once(child, 'exit')
  const elsewhere = await serve({ dataDir: join(dataDir, 'another'), timings })
  await elsewhere.jobs.ready()
  t.ok(await running(starter.jobs, starter.tenant, job.id), 'who does not see the process waits for its silence')
  const next = await serve({ dataDir, timings })
  await next.jobs.ready()
  t.match(await next.jobs.wait(next.tenant, job.id, 10), { status: 'succeeded', result: 'slept' })
  t.equal((await rowOf(next.tenant, job.id)).attempts, 2)
  for (const { jobs } of [starter, elsewhere, next]) await jobs.close()
  t.same(readdirSync(join(dataDir, 'processes')), [], 'nothing is left of those that ended')
})

t.test('jobs go on when Redis is absent, frozen, or killed between start and run', async (t) => {
  const { serve, closers } = await stage(t, 'sqlite')
  const redis = await startRedis()
  closers.unshift(() => redis.stop())
  const a = await serve({ redisUrl: redis.url, consume: false, timings: PATIENT })
  await a.jobs.ready()
  // Nobody takes from Redis here, so the job is lost with it.
  const lost = await a.jobs.start(a.tenant, 'add', { a: 1, b: 2 })
  await sleep(3 * TIMINGS.sweep)
  t.equal((await a.jobs.get(a.tenant, lost.id)).status, 'queued')
  await redis.kill()
  t.match(await a.jobs.wait(a.tenant, lost.id, 5), { status: 'succeeded', result: { sum: 3 } })
  const absent = await a.jobs.start(a.tenant, 'add', { a: 2, b: 2 })
  t.match(await a.jobs.wait(a.tenant, absent.id, 5), { result: { sum: 4 } })

  const b = await serve({ redisUrl: redis.url })
  const startedAt = ownTime(process.pid)
  await b.jobs.ready()
  t.ok(ownTime(process.pid) - startedAt < 1_000, 'a boot without Redis is not slow')
  await redis.restart()
  await until(() => b.lines.some(({ message }) => message === 'jobs are queued on Redis'))
  const back = await b.jobs.start(b.tenant, 'add', { a: 3, b: 2 })
  t.match(await b.jobs.wait(b.tenant, back.id, 5), { result: { sum: 5 } })

  const redisAnswer = 1_500
  const c = await serve({ redisUrl: redis.url, timings: { redisAnswer } })
  await c.jobs.ready()
  redis.freeze()
  const frozenAt = ownTime(process.pid)
  const frozen = await c.jobs.start(c.tenant, 'add', { a: 4, b: 2 })
  t.ok(ownTime(process.pid) - frozenAt < redisAnswer / 2, 'starting does not wait for Redis')
  t.match(await c.jobs.wait(c.tenant, frozen.id, 5), { result: { sum: 6 } })
  const closedAt = ownTime(process.pid)
  await b.jobs.close()
  t.ok(ownTime(process.pid) - closedAt < 6_000, 'nor does stopping, for long')
  redis.thaw()
})

t.test('dead processes: three attempts, cancellation, other machines; and old jobs go', async (t) => {
  const { serve } = await stage(t, 'sqlite')
  const starter = await serve({ node: 'node-b' })
  const start = async (kind: string, set: Partial<JobTables['jobs']>) => {
    const { id } = await starter.jobs.start(starter.tenant, kind, 1)
    if (Object.keys(set).length > 0) await change(starter.tenant, id, set)
    return id
  }
  const dead = { status: 'running', claim: 'x', heartbeat_at: Date.now() - 60_000 } as const
  const day = 86_400_000
  const lost = await start('wait', { ...dead, attempts: 3 })
  const cancelled = await start('wait', { ...dead, claim: 'y', attempts: 1, cancel_requested_at: Date.now() })
  const asked = { ...dead, claim: 'w', attempts: 1, cancel_requested_at: Date.now() }
  const cleaned = await start('wait-even-cancelled', asked)
  const elsewhere = await start('wait-here', {})
  const crashedElsewhere = await start('wait-here', { ...dead, claim: 'z', attempts: 1 })
  const abandoned = await start('wait-here', { heartbeat_at: Date.now() - 2 * day })
  const old = { status: 'failed', created_at: Date.now() - 32 * day, finished_at: Date.now() - 31 * day } as const
  const forgotten = await start('add', old)
  const kept = await start('add', { ...old, finished_at: Date.now() - 29 * day })

  const a = await serve()
  await a.jobs.ready()
  const get = (id: string) => a.jobs.get(a.tenant, id)
  t.match(await get(lost), { status: 'failed', error: { code: 'JOB_LOST', message: /ended 3 times/ } })
  t.match(await get(cancelled), { status: 'cancelled' })
  t.match(await a.jobs.wait(a.tenant, cleaned, 5), { status: 'cancelled' })
  t.match(await get(abandoned), { status: 'failed', error: { code: 'JOB_ABANDONED' } })
  await t.rejects(get(forgotten), { code: 'JOB_NOT_FOUND' })
  t.match(await get(kept), { status: 'failed' })
  await sleep(2 * TIMINGS.sweep)
  t.match(await get(elsewhere), { status: 'queued' }, 'local jobs wait for the machine that has their files')
  t.match(await get(crashedElsewhere), { status: 'running' })
  await starter.jobs.ready()
  t.match(await starter.jobs.wait(starter.tenant, elsewhere, 5), { status: 'succeeded' })
  t.match(await starter.jobs.wait(starter.tenant, crashedElsewhere, 5), { status: 'succeeded' })
  t.same(a.ran, [cleaned])

  // It could take the next job as well.
  await starter.jobs.close()
  const taken = await a.jobs.start(a.tenant, 'deaf', null)
  await until(() => a.ran.includes(taken.id))
  await change(a.tenant, taken.id, { claim: 'another' })
  a.deaf.end()
  await until(() => a.lines.some(({ message }) => /another run had taken over/.test(message)))
  t.match(await get(taken.id), { status: 'running' }, 'a run that was given up for dead does not write')
})

t.test('progress, heartbeat and metrics', async (t) => {
  const { serve } = await stage(t, 'sqlite')
  const before = await serve()
  await before.jobs.ready()
  await before.jobs.wait(before.tenant, (await before.jobs.start(before.tenant, 'add', { a: 1, b: 1 })).id, 5)
  await before.jobs.close()

  const { jobs, tenant, tenants, registry, deaf } = await serve({ concurrency: 1, timings: { stale: STALE } })
  jobs.define({
    kind: 'count',
    run: async ({ progress }) => {
      for (let done = 1; done <= 500; done++) {
        progress(done, 500)
        if (done % 10 === 0) await sleep(5)
      }
      progress(Number.NaN, -1)
      await sleep(150)
    }
  })
  await tenants.create('other')
  await jobs.ready()
  const text = await registry.metrics()
  for (const task of ['add', 'fail', 'wait', 'wait-here', 'count']) {
    for (const outcome of ['success', 'failure', 'cancelled']) {
      t.match(text, `job_runs_total{task="${task}",outcome="${outcome}"} 0`)
    }
    for (const name of ['retries_total', 'runs_in_progress', 'queue_depth', 'run_duration_seconds_count']) {
      t.match(text, `job_${name}{task="${task}"} 0`)
    }
  }
  t.match(text, /job_last_success_timestamp_seconds\{task="add"\} 1\d{9}/, 'known from before the restart')

  const countedFrom = performance.now()
  const job = await jobs.start(tenant, 'count', null)
  const seen = new Set<number>()
  await until(async () => {
    const row = await rowOf(tenant, job.id)
    seen.add(row.progress_done)
    return row.status === 'succeeded'
  })
  // A busy machine takes longer, in which there are more.
  const elapsed = performance.now() - countedFrom
  const most = 2 + elapsed / TIMINGS.progress + elapsed / TIMINGS.heartbeat
  t.ok(seen.size >= 3 && seen.size <= most, `500 calls are a few writes: ${seen.size} of ${most}`)
  t.ok([...seen].some((done) => done > 0 && done < 500))
  t.match(await jobs.get(tenant, job.id), { progress: { done: 0, total: 0 } }, 'what is no number is 0')

  const long = await jobs.start(tenant, 'deaf', null)
  await until(() => running(jobs, tenant, long.id))
  const longEnough = sleep(2 * STALE)
  const other = await tenants.get('other')
  const waiting = [await jobs.start(tenant, 'add', { a: 0, b: 0 }), await jobs.start(other, 'add', { a: 0, b: 0 })]
  const age = /job_queue_oldest_age_seconds\{task="add"\} (\S+)/
  let busy = ''
  await until(async () => {
    busy = await registry.metrics()
    return busy.includes('job_queue_depth{task="add"} 2') && Number(age.exec(busy)?.[1]) >= 0.1
  })
  t.match(busy, 'job_runs_in_progress{task="deaf"} 1')
  t.match(busy, 'job_queue_depth{task="add"} 2')
  const queuedFor = (Date.now() - Date.parse(waiting[0]?.createdAt ?? '')) / 1000
  t.ok(Number(age.exec(busy)?.[1]) <= queuedFor, 'in seconds')
  t.match(await jobs.wait(tenant, long.id, 0.01), { status: 'running', finishedAt: null }, 'waiting is bounded')
  await longEnough
  deaf.end()
  t.match(await jobs.wait(tenant, long.id, 5), { status: 'succeeded' }, 'a long job that beats is nobody else’s')
  t.equal((await rowOf(tenant, long.id)).attempts, 1)
  t.match(await jobs.wait(tenant, waiting[0]?.id ?? '', 5), { status: 'succeeded' })
  t.match(await jobs.wait(other, waiting[1]?.id ?? '', 5), { status: 'succeeded' })
  // Counted a moment after its end is on record.
  const counted = 'job_runs_total{task="add",outcome="success"} 2'
  await until(async () => (await registry.metrics()).includes(counted))
  t.match(await registry.metrics(), 'job_runs_in_progress{task="deaf"} 0')
})

t.test('one tenant’s broken database does not stop the others', async (t) => {
  const { serve } = await stage(t, 'sqlite')
  const { jobs, tenant, tenants, lines } = await serve()
  const broken = await tenants.create('broken')
  await broken.transact(({ db }) => db.schema.dropTable('jobs').execute())
  await jobs.ready()
  t.ok(lines.some(({ level, fields }) => level === 'warn' && 'tenant' in fields && fields.tenant === 'broken'))
  const job = await jobs.start(tenant, 'add', { a: 1, b: 1 })
  t.match(await jobs.wait(tenant, job.id, 5), { status: 'succeeded' })
})

t.test('a database that is away for a moment costs no run', async (t) => {
  const { serve } = await stage(t, 'sqlite')
  const { jobs, tenant, tenants, ran, lines, deaf } = await serve()
  await jobs.ready()
  const job = await jobs.start(tenant, 'deaf', null)
  await until(() => running(jobs, tenant, job.id))
  tenants.away = true
  await t.rejects(jobs.start(tenant, 'add', { a: 1, b: 1 }), /ECONNREFUSED/)
  await until(() => lines.some(({ message }) => /progress of a job could not be written/.test(message)))
  deaf.end()
  await sleep(TIMINGS.sweep)
  t.match(await jobs.get(tenant, job.id), { status: 'running' }, 'it has ended, which cannot be written yet')
  tenants.away = false
  t.match(await jobs.wait(tenant, job.id, 5), { status: 'succeeded', result: 'slept' })
  t.same(ran, [job.id])
})
