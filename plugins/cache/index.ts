import { hash } from 'node:crypto'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'
import { LRUCache } from 'lru-cache'
import type { Registry } from 'prom-client'
import type { Cache, CachedText } from '../contracts.js'
import type { RedisLink } from '../redis.js'
import { CacheMetrics, type InvalidationReason, type Tally } from './metrics.js'
import { SharedCache, type SharedSpace } from './shared.js'

const MAX_BYTES = 64 * 1024 * 1024
/** One answer may take this part of the memory at most. */
const ENTRY_SHARE = 1 / 4
/** What an entry costs beside its bytes: objects, map slots, the key. */
const ENTRY_OVERHEAD_BYTES = 600
/** Where the engine tells of other processes' commits nothing grows stale; this only lets go of what nobody invalidates. */
const LOCAL_TTL_MS = 60_000
/** Where it does not, a node that Redis does not reach is at most this far behind. */
const LOCAL_TTL_BLIND_MS = 1_000
/** How long a node may see what a node cut off from Redis has changed. */
const SHARED_TTL_SECONDS = 30

export interface TenantCache extends Cache {
  /** At once on this node, as soon as the message arrives on the others. */
  invalidate(namespace: string, reason?: 'write' | 'manual'): void
  clear(): void
}

export interface CacheFigures {
  hits: number
  misses: number
  /** 0 … 1; 0 before the first read. */
  hitRate: number
  keys: number
  memoryBytes: number
}
export interface CacheStatistics extends CacheFigures {
  backend: 'redis' | 'memory'
  byNamespace: Record<string, CacheFigures>
}

export interface Caches {
  /**
   * The cache of one tenant, the same one for each call.
   * @param foreignVersion changes when another process has committed to the tenant's database; undefined if that is unknown
   */
  forTenant(tenant: string, foreignVersion: () => number | undefined): TenantCache
  /** Lets go of all that is held for a tenant, when it is dropped. */
  remove(tenant: string): void
  /** Reads since the start and what this process holds now: of one tenant, or of all. */
  stats(tenant?: string): CacheStatistics
  /** Waits for the invalidations under way. Redis itself stays open. */
  close(): Promise<void>
}

export interface CachesOptions {
  redis: RedisLink | null
  /** false: every read loads. */
  enabled: boolean
  registry: Registry
  /** Known beforehand, their metrics start at 0. */
  namespaces?: readonly string[]
  /** Default: 1 s where other processes' commits cannot be seen, else 60 s. */
  localTtlMilliseconds?: number
  sharedTtlSeconds?: number
  /** Of all tenants together, compressed forms included. Default 64 MiB. */
  maxBytes?: number
}

/**
 * Each compression has its memory allocated anew, 264 kB by default, and that costs several times what the compression does. Rows repeat
 * within a few hundred bytes, so 16 kB of history find as much.
 */
const GZIP = { level: 1, windowBits: 14, memLevel: 6, chunkSize: 4_096 }

/** A strong validator for an HTTP body, quotes included. */
export const etagOf = (body: Buffer): string => `"${hash('sha256', body, 'base64url').slice(0, 22)}"`

/** A cache for each tenant, over one budget of bytes: in this process, and with `redis` shared with others. */
export function createCaches(options: CachesOptions): Caches {
  const { redis, registry, namespaces = [] } = options
  const tenants = new Map<string, LocalCache>()
  const metrics = new CacheMetrics(registry, namespaces, redis)
  const store = new Store(options.maxBytes ?? MAX_BYTES, metrics)
  const clearAll = () => {
    for (const tenant of tenants.values()) tenant.forgetAll('remote')
  }
  const shared =
    redis === null || redis.client === null
      ? undefined
      : new SharedCache({
          redis,
          ttlSeconds: options.sharedTtlSeconds ?? SHARED_TTL_SECONDS,
          onInvalidated: (tenant, namespace) => tenants.get(tenant)?.forget(namespace, 'remote'),
          onGap: clearAll,
          onFallback: (reason) => metrics.fellBack(reason),
          observe: (operation, seconds) => metrics.observe(operation, seconds)
        })
  return {
    forTenant: (tenant, foreignVersion) => {
      const known = tenants.get(tenant)
      if (known !== undefined) return known
      const cache = new LocalCache({ ...options, tenant, foreignVersion, store, shared, metrics })
      tenants.set(tenant, cache)
      return cache
    },
    remove: (tenant) => {
      tenants.get(tenant)?.close()
      tenants.delete(tenant)
    },
    stats: (tenant) => {
      const asked = tenant === undefined ? [...tenants.values()] : [tenants.get(tenant)]
      const spaces = asked.flatMap((cache) => (cache === undefined ? [] : [...cache.namespaces()]))
      const names = [...new Set(spaces.map(({ name }) => name))].sort()
      return {
        backend: shared !== undefined && redis?.state() === 'up' ? 'redis' : 'memory',
        ...figures(spaces),
        byNamespace: Object.fromEntries(
          names.map((name) => [name, figures(spaces.filter((each) => each.name === name))])
        )
      }
    },
    close: async () => {
      await shared?.settled()
      for (const tenant of tenants.values()) tenant.close()
      tenants.clear()
    }
  }
}

