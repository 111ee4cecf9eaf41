import { type Kysely, sql } from 'kysely'
import t, { type Test } from 'tap'
import type { MigrationSet } from '../../plugins/migrate/index.js'
import { buildApp, client, eachDialect } from '../helper.js'
import { after, allSets, newPlace, type Opened, populate, ROWS, rowsOf, type Schema, schemaOf } from './databases.js'
import { versionOne, versionTwo } from './versions.js'

/** From every earlier schema to this one, with rows in it; and the way there while others write, several start, or one is killed. */

const sets = await allSets()
const levels = Math.max(...sets.map(({ migrations }) => Object.keys(migrations).length))

/** Migrations from before the first release that took something away. Since then one that does is called `NNNN-contract-…`. */
const BEFORE_RELEASE = new Set(['identity/0002-sessions', 'forecasting/0004-coherent'])

/** What the version before cannot live with. */
function lost(before: Schema, now: Schema): string[] {
  return Object.entries(before).flatMap(([name, { columns, unique }]) => {
    const table = now[name]
    if (table === undefined) return [`${name} is gone`]
    const gone = Object.keys(columns).filter((column) => table.columns[column] === undefined)
    const changed = Object.entries(columns).filter(
      ([column, { type }]) =>
        table.columns[column] !== undefined &&
        table.columns[column].type.replace('bigint', 'integer') !== type.replace('bigint', 'integer')
    )
    const demanded = Object.entries(table.columns).filter(
      ([column, { required, defaulted }]) => required && !defaulted && columns[column]?.required !== true
    )
    const stricter = table.unique.filter((each) => !unique.includes(each))
    return [
      ...gone.map((column) => `${name}.${column} is gone`),
      ...changed.map(([column]) => `${name}.${column} has another type`),
      ...demanded.map(([column]) => `${name}.${column} is required`),
      ...stricter.map((each) => `${name} (${each}) is unique`)
    ]
  })
}

const contents = async (opened: Opened) => {
  const tables = Object.keys(await schemaOf(opened)).filter(
    (name) => name !== 'item_search' || opened.schema !== undefined
  )
  const found = new Map<string, Record<string, unknown>[]>()
  for (const table of tables) found.set(table, sorted(await rowsOf(opened, table)))
  return found
}
const sorted = (rows: Record<string, unknown>[]) =>
  rows.sort((a, b) => (JSON.stringify(Object.values(a)) < JSON.stringify(Object.values(b)) ? -1 : 1))
/** Rows without the columns that came later. */
const common = (rows: Record<string, unknown>[], like: Record<string, unknown>[]) =>
  sorted(rows.map((row) => Object.fromEntries(Object.keys(like[0] ?? {}).map((name) => [name, row[name]]))))

/** Tokens that were ended by the table of before are ended by the one that took its place. */
async function endsFollow(t: Test, opened: Opened, revoked: Record<string, unknown>[]): Promise<void> {
  const ends = await rowsOf(opened, 'token_ends')
  t.equal(revoked.length, ROWS)
  for (const { jti, expires_at } of revoked)
    t.ok(
      ends.some((end) => end.kind === 'token' && end.key === jti && end.expires_at === expires_at),
      String(jti)
    )
}

/** Five units at 2.00 that were received when there was neither a search nor a reservation. */
async function earlierLedger({ db, schema }: Opened): Promise<void> {
  const at = (table: string) => (schema === undefined ? sql.id(table) : sql.id(schema, table))
  const now = Date.now() - 86_400_000
  await sql`insert into ${at('items')} (code, name, unit, tracking, created_at, updated_at)
    values ('OLD', 'Old', 'each', 'none', ${now}, ${now})`.execute(db)
  await sql`insert into ${at('lots')} (item_id, code, status) values (1, '', 'ok')`.execute(db)
  await sql`insert into ${at('stock_accounts')} (item_id, location_id, lot_id)
    select 1, id, 1 from ${at('locations')} where code in ('main', 'supplier') order by code`.execute(db)
  await sql`insert into ${at('stock_transactions')} (id, type, occurred_at, recorded_at, actor, request_id)
    values ('01890000-0000-7000-8000-000000000001', 'receipt', ${now}, ${now}, 'someone', 'r1')`.execute(db)
  const account = (code: string) => sql`(select a.id from ${at('stock_accounts')} a
    join ${at('locations')} l on l.id = a.location_id where l.code = ${code})`
  await sql`insert into ${at('stock_moves')} (transaction_seq, line, item_id, from_account, to_account, quantity,
      entered_quantity, entered_unit, request_line, unit_cost, value, occurred_at)
    values (1, 1, 1, ${account('supplier')}, ${account('main')}, 5000000, 5000000, 'each', 1, 2000000, 10000000, ${now})`.execute(
    db
  )
  await sql`insert into ${at('stock_balances')} (account_id, item_id, on_hand, reserved)
    values (${account('main')}, 1, 5000000, 0)`.execute(db)
  await sql`insert into ${at('item_totals')} (item_id, on_hand, reserved, value, status)
    values (1, 5000000, 0, 10000000, 'in')`.execute(db)
}

