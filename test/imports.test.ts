import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import Sqlite from 'better-sqlite3'
import type { FastifyInstance } from 'fastify'
import { type Kysely, sql } from 'kysely'
import pg from 'pg'
import t, { type Test } from 'tap'
import type { Tenants } from '../plugins/core.js'
import { type Answer, buildApp, type Client, client, type Dialect, eachDialect } from './helper.js'
import { serviceEnvironment, startService } from './service-process.js'
import { freshDatabase } from './services.js'

interface Context {
  app: FastifyInstance
  manager: Client
  staff: Client
  db: Kysely<unknown>
  dataDir: string
}

const CSV = { 'content-type': 'text/csv' }
const NDJSON = { 'content-type': 'application/x-ndjson' }
const WAIT = { prefer: 'wait=30' }
const lines = (...rows: (string | object)[]) =>
  rows.map((row) => (typeof row === 'string' ? row : JSON.stringify(row))).join('\n')

/** Imports and waits; answers the job. */
async function imported(
  t: Test,
  as: Client,
  kind: string,
  file: string | Buffer | Readable,
  headers = CSV,
  query = ''
) {
  const { status, body, text } = await as.post(`/api/import/${kind}${query}`, file, { ...headers, ...WAIT })
  t.match(
    { status, jobStatus: body.status },
    { status: 200, jobStatus: 'succeeded' },
    status === 200 ? 'imported' : text.slice(0, 500)
  )
  return body
}

const TABLES = [
  'items',
  'item_totals',
  'item_units',
  'item_barcodes',
  'item_search',
  'categories',
  'units',
  'locations',
  'lots',
  'stock_accounts',
  'stock_balances',
  'stock_transactions',
  'stock_moves',
  'reservations',
  'imports',
  'import_changes',
  'jobs',
  'idempotency_keys'
]
async function countRows(db: Kysely<unknown>): Promise<Record<string, number>> {
  const counts: Record<string, number> = {}
  for (const table of TABLES) {
    const { rows } = await sql<{ n: number }>`select count(*) as n from ${sql.table(table)}`.execute(db)
    counts[table] = Number(rows[0]?.n)
  }
  return counts
}

async function itemImports(t: Test, { manager, staff }: Context) {
  const csv = lines(
    '\ufeffitemCode,name,unit,nameFr,category,barcode,reorderPoint,parLevel,unitCost,tracking,shelfLifeDays',
    'II-1,"Tea, green",kg,Thé vert,Drinks,II.0001|II.0002,1.5,10,3.25,lot,365',
    '',
    'II-2,"Multi',
    'line",each,,Drinks,,,,,,',
    'II-3,Bare,,,,,,,,,'
  )
  const job = await imported(t, manager, 'items', csv)
  t.match(job.result, { kind: 'items', dryRun: false, rows: 3, accepted: 3, created: 3, updated: 0, errors: [] })
  t.match((await manager.get('/api/inventory/II-1')).body, {
    name: 'Tea, green',
    nameFr: 'Thé vert',
    category: 'Drinks',
    barcodes: ['II.0001', 'II.0002'],
    reorderPoint: 1.5,
    parLevel: 10,
    unitCost: 3.25,
    tracking: 'lot',
    shelfLifeDays: 365
  })
  t.match((await manager.get('/api/inventory/II-3')).body, { unit: 'each', category: null, unitCost: null })
  const run = (await manager.get(`/api/imports/${job.result.importId}`)).body
  t.match(run, { kind: 'items', status: 'succeeded', rows: 3, done: 3 })

  const upsert = lines(
    { itemCode: 'II-1', name: 'Tea', reorderPoint: 2 },
    { itemCode: 'II-4', name: 'New', category: null, unitCost: '0.5' }
  )
  const second = await imported(t, manager, 'items', gzipSync(upsert), NDJSON)
  t.match(second.result, { created: 1, updated: 1 })
  t.match(
    (await manager.get('/api/inventory/II-1')).body,
    { name: 'Tea', reorderPoint: 2, parLevel: 10, category: 'Drinks' },
    'what the file leaves out stays'
  )

  const undone = await manager.post(`/api/imports/${second.result.importId}/undo`, undefined, WAIT)
  t.match(undone.body, { status: 'succeeded' })
  t.match((await manager.get('/api/inventory/II-1')).body, {
    name: 'Tea, green',
    reorderPoint: 1.5,
    barcodes: ['II.0001', 'II.0002']
  })
  t.equal((await manager.get('/api/inventory/II-4')).status, 404)
  t.match((await manager.get(`/api/imports/${second.result.importId}`)).body, { status: 'undone' })
  t.match(await manager.post(`/api/imports/${second.result.importId}/undo`), {
    status: 409,
    body: { code: 'INV_IMPORT_NOT_UNDOABLE' }
  })

  // What the ledger has come to know is archived instead of removed.
  await manager.post('/api/movements', { type: 'receipt', lines: [{ itemCode: 'II-3', quantity: 1 }] })
  await manager.post('/api/movements', { type: 'issue', lines: [{ itemCode: 'II-3', quantity: 1 }] })
  t.match((await manager.post(`/api/imports/${job.result.importId}/undo`, undefined, WAIT)).body, {
    status: 'succeeded'
  })
  for (const code of ['II-1', 'II-2', 'II-3']) t.equal((await manager.get(`/api/inventory/${code}`)).status, 404, code)
  t.equal((await manager.get('/api/inventory/II-3/movements')).body.data.length, 2)
  t.equal((await staff.post('/api/import/items', csv, CSV)).status, 403)
  t.match((await manager.get('/api/imports?limit=1')).body, {
    data: [{ id: second.result.importId }],
    page: { limit: 1 }
  })
  t.equal((await manager.get('/api/imports/01890000-0000-7000-8000-000000000000')).status, 404)
}

