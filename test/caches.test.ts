import { randomBytes, randomUUID } from 'node:crypto'
import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import Sqlite from 'better-sqlite3'
import fc from 'fast-check'
import Fastify, { type onRequestHookHandler } from 'fastify'
import { Redis } from 'ioredis'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import cacheStats from '../modules/cache-stats/index.js'
import { type Caches, type CachesOptions, createCaches, type TenantCache } from '../plugins/cache/index.js'
import { SharedCache } from '../plugins/cache/shared.js'
import type { EnterModule } from '../plugins/contracts.js'
import { openRedis, type RedisLink } from '../plugins/redis.js'
import { ownTime } from './own-time.js'
import { redisUrl, startRedis } from './services.js'

const quiet = { info: () => {}, warn: () => {} }
const unknown = () => undefined
const freshPrefix = () => `test:${randomUUID()}:`
const textOf = async (reading: ReturnType<TenantCache['read']>) => (await reading).body.toString()

async function until(what: () => boolean | Promise<boolean>, milliseconds = 5_000): Promise<void> {
  const deadline = performance.now() + milliseconds
  while (!(await what())) {
    if (performance.now() > deadline) throw new Error('it did not come to pass in time')
    await sleep(5)
  }
}

interface Node {
  caches: Caches
  registry: Registry
  redis: RedisLink | null
}
interface Setup extends Partial<CachesOptions> {
  url?: string
  prefix?: string
}

/** One process of the service, as far as its cache goes. */
async function startNode(t: Test, { url, prefix, ...options }: Setup = {}): Promise<Node> {
  const redis = url === undefined ? null : openRedis({ url, log: quiet, prefix: prefix ?? freshPrefix() })
  const registry = new Registry()
  const caches = createCaches({ redis, enabled: true, registry, ...options })
  t.teardown(async () => {
    await caches.close()
    await redis?.close()
  })
  if (redis !== null) {
    await until(() => redis.state() === 'up')
    await sleep(30)
  }
  return { caches, registry, redis }
}

const deferred = <T>() => {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>((done) => {
    resolve = done
  })
  return { promise, resolve }
}

const backends = [
  { backend: 'memory', url: () => undefined },
  { backend: 'redis', url: redisUrl }
] as const

