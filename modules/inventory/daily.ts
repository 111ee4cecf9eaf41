import { type Kysely, type RawBuilder, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { prepared, type Slots, type Tenant } from '../../plugins/contracts.js'
import { amongSlot, listOf } from './bulk.js'
import { OCCURRED_AT_MIN } from './rules.js'

/** What moved a day, read from the ledger: what forecasts and findings are made of. */

const DAY_MILLISECONDS = 86_400_000

/** 1 for a location whose stock is ours, 0 for any other. */
export const internal = (alias: string) =>
  sql`case when ${sql.ref(`${alias}.kind`)} in ('internal', 'transit') then 1 else 0 end`

interface Query {
  itemCodes: readonly string[]
  /** YYYY-MM-DD, UTC; both days belong to it */
  fromDay?: string
  toDay?: string
}
interface Days {
  codes: unknown
  from: number
  until: number
}
const within = (root: Kysely<unknown>, { itemCodes, fromDay, toDay }: Query): Days => ({
  codes: listOf(root, itemCodes),
  from: fromDay === undefined ? OCCURRED_AT_MIN : Date.parse(fromDay),
  until: toDay === undefined ? Number.MAX_SAFE_INTEGER : Date.parse(toDay) + DAY_MILLISECONDS
})

function integer(text: string | undefined): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value)) throw new RangeError(`${text} leaves the integers up to 2^53`)
  return value
}
const dayOf = (day: string | undefined) => new Date(integer(day) * DAY_MILLISECONDS).toISOString().slice(0, 10)

const movesWith = (slot: Slots<Days>) => sql`
  ${sql.table('stock_moves')} as m
  join ${sql.table('stock_accounts')} as fa on fa.id = m.from_account
  join ${sql.table('stock_accounts')} as ta on ta.id = m.to_account
  join ${sql.table('locations')} as fl on fl.id = fa.location_id
  join ${sql.table('locations')} as tl on tl.id = ta.location_id
  where m.occurred_at >= ${slot('from')} and m.occurred_at < ${slot('until')}`
/** A group's days in one text: as rows, what the driver makes of them costs several times the query. */
const inOneText = (root: Kysely<unknown>, cells: RawBuilder<unknown>) =>
  isPostgres(root) ? sql`string_agg(${cells}, ',' order by day)` : sql`group_concat(${cells}, ',' order by day)`
const DAY = sql`m.occurred_at / ${sql.lit(DAY_MILLISECONDS)}`

/** An item at a time: the plan that PostgreSQL keeps for any number of items may not read the whole ledger for one. */
const readFlows = prepared<Days, { itemCode: string; flows: string }>(
  (root, slot) => sql`
    select "itemCode", flows from (
      select i.code as "itemCode", (select ${inOneText(root, sql`day || ' ' || used || ' ' || change`)} from (
        select ${DAY} as day,
          sum(case when tl.kind = 'consumption' then m.quantity when fl.kind = 'consumption' then -m.quantity else 0 end) as used,
          sum(${internal('tl')} * m.quantity - ${internal('fl')} * m.quantity) as change
        from ${movesWith(slot)} and m.item_id = i.id
        group by ${DAY}) as daily) as flows
      from ${sql.table('items')} as i where ${amongSlot(root, 'i.code', slot('codes'))}) as moved
    where flows is not null order by "itemCode"`
)
const PLACE = sql`case when tl.kind = 'consumption' then fl.code else tl.code end`
const readUses = prepared<Days, { location: string; uses: string }>(
  (root, slot) => sql`
    select location, ${inOneText(root, sql`day || ' ' || used`)} as uses from (
      select ${PLACE} as location, ${DAY} as day,
        sum(case when tl.kind = 'consumption' then m.quantity else -m.quantity end) as used
      from ${movesWith(slot)} and (tl.kind = 'consumption') <> (fl.kind = 'consumption')
        and m.item_id in (select i.id from ${sql.table('items')} as i where ${amongSlot(root, 'i.code', slot('codes'))})
      group by ${PLACE}, ${DAY}) as daily
    group by location order by location`
)

/**
 * Net movement per item and UTC day, days with movements only, ordered by item and day. `used` is issues less returns (a
 * reversal counts on the day of what it reverses); `change` is the change of stock on hand.
 */
export async function dailyFlow(
  { db }: Tenant,
  query: Query
): Promise<{ itemCode: string; day: string; usedMicros: number; changeMicros: number }[]> {
  if (query.itemCodes.length === 0) return []
  const { rows } = await db.executeQuery(readFlows(db, within(db, query)))
  return rows.flatMap(({ itemCode, flows }) =>
    flows.split(',').map((flow) => {
      const [day, used, change] = flow.split(' ')
      return { itemCode, day: dayOf(day), usedMicros: integer(used), changeMicros: integer(change) }
    })
  )
}

/** Issues less returns of the named items together, per location and UTC day with any, ordered by both. */
export async function dailyUseByLocation(
  { db }: Tenant,
  query: Query
): Promise<{ location: string; day: string; usedMicros: number }[]> {
  if (query.itemCodes.length === 0) return []
  const { rows } = await db.executeQuery(readUses(db, within(db, query)))
  return rows.flatMap(({ location, uses }) =>
    uses.split(',').map((use) => {
      const [day, used] = use.split(' ')
      return { location, day: dayOf(day), usedMicros: integer(used) }
    })
  )
}
