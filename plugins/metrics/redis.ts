import { Counter, type Registry } from 'prom-client'
import type { RedisLink } from '../redis.js'

/** Whatever asks Redis: the cache, limits, sign-ins. Answers are made in the process then. */
export function redisMetrics(registry: Registry, redis: RedisLink): void {
  new Counter({
    name: 'redis_call_failures_total',
    help: 'Calls that Redis did not answer, and that this process answered by itself.',
    labelNames: ['reason'] as const,
    registers: [registry],
    collect() {
      this.reset()
      for (const [reason, count] of Object.entries(redis.fallbacks())) this.inc({ reason }, count)
    }
  })
}
