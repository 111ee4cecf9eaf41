import { type Kysely, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { type Dialect, prepared } from '../../plugins/contracts.js'
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

const ROWS_PER_STATEMENT = 5_000
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

const keyOf = ({ item_code, day }: ConsumptionData) => `${day} ${item_code}`
const isSame = (a: ConsumptionData, b: ConsumptionData) =>
  a.quantity_micros === b.quantity_micros && a.closing_micros === b.closing_micros && a.censored === b.censored

export function createConsumptionStore(db: Kysely<ConsumptionTables>, dialect: Dialect) {
  /** One parameter carries all rows: neither database bounds its length as it bounds the number of parameters. */
  const fromJson = (rows: readonly ConsumptionData[]) =>
    dialect === 'postgres'
      ? sql`select item_code, day, quantity_micros, closing_micros, censored from jsonb_to_recordset(${JSON.stringify(rows)}::jsonb)
          as row(item_code text, day text, quantity_micros bigint, closing_micros bigint, censored integer)`
      : sql`select value ->> 'item_code' as item_code, value ->> 'day' as day, value ->> 'quantity_micros',
          value ->> 'closing_micros', value ->> 'censored' from json_each(${JSON.stringify(rows)}) where true`

  return {
    async stale(itemCodes?: readonly string[]): Promise<Stale[]> {
      const query = db.selectFrom('consumption_stale').selectAll().orderBy('from_day').orderBy('item_code')
      if (itemCodes === undefined) return query.execute()
      const found: Stale[] = []
      for (const names of chunks(itemCodes, NAMES_PER_STATEMENT)) {
        found.push(...(await query.where('item_code', 'in', names).execute()))
      }
      return found
    },

    /** Forgets what was derived, unless it changed again meanwhile. */
    async settle(stale: readonly Stale[]): Promise<void> {
      for (const { item_code, mark } of stale) {
        await db.deleteFrom('consumption_stale').where('item_code', '=', item_code).where('mark', '=', mark).execute()
      }
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
      const data = sql.table('consumption_data')
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

    /** Replaces the named items' days from `fromDay` on (all when undefined); only what differs is written. */
    async replace(itemCodes: readonly string[], fromDay: string | undefined, rows: readonly ConsumptionData[]) {
      let stored = db
        .selectFrom('consumption_data')
        .selectAll()
        .where('item_code', 'in', [...itemCodes])
      if (fromDay !== undefined) stored = stored.where('day', '>=', fromDay)
      const before = new Map((await stored.execute()).map((row) => [keyOf(row), row]))
      const changed = rows.filter((row) => {
        const old = before.get(keyOf(row))
        before.delete(keyOf(row))
        return old === undefined || !isSame(old, row)
      })
      for (const part of chunks([...before.values()], ROWS_PER_STATEMENT)) {
        await sql`delete from ${sql.table('consumption_data')} where (item_code, day) in
          (select item_code, day from (${fromJson(part)}) as gone)`.execute(db)
      }
      for (const part of chunks(changed, ROWS_PER_STATEMENT)) {
        await sql`insert into ${sql.table('consumption_data')}
          (item_code, day, quantity_micros, closing_micros, censored) ${fromJson(part)}
          on conflict (item_code, day) do update set quantity_micros = excluded.quantity_micros,
          closing_micros = excluded.closing_micros, censored = excluded.censored`.execute(db)
      }
    },

    /** Keeps each item's first day and last day of use beside the days. */
    async summarize(itemCodes: readonly string[], now: number): Promise<void> {
      const found = await db
        .selectFrom('consumption_data')
        .select(({ fn, eb }) => [
          'item_code',
          fn.min('day').as('first_day'),
          fn.max(eb.case().when('quantity_micros', '>', 0).then(eb.ref('day')).end()).as('last_use_day')
        ])
        .where('item_code', 'in', [...itemCodes])
        .groupBy('item_code')
        .execute()
      const byCode = new Map(found.map((row) => [row.item_code, row]))
      for (const names of chunks(itemCodes, 200)) {
        await db
          .insertInto('consumption_items')
          .values(
            names.map((item_code) => ({
              item_code,
              first_day: byCode.get(item_code)?.first_day ?? null,
              last_use_day: byCode.get(item_code)?.last_use_day ?? null,
              derived_at: now
            }))
          )
          .onConflict((conflict) =>
            conflict.column('item_code').doUpdateSet((eb) => ({
              first_day: eb.ref('excluded.first_day'),
              last_use_day: eb.ref('excluded.last_use_day'),
              derived_at: eb.ref('excluded.derived_at')
            }))
          )
          .execute()
      }
    },

    /** The days with movements of each named item, oldest first. */
    async days(itemCodes: readonly string[]): Promise<Map<string, ActiveDay[]>> {
      const rows = await db
        .selectFrom('consumption_data')
        .selectAll()
        .where('item_code', 'in', [...itemCodes])
        .orderBy('item_code')
        .orderBy('day')
        .execute()
      const byItem = new Map<string, ActiveDay[]>(itemCodes.map((code) => [code, []]))
      for (const row of rows) {
        byItem.get(row.item_code)?.push({
          day: dayNumber(row.day),
          used: row.quantity_micros / MICROS,
          censored: row.censored === 1,
          emptyAtEnd: row.closing_micros === 0
        })
      }
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
