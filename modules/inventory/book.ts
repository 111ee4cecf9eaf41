import { v7 as uuidv7 } from 'uuid'
import type { Localised, Writer } from '../../plugins/contracts.js'
import { fromMicros, multiplyMicros, toMicros } from '../../schemas/decimal.js'
import type { Movement, MovementLine, MovementType } from '../../schemas/inventory.js'
import {
  InsufficientStock,
  ItemNotFound,
  LocationNotFound,
  LocationNotStocked,
  LotNotFound,
  LotRule,
  MovementRule,
  UnitNotConvertible
} from './errors.js'
import type { AccountRow, LedgerItem, LedgerLocation, LedgerStore, TransactionHead } from './ledger-store.js'
import { movementOf, type Posted } from './posted.js'
import { type AccountState, apply, byExpiry, type LotState, type Move, ROUTES, type Transfer } from './posting.js'
import * as rules from './rules.js'
import { DEFAULT_LOT, INTERNAL_KINDS } from './tables.js'

export const DEFAULT_LOCATION = 'main'

export interface Draft {
  readonly type: MovementType
  /** Milliseconds since 1970. */
  readonly occurredAt: number
  readonly reason: string | null
  readonly reference: string | null
  readonly importId: string | null
  readonly lines: readonly MovementLine[]
}

export interface Author {
  readonly actor: string
  readonly requestId: string
}

interface Reversible {
  readonly seq: number
  readonly id: string
  readonly type: MovementType
  readonly occurredAt: number
  readonly reference: string | null
}

type StoredMove = Awaited<ReturnType<LedgerStore['movesOf']>>[number]

interface Saving {
  meanwhile?: (() => Promise<void>) | undefined
  write?: Writer['write']
}

/** Where what comes in comes from, and what goes out goes to. */
const virtualPlaces = (type: MovementType) =>
  [ROUTES[type].from, ROUTES[type].to].filter((place) => place !== 'here' && place !== 'there')

/** Waits for each, also when one fails: none may still run when the transaction is taken back. */
async function allOf(writes: readonly Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(writes)).find(({ status }) => status === 'rejected')
  if (failed?.status === 'rejected') throw failed.reason
}

/**
 * The part of the ledger that some postings touch, held in memory: load what they need, post one after another, save all at
 * once. Never saved, it is a rehearsal: that is how an import is tried before anything is stored.
 */
export class Book {
  readonly #store: LedgerStore
  readonly #lock: boolean
  readonly #items = new Map<string, LedgerItem>()
  readonly #locations = new Map<string, LedgerLocation>()
  readonly #lots = new Map<string, LotState>()
  readonly #accounts = new Map<string, AccountState>()
  /** Accounts of an item at a location, for choosing among lots. */
  readonly #shelves = new Map<string, AccountState[]>()
  readonly #byId = new Map<number, AccountState>()
  readonly #units = new Map<string, { dimension: string | null; numerator: number; denominator: number }>()
  readonly #ratios = new Map<string, { numerator: number; denominator: number }>()
  readonly #loaded = new Set<string>()
  readonly #posted: Posted[] = []

  constructor(store: LedgerStore, { lock }: { lock: boolean }) {
    this.#store = store
    this.#lock = lock
  }

  /**
   * Loads what these lines touch and is not loaded yet; all at once, since locks are taken in one order.
   * @param types of the transactions that the lines belong to
   */
  async load(lines: readonly MovementLine[], types: Iterable<MovementType>): Promise<void> {
    const places = new Set([DEFAULT_LOCATION, ...[...types].flatMap(virtualPlaces)])
    const lots = new Set<string>()
    for (const { location, toLocation, lot } of lines) {
      if (location !== undefined) places.add(location)
      if (toLocation !== undefined) places.add(toLocation)
      if (lot !== undefined) lots.add(lot)
    }
    await this.#loadPlaces(new Set(lines.map(({ itemCode }) => itemCode)), places, lots)
    await this.#loadUnits(lines)
  }