for (const { backend, url } of backends) {
  const setup = (): Setup => {
    const address = url()
    return address === undefined ? {} : { url: address }
  }

  t.test(`${backend}: reads through once, and keeps what HTTP needs of the text`, async (t) => {
    const { caches } = await startNode(t, setup())
    const cache = caches.forTenant('main', unknown)
    const body = JSON.stringify(Array.from({ length: 200 }, (_, i) => ({ sku: `É-${i}`, onHand: i })))
    let loads = 0
    const read = () =>
      cache.read('inventory', 'list', async () => {
        loads++
        await sleep(5)
        return body
      })
    const texts = await Promise.all(Array.from({ length: 20 }, read))
    t.equal(loads, 1, 'concurrent misses load once')
    t.equal(new Set(texts).size, 1)
    const text = await read()
    t.equal(loads, 1)
    t.equal(text.body.toString(), body)
    t.match(text.etag, /^"[\w-]{22}"$/)
    t.equal(brotliDecompressSync(text.encoded('br')).toString(), body)
    t.equal(gunzipSync(text.encoded('gzip')).toString(), body)
    t.equal(text.encoded('br'), text.encoded('br'), 'compressed once')
    t.not((await cache.read('inventory', 'other', async () => '[]')).etag, text.etag)

    await t.rejects(
      cache.read('inventory', 'broken', () => Promise.reject(new Error('no database'))),
      /no database/
    )
    t.equal(await textOf(cache.read('inventory', 'broken', async () => 'works')), 'works', 'a failure is not kept')
    const other = caches.forTenant('other', unknown)
    t.equal(await textOf(other.read('inventory', 'list', async () => 'theirs')), 'theirs', 'tenants share no key')
    t.equal(caches.forTenant('main', unknown), cache)
  })

  t.test(`${backend}: a load begun before an invalidation is not answered after it`, async (t) => {
    const { caches } = await startNode(t, setup())
    const cache = caches.forTenant('main', unknown)
    const slow = deferred<string>()
    const started = deferred<void>()
    const before = cache.read('inventory', 'list', () => {
      started.resolve()
      return slow.promise
    })
    await started.promise
    cache.invalidate('inventory')
    const after = cache.read('inventory', 'list', async () => 'new')
    t.equal(await textOf(after), 'new', 'a later reader does not wait for the old load')
    slow.resolve('old')
    t.equal(await textOf(before), 'old')
    t.equal(await textOf(cache.read('inventory', 'list', async () => 'newest')), 'new', 'the old load is not stored')
    t.equal(caches.stats().keys, 1)
    const failing = cache.read('inventory', 'y', () => sleep(5).then(() => Promise.reject(new Error('late'))))
    cache.invalidate('inventory')
    const good = cache.read('inventory', 'y', async () => 'good')
    await t.rejects(failing, /late/)
    t.equal(await textOf(good), 'good')
    t.equal(caches.stats().keys, 1, 'a load that fails late takes nothing newer with it')
    t.equal(await textOf(cache.read('inventory', 'list', async () => 'new')), 'new')
    cache.invalidate('forecasting')
    t.equal(await textOf(cache.read('inventory', 'list', async () => 'newest')), 'new', 'other namespaces stay')
    cache.clear()
    t.equal(await textOf(cache.read('inventory', 'list', async () => 'newest')), 'newest')
  })

  t.test(`${backend}: counts reads, keys and bytes, and stays within its bytes`, async (t) => {
    const maxBytes = 200_000
    const { caches, registry, redis } = await startNode(t, {
      ...setup(),
      maxBytes,
      // Until it hears of other nodes an entry lives for a second, and what is let go for its age is not pushed out.
      localTtlMilliseconds: 60_000,
      namespaces: ['inventory', 'anomaly']
    })
    const cache = caches.forTenant('main', unknown)
    const body = randomBytes(4_000).toString('hex')
    for (let i = 0; i < 100; i++) {
      const text = await cache.read('inventory', `${i}`, async () => body)
      text.encoded('gzip')
      t.ok(caches.stats().memoryBytes <= maxBytes)
    }
    const full = caches.stats('main')
    t.ok(full.keys >= 10 && full.keys <= 17, 'each takes 8 000 bytes, its compressed form 4 500')
    await cache.read('inventory', '99', async () => body)
    await cache.read('anomaly', 'list', async () => '[]')
    t.equal(await textOf(cache.read('anomaly', 'huge', async () => 'x'.repeat(maxBytes))), 'x'.repeat(maxBytes))
    const stats = caches.stats('main')
    t.match(stats, { backend, hits: 1, misses: 102, hitRate: 1 / 103 })
    t.match(stats.byNamespace.anomaly, { hits: 0, misses: 2, keys: 1 }, 'what would push out all else is not kept')
    t.equal(stats.keys, (stats.byNamespace.inventory?.keys ?? 0) + 1)
    t.same(caches.stats('nobody'), {
      backend,
      hits: 0,
      misses: 0,
      hitRate: 0,
      keys: 0,
      memoryBytes: 0,
      byNamespace: {}
    })
    cache.invalidate('inventory', 'manual')
    t.match(caches.stats().byNamespace.inventory, { keys: 0, memoryBytes: 0 })

    if (redis !== null) await caches.forTenant('main', unknown).read('inventory', 'last', async () => '[]')
    const metrics = await registry.metrics()
    const value = (line: string) =>
      Number(
        metrics
          .split('\n')
          .find((each) => each.startsWith(`${line} `))
          ?.split(' ')[1]
      )
    const operation = (on: string, result: string, operation = 'get') =>
      value(`cache_operations_total{backend="${on}",cache="inventory",operation="${operation}",result="${result}"}`)
    t.equal(operation('memory', 'hit'), 1)
    t.equal(operation('memory', 'miss'), backend === 'redis' ? 101 : 100)
    t.equal(value('cache_invalidations_total{cache="inventory",reason="manual"}'), 1)
    t.equal(value('cache_evictions_total{cache="inventory"}'), 100 - (stats.byNamespace.inventory?.keys ?? 0))
    t.equal(value('cache_evictions_total{cache="anomaly"}'), 0, 'preset')
    t.equal(value('cache_entries{cache="anomaly"}'), 1)
    t.equal(value('cache_size_bytes'), caches.stats().memoryBytes)
    t.equal(value('cache_backend_up{backend="memory"}'), 1)
    t.equal(value('cache_fallbacks_total{reason="timeout"}'), 0)
    if (redis === null) return
    t.equal(operation('redis', 'miss'), 101)
    t.ok(operation('redis', 'ok', 'delete') >= 1)
    t.equal(value('cache_backend_up{backend="redis"}'), 1)
    t.equal(value('cache_operation_duration_seconds_count{backend="redis",operation="get"}'), 103)
  })

  t.test(`${backend}: ages from before the load, and keeps nothing when off`, async (t) => {
    const { caches, registry } = await startNode(t, { ...setup(), localTtlMilliseconds: 60, sharedTtlSeconds: 1 })
    const cache = caches.forTenant('main', unknown)
    const slow = () => sleep(70).then(() => 'slow')
    t.equal(await textOf(cache.read('inventory', 'x', slow)), 'slow')
    // In Redis it may live on, under its own bound.
    const expected = backend === 'redis' ? 'slow' : 'again'
    t.equal(await textOf(cache.read('inventory', 'x', async () => 'again')), expected)
    await sleep(1_100)
    t.equal(await textOf(cache.read('inventory', 'x', async () => 'third')), 'third')

    // Keys that name a version are asked for once; nobody would ever let go of them.
    for (let version = 0; version < 20; version++) await cache.read('dashboard', `v${version}`, async () => 'figures')
    await sleep(70)
    await cache.read('dashboard', 'v20', async () => 'figures')
    t.equal(caches.stats().keys, 1, 'what is too old to be answered is not held')
    t.match(await registry.metrics(), /cache_invalidations_total\{cache="dashboard",reason="ttl"\} 20\n/)

    const off = await startNode(t, { ...setup(), enabled: false })
    const none = off.caches.forTenant('main', unknown)
    for (const text of ['one', 'two']) t.equal(await textOf(none.read('inventory', 'x', async () => text)), text)
    none.invalidate('inventory')
    t.match(off.caches.stats(), { hits: 0, misses: 2, keys: 0 })
  })

  t.test(`${backend}: another process's commit to the SQLite file is seen by the next read`, async (t) => {
    const { caches } = await startNode(t, setup())
    const path = join(tmpdir(), `caches-${randomUUID()}.sqlite`)
    const [ours, theirs] = [new Sqlite(path), new Sqlite(path)]
    t.teardown(() => {
      ours.close()
      theirs.close()
      for (const suffix of ['', '-wal', '-shm']) rmSync(path + suffix, { force: true })
    })
    ours.exec('pragma journal_mode = wal; create table item (n integer); insert into item values (1)')
    const version = ours.prepare('pragma data_version').pluck()
    const cache = caches.forTenant('main', () => Number(version.get()))
    const read = () =>
      textOf(cache.read('inventory', 'n', async () => String(ours.prepare('select n from item').pluck().get())))
    t.equal(await read(), '1')
    ours.exec('update item set n = 2')
    t.equal(await read(), '1', 'our own commits are told by invalidate')
    cache.invalidate('inventory')
    t.equal(await read(), '2')
    theirs.exec('update item set n = 3')
    t.equal(await read(), '3')
    t.equal(await read(), '3')
    t.match(caches.stats(), { hits: 2, misses: 3 })
  })
}

