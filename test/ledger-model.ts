import { fromMicros } from '../schemas/decimal.js'
import type { MovementType } from '../schemas/inventory.js'

/**
 * What the ledger should do, written to be read: one account after another in maps of bigint, no database, nothing shared
 * with the program but its types. All quantities and values are 10⁻⁶.
 */

interface ModelLot {
  lot: string
  expiresOn: string | null
}
export interface ModelLine {
  item: Item
  location: string
  toLocation?: string | undefined
  /** Negative for an adjustment downwards. */
  quantity: bigint
  lot: ModelLot | undefined
  unitCost: number | undefined
}
type Item = 'plain' | 'lotted'

export class Refusal extends Error {
  constructor(
    readonly code: string,
    readonly available?: bigint
  ) {
    super(code)
  }
}

interface Move {
  item: Item
  lot: string
  /** Null: outside, which is endless. */
  from: string | null
  to: string | null
  quantity: bigint
  value: bigint
}
interface Transaction {
  moves: Move[]
  reverses: boolean
  reversed: boolean
}
interface Reservation {
  item: Item
  location: string
  lot: string
  quantity: bigint
  open: boolean
}
interface Account {
  onHand: bigint
  reserved: bigint
}

export class LedgerModel {
  accounts = new Map<string, Account>()
  totals: Record<Item, { onHand: bigint; value: bigint }> = {
    plain: { onHand: 0n, value: 0n },
    lotted: { onHand: 0n, value: 0n }
  }
  lots = new Map<string, string | null>()
  transactions = new Map<number, Transaction>()
  reservations = new Map<number, Reservation>()
  #next = 1
  readonly #defaultCost: Record<Item, bigint>

  constructor(defaultCost: Record<Item, bigint>) {
    this.#defaultCost = defaultCost
  }

  /** All of it or nothing. */
  attempt(work: (model: LedgerModel) => number | undefined): number | undefined {
    const { accounts, totals, lots, transactions, reservations } = this
    const saved = structuredClone({ accounts, totals, lots, transactions, reservations })
    try {
      return work(this)
    } catch (error) {
      Object.assign(this, saved)
      throw error
    }
  }

