import { randomInt, randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { Type } from 'typebox'
import { type Answers, access, type EnterModule, type Tenant } from '../../plugins/contracts.js'
import { problem } from '../../plugins/http/problem.js'
import { Closed, problems, Text } from '../../schemas/common.js'
import { client, eachDialect } from '../helper.js'
import { fuzz } from './fuzzer.js'
import { openService, type Service } from './service.js'

/** `FUZZ_SECONDS=600 npm test -- fuzz` looks longer; `FUZZ_SEED=n` sends again what a failed run names. */
const SEED = Number(process.env.FUZZ_SEED ?? randomInt(2 ** 31))
const MILLISECONDS = Number(process.env.FUZZ_SECONDS ?? 4) * 500
/** Pages and files, and what is wrong on purpose. */
const OTHERS = /^\/(docs|openapi\.json|api\/planted)/

/** A few of everything, so that there is something to name. */
async function furnish(app: FastifyInstance): Promise<void> {
  const admin = client(app, 'admin')
  const made = async (url: string, body: object) => {
    const { status, text } = await admin.post(url, body)
    if (status >= 300) throw new Error(`${url}: ${status} ${text}`)
  }
  await made('/api/locations', { location: 'shelf', name: 'Shelf' })
  await made('/api/inventory/categories', { name: 'Dry' })
  for (const [itemCode, tracking] of [
    ['A-1', 'none'],
    ['B-2', 'lot'],
    ['C-3', 'serial']
  ])
    await made('/api/inventory', { itemCode, name: itemCode, unit: 'each', tracking, category: 'Dry', unitCost: 1.25 })
  const lines = [
    { itemCode: 'A-1', quantity: 1_000_000, unitCost: 2 },
    { itemCode: 'B-2', quantity: 1_000_000, lot: 'L-1' }
  ]
  await made('/api/movements', { type: 'receipt', lines })
  await made('/api/reservations', { itemCode: 'A-1', quantity: 2 })
}

const Refused = problem('TEST_REFUSED', 409, { en: 'Refused.', fr: 'Refusé.' })

/** Handlers that are wrong, each in one way. */
async function badHandlers(app: FastifyInstance): Promise<void> {
  await app.register(
    async (bad) => {
      const { authorize } = bad.getDecorator<{ authorize: () => void }>('auth')
      bad.getDecorator<EnterModule>('enterModule')(bad, { authorize })
      const answers = bad.getDecorator<Answers>('answers')
      const config = access('viewer')
      const response = { 200: Closed({ ok: Type.Boolean() }), ...problems }
      const body = Closed({ note: Text })
      const write = async (tenant: Tenant) =>
        tenant.transact(({ db }) =>
          sql`insert into ${sql.table('categories')} (name) values (${randomUUID()})`.execute(db)
        )
      bad.post<{ Body: { note: string } }>('/crash', { config, schema: { body, response } }, async ({ body }) => {
        if (body.note.includes("'")) throw new TypeError('an assumption that does not hold')
        return { ok: true }
      })
      bad.post('/status', { config, schema: { body, response } }, async (_, reply) =>
        reply.code(207).send({ ok: true })
      )
      bad.get('/body', { config, schema: { response } }, async (_, reply) =>
        reply.type('application/json; charset=utf-8').send(Buffer.from('{"ok":"yes"}'))
      )
      bad.post('/refusal', { config, schema: { body, response } }, async (request) => {
        await write(request.getDecorator<Tenant>('tenant'))
        throw new Refused({})
      })
      bad.get('/read', { config, schema: { response } }, async (request) => {
        await write(request.getDecorator<Tenant>('tenant'))
        return { ok: true }
      })
      bad.post(
        '/schema',
        { config, schema: { body, response }, validatorCompiler: () => () => true },
        (request, reply) => answers.write(request, reply, 200, async () => ({ ok: true }))
      )
    },
    { prefix: '/api/planted' }
  )
}

const FOUND: Record<string, RegExp> = {
  '/api/planted/crash': /answered 500/,
  '/api/planted/status': /answered 207, which is not declared/,
  '/api/planted/body': /answered 200, .*must be boolean/,
  '/api/planted/refusal': /answered 409 and has changed categories/,
  '/api/planted/read': /answered 200 and has changed categories/,
  '/api/planted/schema': /answered 200 to a body that its schema refuses/
}

async function madeFromSchemas(t: Test, service: Service): Promise<void> {
  await furnish(service.app)
  const routes = service.routes.filter(({ method, url }) => method !== 'HEAD' && !OTHERS.test(url))
  const { defect, requests, statuses, succeeded } = await fuzz(service, routes, {
    seed: SEED,
    milliseconds: MILLISECONDS
  })
  t.equal(defect, undefined, `FUZZ_SEED=${SEED}: ${requests} requests`)
  const counts = [...statuses].sort(([a], [b]) => a - b).map(([status, count]) => `${count} × ${status}`)
  t.comment(
    `FUZZ_SEED=${SEED}: ${requests} requests to ${routes.length} routes, ${succeeded.size} of which succeeded; ${counts.join(', ')}`
  )
  t.ok(requests > 50, `${requests} requests`)
  t.ok([...statuses.keys()].some((status) => status < 300) && statuses.has(400), 'right and wrong ones')
}

async function badHandlersFound(t: Test, service: Service): Promise<void> {
  const planted = service.routes.filter(({ method, url }) => method !== 'HEAD' && url.startsWith('/api/planted/'))
  t.same(planted.map(({ url }) => url).sort(), Object.keys(FOUND).sort())
  for (const route of planted) {
    const { defect } = await fuzz(service, [route], { seed: 1, runs: 300, milliseconds: 10_000 })
    t.match(defect, FOUND[route.url], `${route.url} is caught`)
  }
}

await eachDialect(t, async (t, dialect) => {
  const service = await openService(t, { dialect, plant: badHandlers })
  await t.test('requests made from the schemas', (t) => madeFromSchemas(t, service))
  await t.test('bad handlers are found', (t) => badHandlersFound(t, service))
})
