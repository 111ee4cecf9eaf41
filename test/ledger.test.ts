import fc from 'fast-check'
import { type Kysely, type RawBuilder, sql } from 'kysely'
import t, { type Test } from 'tap'
import type { Auth } from '../plugins/contracts.js'
import { client, type Dialect, eachDialect } from './helper.js'
import { compareItems, ledgerCommands, startModel } from './ledger-commands.js'
import { type Context, item, line, openLedger, post, verified } from './ledger-harness.js'

const SEED = Number(process.env.LEDGER_SEED ?? Date.now() % 2 ** 31)
const RUNS = Number(process.env.LEDGER_RUNS ?? 12)
const COMMANDS = 40

// ---- the model

async function agreesWithModel(t: Test, context: Context) {
  t.comment(`LEDGER_SEED=${SEED}`)
  const { manager } = context
  t.equal((await manager.post('/api/locations', { location: 'MB-2', name: 'Second' })).status, 201)
  let run = 0
  let steps = 0
  const commands = ledgerCommands(COMMANDS)
  await fc.assert(
    fc.asyncProperty(commands, async (all) => {
      run++
      const codes = { plain: `MB-P${run}`, lotted: `MB-L${run}` }
      const model = await startModel(manager, codes)
      await fc.asyncModelRun(() => ({ model, real: { ...context, codes, ids: new Map() } }), all)
      steps += [...all].length
      await compareItems(model, manager, codes)
      const { body } = await manager.get('/api/ledger/verify')
      if (body.ok !== true) throw new Error(JSON.stringify(body))
    }),
    { seed: SEED, numRuns: RUNS, endOnFailure: false, interruptAfterTimeLimit: 60_000 }
  )
  t.ok(steps > RUNS * 5, `${run} runs, ${steps} steps`)
}

// ---- cases

async function atomicity(t: Test, context: Context) {
  const { staff, manager, tenant } = context
  const [a, b] = [await item(t, context, 'AT-A', 5), await item(t, context, 'AT-B', 5)]
  const before = await countRows(tenant)
  for (const [lines, status, code] of [
    [[line(a, 3), line(b, 6)], 409, 'INV_INSUFFICIENT_STOCK'],
    [[line(a, 3), line(a, 3)], 409, 'INV_INSUFFICIENT_STOCK'],
    [[line(a, 3), line('AT-NONE', 1)], 404, 'INV_ITEM_NOT_FOUND'],
    [[line(a, 3), line(b, 1, { location: 'AT-NOWHERE' })], 404, 'INV_LOCATION_NOT_FOUND'],
    [[line(a, 3), line(b, 1, { location: 'supplier' })], 422, 'INV_LOCATION_NOT_STOCKED'],
    [[line(a, 3), line(b, 1, { toLocation: 'MB-2' })], 422, 'INV_MOVEMENT_RULE'],
    [[line(a, 3), line(b, 1, { unit: 'kg' })], 422, 'INV_UNIT_NOT_CONVERTIBLE'],
    [[line(a, 3), line(b, -1)], 422, 'INV_MOVEMENT_RULE']
  ] as const) {
    t.match(await post(staff, 'issue', [...lines]), { status, body: { code } }, code)
  }
  t.match((await post(staff, 'issue', [line(a, 3), line(a, 3)])).body, { line: 2, requested: 3, available: 2 })
  for (const lines of [[line(a, 1)], [line(a, 1, { toLocation: 'main' })]]) {
    t.match(await post(staff, 'transfer', lines), { status: 422, body: { code: 'INV_MOVEMENT_RULE' } })
  }
  t.same(await countRows(tenant), before, 'nothing of what was refused is stored')
  t.equal((await manager.get('/api/inventory/AT-A')).body.onHand, 5)
  t.equal((await post(staff, 'issue', [line(a, 5), line(b, 5)])).status, 201)
  t.match((await manager.get('/api/inventory/AT-A')).body, { onHand: 0, value: 0, status: 'out' })
  t.equal(
    (await client(context.app, 'viewer').post('/api/movements', { type: 'receipt', lines: [line(a, 1)] })).status,
    403
  )
}

/** All that a receipt of a new lot writes, in any order. */
const WRITTEN = [
  'lots',
  'stock_accounts',
  'stock_transactions',
  'stock_moves',
  'stock_balances',
  'item_totals',
  'outbox',
  'audit_entries'
]