/**
 * A random interleaving of reads, writes and their loads never answers older than the last write that was acknowledged
 * before the read began. `file`: the nodes share one SQLite file, so each sees at once that another has committed;
 * without, only the node that writes knows at once.
 */
async function property(t: Test, nodes: Node[], file: boolean, runs: number): Promise<void> {
  const step = fc.record({ write: fc.boolean(), node: fc.nat(nodes.length - 1), key: fc.constantFrom('a', 'b') })
  let tenants = 0
  await fc.assert(
    fc.asyncProperty(fc.scheduler(), fc.array(step, { minLength: 2, maxLength: 25 }), async (scheduler, steps) => {
      const tenant = `t${tenants++}`
      const stored = { a: 0, b: 0 }
      const acknowledged = { a: 0, b: 0 }
      const versions = nodes.map(() => 0)
      const caches = nodes.map(({ caches }, i) => caches.forTenant(tenant, () => (file ? versions[i] : undefined)))
      let running = steps.length
      const pause = () => scheduler.schedule(Promise.resolve())
      const runStep = async ({ write, node, key }: (typeof steps)[number]) => {
        await pause()
        if (write) {
          const value = ++stored[key]
          for (const i of versions.keys()) if (i !== node) versions[i] = (versions[i] ?? 0) + 1
          await pause()
          caches[node]?.invalidate('inventory')
          acknowledged[key] = Math.max(acknowledged[key], value)
          return
        }
        const least = acknowledged[key]
        const text = await caches[node]?.read('inventory', key, async () => {
          await pause()
          const value = stored[key]
          await pause()
          return String(value)
        })
        const answered = Number(text?.body)
        if (answered < least) throw new Error(`answered ${answered} of ${key}, ${least} was acknowledged before`)
      }
      const all = Promise.all(steps.map((each) => runStep(each).finally(() => running--)))
      all.catch(() => {})
      while (running > 0) {
        if (scheduler.count() > 0) await scheduler.waitOne()
        else await turn()
      }
      await all
      for (const { caches } of nodes) caches.remove(tenant)
    }),
    { numRuns: runs }
  )
  t.equal(tenants >= runs, true)
}

