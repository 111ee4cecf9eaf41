import { type Kysely, sql } from 'kysely'
import type { Dialect } from '../../plugins/contracts.js'
import type { DriftKind, Feedback, Frequency } from '../../schemas/forecasting.js'
import { chunks } from './consumption-store.js'
import type { Outcome, Override, Served, Sums } from './outcomes.js'
import { addSums, noSums, sumOutcomes } from './outcomes.js'

type Series = { item_code: string; frequency: Frequency }
type OutcomeRow = Series & {
  period: string
  model: string
  lead: number
  overridden: number
  counts: number
  mean: number
  lower80: number
  upper80: number
  lower95: number
  upper95: number
  model_mean: number
  baseline: number
  actual: number
  mae: number
  rmse: number
  scale: number
}
export type DriftRow = Series & {
  id: string
  detected_on: string
  kind: DriftKind
  statistic: number
  detected_at: number
  retrained_at: number | null
}
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
export type LearningTables = {
  /** A row per forecast served, until its periods are over and another serves. */
  forecast_served: Series & { first_day: string; path: string }
  forecast_outcomes: OutcomeRow
  /** Sums over items per period and model: what is kept for good. */
  forecast_accuracy: { frequency: Frequency; period: string; model: string; sums: string }
  forecast_drift: DriftRow
  forecast_overrides: OverrideRow
  forecast_feedback: FeedbackRow
  forecast_schedule: { name: string; day: string; job_id: string | null; claimed_at: number }
}

export interface ItemOutcome extends Outcome {
  itemCode: string
}

const COLUMNS = [
  'item_code',
  'frequency',
  'period',
  'model',
  'lead',
  'overridden',
  'counts',
  'mean',
  'lower80',
  'upper80',
  'lower95',
  'upper95',
  'model_mean',
  'baseline',
  'actual',
  'mae',
  'rmse',
  'scale'
] as const
const TYPES: Partial<Record<(typeof COLUMNS)[number], string>> = {
  item_code: 'text',
  frequency: 'text',
  period: 'text',
  model: 'text',
  lead: 'integer',
  overridden: 'integer',
  counts: 'integer'
}
const columns = COLUMNS.join(', ')
const ROWS_PER_STATEMENT = 2_000
/** A claim whose job has not started by then belongs to a process that died in between. */
const CLAIM_MILLISECONDS = 600_000
/** In place of a model's name: the sums of this period are out of date. */
const STALE = ''

const toRow = ({ itemCode, ...one }: ItemOutcome, frequency: Frequency): OutcomeRow => {
  const { modelMean, overridden, counts, ...rest } = one
  return {
    ...rest,
    item_code: itemCode,
    frequency,
    model_mean: modelMean,
    overridden: overridden ? 1 : 0,
    counts: counts ? 1 : 0
  }
}
const toOutcome = ({ item_code, frequency: _, model_mean, overridden, counts, ...rest }: OutcomeRow): ItemOutcome => ({
  ...rest,
  itemCode: item_code,
  modelMean: model_mean,
  overridden: overridden === 1,
  counts: counts === 1
})
export const toOverride = (row: OverrideRow): Override => ({
  id: row.id,
  from: row.from_day,
  to: row.to_day,
  quantityPerDay: row.quantity_per_day,
  factor: row.factor,
  dataTo: row.data_to
})

