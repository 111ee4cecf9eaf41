import { createHash, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type InjectOptions } from 'fastify'
import type { Redis } from 'ioredis'
import { sql } from 'kysely'
import type { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import identity, { disableUser, issueToken, setPassword } from '../../modules/identity/index.js'
import { createPasswordHasher } from '../../modules/identity/passwords.js'
import { openSession } from '../../modules/identity/session-store.js'
import { createIdentityStore } from '../../modules/identity/store.js'
import { createLoginThrottle } from '../../modules/identity/throttle.js'
import {
  type Audit,
  type Auth,
  access,
  type EnterModule,
  type SharedStore,
  type TokenUse
} from '../../plugins/contracts.js'
import core, { type Tenants } from '../../plugins/core.js'
import { serverOptions } from '../../plugins/http/server-options.js'
import type { Role } from '../../schemas/common.js'
import { DIALECTS, type Dialect, eachDialect } from '../helper.js'
import { freshDatabase, startRedis } from '../services.js'

/** Tokens and sessions against ASVS 5.0: each test is named by the rows that it holds. */

const KEYS = [{ id: 'k1', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }] as const
const PASSWORD = 'correct horse battery staple'
const PASSWORD_HASH = createPasswordHasher().hash(PASSWORD)
const IDLE_SECONDS = 3_600
const ABSOLUTE_SECONDS = 10_000
const ACCESS_SECONDS = 600

interface Setup {
  redisUrl?: string
  secureCookies?: boolean
}

async function start(t: Test, databaseUrl: string, { redisUrl, secureCookies = false }: Setup = {}) {
  const app = Fastify({ ...serverOptions({ logLevel: 'silent', trustProxy: '10.0.0.0/8' }) })
  await app.register(core, {
    databaseUrl,
    jwtKeys: [...KEYS],
    secretsKeys: [...KEYS],
    secureCookies,
    ...(redisUrl === undefined ? {} : { redisUrl })
  })
  const auth = app.getDecorator<Auth>('auth')
  await app.register(identity, {
    secondFactor: 'optional',
    prefix: '/api',
    authorize: auth.authorize,
    accessTokenTtlSeconds: ACCESS_SECONDS,
    sessionIdleSeconds: IDLE_SECONDS,
    sessionTtlSeconds: ABSOLUTE_SECONDS
  })
  await app.register(async (stock) => {
    app.getDecorator<EnterModule>('enterModule')(stock, { authorize: auth.authorize })
    const schema = { tags: ['stock'] }
    stock.get('/stock', { schema, config: access('viewer') }, async () => ({}))
    stock.post('/stock', { schema, config: access('staff') }, async () => ({}))
    stock.post('/stock/close', { schema, config: access('manager') }, async () => ({}))
    stock.post('/enrol', { schema, config: access('viewer', { pending: ['enrol'] }) }, async () => ({}))
  })
  const trail: string[] = []
  app.getDecorator<Audit>('audit').keepIn({
    append: async (_db, _agent, entries) => void trail.push(...entries.map(({ action }) => action)),
    note: () => {}
  })
  await app.ready()
  t.teardown(() => app.close())
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  const call = async (
    method: InjectOptions['method'],
    url: string,
    token?: string,
    payload?: object,
    rest: InjectOptions = {}
  ) => {
    const headers = { ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...rest.headers }
    const answer = await app.inject({ ...rest, method, url, headers, ...(payload ? { payload } : {}) })
    return {
      status: answer.statusCode,
      body: answer.body === '' ? undefined : answer.json(),
      headers: answer.headers,
      cookies: answer.cookies
    }
  }
  const signIn = (username: string, password: string, token?: string) =>
    call('POST', '/api/auth/login', token, { username, password }, { remoteAddress: randomUUID() })
  /** What a sign-in hands out, without the work of a password. */
  const login = async (username: string): Promise<Held> => {
    const account = await createIdentityStore(tenant.db).byUsername(username)
    if (account === undefined) throw new Error(`there is no ${username}`)
    const proof = { account, methods: ['pwd'], authenticatedAt: Date.now() }
    const device = { address: '192.0.2.1', userAgent: 'a test' }
    const life = { idleSeconds: IDLE_SECONDS, absoluteSeconds: ABSOLUTE_SECONDS }
    const { session, refreshToken } = await tenant.transact((tx) => openSession(tx, tenant, proof, device, life))
    const { user, epoch } = account
    const { id, methods, authenticatedAt } = session
    const subject = { subject: user.id, role: user.role, tenant: 'main', epoch, session: id, methods, authenticatedAt }
    return { access: auth.sign(subject, ACCESS_SECONDS), refresh: refreshToken }
  }
  const create = async (username: string, role: Role = 'staff') => {
    const user = { username, displayName: username, role, passwordHash: await PASSWORD_HASH }
    const created = await tenant.transact((tx) => createIdentityStore(tx.db).insertUser(user))
    if (created === undefined) throw new Error(`${username} exists`)
    return created
  }
  const refresh = (refreshToken: string) => call('POST', '/api/auth/refresh', undefined, { refreshToken })
  const me = async (token: string) => (await call('GET', '/api/auth/me', token)).status
  const admin = issueToken(auth, { role: 'admin', tenant: 'main', ttlSeconds: 86_400 * 30 })
  return { app, auth, tenant, trail, call, signIn, login, create, refresh, me, admin }
}
type Service = Awaited<ReturnType<typeof start>>
interface Held {
  access: string
  refresh: string
}

async function database(t: Test, dialect: Dialect): Promise<string> {
  if (dialect === 'sqlite') return `sqlite:${t.testdir()}/sessions.sqlite`
  const { url, drop } = await freshDatabase()
  t.teardown(drop)
  return url
}

/** Stops the wall clock of this process, to be moved by hand; only what asks `Date.now()` notices. */
function clock(t: Test) {
  const real = Date.now
  let now = real()
  Date.now = () => now
  t.teardown(() => {
    Date.now = real
  })
  return {
    pass: (seconds: number) => {
      now += seconds * 1000
    }
  }
}

const sessionOf = (token: string): { sid?: string; exp: number; auth_time?: number; amr?: string[] } =>
  JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString())

