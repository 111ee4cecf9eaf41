import { randomBytes } from 'node:crypto'
import Fastify from 'fastify'
import { createTokens } from '../plugins/auth.js'
import type { Role } from '../schemas/common.js'
import { PUBLIC_TOPICS } from '../schemas/webhooks.js'
import { JWT_SECRET, type Live, type Node } from './live.js'

/** What people and programs do with the service, a little of everything, so that each panel has something to show. */

const ITEMS = 30
const DAYS = 120
const READERS = 2
const DAY_MS = 86_400_000
const PASSWORD = 'correct horse battery staple'

type Answer = { status: number; body: ReturnType<typeof JSON.parse> }
type Call = (method: string, path: string, body?: unknown, headers?: Record<string, string>) => Promise<Answer>
type Tokens = Readonly<Record<Role, string>>

const codeOf = (n: number) => `ITEM-${String(n).padStart(3, '0')}`
const iso = (at: number) => new Date(at).toISOString()

async function sign(): Promise<Tokens> {
  const app = Fastify()
  const tokens = createTokens(app, { keys: [{ id: 'default', secret: JWT_SECRET }] })
  await app.ready()
  const one = (role: Role) => tokens.sign({ subject: `traffic-${role}`, role, tenant: 'main' }, 86_400)
  return { viewer: one('viewer'), staff: one('staff'), manager: one('manager'), admin: one('admin') }
}

/** As of a caller who traces, and has chosen to keep this one. */
const traceparent = () => `00-${randomBytes(16).toString('hex')}-${randomBytes(8).toString('hex')}-01`

const caller =
  ({ url }: Node, token: string): Call =>
  async (method, path, body, headers = {}) => {
    const type = headers['content-type'] ?? 'application/json'
    const answer = await patiently(url + path, {
      method,
      headers: {
        authorization: `Bearer ${token}`,
        traceparent: traceparent(),
        ...(body === undefined ? {} : { 'content-type': type }),
        ...headers
      },
      ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) })
    })
    const text = await answer.text()
    const json = /json/.test(answer.headers.get('content-type') ?? '')
    return { status: answer.status, body: json && text !== '' ? JSON.parse(text) : undefined }
  }

/** A connection that was idle may be closed by the server just when it is used again. */
async function patiently(url: string, request: RequestInit, attempts = 3): Promise<Response> {
  try {
    return await fetch(url, request)
  } catch (error) {
    if (attempts === 1) throw error
    return patiently(url, request, attempts - 1)
  }
}

/** @throws when it is not answered by 2xx */
const must = async (answer: Promise<Answer>, what: string): Promise<Answer> => {
  const { status, body } = await answer
  if (status < 200 || status > 299) throw new Error(`${what}: ${status} ${JSON.stringify(body)?.slice(0, 300)}`)
  return { status, body }
}

export interface Traffic {
  /** Goes on until it is told to stop, or fails. */
  stop(): Promise<void>
}

/** Fills both databases, and begins. Resolves when everything was done once. */
export async function startTraffic(live: Live, say: (line: string) => void): Promise<Traffic> {
  const tokens = await sign()
  await Promise.all([live.sqlite, live.postgres].map((node) => fill(node, tokens, live.receiverUrl)))
  say('traffic: items, a history of use, users and webhooks are there, on both databases')
  let over = false
  const loops = [live.sqlite, live.postgres, live.second].map((node, n) => loop(node, tokens, n, () => over))
  const running = Promise.all(loops)
  const nights = [live.sqlite, live.postgres]
  await Promise.race([running, Promise.all(nights.map((node) => think(node, tokens)))])
  const again = Promise.all(nights.map((node) => thinkAgain(node, tokens, () => over)))
  // Whoever stops it is told of a failure; nobody else is there to hear of it before.
  running.catch(() => {})
  again.catch(() => {})
  say('traffic: forecasts are trained and anomalies found, on both databases')
  return {
    stop: async () => {
      over = true
      await Promise.all([running, again])
    }
  }
}