/** The module as a later version has it: one migration more. */
const nextVersion = ({ module, migrations }: MigrationSet, tables: readonly string[]): MigrationSet => ({
  module,
  migrations:
    tables.length === 0
      ? migrations
      : {
          ...migrations,
          '9000-more-columns': {
            async up(db: Kysely<unknown>) {
              for (const table of tables)
                await db.schema.alterTable(table).addColumn('of_the_next_version', 'text').execute()
            }
          }
        }
})

type As = ReturnType<typeof client>
/** Something of each module that writes. */
async function useOfAll(t: Test, { manager, admin }: { manager: As; admin: As }): Promise<void> {
  const made = async (url: string, body: object, status = 201) => {
    const answer = await manager.post(url, body, { 'idempotency-key': url })
    t.equal(answer.status, status, `${url}: ${answer.text}`)
    return answer.body
  }
  await made('/api/inventory', { itemCode: 'N', name: 'Next', unit: 'each', barcodes: ['12345678'], category: 'C' })
  await made('/api/movements', { type: 'receipt', lines: [{ itemCode: 'N', quantity: 9, unitCost: 2 }] })
  const { id } = await made('/api/reservations', { itemCode: 'N', quantity: 2 })
  await made(`/api/reservations/${id}/post`, {}, 200)
  const csv = { 'content-type': 'text/csv', prefer: 'wait=20' }
  const imported = await manager.post('/api/import/items', 'itemCode,name,unit\nM,More,each\n', csv)
  t.match(imported, { status: 200, body: { status: 'succeeded' } })
  t.match((await manager.get('/api/inventory?q=next')).body.data, [{ itemCode: 'N', onHand: 7 }])
  for (const path of ['/api/ai/consumption/derive', '/api/ai/forecast/train']) {
    const job = await manager.post(path, {}, { prefer: 'wait=30' })
    t.match(job, { status: 200, body: { status: 'succeeded' } }, path)
  }
  t.equal(
    (await admin.post('/api/webhooks', { url: 'https://example.org/hook', topics: ['inventory.stock.moved'] })).status,
    201
  )
  for (const path of [
    '/api/jobs',
    '/api/audit',
    '/api/movements',
    '/api/dashboard/stats',
    '/api/anomalies',
    '/api/webhooks'
  ])
    t.equal((await admin.get(path)).status, 200, path)
  t.match((await admin.get('/api/ledger/verify')).body, { ok: true, mismatches: [] })
  t.match((await admin.get('/api/audit/verify')).body, { ok: true, mismatches: [] })
}