await eachDialect(t, async (t, dialect) => {
  const url = await database(t, dialect)
  const service = await start(t, url)
  await lives(t, service)
  await crowd(t, service)
  await rotation(t, service)
  await proofs(t, service)
  await apiTokens(t, service)
  await cookies(t, service, url)
})

async function lives(t: Test, { call, signIn, login, create, refresh, me, admin }: Service) {
  t.test('V7.2.4 each sign-in is a new session; one made from within another ends it', async (t) => {
    await create('ann')
    const enter = async (token?: string): Promise<Held> => {
      const { body } = await signIn('ann', PASSWORD, token)
      return { access: body.accessToken, refresh: body.refreshToken }
    }
    const [first, second] = [await enter(), await enter()]
    t.not(sessionOf(first.access).sid, sessionOf(second.access).sid)
    t.equal(await me(first.access), 200)
    const third = await enter(second.access)
    t.equal(await me(second.access), 401)
    t.match(await refresh(second.refresh), { status: 401, body: { code: 'ID_SESSION_ENDED', reason: 'ended' } })
    t.equal(await me(third.access), 200)
    t.equal(await me(first.access), 200, 'a session that was not shown lives on')
    await create('mallory')
    t.equal((await signIn('mallory', PASSWORD, third.access)).status, 200)
    t.equal(await me(third.access), 200, 'another user’s sign-in ends none of mine')
  })

  t.test('V7.3.1 a session that is not refreshed for the idle time ends', async (t) => {
    const time = clock(t)
    await create('ida')
    const first = await login('ida')
    time.pass(IDLE_SECONDS - 1)
    const { status, body } = await refresh(first.refresh)
    t.equal(status, 200, 'just in time')
    t.equal(await me(body.accessToken), 200)
    time.pass(IDLE_SECONDS)
    t.equal(await me(body.accessToken), 401, 'the access token ended long before')
    t.ok(2 * IDLE_SECONDS < ABSOLUTE_SECONDS, 'its absolute time is far')
    t.match(await refresh(body.refreshToken), { status: 401, body: { reason: 'ended' } })
  })

  t.test('V7.3.2 a session ends at its absolute time, however busy; no token outlives it', async (t) => {
    const time = clock(t)
    await create('abe')
    const start = Date.now()
    let held = await login('abe')
    for (const seconds of [3_000, 3_000, 3_000, 900]) {
      time.pass(seconds)
      const { status, body } = await refresh(held.refresh)
      t.equal(status, 200)
      t.ok(sessionOf(body.accessToken).exp * 1000 <= start + ABSOLUTE_SECONDS * 1000 + 1000)
      held = { access: body.accessToken, refresh: body.refreshToken }
    }
    t.equal(await me(held.access), 200)
    time.pass(101)
    t.equal(await me(held.access), 401)
    t.match(await refresh(held.refresh), { status: 401, body: { reason: 'ended' } })
  })

  t.test(
    'V7.4.3, V7.4.5 own sessions are listed and ended one by one; a password change or an administrator ends all',
    async (t) => {
      const { id } = await create('lea')
      const [one, two, three] = [await login('lea'), await login('lea'), await login('lea')]
      const list = await call('GET', '/api/auth/sessions', two.access)
      t.match(list, { status: 200, headers: { 'cache-control': 'no-store' } })
      t.strictSame(
        list.body.data.map((each: { id: string; current: boolean }) => [each.id, each.current]),
        [three, two, one].map(({ access }) => [sessionOf(access).sid, access === two.access])
      )
      t.match(list.body.data[0], { methods: ['pwd'], userAgent: 'a test' })
      await create('eve')
      const eve = await login('eve')
      const foreign = await call('DELETE', `/api/auth/sessions/${sessionOf(one.access).sid}`, eve.access)
      t.match(foreign, { status: 404, body: { code: 'ID_SESSION_NOT_FOUND' } })
      t.equal((await call('DELETE', `/api/auth/sessions/${sessionOf(one.access).sid}`, two.access)).status, 204)
      t.equal(await me(one.access), 401)
      t.equal((await refresh(one.refresh)).status, 401)
      t.equal((await call('DELETE', '/api/auth/sessions', two.access)).status, 204)
      t.strictSame([await me(two.access), await me(three.access)], [200, 401], 'all but the one that asks')

      const other = await login('lea')
      const change = { currentPassword: PASSWORD, newPassword: 'a brand new passphrase' }
      t.equal((await call('POST', '/api/auth/password', two.access, change)).status, 204)
      for (const { access, refresh: token } of [two, other]) {
        t.equal(await me(access), 401)
        t.equal((await refresh(token)).status, 401, 'a password change leaves no refresh token alive')
      }
      const again = await login('lea')
      t.equal((await signIn('lea', PASSWORD)).status, 401)
      t.equal((await call('GET', `/api/users/${id}/sessions`, admin)).body.data.length, 1)
      t.equal((await call('DELETE', `/api/users/${id}/sessions`, eve.access)).status, 403)
      t.equal((await call('DELETE', `/api/users/${id}/sessions`, admin)).status, 204)
      t.strictSame(
        [await me(again.access), (await refresh(again.refresh)).status, await me(eve.access)],
        [401, 401, 200]
      )
      t.equal((await call('DELETE', `/api/users/${randomUUID()}/sessions`, admin)).status, 404)
    }
  )
}

