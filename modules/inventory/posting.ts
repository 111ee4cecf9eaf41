import { fromMicros, MICROS, multiplyMicros, proportionMicros } from '../../schemas/decimal.js'
import type { LotStatus, MovementType, StockStatus } from '../../schemas/inventory.js'
import { InsufficientStock, StockLimit } from './errors.js'

/**
 * The arithmetic of the ledger, without a database: transfers between accounts applied in order to balances in memory.
 * Cost is the moving average of each item over all its internal stock.
 */

export interface ItemState {
  readonly id: number
  readonly code: string
  /** Used where nothing else says what a unit costs. */
  readonly defaultCost: number | null
  readonly reorderPoint: number | null
  readonly parLevel: number | null
  onHand: number
  reserved: number
  /** Of all internal stock; on hand × moving average. */
  value: number
}

export interface LotState {
  /** 0 until it is stored; so with accounts. */
  id: number
  readonly itemId: number
  readonly code: string
  readonly expiresOn: string | null
  readonly status: LotStatus
}

export interface AccountState {
  id: number
  readonly itemId: number
  readonly location: { readonly id: number; readonly code: string }
  readonly lot: LotState
  /** Balances are kept for stock of ours; a supplier's or a guest's is endless. */
  readonly internal: boolean
  onHand: number
  reserved: number
}

export interface Transfer {
  readonly requestLine: number
  readonly item: ItemState
  readonly quantity: number
  readonly enteredQuantity: number
  readonly enteredUnit: string
  readonly locationCode: string
  /** Where it leaves from: one account, or several to take from in order (first expired, first out). */
  readonly from: readonly AccountState[]
  /** For each source account, where it goes. */
  to(from: AccountState): AccountState
  /** What it is worth where a document says so: a priced receipt, or a reversal, which takes back what was posted. */
  readonly value: number | null
}

export interface Move {
  readonly requestLine: number
  readonly item: ItemState
  readonly from: AccountState
  readonly to: AccountState
  readonly quantity: number
  readonly enteredQuantity: number
  readonly enteredUnit: string
  readonly unitCost: number
  readonly value: number
}

const ON_HAND_MAX = 1_000_000_000 * MICROS
/** The largest integer that both databases and JSON carry exactly. */
const VALUE_MAX = Number.MAX_SAFE_INTEGER

/**
 * Applies one transfer and says what moved.
 * @throws InsufficientStock naming what is available, StockLimit; the balances are then as they were
 */
export function apply(transfer: Transfer): Move[] {
  const parts = allocate(transfer)
  let [upTo, enteredBefore] = [0, 0]
  return parts.map(({ from, quantity }) => {
    const { item } = transfer
    const to = transfer.to(from)
    upTo += quantity
    // By what is left of it, so that the parts together are what was entered.
    const entered =
      upTo === transfer.quantity
        ? transfer.enteredQuantity
        : proportionMicros(transfer.enteredQuantity, upTo, transfer.quantity)
    const enteredQuantity = entered - enteredBefore
    enteredBefore = entered
    const value = worthOf(transfer, from, to, quantity)
    if (to.internal && !from.internal && (item.onHand + quantity > ON_HAND_MAX || item.value + value > VALUE_MAX))
      throw new StockLimit({ itemCode: item.code, line: transfer.requestLine })
    if (from.internal) {
      from.onHand -= quantity
      if (!to.internal) {
        item.onHand -= quantity
        item.value -= value
      }
    }
    if (to.internal) {
      to.onHand += quantity
      if (!from.internal) {
        item.onHand += quantity
        item.value += value
      }
    }
    return {
      requestLine: transfer.requestLine,
      item,
      from,
      to,
      quantity,
      enteredQuantity,
      enteredUnit: transfer.enteredUnit,
      // Told beside the value, which is exact: of a millionth of a unit it may leave what the database holds.
      unitCost: Math.min(proportionMicros(value, MICROS, quantity), VALUE_MAX),
      value
    }
  })
}

function allocate({
  from,
  quantity,
  item,
  locationCode,
  requestLine
}: Transfer): { from: AccountState; quantity: number }[] {
  const [first] = from
  if (first !== undefined && !first.internal) return [{ from: first, quantity }]
  const parts: { from: AccountState; quantity: number }[] = []
  let rest = quantity
  for (const account of from) {
    const taken = Math.min(rest, account.onHand - account.reserved)
    if (taken <= 0) continue
    parts.push({ from: account, quantity: taken })
    rest -= taken
    if (rest === 0) return parts
  }
  throw new InsufficientStock({
    itemCode: item.code,
    location: locationCode,
    lot: from.length === 1 && first !== undefined && first.lot.code !== '' ? first.lot.code : null,
    requested: fromMicros(quantity),
    available: fromMicros(quantity - rest),
    line: requestLine
  })
}

function worthOf(transfer: Transfer, from: AccountState, to: AccountState, quantity: number): number {
  const { item } = transfer
  if (from.internal) {
    // The last unit takes what is left, so that no stock means no value.
    if (!to.internal && quantity === item.onHand) return item.value
    const average = proportionMicros(item.value, quantity, item.onHand)
    return transfer.value === null ? average : Math.min(transfer.value, item.value)
  }
  if (transfer.value !== null) return transfer.value
  if (item.onHand > 0) return proportionMicros(item.value, quantity, item.onHand)
  return multiplyMicros(quantity, item.defaultCost ?? 0)
}

/** First expired, first out; what never expires goes last. */
export const byExpiry = (a: AccountState, b: AccountState): number =>
  compare(a.lot.expiresOn ?? NEVER, b.lot.expiresOn ?? NEVER) || a.lot.id - b.lot.id
const NEVER = '9999'
const compare = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0)

export function statusOf({
  onHand,
  reserved,
  reorderPoint,
  parLevel
}: Pick<ItemState, 'onHand' | 'reserved' | 'reorderPoint' | 'parLevel'>): StockStatus {
  const available = onHand - reserved
  if (available <= 0) return 'out'
  if (reorderPoint !== null && available <= reorderPoint) return 'low'
  if (parLevel !== null && available > parLevel) return 'over'
  return 'in'
}

/** From where to where a type moves stock, by kind of location: `here` is the line's own. */
export const ROUTES: Record<MovementType, { from: Place; to: Place }> = {
  receipt: { from: 'supplier', to: 'here' },
  opening: { from: 'opening', to: 'here' },
  return: { from: 'consumption', to: 'here' },
  issue: { from: 'here', to: 'consumption' },
  waste: { from: 'here', to: 'waste' },
  transfer: { from: 'here', to: 'there' },
  /** Of a positive quantity; a negative one goes the other way. */
  adjustment: { from: 'variance', to: 'here' }
}
type Place = 'here' | 'there' | 'supplier' | 'opening' | 'consumption' | 'waste' | 'variance'
