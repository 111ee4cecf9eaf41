import type { FastifyInstance } from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { sealTrail, verifyTrail } from '../modules/audit/index.js'
import { createNotes } from '../modules/audit/notes.js'
import { appendEntries, createAuditStore, type NewEntry, rowOf } from '../modules/audit/store.js'
import { createUser } from '../modules/identity/index.js'
import type { Auth, Tenant } from '../plugins/contracts.js'
import type { AuditEntry } from '../schemas/audit.js'
import { AGENT, eventually, filler, PASSWORD, TRACE, tenantOf, trail } from './audit-harness.js'
import { buildApp, client, type Dialect, eachDialect } from './helper.js'

async function changes(t: Test, app: FastifyInstance): Promise<void> {
  const admin = client(app, 'admin', { subject: 'boss' })
  const since = (await trail(app)).length
  await admin.post(
    '/api/inventory',
    { itemCode: 'A', name: 'Apples', unit: 'kg', reorderPoint: 2.5 },
    {
      'x-request-id': 'req-1',
      traceparent: `00-${TRACE}-b7ad6b7169203331-01`
    }
  )
  await admin.patch('/api/inventory/A', { name: 'Green apples', unitCost: 1.25 })
  await admin.post('/api/inventory/categories', { name: 'Fruit' })
  await admin.post('/api/locations', { location: 'cellar', name: 'Cellar' })
  await admin.put('/api/inventory/A/units/l', { numerator: 2 })
  const { body: movement } = await admin.post('/api/movements', {
    type: 'receipt',
    lines: [{ itemCode: 'A', quantity: 3, unitCost: 2 }]
  })
  await admin.post(`/api/movements/${movement.id}/reverse`, {})
  const { body: user } = await admin.post('/api/users', {
    username: 'zoe',
    displayName: 'Zoe Q',
    role: 'staff',
    password: PASSWORD
  })
  await admin.patch(`/api/users/${user.id}`, { role: 'viewer', displayName: 'Zoe R', password: `${PASSWORD}!` })
  await admin.get('/api/export/items')
  await admin.post('/api/import/items', 'itemCode,name,unit\nB,Bread,each\n', {
    'content-type': 'text/csv',
    prefer: 'wait=20'
  })
  const { body: held } = await admin.post('/api/reservations', { itemCode: 'B', quantity: 1 })
  t.equal(held.code, 'INV_INSUFFICIENT_STOCK', 'what is refused')
  await admin.delete('/api/inventory/A')
  const entries = (await trail(app)).slice(since)

  t.match(
    entries.map(({ action, object }) => `${action} ${object?.type ?? ''}`),
    [
      'item.create item',
      'item.update item',
      'category.create category',
      'location.create location',
      'item.unit item',
      'ledger.post movement',
      'ledger.reverse movement',
      'user.create user',
      'user.update user',
      'user.password user',
      'export export',
      'inventory.import.start job',
      'import.succeed import',
      'item.delete item'
    ].sort(
      (a, b) =>
        entries.findIndex((e) => a.startsWith(`${e.action} `)) - entries.findIndex((e) => b.startsWith(`${e.action} `))
    ),
    'each change once, in order, and nothing for what was refused'
  )
  t.equal(entries.length, 14)
  const [created, updated] = entries
  t.match(created, {
    actor: 'boss',
    role: 'admin',
    method: 'token',
    session: /^[0-9a-f-]{36}$/,
    tenant: 'main',
    outcome: 'success',
    object: { type: 'item', id: 'A' },
    requestId: 'req-1',
    traceId: TRACE,
    address: '127.0.0.1',
    occurrences: 1,
    changes: {
      name: { from: null, to: 'Apples' },
      reorderPoint: { from: null, to: 2.5 },
      unit: { from: null, to: 'kg' }
    }
  })
  t.match(created?.at, /Z$/, 'UTC')
  t.strictSame(updated?.changes, { name: { from: 'Apples', to: 'Green apples' }, unitCost: { from: null, to: 1.25 } })
  t.strictSame(entries.find(({ action }) => action === 'ledger.post')?.object, { type: 'movement', id: movement.id })
  t.match(entries.find(({ action }) => action === 'ledger.reverse')?.details, { reverses: movement.id })
  t.strictSame(entries.find(({ action }) => action === 'user.update')?.changes, {
    displayName: { from: '[concealed]', to: '[concealed]' },
    role: { from: 'staff', to: 'viewer' }
  })
  t.match(
    entries.find(({ action }) => action === 'import.succeed'),
    { actor: 'boss', details: { kind: 'items', rows: 1 } }
  )
  t.notMatch(JSON.stringify(entries), /zoe|argon2|correct horse/i, 'neither names of people nor secrets')

  const key = { 'idempotency-key': 'twice' }
  const post = { type: 'receipt', lines: [{ itemCode: 'B', quantity: 1 }] }
  const first = await admin.post('/api/movements', post, key)
  t.equal((await admin.post('/api/movements', post, key)).text, first.text)
  t.equal((await trail(app, `&objectId=${first.body.id}`)).length, 1, 'a repeated request is one change')
  const { body: reserved } = await admin.post('/api/reservations', { itemCode: 'B', quantity: 1 })
  const [generic] = (await trail(app)).slice(-1)
  t.match(generic, {
    action: 'POST /api/reservations',
    object: { type: 'path', id: '/api/reservations' },
    details: { status: 201 }
  })
  t.ok(reserved.id, 'a write that says nothing itself is recorded by its route')
}

