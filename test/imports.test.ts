import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import type { Jobs } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { type Answer, eachDialect } from './helper.js'
import { type Context, CSV, countRows, imported, lines, NDJSON, openImports, WAIT } from './imports-harness.js'
import { patience } from './patience.js'

const until = patience({ seconds: 30 })

async function itemImports(t: Test, { manager, staff }: Context) {
  const csv = lines(
    '\ufeffitemCode,name,unit,nameFr,category,barcode,reorderPoint,parLevel,unitCost,tracking,shelfLifeDays',
    'II-1,"Tea, green",kg,Thé vert,Drinks,II.0001|II.0002,1.5,10,3.25,lot,365',
    '',
    'II-2,"Multi ""line""",each,,Drinks,,,,,,',
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

  const both = '?map=itemCode:sku,name:sku,nameFr:libelle'
  await imported(t, manager, 'items', lines('sku,name,libelle', 'II-7,Not ours,Sept'), CSV, both)
  await imported(t, manager, 'items', lines({ sku: 'II-8', name: 'Not ours', libelle: 'Huit' }), NDJSON, both)
  for (const [code, nameFr] of [
    ['II-7', 'Sept'],
    ['II-8', 'Huit']
  ])
    t.match(
      (await manager.get(`/api/inventory/${code}`)).body,
      { itemCode: code, name: code, nameFr },
      'from one column'
    )
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

/** What cannot be taken back is said, and can be asked for again. */
async function undoRefused(t: Test, { manager }: Context) {
  const undo = (id: string) => manager.post(`/api/imports/${id}/undo`, undefined, WAIT)
  const statusOf = async (id: string) => (await manager.get(`/api/imports/${id}`)).body.status
  await imported(t, manager, 'items', lines('itemCode,name,barcode', 'UR-1,One,URA1', 'UR-2,Two,'))
  const { importId } = (await imported(t, manager, 'items', lines('itemCode,barcode', 'UR-1,URB1'))).result
  await manager.patch('/api/inventory/UR-2', { barcodes: ['URA1'] })
  t.match((await undo(importId)).body, { status: 'failed', error: { code: 'INV_BARCODE_TAKEN', message: /UR-2/ } })
  t.equal(await statusOf(importId), 'failed')
  await manager.patch('/api/inventory/UR-2', { barcodes: [] })
  t.match((await undo(importId)).body, { status: 'succeeded' })
  t.match((await manager.get('/api/inventory/UR-1')).body, { barcodes: ['URA1'] })

  const made = (await imported(t, manager, 'items', lines('itemCode,name', 'UR-3,Three'))).result.importId
  const move = (type: string) => manager.post('/api/movements', { type, lines: [{ itemCode: 'UR-3', quantity: 5 }] })
  await move('receipt')
  t.match((await undo(made)).body, { status: 'failed', error: { code: 'INV_ITEM_HAS_STOCK', message: /5/ } })
  t.match((await manager.get('/api/inventory/UR-3')).body, { onHand: 5 }, 'its stock stays where it can be seen')
  await move('issue')
  t.match((await undo(made)).body, { status: 'succeeded' })
  t.equal(await statusOf(made), 'undone')
}

async function cancelled(t: Test, { manager }: Context) {
  const rows = Array.from({ length: 5_000 }, (_, n) => `CA-${n},Item ${n}`)
  const file = lines('itemCode,name', ...rows)
  const count = async () => (await manager.get('/api/inventory?q=CA-&limit=500')).body.data.length
  const stopped = async (id: string) => {
    await until('it runs', async () => (await manager.get(`/api/jobs/${id}`)).body.status === 'running')
    await manager.delete(`/api/jobs/${id}`)
    return until('it ends', async () => {
      const { body } = await manager.get(`/api/jobs/${id}`)
      return body.finishedAt !== null && body.status
    })
  }
  const statusOf = async (id: string) => (await manager.get(`/api/imports/${id}`)).body.status
  const started = await manager.post('/api/import/items', file, CSV)
  t.equal(await stopped(started.body.id), 'cancelled')
  t.match((await manager.get('/api/imports?limit=1')).body.data, [{ status: 'undone' }], 'nothing of the file stays')
  t.equal(await count(), 0)

  const { importId } = (await imported(t, manager, 'items', file)).result
  const undo = await manager.post(`/api/imports/${importId}/undo`)
  t.equal(await stopped(undo.body.id), 'cancelled')
  t.equal(await statusOf(importId), 'failed')
  t.ok((await count()) > 0)
  t.match((await manager.post(`/api/imports/${importId}/undo`, undefined, WAIT)).body, { status: 'succeeded' })
  t.equal(await count(), 0, 'the next goes on where that stopped')
}

/** As long as others hold every place that jobs have. */
async function cancelledInTheQueue(t: Test, { app, manager }: Context) {
  const jobs = app.getDecorator<Jobs>('jobs')
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  let release = () => {}
  jobs.define({
    kind: 'test.hold',
    run: () =>
      new Promise<void>((resolve) => {
        const before = release
        release = () => {
          before()
          resolve()
        }
      })
  })
  /** What becomes of a job that is cancelled before it runs. */
  const cancelledAtOnce = async (start: () => Promise<Answer>) => {
    const held = await Promise.all(Array.from({ length: 4 }, () => jobs.start(tenant, 'test.hold', null)))
    await until('no place is free', async () => {
      const { body } = await manager.get('/api/jobs?kind=test.hold&status=running')
      return body.data.length === held.length
    })
    const { body: job } = await start()
    t.match((await manager.get(`/api/jobs/${job.id}`)).body, { status: 'queued' })
    t.match(await manager.delete(`/api/jobs/${job.id}`), { status: 202, body: { status: 'queued' } })
    release()
    return until('it ends', async () => {
      const { body } = await manager.get(`/api/jobs/${job.id}`)
      return body.finishedAt !== null && body.status
    })
  }
  const file = lines('itemCode,name', 'CQ-1,x', 'CQ-2,x')
  t.equal(await cancelledAtOnce(() => manager.post('/api/import/items', file, CSV)), 'cancelled')
  t.match((await manager.get('/api/imports?limit=1')).body.data, [{ status: 'undone', done: 0 }])
  t.equal((await manager.get('/api/inventory/CQ-1')).status, 404)

  const { importId } = (await imported(t, manager, 'items', file)).result
  t.equal(await cancelledAtOnce(() => manager.post(`/api/imports/${importId}/undo`)), 'cancelled')
  t.match((await manager.get(`/api/imports/${importId}`)).body, { status: 'failed' }, 'which may be asked for again')
  t.match((await manager.post(`/api/imports/${importId}/undo`, undefined, WAIT)).body, { status: 'succeeded' })
  t.equal((await manager.get('/api/inventory/CQ-1')).status, 404)
}

/** What is checked across the chunks that a file is stored in. */
async function wholeFile(t: Test, { manager }: Context) {
  const rows = Array.from({ length: 1_000 }, (_, n) => `WF-${n},x,`)
  const file = lines('itemCode,name,barcode', 'WF-A,x,WFBC', ...rows, 'WF-B,x,WFBC')
  const { body } = await manager.post('/api/import/items?dryRun=true', file, CSV)
  t.match(body, { accepted: 1_001, errors: [{ row: 1_003, column: 'barcode', code: 'INV_BARCODE_TAKEN' }] })
  t.equal((await manager.post('/api/import/items', file, CSV)).status, 422)
  t.equal((await manager.get('/api/inventory/WF-A')).status, 404)

  await imported(t, manager, 'items', lines('itemCode,name,tracking', 'WF-T,x,lot'))
  const fixed = lines('itemCode,name,unit,tracking', 'WF-T,,,none', 'WF-N,x,each,none', 'WF-N,,kg,', 'WF-N,,,lot')
  const refused = await manager.post('/api/import/items?dryRun=true', fixed, CSV)
  t.match(refused.body.errors, [
    { row: 2, code: 'TRACKING_FIXED' },
    { row: 4, code: 'UNIT_FIXED' },
    { row: 5, code: 'TRACKING_FIXED' }
  ])

  for (const cells of ['"WF\nX",x,', 'WF-X,"two\tcolumns",', 'WF-X,x,"two\rlines"']) {
    const answer = await manager.post('/api/import/items?dryRun=true', lines('itemCode,name,category', cells), CSV)
    t.match(answer.body.errors, [{ row: 2, code: 'TEXT' }], JSON.stringify(cells))
  }
  const smiles = '\u{1f600}'.repeat(64)
  await imported(t, manager, 'items', `\ufeff${lines({ itemCode: smiles, name: 'As long as the API takes' })}`, NDJSON)
  t.match((await manager.get(`/api/inventory/${encodeURIComponent(smiles)}`)).body, { itemCode: smiles })
}

await eachDialect(t, async (t, dialect) => {
  const context = await openImports(t, dialect)
  await t.test('items', (t) => itemImports(t, context))
  await t.test('movements', (t) => movementImports(t, context))
  await t.test('rows with their own type', (t) => typedRows(t, context))
  await t.test('rehearsal', (t) => rehearsal(t, context))
  await t.test('the same upload twice', (t) => sameUploadTwice(t, context))
  await t.test('an undo that is refused', (t) => undoRefused(t, context))
  await t.test('cancelled', (t) => cancelled(t, context))
  await t.test('cancelled in the queue', (t) => cancelledInTheQueue(t, context))
  await t.test('the whole file', (t) => wholeFile(t, context))
})
