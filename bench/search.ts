import Fastify, { type FastifyInstance } from 'fastify'
import { sql } from 'kysely'
import inventory from '../modules/inventory/index.js'
import { createItemStore } from '../modules/inventory/item-store.js'
import core, { type Tenant, type Tenants } from '../plugins/core.js'
import type { ItemQuery } from '../schemas/inventory.js'
import { catalogueItem } from './catalogue.js'
import { type Cleanup, numbers, postgres, progress, quantile, say, table, withCleanup } from './support.js'

const BATCH = 5_000
const GOAL_MS = 50

/** Lists and searches over `--items` items through the store, each `--repeats` times with other words. */
export async function run(args: string[]): Promise<void> {
  const { items, repeats } = numbers(args, { items: 1_000_000, repeats: 15 })
  await withCleanup(async (cleanup) => {
    const results = new Map<string, Map<string, number[]>>()
    const databases = [{ name: 'SQLite', url: `sqlite:${cleanup.folder()}/inventory.sqlite` }]
    const server = await postgres(cleanup, { shared_buffers: '512MB', max_wal_size: '4GB' })
    if (server !== undefined) databases.push({ name: 'PostgreSQL', url: server.url })
    for (const { name, url } of databases) {
      const tenant = await open(cleanup, url)
      await fill(tenant, items, name)
      results.set(name, await measure(tenant, items, repeats))
    }
    report(results, items, repeats)
  })
}

async function open(cleanup: Cleanup, databaseUrl: string): Promise<Tenant> {
  const app: FastifyInstance = Fastify()
  await app.register(core, { databaseUrl, cache: false })
  await app.register(inventory, { authorize: async () => {}, dataDir: cleanup.folder() })
  await app.ready()
  cleanup.add(() => app.close())
  return app.getDecorator<Tenants>('tenants').get('main')
}

async function fill(tenant: Tenant, count: number, name: string): Promise<void> {
  const shown = progress(`${name}: ${count.toLocaleString('en')} items`, count)
  const categories = new Map<string, number>()
  const now = Date.now()
  for (let at = 0; at < count; at += BATCH) {
    const items = Array.from({ length: Math.min(BATCH, count - at) }, (_, n) => catalogueItem(at + n))
    await tenant.transact(async ({ db }) => {
      for (const { category = '' } of items) {
        if (category === null || categories.has(category)) continue
        const { rows } = await sql<{ id: number }>`
          insert into ${sql.table('categories')} (name) values (${category}) returning id`.execute(db)
        categories.set(category, rows[0]?.id ?? 0)
      }
      await createItemStore(db).insert(
        items.map((item) => ({
          code: item.itemCode,
          name: item.name,
          nameFr: item.nameFr ?? null,
          categoryId: categories.get(item.category ?? '') ?? null,
          unit: item.unit,
          tracking: 'none',
          shelfLifeDays: null,
          reorderPoint: (item.reorderPoint ?? 0) * 1e6,
          parLevel: (item.parLevel ?? 0) * 1e6,
          unitCost: Math.round(item.unitCost * 1e6),
          barcodes: [...(item.barcodes ?? [])],
          createdAt: now,
          updatedAt: now,
          archivedAt: null
        }))
      )
      // Figures as postings would have left them: this bench reads, the ledger's own is another.
      await sql`update ${sql.table('item_totals')} set on_hand = (item_id * 7919 % 300) * 1000000,
        value = (item_id * 7919 % 300) * (item_id * 31 % 4000) * 10000,
        status = case when item_id * 7919 % 300 = 0 then 'out' when item_id * 7919 % 300 < 40 then 'low' else 'in' end
        where on_hand = 0 and item_id > ${at}`.execute(db)
    })
    shown(Math.min(count, at + BATCH))
  }
  // As autovacuum would soon have done.
  if (tenant.dialect === 'postgres') await sql`vacuum analyze`.execute(tenant.db)
}

