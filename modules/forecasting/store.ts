import { type Kysely, sql } from 'kysely'
import type { Frequency, ModelRow } from '../../schemas/forecasting.js'
import type { Aggregate } from '../../schemas/hierarchy.js'
import { type ConsumptionTables, chunks } from './consumption-store.js'
import type { LearningTables } from './learning-store.js'
import type { Override } from './outcomes.js'
import { ownTexts, type Reconciled, servedForecast } from './overrides.js'

type AiModel = {
  id: string
  item_code: string
  frequency: Frequency
  version: number
  model: string
  status: 'active' | 'archived'
  trained_at: number
  horizon: number
  artifact: string
  volume: number
  wape: number | null
  mase: number | null
  bias: number | null
  coverage80: number | null
  coverage95: number | null
  baseline_wape: number | null
  serves_baseline: number
}
type AiForecast = {
  item_code: string
  frequency: Frequency
  model_id: string
  /** names the data and parameters it was trained on */
  data_hash: string
  /** the whole answer of GET, ready to send */
  answer: string
  distribution: string
  daily_mean: number
  /** the model's own, where a person's override is served instead */
  model_answer: string | null
  model_distribution: string | null
  /** means that agree with the sums, served instead of the model's own */
  reconciled: string | null
  /** what was asked for when it was trained, so that the nightly training asks for the same */
  parameters: string | null
}
export type ForecastingTables = ConsumptionTables &
  LearningTables & {
    ai_models: AiModel
    ai_forecasts: AiForecast
    /** The answer for a category, a location or everything, ready to send. */
    ai_aggregates: { frequency: Frequency; level: Aggregate['level']; key: string; answer: string }
    /** The answer for one item at one location, as if it stood alone. */
    ai_location_forecasts: {
      item_code: string
      frequency: Frequency
      location: string
      data_hash: string
      answer: string
    }
  }

/** How a series was asked to be trained. */
export interface TrainingParameters {
  models?: readonly string[]
  horizonDays?: number
  regressors?: readonly string[]
}
export interface ModelFilter {
  itemCode?: string
  model?: string
  frequency?: Frequency
  status?: 'active' | 'archived'
}

