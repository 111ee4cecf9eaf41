import { type Kysely, type RawBuilder, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { type Prepared, prepared, slots } from '../../plugins/contracts.js'
import type { ItemQuery } from '../../schemas/inventory.js'
import { categoryMark } from './search-text.js'

export type Order = NonNullable<ItemQuery['sort']> | 'match'

/** What differs between two lists of one shape. */
export interface Values {
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

export interface ListPlan {
  order: Order
  /** Which of them are given is what counts. */
  values: Partial<Values>
  /** The filter that few items pass: they are found by it and sorted. Otherwise the order is walked until a page is full. */
  narrow: Filter | undefined
  /** Looks for the words in each text instead of in the index, which takes its time for words that many items have. */
  byText: boolean
}

export type Filter = 'status' | 'category' | 'q'
const FILTERS: readonly Filter[] = ['status', 'category', 'q']
/** Items that are sorted in a few milliseconds. */
const NARROW_MAX = 4_000
/** Words and a category together: to walk an order with both takes much longer, so that more are worth sorting. */
const NARROW_TWICE_MAX = 20_000
const narrowMax = (filter: Filter, values: Partial<Values>) =>
  filter === 'q' && values.category !== undefined ? NARROW_TWICE_MAX : NARROW_MAX

export const slot = slots<Values>()

/** The category's id; none has 0. */
export const categoryId = () =>
  sql<number>`coalesce((select id from ${sql.table('categories')} where name = ${slot('category')}), 0)`

/** What FTS5 looks for: the words, with a category the mark of that too. */
export const matched = (values: Partial<Values>): RawBuilder<string> =>
  values.category === undefined
    ? sql`${slot('q')}`
    : sql`(select '"' || ${sql.raw(categoryMark('c.id'))} || '" AND ' from (select ${categoryId()} as id) as c) || ${slot('q')}`

type Probe = Prepared<Partial<Values>, { items: number }>
/** At most `limit`, which is one more than counts as few; SQLite would prepare anew for each value of a bare parameter. */
const probe = (source: RawBuilder<unknown>): Probe =>
  prepared(() => sql`select count(*) as items from (select 1 from ${source} limit ${slot('limit')} + 0) as few`)
const PROBES: Record<Filter, Probe> = {
  status: probe(sql`${sql.table('item_totals')} where status = ${slot('status')}`),
  category: probe(sql`${sql.table('items')} where category_id = ${categoryId()}`),
  q: probe(sql`item_search where item_search match ${slot('q')}`)
}
const PROBE_TWICE = probe(sql`item_search where item_search match ${matched({ category: '' })}`)

/** Whether so few items pass the filter that sorting them is the fastest. */
async function isNarrow(root: Kysely<unknown>, filter: Filter, values: Partial<Values>): Promise<boolean> {
  const counted = filter === 'q' && values.category !== undefined ? PROBE_TWICE : PROBES[filter]
  const max = narrowMax(filter, values)
  const { rows } = await root.executeQuery(counted(root, { ...values, limit: max + 1 }))
  return (rows[0]?.items ?? 0) <= max
}

/** How a page of the list is found: by the order, by a narrow filter, or by the text. */
export async function planList(root: Kysely<unknown>, order: Order, values: Partial<Values>): Promise<ListPlan> {
  const planned = isPostgres(root) ? await planOnPostgres(root, order, values) : await planOnSqlite(root, order, values)
  return { order, values, ...planned }
}

type Planned = Pick<ListPlan, 'narrow' | 'byText'>

/** SQLite keeps no statistics of what is in a column, so it is counted, as far as it matters. */
async function planOnSqlite(root: Kysely<unknown>, order: Order, values: Partial<Values>): Promise<Planned> {
  const { q, category } = values
  let narrow: Filter | undefined
  for (const filter of FILTERS) {
    if (values[filter] === undefined) continue
    // In its own order the index is read only until the page is full.
    if (filter === 'q' && order === 'match') continue
    // The index of the words knows the categories as well.
    if (filter === 'category' && q !== undefined) continue
    if (!(await isNarrow(root, filter, values))) continue
    narrow = filter
    break
  }
  // Both are in the index of the words.
  if (narrow === 'q' && category !== undefined) return { narrow, byText: false }
  return { narrow, byText: q !== undefined && narrow !== 'q' && (order !== 'match' || narrow !== undefined) }
}

type Estimate = { 'QUERY PLAN': [{ Plan: { 'Plan Rows': number } }] }
const estimate = (filters: RawBuilder<unknown>): Prepared<Partial<Values>, Estimate> =>
  prepared(() => sql`explain (format json) select from ${sql.table('item_search')} where ${filters}`)
const ESTIMATE = estimate(sql`text like ${slot('text')}`)
const ESTIMATE_TWICE = estimate(sql`text like ${slot('text')} and category_id = ${categoryId()}`)

/** Whether the server expects so few items to have the words: to count them would take as long as to find them all. */
async function isRare(root: Kysely<unknown>, order: Order, values: Partial<Values>): Promise<boolean> {
  const twice = values.category !== undefined && order !== 'match'
  const { rows } = await root.executeQuery((twice ? ESTIMATE_TWICE : ESTIMATE)(root, values))
  const items = rows[0]?.['QUERY PLAN'][0].Plan['Plan Rows'] ?? 0
  return items <= (twice ? NARROW_TWICE_MAX : NARROW_MAX)
}

/**
 * PostgreSQL chooses well but for two things. It takes a rare status for one that the order soon meets; and it cannot know that
 * by name, and within a category, the texts can be read along an index, since those that are too long for it are not there.
 */
async function planOnPostgres(root: Kysely<unknown>, order: Order, values: Partial<Values>): Promise<Planned> {
  const { status, q, category } = values
  if (order !== 'match' && status !== undefined && (await isNarrow(root, 'status', values)))
    return { narrow: 'status', byText: false }
  const walkable = order === 'match' ? category !== undefined : nameOf(order) === 'name'
  if (q === undefined || !walkable) return { narrow: undefined, byText: false }
  const rare = await isRare(root, order, values)
  return { narrow: rare && order !== 'match' ? 'q' : undefined, byText: !rare }
}

export const nameOf = (sort: Exclude<Order, 'match'>) =>
  (sort.startsWith('-') ? sort.slice(1) : sort) as 'itemCode' | 'name' | 'onHand' | 'value'
