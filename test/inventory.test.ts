import fc from 'fast-check'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { isPostgres } from '../migrations/columns.js'
import { listItems } from '../modules/inventory/item-list.js'
import { IntegerReader, writeJson } from '../modules/inventory/json-bytes.js'
import type { ListPlan, Order } from '../modules/inventory/list-plan.js'
import { voidExpired } from '../modules/inventory/reservations.js'
import type { Tenants } from '../plugins/core.js'
import { fromMicros, proportionMicros } from '../schemas/decimal.js'
import { type ItemQuery, RESERVED_ITEM_CODES } from '../schemas/inventory.js'
import { type Answer, buildApp, type Client, client, eachDialect } from './helper.js'

interface Context {
  app: FastifyInstance
  viewer: Client
  staff: Client
  manager: Client
}

/** Every code of a list, page by page; fails on a repeated row. */
async function pagesOf(t: Test, as: Client, url: string, limit: number, key = 'itemCode'): Promise<string[]> {
  const seen: string[] = []
  for (let cursor = ''; ; ) {
    const { status, body } = await as.get(`${url}${url.includes('?') ? '&' : '?'}limit=${limit}${cursor}`)
    t.equal(status, 200, url)
    for (const row of body.data) seen.push(row[key])
    if (body.page.nextCursor === null) break
    t.equal(body.data.length, limit, 'a page before the last is full')
    cursor = `&cursor=${encodeURIComponent(body.page.nextCursor)}`
  }
  t.equal(new Set(seen).size, seen.length, `${url}: no row twice`)
  return seen
}

const codesOf = ({ body }: Answer): string[] => body.data.map((row: { itemCode: string }) => row.itemCode)
const made = async (t: Test, answer: Promise<Answer>, status = 201) => {
  const { status: actual, body, text } = await answer
  t.equal(actual, status, actual === status ? 'as expected' : text.slice(0, 300))
  return body
}
const NO_ID = '01890000-0000-7000-8000-000000000000'
const post = (as: Client, type: string, ...lines: object[]) => as.post('/api/movements', { type, lines })

await eachDialect(t, async (t, dialect) => {
  const app = await buildApp(t, { dialect })
  const context = {
    app,
    viewer: client(app, 'viewer'),
    staff: client(app, 'staff'),
    manager: client(app, 'manager')
  }
  await t.test('items', (t) => items(t, context))
  await t.test('barcodes and categories', (t) => barcodesAndCategories(t, context))
  await t.test('units', (t) => units(t, context))
  await t.test('locations', (t) => locations(t, context))
  await t.test('lots', (t) => lots(t, context))
  await t.test('serial numbers', (t) => serials(t, context))
  await t.test('lists', (t) => lists(t, context))
  await t.test('search', (t) => search(t, context))
  await t.test('every way to look for items finds the same', (t) => waysToSearch(t, context))
  await t.test('cost', (t) => cost(t, context))
  await t.test('reservations', (t) => reservations(t, context))
  await t.test('history', (t) => history(t, context))
  await t.test('exports', (t) => exports(t, context))
  await t.test('what is about to expire', (t) => expiring(t, context))
})

async function items(t: Test, { manager, staff, viewer }: Context) {
  const body = {
    itemCode: 'IT-1',
    name: 'Screws',
    nameFr: 'Vis',
    unit: 'each',
    category: 'Fasteners',
    barcodes: ['4006381333931'],
    reorderPoint: 10,
    parLevel: 100.5,
    unitCost: 0.123456,
    shelfLifeDays: 30
  }
  const created = await manager.post('/api/inventory', body)
  t.equal(created.status, 201)
  t.match(created.body, { ...body, onHand: 0, available: 0, status: 'out', value: 0, onOrder: 0, locations: [] })
  t.equal(created.headers.location, '/api/inventory/IT-1')
  const again = await manager.post('/api/inventory', body)
  t.match(again, { status: 409, body: { code: 'INV_ITEM_EXISTS', itemCode: 'IT-1' } })

  const shown = await manager.get('/api/inventory/IT-1')
  t.match(shown.headers.etag, /^"[^"]+"$/)
  t.same(shown.body, created.body)
  const etag = shown.headers.etag ?? ''
  t.match(await manager.get('/api/inventory/IT-1', { 'if-none-match': etag }), { status: 304, text: '' })

  const stale = await manager.patch('/api/inventory/IT-1', { name: 'Bolts' }, { 'if-match': '"stale"' })
  t.match(stale, { status: 412, body: { code: 'PRECONDITION_FAILED', current: etag } })
  const patch = { name: 'Bolts', nameFr: null, reorderPoint: null }
  const patched = await manager.patch('/api/inventory/IT-1', patch, { 'if-match': etag })
  t.match(patched, { status: 200, body: { ...patch, parLevel: 100.5, category: 'Fasteners' } })
  const changed = await manager.get('/api/inventory/IT-1', { 'if-none-match': etag })
  t.match(changed, { status: 200, body: { name: 'Bolts' } }, 'a change is seen at once')
  t.not(changed.headers.etag, etag)
  t.equal((await manager.delete('/api/inventory/IT-1', { 'if-match': etag })).status, 412)

  for (const [as, status] of [
    [viewer, 403],
    [staff, 403]
  ] as const) {
    t.match(await as.post('/api/inventory', { ...body, itemCode: 'IT-2' }), {
      status,
      body: { code: 'AUTH_FORBIDDEN' }
    })
    t.equal((await as.patch('/api/inventory/IT-1', { name: 'x' })).status, status)
    t.equal((await as.delete('/api/inventory/IT-1')).status, status)
  }
  t.match(await manager.patch('/api/inventory/NONE', { name: 'x' }), {
    status: 404,
    body: { code: 'INV_ITEM_NOT_FOUND' }
  })
  t.match(await manager.delete('/api/inventory/NONE'), { status: 404, body: { code: 'INV_ITEM_NOT_FOUND' } })

  await refusals(t, manager)
  await archive(t, manager)
  await sameTime(t, manager)
}