/** Whichever statement of a posting fails, those before it leave nothing. */
async function failingStatements(t: Test, context: Context, dialect: Dialect) {
  const { app, manager, tenant } = context
  const subject = { subject: 'test-staff', role: 'staff', tenant: 'main' } as const
  const headers = { authorization: `Bearer ${app.getDecorator<Auth>('auth').sign(subject, 600)}` }
  const code = await item(t, context, 'FS-1', 0, { tracking: 'lot' })
  const run = (text: RawBuilder<unknown>) => tenant.transact(({ db }) => text.execute(db))
  if (dialect === 'postgres')
    await run(sql`create function ${sql.table('spoil')}() returns trigger language plpgsql
      as $$ begin raise exception 'spoilt'; end $$`)
  const before = await countRows(tenant)
  for (const name of WRITTEN) {
    const table = sql.table(name)
    if (dialect === 'postgres')
      await run(
        sql`create trigger spoil before insert on ${table} for each row execute function ${sql.table('spoil')}()`
      )
    else await run(sql`create trigger spoil before insert on ${table} begin select raise(abort, 'spoilt'); end`)
    const lines = [line(code, 1, { lot: 'new' }), line(code, 2, { lot: 'newer' })]
    // Not by the client of the tests, to which an answer 500 is a failure of its own.
    const answer = await app.inject({
      method: 'POST',
      url: '/api/movements',
      headers,
      payload: { type: 'receipt', lines }
    })
    t.equal(answer.statusCode, 500, name)
    await run(dialect === 'postgres' ? sql`drop trigger spoil on ${table}` : sql`drop trigger spoil`)
    t.same(await countRows(tenant), before, `what was written before ${name} is undone`)
  }
  t.equal((await manager.get('/api/inventory/FS-1')).body.onHand, 0)
  await verified(t, context)
}

const TABLES = ['stock_transactions', 'stock_moves', 'stock_accounts', 'stock_balances', 'lots'] as const
async function countRows({ db }: { db: Kysely<unknown> }): Promise<number[]> {
  const counts: number[] = []
  for (const table of TABLES) {
    const { rows } = await sql<{ n: number }>`select count(*) as n from ${sql.table(table)}`.execute(db)
    counts.push(Number(rows[0]?.n))
  }
  return counts
}

async function limits(t: Test, context: Context) {
  const { staff, manager } = context
  const code = await item(t, context, 'LI-1')
  for (const [quantity, status] of [
    [0, 422],
    [-1, 422],
    [0.0000001, 400],
    [1.1234567, 400],
    [1_000_000_000.000001, 400],
    [Number.MAX_VALUE, 400]
  ] as const) {
    t.equal((await post(staff, 'receipt', [line(code, quantity)])).status, status, String(quantity))
  }
  for (const lines of [
    [],
    [{ itemCode: code }],
    [line(code, 1, { colour: 'red' })],
    Array.from({ length: 1001 }, () => line(code, 1))
  ]) {
    t.match(
      await post(staff, 'receipt', lines),
      { status: 400, body: { code: 'REQUEST_INVALID' } },
      `${lines.length} lines`
    )
  }
  for (const [type, quantity, detail] of [
    ['adjustment', 0, /quantity of an adjustment is not zero/],
    ['issue', 0, /quantity of an issue is above zero \(it is 0\)/],
    ['receipt', -1, /quantity of a receipt is above zero \(it is -1\)/]
  ] as const)
    t.match(
      await post(staff, type, [line(code, quantity)]),
      { status: 422, body: { detail } },
      `${type} of ${quantity}`
    )
  const french = { 'accept-language': 'fr' }
  const nothing = await post(staff, 'adjustment', [line(code, 0)], french)
  t.match(nothing.body.detail, /ajustement \(adjustment\) n’est pas nulle/)
  t.equal((await post(staff, 'gift', [line(code, 1)])).status, 400)
  const json = { 'content-type': 'application/json' }
  const huge = `{"type":"receipt","lines":[{"itemCode":"${code}","quantity":1e309}]}`
  t.equal((await staff.post('/api/movements', huge, json)).status, 400, '1e309')

  t.equal((await post(staff, 'receipt', [line(code, 0.000001, { unitCost: 0.000001 })])).status, 201)
  t.match((await manager.get('/api/inventory/LI-1')).body, { onHand: 0.000001, value: 0 })
  t.equal((await post(staff, 'receipt', [line(code, 999_999_999.999999)])).status, 201)
  t.equal((await manager.get('/api/inventory/LI-1')).body.onHand, 1_000_000_000)
  t.match(await post(staff, 'receipt', [line(code, 0.000001)]), {
    status: 422,
    body: { code: 'INV_STOCK_LIMIT', line: 1 }
  })
  t.equal((await post(staff, 'issue', [line(code, 1_000_000_000)])).status, 201)
  t.match(await post(staff, 'receipt', [line(code, 1_000_000_000, { unitCost: 1_000_000_000 })]), {
    status: 422,
    body: { code: 'INV_STOCK_LIMIT' }
  })

  const many = await post(
    staff,
    'receipt',
    Array.from({ length: 1000 }, () => line(code, 0.001, { unitCost: 1 }))
  )
  t.equal(many.body.lines.length, 1000)
  t.match((await manager.get('/api/inventory/LI-1')).body, { onHand: 1, value: 1, unitCost: 1 })
  await exactDecimals(t, context)
  await verified(t, context)
}

