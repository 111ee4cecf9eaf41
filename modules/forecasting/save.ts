import type { Kysely } from 'kysely'
import { prepared, send, type Transaction } from '../../plugins/contracts.js'
import type { Frequency } from '../../schemas/forecasting.js'
import type { Override } from './outcomes.js'
import { servedForecast } from './overrides.js'
import type { ForecastingTables, TrainingParameters } from './store.js'
import type { Trained } from './worker.js'

/**
 * What was trained is stored: a new version per item, whose forecast serves from now on. Statements are compiled once and sent without
 * waiting for one another, since the event loop, and on PostgreSQL each way to the server, is what requests wait for while models train.
 */

/** Older versions of a series' model than this many are removed. */
export const VERSIONS_KEPT = 5

export interface SaveOptions {
  frequency: Frequency
  /** periods */
  horizon: number
  now: number
  parameters: TrainingParameters
  /** what people said of the items, the oldest first */
  overridesOf(itemCodes: readonly string[]): Promise<ReadonlyMap<string, readonly Override[]>>
}

type Model = ForecastingTables['ai_models']
type Forecast = Omit<ForecastingTables['ai_forecasts'], 'reconciled'>
type Served = ForecastingTables['forecast_served']
type Series = Pick<Model, 'item_code' | 'frequency'>

const tables = (root: Kysely<unknown>) => root.withTables<ForecastingTables>()

const archive = prepared<{ id: string }, unknown>((root, slot) =>
  tables(root).updateTable('ai_models').set({ status: 'archived' }).where('id', '=', slot('id'))
)

const insertModel = prepared<Omit<Model, 'status'>, unknown>((root, slot) =>
  tables(root)
    .insertInto('ai_models')
    .values({
      id: slot('id'),
      item_code: slot('item_code'),
      frequency: slot('frequency'),
      version: slot('version'),
      model: slot('model'),
      status: 'active',
      trained_at: slot('trained_at'),
      horizon: slot('horizon'),
      artifact: slot('artifact'),
      volume: slot('volume'),
      wape: slot('wape'),
      mase: slot('mase'),
      bias: slot('bias'),
      coverage80: slot('coverage80'),
      coverage95: slot('coverage95'),
      baseline_wape: slot('baseline_wape'),
      serves_baseline: slot('serves_baseline')
    })
)

const upsertForecast = prepared<Forecast, unknown>((root, slot) =>
  tables(root)
    .insertInto('ai_forecasts')
    .values({
      item_code: slot('item_code'),
      frequency: slot('frequency'),
      model_id: slot('model_id'),
      data_hash: slot('data_hash'),
      answer: slot('answer'),
      distribution: slot('distribution'),
      daily_mean: slot('daily_mean'),
      model_answer: slot('model_answer'),
      model_distribution: slot('model_distribution'),
      reconciled: null,
      parameters: slot('parameters')
    })
    .onConflict((conflict) =>
      conflict.columns(['item_code', 'frequency']).doUpdateSet(({ ref }) => ({
        model_id: ref('excluded.model_id'),
        data_hash: ref('excluded.data_hash'),
        answer: ref('excluded.answer'),
        distribution: ref('excluded.distribution'),
        daily_mean: ref('excluded.daily_mean'),
        model_answer: ref('excluded.model_answer'),
        model_distribution: ref('excluded.model_distribution'),
        reconciled: null,
        parameters: ref('excluded.parameters')
      }))
    )
)

const upsertServed = prepared<Served, unknown>((root, slot) =>
  tables(root)
    .insertInto('forecast_served')
    .values({
      item_code: slot('item_code'),
      frequency: slot('frequency'),
      first_day: slot('first_day'),
      path: slot('path')
    })
    .onConflict((conflict) =>
      conflict
        .columns(['item_code', 'frequency', 'first_day'])
        .doUpdateSet(({ ref }) => ({ path: ref('excluded.path') }))
    )
)

const forgetVersions = prepared<Series & { upTo: number }, unknown>((root, slot) =>
  tables(root)
    .deleteFrom('ai_models')
    .where('item_code', '=', slot('item_code'))
    .where('frequency', '=', slot('frequency'))
    .where('version', '<=', slot('upTo'))
)

const answerDrift = prepared<Series & { now: number }, unknown>((root, slot) =>
  tables(root)
    .updateTable('forecast_drift')
    .set({ retrained_at: slot('now') })
    .where('item_code', '=', slot('item_code'))
    .where('frequency', '=', slot('frequency'))
    .where('retrained_at', 'is', null)
)

/** Archives what served of these items, stores what was trained, and notes that what had drifted was trained again. */
export async function saveTrained(tx: Transaction, all: readonly Trained[], options: SaveOptions): Promise<void> {
  const { frequency, now } = options
  const itemCodes = all.map(({ itemCode }) => itemCode)
  const [serving, overrides] = await Promise.all([
    tables(tx.db)
      .selectFrom('ai_forecasts as forecast')
      .innerJoin('ai_models as model', 'model.id', 'forecast.model_id')
      .select(['model.id', 'model.item_code', 'model.version'])
      .where('forecast.item_code', 'in', itemCodes)
      .where('forecast.frequency', '=', frequency)
      .execute(),
    options.overridesOf(itemCodes)
  ])
  const before = new Map(serving.map((row) => [row.item_code, row]))
  for (const trained of all) {
    const old = before.get(trained.itemCode)
    if (old !== undefined) await send(tx, archive(tx.db, { id: old.id }))
    await saveOne(tx, trained, (old?.version ?? 0) + 1, overrides.get(trained.itemCode) ?? [], options)
    await send(tx, answerDrift(tx.db, { item_code: trained.itemCode, frequency, now }))
  }
}

async function saveOne(
  tx: Transaction,
  trained: Trained,
  version: number,
  overrides: readonly Override[],
  { frequency, horizon, now, parameters }: SaveOptions
): Promise<void> {
  const { accuracy, answer, distribution, dailyMean: daily_mean } = trained
  const series = { item_code: trained.itemCode, frequency }
  const model = {
    ...series,
    id: trained.id,
    version,
    model: trained.model,
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
  }
  const own = { answer, distribution, daily_mean }
  // Most have none, and the answer is a long text to read.
  const shown =
    overrides.length === 0
      ? { ...own, model_answer: null, model_distribution: null }
      : servedForecast(own, null, overrides)
  const forecast = {
    ...series,
    model_id: trained.id,
    data_hash: trained.dataHash,
    parameters: JSON.stringify(parameters),
    ...shown
  }
  await send(tx, insertModel(tx.db, model))
  await send(tx, upsertForecast(tx.db, forecast))
  await send(tx, upsertServed(tx.db, { ...series, first_day: trained.firstDay, path: trained.served }))
  await send(tx, forgetVersions(tx.db, { ...series, upTo: version - VERSIONS_KEPT }))
}
