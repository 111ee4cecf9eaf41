import type { FastifyRequest } from 'fastify'
import type { Answers, Jobs, Principal, Tenant } from '../../plugins/contracts.js'
import type { Frequency } from '../../schemas/forecasting.js'
import type { ConsumptionSource } from './derive.js'
import { ItemNotFound, NotTrained } from './errors.js'
import { createForecastStore, type ForecastingTables } from './store.js'

export const NAMESPACE = 'forecasting'

/** What the routes of this module work with. */
export interface Context {
  answers: Answers
  jobs: Jobs
  consumption: ConsumptionSource
  now: () => number
}

export const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
export const subjectOf = (request: FastifyRequest) =>
  request.getDecorator<Principal | null>('principal')?.subject ?? null
/** French when the caller's languages begin with it, English otherwise. */
export const localeOf = (request: FastifyRequest) =>
  /^\s*fr\b/i.test(request.headers['accept-language'] ?? '') ? 'fr' : 'en'
export const forecastsOf = (tenant: Tenant) => createForecastStore(tenant.db.withTables<ForecastingTables>())

/** @throws FORECAST_ITEM_NOT_FOUND */
export async function requireItem({ consumption }: Context, tenant: Tenant, itemCode: string): Promise<void> {
  const [item] = await consumption.items(tenant, { itemCodes: [itemCode], limit: 1 })
  if (item === undefined) throw new ItemNotFound({ itemCode })
}

/** The stored forecast of an item, daily before weekly where none is named. @throws FORECAST_NOT_TRAINED, FORECAST_ITEM_NOT_FOUND */
export async function requireForecast(context: Context, tenant: Tenant, itemCode: string, frequency?: Frequency) {
  for (const each of frequency === undefined ? (['day', 'week'] as const) : [frequency]) {
    const row = await forecastsOf(tenant).forecast(itemCode, each)
    if (row !== undefined) return row
  }
  await requireItem(context, tenant, itemCode)
  throw new NotTrained({ itemCode, frequency: frequency ?? 'day, week' })
}