  async #loadPlaces(codes: ReadonlySet<string>, places: ReadonlySet<string>, lots: ReadonlySet<string>): Promise<void> {
    await this.#fetch(codes, places)
    const items = [...codes].map((code) => this.#items.get(code)).filter((item) => item !== undefined)
    const serials = items.filter(({ tracking }) => tracking === 'serial').map(({ id }) => id)
    // A serial number is in one place, which a receipt at another has to know.
    for (const place of await this.#store.placesHolding(serials, [...lots]))
      if (!this.#locations.has(place.code)) this.#locations.set(place.code, place)
    for (const lot of await this.#store.lots(
      items.map(({ id }) => id),
      [...lots]
    )) {
      if (!this.#lots.has(keyOf(lot.itemId, lot.code))) this.#lots.set(keyOf(lot.itemId, lot.code), lot)
    }
    if (serials.length > 0) await this.#fetch(codes, new Set(this.#locations.keys()))
  }

  /**
   * Items, which are locked by that, locations, and the accounts of each at each. All are asked for at once and answered one after the
   * other, so balances are those that were there when the lock was.
   */
  async #fetch(codes: ReadonlySet<string>, places: ReadonlySet<string>): Promise<void> {
    const newCodes = [...codes].filter((code) => !this.#items.has(code))
    const newPlaces = [...places].filter((code) => !this.#locations.has(code))
    // What is in memory is newer than what is stored: a pair that was loaded is never loaded again.
    const missing = [...codes].filter((code) => [...places].some((place) => !this.#loaded.has(pairOf(code, place))))
    const [items, locations, accounts] = await Promise.all([
      this.#store.items(newCodes, this.#lock),
      this.#store.locations(newPlaces),
      this.#store.accounts(missing, [...places])
    ])
    for (const item of items) {
      this.#items.set(item.code, item)
      this.#lots.set(keyOf(item.id, DEFAULT_LOT), {
        id: item.defaultLotId,
        itemId: item.id,
        code: DEFAULT_LOT,
        expiresOn: null,
        status: 'ok'
      })
    }
    for (const location of locations) this.#locations.set(location.code, location)
    this.#rememberStored(accounts, missing)
    for (const code of missing.filter((each) => this.#items.has(each)))
      for (const place of places) if (this.#locations.has(place)) this.#loaded.add(pairOf(code, place))
  }

  #rememberStored(accounts: readonly AccountRow[], codes: readonly string[]): void {
    const byId = new Map([...this.#locations.values()].map((location) => [location.id, location]))
    const codeOf = new Map(codes.flatMap((code) => [[this.#items.get(code)?.id, code] as const]))
    for (const { id, itemId, locationId, lotId, lot, expiresOn, status, onHand, reserved } of accounts) {
      const [location, code] = [byId.get(locationId), codeOf.get(itemId)]
      if (location === undefined || code === undefined || this.#loaded.has(pairOf(code, location.code))) continue
      this.#remember({
        id,
        itemId,
        location,
        lot: { id: lotId, itemId, code: lot, expiresOn, status },
        internal: INTERNAL_KINDS.includes(location.kind),
        onHand: onHand ?? 0,
        reserved: reserved ?? 0
      })
    }
  }

  async #loadUnits(lines: readonly MovementLine[]): Promise<void> {
    const foreign = lines.filter(({ itemCode, unit }) => unit !== undefined && this.#items.get(itemCode)?.unit !== unit)
    if (foreign.length === 0) return
    const items = [...new Set(foreign.map(({ itemCode }) => itemCode))]
      .map((code) => this.#items.get(code))
      .filter((item) => item !== undefined)
    const codes = new Set([...foreign.map(({ unit }) => unit ?? ''), ...items.map(({ unit }) => unit)])
    for (const unit of await this.#store.units([...codes])) this.#units.set(unit.code, unit)
    for (const ratio of await this.#store.unitRatios(items.map(({ id }) => id)))
      this.#ratios.set(keyOf(ratio.itemId, ratio.unit), ratio)
  }

  /** Posts one transaction into memory. @throws a coded problem that names the line */
  post(draft: Draft, author: Author): { head: TransactionHead; moves: Move[] } {
    const moves = draft.lines.flatMap((line, index) => apply(this.#transfer(draft.type, line, index + 1)))
    return this.#record(draft, author, null, moves)
  }

  /** Loads, and locks, what reversing these moves touches. */
  async loadMoves(stored: readonly StoredMove[]): Promise<void> {
    const places = new Set(stored.flatMap((move) => [move.fromLocation, move.toLocation]))
    await this.#loadPlaces(new Set(stored.map(({ itemCode }) => itemCode)), places, new Set())
    for (const account of this.#accounts.values()) this.#byId.set(account.id, account)
  }

  /** Takes a posted transaction back: every move the other way, at the value it had, on the day it happened. */
  reverse(original: Reversible, stored: readonly StoredMove[], reason: string | null, author: Author): void {
    const moves = [...stored].reverse().flatMap((move) => {
      const item = this.#item(move.itemCode)
      const from = this.#byId.get(move.toAccount)
      const to = this.#byId.get(move.fromAccount)
      if (from === undefined || to === undefined) throw new ItemNotFound({ itemCode: move.itemCode })
      return apply({
        requestLine: move.requestLine,
        item,
        quantity: move.quantity,
        enteredQuantity: move.enteredQuantity,
        enteredUnit: move.enteredUnit,
        locationCode: from.location.code,
        from: [from],
        to: () => to,
        value: move.value
      })
    })
    this.#record({ ...original, reason, importId: null, lines: [] }, author, original, moves)
  }

  #record(draft: Draft, { actor, requestId }: Author, reverses: Reversible | null, moves: Move[]) {
    const { type, occurredAt, reason, reference, importId } = draft
    const recordedAt = Date.now()
    const head = {
      id: uuidv7(),
      type,
      occurredAt,
      recordedAt,
      actor,
      reason,
      reference,
      reverses: reverses?.seq ?? null,
      importId,
      requestId
    }
    this.#posted.push({ head, reversesId: reverses?.id ?? null, moves })
    return { head, moves }
  }

  /**
   * Writes all that was posted, in the caller's transaction.
   * @param meanwhile is begun while the database writes, which takes it longest
   * @param write given: the end of the transaction is waited for, and not the writing
   */
  async save({ meanwhile, write }: Saving = {}): Promise<Movement[]> {
    const posted = [...this.#posted]
    const moves = posted.flatMap((posting) => posting.moves)
    const accounts = [...new Set(moves.flatMap(({ from, to }) => [from, to]))]
    const lots = [...new Set(accounts.map(({ lot }) => lot))]
    await this.#store.insertLots(lots.filter(({ id }) => id === 0))
    await this.#store.insertAccounts(accounts.filter(({ id }) => id === 0))
    const items = [...new Set(moves.map(({ item }) => item))]
    const left = { posted, accounts: accounts.filter(({ internal }) => internal), items }
    const writing = allOf([this.#store.savePostings(left, write), meanwhile?.() ?? Promise.resolve()])
    const saved = posted.map((posting) => movementOf(posting, this.#items))
    await writing
    this.#posted.length = 0
    return saved
  }

  /** Forgets what was posted, keeping the balances it left: a rehearsal of millions of rows stays small. */
  forgetPosted(): void {
    this.#posted.length = 0
  }

  #transfer(type: MovementType, line: MovementLine, requestLine: number): Transfer {
    const item = this.#item(line.itemCode)
    const entered = toMicros(line.quantity)
    if (entered === 0 || (entered < 0 && type !== 'adjustment')) {
      throw new MovementRule({
        line: requestLine,
        rule: rules.wrongQuantity(type, line.quantity)
      })
    }
    const here = this.#stocked(line.location ?? DEFAULT_LOCATION)
    const there = line.toLocation === undefined ? undefined : this.#stocked(line.toLocation)
    if ((type === 'transfer') !== (there !== undefined)) {
      throw new MovementRule({
        line: requestLine,
        rule: type === 'transfer' ? rules.NEEDS_TO_LOCATION : rules.noToLocation(type)
      })
    }
    if (there?.id === here.id) throw new MovementRule({ line: requestLine, rule: rules.SAME_LOCATION })
    const route = entered < 0 ? { from: ROUTES[type].to, to: ROUTES[type].from } : ROUTES[type]
    const place = (name: string) =>
      name === 'here' ? here : name === 'there' && there !== undefined ? there : this.#location(name)
    const [from, to] = [place(route.from), place(route.to)]
    const enteredQuantity = Math.abs(entered)
    const quantity = this.#inBaseUnit(item, line.unit ?? item.unit, enteredQuantity, requestLine)
    const outgoing = route.from === 'here'
    const lot = this.#lot(item, type, line, quantity, requestLine)
    return {
      requestLine,
      item,
      quantity,
      enteredQuantity,
      enteredUnit: line.unit ?? item.unit,
      locationCode: here.code,
      from: lot === undefined ? this.#shelf(item, from) : [this.#account(item, from, lot)],
      to: (source) => this.#account(item, to, source.lot),
      value: outgoing || line.unitCost === undefined ? null : multiplyMicros(enteredQuantity, toMicros(line.unitCost))
    }
  }

  /** The lot a line names, or undefined when the shelf decides (first expired, first out). */
  #lot(
    item: LedgerItem,
    type: MovementType,
    line: MovementLine,
    quantity: number,
    requestLine: number
  ): LotState | undefined {
    const outgoing = (ROUTES[type].from === 'here') !== line.quantity < 0
    const refuse = (rule: Localised) => new LotRule({ itemCode: item.code, rule, line: requestLine })
    if (item.tracking === 'none') {
      if ((line.lot ?? line.expiresOn) !== undefined) throw refuse(rules.NOT_TRACKED)
      return this.#lots.get(keyOf(item.id, DEFAULT_LOT))
    }
    if (item.tracking === 'serial' && (line.lot === undefined || quantity !== 1_000_000)) {
      throw refuse(rules.ONE_SERIAL)
    }
    if (line.lot === undefined) {
      if (outgoing) return undefined
      throw refuse(rules.NAMES_ITS_LOT)
    }
    const known = this.#lots.get(keyOf(item.id, line.lot))
    if (known !== undefined && known.status !== 'ok' && type === 'issue')
      throw refuse(rules.notIssued(line.lot, known.status))
    if (known !== undefined && item.tracking === 'serial' && !outgoing && this.#inStock(item, known))
      throw refuse(rules.inStockAlready(line.lot))
    if (known !== undefined && (line.expiresOn ?? known.expiresOn) !== known.expiresOn)
      throw refuse(rules.expiresOtherwise(line.lot, known.expiresOn))
    if (known !== undefined) return known
    if (outgoing) throw new LotNotFound({ itemCode: item.code, lot: line.lot })
    const made: LotState = { id: 0, itemId: item.id, code: line.lot, expiresOn: line.expiresOn ?? null, status: 'ok' }
    this.#lots.set(keyOf(item.id, line.lot), made)
    return made
  }

  #inStock(item: LedgerItem, lot: LotState): boolean {
    return [...this.#locations.keys()].some(
      (place) => (this.#accounts.get(accountKey(item.id, place, lot.code))?.onHand ?? 0) > 0
    )
  }

  #shelf(item: LedgerItem, location: LedgerLocation): AccountState[] {
    const usable = (this.#shelves.get(keyOf(item.id, location.code)) ?? []).filter(({ lot }) => lot.status === 'ok')
    return usable.sort(byExpiry)
  }

  #inBaseUnit(item: LedgerItem, unit: string, quantity: number, line: number): number {
    if (unit === item.unit) return quantity
    const own = this.#ratios.get(keyOf(item.id, unit))
    const [base, given] = [this.#units.get(item.unit), this.#units.get(unit)]
    const shared =
      base !== undefined && given !== undefined && base.dimension !== null && base.dimension === given.dimension
    const ratio =
      own ??
      (shared
        ? { numerator: given.numerator * base.denominator, denominator: given.denominator * base.numerator }
        : undefined)
    if (ratio === undefined) throw new UnitNotConvertible({ itemCode: item.code, unit, baseUnit: item.unit })
    const exact = BigInt(quantity) * BigInt(ratio.numerator)
    const converted = Number((exact + BigInt(ratio.denominator) / 2n) / BigInt(ratio.denominator))
    if (converted === 0) throw new MovementRule({ line, rule: rules.tooSmall(fromMicros(quantity), unit, item.unit) })
    if (converted > Number.MAX_SAFE_INTEGER)
      throw new MovementRule({
        line,
        rule: rules.tooLarge(fromMicros(quantity), unit, item.unit)
      })
    return converted
  }

  #item(code: string): LedgerItem {
    const item = this.#items.get(code)
    if (item === undefined) throw new ItemNotFound({ itemCode: code })
    return item
  }

  #location(code: string): LedgerLocation {
    const location = this.#locations.get(code)
    if (location === undefined) throw new LocationNotFound({ location: code })
    return location
  }

  #stocked(code: string): LedgerLocation {
    const location = this.#location(code)
    if (!INTERNAL_KINDS.includes(location.kind)) throw new LocationNotStocked({ location: code, kind: location.kind })
    return location
  }

  #account(item: LedgerItem, location: LedgerLocation, lot: LotState): AccountState {
    const known = this.#accounts.get(accountKey(item.id, location.code, lot.code))
    if (known !== undefined) return known
    const internal = INTERNAL_KINDS.includes(location.kind)
    const made: AccountState = { id: 0, itemId: item.id, location, lot, internal, onHand: 0, reserved: 0 }
    this.#remember(made)
    return made
  }

  #remember(account: AccountState): void {
    const { itemId, location, lot } = account
    this.#accounts.set(accountKey(itemId, location.code, lot.code), account)
    const shelf = this.#shelves.get(keyOf(itemId, location.code))
    if (shelf === undefined) this.#shelves.set(keyOf(itemId, location.code), [account])
    else shelf.push(account)
  }

  /** An item that a reservation or its posting changes, with the account that holds it. */
  hold(
    itemCode: string,
    locationCode: string,
    lotCode: string | undefined
  ): { item: LedgerItem; account: AccountState } {
    const item = this.#item(itemCode)
    const location = this.#stocked(locationCode)
    if (item.tracking !== 'none' && lotCode === undefined)
      throw new LotRule({ itemCode, rule: rules.NAMES_ITS_LOT, line: 1 })
    const lot = this.#lots.get(keyOf(item.id, lotCode ?? DEFAULT_LOT))
    if (lot === undefined) throw new LotNotFound({ itemCode, lot: lotCode ?? DEFAULT_LOT })
    return { item, account: this.#account(item, location, lot) }
  }

  /** As `hold`, for a new reservation. @throws LotRule where the lot may not be issued */
  holdUsable(itemCode: string, locationCode: string, lotCode: string | undefined) {
    const held = this.hold(itemCode, locationCode, lotCode)
    const { code, status } = held.account.lot
    if (status !== 'ok') throw new LotRule({ itemCode, rule: rules.notReserved(code, status), line: 1 })
    return held
  }

  /** Changes what is reserved of an account, in memory and in the database. */
  async reserve(held: { item: LedgerItem; account: AccountState }, quantity: number): Promise<void> {
    const { item, account } = held
    if (quantity > account.onHand - account.reserved) {
      throw new InsufficientStock({
        itemCode: item.code,
        location: account.location.code,
        lot: account.lot.code === DEFAULT_LOT ? null : account.lot.code,
        requested: fromMicros(quantity),
        available: fromMicros(account.onHand - account.reserved),
        line: 1
      })
    }
    account.reserved += quantity
    item.reserved += quantity
    if (account.id === 0) await this.#store.insertAccounts([account])
    await this.#store.saveBalances([account])
    await this.#store.saveTotals([item])
  }
}

const pairOf = (itemCode: string, place: string) => `${itemCode}\n${place}`
const keyOf = (itemId: number, code: string) => `${itemId} ${code}`
const accountKey = (itemId: number, location: string, lot: string) => `${itemId} ${location}\n${lot}`