/** Every decimal of at most six places is taken and shown as it was sent. */
async function exactDecimals(t: Test, context: Context) {
  const code = await item(t, context, 'LI-2')
  const all = fc.sample(
    fc.tuple(
      fc.oneof(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 0, max: 999_999_999 })),
      fc.integer({ min: 1, max: 999_999 })
    ),
    { seed: SEED, numRuns: 200 }
  )
  const refused: string[] = []
  for (const [whole, fraction] of all) {
    const quantity = Number(`${whole}.${String(fraction).padStart(6, '0')}`)
    const received = await post(context.staff, 'receipt', [line(code, quantity)])
    if (received.body.lines?.[0].quantity !== quantity) refused.push(received.text)
    const issued = await post(context.staff, 'issue', [line(code, quantity)])
    if (issued.status !== 201) refused.push(issued.text)
  }
  t.same(refused, [])
  t.equal((await context.manager.get('/api/inventory/LI-2')).body.onHand, 0)
}

async function reversals(t: Test, context: Context) {
  const { staff, manager } = context
  const code = await item(t, context, 'RV-1')
  const receipt = (await post(manager, 'receipt', [line(code, 10, { unitCost: 3 })])).body
  await post(manager, 'receipt', [line(code, 10, { unitCost: 5 })])
  const reverse = (id: string, as = manager) => as.post(`/api/movements/${id}/reverse`, { reason: 'typing error' })
  t.equal((await reverse(receipt.id, staff)).status, 403)
  const reversed = await reverse(receipt.id)
  t.match(reversed, {
    status: 201,
    body: {
      type: 'receipt',
      reverses: receipt.id,
      reason: 'typing error',
      occurredAt: receipt.occurredAt,
      lines: [{ from: 'main', to: 'supplier', value: 30 }]
    }
  })
  t.match((await manager.get('/api/inventory/RV-1')).body, { onHand: 10, value: 50, unitCost: 5 })
  t.equal((await manager.get(`/api/movements/${receipt.id}`)).body.reversedBy, reversed.body.id)
  t.match(await reverse(receipt.id), {
    status: 409,
    body: { code: 'INV_ALREADY_REVERSED', reversedBy: reversed.body.id }
  })
  t.match(await reverse(reversed.body.id), { status: 409, body: { code: 'INV_REVERSAL_OF_REVERSAL' } })
  t.match(await reverse('01890000-0000-7000-8000-000000000000'), {
    status: 404,
    body: { code: 'INV_MOVEMENT_NOT_FOUND' }
  })
  t.equal((await reverse('not-a-uuid')).status, 400)

  const second = (await post(manager, 'receipt', [line(code, 5)])).body
  const issue = (await post(manager, 'issue', [line(code, 12)])).body
  t.match(await reverse(second.id), { status: 409, body: { code: 'INV_INSUFFICIENT_STOCK', available: 3 } })
  const slip = (await post(manager, 'issue', [line(code, 1)])).body
  t.match(
    await manager.post(`/api/movements/${slip.id}/reverse`),
    { status: 201, body: { reverses: slip.id, reason: null } },
    'a body is for the reason'
  )
  const both = await Promise.all(Array.from({ length: 8 }, () => reverse(issue.id)))
  t.same(both.map(({ status }) => status).sort(), [201, 409, 409, 409, 409, 409, 409, 409], 'exactly one wins')
  t.equal((await manager.get('/api/inventory/RV-1')).body.onHand, 15)
  await verified(t, context)
}