/** Bad input: 400 with the field, or 422, and never a 500. */
async function refusals(t: Test, manager: Client) {
  const item = { itemCode: 'BAD', name: 'Bad', unit: 'each' }
  for (const [change, path] of [
    [{ itemCode: '' }, 'body/itemCode'],
    [{ itemCode: ' x' }, 'body/itemCode'],
    [{ itemCode: 'a\u0007b' }, 'body/itemCode'],
    [{ itemCode: 'x'.repeat(65) }, 'body/itemCode'],
    [{ itemCode: 7 }, 'body/itemCode'],
    [{ name: undefined }, 'body/name'],
    [{ name: '\t' }, 'body/name'],
    [{ name: 'x'.repeat(2_000) }, 'body/name'],
    [{ colour: 'red' }, 'body/colour'],
    [{ reorderPoint: -1 }, 'body/reorderPoint'],
    [{ reorderPoint: 1_000_000_001 }, 'body/reorderPoint'],
    [{ parLevel: 1.2345678 }, 'body/parLevel'],
    [{ parLevel: '5' }, 'body/parLevel'],
    [{ barcodes: ['a b c d'] }, 'body/barcodes/0'],
    [{ barcodes: ['12345', '12345'] }, 'body/barcodes'],
    [{ shelfLifeDays: 1.5 }, 'body/shelfLifeDays'],
    [{ tracking: 'some' }, 'body/tracking']
  ] as const) {
    const answer = await manager.post('/api/inventory', { ...item, ...change })
    t.match(answer, { status: 400, body: { code: 'REQUEST_INVALID', errors: [{ path }] } }, JSON.stringify(change))
  }
  t.match(await manager.post('/api/inventory', { ...item, unit: 'parsec' }), {
    status: 422,
    body: { code: 'INV_UNIT_NOT_FOUND', unit: 'parsec' }
  })
  const json = { 'content-type': 'application/json' }
  for (const [text, code] of [
    ['{"itemCode":"BAD","name":"x","unit":"each","unitCost":1e309}', 'REQUEST_INVALID'],
    ['{"itemCode":"BAD","name":"x","unit":"each","__proto__":{"a":1}}', 'REQUEST_MALFORMED'],
    ['{"itemCode":', 'REQUEST_MALFORMED'],
    ['', 'REQUEST_MALFORMED']
  ] as const) {
    t.match(await manager.post('/api/inventory', text, json), { status: 400, body: { code } }, text)
  }
  const large = `{"itemCode":"BAD","unit":"each","name":"${'x'.repeat(2_000_000)}"}`
  t.match(await manager.post('/api/inventory', large, json), { status: 413, body: { code: 'REQUEST_TOO_LARGE' } })
  const french = await manager.post(
    '/api/inventory',
    { ...item, unit: 'parsec' },
    { 'accept-language': 'fr-CA, en;q=0.5' }
  )
  t.match(french, {
    headers: { 'content-language': 'fr' },
    body: { title: 'Règle non respectée', detail: /n’existe pas/ }
  })
  for (const url of [
    'limit=0',
    'limit=501',
    'limit=x',
    'sort=colour',
    'cursor=zzz',
    'colour=red',
    'q=',
    'status=gone'
  ]) {
    t.equal((await manager.get(`/api/inventory?${url}`)).status, 400, url)
  }
  t.equal((await manager.get('/api/inventory/BAD')).status, 404, 'nothing was stored')
}