async function fill(node: Node, tokens: Tokens, receiverUrl: string): Promise<void> {
  const admin = caller(node, tokens.admin)
  const items = Array.from(
    { length: ITEMS },
    // Most are as they should be, some are low, a few are too many.
    (_, n) =>
      `${codeOf(n)},Item ${n},each,Category ${n % 4},${n % 6 === 0 ? 1_600 : 40},${n % 9 === 4 ? 400 : 3_000},${2 + (n % 9)}`
  )
  const head = 'itemCode,name,unit,category,reorderPoint,parLevel,unitCost'
  await finish(admin, '/api/import/items', `${head}\n${items.join('\n')}\n`)
  const first = Date.now() - (DAYS + 1) * DAY_MS
  const rows = Array.from(
    { length: ITEMS },
    (_, n) => `${codeOf(n)},receipt,${n % 7 === 0 ? 2_000 : 2_600},${iso(first)}`
  )
  for (let day = 1; day <= DAYS; day++) {
    for (let n = 0; n < ITEMS; n++) {
      const usual = (3 + (n % 8)) * (1 + 0.5 * Math.sin((day / 7) * 2 * Math.PI)) + ((day * 13 + n * 7) % 5)
      const quantity = Math.round(day === DAYS - 5 && n % 6 === 0 ? usual * 6 : patternOf(n, day, usual))
      if (quantity > 0) rows.push(`${codeOf(n)},issue,${quantity},${iso(first + day * DAY_MS)}`)
    }
  }
  const movements = `itemCode,type,quantity,occurredAt\n${rows.join('\n')}\n`
  await finish(admin, '/api/import/movements', movements)
  await must(admin('POST', '/api/locations', { location: 'shop', name: 'Shop' }), 'a location')
  for (const [n, days] of [-2, 3, 20, 60].entries()) await lot(admin, n, days)
  for (const role of ['manager', 'staff', 'viewer'])
    await must(admin('POST', '/api/users', { username: `a-${role}`, role, password: PASSWORD }), 'a user')
  const webhook = { url: `${receiverUrl}/hook`, topics: [...PUBLIC_TOPICS] }
  const made = await admin('POST', '/api/webhooks', webhook)
  if (made.status !== 201) throw new Error(`a webhook: ${made.status} ${JSON.stringify(made.body)}`)
}

/** By the week, now and then, rising, steady, and without any rule. */
function patternOf(n: number, day: number, usual: number): number {
  const chance = (Math.imul(n * 7_919 + day * 104_729, 2_654_435_761) >>> 0) / 2 ** 32
  if (n % 5 === 1) return chance < 0.25 ? usual * 3 : 0
  if (n % 5 === 2) return usual * (0.4 + day / DAYS)
  if (n % 5 === 3) return 12
  return n % 5 === 4 ? chance * 25 : usual
}

async function lot(admin: Call, n: number, days: number): Promise<void> {
  const itemCode = `LOT-${n}`
  await must(
    admin('POST', '/api/inventory', { itemCode, name: `Lot ${n}`, unit: 'each', tracking: 'lot', unitCost: 5 }),
    'an item'
  )
  const expiresOn = iso(Date.now() + days * DAY_MS).slice(0, 10)
  await must(admin('PUT', '/api/inventory/lots', { itemCode, lot: 'L1', expiresOn }), 'a lot')
  await must(
    admin('POST', '/api/movements', { type: 'receipt', lines: [{ itemCode, lot: 'L1', quantity: 10 }] }),
    'a receipt'
  )
}

/** What takes longer, once. */
async function think(node: Node, tokens: Tokens): Promise<void> {
  const manager = caller(node, tokens.manager)
  const admin = caller(node, tokens.admin)
  await finish(manager, '/api/ai/consumption/derive', {})
  await finish(manager, '/api/ai/forecast/train', { all: true, horizonDays: 14 })
  const { body } = await must(manager('POST', '/api/ai/consumption/detect-anomalies', {}), 'detecting')
  const found: { id: string }[] = body.data
  for (const [n, { id }] of found.slice(0, 3).entries()) {
    const verdict = n === 2 ? 'dismissed' : 'confirmed'
    await must(manager('POST', `/api/anomalies/${id}/resolve`, { verdict }), 'a verdict')
  }
  await must(manager('GET', '/api/ledger/verify'), 'proving the ledger')
  await must(admin('GET', '/api/audit/verify'), 'proving the audit trail')
  await must(admin('GET', '/api/privacy/register'), 'the register')
}

/** As it would be every night: what is new is derived, and trained again. */
async function thinkAgain(node: Node, tokens: Tokens, over: () => boolean): Promise<void> {
  const manager = caller(node, tokens.manager)
  for (let n = 0; !over(); n++) {
    for (let second = 0; second < 12 && !over(); second++) await pause(1_000)
    await finish(manager, '/api/ai/consumption/derive', {})
    const itemCodes = Array.from({ length: 6 }, (_, at) => codeOf((n * 6 + at) % ITEMS))
    await finish(manager, '/api/ai/forecast/train', { itemCodes, horizonDays: 14 })
    await must(manager('POST', '/api/ai/consumption/detect-anomalies', { itemCodes }), 'detecting again')
  }
}

