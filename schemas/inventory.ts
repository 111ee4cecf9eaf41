import { type Static, type TEnum, Type } from 'typebox'
import {
  Amount,
  Closed,
  Code,
  Day,
  Decimal,
  Instant,
  List,
  Name,
  Nullable,
  PageQuery,
  Quantity,
  Text,
  Uuid
} from './common.js'

import { BOOKKEEPING, personal } from './personal.js'

const oneOf = <V extends string[]>(...values: V): TEnum<V> => Type.Enum<V>(values)

const UnitCode = Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9_.-]{0,19}$' })
const Barcode = Type.String({ pattern: '^[A-Za-z0-9._-]{4,64}$' })
export const StockStatus = oneOf('in', 'low', 'out', 'over')
export type StockStatus = Static<typeof StockStatus>
export const Tracking = oneOf('none', 'lot', 'serial')
export type Tracking = Static<typeof Tracking>

const itemFields = {
  name: Name,
  nameFr: Type.Optional(Nullable(Name)),
  category: Type.Optional(Nullable(Name)),
  barcodes: Type.Optional(Type.Array(Barcode, { maxItems: 20, uniqueItems: true })),
  shelfLifeDays: Type.Optional(Nullable(Type.Integer({ minimum: 1, maximum: 36_500 }))),
  reorderPoint: Type.Optional(Nullable(Amount)),
  parLevel: Type.Optional(Nullable(Amount)),
  unitCost: Type.Optional(Nullable(Amount))
}
/**
 * Codes that no item may have: `/api/inventory/units` and the like are routes of their own, and clients resolve dots before they
 * ask. Held against the routes by a test.
 */
export const RESERVED_ITEM_CODES: ReadonlySet<string> = new Set(['.', '..', 'aggregate', 'categories', 'lots', 'units'])

export const NewItem = Closed({ itemCode: Code, unit: UnitCode, tracking: Type.Optional(Tracking), ...itemFields })
export type NewItem = Static<typeof NewItem>
/** The base unit and the tracking are what the ledger counts in, so they never change. */
export const ItemPatch = Closed({ ...itemFields, name: Type.Optional(Name) })
export type ItemPatch = Static<typeof ItemPatch>
export const ItemParams = Closed({ itemCode: Code })

export const ItemRow = Closed({
  itemCode: Type.String(),
  name: Type.String(),
  nameFr: Nullable(Type.String()),
  category: Nullable(Type.String()),
  unit: Type.String(),
  tracking: Tracking,
  onHand: Type.Number(),
  reserved: Type.Number(),
  available: Type.Number(),
  onOrder: Type.Number(),
  reorderPoint: Nullable(Type.Number()),
  parLevel: Nullable(Type.Number()),
  unitCost: Nullable(Type.Number({ description: 'Moving average; null without the role that sees cost' })),
  value: Nullable(Type.Number()),
  status: StockStatus,
  daysOfCover: Nullable(
    Type.Number({ description: 'Available stock over the forecast daily use; null without a forecast' })
  )
})
export type ItemRow = Static<typeof ItemRow>
export const Item = Closed({
  ...ItemRow.properties,
  barcodes: Type.Array(Type.String()),
  shelfLifeDays: Nullable(Type.Integer()),
  units: Type.Array(Closed({ unit: Type.String(), numerator: Type.Integer(), denominator: Type.Integer() })),
  locations: Type.Array(
    Closed({
      location: Type.String(),
      lot: Nullable(Type.String()),
      expiresOn: Nullable(Type.String()),
      onHand: Type.Number(),
      reserved: Type.Number()
    })
  ),
  createdAt: Instant,
  updatedAt: Instant
})
export type Item = Static<typeof Item>

const ItemSort = oneOf('itemCode', '-itemCode', 'name', '-name', 'onHand', '-onHand', 'value', '-value')
export const ItemQuery = Closed({
  ...PageQuery,
  q: Type.Optional(Type.String({ minLength: 1, maxLength: 200, description: 'Part of a code, barcode or name' })),
  category: Type.Optional(Name),
  location: Type.Optional(Code),
  status: Type.Optional(StockStatus),
  sort: Type.Optional(ItemSort)
})
export type ItemQuery = Static<typeof ItemQuery>
export const ItemList = List(ItemRow)

export const Category = Closed({ name: Type.String(), nameFr: Nullable(Type.String()), items: Type.Integer() })
export const CategoryList = List(Category)
export const NewCategory = Closed({ name: Name, nameFr: Type.Optional(Nullable(Name)) })

