import type { FastifyRequest } from 'fastify'
import type { Answers, Jobs, Principal, Tenant } from '../../plugins/contracts.js'
import type { Author } from './book.js'
import type { InventoryMetrics } from './metrics.js'

/** Figures of other modules that the item list shows; keyed by item code, an item that is missing has none. */
export type ItemFigures = (tenant: Tenant, itemCodes: readonly string[]) => Promise<ReadonlyMap<string, number>>

/** What the routes share. */
export interface Context {
  readonly answers: Answers
  readonly jobs: Jobs
  readonly metrics: InventoryMetrics
  readonly onOrder: ItemFigures | undefined
  readonly dailyDemand: ItemFigures | undefined
  /** Where uploaded files wait while they are imported. */
  readonly spoolDir: string
}

export const tenantOf = (request: FastifyRequest): Tenant => request.getDecorator<Tenant>('tenant')
const principalOf = (request: FastifyRequest) => request.getDecorator<Principal | null>('principal')

/** Costs are for managers. A host that sets no principal has decided for itself who may call. */
export function seesCost(request: FastifyRequest): boolean {
  const principal = principalOf(request)
  return principal === null || principal.role === 'manager' || principal.role === 'admin'
}

export const authorOf = (request: FastifyRequest): Author => ({
  actor: principalOf(request)?.subject ?? 'host',
  requestId: request.id
})

/** Cached answers differ by what the caller may see. */
export const cacheKey = (request: FastifyRequest): string => `${seesCost(request) ? 'cost' : 'plain'} ${request.url}`
