import { type Kysely, type RawBuilder, type SelectQueryBuilder, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { decodeCursor, encodeCursor, type Prepared, prepared, slots } from '../../plugins/contracts.js'
import type { ItemQuery } from '../../schemas/inventory.js'
import { faceOf, gathered, itemsWithStock, type ListedItem, type Page, rowsOf, rowTexts } from './item-rows.js'
import { anchored, fold, likePattern, matchPhrase } from './search-text.js'
import { INTERNAL_KINDS, type InventoryTables } from './tables.js'

type Sort = NonNullable<ItemQuery['sort']>
const SORTS = {
  itemCode: { column: 'i.code', id: 'i.id', type: 'string' },
  name: { column: 'i.name', id: 'i.id', type: 'string' },
  onHand: { column: 't.on_hand', id: 't.item_id', type: 'number' },
  value: { column: 't.value', id: 't.item_id', type: 'number' }
} as const
const KEYS: Record<keyof typeof SORTS, (row: ListedItem) => string | number> = {
  itemCode: ({ code }) => code,
  name: (row) => faceOf(row).name,
  onHand: ({ on_hand }) => on_hand,
  value: ({ value }) => value
}

type RowsQuery = SelectQueryBuilder<
  InventoryTables & {
    i: InventoryTables['items']
    t: InventoryTables['item_totals']
    c: InventoryTables['categories']
  },
  'i' | 't' | 'c',
  object
>

/** What differs between two lists of one shape. */
interface Values {
  /** For the text index. */
  q: string
  /** For the text itself. */
  text: string
  category: string
  status: string
  location: string
  key: string | number
  id: number
  limit: number
}

const slot = slots<Values>()
/** One for each combination of filters. */
const lists = new Map<string, Prepared<Partial<Values>, Page>>()

/** A page in keyset order; one row more than asked says that there is another. */
export async function listItems(root: Kysely<unknown>, query: ItemQuery) {
  const { limit = 50, cursor, category, location, status } = query
  const words = query.q === undefined ? '' : fold(query.q)
  // What was searched comes in the index's own order unless another is asked for: sorting every match is the slow part.
  const order: Sort | 'match' = query.sort ?? (words === '' ? 'itemCode' : 'match')
  const { purpose, keyOf, shape } = orderOf(order)
  const after = decodeCursor(purpose, cursor, shape)
  const values: Partial<Values> = { limit: limit + 1 }
  if (words !== '') {
    values.q = isPostgres(root) ? likePattern(words) : matchPhrase(words)
    values.text = anchored(words)
  }
  if (category !== undefined) values.category = category
  if (status !== undefined) values.status = status
  if (location !== undefined) values.location = location
  if (after !== undefined) Object.assign(values, { key: after[0], id: after.at(-1) })
  const plan: ListPlan = {
    order,
    values,
    ...(isPostgres(root) ? PLANNED_BY_THE_SERVER : await planList(root, order, values))
  }
  const { rows } = await root.executeQuery(preparedList(plan)(root, values))
  return {
    rows: rows.flatMap(rowsOf),
    cursorOf: (row: ListedItem) => encodeCursor(purpose, keyOf(row))
  }
}

interface ListPlan {
  order: Sort | 'match'
  /** Which of them are given is what counts. */
  values: Partial<Values>
  /** The filter that few items pass: they are found by it and sorted. Otherwise the order is walked until a page is full. */
  narrow: Filter | undefined
  /** Looks for the words in each text instead of in the index, which takes its time for words that many items have. */
  byText: boolean
}
const PLANNED_BY_THE_SERVER = { narrow: undefined, byText: false }

type Filter = 'status' | 'category' | 'q'
const FILTERS: readonly Filter[] = ['status', 'category', 'q']
/** Items that are sorted in a few milliseconds. */
const NARROW_MAX = 4_000
const probe = (source: RawBuilder<unknown>) =>
  prepared<Partial<Values>, { items: number }>(
    () => sql`select count(*) as items from (select 1 from ${source} limit ${sql.lit(NARROW_MAX + 1)})`
  )
const PROBES: Record<Filter, Prepared<Partial<Values>, { items: number }>> = {
  status: probe(sql`item_totals where status = ${slot('status')}`),
  category: probe(sql`items where category_id = (select id from categories where name = ${slot('category')})`),
  q: probe(sql`item_search where item_search match ${slot('q')}`)
}

/** SQLite keeps no statistics of what is in a column, so it is counted, as far as it matters. */
async function planList(root: Kysely<unknown>, order: Sort | 'match', values: Partial<Values>) {
  let narrow: Filter | undefined
  for (const filter of FILTERS) {
    // In its own order the index is read only until the page is full.
    if (values[filter] === undefined || (filter === 'q' && order === 'match')) continue
    const { rows } = await root.executeQuery(PROBES[filter](root, values))
    if ((rows[0]?.items ?? 0) > NARROW_MAX) continue
    narrow = filter
    break
  }
  const byText = values.q !== undefined && narrow !== 'q' && (order !== 'match' || narrow !== undefined)
  return { narrow, byText }
}

function preparedList(plan: ListPlan): Prepared<Partial<Values>, Page> {
  const shape = `${plan.order} ${Object.keys(plan.values).join()} ${plan.narrow ?? ''} ${plan.byText}`
  const query = lists.get(shape) ?? prepared((root) => listQuery(root, plan))
  lists.set(shape, query)
  return query
}

function listQuery(root: Kysely<unknown>, plan: ListPlan): RawBuilder<Page> {
  const { order, values, narrow } = plan
  const postgres = isPostgres(root)
  // A plus keeps SQLite from using an index. By code and by name, an index of the category has the order as well.
  const ordered = order.endsWith('itemCode') || order.endsWith('name')
  const plus = (filter: Filter) =>
    sql.raw(postgres || narrow === filter || (narrow === undefined && filter === 'category' && ordered) ? '' : '+')
  let query: RowsQuery = itemsWithStock(root)
  if (values.q !== undefined) query = matching(query, postgres, plan.byText)
  if (values.category !== undefined) {
    const id = sql`(select id from ${sql.table('categories')} where name = ${slot('category')})`
    query = query.where(sql<boolean>`${plus('category')}i.category_id = ${id}`)
  }
  if (values.status !== undefined) query = query.where(sql<boolean>`${plus('status')}t.status = ${slot('status')}`)
  if (values.location !== undefined) query = query.where('i.id', 'in', stockedAt(root))
  const page = inOrder(query, plan).limit(slot('limit')).select(rowTexts(root))
  return gathered(root, sql`${page}`)
}

/** Items whose search text holds the words, by the trigram index of either engine or by the text itself. */
function matching(query: RowsQuery, postgres: boolean, byText: boolean): RowsQuery {
  if (byText) {
    return query.where(
      sql<boolean>`instr((select x.text from item_texts as x where x.item_id = i.id), ${slot('text')}) > 0`
    )
  }
  const ids = postgres
    ? sql<{ item_id: number }>`(select item_id from ${sql.table('item_search')} where text like ${slot('q')})`
    : sql<{ item_id: number }>`(select rowid as item_id from item_search where item_search match ${slot('q')})`
  return query.innerJoin(ids.as<'s'>(sql.ref('s')), (join) =>
    // Without the plus, SQLite may ask the text index anew for every item.
    postgres ? join.onRef('s.item_id', '=', 'i.id') : join.on(sql<boolean>`i.id = +s.item_id`)
  )
}

function inOrder(query: RowsQuery, { order, values, narrow, byText }: ListPlan): RowsQuery {
  const after = values.id !== undefined
  // The plus: what is narrow is found by that and then sorted, not looked for along the order.
  const plus = sql.raw(narrow === undefined ? '' : '+')
  if (order === 'match') {
    const id = byText ? sql`${plus}i.id` : sql`s.item_id`
    const rest = after ? query.where(sql<boolean>`${id} > ${slot('id')}`) : query
    return rest.orderBy(id)
  }
  const names = SORTS[nameOf(order)]
  const [column, id] = [sql`${plus}${sql.ref(names.column)}`, sql`${plus}${sql.ref(names.id)}`]
  const descending = order.startsWith('-')
  const direction = descending ? 'desc' : 'asc'
  const comparison = sql.raw(descending ? '<' : '>')
  const rest = after
    ? query.where(sql<boolean>`(${column}, ${id}) ${comparison} (${slot('key')}, ${slot('id')})`)
    : query
  return rest.orderBy(column, direction).orderBy(id, direction)
}

function orderOf(order: Sort | 'match') {
  if (order === 'match') {
    return { purpose: 'items:match', keyOf: ({ id }: ListedItem) => [id], shape: ['number'] as const }
  }
  const name = nameOf(order)
  return {
    purpose: `items:${order}`,
    keyOf: (row: ListedItem) => [KEYS[name](row), row.id],
    shape: [SORTS[name].type, 'number'] as const
  }
}

const nameOf = (sort: Sort) => (sort.startsWith('-') ? sort.slice(1) : sort) as keyof typeof SORTS

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