/** Started, and waited for. @throws when it does not succeed */
async function finish(call: Call, path: string, body: object | string): Promise<void> {
  const type: Record<string, string> = typeof body === 'string' ? { 'content-type': 'text/csv' } : {}
  let { body: job } = await must(call('POST', path, body, { prefer: 'wait=30', ...type }), path)
  while (job.finishedAt === null) {
    await pause(1_000)
    job = (await must(call('GET', `/api/jobs/${job.id}`), path)).body
  }
  if (job.status !== 'succeeded') throw new Error(`${path}: ${JSON.stringify(job)}`)
}

const pause = (milliseconds: number) => new Promise<void>((resolve) => setTimeout(resolve, milliseconds))

/** Some dozen requests a second, in waves: people look far more often than they post, most of them at the same pages, and hardly err. */
async function loop(node: Node, tokens: Tokens, phase: number, over: () => boolean): Promise<void> {
  for (let n = 1; !over(); n++) {
    const startedAt = performance.now()
    await Promise.all([
      ...Array.from({ length: READERS }, (_, reader) => readSome(node, tokens, n, reader)),
      n % 4 === 0 ? writeSome(node, tokens, n / 4) : undefined,
      n % 15 === 0 ? refuseSome(node, tokens, n) : undefined,
      n % 12 === 0 ? signIn(node, n / 12) : undefined
    ])
    const wave = 1 + Math.sin((n + phase * 20) / 12)
    await pause(Math.max(20, 120 + 120 * wave - (performance.now() - startedAt)))
  }
}

async function readSome(node: Node, tokens: Tokens, n: number, reader: number): Promise<void> {
  const viewer = caller(node, tokens.viewer)
  const look = async (path: string) => {
    for (let times = 0; times < 2; times++) await viewer('GET', path)
  }
  const popular = codeOf(Math.floor(n / 10) % 5)
  await look('/api/inventory?limit=50')
  await look(`/api/inventory/${popular}`)
  await look(`/api/ai/forecast/${popular}`)
  if (reader > 0) return
  await viewer('GET', `/api/inventory/${codeOf(n % ITEMS)}/movements?limit=20`)
  if (n % 5 === 0) await look('/api/dashboard/stats')
  if (n % 40 === 0) await caller(node, tokens.manager)('GET', '/api/ledger/verify')
  if (n % 25 === 0) await caller(node, tokens.manager)('GET', '/api/export/items')
}

async function writeSome(node: Node, tokens: Tokens, n: number): Promise<void> {
  const staff = caller(node, tokens.staff)
  const itemCode = codeOf((n * 7) % ITEMS)
  const line = (quantity: number, more = {}) => ({ lines: [{ itemCode, quantity, ...more }] })
  await staff('POST', '/api/movements', { type: 'issue', ...line(1 + (n % 3)) })
  // Every fifth delivery is sent again, by whoever had no answer.
  for (let times = n % 15 === 0 ? 2 : n % 3 === 0 ? 1 : 0; times > 0; times--) {
    const delivery = { type: 'receipt', ...line(12, { unitCost: 4 }) }
    await staff('POST', '/api/movements', delivery, { 'idempotency-key': `traffic-${node.name}-${n}` })
  }
  if (n % 7 === 0) await staff('POST', '/api/movements', { type: 'transfer', ...line(1, { toLocation: 'shop' }) })
  if (n % 11 === 0) await staff('POST', '/api/movements', { type: 'waste', ...line(1), reason: 'broken' })
  if (n % 29 === 0) await staff('POST', '/api/movements', { type: 'issue', ...line(1_000_000) })
  if (n % 9 === 0)
    await staff('POST', '/api/reservations', { itemCode, quantity: 1, expiresAt: iso(Date.now() + 60_000) })
}

/** Mistakes, and worse. */
async function refuseSome(node: Node, tokens: Tokens, n: number): Promise<void> {
  const nobody = caller(node, 'not-a-token')
  await nobody('GET', '/api/inventory')
  const viewer = caller(node, tokens.viewer)
  await viewer('POST', '/api/movements', { type: 'issue', lines: [] })
  await viewer('GET', `/api/inventory?limit=${n % 8 === 0 ? 0 : 5}`)
  await viewer('GET', `/api/inventory/NOT-${n}`)
}

async function signIn(node: Node, n: number): Promise<void> {
  const open = caller(node, '')
  const username = n % 16 === 7 ? 'nobody' : n % 2 === 0 ? 'a-viewer' : 'a-staff'
  await open('POST', '/api/auth/login', { username, password: n % 20 === 4 ? 'wrong password' : PASSWORD })
}