await eachDialect(t, async (t, dialect) => {
  await t.test('each migration leaves the version before able to run', async (t) => {
    const opened = await (await newPlace(t, dialect)).open()
    let schema = await schemaOf(opened)
    t.same(schema, {}, 'nothing is there')
    for (const { module, migrations } of sets) {
      for (const name of Object.keys(migrations).sort()) {
        const migration = migrations[name]
        const upTo = Object.fromEntries(Object.entries(migrations).filter(([each]) => each <= name))
        t.same(await opened.migrate([{ module, migrations: upTo }]), [`${module}/${name}`])
        const next = await schemaOf(opened)
        const title = `${module}/${name}`
        const took = lost(schema, next)
        if (BEFORE_RELEASE.has(title)) t.not(took.length, 0, `${title} took something away`)
        else if (!/^\d+-contract-/.test(name)) t.same(took, [], `${title} only adds`)
        t.ok(migration !== undefined)
        schema = next
      }
    }
    t.ok(Object.keys(schema).length > 40, `${Object.keys(schema).length} tables`)
  })

  for (let level = 1; level < levels; level++) {
    await t.test(`from the schema after ${level} migrations of each module, with rows`, async (t) => {
      const opened = await (await newPlace(t, dialect)).open()
      await opened.migrate(after(sets, level))
      await populate(opened)
      const before = await contents(opened)
      const applied = await opened.migrate(sets)
      t.ok(applied.length > 0, applied.join(' '))
      const now = await contents(opened)
      for (const [table, rows] of before) {
        if (table === 'revoked_tokens') await endsFollow(t, opened, rows)
        else if (table === 'ai_aggregates' && level < 4) t.same(now.get(table), [], 'sums are made again')
        else t.same(common(now.get(table) ?? [], rows), rows, table)
      }
      t.same(await opened.migrate(sets), [], 'and then there is nothing to do')
    })
  }

  await t.test('a ledger of an earlier schema goes on', async (t) => {
    const place = await newPlace(t, dialect)
    const opened = await place.open()
    await opened.migrate(after(sets, 2))
    await earlierLedger(opened)
    const app = await buildApp(t, { dialect, config: { DATABASE_URL: place.url } })
    const manager = client(app, 'manager')
    t.match(await manager.get('/api/inventory/OLD'), { status: 200, body: { onHand: 5, value: 10, unitCost: 2 } })
    const lines = [{ itemCode: 'OLD', quantity: 2 }]
    t.equal((await manager.post('/api/movements', { type: 'issue', lines })).status, 201)
    t.match((await manager.get('/api/inventory/OLD')).body, { onHand: 3, value: 6 })
    t.match((await manager.get('/api/ledger/verify')).body, { ok: true, transactions: 2, moves: 2, mismatches: [] })
    t.match((await client(app, 'admin').get('/api/audit/verify')).body, { ok: true, mismatches: [] })
    if (dialect === 'sqlite') return
    // As a node of the version before writes it, which knows neither of names nor of categories in it.
    await manager.post('/api/inventory/categories', { name: 'Dry goods' })
    t.equal((await manager.patch('/api/inventory/OLD', { category: 'Dry goods' })).status, 200)
    const texts = sql.id(opened.schema ?? '', 'item_search')
    await sql`delete from ${texts}`.execute(opened.db)
    await sql`insert into ${texts} (item_id, text) select id, 'as it was' from ${sql.id(opened.schema ?? '', 'items')}
      where code = 'OLD'`.execute(opened.db)
    for (const order of ['', '&sort=name', '&category=Dry%20goods', '&category=Dry%20goods&sort=name']) {
      const { body } = await manager.get(`/api/inventory?q=it%20was${order}`)
      t.match(body.data, [{ itemCode: 'OLD' }], `found${order}`)
    }
  })

  await t.test('this version runs on the schema of the next', async (t) => {
    const place = await newPlace(t, dialect)
    const opened = await place.open()
    await opened.migrate(sets.map((set) => nextVersion(set, [])))
    // Each table has columns that this version does not know of, and its ledgers migrations.
    const tables = Object.keys(await schemaOf(opened)).filter((name) => name !== 'item_search')
    const core = sets.find(({ module }) => module === 'core')
    if (core === undefined) throw new Error('the core has migrations')
    t.equal((await opened.migrate([nextVersion(core, tables)])).length, 1)
    const notices: string[] = []
    t.same(await opened.migrate(sets, { notice: (text) => notices.push(text) }), [])
    t.match(notices, ['the database is newer than this program, which may run on it: core/9000-more-columns'])
    const app = await buildApp(t, { dialect, config: { DATABASE_URL: place.url } })
    await useOfAll(t, { manager: client(app, 'manager'), admin: client(app, 'admin') })
  })

  await t.test('what was applied and cannot be: refused', async (t) => {
    const opened = await (await newPlace(t, dialect)).open()
    const up = async () => {}
    const set = (...names: string[]): MigrationSet => ({
      module: 'odd',
      migrations: Object.fromEntries(names.map((name) => [name, { up }]))
    })
    t.same(await opened.migrate([set('0001-a', '0002-c')]), ['odd/0001-a', 'odd/0002-c'])
    t.same(await opened.migrate([set('0001-a')]), [], 'a newer one may be there')
    await t.rejects(opened.migrate([set('0001-a', '0002-b', '0002-c')]), /0002-c failed: it was applied before one/)
    await t.rejects(
      opened.migrate([set('0001-a', '0003-d')]),
      /0002-c failed: it was applied, and this program does not/
    )
    await t.rejects(opened.migrate([set('0001-a')], { only: { odd: ['0001-a'] } }), /newer than this program/)
    t.same(await opened.migrate([set('0001-a', '0002-c', '0003-contract-x')]), ['odd/0003-contract-x'])
    await t.rejects(opened.migrate([set('0001-a', '0002-c')]), /0003-contract-x failed: a newer version/)
    const broken = set('0001-a', '0002-c', '0003-contract-x', '0004-fails')
    const fails: MigrationSet = {
      module: 'odd',
      migrations: {
        ...broken.migrations,
        '0004-fails': {
          up: async (db: Kysely<unknown>) => {
            await db.schema.createTable('half').addColumn('a', 'integer').execute()
            throw new Error('no more')
          }
        }
      }
    }
    await t.rejects(opened.migrate([fails]), /migration odd\/0004-fails failed: no more/)
    t.same(Object.keys(await schemaOf(opened)), [], 'nothing of it stays')
  })

  await t.test('several processes that start at once', async (t) => {
    const place = await newPlace(t, dialect)
    const nodes = await Promise.all(Array.from({ length: 4 }, () => place.open()))
    for (const [all, name] of [
      [sets, 'a new database'],
      [[...sets, versionOne], 'one more module'],
      [[...sets, versionTwo], 'an online migration']
    ] as const) {
      const applied = await Promise.all(nodes.map((node) => node.migrate(all)))
      const [first] = applied.filter((each) => each.length > 0)
      t.same(new Set(applied.flat()).size, applied.flat().length, `${name}: each once`)
      t.ok(first !== undefined, `${name}: by one of them`)
    }
    t.same(await nodes[0]?.migrate([...sets, versionTwo]), [])
  })
})
