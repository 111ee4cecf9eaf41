import { type Kysely, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { fromMicros } from '../../schemas/decimal.js'
import type { Item, ItemQuery, Tracking } from '../../schemas/inventory.js'
import { among, insertRows } from './bulk.js'
import { listItems } from './item-list.js'
import { type ItemWithStock, itemRows } from './item-rows.js'
import { statusOf } from './posting.js'
import { INDEXED_TEXT, searchText } from './search-text.js'
import { DEFAULT_LOT, type InventoryTables } from './tables.js'

/** An item as it is stored, without what the database makes itself. */
export interface ItemRecord {
  code: string
  name: string
  nameFr: string | null
  categoryId: number | null
  unit: string
  tracking: Tracking
  shelfLifeDays: number | null
  reorderPoint: number | null
  parLevel: number | null
  unitCost: number | null
  barcodes: string[]
  createdAt: number
  updatedAt: number
  archivedAt: number | null
}

const COLUMNS = {
  code: 'text',
  name: 'text',
  name_fr: 'text',
  category_id: 'integer',
  unit: 'text',
  tracking: 'text',
  shelf_life_days: 'integer',
  reorder_point: 'integer',
  par_level: 'integer',
  unit_cost: 'integer',
  created_at: 'integer',
  updated_at: 'integer',
  archived_at: 'integer'
} as const

const cells = (item: ItemRecord) => [
  item.code,
  item.name,
  item.nameFr,
  item.categoryId,
  item.unit,
  item.tracking,
  item.shelfLifeDays,
  item.reorderPoint,
  item.parLevel,
  item.unitCost,
  item.createdAt,
  item.updatedAt,
  item.archivedAt
]

/** Items with their totals. */
export function createItemStore(root: Kysely<unknown>) {
  const db = root.withTables<InventoryTables>()
  const postgres = isPostgres(root)

  return {
    list: (query: ItemQuery) => listItems(root, query),

    async find(codes: readonly string[]): Promise<ItemWithStock[]> {
      return codes.length === 0 ? [] : itemRows(root).where('i.code', 'in', codes).execute()
    },

    /** Keeps others from changing these items, or their stock, until the transaction ends. On SQLite writers take turns anyway. */
    async lock(codes: readonly string[]): Promise<void> {
      if (!postgres || codes.length === 0) return
      await db
        .selectFrom('item_totals as t')
        .innerJoin('items as i', 'i.id', 't.item_id')
        .where(among(root, 'i.code', codes))
        .select('t.item_id')
        .orderBy('t.item_id')
        .forUpdate('t')
        .execute()
    },

    /** With archived items, since their codes stay taken. */
    async records(codes: readonly string[]): Promise<Map<string, ItemRecord & { id: number }>> {
      if (codes.length === 0) return new Map()
      const found = await db
        .selectFrom('items')
        .selectAll()
        .where(among(root, 'code', codes))
        .execute()
      if (found.length === 0) return new Map()
      const barcodes = await db
        .selectFrom('item_barcodes')
        .selectAll()
        .where(
          among(
            root,
            'item_id',
            found.map(({ id }) => id)
          )
        )
        .execute()
      const ofItem = new Map<number, string[]>()
      for (const { item_id, barcode } of barcodes) ofItem.set(item_id, [...(ofItem.get(item_id) ?? []), barcode])
      return new Map(
        found.map((row) => [
          row.code,
          {
            id: row.id,
            code: row.code,
            name: row.name,
            nameFr: row.name_fr,
            categoryId: row.category_id,
            unit: row.unit,
            tracking: row.tracking,
            shelfLifeDays: row.shelf_life_days,
            reorderPoint: row.reorder_point,
            parLevel: row.par_level,
            unitCost: row.unit_cost,
            barcodes: (ofItem.get(row.id) ?? []).sort(),
            createdAt: row.created_at,
            updatedAt: row.updated_at,
            archivedAt: row.archived_at
          }
        ])
      )
    },

    /** Which of these barcodes belong to other items than the named one. */
    ownersOf: (barcodes: readonly string[]) =>
      barcodes.length === 0
        ? Promise.resolve([])
        : db
            .selectFrom('item_barcodes as b')
            .innerJoin('items as i', 'i.id', 'b.item_id')
            .where(among(root, 'b.barcode', barcodes))
            .select(['b.barcode', 'i.code as itemCode'])
            .execute(),

    async insert(items: readonly ItemRecord[]): Promise<void> {
      const inserted = await insertRows<{ id: number; code: string }>(root, {
        table: 'items',
        columns: COLUMNS,
        rows: items.map(cells),
        returning: ['id', 'code']
      })
      const ids = new Map(inserted.map(({ id, code }) => [code, id]))
      const withId = items.map((item) => ({ ...item, id: ids.get(item.code) ?? 0 }))
      await insertRows(root, {
        table: 'item_totals',
        columns: { item_id: 'integer', on_hand: 'integer', reserved: 'integer', value: 'integer', status: 'text' },
        rows: withId.map(({ id }) => [id, 0, 0, 0, 'out'])
      })
      await insertRows(root, {
        table: 'lots',
        columns: { item_id: 'integer', code: 'text', status: 'text' },
        rows: withId.map(({ id }) => [id, DEFAULT_LOT, 'ok'])
      })
      await this.saveBarcodes(withId)
      await saveSearch(root, withId)
    },

    async update(items: readonly (ItemRecord & { id: number })[]): Promise<void> {
      const ids = items.map(({ id }) => id)
      if (ids.length === 0) return
      let locked = db
        .selectFrom('item_totals')
        .selectAll()
        .where(among(root, 'item_id', ids))
        .orderBy('item_id')
      if (postgres) locked = locked.forUpdate()
      const totals = new Map((await locked.execute()).map((row) => [row.item_id, row]))
      await insertRows(root, {
        table: 'items',
        columns: { id: 'integer', ...COLUMNS },
        rows: items.map((item) => [item.id, ...cells(item)]),
        upsertOn: 'id'
      })
      await insertRows(root, {
        table: 'item_totals',
        columns: { item_id: 'integer', on_hand: 'integer', reserved: 'integer', value: 'integer', status: 'text' },
        rows: items.map((item) => {
          const { on_hand: onHand = 0, reserved = 0, value = 0 } = totals.get(item.id) ?? {}
          return [item.id, onHand, reserved, value, statusOf({ ...item, onHand, reserved })]
        }),
        upsertOn: 'item_id'
      })
      await db
        .deleteFrom('item_barcodes')
        .where(among(root, 'item_id', ids))
        .execute()
      await this.saveBarcodes(items)
      await saveSearch(root, items)
    },

    async saveBarcodes(items: readonly (ItemRecord & { id: number })[]): Promise<void> {
      await insertRows(root, {
        table: 'item_barcodes',
        columns: { barcode: 'text', item_id: 'integer' },
        rows: items.flatMap(({ id, barcodes }) => barcodes.map((barcode) => [barcode, id]))
      })
    },

    /** Whether anything in the ledger refers to it. */
    async hasHistory(id: number): Promise<boolean> {
      return (
        (await db.selectFrom('stock_accounts').select('id').where('item_id', '=', id).limit(1).executeTakeFirst()) !==
        undefined
      )
    },

    async remove(ids: readonly number[]): Promise<void> {
      if (ids.length === 0) return
      const key = postgres ? 'item_id' : 'rowid'
      await db
        .deleteFrom('item_search')
        .where(among(root, key, ids))
        .execute()
      for (const table of ['item_barcodes', 'item_units', 'lots', 'item_totals'] as const) {
        await db
          .deleteFrom(table)
          .where(among(root, 'item_id', ids))
          .execute()
      }
      await db
        .deleteFrom('items')
        .where(among(root, 'id', ids))
        .execute()
    },

    async setUnit(itemId: number, unit: string, numerator: number, denominator: number): Promise<void> {
      const now = Date.now()
      await db
        .updateTable('item_units')
        .set({ superseded_at: now })
        .where('item_id', '=', itemId)
        .where('unit', '=', unit)
        .where('superseded_at', 'is', null)
        .execute()
      await db
        .insertInto('item_units')
        .values({ item_id: itemId, unit, numerator, denominator, valid_from: now, superseded_at: null })
        .execute()
    },

    async details(
      row: ItemWithStock
    ): Promise<Pick<Item, 'barcodes' | 'units' | 'locations' | 'shelfLifeDays' | 'createdAt' | 'updatedAt'>> {
      const item = await db
        .selectFrom('items')
        .select(['shelf_life_days', 'created_at', 'updated_at'])
        .where('id', '=', row.id)
        .executeTakeFirstOrThrow()
      const barcodes = await db
        .selectFrom('item_barcodes')
        .select('barcode')
        .where('item_id', '=', row.id)
        .orderBy('barcode')
        .execute()
      const units = await db
        .selectFrom('item_units')
        .select(['unit', 'numerator', 'denominator'])
        .where('item_id', '=', row.id)
        .where('superseded_at', 'is', null)
        .orderBy('unit')
        .execute()
      const balances = await db
        .selectFrom('stock_balances as b')
        .innerJoin('stock_accounts as a', 'a.id', 'b.account_id')
        .innerJoin('locations as p', 'p.id', 'a.location_id')
        .innerJoin('lots as l', 'l.id', 'a.lot_id')
        .where('b.item_id', '=', row.id)
        .where('b.on_hand', '>', 0)
        .select(['p.code as location', 'l.code as lot', 'l.expires_on as expiresOn', 'b.on_hand', 'b.reserved'])
        .orderBy('p.code')
        .orderBy('l.code')
        .limit(500)
        .execute()
      return {
        barcodes: barcodes.map(({ barcode }) => barcode),
        units,
        shelfLifeDays: item.shelf_life_days,
        locations: balances.map(({ location, lot, expiresOn, on_hand, reserved }) => ({
          location,
          lot: lot === DEFAULT_LOT ? null : lot,
          expiresOn,
          onHand: fromMicros(on_hand),
          reserved: fromMicros(reserved)
        })),
        createdAt: new Date(item.created_at).toISOString(),
        updatedAt: new Date(item.updated_at).toISOString()
      }
    }
  }
}

async function saveSearch(root: Kysely<unknown>, items: readonly (ItemRecord & { id: number })[]): Promise<void> {
  if (isPostgres(root)) {
    // A trigger adds the name and the category.
    await insertRows(root, {
      table: 'item_search',
      columns: { item_id: 'integer', text: 'text' },
      rows: items.map((item) => [item.id, searchText(item)]),
      upsertOn: 'item_id'
    })
    return
  }
  await insertRows(root, {
    table: 'item_texts',
    columns: { item_id: 'integer', category_id: 'integer', name: 'text', text: 'text' },
    rows: items.map((item) => [item.id, item.categoryId, item.name, searchText(item)]),
    upsertOn: 'item_id'
  })
  await sql`insert or replace into item_search (rowid, text) select item_id, ${sql.raw(INDEXED_TEXT)} from item_texts
    where item_id in (select value from json_each(${JSON.stringify(items.map(({ id }) => id))}))`.execute(root)
}