function figures(spaces: readonly Namespace[]): CacheFigures {
  const total = { hits: 0, misses: 0, keys: 0, memoryBytes: 0 }
  for (const { hits, misses, keys, bytes } of spaces) {
    total.hits += hits
    total.misses += misses
    total.keys += keys
    total.memoryBytes += bytes
  }
  const reads = total.hits + total.misses
  return { ...total, hitRate: reads === 0 ? 0 : total.hits / reads }
}

/** What this process holds of one namespace of one tenant. */
class Namespace {
  /** What is being loaded as well as what is held: a reader joins a load under way, unless it was forgotten meanwhile. */
  readonly entries = new Map<string, Entry>()
  hits = 0
  misses = 0
  keys = 0
  bytes = 0
  constructor(
    readonly name: string,
    readonly tally: Tally,
    readonly space: SharedSpace | undefined
  ) {}
}

class Entry {
  readonly text: Promise<CachedText>
  constructor(
    readonly namespace: Namespace,
    readonly key: string,
    readonly expiresAt: number,
    load: (entry: Entry) => Promise<CachedText>
  ) {
    // Before the load begins, so that an invalidation during it finds the entry.
    namespace.entries.set(key, this)
    this.text = load(this)
  }

  /** False once its namespace was invalidated or a newer load took its place: then it must not be kept. */
  get current(): boolean {
    return this.namespace.entries.get(this.key) === this
  }
}

/** The entries of all tenants, least recently used first, bounded by their bytes and by their time. */
class Store {
  readonly #entries: LRUCache<Entry, number>
  constructor(maxSize: number, metrics: CacheMetrics) {
    this.#entries = new LRUCache({
      maxSize,
      maxEntrySize: Math.ceil(maxSize * ENTRY_SHARE),
      dispose: (size, { namespace, key }, reason) => {
        namespace.keys--
        namespace.bytes -= size
        namespace.tally.entries--
        if (reason !== 'evict') return
        namespace.entries.delete(key)
        namespace.tally.evictions++
      }
    })
    metrics.sizeOf(() => this.#entries.calculatedSize)
  }

  touch(entry: Entry): void {
    this.#entries.get(entry)
  }

  /** Holds it from now on, if it fits, in the place of what is too old. */
  add(entry: Entry, size: number): void {
    this.#letGoOfExpired()
    this.#set(entry, size)
  }

  #set(entry: Entry, size: number): void {
    this.#entries.set(entry, size, { size })
    if (this.#entries.peek(entry) === undefined) {
      if (entry.current) entry.namespace.entries.delete(entry.key)
      return
    }
    entry.namespace.keys++
    entry.namespace.bytes += size
    entry.namespace.tally.entries++
  }

  grow(entry: Entry, bytes: number): void {
    const size = this.#entries.peek(entry)
    if (size !== undefined) this.#set(entry, size + bytes)
  }

  delete(entry: Entry): void {
    this.#entries.delete(entry)
  }

  /**
   * A key that names a version, as the dashboard's does, is never asked for again once it is old, and nobody invalidates it. Without
   * this all the memory would fill with such. Entries that were used lately are looked at later: after two lifetimes at most.
   */
  #letGoOfExpired(): void {
    const now = performance.now()
    for (;;) {
      const oldest = this.#entries.rkeys().next().value
      if (oldest === undefined || now < oldest.expiresAt) return
      this.#entries.delete(oldest)
      if (oldest.current) oldest.namespace.entries.delete(oldest.key)
      oldest.namespace.tally.invalidations.ttl++
    }
  }
}

interface LocalCacheOptions {
  tenant: string
  foreignVersion: () => number | undefined
  enabled: boolean
  localTtlMilliseconds?: number
  store: Store
  shared: SharedCache | undefined
  metrics: CacheMetrics
}

class LocalCache implements TenantCache {
  readonly #options: LocalCacheOptions
  readonly #foreignVersion: () => number | undefined
  readonly #store: Store
  readonly #ttl: number
  readonly #namespaces = new Map<string, Namespace>()
  #seen: number | undefined

  constructor(options: LocalCacheOptions) {
    this.#options = options
    this.#store = options.store
    this.#foreignVersion = options.foreignVersion
    this.#seen = options.foreignVersion()
    this.#ttl = options.localTtlMilliseconds ?? (this.#seen === undefined ? LOCAL_TTL_BLIND_MS : LOCAL_TTL_MS)
  }

