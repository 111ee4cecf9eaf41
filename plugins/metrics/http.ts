import type { FastifyInstance, FastifyRequest } from 'fastify'
import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import { sampledTraceIdOf } from '../telemetry/trace-id.js'
import { openRegistry } from './exposition.js'

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.087, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
const BYTES = [256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 16_777_216]
const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'] as const
type Method = (typeof METHODS)[number] | 'other'
const WITH_BODY = ['POST', 'PUT', 'PATCH'] as const
const PARTS = { body: 'body', querystring: 'query', params: 'path', headers: 'headers' } as const

/** Anybody may send any method, so those that no route has share a label. */
const methodOf = ({ method }: FastifyRequest): Method => METHODS.find((each) => each === method) ?? 'other'

/**
 * Requests by the template of their route, never by what they asked for. Times are kept by method and route alone: with the code
 * as well there would be several thousand series more, of which nobody asks for one (`docs/decisions/0018`).
 */
export function httpMetrics(app: FastifyInstance, registry: Registry, traced: boolean): void {
  const registers = [registry]
  const timed = durationMetric(registry, traced)
  const requests = new Counter({
    name: 'http_requests_total',
    help: 'HTTP requests answered.',
    labelNames: ['method', 'route', 'code'] as const,
    registers
  })
  const { received, answered } = sizeMetrics(registry)
  const { began, ended, aborted } = loadMetrics(app, registry)
  const refused = validationMetrics(registry)
  app.addHook('onRequest', (_request, _reply, done) => {
    began()
    done()
  })
  app.addHook('onResponse', (request, reply, done) => {
    ended()
    const method = methodOf(request)
    const route = request.routeOptions.url ?? 'unmatched'
    requests.inc({ method, route, code: reply.statusCode })
    timed(method, route, reply.elapsedTime / 1000, request)
    received(method, request.headers['content-length'])
    answered(method, reply.getHeader('content-length'))
    done()
  })
  app.addHook('onRequestAbort', (_request, done) => {
    aborted()
    done()
  })
  app.addHook('onError', (_request, _reply, error, done) => {
    if (error.validation !== undefined) refused(error.validationContext)
    done()
  })
}

/** With traces each bucket names one whose request fell into it, in OpenMetrics. */
function durationMetric(registry: Registry, traced: boolean) {
  const options = {
    name: 'http_request_duration_seconds',
    help: 'HTTP request latency.',
    labelNames: ['method', 'route'],
    buckets: SECONDS
  }
  const registers = traced ? [openRegistry()] : [registry]
  const durations = new Histogram<string>({ ...options, registers, enableExemplars: traced })
  if (!traced) {
    return (method: Method, route: string, seconds: number) => durations.observe({ method, route }, seconds)
  }
  registry.registerMetric(durations)
  return (method: Method, route: string, value: number, request: FastifyRequest) => {
    const traceId = sampledTraceIdOf(request)
    const exemplarLabels = traceId === undefined ? {} : { trace_id: traceId }
    durations.observe({ labels: { method, route }, value, exemplarLabels })
  }
}

function sizeMetrics(registry: Registry) {
  const histogram = (name: string, help: string) =>
    new Histogram({ name, help, labelNames: ['method'] as const, buckets: BYTES, registers: [registry] })
  const request = histogram('http_request_size_bytes', 'Bodies received, by their Content-Length.')
  const response = histogram(
    'http_response_size_bytes',
    'Bodies answered, as sent; those that are streamed have no length and are left out.'
  )
  for (const method of WITH_BODY) request.zero({ method })
  for (const method of METHODS) response.zero({ method })
  const observe = (histogram: typeof request, method: Method, length: unknown) => {
    const bytes = typeof length === 'string' || typeof length === 'number' ? Number(length) : Number.NaN
    if (Number.isFinite(bytes)) histogram.observe({ method }, bytes)
  }
  return {
    received: (method: Method, length: unknown) => observe(request, method, length),
    answered: (method: Method, length: unknown) => observe(response, method, length)
  }
}

function loadMetrics(app: FastifyInstance, registry: Registry) {
  let inFlight = 0
  new Gauge({
    name: 'http_requests_in_flight',
    help: 'Requests being served.',
    registers: [registry],
    collect() {
      this.set(inFlight)
    }
  })
  new Gauge({
    name: 'http_connections',
    help: 'Connections that are open, idle ones included.',
    registers: [registry],
    async collect() {
      this.set(await connectionsOf(app))
    }
  })
  const aborted = new Counter({
    name: 'http_requests_aborted_total',
    help: 'Requests closed by the client before the reply.',
    registers: [registry]
  })
  return {
    began: () => {
      inFlight++
    },
    ended: () => {
      inFlight--
    },
    aborted: () => aborted.inc()
  }
}

const connectionsOf = ({ server }: FastifyInstance) =>
  new Promise<number>((resolve) => {
    if (server.listening) server.getConnections((_error, count) => resolve(count ?? 0))
    else resolve(0)
  })

function validationMetrics(registry: Registry) {
  const failures = new Counter({
    name: 'http_validation_failures_total',
    help: 'Requests refused because a part of them does not fit the schema of their route.',
    labelNames: ['part'] as const,
    registers: [registry]
  })
  for (const part of Object.values(PARTS)) failures.inc({ part }, 0)
  return (context: keyof typeof PARTS | undefined) => failures.inc({ part: PARTS[context ?? 'body'] })
}
