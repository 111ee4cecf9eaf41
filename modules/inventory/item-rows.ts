import { type Kysely, type RawBuilder, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { fromMicros, MICROS, proportionMicros } from '../../schemas/decimal.js'
import type { ItemRow, StockStatus, Tracking } from '../../schemas/inventory.js'
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

/** Items that are not archived, with their totals. */
export const itemRows = (root: Kysely<unknown>) =>
  root
    .withTables<InventoryTables>()
    .selectFrom('items as i')
    .innerJoin('item_totals as t', 't.item_id', 'i.id')
    .leftJoin('categories as c', 'c.id', 'i.category_id')
    .where('i.archived_at', 'is', null)
    .select(['i.id', 'i.code', 'i.name', 'i.name_fr', 'c.name as category', 'i.unit', 'i.tracking', 'i.reorder_point'])
    .select(['i.par_level', 'i.unit_cost', 't.on_hand', 't.reserved', 't.value', 't.status'])

type Amounts = Pick<ItemWithStock, 'on_hand' | 'reserved' | 'value' | 'reorder_point' | 'par_level' | 'unit_cost'>
/** What is shown as it is stored. */
const FACE = {
  itemCode: 'code',
  name: 'name',
  nameFr: 'name_fr',
  category: 'category',
  unit: 'unit',
  tracking: 'tracking',
  status: 'status'
} as const satisfies Partial<Record<keyof ItemRow, keyof ItemWithStock>>
type Face = Pick<ItemRow, keyof typeof FACE>
/** What other modules know of an item. */
type Outlook = Pick<ItemRow, 'onOrder' | 'daysOfCover'>

function shownAmounts(row: Amounts, showCost: boolean): Omit<ItemRow, keyof Face | keyof Outlook> {
  const unitCost = row.on_hand > 0 ? proportionMicros(row.value, MICROS, row.on_hand) : row.unit_cost
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
  face: string
}

/** The whole page as two texts: a call for each of its cells costs several times as much. */
export interface Page {
  faces: string | null
  cells: string | null
}

type Cells = [id: number, code: string, on_hand: number, reserved: number, value: number, ...levels: (number | null)[]]
const CELLS = ['id', 'code', 'on_hand', 'reserved', 'value', 'reorder_point', 'par_level', 'unit_cost'] as const
/** JSON holds no such character unescaped. */
const SEPARATOR = '\u001e'

/** Gathers the rows of `page`, which come in order, into one. */
export function gathered(root: Kysely<unknown>, page: RawBuilder<unknown>): RawBuilder<Page> {
  const cells = sql.join(CELLS.map((cell) => sql.ref(cell)))
  if (isPostgres(root)) {
    const face = sql.join(Object.entries(FACE).map(([field, column]) => sql`${sql.ref(column)} as ${sql.ref(field)}`))
    return sql<Page>`
      select string_agg((select row_to_json(f)::text from (select ${face}) f), ${sql.lit(SEPARATOR)}) as faces,
        json_agg(json_build_array(${cells}))::text as cells
      from (${page}) p`
  }
  const face = sql.join(Object.entries(FACE).flatMap(([field, column]) => [sql.lit(field), sql.ref(column)]))
  return sql<Page>`
    select group_concat(json_object(${face}), ${sql.lit(SEPARATOR)}) as faces,
      json_group_array(json_array(${cells})) as cells
    from (${page})`
}

export function rowsOf({ faces, cells }: Page): ListedItem[] {
  if (faces === null || cells === null) return []
  const texts = faces.split(SEPARATOR)
  const rows: Cells[] = JSON.parse(cells)
  return rows.map(
    ([id, code, on_hand, reserved, value, reorder_point = null, par_level = null, unit_cost = null], i) => ({
      id,
      code,
      face: texts[i] ?? '',
      on_hand,
      reserved,
      value,
      reorder_point,
      par_level,
      unit_cost
    })
  )
}

export const faceOf = ({ face }: ListedItem): Face => JSON.parse(face)

/** The row as JSON; the fields and what may be seen are those of `presentRow`. */
export function rowText(row: ListedItem, showCost: boolean, { onOrder, daysOfCover }: Outlook): string {
  const { onHand, reserved, available, reorderPoint, parLevel, unitCost, value } = shownAmounts(row, showCost)
  return (
    `${row.face.slice(0, -1)},"onHand":${onHand},"reserved":${reserved},"available":${available},"onOrder":${onOrder}` +
    `,"reorderPoint":${reorderPoint},"parLevel":${parLevel},"unitCost":${unitCost},"value":${value},"daysOfCover":${daysOfCover}}`
  )
}
