import t, { type Test } from 'tap'
import { isPostgres } from '../migrations/columns.js'
import { listItems } from '../modules/inventory/item-list.js'
import type { ListPlan, Order } from '../modules/inventory/list-plan.js'
import type { Tenants } from '../plugins/core.js'
import type { ItemQuery } from '../schemas/inventory.js'
import { type Client, eachDialect } from './helper.js'
import { type Context, codesOf, made, openStock, pagesOf, post } from './inventory-harness.js'

await eachDialect(t, async (t, dialect) => {
  const context = await openStock(t, dialect)
  await t.test('lists', (t) => lists(t, context))
  await t.test('cursors that somebody changed', (t) => cursors(t, context))
  await t.test('search', (t) => search(t, context))
  await t.test('every way to look for items finds the same', (t) => waysToSearch(t, context))
  await t.test('history', (t) => history(t, context))
  await t.test('exports', (t) => exports(t, context))
})

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

/** Whoever changes a cursor is told so: no text or number of it breaks the query on either database. */
async function cursors(t: Test, { manager, staff }: Context) {
  const cursorOf = (key: readonly (string | number)[]) => Buffer.from(JSON.stringify(key)).toString('base64url')
  await made(t, manager.post('/api/inventory', { itemCode: 'CU-1', name: 'Cursor', unit: 'each' }))
  for (const [list, key] of [
    ['stock', ['stock', 'a\0b']],
    ['stock', ['stock', '\ud800']],
    ['inventory/categories', ['categories', '\udfff']],
    ['inventory/lots', ['lots', 2 ** 53]],
    ['inventory/lots', ['lots', 0.5]],
    ['movements', ['movements', 1e300]],
    ['jobs', ['jobs [null,null]', 1e300, 'a']],
    ['jobs', ['jobs [null,null]', 1, '\0']]
  ] as const) {
    t.match(
      await staff.get(`/api/${list}?cursor=${cursorOf(key)}`),
      { status: 400, body: { code: 'CURSOR_INVALID' } },
      list
    )
  }
  const longest = Number.MAX_SAFE_INTEGER
  for (const [list, key] of [
    ['inventory/lots', ['lots', longest]],
    ['jobs', ['jobs [null,null]', longest, 'a']],
    ['inventory/CU-1/movements', ['item-movements:CU-1', longest, longest, longest]]
  ] as const) {
    t.equal((await staff.get(`/api/${list}?cursor=${cursorOf(key)}`)).status, 200, list)
  }
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
  const marks = ` !"#$%&'()*+,-./:;<=>?@[\\]^_\`{|}~`
  const separated = [...marks.trim()].map((mark, n) => `${n}${mark}${n}`)
  await made(t, manager.post('/api/inventory', { itemCode: 'SE-MARKS', unit: 'each', name: separated.join(' ') }))
  for (const [n, words] of separated.entries()) {
    t.same(await find(words), ['SE-MARKS'], words)
    t.same(await find(`${n}q${n}`), [], 'no letter stands for a mark')
    if (n > 0) t.same(await find(`${n - 1} ${n}${marks[n + 1]}`), ['SE-MARKS'], 'from one word to the next')
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
    'cremeqbrulee',
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
  const now = await pagesOf(t, viewer, '/api/stock', 40)
  t.same([...now].sort(), [...(await pagesOf(t, viewer, '/api/inventory', 80))].sort())
  t.equal((await viewer.get('/api/stock?asOf=2024-02-31')).status, 400)
  t.equal((await viewer.get('/api/stock?asOf=2024-12-31T23:59:60Z')).status, 400)

  const list = async (query: string) => (await viewer.get(`/api/movements?itemCode=HI-1&${query}`)).body.data.length
  t.equal(await list('type=issue'), 2)
  t.equal(await list('reference=HI%20waste'), 1)
  t.equal(await list('from=2024-01-15T00:00:00Z&to=2024-02-03T08:00:00Z'), 2, 'from is within, to is not')
  t.same((await pagesOf(t, viewer, '/api/movements?itemCode=HI-1', 3, 'id')).length, 7)
  for (const occurredAt of [
    '2999-01-01T00:00:00Z',
    '0000-01-01T00:00:00Z',
    '1970-01-01T00:00:00+01:00',
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
    t.equal(answer.status, /^(2999|0000|1970)/.test(occurredAt) ? 422 : 400, occurredAt)
    if (/^(0000|1970)/.test(occurredAt)) t.match(answer.body, { code: 'INV_OCCURRED_TOO_EARLY', occurredAt })
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