t.test('no interleaving answers older than the last write before the read', async (t) => {
  const prefix = freshPrefix()
  const memory = [await startNode(t), await startNode(t)]
  const redis = [await startNode(t, { url: redisUrl(), prefix }), await startNode(t, { url: redisUrl(), prefix })]
  await property(t, memory.slice(0, 1), false, 300)
  await property(t, memory, true, 300)
  await property(t, redis.slice(0, 1), false, 100)
  await property(t, redis, true, 200)
})

t.test('two nodes share loads and hear of invalidations within 100 ms', async (t) => {
  const shared = { url: redisUrl(), prefix: freshPrefix() }
  const nodes = [await startNode(t, shared), await startNode(t, shared)] as const
  const [a, b] = nodes.map(({ caches }) => caches.forTenant('main', unknown))
  if (a === undefined || b === undefined) throw new Error('two nodes')
  const load = (text: string) => async () => text
  // The first use of a namespace drops what an earlier process may have left.
  for (const cache of [a, b]) await cache.read('inventory', 'warm', load(''))
  await sleep(50)
  t.equal(await textOf(a.read('inventory', 'x', load('one'))), 'one')
  await until(async () => (await nodes[0].registry.metrics()).includes('operation="set",result="ok"} 2'))
  t.equal(await textOf(b.read('inventory', 'x', load('two'))), 'one', 'loaded once for both')

  let slowest = 0
  for (let i = 0; i < 20; i++) {
    const startedAt = ownTime(process.pid)
    a.invalidate('inventory')
    await until(async () => (await textOf(b.read('inventory', 'x', load(`${i}`)))) === `${i}`, 1_000)
    slowest = Math.max(slowest, ownTime(process.pid) - startedAt)
    await sleep(2)
  }
  t.ok(slowest < 100, `the slowest of 20 took ${slowest.toFixed(1)} ms`)

  const stale = deferred<string>()
  const started = deferred<void>()
  const loading = b.read('inventory', 'y', () => {
    started.resolve()
    return stale.promise
  })
  await started.promise
  a.invalidate('inventory')
  await sleep(50)
  stale.resolve('old')
  t.equal(await textOf(loading), 'old')
  await sleep(20)
  for (const cache of [a, b]) t.equal(await textOf(cache.read('inventory', 'y', load('new'))), 'new')

  const big = 'x'.repeat(1_100_000)
  await a.read('inventory', 'big', load(big))
  await sleep(20)
  t.equal(await textOf(b.read('inventory', 'big', load('small'))), 'small', 'what is very large is not shared')
  const late = await startNode(t, shared)
  t.equal(await textOf(late.caches.forTenant('main', unknown).read('inventory', 'y', load('fresh'))), 'fresh')
})

