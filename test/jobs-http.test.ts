import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { Type } from 'typebox'
import {
  type Answers,
  type Auth,
  access,
  type EnterModule,
  type Tenant,
  type Transaction
} from '../plugins/contracts.js'
import core from '../plugins/core.js'
import { Forbidden, useProblems } from '../plugins/http/errors.js'
import { leaseKey } from '../plugins/http/idempotency-keys.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { createValidatorCompiler } from '../plugins/http/validation.js'
import type { JobService } from '../plugins/jobs/index.js'
import { jobRoutes } from '../plugins/jobs/routes.js'
import type { JobTables } from '../plugins/jobs/store.js'
import type { Tenants } from '../plugins/tenants.js'
import { Closed, Job, problems } from '../schemas/common.js'
import { bearer } from './app-harness.js'
import { type Dialect, eachDialect } from './helper.js'
import { change, stage } from './jobs-stage.js'
import { patience } from './patience.js'
import { freshDatabase } from './services.js'

const until = patience({ seconds: 30 })

t.test('over HTTP', async (t) => {
  const { serve, closers } = await stage(t, 'postgres')
  const { jobs, tenant } = await serve({ concurrency: 1 })
  const app = Fastify()
  closers.push(() => app.close())
  const enterModule: EnterModule = (context, { authorize }) => {
    context.setValidatorCompiler(createValidatorCompiler())
    useProblems(context)
    context.addHook('onRequest', authorize)
  }
  app
    .decorate('jobs', jobs)
    .decorate('enterModule', enterModule)
    .decorateRequest('tenant', null)
    .decorateRequest('principal', null)
  await app.register(jobRoutes, {
    prefix: '/api/jobs',
    authorize: (request, _reply, done) => {
      request.setDecorator('tenant', tenant)
      const { config } = request.routeOptions
      const required = 'role' in config ? String(config.role) : 'none'
      const role = String(request.headers.role ?? 'staff')
      done(required === role || role === 'manager' ? undefined : new Forbidden({ required, role }))
    }
  })
  const call = async (method: 'GET' | 'DELETE', url: string, role = 'manager') => {
    const { statusCode: status, payload } = await app.inject({ method, url: `/api/jobs${url}`, headers: { role } })
    return { status, body: JSON.parse(payload) }
  }
  const ids: string[] = []
  for (let n = 0; n < 7; n++) ids.push((await jobs.start(tenant, n % 2 === 0 ? 'add' : 'wait', { a: n, b: 0 })).id)
  // The same time for all: the id decides.
  for (const id of ids) await change(tenant, id, { created_at: 1_700_000_000_000 })
  const newest = [...ids].sort().reverse()

  const read: string[] = []
  let cursor = ''
  for (let pages = 0; pages < 10; pages++) {
    const { status, body } = await call('GET', `?limit=3${cursor === '' ? '' : `&cursor=${cursor}`}`, 'staff')
    t.equal(status, 200)
    read.push(...body.data.map(({ id }: Job) => id))
    if (body.page.nextCursor === null) break
    cursor = body.page.nextCursor
  }
  t.same(read, newest)
  const adds = await call('GET', '?kind=add&status=queued')
  t.equal(adds.body.data.length, 4)
  t.same(adds.body.page, { limit: 50, nextCursor: null })
  for (const bad of [
    `?kind=add&cursor=${cursor}`,
    '?cursor=%7B',
    `?cursor=${Buffer.from('[1]').toString('base64url')}`
  ]) {
    t.match(await call('GET', bad), { status: 400, body: { code: 'CURSOR_INVALID' } })
  }
  for (const bad of ['?limit=0', '?status=lost', '?colour=red', '/not-a-uuid']) {
    t.match(await call('GET', bad), { status: 400, body: { code: 'REQUEST_INVALID' } })
  }

  const [first = ''] = ids
  t.match(await call('GET', `/${first}`), {
    status: 200,
    body: { id: first, kind: 'add', status: 'queued', createdAt: '2023-11-14T22:13:20.000Z', finishedAt: null }
  })
  t.match(await call('GET', `/${randomUUID()}`), { status: 404, body: { code: 'JOB_NOT_FOUND' } })
  t.match(await call('DELETE', `/${first}`, 'staff'), {
    status: 403,
    body: { code: 'AUTH_FORBIDDEN', required: 'manager' }
  })
  t.match(await call('DELETE', `/${first}`), { status: 202, body: { id: first, status: 'cancelled' } })
  t.match(await call('DELETE', `/${first}`), { status: 202, body: { status: 'cancelled' } })
  await jobs.ready()
  const third = ids[2] ?? ''
  await jobs.wait(tenant, third, 5)
  t.match(await call('GET', `/${third}`), { body: { status: 'succeeded', result: { sum: 2 }, progress: { done: 2 } } })
  t.match(await call('DELETE', `/${third}`), { status: 409, body: { code: 'JOB_ENDED', jobStatus: 'succeeded' } })
})

