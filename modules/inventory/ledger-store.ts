import type { Kysely } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { prepared, type Writer } from '../../plugins/contracts.js'
import type { LocationKind, MovementType, Tracking } from '../../schemas/inventory.js'
import { among, amongSlot, insertRows, listOf } from './bulk.js'
import { BALANCES, balanceRow, type Postings, TOTALS, totalRow, writePostings } from './ledger-writes.js'
import type { AccountState, ItemState, LotState } from './posting.js'
import { DEFAULT_LOT, type InventoryTables } from './tables.js'

export interface LedgerItem extends ItemState {
  readonly unit: string
  readonly tracking: Tracking
  /** Id of the lot of what is not tracked. */
  readonly defaultLotId: number
}

export interface LedgerLocation {
  readonly id: number
  readonly code: string
  readonly kind: LocationKind
}

export interface TransactionHead {
  readonly id: string
  readonly type: MovementType
  readonly occurredAt: number
  readonly recordedAt: number
  readonly actor: string
  readonly reason: string | null
  readonly reference: string | null
  readonly reverses: number | null
  readonly importId: string | null
  readonly requestId: string
}

/**
 * With `lock`, the totals are the item's lock: whoever changes a balance of the item holds it. The item's own row is held as well,
 * or one that waited for the lock would see it as it was before. SQLite's writers take turns.
 */
const itemsQuery = (lock: boolean) =>
  prepared<{ codes: unknown }, LedgerItem>((root, slot) => {
    const query = root
      .withTables<InventoryTables>()
      .selectFrom('item_totals as t')
      .innerJoin('items as i', 'i.id', 't.item_id')
      .innerJoin('lots as l', (join) => join.onRef('l.item_id', '=', 'i.id').on('l.code', '=', DEFAULT_LOT))
      .where(amongSlot(root, 'i.code', slot('codes')))
      .where('i.archived_at', 'is', null)
      .select(['i.id', 'i.code', 'i.unit', 'i.tracking', 'i.unit_cost as defaultCost'])
      .select(['i.reorder_point as reorderPoint', 'i.par_level as parLevel', 't.on_hand as onHand', 't.reserved'])
      .select(['t.value', 'l.id as defaultLotId'])
      .orderBy('t.item_id')
    return lock && isPostgres(root) ? query.forUpdate('t').forShare('i') : query
  })
const readItems = itemsQuery(false)
const lockedItems = itemsQuery(true)

const readLocations = prepared<{ codes: unknown }, LedgerLocation>((root, slot) =>
  root
    .withTables<InventoryTables>()
    .selectFrom('locations')
    .select(['id', 'code', 'kind'])
    .where(amongSlot(root, 'code', slot('codes')))
)

export interface AccountRow {
  readonly id: number
  readonly itemId: number
  readonly locationId: number
  readonly lotId: number
  readonly lot: string
  readonly expiresOn: string | null
  readonly status: LotState['status']
  readonly onHand: number | null
  readonly reserved: number | null
}
const readAccounts = prepared<{ codes: unknown; places: unknown }, AccountRow>((root, slot) => {
  const db = root.withTables<InventoryTables>()
  return db
    .selectFrom('stock_accounts as a')
    .innerJoin('lots as l', 'l.id', 'a.lot_id')
    .leftJoin('stock_balances as b', 'b.account_id', 'a.id')
    .where(
      'a.item_id',
      'in',
      db
        .selectFrom('items')
        .select('id')
        .where(amongSlot(root, 'code', slot('codes')))
    )
    .where(
      'a.location_id',
      'in',
      db
        .selectFrom('locations')
        .select('id')
        .where(amongSlot(root, 'code', slot('places')))
    )
    .select(['a.id', 'a.item_id as itemId', 'a.location_id as locationId', 'l.id as lotId', 'l.code as lot'])
    .select(['l.expires_on as expiresOn', 'l.status', 'b.on_hand as onHand', 'b.reserved'])
})

