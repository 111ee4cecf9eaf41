import { type Kysely, type RawBuilder, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { fromMicros, MICROS, proportionMicros } from '../../schemas/decimal.js'
import type { ItemRow, StockStatus, Tracking } from '../../schemas/inventory.js'
import { IntegerReader, type JsonBytes } from './json-bytes.js'
import type { InventoryTables } from './tables.js'

export interface ItemWithStock {
  id: number
  code: string
  name: string
  name_fr: string | null
  category: string | null
  unit: string
  tracking: Tracking
  reorder_point: number | null
  par_level: number | null
  unit_cost: number | null
  on_hand: number
  reserved: number
  value: number
  status: StockStatus
}

/** Items that are not archived, with their totals and category. */
export const itemsWithStock = (root: Kysely<unknown>) =>
  root
    .withTables<InventoryTables>()
    .selectFrom('items as i')
    .innerJoin('item_totals as t', 't.item_id', 'i.id')
    .leftJoin('categories as c', 'c.id', 'i.category_id')
    .where('i.archived_at', 'is', null)

export const itemRows = (root: Kysely<unknown>) =>
  itemsWithStock(root)
    .select(['i.id', 'i.code', 'i.name', 'i.name_fr', 'c.name as category', 'i.unit', 'i.tracking', 'i.reorder_point'])
    .select(['i.par_level', 'i.unit_cost', 't.on_hand', 't.reserved', 't.value', 't.status'])

type Amounts = Pick<ItemWithStock, 'on_hand' | 'reserved' | 'value' | 'reorder_point' | 'par_level' | 'unit_cost'>
/** What is shown as it is stored. */
const FACE = {
  itemCode: 'i.code',
  name: 'i.name',
  nameFr: 'i.name_fr',
  category: 'c.name',
  unit: 'i.unit',
  tracking: 'i.tracking',
  status: 't.status'
} as const satisfies Partial<Record<keyof ItemRow, string>>
type Face = Pick<ItemRow, keyof typeof FACE>
/** What other modules know of an item. */
type Outlook = Pick<ItemRow, 'onOrder' | 'daysOfCover'>

const unitCostOf = ({ on_hand, value, unit_cost }: Amounts) =>
  on_hand > 0 ? proportionMicros(value, MICROS, on_hand) : unit_cost

function shownAmounts(row: Amounts, showCost: boolean): Omit<ItemRow, keyof Face | keyof Outlook> {
  const unitCost = unitCostOf(row)
  return {
    onHand: fromMicros(row.on_hand),
    reserved: fromMicros(row.reserved),
    available: fromMicros(row.on_hand - row.reserved),
    reorderPoint: row.reorder_point === null ? null : fromMicros(row.reorder_point),
    parLevel: row.par_level === null ? null : fromMicros(row.par_level),
    unitCost: showCost && unitCost !== null ? fromMicros(unitCost) : null,
    value: showCost ? fromMicros(row.value) : null
  }
}

/** An item as it is shown, without what other modules know of it. */
export function presentRow(row: ItemWithStock, showCost: boolean): Omit<ItemRow, keyof Outlook> {
  return {
    itemCode: row.code,
    name: row.name,
    nameFr: row.name_fr,
    category: row.category,
    unit: row.unit,
    tracking: row.tracking,
    ...shownAmounts(row, showCost),
    status: row.status
  }
}

/**
 * A row of a page, its texts still the JSON that the database wrote: to read them only to write them again would cost
 * more than the query.
 */
export interface ListedItem extends Amounts {
  id: number
  code: string
  face: Bytes
}

/** A part of what the database has sent. */
interface Bytes {
  within: Buffer
  from: number
  to: number
}

/** The whole page as one text: a call for each of its cells costs several times as much. SQLite hands over its bytes. */
export interface Page {
  page: Buffer | string | null
}

const NUMBERS = ['i.id', 't.on_hand', 't.reserved', 't.value', 'i.reorder_point', 'i.par_level', 'i.unit_cost'] as const
/** JSON holds no such character unescaped. */
const SEPARATOR = '\u001e'
const SEPARATOR_BYTE = 0x1e
const QUOTE = '"'.charCodeAt(0)
const BACKSLASH = '\\'.charCodeAt(0)
/** The code is what a face begins with. */
const CODE_AT = '{"itemCode":"'.length

/** A row of `itemRows` as one text: the array of its numbers, then the object of its face. */
export function rowText(root: Kysely<unknown>) {
  const numbers = sql.join(NUMBERS.map((column) => sql.ref(column)))
  if (isPostgres(root)) {
    const fields = Object.entries(FACE).map(([field, column]) => sql`${sql.ref(column)} as ${sql.ref(field)}`)
    return sql<string>`json_build_array(${numbers})::text || (select row_to_json(f)::text from (select ${sql.join(fields)}) f)`
  }
  const fields = Object.entries(FACE).flatMap(([field, column]) => [sql.lit(field), sql.ref(column)])
  return sql<string>`json_array(${numbers}) || json_object(${sql.join(fields)})`
}

/** Gathers the texts of `page`, which come in order, into one. */
export function gathered(root: Kysely<unknown>, page: RawBuilder<unknown>): RawBuilder<Page> {
  const postgres = isPostgres(root)
  const rows = sql`${sql.raw(postgres ? 'string_agg' : 'group_concat')}(line, ${sql.lit(SEPARATOR)})`
  return sql<Page>`select cast(${rows} as ${sql.raw(postgres ? 'text' : 'blob')}) as page from (${page}) p`
}

export function rowsOf({ page }: Page): ListedItem[] {
  if (page === null) return []
  const within = typeof page === 'string' ? Buffer.from(page) : page
  const rows: ListedItem[] = []
  const numbers = new IntegerReader(within, 0)
  while (numbers.at < within.length) {
    numbers.at++
    const id = numbers.required('id')
    const on_hand = numbers.required('on_hand')
    const reserved = numbers.required('reserved')
    const value = numbers.required('value')
    const reorder_point = numbers.next()
    const par_level = numbers.next()
    const unit_cost = numbers.next()
    const from = numbers.at
    const separator = within.indexOf(SEPARATOR_BYTE, from)
    const to = separator === -1 ? within.length : separator
    const code = codeAt(within, from + CODE_AT)
    rows.push({ id, code, face: { within, from, to }, on_hand, reserved, value, reorder_point, par_level, unit_cost })
    numbers.at = to + 1
  }
  return rows
}

function codeAt(bytes: Buffer, from: number): string {
  let to = from
  let escaped = false
  for (; bytes[to] !== QUOTE; to++) {
    if (bytes[to] !== BACKSLASH) continue
    escaped = true
    to++
  }
  return escaped ? JSON.parse(bytes.toString('utf8', from - 1, to + 1)) : bytes.toString('utf8', from, to)
}

export const faceOf = ({ face }: ListedItem): Face => JSON.parse(face.within.toString('utf8', face.from, face.to))

const NAMES = {
  onHand: Buffer.from(',"onHand":'),
  reserved: Buffer.from(',"reserved":'),
  available: Buffer.from(',"available":'),
  onOrder: Buffer.from(',"onOrder":'),
  reorderPoint: Buffer.from(',"reorderPoint":'),
  parLevel: Buffer.from(',"parLevel":'),
  unitCost: Buffer.from(',"unitCost":'),
  value: Buffer.from(',"value":'),
  daysOfCover: Buffer.from(',"daysOfCover":')
}

/** Writes the row as JSON; the fields and what may be seen are those of `presentRow`. */
export function writeRow(out: JsonBytes, row: ListedItem, showCost: boolean, { onOrder, daysOfCover }: Outlook): void {
  const { within, from, to } = row.face
  // Without the brace that ends it.
  out.copy(within, from, to - 1)
  out.copy(NAMES.onHand).micros(row.on_hand)
  out.copy(NAMES.reserved).micros(row.reserved)
  out.copy(NAMES.available).micros(row.on_hand - row.reserved)
  out.copy(NAMES.onOrder).number(onOrder)
  out.copy(NAMES.reorderPoint).micros(row.reorder_point)
  out.copy(NAMES.parLevel).micros(row.par_level)
  out.copy(NAMES.unitCost).micros(showCost ? unitCostOf(row) : null)
  out.copy(NAMES.value).micros(showCost ? row.value : null)
  out.copy(NAMES.daysOfCover).number(daysOfCover).text('}')
}