/** A service with the core alone, and an upload that is looked through for as long as the test wants. */
async function uploads(t: Test, dialect: Dialect) {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const app = Fastify({ ...serverOptions({ logLevel: 'silent' }) })
  t.teardown(() => app.close())
  await app.register(core, {
    databaseUrl: database?.url ?? `sqlite:${t.testdir()}/uploads.sqlite`,
    jwtKeys: [{ id: 'k1', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }]
  })
  const answers = app.getDecorator<Answers>('answers')
  const jobs = app.getDecorator<JobService>('jobs')
  jobs.define({ kind: 'test.upload', run: async () => ({ done: true }) })
  /** What its check waits for, and what its start does once the job is on record. */
  const upload = { check: async () => {}, started: () => {} }
  await app.register(async (plugin) => {
    const { authorize } = app.getDecorator<Auth>('auth')
    app.getDecorator<EnterModule>('enterModule')(plugin, { authorize })
    plugin.post<{ Body: { bytes: string } }>(
      '/upload',
      {
        schema: {
          tags: ['test'],
          body: Closed({ bytes: Type.String() }),
          response: { 200: Job, 202: Job, ...problems }
        },
        config: access('manager')
      },
      async (request, reply) => {
        const tenant = request.getDecorator<Tenant>('tenant')
        const start = async (tx: Transaction) => {
          const job = await jobs.start(tenant, 'test.upload', null, tx)
          upload.started()
          return job
        }
        const { check } = upload
        return answers.job(request, reply, start, { fingerprint: request.body.bytes, check })
      }
    )
  })
  await app.ready()
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  return {
    upload,
    tenant,
    send: async (key: string, bytes = 'a', more: Record<string, string> = {}) => {
      const { statusCode, payload, headers } = await app.inject({
        method: 'POST',
        url: '/upload',
        payload: { bytes },
        headers: { ...bearer(app), 'idempotency-key': key, ...more }
      })
      return { status: statusCode, text: payload, body: JSON.parse(payload), applied: headers['preference-applied'] }
    },
    jobsOnRecord: async () => (await jobs.list(tenant)).length,
    keys: () => tenant.db.withTables<{ idempotency_keys: Key }>().selectFrom('idempotency_keys').selectAll().execute(),
    /** As if its process had stood still for so long. */
    passTime: (milliseconds: number) =>
      tenant.transact((tx) =>
        tx.db
          .withTables<{ idempotency_keys: Key }>()
          .updateTable('idempotency_keys')
          .set((eb) => ({ created_at: eb('created_at', '-', milliseconds) }))
          .execute()
      )
  }
}
type Key = { key: string; status: number | null; created_at: number }

await eachDialect(t, async (t, dialect) => {
  const { upload, tenant, send, jobsOnRecord, keys, passTime } = await uploads(t, dialect)
  const busy = { status: 409, body: { code: 'IDEMPOTENCY_IN_PROGRESS' } }

  t.test('a job, the answer and its key are one', async (t) => {
    upload.started = () => {
      throw new Forbidden({ required: 'manager', role: 'nobody' })
    }
    t.equal((await send('one')).status, 403)
    t.same([await jobsOnRecord(), await keys()], [0, []], 'neither is there')
    upload.started = () => {}
    const first = await send('one')
    t.equal(first.status, 202)
    t.equal((await send('one')).text, first.text)
    t.match(await send('one', 'b'), { status: 422, body: { code: 'IDEMPOTENCY_KEY_REUSED' } })
    t.equal(await jobsOnRecord(), 1)
    const { id } = first.body
    const job = tenant.db.withTables<JobTables>().selectFrom('jobs').select('status').where('id', '=', id)
    await until('it has run', async () => (await job.executeTakeFirst())?.status === 'succeeded')
  })

  t.test('of an upload and its retry only one starts, however long the first is read', async (t) => {
    const before = await jobsOnRecord()
    let read = () => {}
    upload.check = () =>
      new Promise<void>((resolve) => {
        read = resolve
      })
    const first = send('two')
    await until('the first is read', async () => (await keys()).some(({ status }) => status === null))
    upload.check = async () => {}
    t.match(await send('two'), busy)
    await passTime(50_000)
    t.match(await send('two'), busy)
    await passTime(11_000)
    const second = await send('two')
    t.equal(second.status, 202, 'one that is not heard of for a minute is taken for dead')
    read()
    t.match(await first, busy, 'and if it was not, it does nothing')
    t.equal((await send('two')).text, second.text)
    t.equal(await jobsOnRecord(), before + 1)
  })

  t.test('Prefer: who waits, and for how long', async (t) => {
    for (const [prefer, applied] of [
      ['wait=20', 'wait=20'],
      ['Wait=20', 'wait=20'],
      ['respond-async, WAIT = "20"; foo=bar', 'wait=20'],
      ['wait=99999', 'wait=60'],
      ['wait=1e9', undefined],
      ['wait=2.5', undefined],
      ['wait=-3', undefined],
      ['wait', undefined],
      ['await=20', undefined]
    ] as const) {
      const answer = await send(`prefer ${prefer}`.replace(/[^\w=.-]/g, '_'), 'a', { prefer })
      t.match(answer, { status: applied === undefined ? 202 : 200, applied }, prefer)
    }
  })

  t.test('a key is renewed as long as it is held', async (t) => {
    const lease = await leaseKey(tenant, 'three', 'hash', 10)
    if ('status' in lease) throw new Error('it was free')
    const instant = async () => (await keys()).find(({ key }) => key === 'three')?.created_at ?? 0
    const taken = await instant()
    await until('it is renewed', async () => (await instant()) > taken)
    await lease.stop()
    const last = await instant()
    await sleep(50)
    t.equal(await instant(), last, 'and no longer')
    await lease.release()
    t.equal(await instant(), 0)
    await t.rejects(
      tenant.transact((tx) => lease.keep(tx, { status: 202, headers: {}, body: '' })),
      { code: 'IDEMPOTENCY_IN_PROGRESS' }
    )
  })
})