t.test('a Redis that is frozen or killed slows no read, and leaves nothing stale behind', async (t) => {
  const server = await startRedis()
  t.teardown(() => server.stop())
  const shared = { url: server.url, prefix: freshPrefix() }
  const nodes = [await startNode(t, shared), await startNode(t, shared)] as const
  const [a, b] = [nodes[0].caches.forTenant('main', unknown), nodes[1].caches.forTenant('main', unknown)]
  const isUp = () => nodes.every(({ redis }) => redis?.state() === 'up')
  let stored = 0
  let [slowest, stale, furthestBehind] = [0, 0, 0]
  const writtenAt = [performance.now()]
  const load = async () => String(stored)
  let running = true

  const write = () => {
    writtenAt[++stored] = performance.now()
    a.invalidate('inventory')
  }
  const readForever = async (cache: TenantCache, ours: boolean, key: string) => {
    while (running) {
      const startedAt = performance.now()
      const before = ownTime(process.pid)
      const least = stored
      const answered = Number(await textOf(cache.read('inventory', key, load)))
      slowest = Math.max(slowest, ownTime(process.pid) - before)
      if (ours && answered < least) stale++
      const replaced = writtenAt[answered + 1]
      if (replaced !== undefined) furthestBehind = Math.max(furthestBehind, startedAt - replaced)
      await sleep(3)
    }
  }
  const writeForever = async () => {
    while (running) {
      write()
      await sleep(20)
    }
  }
  const clients = [writeForever()]
  for (let i = 0; i < 4; i++) clients.push(readForever(a, true, `${i}`), readForever(b, false, `${i}`))
  /** Once all is well again, the other node hears of a write at once. */
  const checkRecovery = async (what: string) => {
    await until(isUp)
    await sleep(1_200)
    for (let i = 0; i < 10; i++) {
      write()
      const least = stored
      await sleep(100)
      for (const key of ['0', '1', 'fresh']) {
        t.ok(Number(await textOf(b.read('inventory', key, load))) >= least, `${what}: nothing stale`)
      }
    }
    t.equal(nodes[1].caches.stats().backend, 'redis')
  }

  await sleep(300)
  server.freeze()
  await sleep(1_200)
  t.equal(nodes[0].redis?.state(), 'down')
  const startedAt = performance.now()
  await t.rejects(async () => nodes[0].redis?.client?.get('x'), /writeable/)
  t.ok(performance.now() - startedAt < 50, 'who uses the client itself does not wait either')
  t.equal(nodes[0].caches.stats().backend, 'memory')
  await t.rejects(nodes[0].redis?.probe() ?? Promise.resolve(), /does not answer/)
  server.thaw()
  await checkRecovery('thawed')
  await server.kill()
  await sleep(700)
  t.equal(nodes[0].redis?.state(), 'down')
  await server.restart()
  await checkRecovery('restarted')
  running = false
  await Promise.all(clients)
  t.ok(slowest < 250, `slowest read ${slowest.toFixed(0)} ms`)
  t.equal(stale, 0, 'the node that writes never answers older than its last write')
  t.ok(furthestBehind < 1_500, `the other node was at most ${furthestBehind.toFixed(0)} ms behind`)
  const metrics = await nodes[0].registry.metrics()
  t.ok(Number(nodes[0].redis?.fallbacks().timeout) >= 1)
  for (const reason of ['connection', 'breaker_open']) {
    t.match(metrics, new RegExp(`cache_fallbacks_total{reason="${reason}"} [1-9]`))
  }
})

t.test('a Redis that comes back with an old snapshot answers nothing from it', async (t) => {
  const server = await startRedis()
  t.teardown(() => server.stop())
  const { caches, redis } = await startNode(t, { url: server.url, localTtlMilliseconds: 1 })
  const cache = caches.forTenant('main', unknown)
  t.equal(await textOf(cache.read('inventory', 'x', async () => 'old')), 'old')
  await sleep(30)
  t.equal(await textOf(cache.read('inventory', 'x', async () => 'unshared')), 'old')
  await redis?.client?.save()
  cache.invalidate('inventory')
  await sleep(30)
  await server.kill()
  await server.restart()
  await until(() => redis?.state() === 'up')
  t.not(await redis?.client?.dbsize(), 0, 'the snapshot is there')
  await sleep(1_200)
  t.equal(await textOf(cache.read('inventory', 'x', async () => 'new')), 'new')
})