async function sameTransaction(t: Test, app: FastifyInstance, dialect: Dialect): Promise<void> {
  const tenant = await tenantOf(app)
  const count = async () => (await trail(app)).length
  const before = await count()
  await t.rejects(
    tenant.transact(async (tx) => {
      tx.audit({ action: 'never.happened' })
      throw new Error('on purpose')
    }),
    /on purpose/
  )
  t.equal(await count(), before, 'a change that is undone leaves no entry')
  const refuse =
    dialect === 'sqlite'
      ? [
          sql`create trigger refuse before insert on audit_entries begin select raise(abort, 'no'); end`,
          sql`drop trigger refuse`
        ]
      : [
          sql`alter table ${sql.table('audit_entries')} add constraint refuse check (false) not valid`,
          sql`alter table ${sql.table('audit_entries')} drop constraint refuse`
        ]
  await tenant.transact(({ db }) => refuse[0]?.execute(db) ?? Promise.resolve())
  const token = app.getDecorator<Auth>('auth').sign({ subject: 'boss', role: 'admin', tenant: 'main' }, 60)
  const { statusCode } = await app.inject({
    method: 'POST',
    url: '/api/inventory',
    headers: { authorization: `Bearer ${token}` },
    payload: { itemCode: 'UNSEEN', name: 'Unseen', unit: 'each' }
  })
  await tenant.transact(({ db }) => refuse[1]?.execute(db) ?? Promise.resolve())
  t.ok(statusCode >= 500, `${statusCode}`)
  t.equal((await client(app, 'viewer').get('/api/inventory/UNSEEN')).status, 404, 'no entry, no change')
}

