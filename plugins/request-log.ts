import type { FastifyBaseLogger, FastifyInstance, FastifyRequest } from 'fastify'
import { agentOf } from './audit.js'
import type { Tenant } from './contracts.js'
import type { Tracing } from './tracing.js'

const REQUEST = Symbol('request')
export interface Told {
  [REQUEST]?: FastifyRequest
}

/** Ids that connect a line of the log with the audit trail, the ledger and the trace; `reqId` is there by itself. No names. */
export function whoAsked(request: FastifyRequest) {
  const { actor = null, role = null, traceId = null } = 'principal' in request ? agentOf(request) : {}
  const tenant = 'tenant' in request ? request.getDecorator<Tenant | null>('tenant')?.id : undefined
  return { route: request.routeOptions.url, tenant, actor, role, traceId }
}

/** Tells each request's log whose it is. What is not written costs nothing: the ids are asked for when a line is. */
export function logRequests(app: FastifyInstance): void {
  app.addHook('onRequest', function nameLog(request, _reply, done) {
    const log: FastifyBaseLogger & Told = request.log
    log[REQUEST] = request
    done()
  })
  app.addHook('onResponse', function logAnswer(request, reply, done) {
    const { method, log } = request
    // No URL: what is asked for may be somebody's.
    log.debug({ method, code: reply.statusCode, milliseconds: reply.elapsedTime }, 'answered')
    done()
  })
}

/** pino's `mixin`: what every line says beside its own fields. */
export function lineFields(tracing: Pick<Tracing, 'traceId'>) {
  return (_fields: object, _level: number, logger: object & Told): object => {
    const request = logger[REQUEST]
    if (request !== undefined) return whoAsked(request)
    const traceId = tracing.traceId()
    return traceId === undefined ? {} : { traceId }
  }
}