t.test('in Redis: a late store is refused, no invalidation is lost', async (t) => {
  const server = await startRedis()
  t.teardown(() => server.stop())
  const shared = { url: server.url, prefix: freshPrefix(), localTtlMilliseconds: 60_000, sharedTtlSeconds: 60 }
  const nodes = [await startNode(t, shared), await startNode(t, shared)] as const
  const [a, b] = nodes.map(({ redis }) => {
    const counts: string[] = []
    if (redis === null) throw new Error('no redis')
    const cache = new SharedCache({
      redis: openRedisLike(redis, `${shared.prefix}raw:`),
      ttlSeconds: 60,
      onInvalidated: () => {},
      onGap: () => {},
      onFallback: () => {},
      observe: () => {}
    })
    return { counts, space: cache.space('main', 'raw', (...each) => counts.push(each.join(' '))) }
  })
  if (a === undefined || b === undefined) throw new Error('two nodes')
  await sleep(30)
  for (const { space } of [a, b]) await space.read('x')
  const before = await a.space.read('x')
  b.space.invalidate()
  t.equal((await b.space.read('x'))?.body, undefined)
  a.space.write('x', before?.generation ?? Buffer.of(), Buffer.from('stale'))
  await sleep(30)
  t.equal((await b.space.read('x'))?.body, undefined, 'what was loaded before an invalidation is refused')
  const after = await a.space.read('x')
  a.space.write('x', after?.generation ?? Buffer.of(), Buffer.from('fresh'))
  await sleep(30)
  t.equal(String((await b.space.read('x'))?.body), 'fresh')
  const drops = () => a.counts.filter((each) => each === 'delete ok').length
  const dropped = drops()
  for (let i = 0; i < 10; i++) a.space.invalidate()
  await a.space.settled()
  t.equal(drops() - dropped, 2, 'those that come while one is under way share the next')

  // A node that writes and never reads, while Redis is frozen.
  const caches = nodes.map(({ caches }) => caches.forTenant('main', unknown))
  const read = (node: 0 | 1, text: string) =>
    caches[node]?.read('inventory', 'x', async () => text).then(({ body }) => `${body}`)
  for (const text of ['warm', 'old']) {
    for (const node of [0, 1] as const) await read(node, text)
    await sleep(50)
    if (text === 'warm') caches[0]?.invalidate('inventory')
    await sleep(50)
  }
  t.equal(await read(1, 'new'), 'old')
  server.freeze()
  await nodes[0].redis?.call((client) => client.ping())
  caches[0]?.invalidate('inventory')
  server.thaw()
  await until(() => nodes[0].redis?.state() === 'up')
  await until(async () => (await read(1, 'new')) === 'new', 500)

  // A node that does not hear: what it holds goes when it hears again.
  await sleep(1_200)
  await read(1, 'held')
  await nodes[0].redis?.client?.call('client', 'kill', 'type', 'pubsub')
  caches[0]?.invalidate('inventory')
  await until(async () => (await read(1, 'heard')) === 'heard', 1_000)
  t.equal(nodes[1].redis?.state(), 'up')
})

/** The same connection under other keys. */
const openRedisLike = (redis: RedisLink, prefix: string): RedisLink => ({
  client: redis.client,
  prefix,
  state: () => redis.state(),
  unavailable: () => redis.unavailable(),
  call: (run, onFallback) => redis.call(run, onFallback),
  subscribe: () => {},
  onReady: (run) => redis.onReady(run),
  probe: () => redis.probe(),
  fallbacks: () => redis.fallbacks(),
  close: async () => {}
})

