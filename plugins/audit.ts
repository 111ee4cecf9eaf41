import type { FastifyRequest } from 'fastify'
import type { Agent, Audit, AuditEntry, AuditTrail, Principal, Tenant, Writer } from './contracts.js'
import { Problem } from './http/problem.js'
import { traceIdOf } from './telemetry/trace-id.js'

/** What the process does by itself: upkeep, jobs. */
export const SYSTEM: Agent = {
  actor: 'system',
  role: null,
  method: null,
  session: null,
  requestId: null,
  traceId: null,
  address: null
}

/** Who makes a request, as the audit trail names them. */
export function agentOf(request: FastifyRequest): Agent {
  const principal = request.getDecorator<Principal | null>('principal')
  return {
    actor: principal?.subject ?? null,
    role: principal?.role ?? null,
    method: principal === null ? null : (principal.method ?? 'token'),
    session: principal?.session ?? null,
    requestId: request.id,
    traceId: traceIdOf(request),
    address: request.ip
  }
}

export interface AuditService extends Audit {
  append(tx: Writer, agent: Agent, entries: readonly AuditEntry[]): Promise<void>
  /** An answer that refused somebody, and the problem it told. */
  denied(request: FastifyRequest, error: unknown): void
}

/** Hands entries to the module that keeps them; without one they go nowhere. */
export function createAudit(): AuditService {
  let trail: AuditTrail | undefined
  const noted = new WeakSet<FastifyRequest>()

  const note: Audit['note'] = (request, entry) => {
    noted.add(request)
    trail?.note(request.getDecorator<Tenant | null>('tenant'), agentOf(request), entry)
  }
  return {
    note,
    keepIn: (given) => {
      if (trail !== undefined) throw new Error('only one module may keep the audit trail')
      trail = given
    },
    append: async (tx, agent, entries) => {
      if (entries.length > 0) await trail?.append(tx, agent, entries)
    },
    denied: (request, error) => {
      if (noted.has(request)) return
      note(request, { action: 'auth.denied', outcome: 'denied', object: routeOf(request), details: reasonOf(error) })
    }
  }
}

/** Coded reasons alone, no text that came with the request. */
const REASON = /^[a-z][a-z-]{0,39}$/
function reasonOf(error: unknown): { code: string; reason?: string } {
  if (!(error instanceof Problem)) return { code: '' }
  const { reason } = error.params
  return { code: error.code, ...(typeof reason === 'string' && REASON.test(reason) ? { reason } : {}) }
}

/** The route and not the path: what was refused is counted by it. */
const routeOf = (request: FastifyRequest) => ({
  type: 'route',
  id: `${request.method} ${request.routeOptions.url ?? ''}`.trim()
})

/** What a write that says nothing itself is recorded as. */
export const defaultEntry = (request: FastifyRequest, status: number): AuditEntry => ({
  action: routeOf(request).id,
  object: { type: 'path', id: request.url.split('?', 1)[0] ?? '' },
  details: { status }
})
