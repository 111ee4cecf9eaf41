import type { FastifyInstance } from 'fastify'
import { type Kysely, sql } from 'kysely'
import t, { type Test } from 'tap'
import { pruneTrail, sealTrail, verifyTrail } from '../modules/audit/index.js'
import { appendEntries, createAuditStore, rowOf } from '../modules/audit/store.js'
import { forgetTokenEnds } from '../modules/identity/revocations.js'
import { forgetSessions } from '../modules/identity/session-store.js'
import { marksOf } from '../modules/privacy/register.js'
import type { Tenant } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { forgetOldKeys } from '../plugins/http/idempotency-keys.js'
import { ACCOUNT, PERSONAL } from '../schemas/personal.js'
import type { Register } from '../schemas/privacy.js'
import { buildApp, client, eachDialect } from './helper.js'

const PASSWORD = 'correct horse battery staple'
const DAY_MS = 86_400_000
const tenantOf = (app: FastifyInstance): Promise<Tenant> => app.getDecorator<Tenants>('tenants').get('main')

/** Tables with their columns. */
async function columnsOf({ db, dialect }: Tenant): Promise<[string, string][]> {
  const query =
    dialect === 'sqlite'
      ? sql<{ t: string; c: string }>`select m.name as t, p.name as c from sqlite_master m, pragma_table_info(m.name) p
          where m.type = 'table'`
      : sql<{ t: string; c: string }>`select table_name as t, column_name as c from information_schema.columns
          where table_schema = 'tenant_main'`
  return (await query.execute(db)).rows.map(({ t, c }) => [t, c])
}

/** The whole database as text. */
async function dump(tenant: Tenant): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  for (const table of new Set((await columnsOf(tenant)).map(([table]) => table))) {
    const { rows } = await sql`select * from ${sql.table(table)}`.execute(tenant.db)
    found.set(table, JSON.stringify(rows))
  }
  return found
}

/** How fields and columns that tell of a person are called; what is called so and tells of none. */
const TELLING =
  /^(user_?name(_?key)?|display_?name|first_?name|last_?name|full_?name|e?_?mail|phone|password_?hash|address\w*|ip|user_?agent|actor|subject|session|comment|note|contact\w*|[a-z]+_?by)$/i
const NOT_PERSONAL: Record<string, string> = {
  reversedBy: 'a transaction',
  'forecast_feedback.subject': 'what is judged: the forecast or the figure',
  subject: 'in feedback: what is judged'
}

async function marks(t: Test, app: FastifyInstance, tenant: Tenant): Promise<void> {
  const register: Register = (await client(app, 'manager').get('/api/privacy/register')).body
  t.same(register.activities.map(({ activity }) => activity).sort(), [
    'account',
    'bookkeeping',
    'judgement',
    'repetition',
    'security'
  ])
  for (const { activity, purpose, basis, retention, fields, columns } of register.activities) {
    t.match(basis, /Art\. 6\(1\)\([a-f]\)/, activity)
    t.ok(purpose.length > 10 && retention.length > 4, activity)
    t.ok(fields.length + columns.length > 0, activity)
  }
  t.ok(register.activities.find(({ activity }) => activity === 'account')?.fields.includes('User.displayName'))
  t.ok(register.retention.length >= 3)

  const registered = new Set(register.activities.flatMap(({ columns }) => columns))
  const columns = await columnsOf(tenant)
  const telling = columns.filter(
    ([table, column]) => TELLING.test(column) && NOT_PERSONAL[`${table}.${column}`] === undefined
  )
  t.ok(telling.length >= 12, `${telling.length} columns`)
  t.same(
    telling.map((each) => each.join('.')).filter((column) => !registered.has(column)),
    [],
    'every column that tells of a person is in the register'
  )
  const existing = new Set(columns.map((each) => each.join('.')))
  t.same(
    [...registered].filter((column) => !existing.has(column)),
    [],
    'and nothing that is not there'
  )

  const unmarked: string[] = []
  let seen = 0
  const walk = (schema: unknown, path: string) => {
    if (typeof schema !== 'object' || schema === null) return
    for (const [name, child] of Object.entries(schema)) {
      if (name === 'properties' && typeof child === 'object' && child !== null) {
        for (const [field, inner] of Object.entries(child)) {
          if (TELLING.test(field) && NOT_PERSONAL[field] === undefined) {
            seen++
            if ([...marksOf(inner, field)].length === 0) unmarked.push(`${path} ${field}`)
          }
          walk(inner, path)
        }
      } else if (name !== PERSONAL) walk(child, path)
    }
  }
  for (const [path, operations] of Object.entries(app.swagger().paths ?? {})) walk(operations, path)
  t.ok(seen > 20, `${seen} fields`)
  t.same([...new Set(unmarked)], [], 'every field that tells of a person says why it is kept')
  t.same(
    [...marksOf({ properties: { a: { anyOf: [{ [PERSONAL]: ACCOUNT }] }, b: { [PERSONAL]: {} } } }, 'X')],
    [['X.a', ACCOUNT]]
  )
}

