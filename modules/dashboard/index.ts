import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import {
  type Answers,
  access,
  type EnterModule,
  type ModuleOptions,
  type Principal,
  type Tenant
} from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import {
  type AnomaliesHeadline,
  DashboardStats,
  type ForecastsHeadline,
  type InventoryHeadline,
  type RunsOut
} from '../../schemas/dashboard.js'

/** Where the figures come from: each port reads one domain, and is kept until that domain's cached answers are dropped. */
export interface DashboardPorts {
  inventory(tenant: Tenant): Promise<InventoryHeadline>
  forecasts(tenant: Tenant): Promise<ForecastsHeadline>
  anomalies(tenant: Tenant, locale: 'en' | 'fr'): Promise<AnomaliesHeadline>
  /** What runs out first, soonest first. */
  runsOutFirst(tenant: Tenant, limit: number): Promise<RunsOut[]>
}

export interface DashboardOptions extends ModuleOptions, DashboardPorts {}

const RUNS_OUT_SHOWN = 10
const SEES_COST = new Set(['manager', 'admin'])

const seesCost = (request: FastifyRequest) => {
  const principal = request.getDecorator<Principal | null>('principal')
  // A host whose own `authorize` names nobody has decided for itself who may read.
  return principal === null || SEES_COST.has(principal.role)
}

const routes: FastifyPluginAsyncTypebox<DashboardPorts & { answers: Answers }> = async (app, options) => {
  const { answers, inventory, forecasts, anomalies, runsOutFirst } = options
  app.get(
    '/stats',
    {
      config: access('viewer'),
      schema: {
        tags: ['dashboard'],
        summary: 'Headline figures of every domain',
        response: { 200: DashboardStats, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = request.getDecorator<Tenant>('tenant')
      const locale = /^\s*fr\b/i.test(request.headers['accept-language'] ?? '') ? 'fr' : 'en'
      const today = new Date().toISOString().slice(0, 10)
      const part = (namespace: string, key: string, load: () => Promise<unknown>) =>
        tenant.cache.read(namespace, `dashboard:${today}:${key}`, async () => JSON.stringify(await load()))
      const parts = await Promise.all([
        part('inventory', 'headline', () => inventory(tenant)),
        part('forecasting', 'headline', () => forecasts(tenant)),
        part('anomaly', locale, () => anomalies(tenant, locale))
      ])
      const cost = seesCost(request)
      // Named by the content of its parts, the answer cannot be older than any of them.
      const key = [today, cost, ...parts.map(({ etag }) => etag)].join(' ')
      return answers.read(request, reply, 'dashboard', key, async () => {
        const stock: InventoryHeadline = JSON.parse(parts[0].body.toString())
        const forecasting: ForecastsHeadline = JSON.parse(parts[1].body.toString())
        const findings: AnomaliesHeadline = JSON.parse(parts[2].body.toString())
        return {
          ...stock,
          stockValue: cost ? stock.stockValue : null,
          runsOutFirst: await runsOutFirst(tenant, RUNS_OUT_SHOWN),
          forecasts: forecasting,
          anomalies: findings
        }
      })
    }
  )
}

async function dashboard(app: FastifyInstance, options: DashboardOptions) {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const { inventory, forecasts, anomalies, runsOutFirst } = options
  const answers = app.getDecorator<Answers>('answers')
  await app.register(routes, { prefix: '/dashboard', answers, inventory, forecasts, anomalies, runsOutFirst })
}

export default fp(dashboard, {
  name: 'inventory-enterprise/dashboard',
  fastify: '5.x',
  encapsulate: true,
  decorators: { fastify: ['enterModule', 'answers'], request: ['tenant', 'principal'] }
})
