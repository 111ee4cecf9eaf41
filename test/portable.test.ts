import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { type Kysely, sql } from 'kysely'
import t, { type Test } from 'tap'
import { isPostgres } from '../migrations/columns.js'
import type { MigrationSet, PortableReader, PortableRow } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { type DatabaseOptions, placeOf } from '../plugins/database.js'
import { createPlace, linesOf, openReader, openWriter, portabilityOf } from '../plugins/portable/index.js'
import { buildApp, client, DIALECTS, type Dialect } from './helper.js'
import { temporaryFolder } from './service-process.js'
import { freshDatabase } from './services.js'

type Where = Omit<DatabaseOptions, 'poolSize'>

async function somewhere(t: Test, dialect: Dialect): Promise<Where> {
  if (dialect === 'sqlite') return { databaseUrl: `sqlite:${join(temporaryFolder(t), 'a.sqlite')}`, tenancy: 'single' }
  const { url, drop } = await freshDatabase()
  t.teardown(drop)
  return { databaseUrl: url, tenancy: 'single' }
}

/** What our own tables do not have: kinds, sizes and references that a later one may. */
const strange: MigrationSet = {
  module: 'strange',
  migrations: {
    '0001-all-kinds': {
      async up(db: Kysely<unknown>) {
        const postgres = isPostgres(db)
        const [bytes, json, instant] = postgres
          ? [sql`bytea`, sql`jsonb`, sql`timestamp with time zone`]
          : [sql`blob`, sql`json`, sql`timestamp`]
        await sql`create table ${sql.table('a_kinds')} (
          name text ${sql.raw(postgres ? 'collate "C"' : '')} not null, part bigint not null, big bigint, ratio double precision,
          flag boolean, doc ${json}, blob ${bytes}, at ${instant},
          double_part bigint generated always as (part * 2) stored,
          parent_name text, parent_part bigint,
          primary key (name, part),
          foreign key (parent_name, parent_part) references ${sql.table('a_kinds')} (name, part))`.execute(db)
        await sql`create index a_kinds_big on ${sql.table('a_kinds')} (big)`.execute(db)
      }
    }
  }
}
const KINDS: PortableRow[] = [
  // Refers to a row that comes after it.
  [
    'a',
    1,
    '9223372036854775807',
    0.1,
    true,
    '{"a":1,"b":[1,{"c":null}]}',
    'AAH/',
    '2026-02-28T23:59:59.123456Z',
    'é',
    2
  ],
  ['b', -5, '-9223372036854775808', 1e308, false, '"x"', '', '1999-12-31T00:00:00.000000Z', null, null],
  ['z"\\\n\t', 9007199254740991, 9007199254740991, -0.5, null, null, null, null, null, null],
  ['é', 2, null, null, null, null, null, null, null, null],
  ['\u{10000}', 3, 0, 5e-324, true, '[]', 'AA==', '2026-01-01T00:00:00.000001Z', 'a', 1]
]

/** SHA-256 of each table's rows in the order of its key. */
async function digests(reader: PortableReader): Promise<Record<string, string>> {
  const all: Record<string, string> = {}
  for (const table of reader.schema.tables) {
    const hash = createHash('sha256')
    for await (const rows of reader.rows(table, { chunk: 7 })) hash.update(linesOf(rows))
    all[table.name] = hash.digest('hex')
  }
  return all
}

async function copy(from: Where, to: Where, sets: readonly MigrationSet[]): Promise<void> {
  const traits = portabilityOf(sets)
  const reader = await openReader(placeOf(from, 'main'), traits)
  const writer = await openWriter(await createPlace(to, 'main', sets, reader.schema.migrations), traits)
  await writer.startLoad()
  for (const table of reader.schema.tables) {
    const same = writer.schema.tables.find(({ name }) => name === table.name)
    if (same === undefined) throw new Error(`there is no ${table.name}`)
    for await (const rows of reader.rows(table)) await writer.insert(same, rows)
  }
  await writer.finishLoad()
  await Promise.all([reader.close(), writer.close()])
}

