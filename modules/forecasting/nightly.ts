import type { JobContext, Jobs, Tenant } from '../../plugins/contracts.js'
import type { Frequency, TrainRequest } from '../../schemas/forecasting.js'
import type { Aggregation } from './aggregates.js'
import { createConsumptionStore } from './consumption-store.js'
import type { Derivation } from './derive.js'
import { createLearningStore } from './learning-store.js'
import { createForecastStore, type ForecastingTables } from './store.js'
import type { TrainingReport } from './train.js'
import type { Failure } from './worker.js'

export const NIGHTLY_JOB = 'forecasting.nightly'
/** What is known beforehand has changed: everything it touches is trained again, as at night. */
export const CALENDAR_RUN = 'forecasting.calendar'
/** What items serve has changed: the sums are made again. */
export const SUMS_RUN = 'forecasting.sums'
/** From this hour of the day on (UTC) the day's training is due; a service that was down then does it when it is back. */
export const NIGHTLY_HOUR = 2
/** What may be asked for, and the job that does it. */
const REQUESTED = [
  [CALENDAR_RUN, NIGHTLY_JOB],
  [SUMS_RUN, SUMS_RUN]
] as const
const ITEMS_PER_PAGE = 500

export interface NightlyReport {
  trained: number
  skipped: number
  failed: Failure[]
  /** forecasts of categories, locations and the total */
  aggregates: number
  durationSeconds: number
}
interface Dependencies {
  jobs: Jobs
  derivation: Derivation
  train(context: JobContext<TrainRequest>): Promise<TrainingReport>
  aggregate: Aggregation['train']
  now: () => number
  /** hour of the day (UTC) */
  hour: number
}

/** Each series as it was last asked for, and what was never trained by the defaults; one group for each set of parameters. */
async function groups(tenant: Tenant, derivation: Derivation): Promise<TrainRequest[]> {
  const db = tenant.db.withTables<ForecastingTables>()
  const consumption = createConsumptionStore(tenant.db)
  const forecasts = createForecastStore(db)
  const byParameters = new Map<string, string[]>()
  const add = (itemCode: string, frequency: Frequency, parameters: string) => {
    const key = JSON.stringify({ ...JSON.parse(parameters), frequency })
    const group = byParameters.get(key) ?? []
    group.push(itemCode)
    byParameters.set(key, group)
  }
  for (let after: string | undefined; ; ) {
    const page = (await consumption.items(after, ITEMS_PER_PAGE)).map(({ item_code }) => item_code)
    const existing = await derivation.existing(tenant, page)
    const trained = new Set<string>()
    for (const { item_code, frequency, parameters } of await forecasts.parameters(page)) {
      trained.add(item_code)
      if (existing.has(item_code)) add(item_code, frequency, parameters ?? '{}')
    }
    for (const code of page) if (existing.has(code) && !trained.has(code)) add(code, 'day', '{}')
    if (page.length < ITEMS_PER_PAGE) break
    after = page.at(-1)
  }
  return [...byParameters].map(([parameters, itemCodes]) => ({ ...JSON.parse(parameters), itemCodes }))
}

/** The nightly training of everything: once a day in a cluster, as a job. */
export function createNightly({ jobs, derivation, train, aggregate, now, hour }: Dependencies) {
  return {
    /** Starts the day's job if it is due and no node has: a row of the tenant's database says who does. */
    async tick(tenant: Tenant): Promise<void> {
      const at = new Date(now())
      if (at.getUTCHours() < hour) return
      const day = at.toISOString().slice(0, 10)
      if (await createLearningStore(tenant.db, tenant.dialect).isScheduled(NIGHTLY_JOB, day, now())) return
      const isOurs = await tenant.transact((tx) =>
        createLearningStore(tx.db, tenant.dialect).claimSchedule(NIGHTLY_JOB, day, now())
      )
      if (!isOurs) return
      const { id } = await jobs.start(tenant, NIGHTLY_JOB, {})
      await tenant.transact((tx) => createLearningStore(tx.db, tenant.dialect).keepSchedule(NIGHTLY_JOB, day, id))
    },

    /** Starts what a change of the calendar or of a served figure asked for; several changes at once ask for one run. */
    async startRequested(tenant: Tenant): Promise<void> {
      for (const [name, kind] of REQUESTED) {
        if (!(await createLearningStore(tenant.db, tenant.dialect).isRunRequested(name))) continue
        const at = now()
        const isOurs = await tenant.transact((tx) => createLearningStore(tx.db, tenant.dialect).claimRun(name, at))
        if (!isOurs) continue
        const { id } = await jobs.start(tenant, kind, {})
        await tenant.transact((tx) => createLearningStore(tx.db, tenant.dialect).keepRun(name, at, id))
      }
    },

    async run({ tenant, signal, progress, ...context }: JobContext<unknown>): Promise<NightlyReport> {
      const startedAt = performance.now()
      await derivation.catchUp(tenant, signal)
      await derivation.deriveStale(tenant, undefined, { signal, advance: () => {} })
      const all = await groups(tenant, derivation)
      const total = all.reduce((sum, { itemCodes = [] }) => sum + itemCodes.length, 0)
      const report: NightlyReport = { trained: 0, skipped: 0, failed: [], aggregates: 0, durationSeconds: 0 }
      let before = 0
      for (const params of all) {
        const step = (done: number) => progress(before + done, total)
        const { trained, skipped, failed } = await train({ ...context, tenant, params, signal, progress: step })
        report.trained += trained
        report.skipped += skipped
        report.failed.push(...failed)
        before += params.itemCodes?.length ?? 0
      }
      report.aggregates = await aggregate(tenant, signal, (done, sums) => progress(total + done, total + sums))
      report.durationSeconds = Math.round(performance.now() - startedAt) / 1000
      return report
    }
  }
}
