import { randomUUID } from 'node:crypto'
import { type Kysely, type RawBuilder, sql } from 'kysely'
import type { Dialect } from '../../plugins/contracts.js'
import type { DriftKind, Forecast, Frequency } from '../../schemas/forecasting.js'
import { chunks } from './consumption-store.js'
import type { Outcome, Served, Sums } from './outcomes.js'
import { addSums, noSums, SUM_NAMES } from './outcomes.js'
import { createPeopleStore, type PeopleTables } from './people-store.js'

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
export type LearningTables = {
  /** A row per forecast served, until its periods are over and another serves. */
  forecast_served: Series & { first_day: string; path: string }
  forecast_outcomes: OutcomeRow
  /** Sums over items per period and model: what is kept for good. */
  forecast_accuracy: { frequency: Frequency; period: string; model: string; sums: string }
  forecast_drift: DriftRow
} & PeopleTables

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
const OUTCOMES_PER_SUM = 1_000
const FORGOTTEN_AT_ONCE = 200

/** The same sums as `sumOutcomes` makes, in SQL. */
const ERROR = 'abs(mean - actual)'
const BASELINE_ERROR = 'abs(baseline - actual)'
const when = (condition: string, value: string) => `coalesce(sum(case when ${condition} then ${value} end), 0)`
const EXPRESSIONS: Record<keyof Sums, string> = {
  periods: 'count(*)',
  actual: 'sum(abs(actual))',
  absolute: `sum(${ERROR})`,
  signed: 'sum(mean - actual)',
  baselineAbsolute: `sum(${BASELINE_ERROR})`,
  scaled: when('scale > 0', `${ERROR} / scale`),
  baselineScaled: when('scale > 0', `${BASELINE_ERROR} / scale`),
  scaledPeriods: when('scale > 0', '1'),
  inside80: when('lower80 <= actual and actual <= upper80', '1'),
  inside95: when('lower95 <= actual and actual <= upper95', '1'),
  overridden: when('overridden = 1', '1'),
  overrideActual: when('overridden = 1', 'abs(actual)'),
  overrideAbsolute: when('overridden = 1', ERROR),
  overrideModelAbsolute: when('overridden = 1', 'abs(model_mean - actual)')
}
const SUMS = sql.raw(SUM_NAMES.map((name) => `${EXPRESSIONS[name]} as "${name}"`).join(', '))
const numeric = (part: Sums): Sums => {
  const sums = noSums()
  for (const name of SUM_NAMES) sums[name] = Number(part[name])
  return sums
}
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
/** What was served and what became of it, with what people said of it. */
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

  /** Deletes some rows of a series' table that `which` names; answers how many. */
  const forget = async (table: 'forecast_outcomes' | 'forecast_served', day: string, which: RawBuilder<unknown>) => {
    const key = sql.raw(`item_code, frequency, ${day}`)
    const { numAffectedRows = 0n } = await sql`delete from ${sql.table(table)} where (${key}) in
      (select ${key} from ${sql.table(table)} where ${which} limit ${sql.lit(FORGOTTEN_AT_ONCE)})`.execute(db)
    return Number(numAffectedRows)
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

    /** What is shown of a forecast from now on, which is what will be measured. */
    async serveOtherwise(itemCode: string, frequency: Frequency, { points }: Pick<Forecast, 'points'>): Promise<void> {
      const first = points[0]?.date ?? ''
      const row = await db
        .selectFrom('forecast_served')
        .select('path')
        .where('item_code', '=', itemCode)
        .where('frequency', '=', frequency)
        .where('first_day', '=', first)
        .executeTakeFirst()
      if (row === undefined) return
      const path: Omit<Served, 'firstDay'> = {
        ...JSON.parse(row.path),
        mean: points.map(({ mean }) => mean),
        lower80: points.map(({ lower80 }) => lower80),
        upper80: points.map(({ upper80 }) => upper80),
        lower95: points.map(({ lower95 }) => lower95),
        upper95: points.map(({ upper95 }) => upper95)
      }
      await db
        .updateTable('forecast_served')
        .set({ path: JSON.stringify(path) })
        .where('item_code', '=', itemCode)
        .where('frequency', '=', frequency)
        .where('first_day', '=', first)
        .execute()
    },

    /** Forecasts before the last one of each item are over once their outcomes are stored. */
    async forgetServed(itemCodes: readonly string[], frequency: Frequency, beforeDay: string): Promise<void> {
      await db
        .deleteFrom('forecast_served')
        .where('item_code', 'in', [...itemCodes])
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
      const mark = randomUUID()
      for (const names of chunks(periods, 200)) {
        await db
          .insertInto('forecast_accuracy')
          .values(names.map((period) => ({ frequency, period, model: STALE, sums: mark })))
          .onConflict((conflict) => conflict.columns(['frequency', 'period', 'model']).doUpdateSet({ sums: mark }))
          .execute()
      }
    },
    markedPeriods: (frequency: Frequency): Promise<{ period: string; mark: string }[]> =>
      db
        .selectFrom('forecast_accuracy')
        .select(['period', 'sums as mark'])
        .where('frequency', '=', frequency)
        .where('model', '=', STALE)
        .orderBy('period')
        .execute(),

    /** Sums of one period's outcomes by model, some items at a time. */
    async sumPeriod(frequency: Frequency, period: string, pause: () => Promise<unknown>): Promise<Map<string, Sums>> {
      const sums = new Map<string, Sums>()
      const outcomes = sql`${sql.table('forecast_outcomes')} where period = ${period} and frequency = ${frequency}`
      for (let after: string | undefined = ''; after !== undefined; ) {
        const { rows: last } = await sql<{ code: string }>`select item_code as code from ${outcomes}
          and item_code > ${after} order by item_code limit 1 offset ${sql.lit(OUTCOMES_PER_SUM - 1)}`.execute(db)
        const until: string | undefined = last[0]?.code
        const upTo = until === undefined ? sql`` : sql`and item_code <= ${until}`
        const { rows } = await sql<Sums & { model: string }>`select model, ${SUMS} from ${outcomes}
          and item_code > ${after} ${upTo} and counts = 1 group by model`.execute(db)
        for (const { model, ...part } of rows) sums.set(model, addSums(sums.get(model) ?? noSums(), numeric(part)))
        after = until
        await pause()
      }
      return sums
    },
    /** Stores a period's sums. What changed since they were `mark`ed stays marked. */
    async replaceAccuracy(
      frequency: Frequency,
      period: string,
      byModel: ReadonlyMap<string, Sums>,
      mark: string
    ): Promise<void> {
      await db
        .deleteFrom('forecast_accuracy')
        .where('frequency', '=', frequency)
        .where('period', '=', period)
        .where((eb) => eb.or([eb('model', '<>', STALE), eb('sums', '=', mark)]))
        .execute()
      for (const [model, sums] of byModel) {
        await db
          .insertInto('forecast_accuracy')
          .values({ frequency, period, model, sums: JSON.stringify(sums) })
          .execute()
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

    /** Forgets some; true while there are more. */
    async forgetOutcomes(beforePeriod: string): Promise<boolean> {
      return (await forget('forecast_outcomes', 'period', sql`period < ${beforePeriod}`)) >= FORGOTTEN_AT_ONCE
    },

    /** Forgets some of what became of later periods, and of what was served from a later day on; answers how much. */
    async forgetAfter(frequency: Frequency, lastPeriod: string, firstDay: string): Promise<number> {
      const { numDeletedRows } = await db
        .deleteFrom('forecast_accuracy')
        .where('frequency', '=', frequency)
        .where('period', '>', lastPeriod)
        .executeTakeFirst()
      const ofIt = sql`frequency = ${frequency}`
      const outcomes = await forget('forecast_outcomes', 'period', sql`${ofIt} and period > ${lastPeriod}`)
      const served = await forget('forecast_served', 'first_day', sql`${ofIt} and first_day > ${firstDay}`)
      return Number(numDeletedRows) + outcomes + served
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

    ...createPeopleStore(root)
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