const Dimension = oneOf('count', 'mass', 'volume', 'length', 'area')
export const Unit = Closed({
  unit: Type.String(),
  name: Type.String(),
  nameFr: Nullable(Type.String()),
  dimension: Nullable(Dimension),
  numerator: Type.Integer({
    description: 'One of this unit is numerator/denominator of the dimension’s base (each, g, ml, m, m2)'
  }),
  denominator: Type.Integer()
})
export type Unit = Static<typeof Unit>
export const UnitList = List(Unit)
const Ratio = Type.Integer({ minimum: 1, maximum: 1_000_000_000 })
export const NewUnit = Closed({
  unit: UnitCode,
  name: Name,
  nameFr: Type.Optional(Nullable(Name)),
  dimension: Type.Optional(Nullable(Dimension)),
  numerator: Type.Optional(Ratio),
  denominator: Type.Optional(Ratio)
})
export type NewUnit = Static<typeof NewUnit>
export const ItemUnitParams = Closed({ itemCode: Code, unit: UnitCode })
export const ItemUnitBody = Closed(
  { numerator: Ratio, denominator: Type.Optional(Ratio) },
  'One of this unit is numerator/denominator of the item’s base unit'
)

export const LotStatus = oneOf('ok', 'quarantine', 'recalled')
export type LotStatus = Static<typeof LotStatus>
export const Lot = Closed({
  itemCode: Type.String(),
  lot: Type.String(),
  expiresOn: Nullable(Type.String()),
  status: LotStatus,
  onHand: Type.Number()
})
export const LotList = List(Lot)
export const LotQuery = Closed({ ...PageQuery, itemCode: Type.Optional(Code), expiresBefore: Type.Optional(Day) })
export const LotBody = Closed({
  itemCode: Code,
  lot: Code,
  expiresOn: Type.Optional(Nullable(Day)),
  status: Type.Optional(LotStatus)
})
export type LotBody = Static<typeof LotBody>

export const LocationKind = oneOf(
  'internal',
  'transit',
  'supplier',
  'customer',
  'consumption',
  'waste',
  'production',
  'variance',
  'opening'
)
export type LocationKind = Static<typeof LocationKind>
export const Location = Closed({
  location: Type.String(),
  name: Type.String(),
  nameFr: Nullable(Type.String()),
  kind: LocationKind,
  parent: Nullable(Type.String()),
  path: Type.Array(Type.String(), { description: 'Codes from the root to this location' }),
  walkSequence: Type.Integer()
})
export type Location = Static<typeof Location>
export const LocationList = List(Location)
export const NewLocation = Closed({
  location: Code,
  name: Name,
  nameFr: Type.Optional(Nullable(Name)),
  kind: Type.Optional(oneOf('internal', 'transit')),
  parent: Type.Optional(Nullable(Code)),
  walkSequence: Type.Optional(Type.Integer({ minimum: 0, maximum: 1_000_000_000 }))
})
export type NewLocation = Static<typeof NewLocation>
export const LocationParams = Closed({ location: Code })
const StockAtLocation = Closed({
  itemCode: Type.String(),
  name: Type.String(),
  unit: Type.String(),
  lot: Nullable(Type.String()),
  onHand: Type.Number(),
  reserved: Type.Number()
})
export const StockAtLocationList = List(StockAtLocation)

export const MovementType = oneOf('receipt', 'issue', 'transfer', 'adjustment', 'waste', 'return', 'opening')
export type MovementType = Static<typeof MovementType>
export const MovementLine = Closed({
  itemCode: Code,
  quantity: { ...Decimal, description: 'Above zero; an adjustment may be negative' },
  unit: Type.Optional(UnitCode),
  location: Type.Optional(Code),
  toLocation: Type.Optional(Code),
  lot: Type.Optional(Code),
  expiresOn: Type.Optional(Day),
  unitCost: Type.Optional(Amount)
})
export type MovementLine = Static<typeof MovementLine>
export const LINES_MAX = 1000
export const NewMovement = Closed({
  type: MovementType,
  occurredAt: Type.Optional({
    ...Instant,
    description: 'ISO 8601 with an offset, from 1970-01-01 to now, which it is by default'
  }),
  reason: Type.Optional(Text),
  reference: Type.Optional(Type.String({ maxLength: 200, pattern: '^[^\\u0000-\\u001f\\u007f]*$' })),
  lines: Type.Array(MovementLine, { minItems: 1, maxItems: LINES_MAX })
})
export type NewMovement = Static<typeof NewMovement>
const PostedLine = Closed({
  line: Type.Integer(),
  itemCode: Type.String(),
  quantity: Type.Number({ description: 'In the item’s base unit' }),
  unit: Type.String(),
  enteredQuantity: Type.Number(),
  enteredUnit: Type.String(),
  from: Type.String(),
  to: Type.String(),
  lot: Nullable(Type.String()),
  unitCost: Nullable(Type.Number()),
  value: Nullable(Type.Number())
})
export const Movement = Closed({
  id: Uuid,
  type: MovementType,
  occurredAt: Instant,
  recordedAt: Instant,
  actor: personal(Type.String(), BOOKKEEPING),
  reason: Nullable(Type.String()),
  reference: Nullable(Type.String()),
  reverses: Nullable(Uuid),
  reversedBy: Nullable(Uuid),
  importId: Nullable(Uuid),
  requestId: Type.String(),
  lines: Type.Array(PostedLine)
})
export type Movement = Static<typeof Movement>
export const MovementParams = Closed({ id: Uuid })
export const MovementList = List(Movement)
export const MovementQuery = Closed({
  ...PageQuery,
  itemCode: Type.Optional(Code),
  type: Type.Optional(MovementType),
  from: Type.Optional(Instant),
  to: Type.Optional(Instant),
  reference: Type.Optional(Type.String({ minLength: 1, maxLength: 200 }))
})
export type MovementQuery = Static<typeof MovementQuery>
export const Reversal = Closed({ reason: Type.Optional(Text) })

