import { randomBytes, randomUUID } from 'node:crypto'
import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import Sqlite from 'better-sqlite3'
import fc from 'fast-check'
import Fastify, { type onRequestHookHandler } from 'fastify'
import t, { type Test } from 'tap'
import cacheStats from '../modules/cache-stats/index.js'
import type { EnterModule } from '../plugins/contracts.js'
import { backends, deferred, freshPrefix, type Node, type Setup, startNode, textOf, unknown } from './caches-harness.js'
import { redisUrl } from './services.js'

for (const { backend, url } of backends) {
  const setup = (): Setup => {
    const address = url()
    // By default an entry lives for a second, and a busy machine may take longer.
    return { localTtlMilliseconds: 60_000, ...(address === undefined ? {} : { url: address, patient: true }) }
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

t.test('GET /stats answers for the tenant of the caller, and needs its decorators', async (t) => {
  const { caches } = await startNode(t, { localTtlMilliseconds: 60_000 })
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