async function parallelIssues(t: Test, context: Context) {
  const { staff, manager } = context
  const code = await item(t, context, 'PA-1', 100)
  const answers = await Promise.all(Array.from({ length: 64 }, () => post(staff, 'issue', [line(code, 3)])))
  const issued = answers.filter(({ status }) => status === 201).length
  t.equal(issued, 33, 'exactly what is available')
  for (const { status, body } of answers.filter(({ status }) => status !== 201)) {
    if (status !== 409 || body.code !== 'INV_INSUFFICIENT_STOCK' || body.available !== 1) t.fail(JSON.stringify(body))
  }
  t.match((await manager.get('/api/inventory/PA-1')).body, { onHand: 1, value: 2 })

  // Two items in both orders, with transfers between: no deadlock reaches a client.
  await manager.post('/api/locations', { location: 'PA-2', name: 'Elsewhere' })
  const [a, b] = [await item(t, context, 'PA-A', 200), await item(t, context, 'PA-B', 200)]
  const crossed = await Promise.all(
    Array.from({ length: 48 }, (_, i) =>
      i % 3 === 2
        ? post(staff, 'transfer', [line(b, 1, { toLocation: 'PA-2' }), line(a, 1, { toLocation: 'PA-2' })])
        : post(staff, 'issue', i % 3 === 0 ? [line(a, 2), line(b, 2)] : [line(b, 2), line(a, 2)])
    )
  )
  t.ok(
    crossed.every(({ status }) => status === 201),
    crossed.find(({ status }) => status !== 201)?.text ?? 'all are posted'
  )
  t.match((await manager.get('/api/inventory/PA-A')).body, {
    onHand: 136,
    locations: [
      { location: 'PA-2', onHand: 16 },
      { location: 'main', onHand: 120 }
    ]
  })
  await verified(t, context)
}

async function idempotency(t: Test, context: Context) {
  const { staff, manager, app } = context
  const code = await item(t, context, 'ID-1', 10)
  // 16 keys, each sent four times at once, of which ten suffice.
  const answers = await Promise.all(
    Array.from({ length: 64 }, async (_, i) => ({
      key: `retry-${i % 16}`,
      answer: await post(staff, 'issue', [line(code, 1)], { 'idempotency-key': `retry-${i % 16}` })
    }))
  )
  const posted = new Set<string>()
  for (const [key, same] of groupByKey(answers)) {
    const good = same.filter(({ answer }) => answer.status === 201)
    if (new Set(good.map(({ answer }) => answer.text)).size > 1) t.fail(`${key}: different bytes`)
    for (const { answer } of good) posted.add(answer.body.id)
    if (good.length > 0 && good.length < 4) t.fail(`${key}: ${same.map(({ answer }) => answer.text).join()}`)
  }
  t.equal(posted.size, 10, 'one posting for each key, until nothing is left')
  t.equal((await manager.get('/api/inventory/ID-1')).body.onHand, 0)

  const headers = { 'idempotency-key': 'one' }
  const first = await post(staff, 'receipt', [line(code, 5)], headers)
  const again = await post(staff, 'receipt', [line(code, 5)], headers)
  t.equal(again.text, first.text)
  t.equal(again.status, 201)
  t.equal(again.headers.location, first.headers.location)
  t.match(await post(staff, 'receipt', [line(code, 6)], headers), {
    status: 422,
    body: { code: 'IDEMPOTENCY_KEY_REUSED' }
  })
  t.match(
    await staff.post('/api/reservations', { itemCode: code, quantity: 1 }, headers),
    { status: 422 },
    'nor on another route'
  )
  const other = await post(client(app, 'staff', { subject: 'somebody-else' }), 'receipt', [line(code, 5)], headers)
  t.not(other.text, first.text, 'a key is its caller’s own')
  const refused = await post(staff, 'issue', [line(code, 50)], { 'idempotency-key': 'two' })
  t.equal(refused.status, 409)
  await post(staff, 'receipt', [line(code, 100)])
  t.equal(
    (await post(staff, 'issue', [line(code, 50)], { 'idempotency-key': 'two' })).status,
    201,
    'what was refused may be tried again'
  )
  for (const key of ['', 'with space', 'é', 'x'.repeat(256)]) {
    t.match(await post(staff, 'receipt', [line(code, 1)], { 'idempotency-key': key }), {
      status: 400,
      body: { code: 'IDEMPOTENCY_KEY_INVALID' }
    })
  }
  t.equal((await manager.get('/api/inventory/ID-1')).body.onHand, 60)
  await verified(t, context)
}

function groupByKey<T extends { key: string }>(all: readonly T[]): Map<string, T[]> {
  const groups = new Map<string, T[]>()
  for (const each of all) groups.set(each.key, [...(groups.get(each.key) ?? []), each])
  return groups
}

await eachDialect(t, async (t, dialect) => {
  const context = await openLedger(t, dialect)
  await t.test('agrees with a model', (t) => agreesWithModel(t, context))
  await t.test('a transaction is all or nothing', (t) => atomicity(t, context))
  await t.test('a statement that fails undoes those before it', (t) => failingStatements(t, context, dialect))
  await t.test('limits', (t) => limits(t, context))
  await t.test('reversals', (t) => reversals(t, context))
  await t.test('issues at once', (t) => parallelIssues(t, context))
  await t.test('idempotency', (t) => idempotency(t, context))
})
