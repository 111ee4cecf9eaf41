import { context, type Span, SpanStatusCode } from '@opentelemetry/api'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { agentOf } from '../audit.js'
import type { Tenant } from '../contracts.js'
import type { Provider } from './provider.js'
import { keepTraceId } from './trace-id.js'

/** Asked all the time by machines, and of no interest to anybody afterwards. */
const SILENT = /^\/(metrics|health)(\/|$)/

/** A span for each request, by the template of its route; what it causes is found below it. */
export function traceRequests(app: FastifyInstance, provider: Provider): void {
  const spans = new WeakMap<FastifyRequest, Span>()

  app.addHook('onRequest', (request, _reply, done) => {
    const { method, headers, routeOptions, protocol } = request
    const route = routeOptions.url ?? 'unmatched'
    if (SILENT.test(route)) return done()
    const attributes = {
      'http.request.method': method,
      'http.route': route,
      'url.scheme': protocol,
      'inventory.request_id': request.id
    }
    const span = provider.serve(`${method} ${route}`, attributes, headers)
    spans.set(request, span)
    keepTraceId(request, { traceId: span.spanContext().traceId, sampled: span.isRecording() })
    context.with(provider.contextOf(span), done)
  })
  // The body comes with the events of the socket, which know nothing of the hook above.
  app.addHook('preValidation', (request, _reply, done) => {
    const span = spans.get(request)
    if (span === undefined) done()
    else context.with(provider.contextOf(span), done)
  })
  const end = (request: FastifyRequest, reply?: FastifyReply) => {
    const span = spans.get(request)
    if (span === undefined) return
    spans.delete(request)
    if (span.isRecording()) {
      const tenant = request.getDecorator<Tenant | null>('tenant')?.id
      const { actor } = agentOf(request)
      if (tenant !== undefined) span.setAttribute('inventory.tenant', tenant)
      if (actor !== null) span.setAttribute('enduser.id', actor)
      if (reply === undefined) span.setAttribute('error.type', 'aborted')
      else span.setAttribute('http.response.status_code', reply.statusCode)
      if (reply === undefined || reply.statusCode >= 500) span.setStatus({ code: SpanStatusCode.ERROR })
    }
    span.end()
  }
  app.addHook('onResponse', (request, reply, done) => {
    end(request, reply)
    done()
  })
  app.addHook('onRequestAbort', (request, done) => {
    end(request)
    done()
  })
}
