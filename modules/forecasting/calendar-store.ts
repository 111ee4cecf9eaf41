import { type Kysely, sql } from 'kysely'
import type { Dialect, Tenant } from '../../plugins/contracts.js'
import type { YearlyRule } from '../../schemas/calendar.js'
import {
  type Calendar,
  type CalendarEvent,
  createCalendar,
  type Figure,
  firstGap,
  type ScopedItem
} from './calendar.js'
import { chunks } from './consumption-store.js'
import type { ConsumptionSource } from './derive.js'
import { RegressorIncomplete, RegressorNotFound } from './errors.js'
import { dayNumber, dayText } from './series.js'

type Scoped = {
  id: string
  name: string
  category: string | null
  item_code: string | null
  created_by: string | null
  created_at: number
}
export type EventRow = Scoped & {
  kind: CalendarEvent['kind']
  dates: string | null
  yearly: string | null
  days_before: number
  days_after: number
  updated_at: number
}
export type RegressorRow = Scoped & { description: string | null }
export type CalendarTables = {
  forecast_events: EventRow
  forecast_regressors: RegressorRow
  forecast_regressor_values: { regressor_id: string; day: string; value: number }
}

/** What is known of earlier days teaches nothing that is still true. */
export const CALENDAR_DAYS = 7_305
const VALUES_PER_STATEMENT = 1_000

const parsed = <T>(text: string | null): T | null => (text === null ? null : JSON.parse(text))
export const toEvent = (row: EventRow): CalendarEvent => ({
  id: row.id,
  name: row.name,
  kind: row.kind,
  dates: parsed<string[]>(row.dates),
  yearly: parsed<YearlyRule>(row.yearly),
  daysBefore: row.days_before,
  daysAfter: row.days_after,
  category: row.category,
  itemCode: row.item_code
})

/** What is known beforehand. */
export function createCalendarStore(root: Kysely<unknown>, dialect: Dialect) {
  const db = root.withTables<CalendarTables>()
  return {
    /** Newest first. */
    events(after: string | undefined, limit: number) {
      const query = db.selectFrom('forecast_events').selectAll().orderBy('id', 'desc').limit(limit)
      return (after === undefined ? query : query.where('id', '<', after)).execute()
    },
    /** @param lock until the transaction ends, so that two changes of one version cannot both find it */
    event: (id: string, lock = false) => {
      const query = db.selectFrom('forecast_events').selectAll().where('id', '=', id)
      return (lock && dialect === 'postgres' ? query.forUpdate() : query).executeTakeFirst()
    },
    addEvent: (row: EventRow) => db.insertInto('forecast_events').values(row).execute(),
    replaceEvent: ({ id, ...row }: EventRow) =>
      db.updateTable('forecast_events').set(row).where('id', '=', id).execute(),
    removeEvent: (id: string) => db.deleteFrom('forecast_events').where('id', '=', id).execute(),
    allEvents: async (): Promise<CalendarEvent[]> =>
      (await db.selectFrom('forecast_events').selectAll().orderBy('id').execute()).map(toEvent),

    /** Newest first. */
    regressors(after: string | undefined, limit: number) {
      const query = db.selectFrom('forecast_regressors').selectAll().orderBy('id', 'desc').limit(limit)
      return (after === undefined ? query : query.where('id', '<', after)).execute()
    },
    regressor: (id: string) => db.selectFrom('forecast_regressors').selectAll().where('id', '=', id).executeTakeFirst(),
    /** False when the name is taken. */
    async addRegressor(row: RegressorRow): Promise<boolean> {
      const { numInsertedOrUpdatedRows = 0n } = await db
        .insertInto('forecast_regressors')
        .values(row)
        .onConflict((conflict) => conflict.column('name').doNothing())
        .executeTakeFirst()
      return numInsertedOrUpdatedRows > 0n
    },
    async removeRegressor(id: string): Promise<void> {
      await db.deleteFrom('forecast_regressor_values').where('regressor_id', '=', id).execute()
      await db.deleteFrom('forecast_regressors').where('id', '=', id).execute()
    },
    /** First and last day with a value, and how many there are. */
    async extents(ids: readonly string[]) {
      if (ids.length === 0) return new Map<string, { from: string; to: string; days: number }>()
      const rows = await db
        .selectFrom('forecast_regressor_values')
        .select(({ fn }) => [
          'regressor_id',
          fn.min('day').as('from'),
          fn.max('day').as('to'),
          fn.countAll<number>().as('days')
        ])
        .where('regressor_id', 'in', [...ids])
        .groupBy('regressor_id')
        .execute()
      return new Map(rows.map(({ regressor_id, days, ...extent }) => [regressor_id, { ...extent, days: Number(days) }]))
    },
    values(id: string, from: string, to: string, limit: number) {
      return db
        .selectFrom('forecast_regressor_values')
        .select(['day as date', 'value'])
        .where('regressor_id', '=', id)
        .where('day', '>=', from)
        .where('day', '<=', to)
        .orderBy('day')
        .limit(limit)
        .execute()
    },
    async setValues(id: string, values: readonly { date: string; value: number }[]): Promise<void> {
      // Of a day named twice the last value counts; a statement may not touch a row twice.
      const rows = [...new Map(values.map(({ date, value }) => [date, value]))].map(([day, value]) => ({ day, value }))
      for (const part of chunks(rows, VALUES_PER_STATEMENT)) {
        const json = JSON.stringify(part)
        const source =
          dialect === 'postgres'
            ? sql`select ${id}, day, value from jsonb_to_recordset(${json}::jsonb) as row(day text, value double precision)`
            : sql`select ${id}, value ->> 'day', value ->> 'value' from json_each(${json}) where true`
        await sql`insert into ${sql.table('forecast_regressor_values')} (regressor_id, day, value) ${source}
          on conflict (regressor_id, day) do update set value = excluded.value`.execute(db)
      }
    },
    /** All figures, or those of the names given, with their values of the days from `from` to `to`. */
    async figures(from: string, to: string, names?: readonly string[]): Promise<Figure[]> {
      let query = db.selectFrom('forecast_regressors').selectAll().orderBy('id')
      if (names !== undefined) {
        if (names.length === 0) return []
        query = query.where('name', 'in', [...names])
      }
      const found: Figure[] = []
      for (const { id, name, category, item_code: itemCode } of await query.execute()) {
        const rows = await db
          .selectFrom('forecast_regressor_values')
          .select(['day', 'value'])
          .where('regressor_id', '=', id)
          .where('day', '>=', from)
          .where('day', '<=', to)
          .execute()
        const values = new Map(rows.map(({ day, value }) => [dayNumber(day), value]))
        found.push({ id, name, category, itemCode, values })
      }
      return found
    }
  }
}