async function signIns(t: Test, app: FastifyInstance): Promise<void> {
  const tenant = await tenantOf(app)
  const user = await createUser(tenant, { username: 'sam', role: 'staff', password: PASSWORD })
  const auth = app.getDecorator<Auth>('auth')
  const since = Number((await trail(app)).at(-1)?.id)
  const login = (username: string, password: string, id: string) =>
    app.inject({
      method: 'POST',
      url: '/api/auth/login',
      payload: { username, password },
      headers: { 'x-request-id': id, traceparent: `00-${TRACE}-b7ad6b7169203331-01` }
    })
  const get = (url: string, authorization: string | undefined, id: string) =>
    app.inject({ url, headers: { 'x-request-id': id, ...(authorization === undefined ? {} : { authorization }) } })
  const { accessToken, refreshToken } = (await login('sam', PASSWORD, 'in')).json()
  const refresh = (token: string, id: string) =>
    app.inject({
      method: 'POST',
      url: '/api/auth/refresh',
      payload: { refreshToken: token },
      headers: { 'x-request-id': id }
    })
  await refresh(refreshToken, 'refresh')
  await refresh(`ir_main_${'A'.repeat(43)}`, 'no-refresh')
  await login('sam', 'not the password', 'wrong')
  await login('nobody-known', PASSWORD, 'unknown')
  await get('/api/inventory', undefined, 'missing')
  await get('/api/inventory', 'Bearer a.b.c', 'malformed')
  await get('/api/inventory', `Bearer ${auth.sign({ subject: 'late', role: 'viewer', tenant: 'main' }, -5)}`, 'expired')
  await get('/api/users', `Bearer ${accessToken}`, 'role')
  await app.inject({
    method: 'POST',
    url: '/api/auth/logout',
    headers: { authorization: `Bearer ${accessToken}`, 'x-request-id': 'out' }
  })
  await get('/api/inventory', `Bearer ${accessToken}`, 'revoked')
  const entries = await eventually(async () => (await trail(app)).filter(({ id }) => id > since), 11)

  const expected: Record<string, object> = {
    in: {
      action: 'auth.login',
      outcome: 'success',
      actor: user.id,
      role: 'staff',
      method: 'pwd',
      traceId: TRACE
    },
    refresh: { action: 'auth.refresh', outcome: 'success', actor: user.id, role: 'staff', object: { type: 'session' } },
    'no-refresh': { action: 'auth.denied', outcome: 'denied', actor: null, details: { reason: 'unknown' } },
    wrong: { action: 'auth.login.failed', outcome: 'failure', actor: null, object: { type: 'user', id: user.id } },
    unknown: { action: 'auth.login.failed', outcome: 'failure', actor: null, object: null, traceId: TRACE },
    missing: {
      action: 'auth.denied',
      outcome: 'denied',
      actor: null,
      details: { code: 'AUTH_REQUIRED', reason: 'missing' }
    },
    malformed: { action: 'auth.denied', outcome: 'denied', actor: null, details: { reason: 'malformed' } },
    expired: { action: 'auth.denied', outcome: 'denied', actor: null },
    role: { action: 'auth.denied', actor: user.id, role: 'staff', details: { code: 'AUTH_FORBIDDEN' } },
    out: { action: 'auth.logout', outcome: 'success', actor: user.id },
    revoked: {
      action: 'auth.denied',
      outcome: 'denied',
      actor: user.id,
      object: { type: 'route', id: 'GET /api/inventory' }
    }
  }
  for (const [requestId, entry] of Object.entries(expected)) {
    const found = entries.filter((each) => each.requestId === requestId)
    t.match(found, [{ ...entry, address: '127.0.0.1', at: /Z$/ }], requestId)
    t.equal(found.length, 1, `${requestId}: one entry`)
  }
  t.equal(entries.length, 11)
  t.notMatch(JSON.stringify(entries), /nobody-known|not the password/, 'what was typed is not kept')
}

/** On PostgreSQL a number is drawn before the commit, so an entry may appear below those that are sealed. */
async function late(t: Test, tenant: Tenant): Promise<void> {
  let release = () => {}
  const gate = new Promise<void>((resolve) => {
    release = resolve
  })
  let drawn = () => {}
  const inserted = new Promise<void>((resolve) => {
    drawn = resolve
  })
  const slow = tenant.transact(async ({ db }) => {
    await appendEntries({ db }, filler(1, Date.now()))
    drawn()
    await gate
  })
  await inserted
  await tenant.transact((tx) => appendEntries(tx, filler(2, Date.now())))
  t.ok((await sealTrail(tenant)) >= 2)
  release()
  await slow
  t.match(await verifyTrail(tenant), { ok: true, unsealed: 1 })
  t.equal(await sealTrail(tenant), 1, 'it is in the next batch')
  t.match(await verifyTrail(tenant), { ok: true, unsealed: 0 })
  t.equal(await sealTrail(tenant), 0)
  t.ok((await Promise.all([sealTrail(tenant), sealTrail(tenant)])).every((count) => count === 0))
}