  post(type: MovementType, lines: readonly ModelLine[]): number {
    const moves = lines.flatMap((line) => this.#line(type, line))
    return this.#record({ moves, reverses: false, reversed: false })
  }

  reverse(id: number): number {
    const transaction = this.transactions.get(id)
    if (transaction === undefined) throw new Refusal('INV_MOVEMENT_NOT_FOUND')
    if (transaction.reverses) throw new Refusal('INV_REVERSAL_OF_REVERSAL')
    if (transaction.reversed) throw new Refusal('INV_ALREADY_REVERSED')
    transaction.reversed = true
    const moves = transaction.moves.toReversed().map((move) => this.#reverseMove(move))
    return this.#record({ moves, reverses: true, reversed: false })
  }

  reserve({ item, location, quantity, lot }: Omit<ModelLine, 'toLocation'>): number {
    const name = lot?.lot ?? ''
    if (item === 'lotted' && !this.lots.has(name)) throw new Refusal('INV_LOT_NOT_FOUND')
    const account = this.#account(item, location, name)
    const available = account.onHand - account.reserved
    if (quantity > available) throw new Refusal('INV_INSUFFICIENT_STOCK', available)
    account.reserved += quantity
    const id = this.#next++
    this.reservations.set(id, { item, location, lot: name, quantity, open: true })
    return id
  }

  close(id: number, post: boolean): undefined {
    const reservation = this.reservations.get(id)
    if (reservation === undefined) throw new Refusal('INV_RESERVATION_NOT_FOUND')
    if (!reservation.open) throw new Refusal('INV_RESERVATION_CLOSED')
    const { item, location, lot, quantity } = reservation
    reservation.open = false
    this.#account(item, location, lot).reserved -= quantity
    if (!post) return
    const moves = [this.#leave(item, location, lot, null, quantity)]
    // Its id is not in the answer, so it is not reversed here; what it moved counts all the same.
    for (const move of moves) if (move.quantity !== quantity) throw new Error('a reservation is posted whole')
  }

  /** As GET shows an item. */
  itemAsShown(item: Item) {
    const accounts = [...this.accounts].filter(([key]) => key.startsWith(`${item}|`))
    const reserved = accounts.reduce((sum, [, account]) => sum + account.reserved, 0n)
    const { onHand, value } = this.totals[item]
    const number = (micros: bigint) => fromMicros(Number(micros))
    return {
      onHand: number(onHand),
      reserved: number(reserved),
      available: number(onHand - reserved),
      value: number(value),
      locations: accounts
        .filter(([, account]) => account.onHand > 0n)
        .map(([key, account]) => {
          const [, location = '', lot = ''] = key.split('|')
          return {
            location,
            lot: lot === '' ? null : lot,
            expiresOn: this.lots.get(lot) ?? null,
            onHand: number(account.onHand),
            reserved: number(account.reserved)
          }
        })
        .sort((a, b) => compare(a.location, b.location) || compare(a.lot ?? '', b.lot ?? ''))
    }
  }

  #line(type: MovementType, { item, location, toLocation, quantity, lot, unitCost }: ModelLine): Move[] {
    const size = quantity < 0n ? -quantity : quantity
    const enters =
      type === 'receipt' || type === 'return' || type === 'opening' || (type === 'adjustment' && quantity > 0n)
    if (enters) {
      const name = lot?.lot ?? ''
      if (lot !== undefined && !this.lots.has(name)) this.lots.set(name, lot.expiresOn)
      return [this.#enter(item, location, name, size, this.#worth(item, size, unitCost))]
    }
    const to = type === 'transfer' ? (toLocation ?? null) : null
    if (item === 'plain' || lot !== undefined) {
      const name = lot?.lot ?? ''
      if (lot !== undefined && !this.lots.has(name)) throw new Refusal('INV_LOT_NOT_FOUND')
      return [this.#leave(item, location, name, to, size)]
    }
    return this.#firstExpiredFirstOut(item, location, to, size)
  }

  #firstExpiredFirstOut(item: Item, location: string, to: string | null, quantity: bigint): Move[] {
    const order = [...this.lots].sort(([, a], [, b]) => compare(a ?? '9999', b ?? '9999')).map(([lot]) => lot)
    const free = (lot: string) => {
      const { onHand, reserved } = this.#account(item, location, lot)
      return onHand - reserved
    }
    const available = order.reduce((sum, lot) => sum + free(lot), 0n)
    if (available < quantity) throw new Refusal('INV_INSUFFICIENT_STOCK', available)
    const moves: Move[] = []
    let rest = quantity
    for (const lot of order) {
      const taken = least(free(lot), rest)
      if (taken === 0n) continue
      moves.push(this.#leave(item, location, lot, to, taken))
      rest -= taken
    }
    return moves
  }

  /** What stock that comes in is worth: its price, else the average of what is there, else the item's own cost. */
  #worth(item: Item, quantity: bigint, unitCost: number | undefined): bigint {
    const { onHand, value } = this.totals[item]
    if (unitCost !== undefined) return rounded(quantity * BigInt(unitCost), 1_000_000n)
    if (onHand > 0n) return rounded(value * quantity, onHand)
    return rounded(quantity * this.#defaultCost[item], 1_000_000n)
  }

  #enter(item: Item, location: string, lot: string, quantity: bigint, value: bigint): Move {
    this.#account(item, location, lot).onHand += quantity
    this.totals[item].onHand += quantity
    this.totals[item].value += value
    return { item, lot, from: null, to: location, quantity, value }
  }

  /** Leaves at the moving average, or at a value given; the last unit takes what is left. */
  #leave(item: Item, location: string, lot: string, to: string | null, quantity: bigint, given?: bigint): Move {
    const account = this.#account(item, location, lot)
    const available = account.onHand - account.reserved
    if (quantity > available) throw new Refusal('INV_INSUFFICIENT_STOCK', available)
    const total = this.totals[item]
    const average = rounded(total.value * quantity, total.onHand)
    const limited = given === undefined ? average : least(given, total.value)
    const value = to === null && quantity === total.onHand ? total.value : limited
    account.onHand -= quantity
    if (to === null) {
      total.onHand -= quantity
      total.value -= value
    } else this.#account(item, to, lot).onHand += quantity
    return { item, lot, from: location, to, quantity, value }
  }

  #reverseMove({ item, lot, from, to, quantity, value }: Move): Move {
    if (to !== null) return this.#leave(item, to, lot, from, quantity, value)
    if (from === null) throw new Error('a move has an end of ours')
    return this.#enter(item, from, lot, quantity, value)
  }

  #account(item: Item, location: string, lot: string): Account {
    const key = `${item}|${location}|${lot}`
    const known = this.accounts.get(key) ?? { onHand: 0n, reserved: 0n }
    this.accounts.set(key, known)
    return known
  }

  #record(transaction: Transaction): number {
    const id = this.#next++
    this.transactions.set(id, transaction)
    return id
  }
}

const least = (a: bigint, b: bigint) => (a > b ? b : a)
const compare = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0)
/** Half away from zero; both are positive. */
const rounded = (dividend: bigint, divisor: bigint): bigint =>
  divisor === 0n ? 0n : (2n * dividend + divisor) / (2n * divisor)