/** What a posting reads and writes. Built on a transaction; with `lock`, items are taken in order, so that two postings cannot deadlock. */
export function createLedgerStore(root: Kysely<unknown>) {
  const db = root.withTables<InventoryTables>()

  return {
    async items(codes: readonly string[], lock: boolean): Promise<LedgerItem[]> {
      if (codes.length === 0) return []
      const query = lock ? lockedItems : readItems
      return (await root.executeQuery(query(root, { codes: listOf(root, codes) }))).rows
    },

    locations: async (codes: readonly string[]): Promise<LedgerLocation[]> =>
      codes.length === 0 ? [] : (await root.executeQuery(readLocations(root, { codes: listOf(root, codes) }))).rows,

    /** Where these lots of these items are in stock. */
    async placesHolding(itemIds: readonly number[], lots: readonly string[]): Promise<LedgerLocation[]> {
      if (itemIds.length === 0 || lots.length === 0) return []
      return db
        .selectFrom('stock_accounts as a')
        .innerJoin('lots as l', 'l.id', 'a.lot_id')
        .innerJoin('stock_balances as b', 'b.account_id', 'a.id')
        .innerJoin('locations as p', 'p.id', 'a.location_id')
        .where(among(root, 'a.item_id', itemIds))
        .where(among(root, 'l.code', lots))
        .where('b.on_hand', '>', 0)
        .select(['p.id', 'p.code', 'p.kind'])
        .distinct()
        .execute()
    },

    async lots(itemIds: readonly number[], codes: readonly string[]): Promise<LotState[]> {
      if (itemIds.length === 0 || codes.length === 0) return []
      return db
        .selectFrom('lots')
        .select(['id', 'item_id as itemId', 'code', 'expires_on as expiresOn', 'status'])
        .where(among(root, 'item_id', itemIds))
        .where(among(root, 'code', codes))
        .execute()
    },

    /** Asked for by codes, so that it need not wait for what they are. */
    async accounts(itemCodes: readonly string[], places: readonly string[]): Promise<AccountRow[]> {
      if (itemCodes.length === 0 || places.length === 0) return []
      const lists = { codes: listOf(root, itemCodes), places: listOf(root, places) }
      return (await root.executeQuery(readAccounts(root, lists))).rows
    },

    async unitRatios(itemIds: readonly number[]) {
      if (itemIds.length === 0) return []
      return db
        .selectFrom('item_units')
        .select(['item_id as itemId', 'unit', 'numerator', 'denominator'])
        .where(among(root, 'item_id', itemIds))
        .where('superseded_at', 'is', null)
        .execute()
    },

    async units(codes: readonly string[]) {
      if (codes.length === 0) return []
      return db
        .selectFrom('units')
        .select(['code', 'dimension', 'numerator', 'denominator'])
        .where(among(root, 'code', codes))
        .execute()
    },

    async insertLots(lots: readonly LotState[]): Promise<void> {
      const rows = await insertRows<{ id: number; item_id: number; code: string }>(root, {
        table: 'lots',
        columns: { item_id: 'integer', code: 'text', expires_on: 'text', status: 'text' },
        rows: lots.map((lot) => [lot.itemId, lot.code, lot.expiresOn, lot.status]),
        returning: ['id', 'item_id', 'code']
      })
      const ids = new Map(rows.map((row) => [`${row.item_id} ${row.code}`, row.id]))
      for (const lot of lots) lot.id = ids.get(`${lot.itemId} ${lot.code}`) ?? 0
    },

    async insertAccounts(accounts: readonly AccountState[]): Promise<void> {
      const rows = await insertRows<{ id: number; item_id: number; location_id: number; lot_id: number }>(root, {
        table: 'stock_accounts',
        columns: { item_id: 'integer', location_id: 'integer', lot_id: 'integer' },
        rows: accounts.map(({ itemId, location, lot }) => [itemId, location.id, lot.id]),
        returning: ['id', 'item_id', 'location_id', 'lot_id']
      })
      const ids = new Map(rows.map((row) => [`${row.item_id} ${row.location_id} ${row.lot_id}`, row.id]))
      for (const account of accounts)
        account.id = ids.get(`${account.itemId} ${account.location.id} ${account.lot.id}`) ?? 0
    },

    /** All that was posted; see `writePostings`. */
    savePostings: (postings: Postings, write?: Writer['write']) => writePostings(root, postings, write),

    async saveBalances(accounts: readonly AccountState[]): Promise<void> {
      await insertRows(root, { ...BALANCES, rows: accounts.map(balanceRow) })
    },

    async saveTotals(items: readonly ItemState[]): Promise<void> {
      await insertRows(root, { ...TOTALS, rows: items.map(totalRow) })
    },

    /** The moves of these transactions with all that a reversal needs. */
    async movesOf(seqs: readonly number[]) {
      if (seqs.length === 0) return []
      return db
        .selectFrom('stock_moves as m')
        .innerJoin('items as i', 'i.id', 'm.item_id')
        .innerJoin('stock_accounts as f', 'f.id', 'm.from_account')
        .innerJoin('stock_accounts as t', 't.id', 'm.to_account')
        .innerJoin('locations as fl', 'fl.id', 'f.location_id')
        .innerJoin('locations as tl', 'tl.id', 't.location_id')
        .where(among(root, 'm.transaction_seq', seqs))
        .select([
          'm.transaction_seq as seq',
          'm.line',
          'm.request_line as requestLine',
          'i.code as itemCode',
          'm.from_account as fromAccount'
        ])
        .select([
          'm.to_account as toAccount',
          'fl.code as fromLocation',
          'tl.code as toLocation',
          'm.quantity',
          'm.value'
        ])
        .select(['m.entered_quantity as enteredQuantity', 'm.entered_unit as enteredUnit'])
        .orderBy('m.transaction_seq')
        .orderBy('m.line')
        .execute()
    },

    findTransaction: (id: string) =>
      db
        .selectFrom('stock_transactions as t')
        .leftJoin('stock_transactions as r', 'r.reverses', 't.seq')
        .where('t.id', '=', id)
        .select([
          't.seq',
          't.id',
          't.type',
          't.occurred_at as occurredAt',
          't.reference',
          't.reverses',
          'r.id as reversedBy'
        ])
        .executeTakeFirst(),

    /** Transactions of an import that stand, newest first, recorded before the named one. */
    transactionsOfImport: (importId: string, before: number, limit: number) =>
      db
        .selectFrom('stock_transactions as t')
        .leftJoin('stock_transactions as r', 'r.reverses', 't.seq')
        .where('t.import_id', '=', importId)
        .where('t.seq', '<', before)
        .where('t.reverses', 'is', null)
        .where('r.seq', 'is', null)
        .select(['t.seq', 't.id', 't.type', 't.occurred_at as occurredAt', 't.reference'])
        .orderBy('t.seq', 'desc')
        .limit(limit)
        .execute()
  }
}
export type LedgerStore = ReturnType<typeof createLedgerStore>
