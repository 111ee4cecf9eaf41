import { type Kysely, type RawBuilder, type SqlBool, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { prepared, send, type Writer } from '../../plugins/contracts.js'
import { MICROS } from '../../schemas/decimal.js'
import { type ActiveDay, CLOSURE_ITEMS_MIN, closureCandidates, dayNumber, dayText } from './series.js'

type ConsumptionData = {
  item_code: string
  day: string
  quantity_micros: number
  closing_micros: number
  censored: number
}
export type ConsumptionTables = {
  /** A row per item and day with movements; the days between follow from the stock at the end of the day before. */
  consumption_data: ConsumptionData
  consumption_items: { item_code: string; first_day: string | null; last_use_day: string | null; derived_at: number }
  /** What the ledger changed since it was derived; `mark` tells a change that came while deriving. */
  consumption_stale: { item_code: string; from_day: string; mark: number }
  consumption_barriers: { id: string }
}

export interface Stale {
  item_code: string
  from_day: string
  mark: number
}

const NAMES_PER_STATEMENT = 500

export const chunks = <T>(all: readonly T[], size: number): T[][] =>
  Array.from({ length: Math.ceil(all.length / size) }, (_, i) => all.slice(i * size, (i + 1) * size))

const staleMarks = prepared<{ rows: string }, unknown>((root, slot) => {
  const [rows, earlier] = isPostgres(root)
    ? [
        sql`select row ->> 0, row ->> 1, 1 from jsonb_array_elements(${slot('rows')}::jsonb) as rows (row)`,
        sql.raw('least')
      ]
    : [sql`select value ->> 0, value ->> 1, 1 from json_each(${slot('rows')}) where true`, sql.raw('min')]
  return sql`insert into ${sql.table('consumption_stale')} as old (item_code, from_day, mark) ${rows}
    on conflict (item_code) do update set from_day = ${earlier}(old.from_day, excluded.from_day), mark = old.mark + 1`
})
/** Notes that the ledger has changed what these items used, each since a day. Every posting ends here. */
export async function markStale(root: Kysely<unknown>, fromDays: ReadonlyMap<string, string>): Promise<void> {
  // In one order, so that two cannot wait for each other.
  const codes = [...fromDays.keys()].sort()
  await root.executeQuery(staleMarks(root, { rows: JSON.stringify(codes.map((code) => [code, fromDays.get(code)])) }))
}

/** The named items' days, one text for all: neither database bounds the length of a value as it bounds how many there are. */
const dayRows = (root: Kysely<unknown>, rows: RawBuilder<string>) =>
  isPostgres(root)
    ? sql`select row ->> 0 as item_code, row ->> 1 as day, (row -> 2)::bigint as quantity_micros, (row -> 3)::bigint as closing_micros,
        (row -> 4)::integer as censored from jsonb_array_elements(${rows}::jsonb) as rows (row)`
    : sql`select value ->> 0 as item_code, value ->> 1 as day, value ->> 2 as quantity_micros, value ->> 3 as closing_micros,
        value ->> 4 as censored from json_each(${rows})`
const listed = (root: Kysely<unknown>, list: RawBuilder<string>) =>
  isPostgres(root) ? sql`jsonb_array_elements_text(${list}::jsonb) as names (value)` : sql`json_each(${list}) as names`
/** Of a list that a query makes PostgreSQL expects many, and would read the whole table for one item; of an array it expects few. */
const isNamed = (root: Kysely<unknown>, list: RawBuilder<string>) =>
  isPostgres(root)
    ? sql<SqlBool>`item_code = any(array(select value from ${listed(root, list)}))`
    : sql<SqlBool>`item_code in (select value from ${listed(root, list)})`
const data = sql.table('consumption_data')

/** A series as one text: as rows, what the driver makes of them costs several times the query. */
const readText = prepared<{ codes: string; from: string }, { item_code: string; text: string }>((root, slot) => {
  const day = sql`day || ' ' || quantity_micros || ' ' || closing_micros || ' ' || censored`
  const text = isPostgres(root)
    ? sql`string_agg(${day}, ',' order by day)`
    : sql`group_concat(${day}, ',' order by day)`
  return sql`select item_code, ${text} as text from ${data}
    where ${isNamed(root, slot('codes'))} and day >= ${slot('from')} group by item_code`
})
const deleteGone = prepared<{ codes: string; from: string; rows: string }, unknown>(
  (root, slot) => sql`
    delete from ${data} where ${isNamed(root, slot('codes'))} and day >= ${slot('from')}
      and (item_code, day) not in (select item_code, day from (${dayRows(root, slot('rows'))}) as kept)`
)
const upsertChanged = prepared<{ rows: string }, unknown>(
  (root, slot) => sql`
    insert into ${data} (item_code, day, quantity_micros, closing_micros, censored)
    select item_code, day, quantity_micros, closing_micros, censored from (${dayRows(root, slot('rows'))}) as fresh
    where not exists (select 1 from ${data} as old where old.item_code = fresh.item_code and old.day = fresh.day
      and old.quantity_micros = fresh.quantity_micros and old.closing_micros = fresh.closing_micros and old.censored = fresh.censored)
    on conflict (item_code, day) do update set quantity_micros = excluded.quantity_micros,
      closing_micros = excluded.closing_micros, censored = excluded.censored`
)
const upsertSummaries = prepared<{ codes: string; now: number }, unknown>((root, slot) => {
  const ofIt = sql`from ${data} where item_code = names.value`
  return sql`
    insert into ${sql.table('consumption_items')} (item_code, first_day, last_use_day, derived_at)
    select names.value, (select min(day) ${ofIt}), (select max(day) ${ofIt} and quantity_micros > 0), ${slot('now')}
    from ${listed(root, slot('codes'))} where true
    on conflict (item_code) do update set first_day = excluded.first_day, last_use_day = excluded.last_use_day,
      derived_at = excluded.derived_at`
})
const deleteStale = prepared<{ marks: string }, unknown>((root, slot) => {
  const [marks, mark] = isPostgres(root)
    ? [sql`jsonb_array_elements(${slot('marks')}::jsonb) as marks (value)`, sql`(value -> 1)::bigint`]
    : [sql`json_each(${slot('marks')}) as marks`, sql`value ->> 1`]
  return sql`delete from ${sql.table('consumption_stale')} where (item_code, mark) in (select value ->> 0, ${mark} from ${marks})`
})

/** Replaces the named items' days from `fromDay` on (all when undefined), with what they add up to; only what differs is written. */
export async function replaceDays(
  tx: Writer,
  itemCodes: readonly string[],
  fromDay: string | undefined,
  days: readonly ConsumptionData[],
  now: number
): Promise<void> {
  const from = fromDay ?? ''
  const stored = await tx.db.executeQuery(readText(tx.db, { codes: JSON.stringify(itemCodes), from }))
  const before = new Map(stored.rows.map((row) => [row.item_code, row.text]))
  const fresh = new Map<string, ConsumptionData[]>(itemCodes.map((code) => [code, []]))
  for (const day of days) fresh.get(day.item_code)?.push(day)
  const changed = itemCodes.filter((code) => (fresh.get(code) ?? []).map(textOf).join(',') !== (before.get(code) ?? ''))
  if (changed.length > 0) {
    const rows = JSON.stringify(changed.flatMap((code) => (fresh.get(code) ?? []).map(cellsOf)))
    await send(tx, deleteGone(tx.db, { codes: JSON.stringify(changed), from, rows }))
    await send(tx, upsertChanged(tx.db, { rows }))
  }
  await send(tx, upsertSummaries(tx.db, { codes: JSON.stringify(itemCodes), now }))
}

const cellsOf = (row: ConsumptionData) => [
  row.item_code,
  row.day,
  row.quantity_micros,
  row.closing_micros,
  row.censored
]
function activeDayOf(text: string): ActiveDay {
  const [day = '', used, closing, censored] = text.split(' ')
  return {
    day: dayNumber(day),
    used: Number(used) / MICROS,
    censored: censored === '1',
    emptyAtEnd: closing === '0'
  }
}
const textOf = ({ day, quantity_micros, closing_micros, censored }: ConsumptionData) =>
  `${day} ${quantity_micros} ${closing_micros} ${censored}`

/** Forgets what was derived, unless it changed again meanwhile. */
export async function settle(tx: Writer, stale: readonly Stale[]): Promise<void> {
  if (stale.length === 0) return
  await send(tx, deleteStale(tx.db, { marks: JSON.stringify(stale.map(({ item_code, mark }) => [item_code, mark])) }))
}

export function createConsumptionStore(root: Kysely<unknown>) {
  const db = root.withTables<ConsumptionTables>()
  return {
    /** What has changed, the earliest day first. */
    async stale(itemCodes?: readonly string[]): Promise<Stale[]> {
      const query = db.selectFrom('consumption_stale').selectAll().orderBy('from_day').orderBy('item_code')
      if (itemCodes === undefined) return query.execute()
      const found: Stale[] = []
      for (const names of chunks(itemCodes, NAMES_PER_STATEMENT)) {
        found.push(...(await query.where('item_code', 'in', names).execute()))
      }
      return found.sort((a, b) => (a.from_day < b.from_day ? -1 : a.from_day > b.from_day ? 1 : 0))
    },

    async derived(itemCodes: readonly string[]): Promise<Set<string>> {
      const known = new Set<string>()
      for (const names of chunks(itemCodes, NAMES_PER_STATEMENT)) {
        const rows = await db
          .selectFrom('consumption_items')
          .select('item_code')
          .where('item_code', 'in', names)
          .execute()
        for (const { item_code } of rows) known.add(item_code)
      }
      return known
    },

    /** Items with a series, in code order. */
    items: (after: string | undefined, limit: number, itemCodes?: readonly string[]) => {
      let query = db
        .selectFrom('consumption_items')
        .select(['item_code', 'first_day', 'last_use_day'])
        .where('last_use_day', 'is not', null)
        .orderBy('item_code')
        .limit(limit)
      if (after !== undefined) query = query.where('item_code', '>', after)
      if (itemCodes !== undefined) query = query.where('item_code', 'in', [...itemCodes])
      return query.execute()
    },

    /** The last day on which anything was used, but never today: a day that is not over says too little. */
    async lastDay(today: number): Promise<number | undefined> {
      const row = await db
        .selectFrom('consumption_items')
        .select('last_use_day')
        .where('last_use_day', 'is not', null)
        .orderBy('last_use_day', 'desc')
        .limit(1)
        .executeTakeFirst()
      return row?.last_use_day == null ? undefined : Math.min(dayNumber(row.last_use_day), today - 1)
    },

    /**
     * Days on which the place was closed: nothing at all was used, though on that weekday usually much is. The days of use are
     * found by jumping from one to the next in an index, not by reading all rows.
     */
    async closures(end: number): Promise<string[]> {
      const { rows } = await sql<{ day: string }>`
        with recursive days(day) as (
          select min(day) from ${data} where quantity_micros > 0
          union all
          select (select min(next.day) from ${data} as next where next.quantity_micros > 0 and next.day > days.day)
          from days where days.day is not null
        )
        select day from days where day is not null`.execute(db)
      const open = new Set(rows.map(({ day }) => dayNumber(day)))
      const [first] = open
      if (first === undefined) return []
      const candidates = closureCandidates(open, first, end)
      const counts = new Map<string, number>()
      const around = [...new Set(candidates.flatMap((one) => one.around.map(dayText)))]
      for (const days of chunks(around, NAMES_PER_STATEMENT)) {
        const found = await db
          .selectFrom('consumption_data')
          .select(({ fn }) => ['day', fn.countAll<number>().as('items')])
          .where('quantity_micros', '>', 0)
          .where('day', 'in', days)
          .groupBy('day')
          .execute()
        for (const { day, items } of found) counts.set(day, Number(items))
      }
      const itemsOn = (days: readonly number[]) =>
        days.reduce((sum, day) => sum + (counts.get(dayText(day)) ?? 0), 0) / days.length
      return candidates.filter((one) => itemsOn(one.around) >= CLOSURE_ITEMS_MIN).map(({ day }) => dayText(day))
    },

    /** Stock at the end of the last day with movements before `day`, per item. */
    async closings(itemCodes: readonly string[], day: string): Promise<Map<string, number>> {
      const rows = await db
        .selectFrom('consumption_data as data')
        .innerJoin(
          (eb) =>
            eb
              .selectFrom('consumption_data')
              .select(['item_code', (e) => e.fn.max('day').as('day')])
              .where('item_code', 'in', [...itemCodes])
              .where('day', '<', day)
              .groupBy('item_code')
              .as('last'),
          (join) => join.onRef('last.item_code', '=', 'data.item_code').onRef('last.day', '=', 'data.day')
        )
        .select(['data.item_code', 'data.closing_micros'])
        .execute()
      return new Map(rows.map((row) => [row.item_code, row.closing_micros]))
    },

    /** The days with movements of each named item, oldest first. */
    async days(itemCodes: readonly string[]): Promise<Map<string, ActiveDay[]>> {
      const { rows } = await root.executeQuery(readText(root, { codes: JSON.stringify(itemCodes), from: '' }))
      const byItem = new Map<string, ActiveDay[]>(itemCodes.map((code) => [code, []]))
      for (const row of rows) byItem.set(row.item_code, row.text.split(',').map(activeDayOf))
      return byItem
    },

    /** Net use per item from a day on, a page of items in code order. */
    volumes: (fromDay: string, after: string, limit: number) =>
      db
        .selectFrom('consumption_data')
        .select(({ fn }) => ['item_code', fn.sum<number>('quantity_micros').as('quantity_micros')])
        .where('item_code', '>', after)
        .where('day', '>=', fromDay)
        .groupBy('item_code')
        .orderBy('item_code')
        .limit(limit)
        .execute(),

    addBarrier: (id: string) =>
      db
        .insertInto('consumption_barriers')
        .values({ id })
        .onConflict((conflict) => conflict.doNothing())
        .execute(),
    /** Whether the barrier was reached; it is removed then. */
    async takeBarrier(id: string): Promise<boolean> {
      const { numDeletedRows } = await db.deleteFrom('consumption_barriers').where('id', '=', id).executeTakeFirst()
      return numDeletedRows > 0n
    },
    hasBarrier: async (id: string): Promise<boolean> =>
      (await db.selectFrom('consumption_barriers').select('id').where('id', '=', id).executeTakeFirst()) !== undefined
  }
}

export type ConsumptionStore = ReturnType<typeof createConsumptionStore>
