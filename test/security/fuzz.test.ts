import { randomInt } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { client, eachDialect } from '../helper.js'
import { fuzz } from './fuzzer.js'
import { openService } from './service.js'

/** `FUZZ_SECONDS=600 npm test -- fuzz` looks longer; `FUZZ_SEED=n` sends again what a failed run names. */
const SEED = Number(process.env.FUZZ_SEED ?? randomInt(2 ** 31))
const MILLISECONDS = Number(process.env.FUZZ_SECONDS ?? 4) * 500
/** These are pages and files, not the API. */
const DOCS = /^\/(docs|openapi\.json)/

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

await eachDialect(t, async (t, dialect) => {
  const service = await openService(t, { dialect })
  await furnish(service.app)
  const routes = service.routes.filter(({ method, url }) => method !== 'HEAD' && !DOCS.test(url))
  const { defect, requests, statuses, succeeded } = await fuzz(service, routes, {
    seed: SEED,
    milliseconds: MILLISECONDS
  })
  t.equal(defect, undefined, `FUZZ_SEED=${SEED}: ${requests} requests`)
  const counts = [...statuses].sort(([a], [b]) => a - b).map(([status, count]) => `${count} × ${status}`)
  t.comment(
    `FUZZ_SEED=${SEED}: ${requests} requests to ${routes.length} routes, ${succeeded.size} of which succeeded; ${counts.join(', ')}`
  )
  t.comment(
    routes
      .map((r) => `${r.method} ${r.url}`)
      .filter((r) => !succeeded.has(r))
      .join('\n')
  )
  t.ok(requests > 200, `${requests} requests`)
  t.ok([...statuses.keys()].some((status) => status < 300) && statuses.has(400), 'right and wrong ones')
})