async function movementImports(t: Test, { manager, db }: Context) {
  const items = Array.from({ length: 30 }, (_, i) => `MI-${i},Item ${i},each`)
  await imported(t, manager, 'items', lines('itemCode,name,unit', ...items))
  const before = await manager.get('/api/inventory?q=MI-&limit=500')
  const header = 'Invoice,Stock,Sold,When,Price,Ignored'
  const sales = Array.from({ length: 2_500 }, (_, i) => {
    const invoice = Math.floor(i / 7)
    const day = String(1 + (invoice % 28)).padStart(2, '0')
    return `INV${invoice},MI-${(i * 7) % 30},${invoice % 11 === 5 ? -1 : 2},2024-03-${day} 10:30,1.5,whatever`
  })
  const map = '&map=itemCode:Stock,quantity:Sold,occurredAt:When,reference:Invoice'
  const opening = lines(
    'itemCode,type,quantity,occurredAt,unitCost',
    ...items.map((_, i) => `MI-${i},opening,500,2024-01-01,${1 + (i % 3)}`)
  )
  const stock = await imported(t, manager, 'movements', opening)
  t.match(
    stock.result,
    { rows: 30, created: 1 },
    'consecutive rows of one type, time and reference are one transaction'
  )

  const file = lines(header, ...sales)
  const counts = await countRows(db)
  const dry = await manager.post(`/api/import/movements?dryRun=true&type=issue${map}`, gzipSync(file), {
    'content-type': 'application/gzip'
  })
  t.match(dry, {
    status: 200,
    body: { kind: 'movements', dryRun: true, rows: 2_500, accepted: 2_500, created: 358, errors: [] }
  })
  t.same(await countRows(db), counts, 'a dry run stores nothing')

  const job = await imported(
    t,
    manager,
    'movements',
    Readable.from([gzipSync(file)]),
    { 'content-type': 'application/gzip' },
    `?type=issue${map}`
  )
  t.match(job.result, { rows: 2_500, accepted: 2_500, created: 358 })
  const { body } = await manager.get('/api/movements?reference=INV5')
  t.match(
    body.data,
    [{ type: 'return', occurredAt: '2024-03-06T10:30:00.000Z', importId: job.result.importId }],
    'a negative sale is a return'
  )
  t.equal(body.data[0].lines.length, 7)
  t.match((await manager.get('/api/ledger/verify')).body, { ok: true })
  const onHand = 30 * 500 - 2 * 2_500 + 3 * sales.filter((row) => row.includes(',-1,')).length
  t.equal(
    (await manager.get('/api/inventory?q=MI-&limit=500')).body.data.reduce(
      (sum: number, row: { onHand: number }) => sum + row.onHand,
      0
    ),
    onHand
  )

  // The sales stand on the opening stock: that cannot be taken back before them, and can be afterwards.
  const early = await manager.post(`/api/imports/${stock.result.importId}/undo`, undefined, WAIT)
  t.match(early.body, { status: 'failed', error: { code: 'INV_INSUFFICIENT_STOCK' } })
  t.match((await manager.get(`/api/imports/${stock.result.importId}`)).body, { status: 'failed' })
  for (const { result } of [job, stock]) {
    t.match((await manager.post(`/api/imports/${result.importId}/undo`, undefined, WAIT)).body, { status: 'succeeded' })
    t.match((await manager.get('/api/ledger/verify')).body, { ok: true })
  }
  t.same(stripped(await manager.get('/api/inventory?q=MI-&limit=500')), stripped(before), 'as it was')
  t.match((await manager.get('/api/stock?itemCode=MI-0&asOf=2024-03-10')).body.data, [{ onHand: 0 }], 'on every day')
}
const stripped = ({ body }: Answer) =>
  body.data.map(({ itemCode, onHand, value, status }: Record<string, unknown>) => ({ itemCode, onHand, value, status }))

