import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { eachDialect } from './helper.js'
import { type Context, item, openLedger, verified } from './ledger-harness.js'

async function immutability(t: Test, context: Context) {
  await item(t, context, 'IM-1', 5)
  const { tenant } = context
  const run = (statement: ReturnType<typeof sql>) => tenant.transact(({ db }) => statement.execute(db))
  for (const table of ['stock_moves', 'stock_transactions'] as const) {
    const name = sql.table(table)
    const refused = new RegExp(`${table} is append-only`)
    await t.rejects(run(sql`delete from ${name}`), refused, `delete from ${table}`)
    const column = table === 'stock_moves' ? sql`quantity = quantity + 1` : sql`reason = 'changed'`
    await t.rejects(run(sql`update ${name} set ${column}`), refused, `update ${table}`)
    if (tenant.dialect === 'postgres')
      await t.rejects(run(sql`truncate ${name} cascade`), /append-only/, `truncate ${table}`)
  }
  const moves = sql.table('stock_moves')
  const copied = (changed: string, value: ReturnType<typeof sql>) => {
    const columns = ['transaction_seq', 'line', 'item_id', 'from_account', 'to_account', 'quantity', 'entered_quantity']
    columns.push('entered_unit', 'request_line', 'unit_cost', 'value', 'occurred_at')
    const values = columns.map((name) => (name === changed ? value : name === 'line' ? sql`line + 500` : sql.ref(name)))
    return run(
      sql`insert into ${moves} (${sql.join(columns.map((name) => sql.id(name)))}) select ${sql.join(values)} from ${moves} limit 1`
    )
  }
  for (const column of ['transaction_seq', 'from_account', 'to_account', 'item_id'])
    await t.rejects(copied(column, sql`999999999`), /FOREIGN KEY|not there/, `a move whose ${column} is not there`)
  if (tenant.dialect === 'postgres') {
    await item(t, context, 'IM-2', 5)
    const other = sql`(select max(id) from ${sql.table('stock_accounts')})`
    await t.rejects(copied('to_account', other), /of its item/, 'a move to the account of another item')
    await t.rejects(run(sql`delete from ${sql.table('stock_accounts')}`), /stock_accounts is append-only/)
  }
  await t.rejects(run(sql`update ${sql.table('stock_balances')} set on_hand = -1`), /stock_balances_on_hand|CHECK/i)
  await t.rejects(
    run(sql`update ${sql.table('stock_balances')} set reserved = on_hand + 1`),
    /stock_balances_reserved|CHECK/i
  )
  await t.rejects(run(sql`update ${sql.table('item_totals')} set value = -1`), /item_totals_value|CHECK/i)
  await verified(t, context)
}

async function tampering(t: Test, context: Context) {
  const { manager, tenant } = context
  const code = await item(t, context, 'TA-1', 5)
  t.equal((await manager.post('/api/reservations', { itemCode: code, quantity: 2 })).status, 201)
  const ofItem = sql`item_id = (select id from ${sql.table('items')} where code = ${code})`
  const balances = sql.table('stock_balances')
  const totals = sql.table('item_totals')
  const run = (statement: ReturnType<typeof sql>) => tenant.transact(({ db }) => statement.execute(db))
  for (const [change, back, found] of [
    [
      sql`update ${balances} set on_hand = on_hand + 1000000 where ${ofItem}`,
      sql`update ${balances} set on_hand = on_hand - 1000000 where ${ofItem}`,
      [{ what: 'balance', stored: 6, recomputed: 5 }]
    ],
    [
      sql`update ${totals} set on_hand = on_hand - 1 where ${ofItem}`,
      sql`update ${totals} set on_hand = on_hand + 1 where ${ofItem}`,
      [{ what: 'onHand', stored: 4.999999, recomputed: 5 }]
    ],
    [
      sql`update ${totals} set value = value + 1 where ${ofItem}`,
      sql`update ${totals} set value = value - 1 where ${ofItem}`,
      [{ what: 'value', stored: 10.000001, recomputed: 10 }]
    ],
    [
      sql`update ${totals} set reserved = 0 where ${ofItem}`,
      sql`update ${totals} set reserved = 2000000 where ${ofItem}`,
      [{ what: 'reserved', stored: 0, recomputed: 2 }]
    ],
    [
      sql`update ${balances} set reserved = 0 where ${ofItem}`,
      sql`update ${balances} set reserved = 2000000 where ${ofItem}`,
      [
        { what: 'reservation', stored: 0, recomputed: 2 },
        { what: 'reserved', stored: 2, recomputed: 0 }
      ]
    ],
    [
      sql`delete from ${balances} where ${ofItem}`,
      undefined,
      [{ what: 'balance', stored: 0, recomputed: 5 }, { what: 'reserved' }]
    ]
  ] as const) {
    await run(change)
    const { body } = await manager.get('/api/ledger/verify')
    t.equal(body.ok, false)
    t.match(
      body.mismatches.sort((a: { what: string }, b: { what: string }) => (a.what < b.what ? -1 : 1)),
      found.map((each) => ({ itemCode: code, ...each }))
    )
    t.equal(body.mismatches.length, found.length)
    if (back !== undefined) {
      await run(back)
      await verified(t, context)
    }
  }
  t.match((await context.app.inject('/metrics')).body, /inventory_\w*verif\w*/, 'the last result is a metric')
}

await eachDialect(t, async (t, dialect) => {
  const context = await openLedger(t, dialect)
  await t.test('history is immutable', (t) => immutability(t, context))
  await t.test('verify names what was tampered with', (t) => tampering(t, context))
})
