import type { Kysely } from 'kysely'
import type { Feedback, Frequency } from '../../schemas/forecasting.js'
import type { Override } from './outcomes.js'
import { dayNumber, dayText, mondayOnOrBefore } from './series.js'

type Series = { item_code: string; frequency: Frequency }
export type OverrideRow = Series & {
  id: string
  from_day: string
  to_day: string
  quantity_per_day: number | null
  factor: number | null
  reason: string
  data_to: string
  created_by: string | null
  created_at: number
  cancelled_at: number | null
}
export type FeedbackRow = Series & {
  id: string
  day: string
  subject: Feedback['subject']
  verdict: Feedback['verdict']
  comment: string | null
  created_by: string | null
  created_at: number
}
export type PeopleTables = {
  forecast_overrides: OverrideRow
  forecast_feedback: FeedbackRow
  /** Who started the day's run of something that is done once a day in a cluster. */
  forecast_schedule: { name: string; day: string; job_id: string | null; claimed_at: number }
}

/** A claim whose job has not started by then belongs to a process that died in between. */
const CLAIM_MILLISECONDS = 600_000

/** The days of the week that a day is in. */
function weekOf(day: string): string[] {
  const monday = mondayOnOrBefore(dayNumber(day))
  return Array.from({ length: 7 }, (_, i) => dayText(monday + i))
}

export const toOverride = (row: OverrideRow): Override => ({
  id: row.id,
  from: row.from_day,
  to: row.to_day,
  quantityPerDay: row.quantity_per_day,
  factor: row.factor,
  dataTo: row.data_to
})