async function crowd(t: Test, { login, create, refresh }: Service) {
  t.test('V7.1.2 a user has at most fifty sessions; the one that was silent longest makes room', async (t) => {
    const time = clock(t)
    await create('ora')
    const held: Held[] = []
    for (let n = 0; n < 50; n++) held.push(await login('ora'))
    time.pass(60)
    const { body } = await refresh(held[0]?.refresh ?? '')
    await login('ora')
    t.equal((await refresh(body.refreshToken)).status, 200, 'used a moment ago')
    t.equal((await refresh(held[49]?.refresh ?? '')).status, 200)
    const statuses = await Promise.all(
      held.slice(1, 49).map(async ({ refresh: token }) => (await refresh(token)).status)
    )
    t.equal(statuses.filter((status) => status === 401).length, 1)
  })
}

async function rotation(t: Test, { call, login, create, refresh, me, tenant, trail }: Service) {
  t.test(
    'refresh: a token is used up; sent twice at once both get one successor; later, or when that was used, the family dies',
    async (t) => {
      const time = clock(t)
      await create('rob')
      const first = await login('rob')
      const many = await Promise.all(Array.from({ length: 20 }, () => refresh(first.refresh)))
      t.strictSame(new Set(many.map(({ status }) => status)), new Set([200]))
      t.equal(new Set(many.map(({ body }) => body.refreshToken)).size, 1, 'twenty at once: one successor')
      const second: string = many[0]?.body.refreshToken
      t.not(second, first.refresh)
      time.pass(9)
      t.equal((await refresh(first.refresh)).body.refreshToken, second, 'a lost answer can be asked for again')
      const { body } = await refresh(second)
      const stolen = await refresh(first.refresh)
      t.match(stolen, { status: 401, body: { reason: 'reused' } }, 'its successor was used: somebody has a copy')
      t.equal(trail.filter((action) => action === 'session.reused').length, 1, 'which the audit trail tells')
      t.equal(await me(body.accessToken), 401, 'the access tokens of the family too, at once')
      t.match(await refresh(body.refreshToken), { status: 401, body: { reason: 'ended' } })

      const late = await login('rob')
      const next = (await refresh(late.refresh)).body
      time.pass(11)
      t.match(
        await refresh(late.refresh),
        { status: 401, body: { reason: 'reused' } },
        'after ten seconds it is no accident'
      )
      t.equal(await me(next.accessToken), 401)
      const grandfather = await login('rob')
      const child = (await refresh((await refresh(grandfather.refresh)).body.refreshToken)).body
      t.equal((await refresh(grandfather.refresh)).body.reason, 'reused')
      t.equal(await me(child.accessToken), 401)
    }
  )

  t.test(
    'V9.2.2 a refresh token opens nothing, an access token refreshes nothing; neither lies in the database',
    async (t) => {
      await create('kim')
      const { access, refresh: token } = await login('kim')
      t.match(token, /^ir_main_[A-Za-z0-9_-]{43}$/)
      t.match(await call('GET', '/api/auth/me', token), { status: 401, body: { reason: 'malformed' } })
      const bad = [access, `${token}x`, `ir_main_${'A'.repeat(43)}`, token.replace('main', 'other'), 'ir_../x_y', 'x']
      for (const each of bad) {
        const answer = await refresh(each)
        t.ok(answer.status === 401 || (answer.status === 400 && each === access), each.slice(0, 20))
      }
      t.match(await call('POST', '/api/auth/refresh', undefined, {}), { status: 401, body: { reason: 'missing' } })
      const everything: string[] = []
      for (const table of ['sessions', 'refresh_tokens', 'api_tokens', 'token_ends']) {
        const { rows } = await sql`select * from ${sql.table(table)}`.execute(tenant.db)
        everything.push(JSON.stringify(rows))
      }
      // The secret may hold an underscore itself.
      const secret = token.split('_').slice(2).join('_')
      t.equal(secret.length, 43)
      t.notOk(everything.join().includes(secret), 'the token itself is not kept')
      t.match(everything.join(), createHash('sha256').update(token).digest('base64url'))
    }
  )

  t.test('V14.3.2 answers that hold tokens or sessions are stored nowhere', async (t) => {
    await create('nan')
    const { access, refresh: token } = await login('nan')
    const answers = [
      await call('POST', '/api/auth/login', undefined, { username: 'nan', password: PASSWORD }),
      await refresh(token),
      await call('POST', '/api/auth/reauthenticate', access, { password: PASSWORD }),
      await call('POST', '/api/auth/login', undefined, { username: 'nan', password: 'wrong' })
    ]
    for (const { headers } of answers) t.equal(headers['cache-control'], 'no-store')
  })
}

