import type { Generated } from 'kysely'
import type { LocationKind, LotStatus, MovementType, StockStatus, Tracking } from '../../schemas/inventory.js'

/** Quantities, costs and values are integers of 10⁻⁶; times are milliseconds since 1970. */
export type InventoryTables = {
  categories: { id: Generated<number>; name: string; name_fr: string | null }
  units: {
    code: string
    name: string
    name_fr: string | null
    dimension: string | null
    numerator: number
    denominator: number
  }
  items: {
    id: Generated<number>
    code: string
    name: string
    name_fr: string | null
    category_id: number | null
    unit: string
    tracking: Tracking
    shelf_life_days: number | null
    reorder_point: number | null
    par_level: number | null
    unit_cost: number | null
    created_at: number
    updated_at: number
    archived_at: number | null
  }
  item_units: {
    id: Generated<number>
    item_id: number
    unit: string
    numerator: number
    denominator: number
    valid_from: number
    superseded_at: number | null
  }
  item_barcodes: { barcode: string; item_id: number }
  /** On PostgreSQL the texts themselves; on SQLite the index of those in `item_texts`. */
  item_search: { item_id: number; rowid: number; text: string }
  item_texts: { item_id: number; text: string; name: string; category_id: number | null }
  locations: {
    id: Generated<number>
    code: string
    name: string
    name_fr: string | null
    kind: LocationKind
    parent_id: number | null
    walk_sequence: number
  }
  lots: { id: Generated<number>; item_id: number; code: string; expires_on: string | null; status: LotStatus }
  stock_accounts: { id: Generated<number>; item_id: number; location_id: number; lot_id: number }
  stock_transactions: {
    seq: Generated<number>
    id: string
    type: MovementType
    occurred_at: number
    recorded_at: number
    actor: string
    reason: string | null
    reference: string | null
    reverses: number | null
    import_id: string | null
    request_id: string
  }
  stock_moves: {
    transaction_seq: number
    line: number
    item_id: number
    from_account: number
    to_account: number
    quantity: number
    entered_quantity: number
    entered_unit: string
    request_line: number
    unit_cost: number
    value: number
    occurred_at: number
  }
  stock_balances: { account_id: number; item_id: number; on_hand: number; reserved: number }
  item_totals: { item_id: number; on_hand: number; reserved: number; value: number; status: StockStatus }
  reservations: {
    seq: Generated<number>
    id: string
    account_id: number
    quantity: number
    reference: string | null
    status: 'pending' | 'posted' | 'voided'
    expires_at: number | null
    movement_id: string | null
    created_at: number
  }
  imports: {
    seq: Generated<number>
    id: string
    kind: 'items' | 'movements'
    status: 'running' | 'succeeded' | 'failed' | 'undoing' | 'undone'
    total_rows: number
    done_rows: number
    spool: string | null
    options: string
    actor: string
    request_id: string
    created_at: number
    finished_at: number | null
  }
  import_changes: { import_id: string; item_code: string; before: string | null }
}

/** The lot of what is not tracked: each item has one, so that a lot is never NULL. */
export const DEFAULT_LOT = ''

/** Kinds whose stock is ours: only these have balances. */
export const INTERNAL_KINDS: readonly LocationKind[] = ['internal', 'transit']