t.test('the link: absent, refused, a client of the host', async (t) => {
  const absent = openRedis({ log: quiet })
  t.equal(absent.state(), 'absent')
  t.equal(await absent.call((client) => client.ping()), undefined)
  await absent.close()

  const warnings: string[] = []
  const nowhere = openRedis({
    url: 'redis://127.0.0.1:1',
    log: { info: () => {}, warn: (_fields, message) => warnings.push(message) }
  })
  await until(() => warnings.length > 0)
  await sleep(200)
  t.equal(warnings.length, 1, 'a Redis that cannot be reached is logged once')
  t.equal(await nowhere.call((client) => client.ping()), undefined)
  t.equal(nowhere.fallbacks().connection, 1)
  await nowhere.close()
  await nowhere.close()

  const host = new Redis(redisUrl(), { keyPrefix: freshPrefix() })
  t.teardown(() => host.disconnect())
  const link = openRedis({ client: host, log: quiet })
  await until(() => link.state() === 'up')
  const caches = [1, 2].map(() => createCaches({ redis: link, enabled: true, registry: new Registry() }))
  const [a, b] = caches.map((each) => each.forTenant('main', unknown))
  await sleep(50)
  for (const cache of [a, b]) await cache?.read('inventory', 'warm', async () => '')
  await sleep(50)
  await a?.read('inventory', 'x', async () => 'one')
  await sleep(50)
  t.equal(String((await b?.read('inventory', 'x', async () => 'two'))?.body), 'one', 'under the host’s key prefix too')
  a?.invalidate('inventory')
  await sleep(50)
  t.equal(String((await b?.read('inventory', 'x', async () => 'two'))?.body), 'two')
  t.equal(await link.call((client) => client.lpush('x', '1').then(() => client.get('x'))), undefined)
  t.equal(link.fallbacks().error, 1, 'an error reply is counted')
  t.equal(link.state(), 'up', 'and does not count as an outage')
  await host.del('x')
  for (const each of caches) await each.close()
  await link.close()
  t.equal(await host.ping(), 'PONG', 'the client of a host stays open')
})

t.test('a frozen Redis is noticed though nobody calls, on a client of the host too', async (t) => {
  const server = await startRedis()
  t.teardown(() => server.stop())
  const host = new Redis(server.url)
  t.teardown(() => host.disconnect())
  const links = [openRedis({ client: host, log: quiet }), openRedis({ url: server.url, log: quiet })]
  t.teardown(() => Promise.all(links.map((link) => link.close())))
  const all = (state: string) => until(() => links.every((link) => link.state() === state), 3_000)
  let ready = 0
  for (const link of links) link.onReady(() => ready++)
  await all('up')
  server.freeze()
  await all('down')
  t.same(
    links.map((link) => link.unavailable()),
    ['breaker_open', 'connection']
  )
  t.equal(host.status, 'ready', 'the connection of a host is left to it')
  await sleep(600)
  server.thaw()
  await all('up')
  t.equal(ready, 4)
  t.same(await Promise.all(links.map((link) => link.call((client) => client.ping()))), ['PONG', 'PONG'])
})

t.test('GET /stats answers for the tenant of the caller, and needs its decorators', async (t) => {
  const { caches } = await startNode(t)
  await caches.forTenant('main', unknown).read('inventory', 'list', async () => '[]')
  await caches.forTenant('main', unknown).read('inventory', 'list', async () => '[]')
  await caches.forTenant('other', unknown).read('anomaly', 'list', async () => '[]')
  const app = Fastify()
  t.teardown(() => app.close())
  const roles: unknown[] = []
  const authorize: onRequestHookHandler = (request, _reply, done) => {
    request.setDecorator('tenant', { id: 'main' })
    roles.push(Reflect.get(request.routeOptions.config, 'role'))
    done()
  }
  const enterModule: EnterModule = (module, options) => void module.addHook('onRequest', options.authorize)
  app.decorate('enterModule', enterModule).decorate('caches', caches).decorateRequest('tenant', null)
  await app.register(cacheStats, { prefix: '/api', authorize })
  const answer = await app.inject('/api/cache/stats')
  t.equal(answer.statusCode, 200)
  t.equal(answer.headers['cache-control'], 'no-store')
  const { memoryBytes, ...rest } = answer.json()
  const figures = { hits: 1, misses: 1, hitRate: 0.5, keys: 1 }
  t.same(rest, { backend: 'memory', ...figures, byNamespace: { inventory: { ...figures, memoryBytes } } })
  t.ok(memoryBytes > 600)
  t.same(roles, ['manager'])
  await t.rejects(Promise.resolve(Fastify().register(cacheStats, { authorize }).ready()), /decorator|enterModule/)
})