async function searching(t: Test, app: FastifyInstance): Promise<void> {
  const tenant = await tenantOf(app)
  const at = Date.UTC(2026, 0, 1)
  const actors = ['ann', 'bob']
  const rows = Array.from({ length: 40 }, (_, n) =>
    rowOf(
      { ...AGENT, actor: actors[n % 2] ?? null, requestId: `s-${n % 7}` },
      {
        action: ['find.one', 'find.two', 'finder', 'lost'][n % 4] ?? '',
        outcome: n % 3 === 0 ? 'denied' : 'success',
        object: { type: n % 5 === 0 ? 'bin' : 'box', id: n === 3 ? '=1+1' : `o${n % 6}` }
      },
      at + n * 1000
    )
  )
  await tenant.transact((tx) => appendEntries(tx, rows))
  const iso = (n: number) => new Date(at + n * 1000).toISOString()
  const range = `&from=${iso(0)}&to=${iso(39)}`
  const cases: Record<string, (row: NewEntry, n: number) => boolean> = {
    '': () => true,
    '&actor=ann': ({ actor }) => actor === 'ann',
    '&action=find.one': ({ action }) => action === 'find.one',
    '&action=find.*': ({ action }) => action.startsWith('find.'),
    '&action=find*&outcome=denied': ({ action, outcome }) => action.startsWith('find') && outcome === 'denied',
    '&objectType=bin&objectId=o0': ({ object_type, object_id }) => object_type === 'bin' && object_id === 'o0',
    '&requestId=s-4&actor=bob': ({ request_id, actor }) => request_id === 's-4' && actor === 'bob'
  }
  const reader = client(app, 'manager')
  for (const [query, matches] of Object.entries(cases)) {
    const expected = rows.map((row, n) => ({ row, n })).filter(({ row, n }) => matches(row, n))
    t.ok(expected.length > 0 && (query === '' || expected.length < 40), query)
    const found: AuditEntry[] = []
    let cursor: string | null = ''
    while (cursor !== null) {
      const { body }: { body: { data: AuditEntry[]; page: { nextCursor: string | null } } } = await reader.get(
        `/api/audit?limit=3${range}${query}${cursor === '' ? '' : `&cursor=${cursor}`}`
      )
      t.ok(body.data.length <= 3)
      found.push(...body.data)
      cursor = body.page.nextCursor
    }
    t.same(
      found.map((entry) => entry.at),
      expected.map(({ n }) => iso(n)).reverse(),
      `${query}, newest first, page by page`
    )
  }
  t.equal((await reader.get(`/api/audit?from=${iso(5)}&to=${iso(4)}`)).body.code, 'AUDIT_RANGE_INVALID')
  t.equal((await reader.get('/api/audit?actr=ann')).status, 400)
  const { body } = await reader.get('/api/audit?limit=1')
  t.equal((await reader.get(`/api/audit?limit=1&actor=x&cursor=${body.page.nextCursor}`)).body.code, 'CURSOR_INVALID')
  for (const role of ['viewer', 'staff'] as const)
    for (const url of ['/api/audit', '/api/audit/verify', '/api/audit/export'])
      t.equal((await client(app, role).get(url)).status, 403, `${role} ${url}`)

  await eventually(() => trail(app, '&action=auth.denied&actor=test-staff'), 3)
  const { text, headers } = await reader.get(`/api/audit/export?action=find*${range}`)
  t.match(headers['content-type'], /x-ndjson/)
  const exported = text
    .trim()
    .split('\n')
    .map((line): AuditEntry => JSON.parse(line))
  t.same(exported.length, 30)
  const csv = await reader.get(`/api/audit/export?format=csv&objectId=${encodeURIComponent('=1+1')}`)
  const [header, line, ...rest] = csv.text.trim().split('\r\n')
  t.match(header, /^id,at,tenant,action,.*,objectType,objectId$/)
  t.match(line, /,box,'=1\+1$/, 'a spreadsheet runs no formula')
  t.same(rest, [])
  t.match((await trail(app, '&action=audit.export')).at(-1), { details: { format: 'csv', objectId: '=1+1' } })
}

t.test('a flood of refusals fills no disk', async (t) => {
  let clock = Date.UTC(2026, 0, 1)
  const kept: NewEntry[] = []
  const counted = { coalesced: 0, lost: 0 }
  let down = false
  const notes = createNotes({
    keep: async (_tenant, rows) => {
      if (down) throw new Error('the database does not answer')
      kept.push(...rows)
    },
    coalesced: (count) => {
      counted.coalesced += count
    },
    lost: (count) => {
      counted.lost += count
    },
    now: () => clock
  })
  const total = (rows: NewEntry[]) => rows.reduce((sum, { occurrences }) => sum + (occurrences ?? 0), 0)
  const denied = (address: string) =>
    notes.note(
      null,
      { ...AGENT, address },
      { action: 'auth.denied', outcome: 'denied', details: { code: 'AUTH_REQUIRED' } }
    )
  for (let n = 0; n < 50; n++) denied('192.0.2.1')
  await notes.flush()
  t.equal(kept.length, 50, 'a few are kept one by one')
  const startedAt = clock
  for (let n = 0; n < 30_000; n++) {
    // An hour; half of it from one address, the rest from ever new ones.
    clock += 120
    denied(n % 2 === 0 ? '192.0.2.1' : `198.51.${n % 251}.${n % 253}`)
    if (n % 500 === 0) await notes.flush()
  }
  await notes.flush()
  t.equal(total(kept), 30_050, 'each is counted')
  t.ok(kept.length < 200 + 60 * 30, `${kept.length} entries`)
  t.ok(counted.coalesced > 29_000)
  const [largest] = kept.filter(({ occurrences }) => (occurrences ?? 0) > 100)
  t.match(largest, { address: '192.0.2.1', outcome: 'denied', actor: 'u1' })
  t.ok((largest?.first_at ?? 0) >= startedAt && (largest?.last_at ?? 0) > (largest?.first_at ?? 0), 'first and last')
  down = true
  for (let n = 0; n < 40; n++) denied(`203.0.113.${n}`)
  await notes.flush()
  down = false
  await notes.close()
  t.equal(total(kept), 30_090, 'what could not be kept is offered again')
  t.equal(counted.lost, 0)
})

await eachDialect(t, async (t, dialect) => {
  const app = await buildApp(t, { dialect })
  await t.test('every change: who, what, before and after, when', (t) => changes(t, app))
  await t.test('the entry and the change are one transaction', (t) => sameTransaction(t, app, dialect))
  await t.test('row 52: each sign-in, failure and denial is one entry', (t) => signIns(t, app))
  await t.test('search, pages, roles, export', (t) => searching(t, app))
  // The upkeep of one that has been there for a minute seals by itself.
  if (dialect === 'postgres')
    await t.test('an entry that commits late', async (t) => late(t, await tenantOf(await buildApp(t, { dialect }))))
  await t.test('an address can be erased, and the chain holds', async (t) => {
    const tenant = await tenantOf(app)
    await sealTrail(tenant)
    const erased = await tenant.transact(({ db }) => createAuditStore(db).eraseAddresses('boss'))
    t.ok(erased > 10, `${erased}`)
    t.ok((await trail(app, '&actor=boss')).every(({ address }) => address === null))
    t.equal((await verifyTrail(tenant)).ok, true)
  })
})
