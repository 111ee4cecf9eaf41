import { createHmac, randomUUID } from 'node:crypto'
import fastifyJwt from '@fastify/jwt'
import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import identity, { createUser, issueToken } from '../modules/identity/index.js'
import { createTokens } from '../plugins/auth.js'
import { type Auth, access, type Tenant } from '../plugins/contracts.js'
import core, { type Tenants } from '../plugins/core.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { ISSUER, KEYS, OTHER_SECRET, PASSWORD, SECRET, start } from './identity-harness.js'

const base64 = (value: unknown) =>
  Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')
function forge(header: object, payload: object, secret = SECRET, hash = 'sha256') {
  const input = `${base64(header)}.${base64(payload)}`
  return `${input}.${createHmac(hash, secret).update(input).digest('base64url')}`
}

t.test('V9.1.1-3, V9.2.1-3 forged tokens: each is refused for its reason, and counted', async (t) => {
  const { app, call, metric } = await start('sqlite::memory:')
  t.teardown(() => app.close())
  const now = Math.floor(Date.now() / 1000)
  const header = { alg: 'HS256', typ: 'at+jwt', kid: 'k1' }
  const claims = {
    iss: ISSUER,
    aud: ISSUER,
    sub: 'cli',
    role: 'admin',
    tenant: 'main',
    jti: randomUUID(),
    iat: now,
    exp: now + 60
  }
  const without = (name: string) => Object.fromEntries(Object.entries(claims).filter(([key]) => key !== name))
  const good = forge(header, claims)
  t.equal((await call('GET', '/users', good)).status, 200, 'the pattern for the forgeries is itself good')
  const [, payload = '', signature = ''] = good.split('.')

  const table: Record<string, [string, string]> = {
    'no algorithm': [`${base64({ ...header, alg: 'none' })}.${payload}.`, 'algorithm'],
    'no algorithm, old signature': [`${base64({ ...header, alg: 'none' })}.${payload}.${signature}`, 'algorithm'],
    'algorithm in capitals': [`${base64({ ...header, alg: 'NONE' })}.${payload}.`, 'algorithm'],
    'another HMAC': [forge({ ...header, alg: 'HS512' }, claims, SECRET, 'sha512'), 'algorithm'],
    'RSA named, HMAC used': [forge({ ...header, alg: 'RS256' }, claims), 'algorithm'],
    'no signature': [`${base64(header)}.${payload}.`, 'signature'],
    'half a signature': [good.slice(0, -20), 'signature'],
    'another payload': [`${base64(header)}.${base64({ ...claims, sub: 'x' })}.${signature}`, 'signature'],
    'another key': [forge(header, claims, OTHER_SECRET), 'signature'],
    'an empty key': [forge(header, claims, ''), 'signature'],
    'an unknown key id': [forge({ ...header, kid: 'k2' }, claims), 'signature'],
    'a path for a key id': [forge({ ...header, kid: '../../dev/null' }, claims, ''), 'signature'],
    'SQL for a key id': [forge({ ...header, kid: "' union select 'x" }, claims, 'x'), 'signature'],
    'a key id of Object': [forge({ ...header, kid: '__proto__' }, claims), 'signature'],
    'no key id': [forge({ alg: 'HS256', typ: 'at+jwt' }, claims), 'malformed'],
    'a list of key ids': [forge({ ...header, kid: ['k1'] }, claims), 'malformed'],
    'a key set by URL': [forge({ ...header, jku: 'https://evil.example/keys' }, claims), 'malformed'],
    'a key of its own': [forge({ ...header, jwk: { kty: 'oct', k: base64('x') } }, claims, 'x'), 'malformed'],
    'a certificate by URL': [forge({ ...header, x5u: 'https://evil.example/c' }, claims), 'malformed'],
    'a critical extension': [forge({ ...header, crit: ['b64'], b64: false }, claims), 'malformed'],
    'another type': [forge({ ...header, typ: 'JWT' }, claims), 'type'],
    'no type': [forge({ alg: 'HS256', kid: 'k1' }, claims), 'type'],
    'another issuer': [forge(header, { ...claims, iss: 'someone' }), 'issuer'],
    'another audience': [forge(header, { ...claims, aud: 'someone' }), 'audience'],
    expired: [forge(header, { ...claims, exp: now - 1 }), 'expired'],
    'not yet': [forge(header, { ...claims, nbf: now + 60 }), 'early'],
    'a role that is none': [forge(header, { ...claims, role: 'root' }), 'malformed'],
    'a time in words': [forge(header, { ...claims, exp: 'never' }), 'malformed'],
    'a path for a tenant': [forge(header, { ...claims, tenant: '../main' }), 'malformed'],
    'a payload that is a list': [forge(header, [claims]), 'malformed'],
    'four parts': [`${good}.x`, 'malformed'],
    'not base64': [good.replace('.', '.*'), 'malformed'],
    'one word': ['token', 'malformed'],
    'far too long': [`${good}${'A'.repeat(5000)}`, 'malformed'],
    ...Object.fromEntries(
      ['iss', 'aud', 'sub', 'role', 'tenant', 'jti', 'iat', 'exp'].map((name) => [
        `without ${name}`,
        [forge(header, without(name)), 'malformed']
      ])
    )
  }
  const expected = new Map<string, number>()
  for (const [name, [forged, reason]] of Object.entries(table)) {
    const { status, body } = await call('GET', '/users', forged)
    t.strictSame({ status, code: body.code, reason: body.reason }, { status: 401, code: 'AUTH_REQUIRED', reason }, name)
    expected.set(reason, (expected.get(reason) ?? 0) + 1)
  }
  for (const [reason, count] of expected)
    t.equal(await metric(`auth_token_rejections_total{reason="${reason}"}`), count, reason)
  for (const authorization of [`Basic ${base64('a:b')}`, 'Bearer', 'Bearer ', `Bearer ${good} ${good}`]) {
    const { status } = await call('GET', '/users', undefined, undefined, { headers: { authorization } })
    t.equal(status, 401, authorization.slice(0, 12))
  }
  t.equal(
    (await call('GET', '/users', undefined, undefined, { headers: { authorization: `bearer ${good}` } })).status,
    200
  )
  t.equal((await call('GET', `/users?access_token=${good}`)).status, 401, 'V14.2.1 never from the URL')
})