async function proofs(t: Test, { call, login, create, me, admin, auth, tenant }: Service) {
  t.test('V7.5.1 the dangerous few ask for a fresh sign-in; proving it again opens a new session', async (t) => {
    const time = clock(t)
    const { id } = await create('boss', 'admin')
    const held = await login('boss')
    const dangerous: [InjectOptions['method'], string, object][] = [
      ['PATCH', `/api/users/${id}`, { role: 'admin' }],
      ['POST', '/api/users', { username: 'x', role: 'admin', password: PASSWORD }],
      ['POST', '/api/auth/password', { currentPassword: PASSWORD, newPassword: 'a brand new passphrase' }],
      ['POST', '/api/tokens', { name: 'x', scopes: ['*:read'] }]
    ]
    time.pass(599)
    t.equal((await call('PATCH', `/api/users/${id}`, held.access, { displayName: 'Boss' })).status, 200)
    time.pass(1)
    // The access token ends at this moment too, so one of the same session is taken.
    const { body: renewed } = await call('POST', '/api/auth/refresh', undefined, { refreshToken: held.refresh })
    t.equal(sessionOf(renewed.accessToken).auth_time, sessionOf(held.access).auth_time, 'a refresh proves nothing')
    for (const [method, url, body] of dangerous) {
      const answer = await call(method, url, renewed.accessToken, body)
      t.match(answer, { status: 403, body: { code: 'AUTH_FRESH_REQUIRED', maxAgeSeconds: 600 } }, url)
    }
    t.equal((await call('GET', '/api/users', renewed.accessToken)).status, 200, 'the rest goes on')
    const wrong = await call('POST', '/api/auth/reauthenticate', renewed.accessToken, { password: 'wrong' })
    t.match(wrong, { status: 401, body: { code: 'ID_LOGIN_FAILED' } })
    const proof = await call('POST', '/api/auth/reauthenticate', renewed.accessToken, { password: PASSWORD })
    t.equal(proof.status, 200)
    t.equal(await me(renewed.accessToken), 401, 'the session before has ended')
    const { accessToken } = proof.body
    t.equal((await call('PATCH', `/api/users/${id}`, accessToken, { displayName: 'B.' })).status, 200)
    time.pass(86_400)
    t.equal(
      (await call('PATCH', `/api/users/${id}`, admin, { displayName: 'C.' })).status,
      200,
      'the console is trusted'
    )
    const console = await call('POST', '/api/auth/reauthenticate', admin, { password: PASSWORD })
    t.match(console, { status: 409, body: { code: 'ID_NO_SESSION' } })
  })

  t.test('V7.5.1 guesses at the password of a stolen session are bounded', async (t) => {
    await create('gus')
    const { access } = await login('gus')
    const statuses: number[] = []
    for (let n = 0; n < 7; n++) {
      statuses.push((await call('POST', '/api/auth/reauthenticate', access, { password: `guess ${n}` })).status)
    }
    t.strictSame(statuses, [401, 401, 401, 401, 401, 429, 429])
  })

  t.test('V9.2.2, V6.3.4 a token whose second factor is pending opens only its own step', async (t) => {
    const { id } = await create('pia', 'admin')
    const pending = (use: TokenUse) =>
      auth.sign({ subject: id, role: 'admin', tenant: 'main', epoch: 0, methods: ['pwd'], use }, 60)
    const routes: [InjectOptions['method'], string][] = [
      ['GET', '/stock'],
      ['POST', '/stock'],
      ['GET', '/api/auth/me'],
      ['GET', '/api/users'],
      ['GET', '/api/tokens'],
      ['GET', '/api/auth/sessions'],
      ['DELETE', '/api/auth/sessions'],
      ['POST', '/api/auth/reauthenticate']
    ]
    for (const use of ['enrol', 'second-factor'] as const) {
      for (const [method, url] of routes) {
        const answer = await call(method, url, pending(use))
        t.match(answer, { status: 403, body: { code: 'AUTH_SECOND_FACTOR_REQUIRED', use } }, `${method} ${url}`)
      }
    }
    t.equal((await call('POST', '/enrol', pending('enrol'))).status, 200)
    t.equal((await call('POST', '/enrol', pending('second-factor'))).status, 403, 'a step is not the other')
    const step = pending('enrol')
    t.equal((await call('POST', '/api/auth/logout', step)).status, 204)
    t.equal((await call('POST', '/enrol', step)).status, 401, 'a step that was given up')
    const held = await login('pia')
    const sid = sessionOf(held.access).sid ?? ''
    const replacing = auth.sign(
      { subject: id, role: 'admin', tenant: 'main', epoch: 0, session: sid, use: 'enrol' },
      60
    )
    t.equal((await call('POST', '/api/auth/logout', replacing)).status, 204)
    t.equal(await me(held.access), 200, 'leaves the session that it was to replace')
    await setPassword(tenant, 'pia', 'a brand new passphrase')
    t.equal((await call('POST', '/enrol', pending('enrol'))).status, 401, 'ends with the password')
    const forged = auth.sign({ subject: id, role: 'admin', tenant: 'main', epoch: 9e15, use: 'enrol' }, 60)
    const [head, payload, signature] = forged.split('.')
    const claims = JSON.parse(Buffer.from(payload ?? '', 'base64url').toString())
    delete claims.use
    const cut = Buffer.from(JSON.stringify(claims)).toString('base64url')
    t.equal((await call('GET', '/stock', `${head}.${cut}.${signature}`)).status, 401)
  })
}