/** A user who has left something wherever the service keeps something. */
async function person(app: FastifyInstance, username: string, address = '203.0.113.7') {
  const admin = client(app, 'admin', { subject: 'boss' })
  const { body: user } = await admin.post(
    '/api/users',
    { username, displayName: 'Zoe Quill', role: 'staff', password: PASSWORD },
    { 'idempotency-key': `made-${username}` }
  )
  const login = () =>
    app.inject({
      method: 'POST',
      url: '/api/auth/login',
      payload: { username, password: PASSWORD },
      remoteAddress: address
    })
  const signedIn = await login()
  const own = client(app, 'manager', { subject: user.id })
  await own.post('/api/inventory', { itemCode: `${username}-1`, name: 'Ink', unit: 'each' })
  const { body: movement } = await own.post(
    '/api/movements',
    { type: 'receipt', lines: [{ itemCode: `${username}-1`, quantity: 5 }] },
    { 'idempotency-key': 'own-key' }
  )
  await own.post('/api/import/items', `itemCode,name,unit\n${username}-2,Quills,each\n`, {
    'content-type': 'text/csv',
    prefer: 'wait=20'
  })
  const feedback = await own.post('/api/ai/feedback', {
    ...{ itemCode: `${username}-1`, date: '2026-01-05', subject: 'actual', verdict: 'right' },
    comment: 'I, Zoe Quill, counted it'
  })
  if (feedback.status >= 300) throw new Error(feedback.text)
  return { id: String(user.id), own, login, token: String(signedIn.json().accessToken), movement: String(movement.id) }
}

