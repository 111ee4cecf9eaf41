import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { createItemStore } from '../modules/inventory/item-store.js'
import { voidExpired } from '../modules/inventory/reservations.js'
import type { Tenants } from '../plugins/core.js'
import { type Answer, eachDialect } from './helper.js'
import { type Context, codesOf, made, NO_ID, openStock, pagesOf, post } from './inventory-harness.js'
import { patience } from './patience.js'

const until = patience({ seconds: 20 })

await eachDialect(t, async (t, dialect) => {
  const context = await openStock(t, dialect)
  await t.test('locations', (t) => locations(t, context))
  await t.test('lots', (t) => lots(t, context))
  await t.test('serial numbers', (t) => serials(t, context))
  await t.test('cost', (t) => cost(t, context))
  await t.test('reservations', (t) => reservations(t, context))
  await t.test('what is about to expire', (t) => expiring(t, context))
  if (dialect === 'postgres') await t.test('an item that changes while others wait', (t) => changing(t, context))
})

/** They wait for the item's lock, in turn, and each sees what those before it have done. */
async function changing(t: Test, { app, manager, staff }: Context) {
  const { db, transact } = await app.getDecorator<Tenants>('tenants').get('main')
  const waiting = sql<{ n: number }>`
    select count(*)::int as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
  const queued = async (...each: (() => Promise<Answer>)[]) => {
    const answers: Promise<Answer>[] = []
    await transact(async (tx) => {
      await createItemStore(tx.db).lock(['CH-1'])
      for (const ask of each) {
        answers.push(ask())
        await until('it waits', async () => (await waiting.execute(db)).rows[0]?.n === answers.length)
      }
    })
    return Promise.all(answers)
  }
  const statusOf = async () => (await staff.get('/api/inventory/CH-1')).body.status
  await made(t, manager.post('/api/inventory', { itemCode: 'CH-1', name: 'CH-1', unit: 'each' }))
  await made(t, post(staff, 'receipt', { itemCode: 'CH-1', quantity: 5 }))
  await queued(
    () => manager.patch('/api/inventory/CH-1', { reorderPoint: 4 }),
    () => post(staff, 'issue', { itemCode: 'CH-1', quantity: 2 })
  )
  t.equal(await statusOf(), 'low')
  await made(t, post(staff, 'issue', { itemCode: 'CH-1', quantity: 3 }))
  const [gone, late] = await queued(
    () => manager.delete('/api/inventory/CH-1'),
    () => post(staff, 'receipt', { itemCode: 'CH-1', quantity: 1 })
  )
  t.equal(gone?.status, 200)
  t.match(late, { status: 404, body: { code: 'INV_ITEM_NOT_FOUND' } })
}

async function locations(t: Test, { manager, staff, viewer }: Context) {
  await made(t, manager.post('/api/locations', { location: 'LO-HALL', name: 'Hall', nameFr: 'Salle', walkSequence: 5 }))
  const shelf = await made(
    t,
    manager.post('/api/locations', { location: 'LO-A', name: 'Shelf A', parent: 'LO-HALL', walkSequence: 6 })
  )
  t.match(shelf, { path: ['LO-HALL', 'LO-A'], parent: 'LO-HALL', kind: 'internal' })
  await made(t, manager.post('/api/locations', { location: 'LO-VAN', name: 'Van', kind: 'transit', walkSequence: 4 }))
  const { body } = await viewer.get('/api/locations')
  const order = body.data
    .map(({ location }: { location: string }) => location)
    .filter((code: string) => code.startsWith('LO-'))
  t.same(order, ['LO-VAN', 'LO-HALL', 'LO-A'], 'in walk order')
  t.match(await manager.post('/api/locations', { location: 'LO-A', name: 'x' }), {
    status: 409,
    body: { code: 'INV_LOCATION_EXISTS' }
  })
  t.match(await manager.post('/api/locations', { location: 'LO-B', name: 'x', parent: 'NONE' }), {
    status: 404,
    body: { code: 'INV_LOCATION_NOT_FOUND' }
  })
  t.match(await manager.post('/api/locations', { location: 'LO-B', name: 'x', parent: 'supplier' }), {
    status: 422,
    body: { code: 'INV_LOCATION_NOT_STOCKED' }
  })
  t.equal((await staff.post('/api/locations', { location: 'LO-B', name: 'x' })).status, 403)

  for (const itemCode of ['LO-1', 'LO-2', 'LO-3']) {
    await made(t, manager.post('/api/inventory', { itemCode, name: itemCode, unit: 'each' }))
    await made(t, post(staff, 'receipt', { itemCode, quantity: 10, location: 'LO-A' }))
  }
  await made(t, post(staff, 'transfer', { itemCode: 'LO-1', quantity: 4, location: 'LO-A', toLocation: 'LO-VAN' }))
  t.same(await pagesOf(t, viewer, '/api/locations/LO-A/stock', 2), ['LO-1', 'LO-2', 'LO-3'])
  t.match((await viewer.get('/api/locations/LO-VAN/stock')).body.data, [{ itemCode: 'LO-1', onHand: 4, lot: null }])
  t.equal((await viewer.get('/api/locations/NONE/stock')).status, 404)
  t.same(codesOf(await viewer.get('/api/inventory?location=LO-VAN')), ['LO-1'])
  t.same(codesOf(await viewer.get('/api/inventory?location=supplier')), [], 'what is not ours is not stock')
  t.match((await viewer.get('/api/inventory/LO-1')).body, {
    onHand: 10,
    locations: [
      { location: 'LO-A', onHand: 6 },
      { location: 'LO-VAN', onHand: 4 }
    ]
  })
}

async function lots(t: Test, { manager, staff, viewer }: Context) {
  await made(t, manager.post('/api/inventory', { itemCode: 'LT-1', name: 'Milk', unit: 'l', tracking: 'lot' }))
  t.match(await post(staff, 'receipt', { itemCode: 'LT-1', quantity: 5 }), {
    status: 422,
    body: { code: 'INV_LOT_RULE', line: 1 }
  })
  const nameless = { type: 'receipt', lines: [{ itemCode: 'LT-1', quantity: 5 }] }
  t.match((await staff.post('/api/movements', nameless, { 'accept-language': 'fr' })).body, {
    detail: 'Ligne 1 : LT-1 est suivi par lot, ce qui entre ou se réserve nomme donc son lot.',
    rule: 'est suivi par lot, ce qui entre ou se réserve nomme donc son lot'
  })
  for (const [lot, expiresOn] of [
    ['L-MAY', '2030-05-01'],
    ['L-APR', '2030-04-01'],
    ['L-NEVER', undefined],
    ['L-JUN', '2030-06-01']
  ]) {
    await made(t, post(staff, 'receipt', { itemCode: 'LT-1', quantity: 10, lot, ...(expiresOn ? { expiresOn } : {}) }))
  }
  const quarantined = await made(
    t,
    staff.put('/api/inventory/lots', { itemCode: 'LT-1', lot: 'L-APR', status: 'quarantine' }),
    200
  )
  t.match(quarantined, { status: 'quarantine', expiresOn: '2030-04-01', onHand: 10 })
  const dated = await made(
    t,
    staff.put('/api/inventory/lots', { itemCode: 'LT-1', lot: 'L-APR', expiresOn: '2030-04-02' }),
    200
  )
  t.match(dated, { status: 'quarantine', expiresOn: '2030-04-02' }, 'what the body does not name stays')

  const otherwise = (lot: string, expiresOn: string) =>
    post(staff, 'receipt', { itemCode: 'LT-1', quantity: 1, lot, expiresOn })
  for (const [lot, said] of [
    ['L-MAY', /has the lot L-MAY with the expiry .+; PUT/],
    ['L-NEVER', /with no expiry; PUT/]
  ] as const)
    t.match(await otherwise(lot, '2029-01-01'), { status: 422, body: { code: 'INV_LOT_RULE', detail: said } })

  const issued = await made(t, post(staff, 'issue', { itemCode: 'LT-1', quantity: 24 }))
  t.same(
    issued.lines.map(({ lot, quantity }: { lot: string; quantity: number }) => [lot, quantity]),
    [
      ['L-MAY', 10],
      ['L-JUN', 10],
      ['L-NEVER', 4]
    ],
    'first expired first, what never expires last, nothing from quarantine'
  )
  t.match(await post(staff, 'issue', { itemCode: 'LT-1', quantity: 7 }), {
    status: 409,
    body: { available: 6, requested: 7 }
  })
  t.match(await post(staff, 'issue', { itemCode: 'LT-1', quantity: 1, lot: 'L-APR' }), {
    status: 422,
    body: { code: 'INV_LOT_RULE' }
  })
  t.equal((await staff.post('/api/reservations', { itemCode: 'LT-1', quantity: 1, lot: 'L-APR' })).status, 422)
  t.equal((await staff.post('/api/reservations', { itemCode: 'LT-1', quantity: 1 })).status, 422)
  await made(t, post(staff, 'waste', { itemCode: 'LT-1', quantity: 1, lot: 'L-APR' }))
  t.match(await post(staff, 'issue', { itemCode: 'LT-1', quantity: 1, lot: 'L-NONE' }), {
    status: 404,
    body: { code: 'INV_LOT_NOT_FOUND' }
  })
  t.match(await post(staff, 'issue', { itemCode: 'LT-1', quantity: 7, lot: 'L-NEVER' }), {
    status: 409,
    body: { lot: 'L-NEVER', available: 6 }
  })

  t.same(await pagesOf(t, viewer, '/api/inventory/lots?itemCode=LT-1', 3, 'lot'), [
    'L-MAY',
    'L-APR',
    'L-NEVER',
    'L-JUN'
  ])
  const soon = await viewer.get('/api/inventory/lots?itemCode=LT-1&expiresBefore=2030-05-01')
  t.match(soon.body.data, [{ lot: 'L-APR', onHand: 9 }])
  t.equal((await viewer.get('/api/inventory/lots?expiresBefore=2030-02-31')).status, 400)
  await made(t, manager.post('/api/inventory', { itemCode: 'LT-0', name: 'Salt', unit: 'kg' }))
  t.equal((await staff.put('/api/inventory/lots', { itemCode: 'LT-0', lot: 'X' })).status, 422)
  t.equal((await staff.put('/api/inventory/lots', { itemCode: 'NONE', lot: 'X' })).status, 404)
  t.equal((await post(staff, 'receipt', { itemCode: 'LT-0', quantity: 1, lot: 'X' })).status, 422)

  await made(t, manager.post('/api/inventory', { itemCode: 'LT-3', name: 'Cream', unit: 'each', tracking: 'lot' }))
  await made(t, manager.put('/api/inventory/LT-3/units/case', { numerator: 3 }), 200)
  for (const lot of ['1', '2', '3']) await made(t, post(staff, 'receipt', { itemCode: 'LT-3', quantity: 1, lot }))
  const split = await made(t, post(staff, 'issue', { itemCode: 'LT-3', quantity: 1, unit: 'case' }))
  const entered = split.lines.map(({ enteredQuantity }: { enteredQuantity: number }) => enteredQuantity)
  t.same(entered, [0.333333, 0.333334, 0.333333], 'a third of the case from each lot, which together are the case')
}

async function serials(t: Test, { manager, staff }: Context) {
  await made(t, manager.post('/api/inventory', { itemCode: 'SN-1', name: 'Pump', unit: 'each', tracking: 'serial' }))
  await made(t, manager.post('/api/locations', { location: 'SN-B', name: 'B' }))
  for (const line of [{ quantity: 1 }, { quantity: 2, lot: 'S1' }, { quantity: 0.5, lot: 'S1' }]) {
    t.match(
      await post(staff, 'receipt', { itemCode: 'SN-1', ...line }),
      { status: 422, body: { code: 'INV_LOT_RULE' } },
      JSON.stringify(line)
    )
  }
  await made(
    t,
    post(staff, 'receipt', { itemCode: 'SN-1', quantity: 1, lot: 'S1' }, { itemCode: 'SN-1', quantity: 1, lot: 'S2' })
  )
  for (const location of ['main', 'SN-B']) {
    const twice = await post(staff, 'receipt', { itemCode: 'SN-1', quantity: 1, lot: 'S1', location })
    t.match(twice, { status: 422, body: { code: 'INV_LOT_RULE' } }, `S1 is in stock, so not received at ${location}`)
  }
  await made(t, post(staff, 'transfer', { itemCode: 'SN-1', quantity: 1, lot: 'S1', toLocation: 'SN-B' }))
  t.equal((await post(staff, 'issue', { itemCode: 'SN-1', quantity: 1, lot: 'S1' })).status, 409, 'it is elsewhere')
  await made(t, post(staff, 'issue', { itemCode: 'SN-1', quantity: 1, lot: 'S1', location: 'SN-B' }))
  await made(t, post(staff, 'return', { itemCode: 'SN-1', quantity: 1, lot: 'S1' }))
  t.equal((await manager.get('/api/inventory/SN-1')).body.onHand, 2)
}

async function cost(t: Test, { manager, staff, viewer }: Context) {
  await made(t, manager.post('/api/inventory', { itemCode: 'CO-1', name: 'Gold', unit: 'g', unitCost: 55.5 }))
  const posted = await made(t, post(staff, 'receipt', { itemCode: 'CO-1', quantity: 2, unitCost: 60 }))
  t.match(posted.lines[0], { unitCost: null, value: null }, 'staff do not see it even of what they posted')
  for (const as of [viewer, staff]) {
    t.match((await as.get('/api/inventory/CO-1')).body, { unitCost: null, value: null, onHand: 2 })
    t.match((await as.get('/api/inventory?q=CO-1')).body.data, [{ unitCost: null, value: null }])
    t.match((await as.get(`/api/movements/${posted.id}`)).body.lines, [{ unitCost: null, value: null }])
    t.match((await as.get('/api/movements?itemCode=CO-1')).body.data[0].lines, [{ unitCost: null, value: null }])
    t.match((await as.get('/api/inventory/CO-1/movements')).body.data, [{ unitCost: null }])
    for (const sort of ['value', '-value']) {
      t.match(await as.get(`/api/inventory?sort=${sort}`), { status: 403, body: { code: 'INV_COST_HIDDEN' } })
    }
    t.notMatch((await as.get('/api/export/items')).text, /55\.5/)
    t.notMatch((await as.get('/api/export/movements')).text, /CO-1.*,60,/)
    t.equal((await as.get('/api/ledger/verify')).status, 403)
  }
  t.match((await manager.get('/api/inventory/CO-1')).body, { unitCost: 60, value: 120 })
  t.match((await manager.get(`/api/movements/${posted.id}`)).body.lines, [{ unitCost: 60, value: 120 }])
  t.match((await manager.get('/api/inventory/CO-1/movements')).body.data, [{ unitCost: 60 }])
}

async function reservations(t: Test, { app, manager, staff, viewer }: Context) {
  await made(t, manager.post('/api/inventory', { itemCode: 'RE-1', name: 'Chairs', unit: 'each' }))
  await made(t, post(staff, 'receipt', { itemCode: 'RE-1', quantity: 10 }))
  const held = await made(t, staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 6, reference: 'Wedding' }))
  t.match(held, { status: 'pending', quantity: 6, location: 'main', lot: null, movementId: null, expiresAt: null })
  t.match((await viewer.get('/api/inventory/RE-1')).body, { onHand: 10, reserved: 6, available: 4 })
  t.match(await staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 5 }), {
    status: 409,
    body: { code: 'INV_INSUFFICIENT_STOCK', available: 4, requested: 5 }
  })
  t.match(await post(staff, 'issue', { itemCode: 'RE-1', quantity: 5 }), { status: 409, body: { available: 4 } })
  const second = await made(t, staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 4 }))

  const done = await made(t, staff.post(`/api/reservations/${held.id}/post`), 200)
  t.equal(done.status, 'posted')
  t.match((await viewer.get(`/api/movements/${done.movementId}`)).body, {
    type: 'issue',
    reference: 'Wedding',
    lines: [{ quantity: 6 }]
  })
  for (const action of ['post', 'void']) {
    t.match(await staff.post(`/api/reservations/${held.id}/${action}`), {
      status: 409,
      body: { code: 'INV_RESERVATION_CLOSED' }
    })
  }
  t.equal((await made(t, staff.post(`/api/reservations/${second.id}/void`), 200)).status, 'voided')
  t.match((await viewer.get('/api/inventory/RE-1')).body, { onHand: 4, reserved: 0, available: 4 })

  const both = await made(t, staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 1 }))
  const ends = await Promise.all(
    ['post', 'void', 'post', 'void'].map((how) => staff.post(`/api/reservations/${both.id}/${how}`))
  )
  t.same(ends.map(({ status }) => status).sort(), [200, 409, 409, 409], 'it ends once')

  const expiresAt = new Date(Date.now() + 2_000).toISOString()
  const short = await made(t, staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 1, expiresAt }))
  await new Promise((resolve) => setTimeout(resolve, Date.parse(expiresAt) - Date.now() + 20))
  t.match(await staff.post(`/api/reservations/${short.id}/post`), {
    status: 409,
    body: { code: 'INV_RESERVATION_CLOSED', detail: `The reservation ${short.id} is expired.` }
  })
  t.match(await staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 1, expiresAt }), {
    status: 422,
    body: { code: 'INV_EXPIRES_IN_PAST', expiresAt }
  })
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  await voidExpired(tenant)
  t.equal((await viewer.get(`/api/reservations/${short.id}`)).body.status, 'voided')
  t.equal((await viewer.get('/api/inventory/RE-1')).body.reserved, 0)
  await voidExpired(tenant)

  t.same(await pagesOf(t, viewer, '/api/reservations?itemCode=RE-1', 2, 'id'), [held.id, second.id, both.id, short.id])
  t.equal((await viewer.get('/api/reservations?status=pending')).body.data.length, 0)
  t.equal((await viewer.get(`/api/reservations/${NO_ID}`)).status, 404)
  t.equal((await staff.post(`/api/reservations/${NO_ID}/post`)).status, 404)
  t.equal((await staff.post('/api/reservations', { itemCode: 'NONE', quantity: 1 })).status, 404)
  t.equal((await staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 0 })).status, 400)
  t.equal((await staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 1, location: 'supplier' })).status, 422)
  t.equal((await viewer.post('/api/reservations', { itemCode: 'RE-1', quantity: 1 })).status, 403)
  t.match((await manager.get('/api/ledger/verify')).body, { ok: true, mismatches: [] })
}

/** Figures are kept for a while, and are read here for the first time. */
async function expiring(t: Test, { app, manager, staff }: Context) {
  await made(t, manager.post('/api/inventory', { itemCode: 'SOON-1', name: 'Cream', unit: 'l', tracking: 'lot' }))
  const inDays = (days: number) => new Date(Date.now() + days * 86_400_000).toISOString().slice(0, 10)
  for (const days of [-2, 3, 4, 20, 80, 100]) {
    const line = { itemCode: 'SOON-1', quantity: 5, lot: `SOON ${days}`, expiresOn: inDays(days) }
    await made(t, post(staff, 'receipt', line))
  }
  await made(t, post(staff, 'issue', { itemCode: 'SOON-1', quantity: 5, lot: 'SOON 4' }))
  // A scrape waits half a second for what it has not found yet, and no longer.
  const body = await until('the figures', async () => {
    const { body } = await app.inject('/metrics')
    return body.includes('inventory_expiring_lots{window="90d"}') && body
  })
  const count = (window: string) => Number(body.match(`inventory_expiring_lots{window="${window}"} (\\d+)`)?.[1])
  t.same(
    ['expired', '7d', '30d', '90d'].map(count),
    [1, 1, 2, 3],
    'each window holds the shorter ones, not what is gone'
  )
}
