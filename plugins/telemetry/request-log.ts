import type { FastifyBaseLogger, FastifyInstance, FastifyRequest, FastifyServerOptions } from 'fastify'
import { agentOf } from '../audit.js'
import type { Tenant } from '../contracts.js'
import type { Tracing } from './tracing.js'

const REQUEST = Symbol('request')
const REQUEST_ID = Symbol('request id')
export interface Told {
  [REQUEST]?: FastifyRequest
  [REQUEST_ID]?: string
}

/** Ids that connect a line of the log with the audit trail, the ledger and the trace. No names. */
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

/**
 * A request's own log. A child of pino's kind has its fields written and redacted when it is made, for every request, though hardly any
 * request says anything; this one is the service's log itself, and knows the id when a line is written.
 */
export const requestLog: NonNullable<FastifyServerOptions['childLoggerFactory']> = (log, bindings, options) => {
  if (options.level !== undefined || options.serializers !== undefined) return log.child(bindings, options)
  const own: FastifyBaseLogger & Told = Object.create(log)
  own[REQUEST_ID] = String(bindings.reqId)
  return own
}

/** pino's `mixin`: what every line says beside its own fields. */
export function lineFields(tracing: Pick<Tracing, 'traceId'>) {
  return (_fields: object, _level: number, logger: object & Told): object => {
    const { [REQUEST]: request, [REQUEST_ID]: reqId } = logger
    if (request !== undefined) return { reqId, ...whoAsked(request) }
    const traceId = tracing.traceId()
    return { ...(reqId === undefined ? {} : { reqId }), ...(traceId === undefined ? {} : { traceId }) }
  }
}