t.test('authorize: an undeclared route is closed, a kept token still expires', async (t) => {
  const { app, auth, token, metric } = await start('sqlite::memory:')
  t.teardown(() => app.close())
  const host = Fastify()
  host.decorateRequest('tenant', null)
  host.decorateRequest('principal', null)
  host.addHook('onRequest', auth.authorize)
  host.get('/undeclared', async () => 'never')
  host.get('/misspelt', { config: { role: 'Admin' } }, async () => 'never')
  host.get('/open', { config: access('public') }, async () => 'open')
  host.get('/read', { config: access('viewer') }, async (request) => request.getDecorator('principal'))
  const get = (url: string, authorization?: string) =>
    host.inject({ url, headers: authorization ? { authorization } : {} })
  for (const url of ['/undeclared', '/misspelt']) {
    t.match((await get(url, `Bearer ${token('admin')}`)).json(), { code: 'AUTH_ROUTE_CLOSED' }, url)
  }
  t.equal(await metric('authz_denials_total{role="none",kind="undeclared"}'), 2)
  t.equal((await get('/open')).body, 'open')
  const short = `Bearer ${issueToken(auth, { role: 'manager', tenant: 'main', ttlSeconds: 2 })}`
  t.match((await get('/read', short)).json(), { subject: 'cli', role: 'manager', tenant: 'main' })
  await new Promise((resolve) => setTimeout(resolve, 2_100))
  t.match((await get('/read', short)).json(), { code: 'AUTH_REQUIRED' }, 'though its signature was checked before')
  await host.close()
})

