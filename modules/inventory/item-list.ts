import { type CompiledQuery, type Kysely, type RawBuilder, type SelectQueryBuilder, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { decodeCursor, encodeCursor } from '../../plugins/contracts.js'
import { fromMicros, MICROS, proportionMicros } from '../../schemas/decimal.js'
import type { ItemQuery, ItemRow, StockStatus, Tracking } from '../../schemas/inventory.js'
import { fold, likePattern, matchPhrase } from './search-text.js'
import { INTERNAL_KINDS, type InventoryTables } from './tables.js'

export interface ListedRow {
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

/** In the order of a row's JSON array. */
const FIELDS = [
  'id',
  'code',
  'name',
  'name_fr',
  'category',
  'unit',
  'tracking',
  'reorder_point',
  'par_level',
  'unit_cost',
  'on_hand',
  'reserved',
  'value',
  'status'
] as const satisfies (keyof ListedRow)[]
type Row = ListedRow
type Cells = [
  Row['id'],
  Row['code'],
  Row['name'],
  Row['name_fr'],
  Row['category'],
  Row['unit'],
  Row['tracking'],
  Row['reorder_point'],
  Row['par_level'],
  Row['unit_cost'],
  Row['on_hand'],
  Row['reserved'],
  Row['value'],
  Row['status']
]

type Sort = NonNullable<ItemQuery['sort']>
const SORTS = {
  itemCode: { column: 'i.code', id: 'i.id', type: 'string' },
  name: { column: 'i.name', id: 'i.id', type: 'string' },
  onHand: { column: 't.on_hand', id: 't.item_id', type: 'number' },
  value: { column: 't.value', id: 't.item_id', type: 'number' }
} as const
const KEYS: Record<keyof typeof SORTS, (row: ListedRow) => string | number> = {
  itemCode: ({ code }) => code,
  name: ({ name }) => name,
  onHand: ({ on_hand }) => on_hand,
  value: ({ value }) => value
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
type RowsQuery = SelectQueryBuilder<
  InventoryTables & {
    i: InventoryTables['items']
    t: InventoryTables['item_totals']
    c: InventoryTables['categories']
  },
  'i' | 't' | 'c',
  ListedRow
>

/** What differs between two lists of one shape. */
interface Values {
  q: string
  category: string
  status: string
  location: string
  key: string | number
  id: number
  limit: number
}

/** Stands for a value while a query is compiled. */
class Slot {
  constructor(readonly name: keyof Values) {}
}
const slot = <Name extends keyof Values>(name: Name): RawBuilder<Values[Name]> => sql`${new Slot(name)}`

/** Building and compiling a query costs more than running it, so that is done once for each combination of filters. */
const compiledLists = new WeakMap<Kysely<unknown>, Map<string, CompiledQuery<ListedRow | Page>>>()

/** SQLite hands a page over as one JSON text: a call for each of its cells costs several times as much. */
interface Page {
  page: string
}

/** A page in keyset order; one row more than asked says that there is another. */
export async function listItems(root: Kysely<unknown>, query: ItemQuery) {
  const { limit = 50, cursor, category, location, status } = query
  const words = fold(query.q ?? '')
  // What was searched comes in the index's own order unless another is asked for: sorting every match is the slow part.
  const order = query.sort ?? (words === '' ? 'itemCode' : 'match')
  const { purpose, keyOf, shape } = orderOf(order)
  const after = decodeCursor(purpose, cursor, shape)
  const values: Partial<Values> = { limit: limit + 1 }
  if (words !== '') values.q = isPostgres(root) ? likePattern(words) : matchPhrase(words)
  if (category !== undefined) values.category = category
  if (status !== undefined) values.status = status
  if (location !== undefined) values.location = location
  if (after !== undefined) Object.assign(values, { key: after[0], id: after.at(-1) })
  const wide = order === 'match' || isPostgres(root) ? [] : await wideFilters(root, values)
  const { rows } = await root.executeQuery(withValues(compiledList(root, { order, values, wide }), values))
  return {
    rows: rows.flatMap((row) => ('page' in row ? parsePage(row.page) : [row])),
    cursorOf: (row: ListedRow) => encodeCursor(purpose, keyOf(row))
  }
}

interface ListPlan {
  order: Sort | 'match'
  /** Which of them are given is what counts. */
  values: Partial<Values>
  /** Filters that so many items pass that walking the order until a page is full beats sorting them. */
  wide: readonly Filter[]
}

type Filter = 'q' | 'category' | 'status'
const PROBES: Record<Filter, RawBuilder<unknown>> = {
  q: sql`item_search where item_search match ${slot('q')}`,
  category: sql`items where category_id = (select id from categories where name = ${slot('category')})`,
  status: sql`item_totals where status = ${slot('status')}`
}
const FILTERS: readonly Filter[] = ['q', 'category', 'status']
/** Items that are sorted in a few milliseconds. */
const NARROW_MAX = 4_000

/** SQLite keeps no statistics of what is in a column, so it is counted, as far as it matters. */
async function wideFilters(root: Kysely<unknown>, values: Partial<Values>): Promise<Filter[]> {
  const given = FILTERS.filter((filter) => values[filter] !== undefined)
  for (const filter of given) {
    const probe = sql<{ items: number }>`select count(*) as items from (
      select 1 from ${PROBES[filter]} limit ${sql.lit(NARROW_MAX + 1)})`.compile(root)
    const { rows } = await root.executeQuery(withValues(probe, values))
    // What one narrow filter lets through is few, whatever the others do.
    if ((rows[0]?.items ?? 0) <= NARROW_MAX) return given.filter((other) => other !== filter)
  }
  return given
}

function compiledList(root: Kysely<unknown>, plan: ListPlan) {
  const known = compiledLists.get(root) ?? new Map<string, CompiledQuery<ListedRow | Page>>()
  compiledLists.set(root, known)
  const shape = `${plan.order} ${Object.keys(plan.values).join()} ${plan.wide.join()}`
  const compiled = known.get(shape) ?? compile(root, plan)
  known.set(shape, compiled)
  return compiled
}

const withValues = <R>(compiled: CompiledQuery<R>, values: Partial<Values>): CompiledQuery<R> => ({
  ...compiled,
  parameters: compiled.parameters.map((parameter) => (parameter instanceof Slot ? values[parameter.name] : parameter))
})

function compile(root: Kysely<unknown>, { order, values, wide }: ListPlan): CompiledQuery<ListedRow | Page> {
  const postgres = isPostgres(root)
  // A plus keeps SQLite from using an index: of a wide filter, or the text index anew for every item.
  const unindexed = (filter: Filter) => sql.raw(wide.includes(filter) ? '+' : '')
  let query: RowsQuery = itemRows(root)
  if (values.q !== undefined) {
    if (wide.includes('q')) query = query.where(sql<boolean>`i.id in ${matches(postgres)}`)
    else {
      query = query.innerJoin(matches(postgres).as<'s'>(sql.ref('s')), (join) =>
        postgres ? join.onRef('s.item_id', '=', 'i.id') : join.on(sql<boolean>`i.id = +s.item_id`)
      )
    }
  }
  if (values.category !== undefined) {
    const id = sql`(select id from ${sql.table('categories')} where name = ${slot('category')})`
    query = query.where(sql<boolean>`${unindexed('category')}i.category_id = ${id}`)
  }
  if (values.status !== undefined) query = query.where(sql<boolean>`${unindexed('status')}t.status = ${slot('status')}`)
  if (values.location !== undefined) query = query.where('i.id', 'in', stockedAt(root))
  const ordered = inOrder(query, order, values.id !== undefined).limit(slot('limit'))
  if (postgres) return ordered.compile()
  const cells = sql.join(FIELDS.map((field) => sql.ref(field)))
  return sql<Page>`select json_group_array(json_array(${cells})) as page from (${ordered})`.compile(root)
}

function inOrder(query: RowsQuery, order: Sort | 'match', after: boolean): RowsQuery {
  if (order === 'match') {
    const rest = after ? query.where(sql<boolean>`s.item_id > ${slot('id')}`) : query
    return rest.orderBy(sql`s.item_id`)
  }
  const { column, id } = SORTS[nameOf(order)]
  const descending = order.startsWith('-')
  const direction = descending ? 'desc' : 'asc'
  const comparison = sql.raw(descending ? '<' : '>')
  const rest = after
    ? query.where(sql<boolean>`(${sql.ref(column)}, ${sql.ref(id)}) ${comparison} (${slot('key')}, ${slot('id')})`)
    : query
  return rest.orderBy(column, direction).orderBy(id, direction)
}

function orderOf(order: Sort | 'match') {
  if (order === 'match') {
    return { purpose: 'items:match', keyOf: ({ id }: ListedRow) => [id], shape: ['number'] as const }
  }
  const name = nameOf(order)
  return {
    purpose: `items:${order}`,
    keyOf: (row: ListedRow) => [KEYS[name](row), row.id],
    shape: [SORTS[name].type, 'number'] as const
  }
}

const nameOf = (sort: Sort) => (sort.startsWith('-') ? sort.slice(1) : sort) as keyof typeof SORTS

/** Ids of the items whose search text holds the words, by the trigram index of either engine. */
const matches = (postgres: boolean) =>
  postgres
    ? sql<{ item_id: number }>`(select item_id from ${sql.table('item_search')} where text like ${slot('q')})`
    : sql<{ item_id: number }>`(select rowid as item_id from item_search where item_search match ${slot('q')})`

const stockedAt = (root: Kysely<unknown>) =>
  root
    .withTables<InventoryTables>()
    .selectFrom('stock_accounts as sa')
    .innerJoin('locations as sl', 'sl.id', 'sa.location_id')
    .innerJoin('stock_balances as sb', 'sb.account_id', 'sa.id')
    .where('sl.code', '=', slot('location'))
    .where('sl.kind', 'in', [...INTERNAL_KINDS])
    .where('sb.on_hand', '>', 0)
    .select('sa.item_id')

function parsePage(page: string): ListedRow[] {
  const rows: Cells[] = JSON.parse(page)
  return rows.map(
    ([id, code, name, name_fr, category, unit, tracking, reorder_point, par_level, unit_cost, ...totals]) => {
      const [on_hand, reserved, value, status] = totals
      return {
        id,
        code,
        name,
        name_fr,
        category,
        unit,
        tracking,
        reorder_point,
        par_level,
        unit_cost,
        on_hand,
        reserved,
        value,
        status
      }
    }
  )
}

/** A list row without what other modules know (on order, days of cover). */
export function presentRow(row: ListedRow, showCost: boolean): Omit<ItemRow, 'onOrder' | 'daysOfCover'> {
  const unitCost = row.on_hand > 0 ? proportionMicros(row.value, MICROS, row.on_hand) : row.unit_cost
  return {
    itemCode: row.code,
    name: row.name,
    nameFr: row.name_fr,
    category: row.category,
    unit: row.unit,
    tracking: row.tracking,
    onHand: fromMicros(row.on_hand),
    reserved: fromMicros(row.reserved),
    available: fromMicros(row.on_hand - row.reserved),
    reorderPoint: row.reorder_point === null ? null : fromMicros(row.reorder_point),
    parLevel: row.par_level === null ? null : fromMicros(row.par_level),
    unitCost: showCost && unitCost !== null ? fromMicros(unitCost) : null,
    value: showCost ? fromMicros(row.value) : null,
    status: row.status
  }
}
