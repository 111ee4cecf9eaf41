import { createHash, randomUUID } from 'node:crypto'
import type { Redis } from 'ioredis'
import type { Fallback, RedisLink } from '../redis.js'

/** Bounds one namespace in Redis: beyond this many keys nothing more is stored until it is dropped or expires. */
const KEYS_MAX = 10_000
const BODY_MAX_BYTES = 1_048_576
/** After an outage, time for every node to replay the invalidations it could not send. */
const SETTLE_MS = 1_000

export type SharedOperation = 'get' | 'set' | 'delete'
export type SharedResult = 'hit' | 'miss' | 'ok' | 'error'

interface SharedCacheOptions {
  redis: RedisLink
  ttlSeconds: number
  /** Another node has changed what the namespace shows. */
  onInvalidated(tenant: string, namespace: string): void
  /** Messages may have been missed: anything held may be out of date. */
  onGap(): void
  onFallback(reason: Fallback): void
  observe(operation: SharedOperation, seconds: number): void
}

/**
 * The second level, in Redis. A namespace of a tenant is one hash: its field `g` is a generation, drawn at random when the
 * hash is made, and every other field a body. A body is stored only while the generation that was read before loading it
 * is still there, and an invalidation removes the hash, so what was loaded before an invalidation is never seen after it.
 * The hash's name holds the server's run id: a Redis that restarts from an old snapshot starts empty.
 */
export class SharedCache {
  readonly #options: SharedCacheOptions
  readonly #spaces = new Set<SharedSpace>()
  readonly #channel: string
  readonly #node = randomUUID()
  #runId: string | undefined
  #usableAt = 0
  #recoveries = 0
  #wasUp = false