async function apiTokens(t: Test, { call, login, create, me, admin, tenant }: Service) {
  const make = async (token: string, body: object) => call('POST', '/api/tokens', token, { name: 'script', ...body })

  t.test('API tokens: shown once, hashed, listed, ended at once', async (t) => {
    await create('tom')
    const { access } = await login('tom')
    const made = await make(access, { scopes: ['stock:read', 'stock:read', 'identity:read'] })
    t.match(made, { status: 201, headers: { 'cache-control': 'no-store' } })
    const { token, id } = made.body
    t.match(token, /^ie_main_[A-Za-z0-9_-]{43}$/)
    // The secret may hold a `_` itself.
    const secret = token.slice('ie_main_'.length)
    t.strictSame(made.body.scopes, ['stock:read', 'identity:read'])
    const days = (Date.parse(made.body.expiresAt) - Date.parse(made.body.createdAt)) / 86_400_000
    t.equal(days, 90)
    const { rows } = await sql`select * from ${sql.table('api_tokens')}`.execute(tenant.db)
    t.notMatch(JSON.stringify(rows), secret)
    const list = await call('GET', '/api/tokens', access)
    t.notMatch(JSON.stringify(list.body), secret)
    t.match(list.body.data, [{ id, name: 'script', role: 'staff', lastUsedAt: null, hint: `ie_…${token.slice(-4)}` }])
    t.match((await call('GET', '/api/auth/me', token)).body, { role: 'staff', user: { username: 'tom' } })
    await create('una')
    const una = await login('una')
    t.equal((await call('DELETE', `/api/tokens/${id}`, una.access)).status, 404, 'not another’s')
    t.equal((await call('DELETE', `/api/tokens/${id}`, access)).status, 204)
    t.match(await call('GET', '/api/auth/me', token), { status: 401, body: { reason: 'revoked' } })
    t.strictSame((await call('GET', '/api/tokens', access)).body.data, [])
    const other = (await make(access, { scopes: ['stock:read'] })).body
    t.equal((await call('DELETE', `/api/tokens/${other.id}`, admin)).status, 204, 'an administrator ends any')
    t.match(
      await call('GET', '/stock', other.token),
      { status: 401, body: { reason: 'unknown' } },
      'before its first use too'
    )
    for (const bad of [
      `${token}x`,
      token.replace('main', 'nowhere'),
      'ie_main_x',
      'ie_',
      `ie_main_${'A'.repeat(43)}`
    ]) {
      t.match(await call('GET', '/stock', bad), { status: 401, body: { reason: 'unknown' } }, bad.slice(0, 12))
    }
    t.match(await make(admin, { scopes: ['*:read'] }), { status: 409, body: { code: 'ID_NO_ACCOUNT' } })
  })

  t.test('V8.2.1 an API token does what its scopes and its role say, and never more than its owner may', async (t) => {
    const { id } = await create('max', 'manager')
    const { access } = await login('max')
    const cases: [object, Record<string, number>][] = [
      [{ scopes: ['stock:read'] }, { 'GET /stock': 200, 'POST /stock': 403, 'GET /api/users': 403 }],
      [{ scopes: ['stock:write'] }, { 'GET /stock': 403, 'POST /stock': 200, 'POST /stock/close': 200 }],
      [{ scopes: ['*:read'] }, { 'GET /stock': 200, 'GET /api/auth/me': 200, 'POST /stock': 403 }],
      [
        { scopes: ['*:read', '*:write'], role: 'staff' },
        { 'POST /stock': 200, 'POST /stock/close': 403 }
      ],
      [{ scopes: ['identity:write'] }, { 'POST /api/auth/logout': 204 }],
      [{ scopes: ['*:read', '*:write'] }, { 'POST /api/tokens': 403, 'POST /api/auth/password': 403 }]
    ]
    for (const [body, expected] of cases) {
      const { token } = (await make(access, body)).body
      for (const [route, status] of Object.entries(expected)) {
        const [method, url = ''] = route.split(' ')
        const answer = await call(method === 'GET' ? 'GET' : 'POST', url, token)
        t.equal(answer.status, status, `${JSON.stringify(body)} ${route}`)
      }
    }
    const { token } = (await make(access, { scopes: ['stock:read'] })).body
    t.match((await call('POST', '/stock', token)).body, { code: 'AUTH_SCOPE_MISSING', required: 'stock:write' })
    t.match(await make(access, { scopes: ['*:read'], role: 'admin' }), {
      status: 422,
      body: { code: 'ID_TOKEN_ROLE_TOO_HIGH' }
    })
    const unknown = await make(access, { scopes: ['stok:read'] })
    t.match(unknown, {
      status: 422,
      body: { code: 'ID_SCOPE_UNKNOWN', areas: ['*', 'identity', 'stock'] }
    })
    for (const scopes of [[], ['stock'], ['stock:admin'], ['stock:read ']]) {
      t.equal((await make(access, { scopes })).status, 400, JSON.stringify(scopes))
    }
    const full = (await make(access, { scopes: ['*:read', '*:write'] })).body.token
    t.equal((await call('POST', '/stock/close', full)).status, 200)
    await call('PATCH', `/api/users/${id}`, admin, { role: 'viewer' })
    t.equal((await call('POST', '/stock/close', full)).status, 401, 'the demotion ended it')
    t.strictSame((await call('GET', `/api/users/${id}/tokens`, admin)).body.data, [])
  })

  t.test('V7.4.2 API tokens end with their owner’s account, and at their own day', async (t) => {
    const time = clock(t)
    const { id } = await create('zed')
    const { access } = await login('zed')
    const short = (await make(access, { scopes: ['*:read'], expiresInDays: 1 })).body.token
    const long = (await make(access, { scopes: ['*:read'], expiresInDays: 366 })).body.token
    t.equal((await make(access, { scopes: ['*:read'], expiresInDays: 367 })).status, 400)
    t.strictSame([await me(short), await me(long)], [200, 200])
    time.pass(86_401)
    t.strictSame([await me(short), await me(long)], [401, 200])
    await call('PATCH', `/api/users/${id}`, admin, { disabled: true })
    t.equal(await me(long), 401)
    await call('PATCH', `/api/users/${id}`, admin, { disabled: false })
    t.equal(await me(long), 401, 'enabling brings none back')
  })

  t.test('the last use of an API token is known to the minute', async (t) => {
    const time = clock(t)
    await create('use')
    const { access } = await login('use')
    const { token } = (await make(access, { scopes: ['*:read'] })).body
    /** Written behind the request, so it is waited for. */
    const lastUse = async (after: number) => {
      for (let n = 0; ; n++) {
        const at = Date.parse((await call('GET', '/api/tokens', access)).body.data[0].lastUsedAt ?? '1970-01-01')
        if (at > after || n === 200) return at
        await sleep(5)
      }
    }
    await me(token)
    const first = await lastUse(0)
    t.ok(Math.abs(first - Date.now()) < 10_000)
    time.pass(30)
    await me(token)
    await tenant.transact(async () => {})
    t.equal(await lastUse(first - 1), first, 'not written again within the minute')
    time.pass(31)
    await me(token)
    t.ok((await lastUse(first)) >= first + 60_000)
  })
}