async function archive(t: Test, manager: Client) {
  await made(t, manager.post('/api/inventory', { itemCode: 'AR-0', name: 'Never moved', unit: 'each' }))
  t.match(await manager.delete('/api/inventory/AR-0'), { status: 200, body: { itemCode: 'AR-0' } })
  t.equal((await manager.get('/api/inventory/AR-0')).status, 404)
  await made(t, manager.post('/api/inventory', { itemCode: 'AR-0', name: 'Another', unit: 'kg' }))

  const item = { itemCode: 'AR-1', name: 'Moved', unit: 'each', category: 'Old', barcodes: ['ARCHIVED-1'] }
  await made(t, manager.post('/api/inventory', item))
  await made(t, post(manager, 'receipt', { itemCode: 'AR-1', quantity: 3, unitCost: 2 }))
  t.match(await manager.delete('/api/inventory/AR-1'), { status: 409, body: { code: 'INV_ITEM_HAS_STOCK', onHand: 3 } })
  await made(t, post(manager, 'issue', { itemCode: 'AR-1', quantity: 3 }))
  t.equal((await manager.delete('/api/inventory/AR-1')).status, 200)
  t.equal((await manager.get('/api/inventory/AR-1')).status, 404)
  t.notOk(codesOf(await manager.get('/api/inventory?limit=500')).includes('AR-1'))
  t.match(await post(manager, 'receipt', { itemCode: 'AR-1', quantity: 1 }), {
    status: 404,
    body: { code: 'INV_ITEM_NOT_FOUND' }
  })
  // Its barcode is free, its history is not lost.
  await made(
    t,
    manager.post('/api/inventory', { itemCode: 'AR-2', name: 'Heir', unit: 'each', barcodes: ['ARCHIVED-1'] })
  )
  t.equal((await manager.get('/api/inventory/AR-1/movements')).body.data.length, 2)

  const other = await manager.post('/api/inventory', { itemCode: 'AR-1', name: 'Back', unit: 'kg' })
  t.match(other, { status: 409, body: { code: 'INV_ITEM_UNIT_FIXED', unit: 'each' } })
  const back = await made(t, manager.post('/api/inventory', { itemCode: 'AR-1', name: 'Back', unit: 'each' }))
  t.match(back, { name: 'Back', category: null, barcodes: [], onHand: 0 }, 'what was archived is not mixed in')
  await made(t, post(manager, 'receipt', { itemCode: 'AR-1', quantity: 1 }))
}

/** Eight at once: one is made, and the others are told so. */
async function sameTime(t: Test, manager: Client) {
  const answers = await Promise.all(
    Array.from({ length: 8 }, () => manager.post('/api/inventory', { itemCode: 'RACE', name: 'Race', unit: 'each' }))
  )
  t.same(answers.map(({ status }) => status).sort(), [201, 409, 409, 409, 409, 409, 409, 409])
  const barcodes = await Promise.all(
    Array.from({ length: 8 }, (_, i) =>
      manager.post('/api/inventory', { itemCode: `RACE-${i}`, name: 'Race', unit: 'each', barcodes: ['RACE-CODE'] })
    )
  )
  t.equal(barcodes.filter(({ status }) => status === 201).length, 1)
  t.equal(barcodes.filter(({ body }) => body.code === 'INV_BARCODE_TAKEN').length, 7)
  const changes = ['A', 'B', 'C', 'D'].map((name) =>
    manager.patch(
      '/api/inventory/RACE',
      { name },
      { 'if-match': answers.find((a) => a.status === 201)?.headers.etag ?? '*' }
    )
  )
  t.equal((await Promise.all(changes)).filter(({ status }) => status === 200).length, 4, '* matches whatever is there')
  const { etag = '' } = (await manager.get('/api/inventory/RACE')).headers
  const exclusive = ['E', 'F', 'G', 'H'].map((name) =>
    manager.patch('/api/inventory/RACE', { name }, { 'if-match': etag })
  )
  t.same((await Promise.all(exclusive)).map(({ status }) => status).sort(), [200, 412, 412, 412])
}

async function barcodesAndCategories(t: Test, { manager, viewer }: Context) {
  await made(
    t,
    manager.post('/api/inventory', { itemCode: 'BC-1', name: 'One', unit: 'each', barcodes: ['BC.0001', 'BC.0002'] })
  )
  await made(t, manager.post('/api/inventory', { itemCode: 'BC-2', name: 'Two', unit: 'each', category: 'Kitchen' }))
  t.match(await manager.patch('/api/inventory/BC-2', { barcodes: ['BC.0002'] }), {
    status: 409,
    body: { code: 'INV_BARCODE_TAKEN', barcode: 'BC.0002', itemCode: 'BC-1' }
  })
  await made(t, manager.patch('/api/inventory/BC-1', { barcodes: ['BC.0001'] }), 200)
  const moved = await made(t, manager.patch('/api/inventory/BC-2', { barcodes: ['BC.0002'] }), 200)
  t.same(moved.barcodes, ['BC.0002'], 'what one gave up another may take')

  t.same(await made(t, manager.post('/api/inventory/categories', { name: 'Bar', nameFr: 'Bar' })), {
    name: 'Bar',
    nameFr: 'Bar',
    items: 0
  })
  t.match(await manager.post('/api/inventory/categories', { name: 'Bar' }), {
    status: 409,
    body: { code: 'INV_CATEGORY_EXISTS' }
  })
  const { body } = await viewer.get('/api/inventory/categories?limit=500')
  t.match(
    body.data.find(({ name }: { name: string }) => name === 'Kitchen'),
    { items: 1 }
  )
  t.same(
    await pagesOf(t, viewer, '/api/inventory/categories', 2, 'name'),
    body.data.map(({ name }: { name: string }) => name)
  )
  t.same(codesOf(await viewer.get('/api/inventory?category=Kitchen')), ['BC-2'])
  t.same(codesOf(await viewer.get('/api/inventory?category=Nowhere')), [])
}