async function access(t: Test, app: FastifyInstance): Promise<void> {
  const zoe = await person(app, 'zoe')
  const { status, body, headers } = await client(app, 'admin').get(`/api/privacy/subjects/${zoe.id}/export`)
  t.equal(status, 200)
  t.match(headers['content-disposition'], /attachment; filename="personal-data-/)
  t.match(body, {
    format: 'inventory-enterprise/personal-data',
    version: 1,
    subject: zoe.id,
    tenant: 'main',
    data: {
      profile: [{ id: zoe.id, username: 'zoe', displayName: 'Zoe Quill', role: 'staff' }],
      movements: [{ movementId: zoe.movement, type: 'receipt' }],
      imports: [{ kind: 'items', rows: 1 }],
      forecastFeedback: [{ comment: 'I, Zoe Quill, counted it' }],
      repeatableRequests: [{ idempotencyKey: 'own-key' }]
    }
  })
  const actions = body.data.auditEntries.map(({ action }: { action: string }) => action)
  for (const action of ['auth.login', 'item.create', 'ledger.post']) t.ok(actions.includes(action), action)
  t.notMatch(JSON.stringify(body), /argon2|boss-|correct horse/, 'no secret')
  const { body: mine } = await zoe.own.get('/api/privacy/me')
  t.same(mine.data.profile, body.data.profile, 'people get their own without asking anybody')
  t.ok(
    mine.data.auditEntriesAbout.some(({ action }: { action: string }) => action === 'privacy.export'),
    'and see who looked'
  )
  for (const role of ['viewer', 'staff', 'manager'] as const)
    t.equal((await client(app, role).get(`/api/privacy/subjects/${zoe.id}/export`)).status, 403)
  const nobody = await client(app, 'admin').get('/api/privacy/subjects/00000000-0000-4000-8000-000000000000/export')
  t.match(nobody, { status: 404, body: { code: 'PRIVACY_SUBJECT_NOT_FOUND' } })
  t.equal((await client(app, 'viewer').get('/api/privacy/me')).status, 404, 'a token of no user')
}

async function rectification(t: Test, app: FastifyInstance): Promise<void> {
  const { id, own } = await person(app, 'wren')
  t.match(await own.patch('/api/privacy/me', { displayName: 'Wren Marten', username: 'wren.m' }), {
    status: 200,
    body: { subject: id, username: 'wren.m', displayName: 'Wren Marten' }
  })
  const login = await app.inject({
    method: 'POST',
    url: '/api/auth/login',
    payload: { username: 'WREN.M', password: PASSWORD }
  })
  t.equal(login.statusCode, 200, 'the corrected name signs in')
  t.equal((await own.patch('/api/privacy/me', { username: 'zoe' })).body.code, 'ID_USERNAME_TAKEN')
  t.equal((await own.patch('/api/privacy/me', { role: 'admin' })).status, 400, 'nothing else can be corrected')
  t.equal((await own.patch('/api/privacy/me', {})).status, 400)
  t.equal((await client(app, 'viewer').patch('/api/privacy/me', { displayName: 'X' })).status, 404)
  const { body } = await client(app, 'manager').get(`/api/audit?objectId=${id}&action=user.update`)
  t.strictSame(body.data[0].changes, {
    displayName: { from: '[concealed]', to: '[concealed]' },
    username: { from: '[concealed]', to: '[concealed]' }
  })
}

async function erasure(t: Test, app: FastifyInstance): Promise<void> {
  const tenant = await tenantOf(app)
  const admin = client(app, 'admin', { subject: 'boss' })
  const ida = await person(app, 'ida-stoat', '203.0.113.44')
  const before = await dump(tenant)
  for (const table of ['users', 'idempotency_keys', 'forecast_feedback', 'audit_entries'])
    t.ok(/ida-stoat|Zoe Quill|203\.0\.113\.44/.test(before.get(table) ?? ''), `${table} tells of her`)
  const ledger = before.get('stock_transactions')
  const trail = await verifyTrail(tenant)
  await sealTrail(tenant)
  for (const role of ['viewer', 'staff', 'manager'] as const)
    t.equal((await client(app, role).post(`/api/privacy/subjects/${ida.id}/erase`)).status, 403, role)
  const { status, body } = await admin.post(`/api/privacy/subjects/${ida.id}/erase`)
  t.equal(status, 200)
  t.match(body, { subject: ida.id, erased: { identity: Number, audit: Number, forecasting: 1, core: Number } })
  t.ok(body.erased.identity >= 1 && body.erased.audit >= 3 && body.erased.core >= 2, JSON.stringify(body))

  const after = await dump(tenant)
  for (const [table, text] of after) {
    // Her items are the company's, and were named after her by this test alone.
    if (!/^(items|item_search\w*|stock_\w+|import_changes|outbox|consumption\w*|jobs|imports)$/.test(table))
      t.same(
        text.replaceAll(/ida-stoat-[12]/g, '').match(/ida-stoat|203\.0\.113\.44/),
        null,
        `${table} does not name her`
      )
  }
  t.notMatch((await admin.get('/api/users?limit=500')).text, /ida-stoat/)
  t.match((await admin.get(`/api/users/${ida.id}`)).body, {
    username: `erased-${ida.id}`,
    displayName: 'erased',
    disabled: true,
    role: 'viewer'
  })
  t.equal((await ida.login()).statusCode, 401, 'nobody signs in as her')
  t.equal(
    (
      await app.inject({
        method: 'POST',
        url: '/api/auth/login',
        payload: { username: `erased-${ida.id}`, password: '' }
      })
    ).statusCode,
    400
  )

  t.equal(after.get('stock_transactions'), ledger, 'not a byte of the ledger')
  t.match((await admin.get('/api/ledger/verify')).body, { ok: true })
  t.match(
    (await admin.get(`/api/movements/${ida.movement}`)).body,
    { actor: ida.id },
    'which names an id that leads to nobody'
  )
  const verified = (await admin.get('/api/audit/verify')).body
  t.match(verified, { ok: true, mismatches: [] })
  t.ok(verified.entries > trail.entries)
  const { body: entries } = await admin.get('/api/audit?action=privacy.erase')
  t.match(entries.data, [{ actor: 'boss', object: { type: 'user', id: ida.id }, details: { identity: Number } }])

  const kept = await admin.get(`/api/privacy/subjects/${ida.id}/export`)
  t.same(kept.body.data.forecastFeedback[0].comment, null)
  t.ok(kept.body.data.auditEntries.every(({ address }: { address: string | null }) => address === null))
  t.match((await admin.get('/api/users?limit=500')).text, 'Zoe Quill', 'others stay')
  const deadline = Date.now() + 5_000
  let answer = 200
  while (answer === 200 && Date.now() < deadline)
    answer = (await app.inject({ url: '/api/inventory', headers: { authorization: `Bearer ${ida.token}` } })).statusCode
  t.equal(answer, 401, 'her tokens end')
}

async function retention(t: Test, tenant: Tenant, userId: string): Promise<void> {
  type Session = { id: string; user_id: string; address: string; user_agent: string; methods: string } & Record<
    'epoch' | 'authenticated_at' | 'created_at' | 'seen_at' | 'expires_at',
    number
  >
  type Old = {
    sessions: Session
    token_ends: { version: number; kind: string; key: string; epoch: number; expires_at: number }
    idempotency_keys: { key: string; request_hash: string; created_at: number }
  }
  const now = Date.now()
  await tenant.transact(async (tx) => {
    const db: Kysely<Old> = tx.db.withTables<Old>()
    const session = (id: string, expires_at: number): Session => ({
      ...{ id, user_id: userId, address: '192.0.2.200', user_agent: 'u', methods: 'pwd', epoch: 0, expires_at },
      ...{ authenticated_at: now - 9 * DAY_MS, created_at: now - 9 * DAY_MS, seen_at: now - 9 * DAY_MS }
    })
    await db
      .insertInto('sessions')
      .values([session('old-over', now - 2 * DAY_MS), session('old-counts', now + DAY_MS)])
      .execute()
    const end = (version: number, key: string, expires_at: number) => ({
      version,
      kind: 'token',
      key,
      epoch: 0,
      expires_at
    })
    await db
      .insertInto('token_ends')
      .values([end(1_000_001, 'old-over', now - 1), end(1_000_002, 'old-counts', now + DAY_MS)])
      .execute()
    const key = (name: string, days: number) => ({ key: name, request_hash: '', created_at: now - days * DAY_MS })
    await db
      .insertInto('idempotency_keys')
      .values([key('x eight', 8), key('x six', 6)])
      .execute()
    const agent = {
      ...{ actor: 'old', role: null, method: null, session: null },
      ...{ requestId: null, traceId: null, address: null }
    }
    await appendEntries(tx, [rowOf(agent, { action: 'old.deed' }, now - 400 * DAY_MS)])
  })
  await tenant.transact(async (tx) => {
    await forgetSessions(tx)
    await forgetTokenEnds(tx)
  })
  await forgetOldKeys(tenant)
  const db = tenant.db.withTables<Old>()
  const sessions = await db.selectFrom('sessions').select('id').where('id', 'like', 'old-%').execute()
  t.same(sessions, [{ id: 'old-counts' }])
  const ends = await db.selectFrom('token_ends').select('key').where('key', 'like', 'old-%').execute()
  t.same(ends, [{ key: 'old-counts' }])
  const keys = await db.selectFrom('idempotency_keys').select('key').where('request_hash', '=', '').execute()
  t.same(keys, [{ key: 'x six' }])
  // Sealed with what is young, it stays as long as that; then its batch goes.
  await sealTrail(tenant)
  await pruneTrail(tenant, 365, now)
  t.equal((await createAuditStore(tenant.db).list({ actor: 'old' }, Number.MAX_SAFE_INTEGER, 5)).length, 1)
  await pruneTrail(tenant, 365, now + 366 * DAY_MS)
  t.equal((await createAuditStore(tenant.db).list({ actor: 'old' }, Number.MAX_SAFE_INTEGER, 5)).length, 0)
  t.match(await verifyTrail(tenant), { ok: true })
}

await eachDialect(t, async (t, dialect) => {
  const app = await buildApp(t, { dialect })
  await t.test('the register says of every personal field why it is kept', async (t) =>
    marks(t, app, await tenantOf(app))
  )
  await t.test('access and portability: one file', (t) => access(t, app))
  await t.test('rectification', (t) => rectification(t, app))
  await t.test('erasure leaves ledger and audit trail verifiable', (t) => erasure(t, app))
  await t.test('retention', async (t) => retention(t, await tenantOf(app), (await person(app, 'otter')).id))
})