async function cookies(t: Test, { call, create }: Service, url: string) {
  const header = (set: { name: string; value: string }[]) => set.map(({ name, value }) => `${name}=${value}`).join('; ')
  const same = { 'sec-fetch-site': 'same-origin' }
  const as = (username: string) => ({ username, password: PASSWORD, cookie: true })

  t.test(
    'V3.3 cookies: HttpOnly, SameSite=Strict, the refresh token for its one path, none in the answer',
    async (t) => {
      await create('coo')
      const entered = await call('POST', '/api/auth/login', undefined, as('coo'), { headers: same })
      t.equal(entered.status, 200)
      t.match(entered.body, { tokenType: 'Cookie', user: { username: 'coo' } })
      t.notMatch(JSON.stringify(entered.body), /ey|ir_/)
      const [accessCookie, refreshCookie] = entered.cookies
      t.match(accessCookie, {
        name: 'inventory-access',
        path: '/',
        httpOnly: true,
        sameSite: 'Strict',
        maxAge: ACCESS_SECONDS
      })
      t.match(refreshCookie, {
        name: 'inventory-refresh',
        path: '/api/auth/refresh',
        httpOnly: true,
        sameSite: 'Strict'
      })
      const cookie = header(entered.cookies)
      t.equal((await call('GET', '/api/auth/me', undefined, undefined, { headers: { cookie } })).status, 200)
      const renewed = await call('POST', '/api/auth/refresh', undefined, {}, { headers: { cookie, ...same } })
      t.match(renewed, { status: 200, body: { tokenType: 'Cookie' } })
      const next = header(renewed.cookies)
      const out = await call('POST', '/api/auth/logout', undefined, undefined, { headers: { cookie: next, ...same } })
      t.equal(out.status, 204)
      t.strictSame(
        out.cookies.map(({ value, maxAge }) => [value, maxAge]),
        [
          ['', 0],
          ['', 0]
        ]
      )
      for (const each of [cookie, next]) {
        t.equal((await call('GET', '/stock', undefined, undefined, { headers: { cookie: each } })).status, 401)
        const dead = await call('POST', '/api/auth/refresh', undefined, {}, { headers: { cookie: each, ...same } })
        t.equal(dead.status, 401)
        t.equal(dead.cookies.length, 2, 'and the dead cookies are cleared')
      }
    }
  )

  t.test('V3.3.1 over HTTPS the cookies are Secure, under names that no other host can set', async (t) => {
    await create('cob')
    const enter = as('cob')
    const overTls = { remoteAddress: '10.0.0.1', headers: { ...same, 'x-forwarded-proto': 'https' } }
    const behind = await call('POST', '/api/auth/login', undefined, enter, overTls)
    t.match(behind.cookies, [
      { name: '__Host-inventory-access', path: '/', secure: true },
      { name: '__Secure-inventory-refresh', secure: true }
    ])
    t.equal(behind.cookies[0]?.domain, undefined)
    const tossed = { cookie: `inventory-access=${behind.cookies[0]?.value}` }
    const planted = await call('GET', '/stock', undefined, undefined, {
      ...overTls,
      headers: { ...overTls.headers, ...tossed }
    })
    t.equal(planted.status, 401, 'the name without its prefix counts for nothing')
    const untrusted = await call('POST', '/api/auth/login', undefined, enter, {
      ...overTls,
      remoteAddress: '192.0.2.1'
    })
    t.match(untrusted.cookies, [{ name: 'inventory-access' }, { name: 'inventory-refresh' }])
    const production = await start(t, url, { secureCookies: true })
    const always = await production.call('POST', '/api/auth/login', undefined, enter, { headers: same })
    t.match(always.cookies, [{ name: '__Host-inventory-access', secure: true }, { secure: true }])
  })

  t.test('V3.5.1 a page of another site can do nothing with a cookie', async (t) => {
    await create('coc')
    const enter = as('coc')
    const { cookies } = await call('POST', '/api/auth/login', undefined, enter, { headers: same })
    const cookie = header(cookies)
    const write = (headers: Record<string, string>) =>
      call('POST', '/stock', undefined, undefined, { headers: { cookie, host: 'shop.example', ...headers } })
    const refused: Record<string, string>[] = [
      {},
      { 'sec-fetch-site': 'cross-site' },
      { 'sec-fetch-site': 'same-site' },
      { 'sec-fetch-site': 'none' },
      { 'sec-fetch-site': 'cross-site', origin: 'http://shop.example' },
      { origin: 'http://evil.example' },
      { origin: 'http://shop.example.evil.example' },
      { origin: 'null' },
      { origin: 'http://evil.example', 'x-forwarded-host': 'evil.example' }
    ]
    for (const headers of refused) {
      t.match(await write(headers), { status: 403, body: { code: 'AUTH_CROSS_SITE' } }, JSON.stringify(headers))
    }
    t.equal((await write(same)).status, 200)
    t.equal((await write({ origin: 'http://shop.example' })).status, 200)
    t.equal((await call('GET', '/stock', undefined, undefined, { headers: { cookie } })).status, 200)
    const upgrade = { cookie, upgrade: 'websocket', connection: 'upgrade', origin: 'http://evil.example' }
    t.equal((await call('GET', '/stock', undefined, undefined, { headers: upgrade })).status, 403, 'nor open a socket')
    t.equal((await call('POST', '/api/auth/refresh', undefined, {}, { headers: { cookie } })).status, 403)
    t.equal((await call('POST', '/api/auth/login', undefined, enter)).status, 403, 'nor sign its visitor in')
    const bearer = cookies[0]?.value ?? ''
    t.equal((await call('POST', '/stock', bearer)).status, 200, 'a header is no cookie: nobody adds it unasked')
  })
}

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