async function units(t: Test, { manager, staff, viewer }: Context) {
  const all = await pagesOf(t, viewer, '/api/inventory/units', 7, 'unit')
  t.ok(['each', 'kg', 'case'].every((unit) => all.includes(unit)))
  await made(
    t,
    manager.post('/api/inventory/units', {
      unit: 'lb',
      name: 'pound',
      dimension: 'mass',
      numerator: 45_359_237,
      denominator: 100_000
    })
  )
  t.match(await manager.post('/api/inventory/units', { unit: 'lb', name: 'pound' }), {
    status: 409,
    body: { code: 'INV_UNIT_EXISTS' }
  })

  await made(t, manager.post('/api/inventory', { itemCode: 'UN-KG', name: 'Flour', unit: 'kg' }))
  const receipt = await made(
    t,
    post(manager, 'receipt', { itemCode: 'UN-KG', quantity: 2500, unit: 'g', unitCost: 0.004 })
  )
  t.match(receipt.lines[0], {
    quantity: 2.5,
    unit: 'kg',
    enteredQuantity: 2500,
    enteredUnit: 'g',
    unitCost: 4,
    value: 10
  })
  await made(t, post(staff, 'issue', { itemCode: 'UN-KG', quantity: 1, unit: 'lb' }))
  t.equal((await viewer.get('/api/inventory/UN-KG')).body.onHand, 2.046408, '0.45359237 kg is rounded to millionths')

  await made(t, manager.post('/api/inventory', { itemCode: 'UN-EA', name: 'Eggs', unit: 'each' }))
  const refused = await post(manager, 'receipt', { itemCode: 'UN-EA', quantity: 1, unit: 'case' })
  t.match(refused, { status: 422, body: { code: 'INV_UNIT_NOT_CONVERTIBLE', unit: 'case', baseUnit: 'each' } })
  t.equal((await post(manager, 'receipt', { itemCode: 'UN-EA', quantity: 1, unit: 'kg' })).status, 422)
  t.equal((await post(manager, 'receipt', { itemCode: 'UN-EA', quantity: 1, unit: 'nope' })).status, 422)
  const item = await made(t, manager.put('/api/inventory/UN-EA/units/case', { numerator: 24 }), 200)
  t.same(item.units, [{ unit: 'case', numerator: 24, denominator: 1 }])
  await made(t, post(manager, 'receipt', { itemCode: 'UN-EA', quantity: 2, unit: 'case', unitCost: 12 }))
  t.match((await manager.get('/api/inventory/UN-EA')).body, { onHand: 48, unitCost: 0.5, value: 24 })
  await made(t, manager.put('/api/inventory/UN-EA/units/case', { numerator: 12 }), 200)
  await made(t, post(manager, 'receipt', { itemCode: 'UN-EA', quantity: 1, unit: 'dozen' }))
  await made(t, post(staff, 'issue', { itemCode: 'UN-EA', quantity: 5, unit: 'case' }))
  t.equal((await viewer.get('/api/inventory/UN-EA')).body.onHand, 0, '48 + 12 − 5 × 12: the newer ratio counts')
  t.equal((await manager.put('/api/inventory/UN-EA/units/nope', { numerator: 2 })).status, 422)
  t.equal((await manager.put('/api/inventory/NONE/units/case', { numerator: 2 })).status, 404)
  t.equal((await manager.put('/api/inventory/UN-EA/units/case', { numerator: 0 })).status, 400)
  const tiny = await post(manager, 'receipt', { itemCode: 'UN-KG', quantity: 0.000001, unit: 'mg' })
  t.match(tiny, { status: 422, body: { code: 'INV_MOVEMENT_RULE', line: 1 } })
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

/** Items with many equal sort keys, so that a page boundary falls among them. */
async function lists(t: Test, { manager, viewer }: Context) {
  const header = 'itemCode,name,unit,category,reorderPoint,parLevel'
  const rows = Array.from(
    { length: 137 },
    (_, i) => `PG-${String((i * 7919) % 1000).padStart(3, '0')},Name ${i % 9},each,Paged,5,50`
  )
  const csv = { 'content-type': 'text/csv', prefer: 'wait=30' }
  t.match((await manager.post('/api/import/items', [header, ...rows].join('\n'), csv)).body, { status: 'succeeded' })
  const codes = rows.map((row) => row.slice(0, 6))
  for (let i = 0; i < codes.length; i += 2) {
    await post(manager, 'receipt', { itemCode: codes[i], quantity: [3, 20, 60][i % 3], unitCost: 1 + (i % 4) })
  }
  for (const sort of ['itemCode', '-itemCode', 'name', '-name', 'onHand', '-onHand', 'value', '-value']) {
    const seen = await pagesOf(t, manager, `/api/inventory?category=Paged&sort=${sort}`, 10)
    t.same([...seen].sort(), [...codes].sort(), `${sort}: no gap`)
    const { body } = await manager.get(`/api/inventory?category=Paged&limit=500&sort=${sort}`)
    const key = sort.replace('-', '')
    const values: (string | number)[] = body.data.map((row: Record<string, string | number>) => row[key])
    const ordered = [...values].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))
    t.same(values, sort.startsWith('-') ? ordered.reverse() : ordered, `${sort}: in order`)
    t.same(
      body.data.map((row: { itemCode: string }) => row.itemCode),
      seen,
      `${sort}: pages make the list`
    )
  }
  const byStatus: Record<string, string[]> = {}
  for (const status of ['in', 'low', 'out', 'over']) {
    byStatus[status] = await pagesOf(t, viewer, `/api/inventory?category=Paged&status=${status}`, 20)
  }
  t.same(Object.values(byStatus).flat().sort(), [...codes].sort(), 'each item has one status')
  t.match(Object.fromEntries(Object.entries(byStatus).map(([status, found]) => [status, found.length])), {
    out: 68,
    low: 23,
    in: 23,
    over: 23
  })
  const { body } = await viewer.get('/api/inventory?category=Paged&limit=10&sort=name')
  const cursor = encodeURIComponent(body.page.nextCursor)
  t.match(await viewer.get(`/api/inventory?category=Paged&limit=10&sort=-name&cursor=${cursor}`), {
    status: 400,
    body: { code: 'CURSOR_INVALID' }
  })
  t.equal((await viewer.get(`/api/movements?cursor=${cursor}`)).status, 400, 'a cursor belongs to its list')
  t.same((await viewer.get('/api/inventory?category=Paged&limit=500')).body.page, { limit: 500, nextCursor: null })
}