export function createForecastStore(db: Kysely<ForecastingTables>) {
  const matching = ({ itemCode, model, frequency, status }: ModelFilter) => {
    let query = db.selectFrom('ai_models')
    if (itemCode !== undefined) query = query.where('item_code', '=', itemCode)
    if (model !== undefined) query = query.where('model', '=', model)
    if (frequency !== undefined) query = query.where('frequency', '=', frequency)
    if (status !== undefined) query = query.where('status', '=', status)
    return query
  }

  return {
    /** Data hashes of what serves now, per item. */
    async hashes(itemCodes: readonly string[], frequency: Frequency): Promise<Map<string, string>> {
      const rows = await db
        .selectFrom('ai_forecasts')
        .select(['item_code', 'data_hash'])
        .where('item_code', 'in', [...itemCodes])
        .where('frequency', '=', frequency)
        .execute()
      return new Map(rows.map((row) => [row.item_code, row.data_hash]))
    },

    /** The stored forecast of one series, the model's own beside what is served. */
    forecast: (itemCode: string, frequency: Frequency) =>
      db
        .selectFrom('ai_forecasts')
        .selectAll()
        .where('item_code', '=', itemCode)
        .where('frequency', '=', frequency)
        .executeTakeFirst(),

    /** How the named items' series were last asked to be trained. */
    parameters: (itemCodes: readonly string[]) =>
      itemCodes.length === 0
        ? Promise.resolve([])
        : db
            .selectFrom('ai_forecasts')
            .select(['item_code', 'frequency', 'parameters'])
            .where('item_code', 'in', [...itemCodes])
            .execute(),

    /**
     * Serves the model's forecast as it agrees with the sums (null: as it stands) and with these overrides, from now on.
     * @returns false where another model has been trained since the row was read, which stays
     */
    async serve(row: AiForecast, reconciled: Reconciled | null, overrides: readonly Override[]): Promise<boolean> {
      const { numUpdatedRows } = await db
        .updateTable('ai_forecasts')
        .set(servedForecast(ownTexts(row), reconciled, overrides))
        .where('item_code', '=', row.item_code)
        .where('frequency', '=', row.frequency)
        .where('model_id', '=', row.model_id)
        .executeTakeFirstOrThrow()
      return numUpdatedRows > 0n
    },

    rows: (itemCodes: readonly string[], frequency: Frequency) =>
      db
        .selectFrom('ai_forecasts')
        .selectAll()
        .where('item_code', 'in', [...itemCodes])
        .where('frequency', '=', frequency)
        .execute(),

    /** Models, newest first: their ids are ordered by time. */
    async models(filter: ModelFilter, after: string | undefined, limit: number): Promise<ModelRow[]> {
      let query = matching(filter)
        .select(['id', 'item_code', 'frequency', 'version', 'model', 'status', 'trained_at', 'wape', 'mase'])
        .select('serves_baseline')
        .orderBy('id', 'desc')
        .limit(limit)
      if (after !== undefined) query = query.where('id', '<', after)
      const rows = await query.execute()
      return rows.map((row) => ({
        id: row.id,
        itemCode: row.item_code,
        frequency: row.frequency,
        version: row.version,
        model: row.model,
        status: row.status,
        trainedAt: new Date(row.trained_at).toISOString(),
        wape: row.wape,
        mase: row.mase,
        servesBaseline: row.serves_baseline === 1
      }))
    },

    model: (id: string) =>
      db
        .selectFrom('ai_models')
        .select(['id', 'version', 'status', 'artifact'])
        .where('id', '=', id)
        .executeTakeFirst(),

    /** The version of a series before the one named. */
    versionBefore: (itemCode: string, frequency: Frequency, version: number) =>
      db
        .selectFrom('ai_models')
        .select(['id', 'version', 'artifact'])
        .where('item_code', '=', itemCode)
        .where('frequency', '=', frequency)
        .where('version', '=', version - 1)
        .executeTakeFirst(),

    /** Accuracy of what serves, by model; relative errors weighted by volume, the others by series. */
    accuracy: (frequency?: Frequency) =>
      matching({ status: 'active', ...(frequency === undefined ? {} : { frequency }) })
        .groupBy(['model', 'frequency'])
        .orderBy('model')
        .orderBy('frequency')
        .select(({ fn, eb }) => [
          'model',
          'frequency',
          fn.countAll<number>().as('series'),
          fn.sum<number>('serves_baseline').as('baselineServes'),
          fn.sum<number>('volume').as('volume'),
          fn.sum<number | null>(eb('volume', '*', eb.ref('wape'))).as('errors'),
          fn.sum<number | null>(eb('volume', '*', eb.ref('bias'))).as('signed'),
          fn.sum<number | null>(eb('volume', '*', eb.ref('baseline_wape'))).as('baselineErrors'),
          fn.avg<number | null>('mase').as('mase'),
          fn.avg<number | null>('coverage80').as('coverage80'),
          fn.avg<number | null>('coverage95').as('coverage95')
        ])
        .execute(),

    answers: (itemCodes: readonly string[]) =>
      db
        .selectFrom('ai_forecasts')
        .select(['item_code', 'frequency', 'answer', 'distribution'])
        .where('item_code', 'in', [...itemCodes])
        .orderBy('item_code')
        .orderBy('frequency', 'desc')
        .execute(),

    async replaceAggregates(frequency: Frequency, all: readonly Aggregate[]): Promise<void> {
      await db.deleteFrom('ai_aggregates').where('frequency', '=', frequency).execute()
      for (const part of chunks(all, 50)) {
        await db
          .insertInto('ai_aggregates')
          .values(part.map((one) => ({ frequency, level: one.level, key: one.key, answer: JSON.stringify(one) })))
          .execute()
      }
    },
    aggregate: (frequency: Frequency, level: Aggregate['level'], key: string) =>
      db
        .selectFrom('ai_aggregates')
        .select('answer')
        .where('frequency', '=', frequency)
        .where('level', '=', level)
        .where('key', '=', key)
        .executeTakeFirst(),
    aggregates: async (frequency: Frequency): Promise<Aggregate[]> =>
      (await db.selectFrom('ai_aggregates').select('answer').where('frequency', '=', frequency).execute()).map(
        ({ answer }) => JSON.parse(answer)
      ),

    /** One item at each of its locations, in their order. */
    locations: (itemCode: string, frequency: Frequency) =>
      db
        .selectFrom('ai_location_forecasts')
        .selectAll()
        .where('item_code', '=', itemCode)
        .where('frequency', '=', frequency)
        .orderBy('location')
        .execute(),
    async saveLocations(rows: readonly ForecastingTables['ai_location_forecasts'][]): Promise<void> {
      for (const row of rows) {
        const { data_hash, answer } = row
        await db
          .insertInto('ai_location_forecasts')
          .values(row)
          .onConflict((conflict) =>
            conflict.columns(['item_code', 'frequency', 'location']).doUpdateSet({ data_hash, answer })
          )
          .execute()
      }
    },
    /** Forgets the forecasts of all other items and locations. */
    async keepLocations(frequency: Frequency, kept: readonly { itemCode: string; location: string }[]): Promise<void> {
      const names = new Set(kept.map(({ itemCode, location }) => JSON.stringify([itemCode, location])))
      const rows = await db
        .selectFrom('ai_location_forecasts')
        .select(['item_code', 'location'])
        .where('frequency', '=', frequency)
        .execute()
      for (const { item_code, location } of rows) {
        if (names.has(JSON.stringify([item_code, location]))) continue
        await db
          .deleteFrom('ai_location_forecasts')
          .where('item_code', '=', item_code)
          .where('frequency', '=', frequency)
          .where('location', '=', location)
          .execute()
      }
    },

    lastTrainedAt: async () => {
      const { rows } = await sql<{ at: number | null }>`
        select max(trained_at) as at from ${sql.table('ai_models')} where status = 'active'`.execute(db)
      return rows[0]?.at ?? null
    }
  }
}

export type ForecastStore = ReturnType<typeof createForecastStore>