t.test('a crowd at once: one read of the database serves all who came before it', async (t) => {
  const { url, drop } = await freshDatabase()
  t.teardown(drop)
  const { me, create, login, app, call } = await start(t, url)
  await create('joy')
  const { access } = await login('joy')
  await me(access)
  const queries = async () => {
    const text = await app.getDecorator<Registry>('registry').metrics()
    return Number(/db_query_duration_seconds_count\{[^}]*operation="select"[^}]*\} (\d+)/.exec(text)?.[1])
  }
  const before = await queries()
  const statuses = await Promise.all(Array.from({ length: 200 }, () => call('GET', '/stock', access)))
  t.strictSame(new Set(statuses.map(({ status }) => status)), new Set([200]))
  const asked = (await queries()) - before
  t.ok(asked >= 1 && asked <= 20, `${asked} reads for 200 requests`)
})

t.test(
  'V6.3.1 guesses are bounded over all nodes; without Redis on each; the good user comes in from elsewhere',
  async (t) => {
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

t.test('V7.4.1 when the database cannot tell, nobody gets in', async (t) => {
  const { url, drop } = await freshDatabase()
  const { me, create, login, admin } = await start(t, url)
  await create('ned')
  const { access } = await login('ned')
  t.equal(await me(access), 200)
  await drop()
  for (const token of [access, admin]) t.equal(await me(token), 503)
})
