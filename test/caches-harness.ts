import { randomUUID } from 'node:crypto'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { Registry } from 'prom-client'
import type { Test } from 'tap'
import { type Caches, type CachesOptions, createCaches, type TenantCache } from '../plugins/cache/index.js'
import { openRedis, type RedisLink } from '../plugins/redis.js'
import { patientRedis } from './patience.js'
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
  /** Resolves when Redis has what was sent to it from here. */
  sent(): Promise<void>
  /** Resolves when it has heard what others were told before. */
  told(): Promise<void>
}
export interface Setup extends Partial<CachesOptions> {
  url?: string
  prefix?: string
  /** Redis is never taken for slow. */
  patient?: boolean
}

/** One process of the service, as far as its cache goes. */
export async function startNode(t: Test, { url, prefix, patient = false, ...options }: Setup = {}): Promise<Node> {
  if (patient) patientRedis(t)
  const redis = url === undefined ? null : await openRedis({ url, log: quiet, prefix: prefix ?? freshPrefix() })
  const heard = new Set<string>()
  const listening = deferred<void>()
  if (redis !== null) {
    const { subscribe } = redis
    redis.subscribe = (channel, onMessage, onGap) => {
      const hear = (message: string) => {
        onMessage(message)
        heard.add(message)
      }
      subscribe.call(redis, channel, hear, () => {
        onGap?.()
        listening.resolve()
      })
    }
  }
  const registry = new Registry()
  const caches = createCaches({ redis, enabled: true, registry, ...options })
  t.teardown(async () => {
    await caches.close()
    await redis?.close()
  })
  const sent = async () => {
    // Twice: a script that Redis does not know is sent again.
    for (const _ of [1, 2]) {
      if (redis !== null) await until(async () => (await redis.call((client) => client.ping())) !== undefined)
      await turn()
    }
  }
  const told = async () => {
    const mark = randomUUID()
    await until(async () => {
      await redis?.call((client) => client.publish(`${redis.prefix}cache:invalidated`, mark))
      return heard.has(mark)
    })
  }
  if (redis !== null) {
    // Before it knows which Redis it is, the cache does not use it; and when it begins to listen, it lets go of what it holds.
    await sent()
    await listening.promise
  }
  return { caches, registry, redis, sent, told }
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