/** Items with their categories, asked for only where something known beforehand is for a category. */
export async function scopedItems(
  tenant: Tenant,
  source: ConsumptionSource,
  calendar: Calendar,
  itemCodes: readonly string[]
): Promise<Map<string, ScopedItem>> {
  const items = calendar.needsCategories ? await source.items(tenant, { itemCodes, limit: itemCodes.length }) : []
  const found = new Map<string, ScopedItem>(itemCodes.map((itemCode) => [itemCode, { itemCode }]))
  for (const item of items) found.set(item.itemCode, item)
  return found
}

/** What is known of the days up to and including `to`. */
export async function calendarOf(
  tenant: Tenant,
  from: string,
  to: string,
  regressors?: readonly string[]
): Promise<Calendar> {
  const store = createCalendarStore(tenant.db, tenant.dialect)
  const figures = await store.figures(from, to, regressors)
  return createCalendar(await store.allEvents(), figures, dayNumber(from), dayNumber(to))
}

/** @throws FORECAST_REGRESSOR_NOT_FOUND, FORECAST_REGRESSOR_INCOMPLETE: a figure asked for by name is known to the end of the forecast */
export async function requireRegressors(
  tenant: Tenant,
  names: readonly string[],
  lastDay: number,
  horizonDays: number
): Promise<void> {
  const until = lastDay + horizonDays
  const figures = await createCalendarStore(tenant.db, tenant.dialect).figures('', dayText(until), names)
  for (const name of names) {
    const figure = figures.find((each) => each.name === name)
    if (figure === undefined) throw new RegressorNotFound({ regressor: name })
    const gap = firstGap(figure.values, Math.min(lastDay, ...figure.values.keys()), until)
    if (gap === undefined) continue
    throw new RegressorIncomplete({ regressor: name, missingDay: dayText(gap), neededTo: dayText(until) })
  }
}
