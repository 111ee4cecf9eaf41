import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { Type } from 'typebox'
import { forecastingMigrations } from '../../migrations/forecasting.js'
import {
  type Answers,
  type Breather,
  type Compute,
  type EnterModule,
  type Events,
  forEachOf,
  type Jobs,
  type Migrations,
  type ModuleOptions,
  type Periodic,
  shape,
  type Tenant
} from '../../plugins/contracts.js'
import type { DeriveRequest, TrainRequest } from '../../schemas/forecasting.js'
import { StockMoved } from '../../schemas/inventory.js'
import { createAggregation } from './aggregates.js'
import { createConsumptionStore, markStale } from './consumption-store.js'
import { BARRIER_TOPIC, type ConsumptionSource, createDerivation } from './derive.js'
import { createForecastMetrics } from './metrics.js'
import { createNightly, NIGHTLY_HOUR, NIGHTLY_JOB, SUMS_RUN } from './nightly.js'
import { forecastHeadline } from './ports.js'
import { learningFigures } from './realised.js'
import { AGGREGATE_JOB, DERIVE_JOB, routes, TRAIN_JOB } from './routes.js'
import { createTraining, noSuchItem } from './train.js'

export interface ForecastingOptions extends ModuleOptions {
  /** Where consumption is read from: a ledger's movements per item and day. Without it there is nothing to forecast. */
  consumption?: ConsumptionSource
  /** The clock, milliseconds since 1970. */
  now?: () => number
  /** Whose figures the metrics show from the start; without it, each tenant's once it has trained. */
  tenants?: () => Promise<readonly Tenant[]>
  /** Hour of the day (UTC) from which the nightly training is due (2); null: never. */
  nightlyHour?: number | null
}

const NOTHING_MOVES: ConsumptionSource = { items: async () => [], dailyFlow: async () => [] }

const NIGHTLY_TICK_SECONDS = 300
/** Soon, and late enough for several changes to share one run. */
const CALENDAR_TICK_SECONDS = 30

const Barrier = Type.Object({ id: Type.String() })

async function forecasting(app: FastifyInstance, options: ForecastingOptions) {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  app.getDecorator<Migrations>('migrations').add({ module: 'forecasting', migrations: forecastingMigrations })
  const { consumption = NOTHING_MOVES, now = Date.now, tenants } = options
  const metrics = createForecastMetrics(app.getDecorator<Registry>('registry'))
  const jobs = app.getDecorator<Jobs>('jobs')
  const compute = app.getDecorator<Compute>('compute')
  const breather = app.getDecorator<Breather>('breather')
  const derivation = createDerivation(consumption, now, breather)
  const observe = async (tenant: Tenant) => {
    const { lastTrainedAt, ...summary } = await forecastHeadline(tenant)
    metrics.observe(tenant.id, summary)
    metrics.learnt(tenant.id, await learningFigures(tenant, new Date(now()).toISOString().slice(0, 10)))
    if (lastTrainedAt !== null) metrics.ended(Date.parse(lastTrainedAt))
  }
  if (tenants !== undefined) {
    app.addHook('onReady', async () => {
      await forEachOf(await tenants(), observe)
    })
  }
  subscribe(app.getDecorator<Events>('events'))

  const train = createTraining({
    source: consumption,
    derivation,
    compute,
    metrics,
    now,
    breather,
    observe
  })
  const aggregation = createAggregation({ source: consumption, compute, breather, now })
  const aggregate = aggregation.train
  jobs.define<TrainRequest>({
    kind: TRAIN_JOB,
    run: async (context) => {
      const report = await train(context)
      if (report.trained > 0) await aggregation.refresh(context.tenant, context.signal)
      return report
    }
  })
  jobs.define<unknown>({ kind: SUMS_RUN, run: ({ tenant, signal }) => aggregation.refresh(tenant, signal) })
  jobs.define<unknown>({
    kind: AGGREGATE_JOB,
    run: async ({ tenant, signal, progress }) => {
      await derivation.catchUp(tenant, signal)
      await derivation.deriveStale(tenant, undefined, { signal, advance: () => {} })
      return { aggregates: await aggregate(tenant, signal, progress) }
    }
  })
  const nightly = createNightly({ jobs, derivation, train, aggregate, now, hour: options.nightlyHour ?? NIGHTLY_HOUR })
  jobs.define<unknown>({ kind: NIGHTLY_JOB, run: nightly.run })
  app.getDecorator<Periodic>('periodic').every(CALENDAR_TICK_SECONDS, 'calendar training', nightly.startRequested)
  if (options.nightlyHour !== null) {
    app.getDecorator<Periodic>('periodic').every(NIGHTLY_TICK_SECONDS, 'nightly training', nightly.tick)
  }
  jobs.define<DeriveRequest>({
    kind: DERIVE_JOB,
    run: async ({ tenant, params, signal, progress }) => {
      const startedAt = performance.now()
      let items = 0
      const advance = (count: number) => {
        items += count
        progress(items, Math.max(items, params.itemCodes?.length ?? 0))
      }
      const { itemCodes: named = [] } = params
      const existing = await derivation.existing(tenant, named)
      const known = named.filter((code) => existing.has(code))
      const asked = params.itemCodes === undefined ? params : { ...params, itemCodes: known }
      await derivation.deriveAgain(tenant, asked, { signal, advance })
      const failed = named.flatMap((itemCode) => (existing.has(itemCode) ? [] : [noSuchItem(itemCode)]))
      return { items, failed, durationSeconds: Math.round(performance.now() - startedAt) / 1000 }
    }
  })
  await app.register(routes, { prefix: '/ai', answers: app.getDecorator<Answers>('answers'), jobs, consumption, now })
}

