import { type Kysely, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import type { Frequency, ModelRow } from '../../schemas/forecasting.js'
import type { ConsumptionTables } from './consumption-store.js'
import type { Trained } from './worker.js'

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
}
export type ForecastingTables = ConsumptionTables & {
  ai_models: AiModel
  ai_forecasts: AiForecast
}

/** Older versions of a series' model than this many are removed. */
export const VERSIONS_KEPT = 5

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

  const saveModel = async (trained: Trained, frequency: Frequency, horizon: number, now: number, version: number) => {
    const { accuracy } = trained
    await db
      .insertInto('ai_models')
      .values({
        id: trained.id,
        item_code: trained.itemCode,
        frequency,
        version,
        model: trained.model,
        status: 'active',
        trained_at: now,
        horizon,
        artifact: trained.artifact,
        volume: trained.volume,
        wape: accuracy.wape,
        mase: accuracy.mase,
        bias: accuracy.bias,
        coverage80: accuracy.coverage80,
        coverage95: accuracy.coverage95,
        baseline_wape: trained.baselineWape,
        serves_baseline: trained.servesBaseline ? 1 : 0
      })
      .execute()
    const forecast = {
      model_id: trained.id,
      data_hash: trained.dataHash,
      answer: trained.answer,
      distribution: trained.distribution,
      daily_mean: trained.dailyMean
    }
    await db
      .insertInto('ai_forecasts')
      .values({ item_code: trained.itemCode, frequency, ...forecast })
      .onConflict((conflict) => conflict.columns(['item_code', 'frequency']).doUpdateSet(forecast))
      .execute()
    await db
      .deleteFrom('ai_models')
      .where('item_code', '=', trained.itemCode)
      .where('frequency', '=', frequency)
      .where('version', '<=', version - VERSIONS_KEPT)
      .execute()
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

    /** A new version per item, whose forecast serves from now on; the version before is archived. */
    async save(all: readonly Trained[], frequency: Frequency, horizon: number, now: number): Promise<void> {
      const itemCodes = all.map(({ itemCode }) => itemCode)
      const serving = await db
        .selectFrom('ai_forecasts as forecast')
        .innerJoin('ai_models as model', 'model.id', 'forecast.model_id')
        .select(['model.id', 'model.item_code', 'model.version'])
        .where('forecast.item_code', 'in', itemCodes)
        .where('forecast.frequency', '=', frequency)
        .execute()
      const versions = new Map(serving.map((row) => [row.item_code, row.version]))
      if (serving.length > 0) {
        const ids = serving.map(({ id }) => id)
        await db.updateTable('ai_models').set({ status: 'archived' }).where('id', 'in', ids).execute()
      }
      for (const trained of all) {
        await saveModel(trained, frequency, horizon, now, (versions.get(trained.itemCode) ?? 0) + 1)
      }
    },

    /** The stored answer; without a frequency the daily one, else the weekly. */
    answer: (itemCode: string, frequency: Frequency | undefined) => {
      let query = db.selectFrom('ai_forecasts').select('answer').where('item_code', '=', itemCode)
      if (frequency !== undefined) query = query.where('frequency', '=', frequency)
      return query.orderBy('frequency').limit(1).executeTakeFirst()
    },

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

    /** Accuracy of what serves, by model; relative errors weighted by volume, the others by series. */
    accuracy: () =>
      db
        .selectFrom('ai_models')
        .where('status', '=', 'active')
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

    /** Mean forecast per day: the weekly one where no daily one was trained. */
    async dailyMeans(itemCodes: readonly string[]): Promise<Map<string, number>> {
      const json = JSON.stringify(itemCodes)
      // One parameter: every list of stock asks this, and binding each code apart costs more than the answer.
      const names = isPostgres(db)
        ? sql`select jsonb_array_elements_text(${json}::jsonb)`
        : sql`select value from json_each(${json})`
      const { rows } = await sql<{ item_code: string; daily_mean: number }>`
        select item_code, daily_mean from ${sql.table('ai_forecasts')}
        where item_code in (${names}) order by item_code, frequency desc`.execute(db)
      return new Map(rows.map((row) => [row.item_code, row.daily_mean]))
    },

    answers: (itemCodes: readonly string[]) =>
      db
        .selectFrom('ai_forecasts')
        .select(['item_code', 'frequency', 'answer', 'distribution'])
        .where('item_code', 'in', [...itemCodes])
        .orderBy('item_code')
        .orderBy('frequency', 'desc')
        .execute(),

    lastTrainedAt: async () => {
      const { rows } = await sql<{ at: number | null }>`
        select max(trained_at) as at from ${sql.table('ai_models')} where status = 'active'`.execute(db)
      return rows[0]?.at ?? null
    }
  }
}

export type ForecastStore = ReturnType<typeof createForecastStore>