/** What people said of forecasts, and who of several nodes does what is done once a day. */
export function createPeopleStore(root: Kysely<unknown>) {
  const db = root.withTables<PeopleTables>()
  return {
    /** Oldest made first, so that the last one that covers a day is the one in force. */
    async overrides(
      frequency: Frequency,
      filter: { since: string } | { itemCodes: readonly string[] }
    ): Promise<Map<string, OverrideRow[]>> {
      let query = db.selectFrom('forecast_overrides').selectAll().where('frequency', '=', frequency).orderBy('id')
      if ('since' in filter) query = query.where('to_day', '>=', filter.since)
      else query = query.where('item_code', 'in', [...filter.itemCodes])
      const found = new Map<string, OverrideRow[]>()
      for (const row of await query.execute()) found.set(row.item_code, [...(found.get(row.item_code) ?? []), row])
      return found
    },
    overridesOf(itemCode: string, after: string | undefined, limit: number) {
      let query = db
        .selectFrom('forecast_overrides')
        .selectAll()
        .where('item_code', '=', itemCode)
        .orderBy('id', 'desc')
        .limit(limit)
      if (after !== undefined) query = query.where('id', '<', after)
      return query.execute()
    },
    addOverride: (row: OverrideRow) => db.insertInto('forecast_overrides').values(row).execute(),
    override: (id: string) => db.selectFrom('forecast_overrides').selectAll().where('id', '=', id).executeTakeFirst(),
    async cancelOverride(id: string, toDay: string, now: number): Promise<void> {
      await db
        .updateTable('forecast_overrides')
        .set({ to_day: toDay, cancelled_at: now })
        .where('id', '=', id)
        .execute()
    },
    async activeOverrides(day: string): Promise<number> {
      const row = await db
        .selectFrom('forecast_overrides')
        .select(({ fn }) => fn.countAll<number>().as('n'))
        .where('to_day', '>=', day)
        .where('cancelled_at', 'is', null)
        .executeTakeFirstOrThrow()
      return Number(row.n)
    },

    /** Whether the day's run is under way or done, as far as a look without a lock can tell. */
    async isScheduled(name: string, day: string, now: number): Promise<boolean> {
      const row = await db.selectFrom('forecast_schedule').selectAll().where('name', '=', name).executeTakeFirst()
      return row !== undefined && row.day >= day && (row.job_id !== null || row.claimed_at > now - CLAIM_MILLISECONDS)
    },
    /** True for one caller a day; again when that one never said that its job had started. */
    async claimSchedule(name: string, day: string, now: number): Promise<boolean> {
      const { numInsertedOrUpdatedRows } = await db
        .insertInto('forecast_schedule')
        .values({ name, day, job_id: null, claimed_at: now })
        .onConflict((conflict) =>
          conflict
            .column('name')
            .doUpdateSet({ day, job_id: null, claimed_at: now })
            .where((eb) =>
              eb.or([
                eb('forecast_schedule.day', '<', day),
                eb.and([
                  eb('forecast_schedule.job_id', 'is', null),
                  eb('forecast_schedule.claimed_at', '<=', now - CLAIM_MILLISECONDS)
                ])
              ])
            )
        )
        .executeTakeFirst()
      return (numInsertedOrUpdatedRows ?? 0n) > 0n
    },
    async keepSchedule(name: string, day: string, jobId: string): Promise<void> {
      await db
        .updateTable('forecast_schedule')
        .set({ job_id: jobId })
        .where('name', '=', name)
        .where('day', '=', day)
        .execute()
    },

    /** Asks for a run, whoever starts it; what was asked before and has not begun is the same. */
    async requestRun(name: string): Promise<void> {
      const asked = { day: '', job_id: null, claimed_at: 0 }
      await db
        .insertInto('forecast_schedule')
        .values({ name, ...asked })
        .onConflict((conflict) => conflict.column('name').doUpdateSet(asked))
        .execute()
    },
    isRunRequested: async (name: string): Promise<boolean> =>
      (await db
        .selectFrom('forecast_schedule')
        .select('name')
        .where('name', '=', name)
        .where('job_id', 'is', null)
        .executeTakeFirst()) !== undefined,
    /** True for one caller. A claim is kept by `keepRun`, unless it was asked for again meanwhile. */
    async claimRun(name: string, now: number): Promise<boolean> {
      const { numUpdatedRows } = await db
        .updateTable('forecast_schedule')
        .set({ claimed_at: now })
        .where('name', '=', name)
        .where('job_id', 'is', null)
        .where('claimed_at', '<=', now - CLAIM_MILLISECONDS)
        .executeTakeFirst()
      return numUpdatedRows > 0n
    },
    async keepRun(name: string, claimedAt: number, jobId: string): Promise<void> {
      await db
        .updateTable('forecast_schedule')
        .set({ job_id: jobId })
        .where('name', '=', name)
        .where('claimed_at', '=', claimedAt)
        .execute()
    },

    addFeedback: (row: FeedbackRow) => db.insertInto('forecast_feedback').values(row).execute(),
    feedback(
      filter: { itemCode?: string; verdict?: FeedbackRow['verdict'] },
      after: string | undefined,
      limit: number
    ) {
      let query = db.selectFrom('forecast_feedback').selectAll().orderBy('id', 'desc').limit(limit)
      if (filter.itemCode !== undefined) query = query.where('item_code', '=', filter.itemCode)
      if (filter.verdict !== undefined) query = query.where('verdict', '=', filter.verdict)
      if (after !== undefined) query = query.where('id', '<', after)
      return query.execute()
    },
    /**
     * Days that people said are not representative of demand, per item; what was last said of what was used counts. What is
     * said of a week is said of each of its days.
     */
    async exceptional(): Promise<Map<string, Set<string>>> {
      const rows = await db
        .selectFrom('forecast_feedback')
        .select(['item_code', 'frequency', 'day', 'verdict'])
        .where('subject', '=', 'actual')
        .orderBy('id')
        .execute()
      const found = new Map<string, Set<string>>()
      for (const { item_code, frequency, day, verdict } of rows) {
        const days = found.get(item_code) ?? new Set()
        found.set(item_code, days)
        for (const each of frequency === 'week' ? weekOf(day) : [day]) {
          if (verdict === 'exceptional') days.add(each)
          else days.delete(each)
        }
      }
      return found
    }
  }
}