const ItemMovement = Closed({
  movementId: Uuid,
  type: MovementType,
  occurredAt: Instant,
  recordedAt: Instant,
  quantity: Type.Number({ description: 'Signed change of stock on hand; of a transfer, what was moved' }),
  from: Type.String(),
  to: Type.String(),
  lot: Nullable(Type.String()),
  unitCost: Nullable(Type.Number()),
  reference: Nullable(Type.String()),
  reason: Nullable(Type.String())
})
export const ItemMovementList = List(ItemMovement)

export const StockQuery = Closed({
  ...PageQuery,
  asOf: Type.Optional(Type.Union([Instant, Day])),
  itemCode: Type.Optional(Code)
})
const StockAsOf = Closed({
  itemCode: Type.String(),
  name: Type.String(),
  unit: Type.String(),
  onHand: Type.Number()
})
export const StockAsOfList = List(StockAsOf)

export const Mismatch = Closed({
  itemCode: Type.String(),
  what: Type.String(),
  stored: Type.Number(),
  recomputed: Type.Number()
})
export type Mismatch = Static<typeof Mismatch>
export const Verification = Closed({
  ok: Type.Boolean(),
  transactions: Type.Integer(),
  moves: Type.Integer(),
  mismatches: Type.Array(Mismatch)
})
export type Verification = Static<typeof Verification>

const ReservationStatus = oneOf('pending', 'posted', 'voided')
export const NewReservation = Closed({
  itemCode: Code,
  quantity: Quantity,
  location: Type.Optional(Code),
  lot: Type.Optional(Code),
  reference: Type.Optional(Type.String({ maxLength: 200, pattern: '^[^\\u0000-\\u001f\\u007f]*$' })),
  expiresAt: Type.Optional(Instant)
})
export type NewReservation = Static<typeof NewReservation>
export const Reservation = Closed({
  id: Uuid,
  itemCode: Type.String(),
  quantity: Type.Number(),
  location: Type.String(),
  lot: Nullable(Type.String()),
  reference: Nullable(Type.String()),
  status: ReservationStatus,
  expiresAt: Nullable(Instant),
  movementId: Nullable(Uuid),
  createdAt: Instant
})
export type Reservation = Static<typeof Reservation>
export const ReservationList = List(Reservation)
export const ReservationQuery = Closed({
  ...PageQuery,
  status: Type.Optional(ReservationStatus),
  itemCode: Type.Optional(Code)
})

export const ImportKind = oneOf('items', 'movements')
export type ImportKind = Static<typeof ImportKind>
export const ImportParams = Closed({ kind: ImportKind })
export const ImportQuery = Closed({
  dryRun: Type.Optional(Type.Boolean()),
  map: Type.Optional(
    Type.String({
      maxLength: 2000,
      pattern: '^[A-Za-z]+:[^,]+(,[A-Za-z]+:[^,]+)*$',
      description: 'field:Header pairs, such as itemCode:StockCode,quantity:Quantity'
    })
  ),
  type: Type.Optional({ ...MovementType, description: 'The type of every row that has none of its own' })
})
export type ImportQuery = Static<typeof ImportQuery>
export const ImportError = Closed({
  row: Type.Integer({ description: '1 is the header of a CSV file' }),
  column: Nullable(Type.String()),
  code: Type.String(),
  message: Type.String()
})
export type ImportError = Static<typeof ImportError>
export const ImportReport = Closed({
  kind: ImportKind,
  dryRun: Type.Boolean(),
  rows: Type.Integer(),
  accepted: Type.Integer(),
  created: Type.Integer({ description: 'Items, or ledger transactions' }),
  updated: Type.Integer(),
  errors: Type.Array(ImportError)
})
export type ImportReport = Static<typeof ImportReport>
export const ImportRun = Closed({
  id: Uuid,
  kind: ImportKind,
  status: oneOf('running', 'succeeded', 'failed', 'undoing', 'undone'),
  rows: Type.Integer(),
  done: Type.Integer(),
  createdAt: Instant,
  finishedAt: Nullable(Instant)
})
export type ImportRun = Static<typeof ImportRun>
export const ImportRunList = List(ImportRun)
export const ImportRunParams = Closed({ id: Uuid })
export const ExportKind = oneOf('items', 'movements', 'stock')
export type ExportKind = Static<typeof ExportKind>
export const ExportParams = Closed({ kind: ExportKind })
export const ExportQuery = Closed({ format: Type.Optional(oneOf('csv', 'ndjson')) })

/** Stock of these items changed on these days (UTC). Written once for each transaction, or for each batch of an import. */
export const StockMoved = {
  topic: 'inventory.stock.moved',
  payload: Closed({ itemCodes: Type.Array(Type.String()), fromDay: Day, toDay: Day })
} as const
export type StockMoved = Static<typeof StockMoved.payload>
