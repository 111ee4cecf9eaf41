import compress from '@fastify/compress'
import cors from '@fastify/cors'
import helmet from '@fastify/helmet'
import rateLimit from '@fastify/rate-limit'
import Fastify, { type FastifyInstance } from 'fastify'
import type { Registry } from 'prom-client'
import type { RedisLink } from '../redis.js'
import { refuseEncoded } from './bodies.js'
import { answerProblem, MethodNotAllowed, RouteNotFound, TooManyRequests } from './errors.js'
import { networkOf } from './network.js'
import { countingStore, limitMetrics, limitRoutes, type RateLimits } from './rate-limits.js'

const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']

interface HttpOptions {
  version: string
  corsOrigins: readonly string[]
  /** Of each address; 0: no limit. */
  requestsPerMinute: number
  rateLimits: RateLimits
  redis: RedisLink | null
  registry: Registry
}

/** What the whole service wears: security headers, CORS, limits, compression. A host brings its own. */
export async function registerHttp(app: FastifyInstance, options: HttpOptions): Promise<void> {
  const security = await securityHeaders()
  app.addHook('onRequest', (request, reply, done) => {
    reply.headers(security).header('x-request-id', request.id).header('vary', 'accept-encoding')
    done()
  })
  if (options.corsOrigins.length > 0) {
    await app.register(cors, {
      origin: [...options.corsOrigins],
      methods: METHODS,
      credentials: false,
      exposedHeaders: ['etag', 'location', 'retry-after', 'x-request-id']
    })
  }
  const refusals = limitMetrics(options.registry)
  await app.register(rateLimit, {
    global: false,
    max: options.requestsPerMinute,
    timeWindow: '1 minute',
    keyGenerator: ({ ip }) => networkOf(ip),
    allowList: (request) => request.url.startsWith('/health'),
    store: countingStore(options.redis),
    onExceeded: () => refusals.inc({ limiter: 'address' }),
    errorResponseBuilder: (_request, { ttl }) => new TooManyRequests({ retryAfterSeconds: Math.ceil(ttl / 1000) })
  })
  limitRoutes(app, options.rateLimits, refusals)
  if (options.requestsPerMinute > 0) {
    // Of the whole app and not of each route: otherwise it would run after `authorize`, and never for what that refuses.
    app.addHook('onRequest', app.rateLimit())
  }
  await app.register(compress, {
    global: true,
    threshold: 1024,
    encodings: ['br', 'gzip'],
    inflateIfDeflated: false,
    globalDecompression: false
  })
  refuseEncoded(app)
  app.setErrorHandler(answerProblem)
  app.setNotFoundHandler((request, reply) => {
    const { method } = request
    if (METHODS.includes(method)) {
      const path = request.url.split('?', 1)[0] ?? ''
      return answerProblem(new RouteNotFound({ method, path }), request, reply)
    }
    // TRACE and its like, which no route of any module serves.
    void reply.header('allow', METHODS.join(', '))
    return answerProblem(new MethodNotAllowed({ method }), request, reply)
  })
}

/** What helmet answers with, asked once: its plugin builds all of its middleware anew for every request. */
async function securityHeaders(): Promise<Record<string, string>> {
  const probe = Fastify()
  await probe.register(helmet, {
    // The API answers data, so the policy allows nothing; the reference page brings its own.
    contentSecurityPolicy: {
      useDefaults: false,
      directives: { 'default-src': ["'none'"], 'frame-ancestors': ["'none'"] }
    },
    hsts: { maxAge: 31_536_000, includeSubDomains: true },
    referrerPolicy: { policy: 'no-referrer' },
    frameguard: { action: 'deny' },
    // Of use to pages only, and each header costs time on every answer.
    crossOriginOpenerPolicy: false,
    originAgentCluster: false,
    dnsPrefetchControl: false,
    ieNoOpen: false,
    permittedCrossDomainPolicies: false,
    xssFilter: false
  })
  probe.get('/', (_request, reply) => reply.send())
  const { headers } = await probe.inject('/')
  await probe.close()
  const own = new Set(['connection', 'content-length', 'date'])
  return Object.fromEntries(
    Object.entries(headers).flatMap(([name, value]) => (own.has(name) ? [] : [[name, String(value)]]))
  )
}
