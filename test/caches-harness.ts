import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Registry } from 'prom-client'
import type { Test } from 'tap'
import { type Caches, type CachesOptions, createCaches, type TenantCache } from '../plugins/cache/index.js'
import { openRedis, type RedisLink } from '../plugins/redis.js'
import { redisUrl } from './services.js'

export const quiet = { info: () => {}, warn: () => {} }
export const unknown = () => undefined
export const freshPrefix = () => `test:${randomUUID()}:`
export const textOf = async (reading: ReturnType<TenantCache['read']>) => (await reading).body.toString()

export async function until(what: () => boolean | Promise<boolean>, milliseconds = 5_000): Promise<void> {
  const deadline = performance.now() + milliseconds
  while (!(await what())) {
    if (performance.now() > deadline) throw new Error('it did not come to pass in time')
    await sleep(5)
  }
}

export interface Node {
  caches: Caches
  registry: Registry
  redis: RedisLink | null
}
export interface Setup extends Partial<CachesOptions> {
  url?: string
  prefix?: string
}

/** One process of the service, as far as its cache goes. */
export async function startNode(t: Test, { url, prefix, ...options }: Setup = {}): Promise<Node> {
  const redis = url === undefined ? null : await openRedis({ url, log: quiet, prefix: prefix ?? freshPrefix() })
  const registry = new Registry()
  const caches = createCaches({ redis, enabled: true, registry, ...options })
  t.teardown(async () => {
    await caches.close()
    await redis?.close()
  })
  if (redis !== null) {
    await until(() => redis.state() === 'up')
    // Answered after what the cache has asked of Redis by then; before, it does not use it.
    await redis.client?.ping()
    await sleep(30)
  }
  return { caches, registry, redis }
}

export const deferred = <T>() => {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>((done) => {
    resolve = done
  })
  return { promise, resolve }
}

export const backends = [
  { backend: 'memory', url: () => undefined },
  { backend: 'redis', url: redisUrl }
] as const