async function search(t: Test, { manager, viewer }: Context) {
  for (const item of [
    { itemCode: 'SE-QX17', name: 'Crème brûlée', nameFr: 'Dessert à la vanille', barcodes: ['5012345678900'] },
    { itemCode: 'SE-100%', name: '50% "off" label' },
    { itemCode: 'SE_UNDER', name: "O'Brien's glass* (large)" },
    { itemCode: 'SE\\BACK', name: 'Zwölf Äpfel' },
    { itemCode: 'SE-日本', name: '日本酒 AND OR NOT NEAR(x)' },
    { itemCode: 'SE/SLASH', name: 'Qyz Slash' }
  ]) {
    await made(t, manager.post('/api/inventory', { unit: 'each', ...item }))
    t.equal((await viewer.get(`/api/inventory/${encodeURIComponent(item.itemCode)}`)).body.name, item.name)
  }
  const find = async (q: string) => codesOf(await viewer.get(`/api/inventory?q=${encodeURIComponent(q)}`))
  for (const [q, expected] of [
    ['SE-QX17', 'SE-QX17'],
    ['se-qx17', 'SE-QX17'],
    ['QX1', 'SE-QX17'],
    ['345678', 'SE-QX17'],
    ['creme', 'SE-QX17'],
    ['CRÈME', 'SE-QX17'],
    ['brûl', 'SE-QX17'],
    ['rulee', 'SE-QX17'],
    ['vanille', 'SE-QX17'],
    ['  creme   brulee ', 'SE-QX17'],
    ['50%', 'SE-100%'],
    ['0% "', 'SE-100%'],
    ['"off"', 'SE-100%'],
    ['SE_', 'SE_UNDER'],
    ["o'brien", 'SE_UNDER'],
    ['glass*', 'SE_UNDER'],
    ['s* (', 'SE_UNDER'],
    ['SE\\B', 'SE\\BACK'],
    ['apfel', 'SE\\BACK'],
    ['zw', 'SE\\BACK'],
    ['日本酒', 'SE-日本'],
    ['NOT NEAR(', 'SE-日本'],
    ['Qy', 'SE/SLASH'],
    ['e/s', 'SE/SLASH']
  ] as const) {
    t.same(await find(q), [expected], q)
  }
  for (const q of [
    '%%%',
    '___',
    '"""',
    '***',
    'creme AND dessert',
    'text:creme',
    '-creme',
    'brulee dessert',
    '\u0001\u0001c%'
  ]) {
    t.same(await find(q), [], `${q} is not found, and no syntax`)
  }
  t.ok((await find('z')).includes('SE\\BACK') && !(await find('z')).includes('SE/SLASH'), 'one letter finds by prefix')
  t.same((await find('日')).concat(await find('😀')), ['SE-日本'])
  t.same(await pagesOf(t, viewer, '/api/inventory?q=PG-', 10), await pagesOf(t, viewer, '/api/inventory?q=pg-', 500))
  t.same((await pagesOf(t, viewer, '/api/inventory?q=PG-&sort=-name', 10)).length, 137)
  t.same(await find(' '), codesOf(await viewer.get('/api/inventory')), 'blank is no search')

  await made(t, manager.patch('/api/inventory/SE-QX17', { name: 'Flan', nameFr: null, barcodes: [] }), 200)
  t.same([await find('creme'), await find('345678'), await find('flan')], [[], [], ['SE-QX17']], 'a change is found')
  await manager.delete('/api/inventory/SE-QX17')
  t.same(await find('flan'), [])
  const long = '本'.repeat(64)
  await made(t, manager.post('/api/inventory', { itemCode: long, name: 'Longest', unit: 'each' }))
  t.equal((await viewer.get(`/api/inventory/${encodeURIComponent(long)}`)).status, 200)
}

