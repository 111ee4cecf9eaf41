import Fastify from 'fastify'
import t from 'tap'
import { takeCensus } from '../modules/identity/census.js'
import identity, { createUser, disableUser } from '../modules/identity/index.js'
import { createLoginThrottle } from '../modules/identity/throttle.js'
import { networkOf } from '../plugins/http/network.js'
import { databases, PASSWORD, start } from './identity-harness.js'

t.test('a bad option stops the boot', async (t) => {
  await t.rejects(start('sqlite::memory:', { accessTokenTtlSeconds: 0 }), RangeError)
  const bare = Fastify()
  await t.rejects(
    Promise.resolve(bare.register(identity, { authorize: (_request, _reply, done) => done() })),
    /decorator/
  )
})

t.test('throttle: limits, recovery, spraying, strangers', async (t) => {
  let now = 1_000_000
  const throttle = createLoginThrottle(null, { now: () => now })
  const attempt = { tenant: 'main', username: 'alice', address: '192.0.2.1' }
  const tries = async (count: number, over: (i: number) => Partial<typeof attempt> = () => ({})) =>
    (await Promise.all(Array.from({ length: count }, (_, i) => throttle.take({ ...attempt, ...over(i) })))).filter(
      (wait) => wait === 0
    ).length
  t.equal(await tries(1000), 5)
  t.equal(await throttle.take(attempt), 60)
  now += 59_000
  t.equal(await throttle.take(attempt), 1)
  now += 1_000
  t.equal(await tries(10), 1, 'one more after a minute: waiting tries cost nothing')
  now += 3_600_000
  t.equal(await tries(10), 5, 'forgotten after a while')

  now += 3_600_000
  await throttle.take(attempt)
  await throttle.succeeded(attempt)
  t.equal(await tries(3), 3)
  await throttle.succeeded(attempt)
  t.equal(await tries(10), 5, 'a success gives the tries back')

  now += 3_600_000
  t.equal(
    await tries(500, (i) => ({ username: `user${i}`, address: '203.0.113.1' })),
    50,
    'one address over many users'
  )
  t.equal(
    await tries(500, (i) => ({ username: 'bob', address: `10.0.${i >> 8}.${i & 255}` })),
    50,
    'one user from many addresses'
  )
  await throttle.succeeded({ ...attempt, username: 'bob', address: '192.0.2.50' })
  t.equal(await tries(500, (i) => ({ username: 'bob', address: `10.1.${i >> 8}.${i & 255}` })), 50)
  t.equal(
    await throttle.take({ ...attempt, username: 'bob', address: '192.0.2.50' }),
    0,
    'the user’s own address is spared'
  )
  t.equal(
    await throttle.take({ ...attempt, tenant: 'other', username: 'bob', address: '192.0.2.51' }),
    0,
    'another tenant’s Bob is another'
  )
  t.equal(
    await tries(500, (i) => ({ address: `2001:db8:0:1::${i.toString(16)}`, username: 'v6' })),
    5,
    'one IPv6 network counts as one'
  )

  const networks: [string, string][] = [
    ['192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['2001:db8::1', '2001:db8:0:0::/64'],
    ['2001:0DB8:0:0:aaaa:bbbb:cccc:dddd', '2001:db8:0:0::/64'],
    ['2001:db8:1:2:3::', '2001:db8:1:2::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    ['::1', '0:0:0:0::/64'],
    ['', '']
  ]
  for (const [address, network] of networks) t.equal(networkOf(address), network, address)
})

for (const [dialect, provide] of Object.entries(databases)) {
  t.test(`who and what is counted for Prometheus: ${dialect}`, async (t) => {
    const database = await provide()
    t.teardown(database.drop)
    const service = await start(database.url)
    t.teardown(() => service.app.close())
    const { call, login } = service
    await createUser(await service.tenant(), { username: 'root', role: 'admin', password: PASSWORD })
    t.equal((await login('root', PASSWORD)).status, 200)
    const tenant = await service.tenant()
    const life = { idleSeconds: 3_600, absoluteSeconds: 86_400 }
    const before = await takeCensus(tenant, life)
    t.same(before, { users: { admin: 1 }, sessions: 1, apiTokens: 0, privilegedWithoutFactor: 1 })
    await createUser(tenant, { username: 'counted', role: 'manager', password: PASSWORD })
    const { body } = await login('counted', PASSWORD)
    t.equal((await call('POST', '/tokens', body.accessToken, { name: 'x', scopes: ['*:read'] })).status, 201)
    const more = { users: { admin: 1, manager: 1 }, sessions: 2, apiTokens: 1, privilegedWithoutFactor: 2 }
    t.same(await takeCensus(tenant, life), more)
    t.same(await takeCensus(tenant, { ...life, idleSeconds: 0 }), { ...more, sessions: 0 }, 'idle ones have ended')
    await disableUser(tenant, 'counted')
    t.same(await takeCensus(tenant, life), before, 'nothing of a disabled user counts')
  })
}