  constructor(options: SharedCacheOptions) {
    this.#options = options
    const { redis } = options
    this.#channel = `${redis.prefix}cache:invalidated`
    redis.subscribe(this.#channel, (message) => this.#onMessage(message), options.onGap)
    redis.onReady(() => void this.#recover())
  }

  space(tenant: string, namespace: string, count: SharedSpace['count']): SharedSpace {
    const space = new SharedSpace(this, tenant, namespace, count)
    this.#spaces.add(space)
    return space
  }

  forget(space: SharedSpace): void {
    this.#spaces.delete(space)
  }

  /** Resolves when the invalidations that are under way are answered or given up. */
  async settled(): Promise<void> {
    await Promise.all([...this.#spaces].map((space) => space.settled()))
  }

  /** The hash of a namespace; undefined while it must not be used. */
  keyOf({ tenant, namespace }: SharedSpace): string | undefined {
    if (this.#runId === undefined) return undefined
    return `${this.#options.redis.prefix}cache:{${tenant}:${namespace}}:${this.#runId}`
  }

  /** Whether what is read could be used now; counts the reason when it could not. */
  readable(): boolean {
    const { redis, onFallback } = this.#options
    const settling = this.#runId === undefined || performance.now() < this.#usableAt
    const reason = redis.unavailable() ?? (settling ? 'breaker_open' : undefined)
    if (reason !== undefined) onFallback(reason)
    return reason === undefined
  }

  async get(key: string, field: string): Promise<unknown> {
    const { ttlSeconds, onFallback } = this.#options
    return this.#timed('get', (client) => runScript(client, GET, key, [field, randomUUID(), ttlSeconds]), onFallback)
  }

  async set(key: string, field: string, generation: Buffer, body: Buffer): Promise<unknown> {
    return this.#timed('set', (client) => runScript(client, SET, key, [field, generation, body, KEYS_MAX]))
  }

  /** @returns whether Redis has done it and told the other nodes */
  async drop(key: string, { tenant, namespace }: SharedSpace): Promise<boolean> {
    const message = `${this.#node}\n${tenant}\n${namespace}`
    const replies = await this.#timed('delete', async (client) =>
      Promise.all([client.unlink(key), client.publish(this.#channel, message)])
    )
    return replies !== undefined
  }

  async #timed<T>(
    operation: SharedOperation,
    run: (client: Redis) => Promise<T>,
    onFallback?: (reason: Fallback) => void
  ): Promise<T | undefined> {
    const startedAt = performance.now()
    const result = await this.#options.redis.call(run, onFallback)
    this.#options.observe(operation, (performance.now() - startedAt) / 1000)
    return result
  }

  #onMessage(message: string): void {
    const [node, tenant, namespace] = message.split('\n')
    if (node === this.#node || tenant === undefined || namespace === undefined) return
    this.#options.onInvalidated(tenant, namespace)
  }

  async #recover(): Promise<void> {
    const recovery = ++this.#recoveries
    this.#runId = undefined
    const info = await this.#options.redis.call((client) => client.info('server'))
    if (recovery !== this.#recoveries) return
    this.#runId = /^run_id:(\w+)/m.exec(info ?? '')?.[1]
    if (this.#runId === undefined) return
    this.#usableAt = this.#wasUp ? performance.now() + SETTLE_MS : 0
    this.#wasUp = true
    this.#options.onGap()
    for (const space of this.#spaces) space.replay()
  }
}

/** One namespace of one tenant in Redis. */
export class SharedSpace {
  readonly #cache: SharedCache
  /** An invalidation that Redis has not confirmed. So begins every space: a process may have died before it sent its last. */
  #dirty = true
  #again = false
  #dropping: Promise<void> | undefined

  constructor(
    cache: SharedCache,
    readonly tenant: string,
    readonly namespace: string,
    readonly count: (operation: SharedOperation, result: SharedResult) => void
  ) {
    this.#cache = cache
  }

  /** @returns undefined when Redis cannot be used; else the generation to store under and, on a hit, the body */
  async read(key: string): Promise<{ generation: Buffer; body: Buffer | undefined } | undefined> {
    if (!this.#cache.readable()) return undefined
    if (this.#dirty) {
      if (this.#dropping === undefined) this.invalidate()
      await this.#dropping
      if (!this.#cache.readable()) return undefined
    }
    const hash = this.#cache.keyOf(this)
    if (this.#dirty || hash === undefined) return undefined
    const reply = await this.#cache.get(hash, fieldOf(key))
    const [generation, body] = Array.isArray(reply) ? reply : []
    if (!Buffer.isBuffer(generation)) {
      this.count('get', 'error')
      return undefined
    }
    this.count('get', Buffer.isBuffer(body) ? 'hit' : 'miss')
    return { generation, body: Buffer.isBuffer(body) ? body : undefined }
  }

  /** Nobody waits for it: what fails to be stored is loaded again. */
  write(key: string, generation: Buffer, body: Buffer): void {
    const hash = this.#cache.keyOf(this)
    if (hash === undefined || this.#dirty || body.length > BODY_MAX_BYTES) return
    void this.#cache
      .set(hash, fieldOf(key), generation, body)
      .then((done) => this.count('set', done === undefined ? 'error' : 'ok'))
  }

  /** Takes effect here at once: until Redis has confirmed, this node does not read from it. */
  invalidate(): void {
    this.#dirty = true
    // One that is under way may have been carried out before the change that this one is about.
    if (this.#dropping !== undefined) this.#again = true
    else if (this.#cache.keyOf(this) !== undefined) this.#dropping = this.#drop()
    else this.count('delete', 'error')
  }

  /** Sends again what was not confirmed. */
  replay(): void {
    if (this.#dirty) this.invalidate()
  }

  async settled(): Promise<void> {
    await this.#dropping
  }

  async #drop(): Promise<void> {
    let done: boolean
    do {
      this.#again = false
      const hash = this.#cache.keyOf(this)
      done = hash !== undefined && (await this.#cache.drop(hash, this))
      this.count('delete', done ? 'ok' : 'error')
    } while (this.#again)
    this.#dirty = !done
    this.#dropping = undefined
  }
}

const fieldOf = (key: string) => `:${key}`

interface Script {
  readonly lua: string
  readonly sha: string
}
const script = (lua: string): Script => ({ lua, sha: createHash('sha1').update(lua).digest('hex') })

const GET = script(`
local found = redis.call('HMGET', KEYS[1], 'g', ARGV[1])
if found[1] then return found end
redis.call('HSET', KEYS[1], 'g', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return { ARGV[2], false }`)

const SET = script(`
if redis.call('HGET', KEYS[1], 'g') ~= ARGV[2] or redis.call('HLEN', KEYS[1]) > tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1`)

async function runScript(client: Redis, { lua, sha }: Script, key: string, args: (string | number | Buffer)[]) {
  try {
    return await client.callBuffer('evalsha', [sha, 1, key, ...args])
  } catch (error) {
    if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error
    return client.callBuffer('eval', [lua, 1, key, ...args])
  }
}