/** Each asks for something else at each repetition. */
const QUERIES: Record<string, (n: number, items: number) => ItemQuery> = {
  'code, whole': (n, items) => ({ q: catalogueItem(spread(n, items)).itemCode }),
  barcode: (n, items) => ({ q: catalogueItem(spread(n, items)).barcodes?.[0] ?? '' }),
  'name prefix (1 in 12 items)': (n) => ({
    q: ['olive oil', 'basmati', 'whole milk', 'hex bolt', 'copper c'][n % 5] ?? ''
  }),
  'name infix (1 in 8)': (n) => ({ q: ['organic', 'premium', 'large pack', 'imported'][n % 4] ?? '' }),
  'name infix, rare': (n, items) => ({ q: `Fjord ${spread(n, items)}` }),
  'French name, accents': (n) => ({
    q: ['pâté inconnu', 'tomates concassées', 'cafe en grains', 'eau minérale'][n % 4] ?? ''
  }),
  'no match': (n) => ({ q: `zqx${n}wv` }),
  'no match, common trigrams': (n) => ({ q: `organic premium ${n}` }),
  'two letters': (n) => ({ q: ['ol', 'ba', 'ch', 'pa', 'he'][n % 5] ?? '' }),
  'one letter': (n) => ({ q: ['o', 'b', 'c', 'p', 'h'][n % 5] ?? '' }),
  'search + category': (n) => ({ q: ['organic', 'premium'][n % 2] ?? '', category: 'Dairy' }),
  'search + category without a match': (n) => ({ q: ['olive oil', 'whole milk'][n % 2] ?? '', category: 'Hardware' }),
  'search + status out': (n) => ({ q: ['organic', 'imported'][n % 2] ?? '', status: 'out' }),
  'search sorted by name': (n) => ({ q: ['organic', 'imported'][n % 2] ?? '', sort: 'name' }),
  'search sorted by code': (n) => ({ q: ['organic', 'olive oil'][n % 2] ?? '', sort: 'itemCode' }),
  'search + category sorted by name': (n) => ({
    q: ['organic', 'premium'][n % 2] ?? '',
    category: 'Dairy',
    sort: 'name'
  }),
  'search sorted by -value': (n) => ({ q: ['organic', 'imported'][n % 2] ?? '', sort: '-value' }),
  'list by code': () => ({}),
  'list by name': () => ({ sort: 'name' }),
  'list by -onHand': () => ({ sort: '-onHand' }),
  'list by -value': () => ({ sort: '-value' }),
  'category by code': () => ({ category: 'Dairy' }),
  'category by -value': () => ({ category: 'Dairy', sort: '-value' }),
  'status low by name': () => ({ status: 'low', sort: 'name' }),
  'status out by code': () => ({ status: 'out' })
}
const spread = (n: number, items: number) => (n * 611_953 + 17) % items

/** The first page of each query, and the page after it where there is one. */
async function measure(tenant: Tenant, items: number, repeats: number): Promise<Map<string, number[]>> {
  const store = createItemStore(tenant.db)
  const times = new Map<string, number[]>()
  for (const [name, queryOf] of Object.entries(QUERIES)) {
    const spent: number[] = []
    for (let n = 0; n <= repeats; n++) {
      const query = queryOf(n, items)
      const first = await timed(() => store.list(query))
      const last = first.result.rows.length > 50 ? first.result.rows[49] : undefined
      const second =
        last === undefined
          ? undefined
          : await timed(() => store.list({ ...query, cursor: first.result.cursorOf(last) }))
      // The first time warms the pages and the plan.
      if (n > 0) spent.push(Math.max(first.milliseconds, second?.milliseconds ?? 0))
    }
    times.set(name, spent)
    if (quantile(spent, 0.95) > GOAL_MS) say(`${tenant.dialect}, ${name}: ${quantile(spent, 0.95).toFixed(0)} ms`)
  }
  return times
}

async function timed<R>(work: () => Promise<R>): Promise<{ result: R; milliseconds: number }> {
  const startedAt = performance.now()
  const result = await work()
  return { result, milliseconds: performance.now() - startedAt }
}

function report(results: Map<string, Map<string, number[]>>, items: number, repeats: number): void {
  const databases = [...results.keys()]
  const all = [...results.values()].flatMap((times) => [...times.values()].map((spent) => quantile(spent, 0.95)))
  const late = all.filter((p95) => p95 > GOAL_MS).length
  process.stdout.write(
    [
      `\nPages of 50 of ${items.toLocaleString('en')} items through the store, ms; the slower of the first and second page, ${repeats} times`,
      table(
        ['', ...databases.flatMap((name) => [`${name} p50`, 'p95', 'max'])],
        Object.keys(QUERIES).map((query) => [
          query,
          ...databases.flatMap((name) => {
            const spent = results.get(name)?.get(query) ?? []
            return [quantile(spent, 0.5), quantile(spent, 0.95), quantile(spent, 1)]
          })
        ])
      ),
      `  ${late === 0 ? 'met   ' : 'MISSED'}  p95 ≤ ${GOAL_MS} ms each: ${all.length - late} of ${all.length}\n`
    ].join('\n')
  )
}
