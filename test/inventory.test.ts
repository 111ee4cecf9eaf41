import fc from 'fast-check'
import t, { type Test } from 'tap'
import { IntegerReader, writeJson } from '../modules/inventory/json-bytes.js'
import { fromMicros, proportionMicros } from '../schemas/decimal.js'
import { RESERVED_ITEM_CODES } from '../schemas/inventory.js'
import { buildApp, type Client, client, eachDialect } from './helper.js'
import { type Context, codesOf, made, openStock, pagesOf, post } from './inventory-harness.js'

await eachDialect(t, async (t, dialect) => {
  const context = await openStock(t, dialect)
  await t.test('items', (t) => items(t, context))
  await t.test('barcodes and categories', (t) => barcodesAndCategories(t, context))
  await t.test('units', (t) => units(t, context))
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
  await deletedMeanwhile(t, manager)
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

/** What refers to an item meets its deletion: it comes before or after it, and never in between. */
async function deletedMeanwhile(t: Test, manager: Client) {
  for (let round = 0; round < 20; round++) {
    const itemCode = `GONE-${round}`
    const url = `/api/inventory/${itemCode}`
    await made(t, manager.post('/api/inventory', { itemCode, name: 'Gone', unit: 'each', tracking: 'lot' }))
    const writes = [
      () => manager.put(`${url}/units/case`, { numerator: 12 }),
      () => manager.put('/api/inventory/lots', { itemCode, lot: 'A' }),
      () => manager.patch(url, { barcodes: [itemCode] }),
      () => manager.delete(url)
    ]
    const answers = await Promise.all([...writes, ...writes].map((write) => write()))
    const statuses = answers.map(({ status }) => status)
    t.ok(
      statuses.every((status) => status === 200 || status === 404),
      `${statuses}`
    )
    t.equal(answers.filter(({ status }, i) => i % writes.length === 3 && status === 200).length, 1, 'deleted once')
    t.equal((await manager.get(url)).status, 404)
  }
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
  t.match(await manager.put('/api/inventory/UN-EA/units/each', { numerator: 12 }), {
    status: 422,
    body: { code: 'INV_UNIT_IS_BASE', itemCode: 'UN-EA', unit: 'each' }
  })
  t.equal((await manager.put('/api/inventory/NONE/units/case', { numerator: 2 })).status, 404)
  t.equal((await manager.put('/api/inventory/UN-EA/units/case', { numerator: 0 })).status, 400)
  const tiny = await post(manager, 'receipt', { itemCode: 'UN-KG', quantity: 0.000001, unit: 'mg' })
  t.match(tiny, { status: 422, body: { code: 'INV_MOVEMENT_RULE', line: 1 } })
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
