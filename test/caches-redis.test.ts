import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { Registry } from 'prom-client'
import t from 'tap'
import { createCaches, type TenantCache } from '../plugins/cache/index.js'
import { SharedCache } from '../plugins/cache/shared.js'
import { openRedis, type RedisLink } from '../plugins/redis.js'
import { deferred, freshPrefix, quiet, startNode, textOf, unknown, until } from './caches-harness.js'
import { ownTime } from './own-time.js'
import { patientRedis } from './patience.js'
import { redisUrl, startRedis } from './services.js'

t.test('two nodes share loads and hear of invalidations within 100 ms', async (t) => {
  const server = await startRedis()
  t.teardown(() => server.stop())
  const shared = { url: server.url, prefix: freshPrefix(), patient: true }
  const nodes = [await startNode(t, shared), await startNode(t, shared)] as const
  const [a, b] = nodes.map(({ caches }) => caches.forTenant('main', unknown))
  if (a === undefined || b === undefined) throw new Error('two nodes')
  const load = (text: string) => async () => text
  // The first use of a namespace drops what an earlier process may have left.
  for (const cache of [a, b]) await cache.read('inventory', 'warm', load(''))
  for (const node of nodes) await node.told()
  t.equal(await textOf(a.read('inventory', 'x', load('one'))), 'one')
  await until(async () => (await nodes[0].registry.metrics()).includes('operation="set",result="ok"} 2'))
  t.equal(await textOf(b.read('inventory', 'x', load('two'))), 'one', 'loaded once for both')

  let slowest = 0
  for (let i = 0; i < 20; i++) {
    const startedAt = ownTime(process.pid, server.pid)
    a.invalidate('inventory')
    await until(async () => (await textOf(b.read('inventory', 'x', load(`${i}`)))) === `${i}`, 1_000)
    slowest = Math.max(slowest, ownTime(process.pid, server.pid) - startedAt)
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
  await nodes[0].sent()
  await nodes[1].told()
  stale.resolve('old')
  t.equal(await textOf(loading), 'old')
  await nodes[1].sent()
  for (const cache of [a, b]) t.equal(await textOf(cache.read('inventory', 'y', load('new'))), 'new')

  const big = 'x'.repeat(1_100_000)
  await a.read('inventory', 'big', load(big))
  await nodes[0].sent()
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
    const impatient = patientRedis(t)
    await sleep(1_200)
    for (const node of nodes) await node.told()
    for (let i = 0; i < 10; i++) {
      write()
      const least = stored
      const since = ownTime(process.pid, server.pid)
      for (const key of ['0', '1', 'fresh'])
        await until(async () => Number(await textOf(b.read('inventory', key, load))) >= least)
      const took = ownTime(process.pid, server.pid) - since
      t.ok(took < 100, `${what}: nothing stale after ${took.toFixed(1)} ms`)
      await sleep(100)
    }
    t.equal(nodes[1].caches.stats().backend, 'redis')
    impatient()
  }

  await sleep(300)
  server.freeze()
  await sleep(1_200)
  await until(() => nodes[0].redis?.state() === 'down')
  t.equal(nodes[0].redis?.state(), 'down')
  const startedAt = ownTime(process.pid)
  await t.rejects(async () => nodes[0].redis?.client?.get('x'), /writeable/)
  t.ok(ownTime(process.pid) - startedAt < 50, 'who uses the client itself does not wait either')
  t.equal(nodes[0].caches.stats().backend, 'memory')
  await t.rejects(nodes[0].redis?.probe() ?? Promise.resolve(), /does not answer/)
  server.thaw()
  await checkRecovery('thawed')
  await server.kill()
  await sleep(700)
  await until(() => nodes[0].redis?.state() === 'down')
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
  const { caches, redis, sent } = await startNode(t, { url: server.url, localTtlMilliseconds: 1, patient: true })
  const cache = caches.forTenant('main', unknown)
  t.equal(await textOf(cache.read('inventory', 'x', async () => 'old')), 'old')
  await sent()
  await sleep(2)
  t.equal(await textOf(cache.read('inventory', 'x', async () => 'unshared')), 'old')
  await redis?.client?.save()
  cache.invalidate('inventory')
  await sent()
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
  const impatient = patientRedis(t)
  for (const node of nodes) await node.sent()
  for (const { space } of [a, b]) await space.read('x')
  const before = await a.space.read('x')
  b.space.invalidate()
  t.equal((await b.space.read('x'))?.body, undefined)
  a.space.write('x', before?.generation ?? Buffer.of(), Buffer.from('stale'))
  await nodes[0].sent()
  t.equal((await b.space.read('x'))?.body, undefined, 'what was loaded before an invalidation is refused')
  const after = await a.space.read('x')
  a.space.write('x', after?.generation ?? Buffer.of(), Buffer.from('fresh'))
  await nodes[0].sent()
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
    for (const { told } of nodes) await told()
    if (text === 'warm') caches[0]?.invalidate('inventory')
    await nodes[0].sent()
    await nodes[1].told()
  }
  t.equal(await read(1, 'new'), 'old')
  impatient()
  server.freeze()
  await nodes[0].redis?.call((client) => client.ping())
  caches[0]?.invalidate('inventory')
  server.thaw()
  await until(() => nodes[0].redis?.state() === 'up')
  const back = ownTime(process.pid, server.pid)
  await until(async () => (await read(1, 'new')) === 'new')
  t.ok(ownTime(process.pid, server.pid) - back < 500)

  // A node that does not hear: what it holds goes when it hears again.
  patientRedis(t)
  await sleep(1_200)
  await read(1, 'held')
  await nodes[0].redis?.client?.call('client', 'kill', 'type', 'pubsub')
  caches[0]?.invalidate('inventory')
  const lost = ownTime(process.pid, server.pid)
  await until(async () => (await read(1, 'heard')) === 'heard')
  t.ok(ownTime(process.pid, server.pid) - lost < 1_000)
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
  const absent = await openRedis({ log: quiet })
  t.equal(absent.state(), 'absent')
  t.equal(await absent.call((client) => client.ping()), undefined)
  await absent.close()

  const warnings: string[] = []
  const nowhere = await openRedis({
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
  const link = await openRedis({ client: host, log: quiet })
  await until(() => link.state() === 'up')
  patientRedis(t)
  const options = { redis: link, enabled: true, localTtlMilliseconds: 60_000 }
  const caches = [1, 2].map(() => createCaches({ ...options, registry: new Registry() }))
  const [a, b] = caches.map((each) => each.forTenant('main', unknown))
  await host.ping()
  await turn()
  for (const cache of [a, b]) await cache?.read('inventory', 'warm', async () => '')
  await a?.read('inventory', 'x', async () => 'one')
  t.equal(String((await b?.read('inventory', 'x', async () => 'two'))?.body), 'one', 'under the host’s key prefix too')
  a?.invalidate('inventory')
  const seen = async () => String((await b?.read('inventory', 'x', async () => 'two'))?.body)
  await until(async () => (await seen()) === 'two')
  t.equal(await seen(), 'two')
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
  const links = [await openRedis({ client: host, log: quiet }), await openRedis({ url: server.url, log: quiet })]
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
