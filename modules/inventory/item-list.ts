import { type Kysely, type RawBuilder, type SelectQueryBuilder, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { decodeCursor, encodeCursor, type Prepared, prepared } from '../../plugins/contracts.js'
import type { ItemQuery } from '../../schemas/inventory.js'
import { faceOf, gathered, itemsWithStock, type ListedItem, type Page, rowsOf, rowText } from './item-rows.js'
import {
  categoryId,
  type Filter,
  type ListPlan,
  matched,
  nameOf,
  type Order,
  planList,
  slot,
  type Values
} from './list-plan.js'
import { anchored, fold, JOINED_TEXT, joinedPattern, likePattern, matchPhrase } from './search-text.js'
import { INTERNAL_KINDS, type InventoryTables } from './tables.js'

const SORTS = {
  itemCode: { column: 'i.code', id: 'i.id', type: 'string' },
  name: { column: 'i.name', id: 'i.id', type: 'string' },
  onHand: { column: 't.on_hand', id: 't.item_id', type: 'number' },
  value: { column: 't.value', id: 't.item_id', type: 'number' }
} as const
const WALK = { column: 'w.name', id: 'w.item_id', type: 'string' } as const
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

/** One for each combination of filters. */
const lists = new Map<string, Prepared<Partial<Values>, Page>>()

/**
 * A page in keyset order; one row more than asked says that there is another.
 * @param planner how the items are looked for; what is found is the same
 */
export async function listItems(root: Kysely<unknown>, query: ItemQuery, planner = planList) {
  const { limit = 50, cursor, category, location, status } = query
  const words = query.q === undefined ? '' : fold(query.q)
  // What was searched comes in the index's own order unless another is asked for: sorting every match is the slow part.
  const order: Order = query.sort ?? (words === '' ? 'itemCode' : 'match')
  const { purpose, keyOf, shape } = orderOf(order)
  const after = decodeCursor(purpose, cursor, shape)
  const values: Partial<Values> = { limit: limit + 1 }
  if (words !== '') {
    values.q = isPostgres(root) ? joinedPattern(words) : matchPhrase(words)
    values.text = isPostgres(root) ? likePattern(words) : anchored(words)
  }
  if (category !== undefined) values.category = category
  if (status !== undefined) values.status = status
  if (location !== undefined) values.location = location
  if (after !== undefined) Object.assign(values, { key: after[0], id: after.at(-1) })
  const plan = await planner(root, order, values)
  const { rows } = await root.executeQuery(preparedList(plan)(root, values))
  return {
    rows: rows[0] === undefined ? [] : rowsOf(rows[0]),
    cursorOf: (row: ListedItem) => encodeCursor(purpose, keyOf(row))
  }
}

function preparedList(plan: ListPlan): Prepared<Partial<Values>, Page> {
  const shape = `${plan.order} ${Object.keys(plan.values).join()} ${plan.narrow ?? ''} ${plan.byText}`
  const query = lists.get(shape) ?? prepared((root) => listQuery(root, plan), { planned: planned(plan) })
  lists.set(shape, query)
  return query
}

/** How fast a way is depends on how many items have the words or the status, which a plan for any value does not know. */
const planned = ({ values: { q, status, category, location } }: ListPlan) =>
  [q, status, category, location].every((filter) => filter === undefined) ? 'once' : 'for its values'

function listQuery(root: Kysely<unknown>, plan: ListPlan): RawBuilder<Page> {
  const { order, values, narrow } = plan
  const postgres = isPostgres(root)
  // A plus keeps SQLite from using an index. By code and by name, an index of the category has the order as well.
  const ordered = order.endsWith('itemCode') || order.endsWith('name')
  const plus = (filter: Filter) =>
    sql.raw(postgres || narrow === filter || (narrow === undefined && filter === 'category' && ordered) ? '' : '+')
  let query: RowsQuery = itemsWithStock(root)
  if (values.q !== undefined) query = matching(query, postgres, plan)
  // Where the words are looked for by an index, that is asked for the category as well.
  if (values.category !== undefined && (values.q === undefined || (plan.byText && !isWalk(plan))))
    query = query.where(sql<boolean>`${plus('category')}i.category_id = ${categoryId()}`)
  if (values.status !== undefined) query = query.where(sql<boolean>`${plus('status')}t.status = ${slot('status')}`)
  if (values.location !== undefined) query = query.where('i.id', 'in', stockedAt(root))
  const page = inOrder(query, plan, postgres).limit(slot('limit')).select(rowText(root).as('line'))
  return gathered(root, sql`${page}`)
}

/** The texts are read along an index that holds them in this order. */
const isWalk = ({ order, byText, narrow }: ListPlan) =>
  byText && narrow === undefined && (order === 'match' || nameOf(order) === 'name')

/** Items whose search text holds the words, by the trigram index of either engine or by the text itself. */
function matching(query: RowsQuery, postgres: boolean, plan: ListPlan): RowsQuery {
  const category = plan.values.category === undefined ? sql`` : sql`and w.category_id = ${categoryId()}`
  if (isWalk(plan)) {
    const texts = sql.table(postgres ? 'item_search' : 'item_texts')
    return query.innerJoin(sql<{ item_id: number; name: string }>`${texts}`.as<'w'>(sql.ref('w')), (join) =>
      join.on(
        sql<boolean>`w.item_id = i.id ${category} and ${postgres ? headHolds() : sql`instr(w.text, ${slot('text')}) > 0`}`
      )
    )
  }
  if (plan.byText) {
    return query.where(
      sql<boolean>`instr((select x.text from item_texts as x where x.item_id = i.id), ${slot('text')}) > 0`
    )
  }
  const ids = postgres
    ? sql<{
        item_id: number
      }>`(select item_id from ${sql.table('item_search')} as w where ${sql.raw(JOINED_TEXT)} like ${slot('q')} ${category})`
    : sql<{
        item_id: number
      }>`(select rowid as item_id from item_search where item_search match ${matched(plan.values)})`
  return query.innerJoin(ids.as<'s'>(sql.ref('s')), (join) =>
    // Without the plus, SQLite may ask the text index anew for every item.
    postgres ? join.onRef('s.item_id', '=', 'i.id') : join.on(sql<boolean>`i.id = +s.item_id`)
  )
}

/** The index by name has no text that is too long for it. */
const headHolds = () => sql`(w.head like ${slot('text')} or (w.head is null and
  (select x.text from ${sql.table('item_search')} as x where x.item_id = w.item_id) like ${slot('text')}))`

function inOrder(query: RowsQuery, plan: ListPlan, postgres: boolean): RowsQuery {
  const { order, values, narrow, byText } = plan
  const after = values.id !== undefined
  // What is narrow is found by that and then sorted, not looked for along the order: an expression is in no index.
  const sorted = (column: string, type: 'string' | 'number') => {
    if (narrow === undefined) return sql`${sql.ref(column)}`
    if (!postgres) return sql`+${sql.ref(column)}`
    return type === 'string' ? sql`(${sql.ref(column)} || '')` : sql`(${sql.ref(column)} + 0)`
  }
  if (order === 'match') {
    const id = isWalk(plan) ? sql`w.item_id` : byText ? sorted('i.id', 'number') : sql`s.item_id`
    const rest = after ? query.where(sql<boolean>`${id} > ${slot('id')}`) : query
    return rest.orderBy(id)
  }
  const names = isWalk(plan) ? WALK : SORTS[nameOf(order)]
  const [column, id] = [sorted(names.column, names.type), sorted(names.id, 'number')]
  const descending = order.startsWith('-')
  const direction = descending ? 'desc' : 'asc'
  const comparison = sql.raw(descending ? '<' : '>')
  const rest = after
    ? query.where(sql<boolean>`(${column}, ${id}) ${comparison} (${slot('key')}, ${slot('id')})`)
    : query
  return rest.orderBy(column, direction).orderBy(id, direction)
}

function orderOf(order: Order) {
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