async function noteMoved(payloads: readonly unknown[], tenant: Tenant): Promise<void> {
  const from = new Map<string, string>()
  for (const payload of payloads) {
    if (!shape(StockMoved.payload)(payload)) throw new TypeError(`the payload of ${StockMoved.topic} has another shape`)
    for (const itemCode of payload.itemCodes) {
      const day = from.get(itemCode)
      if (day === undefined || payload.fromDay < day) from.set(itemCode, payload.fromDay)
    }
  }
  // The events are forgotten by a later commit, so that where this is lost, that is too.
  await tenant.transact(({ db }) => markStale(db, from), { durability: 'relaxed' })
}

/** Notes what moved, so that only that is derived again. */
function subscribe(events: Events): void {
  events.subscribe({
    topic: StockMoved.topic,
    name: 'forecasting.stale',
    handle: ({ payload }, tenant) => noteMoved([payload], tenant),
    handleAll: async (moved, tenant) => {
      await noteMoved(
        moved.map(({ payload }) => payload),
        tenant
      )
      return []
    }
  })
  events.subscribe({
    topic: BARRIER_TOPIC,
    name: 'forecasting.barrier',
    async handle({ payload }, tenant) {
      if (!shape(Barrier)(payload)) throw new TypeError(`the payload of ${BARRIER_TOPIC} has another shape`)
      await tenant.transact(({ db }) => createConsumptionStore(db).addBarrier(payload.id))
    }
  })
}

export { forecastingMigrations as migrations } from '../../migrations/forecasting.js'
export type { ConsumptionSource, DailyFlow } from './derive.js'
export { personalData } from './personal.js'
export {
  accuracySummary,
  type ConsumptionSeries,
  consumptionSeries,
  dailyDemand,
  type ForecastHeadline,
  forecastHeadline,
  type LeadTimeDemand,
  leadTimeDemand,
  type RunOut,
  runOut,
  unusualDays
} from './ports.js'

export default fp(forecasting, {
  name: 'inventory-enterprise/forecasting',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'answers', 'registry', 'migrations', 'jobs', 'compute', 'breather', 'events', 'periodic'],
    request: ['tenant', 'principal']
  }
})
