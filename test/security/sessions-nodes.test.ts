import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import type { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { disableUser } from '../../modules/identity/index.js'
import { createLoginThrottle } from '../../modules/identity/throttle.js'
import type { SharedStore } from '../../plugins/contracts.js'
import core from '../../plugins/core.js'
import { DIALECTS } from '../helper.js'
import { patientRedis } from '../patience.js'
import { freshDatabase, startRedis } from '../services.js'
import { database, type Held, PASSWORD, type Service, start } from './sessions-harness.js'

/** Sessions and guesses where several nodes serve, against ASVS 5.0: each test is named by the rows that it holds. */

t.test('V7.4.1, V7.4.2 what ends on one node is refused by the very next request on another', async (t) => {
  const redis = await startRedis()
  t.teardown(() => redis.stop())
  for (const dialect of DIALECTS) {
    const url = await database(t, dialect)
    const [a, b] = [await start(t, url, { redisUrl: redis.url }), await start(t, url, { redisUrl: redis.url })]
    await t.test(`${dialect}, Redis up`, async (t) => endsElsewhere(t, a, b, 'up'))
    redis.freeze()
    await t.test(`${dialect}, Redis frozen`, async (t) => endsElsewhere(t, a, b, 'frozen'))
    redis.thaw()
    await redis.kill()
    await t.test(`${dialect}, Redis killed`, async (t) => endsElsewhere(t, a, b, 'killed'))
    await redis.restart()
  }
})

async function endsElsewhere(t: Test, a: Service, b: Service, name: string) {
  const { id, username } = await a.create(`eve-${name}`, 'manager')
  await a.create(`bob-${name}`)
  const bob = await a.login(`bob-${name}`)
  const hold = async () => {
    const held = await a.login(username)
    const api = (await a.call('POST', '/api/tokens', held.access, { name: 'x', scopes: ['*:read'] })).body.token
    for (const each of [held.access, api]) t.equal(await b.me(each), 200)
    return { ...held, api }
  }
  const admin = async (method: 'PATCH' | 'DELETE', body?: object) =>
    (await a.call(method, `/api/users/${id}`, a.admin, body)).status === 200
  const ends: Record<string, (held: Held) => Promise<boolean>> = {
    'sign-out': async ({ access }) => (await a.call('POST', '/api/auth/logout', access)).status === 204,
    'an administrator': async () => (await a.call('DELETE', `/api/users/${id}/sessions`, a.admin)).status === 204,
    'a reused refresh token': async ({ refresh }) => {
      await a.refresh((await a.refresh(refresh)).body.refreshToken)
      return (await a.refresh(refresh)).body.reason === 'reused'
    },
    disabling: () => admin('PATCH', { disabled: true }),
    demotion: () => admin('PATCH', { role: 'viewer' }),
    'a change at the console': async () => (await disableUser(a.tenant, username)).disabled,
    // For good, so it is the last.
    deletion: () => admin('DELETE')
  }
  for (const [name, end] of Object.entries(ends)) {
    const held = await hold()
    t.ok(await end(held), name)
    t.equal(await b.me(held.access), 401, `${name}: the access token`)
    t.equal((await b.refresh(held.refresh)).status, 401, `${name}: the refresh token`)
    // A session that ends leaves what was made for programs.
    const lives = ['sign-out', 'an administrator', 'a reused refresh token'].includes(name)
    t.equal(await b.me(held.api), lives ? 200 : 401, `${name}: the API token`)
    t.equal(await b.me(bob.access), 200, `${name}: nobody else`)
    await a.call('PATCH', `/api/users/${id}`, a.admin, { disabled: false })
  }
}

t.test(
  'V6.3.1 guesses are bounded over all nodes; without Redis on each; the good user comes in from elsewhere',
  async (t) => {
    patientRedis(t)
    const redis = await startRedis()
    t.teardown(() => redis.stop())
    const { url, drop } = await freshDatabase()
    t.teardown(drop)
    const nodes = [await start(t, url, { redisUrl: redis.url }), await start(t, url, { redisUrl: redis.url })] as const
    // Until its line to Redis is open, a node counts alone.
    for (const { app } of nodes) await connected(app.getDecorator<SharedStore>('sharedStore'))
    await nodes[0].create('vic')
    const guess = (n: number, extra: Record<string, unknown> = {}, headers: Record<string, string> = {}) =>
      nodes[n % 2 === 0 ? 0 : 1].call(
        'POST',
        '/api/auth/login',
        undefined,
        { username: 'vic', password: 'wrong wrong', ...extra },
        { remoteAddress: '203.0.113.9', headers }
      )
    const count = async (total: number, headers: (n: number) => Record<string, string> = () => ({})) => {
      const answers = await Promise.all(Array.from({ length: total }, (_, n) => guess(n, {}, headers(n))))
      return answers.filter(({ status }) => status === 401).length
    }
    t.equal(await count(40), 5, 'two nodes count together')
    t.equal(
      await count(40, (n) => ({ 'x-forwarded-for': `198.51.100.${n}` })),
      0,
      'a forged address is no other address'
    )
    const blocked = await guess(0)
    t.match(blocked, { status: 429, body: { code: 'ID_LOGIN_THROTTLED' } })
    const wait = Number(blocked.headers['retry-after'])
    t.ok(wait >= 1 && wait <= 60, `Retry-After: ${wait}`)
    t.equal((await guess(1, { nonce: randomUUID() })).status, 400, 'no field of the attacker’s choice')
    t.equal((await guess(1, { tenant: 'main' })).status, 429)
    t.equal((await guess(1, { cookie: false, username: 'VIC' })).status, 429)
    for (const { signIn } of nodes)
      t.equal((await signIn('vic', PASSWORD)).status, 200, 'the user gets in from elsewhere')

    await redis.kill()
    t.equal(await count(40), 5, 'when Redis dies each process lets through what is left of its own five, and no more')
    const elsewhere = await Promise.all(
      Array.from({ length: 40 }, (_, n) =>
        nodes[n % 2 === 0 ? 0 : 1].call(
          'POST',
          '/api/auth/login',
          undefined,
          { username: 'vic', password: 'wrong wrong' },
          { remoteAddress: '203.0.113.77' }
        )
      )
    )
    t.equal(elsewhere.filter(({ status }) => status === 401).length, 10, 'without Redis each node counts for itself')
  }
)

async function connected(store: SharedStore): Promise<void> {
  while ((await store.call((client: Redis) => client.ping())) === undefined) await sleep(5)
}

t.test('V6.3.1 the shared buckets: a thousand guesses, spraying, strangers, recovery', async (t) => {
  patientRedis(t)
  const redis = await startRedis()
  t.teardown(() => redis.stop())
  const app = Fastify()
  await app.register(core, { databaseUrl: 'sqlite::memory:', redisUrl: redis.url })
  await app.ready()
  t.teardown(() => app.close())
  const store = app.getDecorator<SharedStore>('sharedStore')
  await connected(store)
  const attempt = { tenant: 'main', username: 'alice', address: '192.0.2.1' }
  // Many processes in turn: what each has seen itself is far below every limit, so only Redis can know.
  const processes = Array.from({ length: 60 }, () => createLoginThrottle(store))
  const process = (n: number) => processes[n % processes.length] ?? createLoginThrottle(store)
  const tries = async (count: number, over: (n: number) => Partial<typeof attempt> = () => ({})) => {
    let passed = 0
    for (let n = 0; n < count; n++) {
      if ((await process(n).take({ ...attempt, ...over(n) })) === 0) passed++
    }
    return passed
  }
  t.equal(await tries(1000), 5)
  const spread = (n: number) => ({ username: 'bob', address: `10.0.${n >> 8}.${n & 255}` })
  t.equal(await tries(200, spread), 50, 'one user from many addresses')
  t.equal(
    await tries(200, (n) => ({ username: `user${n}`, address: '203.0.113.1' })),
    50,
    'one address over many users'
  )
  const home = { ...attempt, username: 'bob', address: '198.51.100.4' }
  await process(0).succeeded(home)
  t.equal(await tries(60, (n) => ({ username: 'bob', address: `10.9.0.${n}` })), 50)
  t.equal(await process(1).take(home), 0, 'the user’s own address is spared')
  const keys: string[] = (await store.call((client: Redis) => client.keys(`${store.prefix}login:*`))) ?? []
  t.ok(keys.length > 0)
  t.notMatch(keys.join(), /alice|bob|192\.0/, 'no names in Redis')
  for (const key of keys)
    t.ok(Number(await store.call((client: Redis) => client.pttl(key))) > 0, 'all of it is forgotten one day')
})