  async read(name: string, key: string, load: () => Promise<string | Buffer>): Promise<CachedText> {
    const namespace = this.#namespaces.get(name) ?? this.#open(name)
    const { tally } = namespace
    if (!this.#options.enabled) {
      namespace.misses++
      tally.misses++
      return new Text(bytesOf(await load()))
    }
    this.#heedOthers()
    const known = namespace.entries.get(key)
    const now = performance.now()
    if (known !== undefined && now < known.expiresAt) {
      namespace.hits++
      tally.hits++
      this.#store.touch(known)
      return known.text
    }
    tally.misses++
    if (known !== undefined) {
      tally.invalidations.ttl++
      this.#store.delete(known)
    }
    // Age counts from before the load: what it reads may be that old.
    return new Entry(namespace, key, now + this.#ttl, (entry) => this.#fill(entry, load)).text
  }

  /** Lets go of everything when another process has committed. */
  #heedOthers(): void {
    const version = this.#foreignVersion()
    if (version === this.#seen) return
    this.#seen = version
    this.#clear('remote')
  }

  invalidate(name: string, reason: InvalidationReason = 'write'): void {
    const namespace = this.#namespaces.get(name) ?? this.#open(name)
    this.#forget(namespace, reason)
    namespace.space?.invalidate()
  }

  clear(): void {
    this.#clear('manual')
  }

  /** Drops what this process holds, and nothing in Redis. */
  forget(name: string, reason: InvalidationReason): void {
    const namespace = this.#namespaces.get(name)
    if (namespace !== undefined) this.#forget(namespace, reason)
  }

  forgetAll(reason: InvalidationReason): void {
    for (const namespace of this.#namespaces.values()) this.#forget(namespace, reason)
  }

  namespaces(): Iterable<Namespace> {
    return this.#namespaces.values()
  }

  close(): void {
    this.forgetAll('manual')
    for (const { space } of this.#namespaces.values()) if (space !== undefined) this.#options.shared?.forget(space)
  }

  #open(name: string): Namespace {
    const { metrics, shared, tenant } = this.#options
    const tally = metrics.tally(name)
    const space = shared?.space(tenant, name, (operation, result) => tally.shared(operation, result))
    const namespace = new Namespace(name, tally, space)
    this.#namespaces.set(name, namespace)
    return namespace
  }

  #clear(reason: InvalidationReason): void {
    for (const name of this.#namespaces.keys()) this.invalidate(name, reason)
  }

  #forget(namespace: Namespace, reason: InvalidationReason): void {
    namespace.tally.invalidations[reason]++
    for (const entry of namespace.entries.values()) this.#store.delete(entry)
    namespace.entries.clear()
  }

  async #fill(entry: Entry, load: () => Promise<string | Buffer>): Promise<CachedText> {
    const { namespace, key } = entry
    try {
      const shared = await namespace.space?.read(key)
      if (shared?.body !== undefined) {
        namespace.hits++
        return this.#keep(entry, shared.body)
      }
      namespace.misses++
      const body = bytesOf(await load())
      if (shared !== undefined && entry.current) namespace.space?.write(key, shared.generation, body)
      return this.#keep(entry, body)
    } catch (error) {
      if (entry.current) namespace.entries.delete(key)
      throw error
    }
  }

  #keep(entry: Entry, body: Buffer): CachedText {
    const text = new Text(body, (bytes) => this.#store.grow(entry, bytes))
    if (entry.current) {
      entry.namespace.tally.sets++
      this.#store.add(entry, body.length + 2 * entry.key.length + ENTRY_OVERHEAD_BYTES)
    }
    return text
  }
}

const bytesOf = (loaded: string | Buffer) => (typeof loaded === 'string' ? Buffer.from(loaded) : loaded)

class Text implements CachedText {
  readonly body: Buffer
  readonly etag: string
  readonly #onGrow: ((bytes: number) => void) | undefined
  #brotli: Buffer | undefined
  #gzip: Buffer | undefined

  constructor(body: Buffer, onGrow?: (bytes: number) => void) {
    this.body = body
    this.etag = etagOf(body)
    this.#onGrow = onGrow
  }

  encoded(encoding: 'br' | 'gzip'): Buffer {
    if (encoding === 'gzip') {
      this.#gzip ??= this.#made(gzipSync(this.body, GZIP))
      return this.#gzip
    }
    this.#brotli ??= this.#made(
      brotliCompressSync(this.body, {
        params: {
          [constants.BROTLI_PARAM_QUALITY]: 4,
          [constants.BROTLI_PARAM_MODE]: constants.BROTLI_MODE_TEXT,
          [constants.BROTLI_PARAM_SIZE_HINT]: this.body.length
        }
      })
    )
    return this.#brotli
  }

  #made(compressed: Buffer): Buffer {
    this.#onGrow?.(compressed.length)
    return compressed
  }
}