/** What was served, what became of it, and what people said of it. */
export function createLearningStore(root: Kysely<unknown>, dialect: Dialect) {
  const db = root.withTables<LearningTables>()

  const fromJson = (rows: readonly OutcomeRow[]) => {
    const json = JSON.stringify(rows)
    if (dialect === 'postgres') {
      const shape = COLUMNS.map((name) => `${name} ${TYPES[name] ?? 'double precision'}`).join(', ')
      return sql`select ${sql.raw(columns)} from jsonb_to_recordset(${json}::jsonb) as row(${sql.raw(shape)})`
    }
    // `where true` keeps SQLite from reading ON CONFLICT as the condition of a join.
    const values = COLUMNS.map((name) => `value ->> '${name}'`).join(', ')
    return sql`select ${sql.raw(values)} from json_each(${json}) where true`
  }

  return {
    async served(itemCodes: readonly string[], frequency: Frequency): Promise<Map<string, Served[]>> {
      const rows = await db
        .selectFrom('forecast_served')
        .select(['item_code', 'first_day', 'path'])
        .where('item_code', 'in', [...itemCodes])
        .where('frequency', '=', frequency)
        .orderBy('item_code')
        .orderBy('first_day')
        .execute()
      return grouped(rows)
    },

    /** Forecasts before the last one of each item are over once their outcomes are stored. */
    async forgetServed(itemCode: string, frequency: Frequency, beforeDay: string): Promise<void> {
      await db
        .deleteFrom('forecast_served')
        .where('item_code', '=', itemCode)
        .where('frequency', '=', frequency)
        .where('first_day', '<', beforeDay)
        .execute()
    },

    /** Outcomes per item from a period on, oldest first. */
    async outcomes(
      itemCodes: readonly string[],
      frequency: Frequency,
      fromPeriod: string
    ): Promise<Map<string, ItemOutcome[]>> {
      const rows = await db
        .selectFrom('forecast_outcomes')
        .selectAll()
        .where('item_code', 'in', [...itemCodes])
        .where('frequency', '=', frequency)
        .where('period', '>=', fromPeriod)
        .orderBy('item_code')
        .orderBy('period')
        .execute()
      const found = new Map<string, ItemOutcome[]>()
      for (const row of rows) {
        const list = found.get(row.item_code) ?? []
        list.push(toOutcome(row))
        found.set(row.item_code, list)
      }
      return found
    },

    async saveOutcomes(all: readonly ItemOutcome[], frequency: Frequency): Promise<void> {
      for (const part of chunks(all, ROWS_PER_STATEMENT)) {
        const updates = COLUMNS.slice(3)
          .map((name) => `${name} = excluded.${name}`)
          .join(', ')
        await sql`insert into ${sql.table('forecast_outcomes')} (${sql.raw(columns)})
          ${fromJson(part.map((one) => toRow(one, frequency)))}
          on conflict (item_code, frequency, period) do update set ${sql.raw(updates)}`.execute(db)
      }
    },

    /** Notes periods whose sums are to be made again, in the transaction that changes their outcomes. */
    async markPeriods(frequency: Frequency, periods: readonly string[]): Promise<void> {
      for (const names of chunks(periods, 200)) {
        await db
          .insertInto('forecast_accuracy')
          .values(names.map((period) => ({ frequency, period, model: STALE, sums: '{}' })))
          .onConflict((conflict) => conflict.doNothing())
          .execute()
      }
    },
    async markedPeriods(frequency: Frequency): Promise<string[]> {
      const rows = await db
        .selectFrom('forecast_accuracy')
        .select('period')
        .where('frequency', '=', frequency)
        .where('model', '=', STALE)
        .orderBy('period')
        .execute()
      return rows.map(({ period }) => period)
    },

    /** Sums one period's outcomes again, by model. */
    async refreshAccuracy(frequency: Frequency, period: string): Promise<void> {
      const rows = await db
        .selectFrom('forecast_outcomes')
        .selectAll()
        .where('period', '=', period)
        .where('frequency', '=', frequency)
        .execute()
      const byModel = new Map<string, Outcome[]>()
      for (const row of rows) {
        const list = byModel.get(row.model) ?? []
        list.push(toOutcome(row))
        byModel.set(row.model, list)
      }
      await db.deleteFrom('forecast_accuracy').where('frequency', '=', frequency).where('period', '=', period).execute()
      for (const [model, outcomes] of byModel) {
        const sums = JSON.stringify(sumOutcomes(outcomes))
        await db.insertInto('forecast_accuracy').values({ frequency, period, model, sums }).execute()
      }
    },

    /** Realised sums of all items by period and model, from a period on. */
    async accuracyFrom(frequency: Frequency, from: string): Promise<{ model: string; period: string; sums: Sums }[]> {
      const rows = await db
        .selectFrom('forecast_accuracy')
        .selectAll()
        .where('frequency', '=', frequency)
        .where('period', '>=', from)
        .where('model', '<>', STALE)
        .orderBy('period')
        .execute()
      return rows.map((row) => ({ ...row, sums: addSums(noSums(), JSON.parse(row.sums)) }))
    },

    async lastPeriod(frequency: Frequency): Promise<string | undefined> {
      const row = await db
        .selectFrom('forecast_accuracy')
        .select('period')
        .where('frequency', '=', frequency)
        .orderBy('period', 'desc')
        .limit(1)
        .executeTakeFirst()
      return row?.period
    },

    async forgetOutcomes(beforePeriod: string): Promise<void> {
      await db.deleteFrom('forecast_outcomes').where('period', '<', beforePeriod).execute()
    },

    /** The period of the last drift of each item that had one since. */
    async lastDrifts(frequency: Frequency, since: string): Promise<Map<string, string>> {
      const rows = await db
        .selectFrom('forecast_drift')
        .select(({ fn }) => ['item_code', fn.max('detected_on').as('detected_on')])
        .where('frequency', '=', frequency)
        .where('detected_on', '>=', since)
        .groupBy('item_code')
        .execute()
      return new Map(rows.map((row) => [row.item_code, row.detected_on]))
    },
    addDrift: (row: DriftRow) =>
      db
        .insertInto('forecast_drift')
        .values(row)
        .onConflict((conflict) => conflict.doNothing())
        .execute(),
    /** Items that drifted and were not trained since. */
    async waiting(frequency: Frequency): Promise<Set<string>> {
      const rows = await db
        .selectFrom('forecast_drift')
        .select('item_code')
        .distinct()
        .where('frequency', '=', frequency)
        .where('retrained_at', 'is', null)
        .execute()
      return new Set(rows.map((row) => row.item_code))
    },
    async retrained(itemCodes: readonly string[], frequency: Frequency, now: number): Promise<void> {
      await db
        .updateTable('forecast_drift')
        .set({ retrained_at: now })
        .where('item_code', 'in', [...itemCodes])
        .where('frequency', '=', frequency)
        .where('retrained_at', 'is', null)
        .execute()
    },
    /** Newest first: ids are ordered by time. */
    drifts(
      filter: { itemCode?: string; frequency?: Frequency; waiting?: boolean },
      after: string | undefined,
      limit: number
    ) {
      let query = db.selectFrom('forecast_drift').selectAll().orderBy('id', 'desc').limit(limit)
      if (filter.itemCode !== undefined) query = query.where('item_code', '=', filter.itemCode)
      if (filter.frequency !== undefined) query = query.where('frequency', '=', filter.frequency)
      if (filter.waiting !== undefined) query = query.where('retrained_at', filter.waiting ? 'is' : 'is not', null)
      if (after !== undefined) query = query.where('id', '<', after)
      return query.execute()
    },
    async driftCounts(): Promise<{ kind: DriftKind; waiting: number; retrained: number }[]> {
      const rows = await db
        .selectFrom('forecast_drift')
        .groupBy('kind')
        .select(({ fn }) => ['kind', fn.countAll<number>().as('all'), fn.count<number>('retrained_at').as('retrained')])
        .execute()
      return rows.map(({ kind, all, retrained }) => ({
        kind,
        waiting: Number(all) - Number(retrained),
        retrained: Number(retrained)
      }))
    },

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
    /** Days that people said are not representative of demand, per item. */
    async exceptional(): Promise<Map<string, Set<string>>> {
      const rows = await db
        .selectFrom('forecast_feedback')
        .select(['item_code', 'day'])
        .where('verdict', '=', 'exceptional')
        .execute()
      const found = new Map<string, Set<string>>()
      for (const { item_code, day } of rows) found.set(item_code, (found.get(item_code) ?? new Set()).add(day))
      return found
    }
  }
}
export type LearningStore = ReturnType<typeof createLearningStore>

function grouped(rows: readonly { item_code: string; first_day: string; path: string }[]): Map<string, Served[]> {
  const found = new Map<string, Served[]>()
  for (const row of rows) {
    const path: Omit<Served, 'firstDay'> = JSON.parse(row.path)
    found.set(row.item_code, [...(found.get(row.item_code) ?? []), { firstDay: row.first_day, ...path }])
  }
  return found
}