t.test(
  'V9.1.3 two apps in one process, each with its keys; a key is replaced without a pause; the host has its own tokens',
  async (t) => {
    const host = Fastify()
    await host.register(fastifyJwt, { secret: OTHER_SECRET })
    const registered = async (app: FastifyInstance, keys: Parameters<typeof createTokens>[1]['keys']) => {
      const tokens = createTokens(app, { keys })
      await app.ready()
      return tokens
    }
    const first = await registered(host, [{ id: 'k1', secret: SECRET }])
    const second = await registered(Fastify(), [{ id: 'k1', secret: OTHER_SECRET }])
    const rotated = await registered(Fastify(), [
      { id: 'k2', secret: OTHER_SECRET },
      { id: 'k1', secret: SECRET }
    ])
    const subject = { subject: 'cli', role: 'viewer', tenant: 'main' } as const
    const [old, fresh] = [first.sign(subject, 60), rotated.sign(subject, 60)]
    t.throws(() => second.verify(old), /\(signature\)/)
    t.throws(() => first.verify(fresh), /\(signature\)/)
    t.equal(rotated.verify(old).sub, 'cli')
    t.equal(rotated.verify(fresh).role, 'viewer')
    t.throws(() => first.verify(host.jwt.sign({ sub: 'cli', role: 'admin', tenant: 'main' })), /malformed/)
    t.throws(() => createTokens(Fastify(), { keys: [KEYS[0], KEYS[0]] }), /same id/)

    const apps = [
      await start('sqlite::memory:'),
      await start('sqlite::memory:', { jwtKeys: [{ id: 'k1', secret: OTHER_SECRET }] })
    ] as const
    const [one, two] = apps
    t.equal((await one.call('GET', '/auth/me', one.token('viewer'))).status, 200)
    t.equal((await two.call('GET', '/auth/me', two.token('viewer'))).status, 200)
    t.equal((await two.call('GET', '/auth/me', one.token('viewer'))).status, 401)
    t.throws(() => one.auth.refuseWhen(() => false), /only one/)
    for (const { app } of apps) await app.close()
    await host.close()
  }
)

t.test('tenants: a token counts in its own', async (t) => {
  const app = Fastify(serverOptions({ logLevel: 'silent' }))
  await app.register(core, {
    databaseUrl: `sqlite:${t.testdir()}/t.sqlite`,
    tenancy: 'multi',
    jwtKeys: [...KEYS],
    secretsKeys: [...KEYS]
  })
  const auth = app.getDecorator<Auth>('auth')
  await app.register(identity, { prefix: '/api', authorize: auth.authorize, secondFactor: 'optional' })
  await app.ready()
  t.teardown(() => app.close())
  const tenants = app.getDecorator<Tenants>('tenants')
  const [north, south]: Tenant[] = [await tenants.create('north'), await tenants.create('south')]
  const user = await createUser(north!, { username: 'ann', role: 'admin', password: PASSWORD })
  await createUser(south!, { username: 'ann', role: 'viewer', password: 'the other passphrase' })
  const login = (tenant: string | undefined, password: string) =>
    app.inject({
      method: 'POST',
      url: '/api/auth/login',
      payload: { username: 'ann', password, ...(tenant ? { tenant } : {}) }
    })
  t.equal((await login('south', PASSWORD)).statusCode, 401)
  t.equal((await login('nowhere', PASSWORD)).statusCode, 401)
  t.equal((await login(undefined, PASSWORD)).statusCode, 401)
  const { accessToken } = (await login('north', PASSWORD)).json()
  const list = await app.inject({ url: '/api/users', headers: { authorization: `Bearer ${accessToken}` } })
  t.strictSame(
    list.json().data.map(({ id }: { id: string }) => id),
    [user.id]
  )
  const foreign = auth.sign({ subject: user.id, role: 'admin', tenant: 'west' }, 60)
  t.equal((await app.inject({ url: '/api/users', headers: { authorization: `Bearer ${foreign}` } })).statusCode, 404)
})
