import type { Kysely } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { prepared } from '../../plugins/contracts.js'
import type { LocationKind, MovementType, Tracking } from '../../schemas/inventory.js'
import { among, amongSlot, insertRows, listOf } from './bulk.js'
import type { AccountState, ItemState, LotState, Move } from './posting.js'
import { statusOf } from './posting.js'
import { DEFAULT_LOT, INTERNAL_KINDS, type InventoryTables } from './tables.js'

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

/** With `lock`, the row is the item's lock: whoever changes a balance of the item holds it. SQLite's writers take turns. */
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
    return lock && isPostgres(root) ? query.forUpdate('t') : query
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

interface AccountRow {
  id: number
  item_id: number
  location_id: number
  lotId: number
  lot: string
  expires_on: string | null
  status: LotState['status']
  on_hand: number | null
  reserved: number | null
}
const readAccounts = prepared<{ itemIds: unknown; locationIds: unknown }, AccountRow>((root, slot) =>
  root
    .withTables<InventoryTables>()
    .selectFrom('stock_accounts as a')
    .innerJoin('lots as l', 'l.id', 'a.lot_id')
    .leftJoin('stock_balances as b', 'b.account_id', 'a.id')
    .where(amongSlot(root, 'a.item_id', slot('itemIds')))
    .where(amongSlot(root, 'a.location_id', slot('locationIds')))
    .select(['a.id', 'a.item_id', 'a.location_id', 'l.id as lotId', 'l.code as lot'])
    .select(['l.expires_on', 'l.status', 'b.on_hand', 'b.reserved'])
)

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

    async accounts(itemIds: readonly number[], locations: readonly LedgerLocation[]): Promise<AccountState[]> {
      if (itemIds.length === 0 || locations.length === 0) return []
      const byId = new Map(locations.map((location) => [location.id, location]))
      const lists = { itemIds: listOf(root, itemIds), locationIds: listOf(root, [...byId.keys()]) }
      const { rows } = await root.executeQuery(readAccounts(root, lists))
      return rows.flatMap((row) => {
        const location = byId.get(row.location_id)
        if (location === undefined) return []
        return {
          id: row.id,
          itemId: row.item_id,
          location,
          lot: { id: row.lotId, itemId: row.item_id, code: row.lot, expiresOn: row.expires_on, status: row.status },
          internal: INTERNAL_KINDS.includes(location.kind),
          onHand: row.on_hand ?? 0,
          reserved: row.reserved ?? 0
        }
      })
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

    /** @returns the sequence number of each, in the order given */
    async insertTransactions(heads: readonly TransactionHead[]): Promise<number[]> {
      const rows = await insertRows<{ seq: number; id: string }>(root, {
        table: 'stock_transactions',
        columns: {
          id: 'text',
          type: 'text',
          occurred_at: 'integer',
          recorded_at: 'integer',
          actor: 'text',
          reason: 'text',
          reference: 'text',
          reverses: 'integer',
          import_id: 'text',
          request_id: 'text'
        },
        rows: heads.map((head) => [
          head.id,
          head.type,
          head.occurredAt,
          head.recordedAt,
          head.actor,
          head.reason,
          head.reference,
          head.reverses,
          head.importId,
          head.requestId
        ]),
        returning: ['seq', 'id']
      })
      const seqs = new Map(rows.map((row) => [row.id, row.seq]))
      return heads.map((head) => seqs.get(head.id) ?? 0)
    },

    async insertMoves(
      transactions: readonly { seq: number; occurredAt: number; moves: readonly Move[] }[]
    ): Promise<void> {
      await insertRows(root, {
        table: 'stock_moves',
        columns: {
          transaction_seq: 'integer',
          line: 'integer',
          item_id: 'integer',
          from_account: 'integer',
          to_account: 'integer',
          quantity: 'integer',
          entered_quantity: 'integer',
          entered_unit: 'text',
          request_line: 'integer',
          unit_cost: 'integer',
          value: 'integer',
          occurred_at: 'integer'
        },
        rows: transactions.flatMap(({ seq, occurredAt, moves }) =>
          moves.map((move, index) => [
            seq,
            index + 1,
            move.item.id,
            move.from.id,
            move.to.id,
            move.quantity,
            move.enteredQuantity,
            move.enteredUnit,
            move.requestLine,
            move.unitCost,
            move.value,
            occurredAt
          ])
        )
      })
    },

    async saveBalances(accounts: readonly AccountState[]): Promise<void> {
      await insertRows(root, {
        table: 'stock_balances',
        columns: { account_id: 'integer', item_id: 'integer', on_hand: 'integer', reserved: 'integer' },
        rows: accounts.map((account) => [account.id, account.itemId, account.onHand, account.reserved]),
        upsertOn: 'account_id'
      })
    },

    async saveTotals(items: readonly ItemState[]): Promise<void> {
      await insertRows(root, {
        table: 'item_totals',
        columns: { item_id: 'integer', on_hand: 'integer', reserved: 'integer', value: 'integer', status: 'text' },
        rows: items.map((item) => [item.id, item.onHand, item.reserved, item.value, statusOf(item)]),
        upsertOn: 'item_id'
      })
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
