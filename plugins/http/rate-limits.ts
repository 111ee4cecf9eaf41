import type { FastifyRateLimitStore } from '@fastify/rate-limit'
import type { FastifyInstance, FastifyRequest, onRequestAsyncHookHandler, RouteOptions } from 'fastify'
import { LRUCache } from 'lru-cache'
import { Counter, type Registry } from 'prom-client'
import type { LimitClass, Principal } from '../contracts.js'
import type { RedisLink } from '../redis.js'
import { TooManyRequests } from './errors.js'
import { networkOf } from './network.js'

/** How many requests a minute one caller may make, by what they cost. */

export const LIMIT_CLASSES: readonly LimitClass[] = [
  'sign-in',
  'export',
  'import',
  'report',
  'training',
  'write',
  'read'
]
export type RateLimits = Readonly<Partial<Record<LimitClass, number>>>

const MINUTE_MS = 60_000
/** Counts that are kept in the process; the callers seen longest ago are forgotten first. As a size: `max` would set room for all aside. */
const CALLERS = { maxSize: 50_000, sizeCalculation: () => 1 }
const COUNT = `local current = redis.call('INCR', KEYS[1])
if current == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {current, redis.call('PTTL', KEYS[1])}`

/** Counts in Redis, for all nodes together; in the process where there is none, and while it does not answer. */
export function countingStore(redis: RedisLink | null) {
  const own = new LRUCache<string, { current: number; until: number }>(CALLERS)
  const countHere = (key: string, milliseconds: number) => {
    const now = Date.now()
    const known = own.get(key)
    const count = known === undefined || known.until <= now ? { current: 0, until: now + milliseconds } : known
    count.current++
    own.set(key, count)
    return { current: count.current, ttl: count.until - now }
  }
  const count = async (key: string, milliseconds: number) => {
    const shared = await redis?.call((client) => client.eval(COUNT, 1, `${redis.prefix}limit:${key}`, milliseconds))
    if (!Array.isArray(shared)) return countHere(key, milliseconds)
    return { current: Number(shared[0]), ttl: Number(shared[1]) }
  }
  return class CountingStore implements FastifyRateLimitStore {
    incr(key: string, done: Parameters<FastifyRateLimitStore['incr']>[1], milliseconds = MINUTE_MS): void {
      count(key, milliseconds).then(
        (counted) => done(null, counted),
        (error: Error) => done(error)
      )
    }
    child(): CountingStore {
      return this
    }
  }
}

/** `address`: the limit over all classes, for each address. */
export function limitMetrics(registry: Registry): Counter<'limiter'> {
  const refusals = new Counter({
    name: 'http_rate_limited_requests_total',
    help: 'Requests refused because their caller made too many of that class, or their address too many in all.',
    labelNames: ['limiter'] as const,
    registers: [registry]
  })
  for (const limiter of ['address', ...LIMIT_CLASSES]) refusals.inc({ limiter }, 0)
  return refusals
}

/**
 * Limits each route that is registered from now on by its class, for each user, or for each address where nobody is signed in.
 * After `authorize`, since who asks must be known; a class without a limit costs its routes nothing.
 */
export function limitRoutes(app: FastifyInstance, limits: RateLimits, refusals: Counter<'limiter'>): void {
  const hooks = new Map<LimitClass, onRequestAsyncHookHandler>()
  for (const limitClass of LIMIT_CLASSES) {
    const max = limits[limitClass] ?? 0
    if (max === 0) continue
    const check = app.createRateLimit({
      max,
      timeWindow: MINUTE_MS,
      keyGenerator: (request) => `${limitClass} ${callerOf(request)}`
    })
    hooks.set(limitClass, async (request) => {
      const { isAllowed, ...counted } = await check(request)
      if (isAllowed || !('isExceeded' in counted) || !counted.isExceeded) return
      refusals.inc({ limiter: limitClass })
      throw new TooManyRequests({ retryAfterSeconds: Math.max(1, counted.ttlInSeconds) })
    })
  }
  app.addHook('onRoute', (route) => {
    const hook = hooks.get(classOf(route))
    if (hook !== undefined) route.onRequest = [route.onRequest ?? [], hook].flat()
  })
}

function classOf({ config, method, url }: RouteOptions): LimitClass {
  const declared = config !== undefined && 'limit' in config ? config.limit : undefined
  const known = LIMIT_CLASSES.find((each) => each === declared)
  if (known !== undefined) return known
  if (method === 'GET' || method === 'HEAD' || url.startsWith('/health')) return 'read'
  // What changes something and asks for no token is a way in.
  return config !== undefined && 'role' in config && config.role === 'public' ? 'sign-in' : 'write'
}

const callerOf = (request: FastifyRequest): string => {
  const principal = request.getDecorator<Principal | null>('principal')
  return principal === null ? networkOf(request.ip) : `${principal.tenant} ${principal.subject}`
}