t.test('a tenant is the same on either engine, value for value', async (t) => {
  const source = await somewhere(t, 'sqlite')
  const app = await buildApp(t, { dialect: 'sqlite', config: { DATABASE_URL: source.databaseUrl } })
  const admin = client(app, 'admin')
  await admin.post('/api/inventory', { itemCode: 'A', name: 'Äpfel', unit: 'kg', barcodes: ['4006381333931'] })
  await admin.post('/api/movements', { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1.000001, unitCost: 2 }] })
  const sets = [...app.getDecorator<Tenants>('tenants').migrations(), strange]
  const traits = portabilityOf(sets)
  await createPlace(source, 'main', sets)
  const odd = await openWriter(placeOf(source, 'main'), traits)
  const kinds = odd.schema.tables.find(({ name }) => name === 'a_kinds')
  if (kinds === undefined) throw new Error('there is no a_kinds')
  await odd.insert(kinds, KINDS)
  await odd.close()

  const reader = await openReader(placeOf(source, 'main'), traits)
  const names = reader.schema.tables.map(({ name }) => name)
  t.ok(names.includes('item_search') && !names.some((name) => name.startsWith('item_search_')), 'no table of an index')
  t.ok(names.indexOf('items') < names.indexOf('stock_accounts'), 'what is referred to comes first')
  t.ok(names.indexOf('stock_transactions') < names.indexOf('stock_moves'))
  t.notOk(names.some((name) => name.startsWith('migrations_')))
  t.same(reader.schema.migrations.strange, ['0001-all-kinds'])
  t.same(kinds.columns.length, 10, 'a generated column is left out')
  const before = await digests(reader)

  // Later commits are not seen by a reader that is open.
  await admin.post('/api/inventory', { itemCode: 'B', name: 'Later', unit: 'kg' })
  t.same(await digests(reader), before, 'one state, whatever is written meanwhile')
  await reader.close()

  let previous = source
  let expected: Record<string, string> | undefined
  for (const dialect of ['postgres', 'postgres', 'sqlite', 'sqlite'] as const) {
    const next = await somewhere(t, dialect)
    await copy(previous, next, sets)
    const opened = await openReader(placeOf(next, 'main'), traits)
    const now = await digests(opened)
    expected ??= now
    t.same(now, expected, `the same on ${dialect} from ${previous.databaseUrl.split(':')[0]}`)
    const table = opened.schema.tables.find(({ name }) => name === 'a_kinds')
    if (table === undefined) throw new Error('there is no a_kinds')
    const rows: PortableRow[] = []
    for await (const chunk of opened.rows(table, { chunk: 2 })) rows.push(...chunk)
    t.same(rows, KINDS, 'every kind of value')
    t.same(
      await opened.find(table, [
        ['é', 2],
        ['gone', 1]
      ]),
      [KINDS[3]],
      'rows by their keys'
    )
    const range = opened.rows(table, { after: ['a', 1], through: ['é', 2] })
    const between: PortableRow[] = []
    for await (const chunk of range) between.push(...chunk)
    t.same(between, KINDS.slice(1, 4), 'a range of keys')
    await opened.close()
    previous = next
  }
})

t.test('a copy is a database that works: guards, counters and search are there', async (t) => {
  for (const dialect of DIALECTS) {
    await t.test(dialect, async (t) => {
      const source = await somewhere(t, 'sqlite')
      const made = await buildApp(t, { dialect: 'sqlite', config: { DATABASE_URL: source.databaseUrl } })
      await client(made, 'admin').post('/api/inventory', { itemCode: 'A', name: 'Äpfel', unit: 'kg' })
      const receipt = { type: 'receipt', lines: [{ itemCode: 'A', quantity: 3 }] }
      await client(made, 'admin').post('/api/movements', receipt)
      const target = await somewhere(t, dialect)
      await copy(source, target, made.getDecorator<Tenants>('tenants').migrations())

      const app = await buildApp(t, { dialect, config: { DATABASE_URL: target.databaseUrl } })
      const admin = client(app, 'admin')
      const { body: found } = await admin.get('/api/inventory?q=apfel')
      t.same(
        found.data.map(({ onHand }: { onHand: number }) => onHand),
        [3],
        'found by its text'
      )
      t.equal((await admin.post('/api/movements', receipt)).status, 201, 'numbers go on where they were')
      t.equal((await admin.post('/api/inventory', { itemCode: 'B', name: 'Birnen', unit: 'kg' })).status, 201)
      t.ok((await admin.get('/api/ledger/verify')).body.ok)
      const { db, transact } = await app.getDecorator<Tenants>('tenants').get('main')
      t.ok(db)
      await t.rejects(
        transact(({ db }) => sql`update ${sql.table('stock_moves')} set quantity = 1`.execute(db)),
        /append-only/
      )
    })
  }
})

t.test('what is damaged or not ours to copy is refused', async (t) => {
  const source = await somewhere(t, 'sqlite')
  const sets = [strange]
  const place = await createPlace(source, 'main', sets)
  const writer = await openWriter(place, [])
  const [kinds] = writer.schema.tables
  if (kinds === undefined) throw new Error('there is no a_kinds')
  await writer.startLoad()
  await writer.insert(kinds, [['child', 1, null, null, null, null, null, null, 'nobody', 1]])
  await t.rejects(writer.finishLoad(), /a_kinds refers to a row of a_kinds that is not there/)
  await writer.close()
  await t.rejects(createPlace(await somewhere(t, 'sqlite'), 'main', sets, { strange: ['0009-later'] }), /0009-later/)
})
