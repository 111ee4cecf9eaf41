import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { anomalyMigrations } from '../../migrations/anomaly.js'
import {
  type Answers,
  type EnterModule,
  forEachOf,
  type Migrations,
  type ModuleOptions,
  type Tenant
} from '../../plugins/contracts.js'
import { openCounts } from './headline.js'
import { createAnomalyMetrics } from './metrics.js'
import { routes } from './routes.js'
import type { SeriesSource, UnusualDays } from './scan.js'

export interface AnomalyOptions extends ModuleOptions {
  /** Where daily consumption is read from. Without it there is nothing to look at. */
  series?: SeriesSource
  /** Which days are not as usual, and so no anomalies; none without it. */
  unusualDays?: UnusualDays
  /** The clock, milliseconds since 1970. */
  now?: () => number
  /** Whose figures the metrics show from the start; without it, each tenant's once something of it was found or handled. */
  tenants?: () => Promise<readonly Tenant[]>
}

async function anomaly(app: FastifyInstance, options: AnomalyOptions) {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  app.getDecorator<Migrations>('migrations').add({ module: 'anomaly', migrations: anomalyMigrations })
  const metrics = createAnomalyMetrics(app.getDecorator<Registry>('registry'))
  const { series = async () => [], unusualDays, now = Date.now, tenants } = options
  if (tenants !== undefined) {
    app.addHook('onReady', async () => {
      await forEachOf(await tenants(), async (tenant) => metrics.observe(tenant.id, await openCounts(tenant)))
    })
  }
  await app.register(routes, { answers: app.getDecorator<Answers>('answers'), series, unusualDays, metrics, now })
}

export { anomalyMigrations as migrations } from '../../migrations/anomaly.js'
export { type AnomalyHeadline, anomalyHeadline } from './headline.js'
export { personalData } from './personal.js'
export type { DailySeries, SeriesSource, UnusualDays } from './scan.js'
export default fp(anomaly, {
  name: 'inventory-enterprise/anomaly',
  fastify: '5.x',
  encapsulate: true,
  decorators: { fastify: ['enterModule', 'answers', 'registry', 'migrations'], request: ['tenant', 'principal'] }
})