async function typedRows(t: Test, { manager }: Context) {
  await imported(t, manager, 'items', lines('itemCode,name,unit,tracking', 'TY-1,Typed,kg,none', 'TY-2,Lot,each,lot'))
  await manager.post('/api/locations', { location: 'TY-B', name: 'B' })
  const at = '2024-05-01T08:00:00+02:00'
  const file = lines(
    { itemCode: 'TY-1', type: 'receipt', quantity: 5000, unit: 'g', unitCost: 0.002, occurredAt: at, reason: 'first' },
    { itemCode: 'TY-1', type: 'transfer', quantity: '1.5', toLocation: 'TY-B', occurredAt: at },
    { itemCode: 'TY-1', type: 'adjustment', quantity: -0.5, occurredAt: at },
    { itemCode: 'TY-2', type: 'receipt', quantity: 3, lot: 'X', occurredAt: at },
    { itemCode: 'TY-2', type: 'waste', quantity: 1, lot: 'X', occurredAt: at },
    { itemCode: 'TY-1', quantity: 1, occurredAt: at }
  )
  const job = await imported(t, manager, 'movements', file, NDJSON, '?type=issue')
  t.match(job.result, { rows: 6, created: 6 })
  t.match((await manager.get('/api/inventory/TY-1')).body, {
    onHand: 3.5,
    value: 7,
    locations: [
      { location: 'TY-B', onHand: 1.5 },
      { location: 'main', onHand: 2 }
    ]
  })
  t.match((await manager.get('/api/inventory/TY-2')).body, { onHand: 2, locations: [{ lot: 'X' }] })
  t.match((await manager.get('/api/movements?itemCode=TY-1&type=receipt')).body.data, [
    { occurredAt: '2024-05-01T06:00:00.000Z', reason: 'first' }
  ])

  const accepted = { 'content-type': 'text/csv' }
  const started = await manager.post('/api/import/movements?type=receipt', 'itemCode,quantity\nTY-1,1', accepted)
  t.match(started, { status: 202, body: { kind: 'inventory.import' }, headers: { location: /^\/api\/jobs\// } })
  for (
    let tries = 0;
    (await manager.get(started.headers.location ?? '')).body.status !== 'succeeded' && tries < 200;
    tries++
  )
    await sleep(25)
  t.match((await manager.get(started.headers.location ?? '')).body, {
    status: 'succeeded',
    progress: { done: 1, total: 1 }
  })
}

/** Each is refused with a 4xx that names the place, and nothing of it is stored. */
async function badFiles(t: Test, { manager, db, dataDir }: Context) {
  await imported(t, manager, 'items', lines('itemCode,name,unit,barcode', 'BF-1,Known,each,BF.TAKEN', 'BF-2,Other,kg,'))
  const head = 'itemCode,quantity\n'
  const row = (rest: string, columns: string) => `itemCode,type,quantity,${columns}\nBF-1,receipt,1,${rest}\n`
  const good = `${head}${'BF-1,1\n'.repeat(300)}`
  const refused = (path: string, message: RegExp) => ({
    status: 422,
    code: 'INV_IMPORT_REFUSED',
    errors: [{ path, message }]
  })
  const unreadable = (detail: RegExp) => ({ status: 400, code: 'INV_IMPORT_UNREADABLE', detail })
  const movements: [string, string | Buffer, object, Record<string, string>?][] = [
    ['0 bytes', '', unreadable(/empty/)],
    ['only a header', 'itemCode,quantity\nBF-1', unreadable(/line 2/)],
    ['no header', 'BF-1,5\n', unreadable(/column "BF-1" is not known/)],
    ['an unknown column', 'itemCode,quantity,colour\nBF-1,1,red', unreadable(/"colour"/)],
    ['a missing column', 'itemCode,type\nBF-1,receipt', unreadable(/column quantity is missing/)],
    ['a column twice', 'itemCode,quantity,quantity\nBF-1,1,2', unreadable(/"quantity" twice/)],
    ['__proto__ as a column', 'itemCode,quantity,__proto__\nBF-1,1,2', unreadable(/"__proto__"/)],
    ['too many cells', `${head}BF-1,1\nBF-1,1,1\n`, unreadable(/line 3/)],
    ['an open quote', `${head}BF-1,"1\n`, unreadable(/quote/i)],
    ['latin-1', Buffer.from(`${good}caf\xe9,1\n`, 'latin1'), unreadable(/line 302 /)],
    ['UTF-16', Buffer.from(`\ufeff${head}BF-1,1`, 'utf16le'), unreadable(/line 1 .*UTF-8/)],
    ['half a character', Buffer.concat([Buffer.from(good), Buffer.from([0xc3])]), unreadable(/line 302 /)],
    ['a zero byte', `${head}BF-1,1\nBF\u0000-1,1`, unreadable(/line 3 /)],
    ['a truncated gzip', gzipSync(good).subarray(0, 40), unreadable(/cut off/)],
    ['a broken gzip', Buffer.concat([gzipSync(good).subarray(0, 20), Buffer.alloc(40, 7)]), unreadable(/gzip/)],
    ['gzip that is none', Buffer.from([0x1f, 0x8b, 1, 2, 3, 4]), unreadable(/gzip/)],
    ['a 2 MB cell', `${head}${'x'.repeat(2_000_000)},1`, unreadable(/record|line 2/i)],
    ['a long cell', `${head}${'x'.repeat(65)},1`, refused('row 2, column itemCode', /65 characters/)],
    ['a code that is not there', `${good}BF-NONE,1\n`, refused('row 302, column itemCode', /BF-NONE/)],
    ['no code', `${head},1\n`, refused('row 2, column itemCode', /missing/)],
    ['no quantity', `${head}BF-1,\n`, refused('row 2, column quantity', /missing/)],
    ['quantity 0', `${head}BF-1,0\n`, refused('row 2, column quantity', /0/)],
    ['a word', `${head}BF-1,many\n`, refused('row 2, column quantity', /"many"/)],
    ['1e309', `${head}BF-1,1e309\n`, refused('row 2, column quantity', /"1e309"/)],
    ['hexadecimal', `${head}BF-1,0x10\n`, refused('row 2, column quantity', /0x10/)],
    ['too large', `${head}BF-1,1000000001\n`, refused('row 2, column quantity', /1000000000/)],
    ['too many decimals', `${head}BF-1,1.1234567\n`, refused('row 2, column quantity', /six decimals/)],
    ['a negative receipt', `${head}BF-1,-1\n`, refused('row 2, column quantity', /above zero/)],
    ['an unknown type', 'itemCode,type,quantity\nBF-1,gift,1', refused('row 2, column type', /"gift"/)],
    ['31 February', row('2024-02-31', 'occurredAt'), refused('row 2, column occurredAt', /2024-02-31/)],
    ['the wrong order', row('31/12/2024', 'occurredAt'), refused('row 2, column occurredAt', /31\/12/)],
    ['the future', row('2999-01-01', 'occurredAt'), refused('row 2, column occurredAt', /future/)],
    ['a location that is not there', row('NOWHERE', 'location'), refused('row 2', /NOWHERE/)],
    ['a location that is not ours', row('supplier', 'location'), refused('row 2', /supplier/)],
    ['a unit that is not there', row('parsec', 'unit'), refused('row 2', /parsec/)],
    ['a lot of what has none', row('L1', 'lot'), refused('row 2', /lot/)],
    ['a negative cost', row('-1', 'unitCost'), refused('row 2, column unitCost', /-1/)],
    ['control characters', row('"a\u0007b"', 'reason'), refused('row 2, column reason', /control/)],
    [
      'not enough stock',
      'itemCode,type,quantity\nBF-1,receipt,5\nBF-1,issue,3\nBF-1,waste,3',
      refused('row 4', /2 are available/)
    ],
    ['not JSON', lines({ itemCode: 'BF-1', quantity: 1 }, '{"itemCode":'), unreadable(/line 2/), NDJSON],
    ['not an object', lines({ itemCode: 'BF-1', quantity: 1 }, '[1]'), unreadable(/line 2/), NDJSON],
    ['an unknown field', lines({ itemCode: 'BF-1', quantity: 1, colour: 1 }), unreadable(/line 1.*"colour"/), NDJSON],
    [
      '__proto__',
      '{"itemCode":"BF-1","quantity":1,"__proto__":{"type":"issue"}}',
      unreadable(/line 1.*"__proto__"/),
      NDJSON
    ],
    ['a nested value', lines({ itemCode: 'BF-1', quantity: { $gt: 0 } }), unreadable(/line 1.*quantity/), NDJSON],
    ['1e309 as JSON', '{"itemCode":"BF-1","quantity":1e309}', refused('row 1, column quantity', /Infinity/), NDJSON],
    ['a 2 MB string', lines({ itemCode: 'x'.repeat(2_000_000), quantity: 1 }), unreadable(/line/), NDJSON],
    ['an empty file', '\n', unreadable(/empty/), NDJSON]
  ]
  const before = await countRows(db)
  for (const [name, file, { status, ...body }, headers = CSV] of movements as [
    string,
    string | Buffer,
    { status: number },
    Record<string, string>?
  ][]) {
    for (const query of ['?type=receipt', '?type=receipt&dryRun=true']) {
      const answer = await manager.post(`/api/import/movements${query}`, file, headers)
      if (query.includes('dryRun') && status === 422) {
        const { errors } = answer.body
        t.match(answer, { status: 200, body: { dryRun: true } }, `${name}: dry run`)
        t.match(
          errors[0],
          { row: Number(/row (\d+)/.exec(JSON.stringify(body))?.[1]) },
          `${name}: dry run names the row`
        )
      } else t.match(answer, { status, body }, name)
    }
  }
  const items: [string, string, object][] = [
    ['a new item without a name', 'itemCode,unit\nBF-NEW,each', refused('row 2, column name', /name is missing/)],
    ['an unknown unit', 'itemCode,name,unit\nBF-NEW,New,parsec', refused('row 2, column unit', /parsec/)],
    ['another base unit', 'itemCode,unit\nBF-1,kg', refused('row 2, column unit', /each/)],
    ['a barcode of another', 'itemCode,barcode\nBF-2,BF.TAKEN', refused('row 2, column barcode', /BF-1/)],
    [
      'a barcode twice',
      'itemCode,name,barcode\nBF-X,X,BF.NEW\nBF-Y,Y,BF.NEW',
      refused('row 3, column barcode', /BF-X/)
    ],
    ['a bad barcode', 'itemCode,barcode\nBF-2,a b', refused('row 2, column barcode', /"a b"/)],
    ['a bad tracking', 'itemCode,tracking\nBF-2,some', refused('row 2, column tracking', /"some"/)],
    ['a broken shelf life', 'itemCode,shelfLifeDays\nBF-2,1.5', refused('row 2, column shelfLifeDays', /1.5/)],
    ['a movement’s column', 'itemCode,quantity\nBF-2,1', unreadable(/"quantity"/)]
  ]
  for (const [name, file, { status, ...body }] of items as [string, string, { status: number }][]) {
    t.match(await manager.post('/api/import/items', file, CSV), { status, body }, name)
  }
  for (const [query, headers, status] of [
    ['?map=colour:Red', CSV, 400],
    ['?map=itemCode:Nowhere', CSV, 400],
    ['?map=__proto__:itemCode', CSV, 400],
    ['?map=itemCode', CSV, 400],
    ['?type=gift', CSV, 400],
    ['?colour=red', CSV, 400],
    ['', { 'content-type': 'application/json' }, 415],
    ['', { 'content-type': 'image/png' }, 415]
  ] as const) {
    t.equal(
      (await manager.post(`/api/import/movements${query}`, good, headers)).status,
      status,
      `${query} ${headers['content-type']}`
    )
  }
  t.equal((await manager.post('/api/import/nothing', good, CSV)).status, 400)
  t.equal((await manager.post('/api/import/items', undefined, CSV)).status, 400)
  t.same(await countRows(db), before, 'nothing of all this is stored')
  // A job that has ended removes its file a moment later.
  const files = () => readdirSync(join(dataDir, 'imports'))
  for (let tries = 0; files().length > 0 && tries < 100; tries++) await sleep(20)
  t.same(files(), [], 'and no file is left')
  const many = `${head}${'BF-NONE,1\n'.repeat(250)}`
  const answer = await manager.post('/api/import/movements?type=receipt', many, { ...CSV, 'accept-language': 'fr' })
  t.match(answer.body, { status: 422, rejectedRows: 250, shown: 100, detail: /250 ligne/ })
  t.equal(answer.body.errors.length, 100)
}

/** A row is tried against what the rows before it left, those that were refused aside. */
async function rehearsal(t: Test, { manager }: Context) {
  await imported(t, manager, 'items', lines('itemCode,name', 'RH-1,One', 'RH-2,Two'))
  const file = lines(
    'itemCode,type,quantity,reference',
    'RH-1,receipt,5,a',
    'RH-1,issue,4,b',
    'RH-2,issue,1,b',
    'RH-1,issue,5,c',
    'RH-1,issue,1,d'
  )
  const { body } = await manager.post('/api/import/movements?dryRun=true', file, CSV)
  t.match(body, {
    rows: 5,
    accepted: 3,
    created: 2,
    errors: [
      { row: 4, code: 'INV_INSUFFICIENT_STOCK' },
      { row: 5, message: /1 are available/ }
    ]
  })
  const french = { ...CSV, 'accept-language': 'de, fr-CA;q=0.9, en;q=0.8' }
  const said = await manager.post(
    '/api/import/movements?dryRun=true',
    `${file}\nRH-9,receipt,1,e\n,receipt,x,e`,
    french
  )
  t.equal(said.headers['content-language'], 'fr')
  const messages = new Map(
    said.body.errors.map((error: { row: number; message: string }) => [error.row, error.message])
  )
  t.same([...messages.keys()].sort(), [4, 5, 7, 8])
  t.match(messages.get(4), /^1 de RH-2 demandés à main ; 0 disponibles/)
  t.match(messages.get(7), /RH-9 n’existe pas/)
  t.equal(messages.get(8), 'quantity vaut "x", qui n’est pas un nombre décimal')
  const refused = await manager.post('/api/import/movements', file, french)
  t.match(refused, { status: 422, body: { errors: [{ path: 'row 4', message: /demandés/ }, { path: 'row 5' }] } })
  t.match((await manager.post('/api/import/items', 'itemCode,colour\nA,red\n', french)).body, {
    code: 'INV_IMPORT_UNREADABLE',
    detail: /^Le fichier est illisible : la colonne "colour" est inconnue/
  })
}

async function sameUploadTwice(t: Test, { manager, db }: Context) {
  await imported(t, manager, 'items', lines('itemCode,name', 'UP-1,One'))
  const file = 'itemCode,quantity\nUP-1,5\n'
  const headers = { ...CSV, ...WAIT, 'idempotency-key': 'upload-1' }
  const first = await manager.post('/api/import/movements?type=receipt', file, headers)
  const again = await manager.post('/api/import/movements?type=receipt', file, headers)
  t.equal(again.body.id, first.body.id)
  t.equal((await manager.get('/api/inventory/UP-1')).body.onHand, 5)
  const other = await manager.post('/api/import/movements?type=receipt', `${file}UP-1,1\n`, headers)
  t.match(other, { status: 422, body: { code: 'IDEMPOTENCY_KEY_REUSED' } })
  const refused = { ...headers, 'idempotency-key': 'upload-2' }
  t.equal((await manager.post('/api/import/movements?type=issue', 'itemCode,quantity\nUP-1,9\n', refused)).status, 422)
  const { rows } = await sql<{
    n: number
  }>`select count(*) as n from ${sql.table('imports')} where status = 'running'`.execute(db)
  t.equal(Number(rows[0]?.n), 0)
}

/** A process that is not heard of for 45 s is taken for dead; the test does not wait so long. */
async function passTime(dataDir: string, databaseUrl: string | undefined): Promise<void> {
  if (databaseUrl === undefined) {
    const file = new Sqlite(join(dataDir, 'inventory.sqlite'))
    file.exec('update jobs set heartbeat_at = heartbeat_at - 60000')
    file.close()
    return
  }
  const database = new pg.Client({ connectionString: databaseUrl })
  await database.connect()
  await database.query('update tenant_main.jobs set heartbeat_at = heartbeat_at - 60000')
  await database.end()
}

/** The real server, killed in the middle of an import: the next one ends it, with each row posted once. */
async function killed(t: Test, dialect: Dialect) {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const env = await serviceEnvironment(t, database === undefined ? {} : { DATABASE_URL: database.url })
  let server = await startService(t, env)
  const call = async (path: string, init: RequestInit = {}): Promise<ReturnType<typeof JSON.parse>> => {
    const authorization = `Bearer ${server.token}`
    const answer = await fetch(`${server.url}${path}`, { ...init, headers: { authorization, ...init.headers } })
    return JSON.parse(await answer.text())
  }
  const upload = (kind: string, body: string, prefer: string) =>
    call(`/api/import/${kind}`, { method: 'POST', body, headers: { ...CSV, prefer } })
  await upload('items', lines('itemCode,name', ...Array.from({ length: 40 }, (_, i) => `KI-${i},Item ${i}`)), 'wait=30')
  const rows = Array.from(
    { length: 10_000 },
    (_, i) => `KI-${i % 40},receipt,1,2024-01-${String(1 + (i % 28)).padStart(2, '0')},R${i >> 3}`
  )
  const job = await upload('movements', lines('itemCode,type,quantity,occurredAt,reference', ...rows), 'wait=0')
  const running = async () => (await call('/api/imports?limit=1')).data[0]
  for (let tries = 0; (await running()).done === 0 && tries < 500; tries++) await sleep(5)
  await server.end('SIGKILL')
  await passTime(env.DATA_DIR, database?.url)
  server = await startService(t, env)
  const between = await running()
  t.ok(between.done > 0 && between.done < 10_000, `killed after ${between.done} rows`)
  let ended = await call(`/api/jobs/${job.id}`)
  for (let tries = 0; ended.finishedAt === null && tries < 1_000; tries++) {
    await sleep(100)
    ended = await call(`/api/jobs/${job.id}`)
  }
  t.match(ended, { status: 'succeeded', result: { rows: 10_000 } })
  t.match(await call('/api/ledger/verify'), { ok: true, moves: 10_000 })
  t.same(
    (await call('/api/inventory?limit=500')).data.map(({ onHand }: { onHand: number }) => onHand),
    Array(40).fill(250)
  )
  t.equal(await server.end('SIGTERM'), 0, 'it closes in order')
}

await eachDialect(t, async (t, dialect) => {
  const dataDir = mkdtempSync(join(tmpdir(), 'inventory-test-'))
  t.teardown(() => rmSync(dataDir, { recursive: true, force: true }))
  const app = await buildApp(t, { dialect, config: { DATA_DIR: dataDir } })
  const { db } = await app.getDecorator<Tenants>('tenants').get('main')
  const context = { app, manager: client(app, 'manager'), staff: client(app, 'staff'), db, dataDir }
  await t.test('items', (t) => itemImports(t, context))
  await t.test('movements', (t) => movementImports(t, context))
  await t.test('rows with their own type', (t) => typedRows(t, context))
  await t.test('bad files', (t) => badFiles(t, context))
  await t.test('rehearsal', (t) => rehearsal(t, context))
  await t.test('the same upload twice', (t) => sameUploadTwice(t, context))
  await t.test('killed', (t) => killed(t, dialect))
})