async function waysToSearch(t: Test, { app, manager }: Context) {
  const colours = ['Amber', 'Blue', 'Cyan']
  const rows = Array.from({ length: 90 }, (_, n) => {
    const name = `${['Ware', 'Thing', 'Ware'][n % 3]} ${(n * 37) % 90} ${colours[n % 7] ?? 'Dull'}`
    return `WA-${String((n * 53) % 90).padStart(2, '0')},${name},each,${n % 2 === 0 ? 'Shelf' : 'Drawer'}`
  })
  const csv = { 'content-type': 'text/csv', prefer: 'wait=30' }
  await manager.post('/api/import/items', ['itemCode,name,unit,category', ...rows].join('\n'), csv)
  // Too long for an index of PostgreSQL.
  const long = { itemCode: 'WA-LONG', name: '本'.repeat(200), nameFr: `${'字'.repeat(190)} ware`, unit: 'each' }
  const barcodes = Array.from({ length: 20 }, (_, n) => `${'7'.repeat(58)}${n}`)
  await made(t, manager.post('/api/inventory', { ...long, category: 'Shelf', barcodes }))
  await post(manager, 'receipt', { itemCode: 'WA-10', quantity: 5 }, { itemCode: 'WA-LONG', quantity: 2 })
  await made(t, manager.patch('/api/inventory/WA-20', { category: 'Drawer', name: 'Ware moved' }), 200)
  await made(t, manager.patch('/api/inventory/WA-30', { category: null }), 200)
  const { db } = await app.getDecorator<Tenants>('tenants').get('main')
  const walk = async (query: ItemQuery, plan?: Pick<ListPlan, 'narrow' | 'byText'>) => {
    const planner =
      plan && (async (_: unknown, order: Order, values: ListPlan['values']) => ({ order, values, ...plan }))
    const codes: string[] = []
    for (let cursor: string | undefined; ; ) {
      const paged = { ...query, limit: 7, ...(cursor === undefined ? {} : { cursor }) }
      const { rows: page, cursorOf } = await listItems(db, paged, planner)
      codes.push(...page.slice(0, 7).map(({ code }) => code))
      const last = page[6]
      if (page.length <= 7 || last === undefined) return codes
      cursor = cursorOf(last)
    }
  }
  for (const filter of [
    {},
    { category: 'Shelf' },
    { category: 'Drawer', status: 'out' },
    { status: 'out' },
    { category: 'x' }
  ] as const) {
    for (const sort of [undefined, 'name', '-name', 'itemCode', '-value'] as const) {
      const query: ItemQuery = { q: 'ware', ...filter, ...(sort === undefined ? {} : { sort }) }
      const found = await walk(query)
      const label = JSON.stringify(query)
      const walkable = sort === undefined ? 'category' in filter : sort.endsWith('name')
      for (const byText of !isPostgres(db) ? [false, true] : walkable ? [false, true] : [false]) {
        for (const narrow of [undefined, 'q', 'status', 'category'] as const) {
          // Neither planner chooses these.
          if ((narrow === 'q' && (byText || sort === undefined)) || (byText && narrow !== undefined && isPostgres(db)))
            continue
          if (!isPostgres(db) && byText && narrow === undefined && sort === undefined) continue
          t.same(await walk(query, { narrow, byText }), found, `${label} ${narrow ?? ''} ${byText}`)
        }
      }
    }
  }
  t.equal((await walk({ q: 'ware' })).length, 62)
  t.ok((await walk({ q: 'ware', sort: 'name' }, { narrow: undefined, byText: true })).includes('WA-LONG'))
  t.ok((await walk({ q: 'ware moved', category: 'Drawer' })).includes('WA-20'))
  t.same(await walk({ q: 'ware moved', category: 'Shelf' }), [])
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

  const expiresAt = new Date(Date.now() + 50).toISOString()
  const short = await made(t, staff.post('/api/reservations', { itemCode: 'RE-1', quantity: 1, expiresAt }))
  await new Promise((resolve) => setTimeout(resolve, 80))
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

async function history(t: Test, { manager, staff, viewer }: Context) {
  await made(t, manager.post('/api/inventory', { itemCode: 'HI-1', name: 'Rice', unit: 'kg' }))
  await made(t, manager.post('/api/locations', { location: 'HI-B', name: 'B' }))
  const moves = [
    ['opening', '2024-01-01T08:00:00Z', { quantity: 100, unitCost: 1 }],
    ['issue', '2024-01-10T12:00:00+02:00', { quantity: 30.5 }],
    ['transfer', '2024-01-15T00:00:00Z', { quantity: 20, toLocation: 'HI-B' }],
    ['issue', '2024-01-05T08:00:00Z', { quantity: 10 }],
    ['waste', '2024-02-01T23:59:59.999Z', { quantity: 1, location: 'HI-B' }],
    ['return', '2024-02-03T08:00:00Z', { quantity: 2 }],
    ['adjustment', '2024-02-04T08:00:00Z', { quantity: -0.5 }]
  ] as const
  for (const [type, occurredAt, line] of moves) {
    const body = { type, occurredAt, reference: `HI ${type}`, reason: 'test', lines: [{ itemCode: 'HI-1', ...line }] }
    await made(t, staff.post('/api/movements', body))
  }
  const { body } = await viewer.get('/api/inventory/HI-1/movements')
  t.same(
    body.data.map((row: { type: string; quantity: number }) => [row.type, row.quantity]),
    [
      ['adjustment', -0.5],
      ['return', 2],
      ['waste', -1],
      ['transfer', 20],
      ['issue', -30.5],
      ['issue', -10],
      ['opening', 100]
    ],
    'latest occurrence first, signed'
  )
  const paged = await pagesOf(t, viewer, '/api/inventory/HI-1/movements', 2, 'movementId')
  t.same(
    paged,
    body.data.map(({ movementId }: { movementId: string }) => movementId)
  )
  t.equal((await viewer.get('/api/inventory/NONE/movements')).status, 404)

  for (const [asOf, onHand] of [
    ['2023-12-31', 0],
    ['2024-01-01T07:59:59Z', 0],
    ['2024-01-01T08:00:00Z', 100],
    ['2024-01-05', 90],
    ['2024-01-10T10:00:00Z', 59.5],
    ['2024-01-31', 59.5],
    ['2024-02-01', 58.5],
    ['2024-02-03', 60.5],
    ['2024-02-04', 60]
  ] as const) {
    const stock = await viewer.get(`/api/stock?itemCode=HI-1&asOf=${asOf}`)
    t.match(stock.body.data, [{ itemCode: 'HI-1', unit: 'kg', onHand }], asOf)
  }
  const now = await pagesOf(t, viewer, '/api/stock', 50)
  t.same([...now].sort(), [...(await pagesOf(t, viewer, '/api/inventory', 100))].sort())
  t.equal((await viewer.get('/api/stock?asOf=2024-02-31')).status, 400)
  t.equal((await viewer.get('/api/stock?asOf=2024-12-31T23:59:60Z')).status, 400)

  const list = async (query: string) => (await viewer.get(`/api/movements?itemCode=HI-1&${query}`)).body.data.length
  t.equal(await list('type=issue'), 2)
  t.equal(await list('reference=HI%20waste'), 1)
  t.equal(await list('from=2024-01-15T00:00:00Z&to=2024-02-03T08:00:00Z'), 2, 'from is within, to is not')
  t.same((await pagesOf(t, viewer, '/api/movements?itemCode=HI-1', 3, 'id')).length, 7)
  for (const occurredAt of [
    '2999-01-01T00:00:00Z',
    '2016-12-31T23:59:60Z',
    '2024-02-30T00:00:00Z',
    '2024-01-01',
    'today'
  ]) {
    const answer = await staff.post('/api/movements', {
      type: 'receipt',
      occurredAt,
      lines: [{ itemCode: 'HI-1', quantity: 1 }]
    })
    t.equal(answer.status, occurredAt.startsWith('2999') ? 422 : 400, occurredAt)
  }
}

async function exports(t: Test, { manager, viewer }: Context) {
  const names = ['=HYPERLINK("http://x")', '+1', '-2', '@sum', "'=quoted", 'comma, "quote"', 'two\u2028lines', 'plain']
  for (const [i, name] of names.entries()) {
    const item = {
      itemCode: `EX-${i}`,
      name,
      nameFr: 'é',
      unit: 'kg',
      barcodes: [`EX.${i}.A`, `EX.${i}.B`],
      parLevel: 0.000001,
      unitCost: 1.5,
      shelfLifeDays: 9
    }
    await made(t, manager.post('/api/inventory', item))
  }
  await made(
    t,
    manager.post('/api/inventory', { itemCode: '-EX', name: 'Dash', unit: 'each', tracking: 'lot', category: '=cat' })
  )
  const before = await snapshot(manager)
  const { text, headers } = await manager.get('/api/export/items')
  t.match(headers, { 'content-type': /^text\/csv/, 'content-disposition': /items\.csv/ })
  t.same(
    text.split(/[\r\n,]+/).filter((cell) => /^"?[=+@-]/.test(cell)),
    [],
    'no cell is a formula'
  )
  for (const [format, type] of [
    ['csv', 'text/csv'],
    ['ndjson', 'application/x-ndjson']
  ] as const) {
    const file = (await manager.get(`/api/export/items?format=${format}`)).text
    for (const itemCode of ['EX-0', 'EX-3', '-EX']) await manager.delete(`/api/inventory/${itemCode}`)
    const job = await manager.post('/api/import/items', file, { 'content-type': type, prefer: 'wait=30' })
    t.match(job.body, { status: 'succeeded', result: { created: 3 } }, job.text.slice(0, 500))
    t.same(await snapshot(manager), before, `${format}: what goes out comes back`)
  }
  const moves = (await manager.get('/api/export/movements?format=ndjson')).text.trim().split('\n')
  const all = await pagesOf(t, viewer, '/api/movements', 500, 'id')
  t.equal(new Set(moves.map((line) => JSON.parse(line).movementId)).size, all.length, 'every transaction is exported')
  const stock = (await viewer.get('/api/export/stock')).text
  t.match(stock, /^itemCode,name,unit,onHand\r\n/)
  t.match(stock, /HI-1,Rice,kg,60\r\n/)
  t.equal((await viewer.get('/api/export/nothing')).status, 400)
  t.equal((await viewer.get('/api/export/items?format=xml')).status, 400)
}

/** The items of the export test as a client sees them, without their times. */
async function snapshot(manager: Client): Promise<object[]> {
  const items = []
  for (const itemCode of ['EX-0', 'EX-1', 'EX-2', 'EX-3', 'EX-4', 'EX-5', 'EX-6', 'EX-7', '-EX']) {
    const { createdAt: _made, updatedAt: _changed, ...item } = (await manager.get(`/api/inventory/${itemCode}`)).body
    items.push(item)
  }
  return items
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
  const { body } = await app.inject('/metrics')
  const count = (window: string) => Number(body.match(`inventory_expiring_lots{window="${window}"} (\\d+)`)?.[1])
  t.same(
    ['expired', '7d', '30d', '90d'].map(count),
    [1, 1, 2, 3],
    'each window holds the shorter ones, not what is gone'
  )
}

t.test('codes of items and addresses of the API do not meet', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite' })
  const paths = Object.keys(JSON.parse(JSON.stringify(app.swagger())).paths)
  const shadowing = new Set(
    paths.flatMap((path) => {
      const [before, after] = path.split('{itemCode}')
      if (after === undefined) return []
      return paths
        .filter((other) => other.startsWith(before ?? '') && other !== path && !other.startsWith(`${before}{`))
        .flatMap((other) => other.slice(before?.length).split('/')[0] ?? [])
    })
  )
  // What only takes a POST stands in nobody's way: items are read.
  const reads = [...shadowing].filter((name) => !['train', 'derive', 'detect-anomalies', 'import'].includes(name))
  t.ok(reads.length >= 4, reads.join())
  const manager = client(app, 'manager')
  for (const itemCode of [...reads, '.', '..']) {
    t.ok(RESERVED_ITEM_CODES.has(itemCode), itemCode)
    const refused = await manager.post('/api/inventory', { itemCode, name: 'x', unit: 'each' })
    t.match(refused, { status: 422, body: { code: 'INV_ITEM_CODE_RESERVED', itemCode } })
    const file = await manager.post('/api/import/items?dryRun=true', `itemCode,name,unit\n${itemCode},x,each\n`, {
      'content-type': 'text/csv'
    })
    t.match(file.body.errors ?? file.body, [{ row: 2, column: 'itemCode', code: 'INV_ITEM_CODE_RESERVED' }], itemCode)
  }
  t.equal((await manager.post('/api/inventory', { itemCode: 'Units', name: 'x', unit: 'each' })).status, 201)
  t.equal((await manager.get('/api/inventory/Units')).body.itemCode, 'Units')
})

t.test('exact numbers', async (t) => {
  const edge = [
    0,
    1,
    10,
    999_999,
    1_000_000,
    1_500_000,
    2 ** 31 * 1e6 - 1,
    2 ** 31 * 1e6,
    1e15,
    Number.MAX_SAFE_INTEGER
  ]
  const micros = fc.oneof(
    fc.constantFrom(...edge),
    fc.maxSafeNat(),
    fc.nat(),
    fc.nat(5_000).map((n) => n * 10_000)
  )
  const signed = fc.tuple(micros, fc.boolean()).map(([size, negative]) => (negative && size > 0 ? -size : size))
  const written = fc.property(signed, (value) => {
    const text = writeJson((out) =>
      out.micros(value).text(',').number(fromMicros(value)).text(',').micros(null)
    ).toString()
    const expected = JSON.stringify(fromMicros(value))
    return text === `${expected},${expected},null`
  })
  t.doesNotThrow(() => fc.assert(written, { numRuns: 3_000 }), 'a number is written as JSON.stringify would')
  const exact = fc.property(signed, signed, micros, (a, b, c) => {
    fc.pre(c > 0)
    const [product, by] = [BigInt(a) * BigInt(b), BigInt(c)]
    const size = ((product < 0n ? -product : product) * 2n + by) / (by * 2n)
    fc.pre(size < BigInt(Number.MAX_SAFE_INTEGER))
    const result = proportionMicros(a, b, c)
    return BigInt(result) === (product < 0n ? -size : size)
  })
  const cells = fc.array(fc.option(signed), { minLength: 1 })
  const readBack = fc.property(cells, fc.constantFrom('', ' '), fc.string(), (values, space, before) => {
    const [head, array] = [Buffer.from(before), `[${values.map((value) => JSON.stringify(value)).join(`,${space}`)}]`]
    const reader = new IntegerReader(Buffer.concat([head, Buffer.from(`${array}…]`)]), head.length + 1)
    const read = values.map(() => reader.next())
    return JSON.stringify(read) === JSON.stringify(values) && reader.at === head.length + array.length
  })
  t.doesNotThrow(
    () => fc.assert(readBack, { numRuns: 1_000 }),
    'integers are read as JSON.parse would, as either engine writes them'
  )
  t.doesNotThrow(() => fc.assert(exact, { numRuns: 3_000 }), 'a·b/c is rounded half away from zero, whatever a·b is')
  const long = 'x'.repeat(200_000)
  t.equal(writeJson((out) => out.text(long).copy(Buffer.from(long)).text('.')).toString(), `${long}${long}.`)
})
