import { createHash, createHmac, randomUUID } from 'node:crypto'
import fastifyJwt from '@fastify/jwt'
import { hash } from '@node-rs/argon2'
import Fastify, { type FastifyInstance, type InjectOptions } from 'fastify'
import type { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import { takeCensus } from '../modules/identity/census.js'
import identity, { createUser, disableUser, issueToken, listUsers, setPassword } from '../modules/identity/index.js'
import { isRevoked } from '../modules/identity/revocations.js'
import { createLoginThrottle } from '../modules/identity/throttle.js'
import { createTokens } from '../plugins/auth.js'
import type { Auth } from '../plugins/contracts.js'
import { access, type Tenant } from '../plugins/contracts.js'
import core, { type Tenants } from '../plugins/core.js'
import { networkOf } from '../plugins/http/network.js'
import { serverOptions } from '../plugins/http/server-options.js'
import type { Role } from '../schemas/common.js'
import { freshDatabase } from './services.js'

const SECRET = 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ'
const OTHER_SECRET = 'aN5!uE0oRi7-Wt2zKx9lVb4hYc8qMd6f'
const KEYS = [{ id: 'k1', secret: SECRET }] as const
const ISSUER = 'inventory-enterprise'
const PASSWORD = 'correct horse battery staple'

const databases = {
  sqlite: async () => ({ url: 'sqlite::memory:', drop: async () => {} }),
  postgres: freshDatabase
}

type StartOptions = Partial<Parameters<typeof core>[1]> & { accessTokenTtlSeconds?: number }

async function start(databaseUrl: string, { accessTokenTtlSeconds = 600, ...options }: StartOptions = {}) {
  const app = Fastify(serverOptions({ logLevel: 'silent' }))
  await app.register(core, { databaseUrl, jwtKeys: [...KEYS], secretsKeys: [...KEYS], ...options })
  const auth = app.getDecorator<Auth>('auth')
  await app.register(identity, {
    prefix: '/api',
    authorize: auth.authorize,
    accessTokenTtlSeconds,
    secondFactor: 'optional'
  })
  await app.ready()
  const tenants = app.getDecorator<Tenants>('tenants')
  const call = async (
    method: InjectOptions['method'],
    url: string,
    token?: string,
    body?: object,
    rest: InjectOptions = {}
  ) => {
    const headers = { ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...rest.headers }
    const response = await app.inject({
      ...rest,
      method,
      url: `/api${url}`,
      headers,
      ...(body ? { payload: body } : {})
    })
    return {
      status: response.statusCode,
      body: response.body === '' ? undefined : response.json(),
      headers: response.headers,
      text: response.body
    }
  }
  const login = (username: string, password: string, remoteAddress = '192.0.2.1') =>
    call('POST', '/auth/login', undefined, { username, password }, { remoteAddress })
  const token = (role: Role) => issueToken(auth, { role, tenant: 'main', ttlSeconds: 60 })
  /** The value of one line of the scrape, such as `auth_login_attempts_total{outcome="success"}`. */
  const metric = async (line: string) => {
    const text = await app.getDecorator<Registry>('registry').metrics()
    return Number(
      text
        .split('\n')
        .find((each) => each.startsWith(`${line} `))
        ?.split(' ')
        .at(-1)
    )
  }
  return { app, auth, tenants, call, login, token, metric, tenant: () => tenants.get('main') }
}

for (const [dialect, provide] of Object.entries(databases)) {
  t.test(dialect, async (t) => {
    const database = await provide()
    t.teardown(database.drop)
    const service = await start(database.url)
    t.teardown(() => service.app.close())
    const { call, login, token, metric } = service
    const admin = token('admin')

    t.test('no user exists at first, and the console can make one', async (t) => {
      const { body } = await call('GET', '/users', admin)
      t.strictSame(body, { data: [], page: { limit: 50, nextCursor: null, total: 0 } })
      t.equal((await login('admin', 'admin')).status, 401)
      const user = await createUser(await service.tenant(), { username: 'root', role: 'admin', password: PASSWORD })
      t.strictSame(await listUsers(await service.tenant()), [user])
      t.equal((await login('ROOT', PASSWORD)).status, 200)
      await t.rejects(createUser(await service.tenant(), { username: 'Root', role: 'viewer', password: PASSWORD }), {
        code: 'ID_USERNAME_TAKEN'
      })
    })

    t.test('sign-in: right, wrong, unknown, disabled', async (t) => {
      const made = await call('POST', '/users', admin, {
        username: 'alice',
        displayName: 'Alice B.',
        role: 'staff',
        password: PASSWORD
      })
      t.equal(made.status, 201)
      t.equal(made.headers.location, `/api/users/${made.body.id}`)
      t.match(made.body, { username: 'alice', displayName: 'Alice B.', role: 'staff', disabled: false })
      t.match(made.body.id, /^[0-9a-f]{8}-[0-9a-f]{4}-7/)
      const good = await login('Alice', PASSWORD)
      t.match(good, {
        status: 200,
        headers: { 'cache-control': 'no-store' },
        body: { tokenType: 'Bearer', expiresInSeconds: 600, user: made.body }
      })
      const me = await call('GET', '/auth/me', good.body.accessToken)
      t.strictSame(me.body, { subject: made.body.id, role: 'staff', tenant: 'main', user: made.body })
      t.strictSame((await call('GET', '/auth/me', admin)).body, {
        subject: 'cli',
        role: 'admin',
        tenant: 'main',
        user: null
      })

      await createUser(await service.tenant(), { username: 'gone', role: 'staff', password: PASSWORD })
      await disableUser(await service.tenant(), 'GONE')
      const hashing = () => metric('auth_password_hash_duration_seconds_sum')
      const cases = {
        wrong: { username: 'alice', password: 'not the password' },
        unknown: { username: 'nobody', password: PASSWORD },
        disabled: { username: 'gone', password: PASSWORD },
        'another tenant': { username: 'alice', password: PASSWORD, tenant: 'elsewhere' }
      }
      const answers = new Set<string>()
      for (const [name, body] of Object.entries(cases)) {
        const before = await hashing()
        const { status, body: problem } = await call('POST', '/auth/login', undefined, body, {
          remoteAddress: '192.0.2.7'
        })
        t.equal(status, 401, name)
        // Two passes over 19 MiB take no machine less than this.
        t.ok((await hashing()) - before > 0.004, `${name}: a hash is computed, so it takes as long`)
        answers.add(JSON.stringify({ ...problem, requestId: '' }))
      }
      t.equal(answers.size, 1, 'the four refusals cannot be told apart')
      t.match([...answers][0], 'ID_LOGIN_FAILED')
      t.equal(await metric('auth_login_attempts_total{outcome="success"}'), 2)
      t.equal(await metric('auth_tokens_issued_total'), 2)
    })

    t.test('passwords: composed or decomposed, all their bytes, hashed by argon2id, never shown', async (t) => {
      const long = `${'x9-'.repeat(24)}end A`
      await call('POST', '/users', admin, { username: 'zoé', role: 'viewer', password: 'cafe\u0301 au lait 42' })
      t.equal((await login('ZOÉ', 'caf\u00e9 au lait 42')).status, 200)
      await call('POST', '/users', admin, { username: 'long', role: 'viewer', password: long })
      t.equal((await login('long', `${long.slice(0, -1)}B`)).status, 401, 'the 77th byte counts')
      t.equal((await login('long', long)).status, 200)
      const { text } = await call('GET', '/users?limit=500', admin)
      t.notMatch(text, /argon2|hash|"password|cafe/i)
      const { db } = await service.tenant()
      const rows = await db
        .withTables<{ users: { password_hash: string } }>()
        .selectFrom('users')
        .select('password_hash')
        .execute()
      t.ok(rows.length >= 5)
      for (const { password_hash } of rows) t.match(password_hash, /^\$argon2id\$v=19\$m=19456,t=2,p=1\$/)
      for (const [password, reason] of [
        ['short', 'too-short'],
        ['Password12345678', 'common'],
        ['aaaaaaaaaaaaaaaa', 'common'],
        ['é'.repeat(513), 'too-long']
      ]) {
        const refused = await call('POST', '/users', admin, { username: 'weak', role: 'viewer', password })
        t.match(refused, { status: 422, body: { code: 'ID_PASSWORD_REFUSED', reason } }, reason)
      }
    })

    t.test('a hash of a lower cost is replaced at the next sign-in, and no token ends', async (t) => {
      const tenant = await service.tenant()
      const { id } = await createUser(tenant, { username: 'old-hash', role: 'viewer', password: PASSWORD })
      const before = (await login('old-hash', PASSWORD)).body.accessToken
      const weak = await hash(PASSWORD, { memoryCost: 4_096, timeCost: 1, parallelism: 1 })
      type Users = { users: { id: string; password_hash: string } }
      await tenant.transact((tx) =>
        tx.db.withTables<Users>().updateTable('users').set({ password_hash: weak }).where('id', '=', id).execute()
      )
      t.equal((await login('old-hash', PASSWORD)).status, 200)
      const row = await tenant.db
        .withTables<Users>()
        .selectFrom('users')
        .selectAll()
        .where('id', '=', id)
        .executeTakeFirst()
      t.match(row?.password_hash, /m=19456,t=2,p=1/)
      t.equal((await login('old-hash', PASSWORD)).status, 200)
      t.equal((await call('GET', '/auth/me', before)).status, 200)
    })

    t.test('input is refused by name', async (t) => {
      const good = { username: 'mallory', role: 'viewer', password: PASSWORD }
      const bad: [string, object][] = [
        ['/users', { ...good, passwordHash: 'x' }],
        ['/users', { ...good, tokens_valid_from: 0 }],
        ['/users', { ...good, role: 'root' }],
        ['/users', { ...good, username: 'two words' }],
        ['/users', { ...good, username: 'new\nline' }],
        ['/auth/login', { username: 'alice', password: PASSWORD, role: 'admin' }],
        ['/auth/login', { username: ['alice'], password: PASSWORD }],
        ['/auth/login', { username: 'alice' }]
      ]
      for (const [url, body] of bad) {
        const { status, body: problem } = await call('POST', url, admin, body)
        t.equal(status, 400, JSON.stringify(body))
        t.equal(problem.code, 'REQUEST_INVALID')
        t.match(problem.errors?.[0]?.path, /^body/)
      }
      t.equal((await call('GET', '/users?limit=501', admin)).status, 400)
      t.equal((await call('GET', '/users/not-an-id', admin)).status, 400)
      t.match(await call('GET', `/users/${randomUUID()}`, admin), { status: 404, body: { code: 'ID_USER_NOT_FOUND' } })
      t.match(await call('POST', '/users', admin, { ...good, username: 'ALICE' }), {
        status: 409,
        body: { code: 'ID_USERNAME_TAKEN' }
      })
      const french = await call(
        'POST',
        '/auth/login',
        undefined,
        { username: 'x', password: 'y' },
        { headers: { 'accept-language': 'fr' } }
      )
      t.match(french.body.detail, /mot de passe est incorrect/)
    })

    t.test('the list pages in order of creation', async (t) => {
      const whole = await call('GET', '/users?limit=500', admin)
      const names: string[] = []
      let cursor: string | null = null
      do {
        const page: Awaited<ReturnType<typeof call>> = await call(
          'GET',
          `/users?limit=2${cursor === null ? '' : `&cursor=${cursor}`}`,
          admin
        )
        t.ok(page.body.data.length <= 2)
        names.push(...page.body.data.map(({ username }: { username: string }) => username))
        cursor = page.body.page.nextCursor
      } while (cursor !== null)
      t.strictSame(
        names,
        whole.body.data.map(({ username }: { username: string }) => username)
      )
      t.equal(names.length, whole.body.page.total)
      const again = await call('GET', '/users?limit=500', admin, undefined, {
        headers: { 'if-none-match': String(whole.headers.etag) }
      })
      t.equal(again.status, 304)
    })

    await rolesAndEnds(t, service)
    await writes(t, service)

    t.test('another process notices at its next request', async (t) => {
      await noticesElsewhere(t, dialect === 'sqlite' ? `sqlite:${t.testdir()}/two.sqlite` : database.url)
    })
  })
}

type Service = Awaited<ReturnType<typeof start>>

async function rolesAndEnds(t: Test, { call, login, token, tenant }: Service) {
  const admin = token('admin')
  const create = async (username: string, role: Role = 'staff') => {
    const { body } = await call('POST', '/users', admin, { username, role, password: PASSWORD })
    return { id: String(body.id), token: String((await login(username, PASSWORD, randomUUID())).body.accessToken) }
  }

  t.test('role by route', async (t) => {
    const id = randomUUID()
    const routes: [InjectOptions['method'], string, Role][] = [
      ['GET', '/auth/me', 'viewer'],
      ['GET', '/users', 'admin'],
      ['POST', '/users', 'admin'],
      ['GET', `/users/${id}`, 'admin'],
      ['PATCH', `/users/${id}`, 'admin'],
      ['DELETE', `/users/${id}`, 'admin']
    ]
    const order: Role[] = ['viewer', 'staff', 'manager', 'admin']
    for (const [method, url, least] of routes) {
      t.equal((await call(method, url)).status, 401, `${method} ${url} without a token`)
      for (const role of order) {
        const { status } = await call(
          method,
          url,
          token(role),
          method === 'POST' || method === 'PATCH' ? {} : undefined
        )
        if (order.indexOf(role) < order.indexOf(least)) t.equal(status, 403, `${role}: ${method} ${url}`)
        else t.not(status, 403, `${role}: ${method} ${url}`)
      }
    }
  })

  const ends: Record<string, (id: string, own: string) => Promise<unknown>> = {
    disable: (id) => call('PATCH', `/users/${id}`, admin, { disabled: true }),
    delete: (id) => call('DELETE', `/users/${id}`, admin),
    'another role': (id) => call('PATCH', `/users/${id}`, admin, { role: 'viewer' }),
    'another password': (id) => call('PATCH', `/users/${id}`, admin, { password: 'a brand new passphrase' }),
    'own password change': (_id, own) =>
      call('POST', '/auth/password', own, { currentPassword: PASSWORD, newPassword: 'a brand new passphrase' })
  }
  for (const [name, end] of Object.entries(ends)) {
    t.test(`${name} ends every token at once, and leaves the next one alone`, async (t) => {
      const username = name.replaceAll(' ', '-')
      const { id, token: first } = await create(username)
      const second = (await login(username, PASSWORD, randomUUID())).body.accessToken
      for (const each of [first, second]) t.equal((await call('GET', '/auth/me', each)).status, 200)
      t.match(await end(id, first), { status: /20[04]/ })
      for (const each of [first, second]) {
        t.match(await call('GET', '/auth/me', each), {
          status: 401,
          body: { reason: 'revoked' },
          headers: { 'www-authenticate': 'Bearer' }
        })
      }
      if (name === 'disable' || name === 'delete') {
        t.equal((await login(username, PASSWORD, randomUUID())).status, 401)
        await call('PATCH', `/users/${id}`, admin, { disabled: false })
        t.equal((await call('GET', '/auth/me', first)).status, 401, 'enabling does not bring old tokens back')
      }
      // Nobody signs in by a deleted account, and nobody brings it back.
      if (name === 'delete') {
        t.equal((await call('PATCH', `/users/${id}`, admin, { disabled: false })).status, 404)
        return
      }
      const password = name.includes('password') ? 'a brand new passphrase' : PASSWORD
      const fresh = await login(username, password, randomUUID())
      t.equal((await call('GET', '/auth/me', fresh.body.accessToken)).status, 200, 'in the same second')
    })
  }

  t.test('signing out ends one token; a change of name ends none', async (t) => {
    const { id, token: own } = await create('carol')
    const other = (await login('carol', PASSWORD, randomUUID())).body.accessToken
    t.equal((await call('PATCH', `/users/${id}`, admin, { displayName: 'Carol' })).status, 200)
    t.equal((await call('GET', '/auth/me', own)).body.user.displayName, 'Carol', 'no stale answer from the cache')
    const out = await call('POST', '/auth/logout', own)
    t.match(out, { status: 204, body: undefined })
    t.match(await call('GET', '/auth/me', own), { status: 401, body: { reason: 'revoked' } })
    t.equal((await call('GET', '/auth/me', other)).status, 200)
    const cli = token('viewer')
    await call('POST', '/auth/logout', cli)
    t.equal((await call('GET', '/auth/me', cli)).status, 401, 'a token of the console too')
  })

  t.test('the own password: the current one is asked for, and guesses at it are bounded', async (t) => {
    const { token: own } = await create('dave')
    t.match(await call('POST', '/auth/password', token('admin'), { currentPassword: 'x', newPassword: PASSWORD }), {
      status: 409,
      body: { code: 'ID_NO_OWN_PASSWORD' }
    })
    const statuses = []
    for (let i = 0; i < 6; i++)
      statuses.push(
        (await call('POST', '/auth/password', own, { currentPassword: `guess ${i}`, newPassword: PASSWORD })).status
      )
    t.strictSame(statuses, [401, 401, 401, 401, 401, 429])
    t.equal((await call('GET', '/auth/me', own)).status, 200)
    await setPassword(await tenant(), 'dave', 'another long passphrase')
    t.equal((await login('dave', 'another long passphrase', '192.0.2.99')).status, 200)
  })

  t.test('guessing: bounded from one address, whatever is added; the user gets in from elsewhere', async (t) => {
    await create('erin')
    const guess = (extra: object = {}, headers: Record<string, string> = {}, password = 'wrong wrong') =>
      call(
        'POST',
        '/auth/login',
        undefined,
        { username: 'erin', password, ...extra },
        { remoteAddress: '198.51.100.9', headers }
      )
    const at_once = await Promise.all(Array.from({ length: 20 }, () => guess()))
    t.equal(at_once.filter(({ status }) => status === 401).length, 5, 'twenty at once are no way round')
    t.equal(at_once.filter(({ status }) => status === 429).length, 15)
    const refused = await guess({}, { 'x-forwarded-for': '203.0.113.5' })
    t.match(refused, { status: 429, body: { code: 'ID_LOGIN_THROTTLED' } })
    t.ok(Number(refused.headers['retry-after']) > 0 && Number(refused.headers['retry-after']) <= 60)
    t.equal((await guess({ captcha: 'x' })).status, 400)
    t.equal((await guess({ username: 'ERIN' })).status, 429)
    t.equal((await guess({}, {}, PASSWORD)).status, 429)
    t.equal((await login('erin', PASSWORD, '198.51.100.10')).status, 200)
  })
}

async function writes(t: Test, { call, token, tenant }: Service) {
  const admin = token('admin')
  t.test('writes: idempotent without a fast hash of the password, and guarded by If-Match', async (t) => {
    const body = { username: 'frank', role: 'viewer', password: PASSWORD }
    const headers = { 'idempotency-key': 'make-frank' }
    const first = await call('POST', '/users', admin, body, { headers })
    const second = await call('POST', '/users', admin, body, { headers })
    t.equal(first.status, 201)
    t.equal(second.status, 201)
    t.equal(second.text, first.text)
    t.equal((await call('POST', '/users', admin, { ...body, password: 'another passphrase' }, { headers })).status, 422)
    const { db } = await tenant()
    const rows = await db
      .withTables<{ idempotency_keys: { key: string; request_hash: string } }>()
      .selectFrom('idempotency_keys')
      .selectAll()
      .where('key', 'like', '%make-frank')
      .execute()
    t.equal(rows.length, 1)
    t.not(
      rows[0]?.request_hash,
      createHash('sha256')
        .update(`POST /api/users\n${JSON.stringify(body)}`)
        .digest('base64url')
    )

    const url = `/users/${first.body.id}`
    const { headers: read } = await call('GET', url, admin)
    const changed = await call(
      'PATCH',
      url,
      admin,
      { displayName: 'F.' },
      { headers: { 'if-match': String(read.etag) } }
    )
    t.match(changed, { status: 200, body: { displayName: 'F.' } })
    const stale = await call('PATCH', url, admin, { displayName: 'G.' }, { headers: { 'if-match': String(read.etag) } })
    t.match(stale, { status: 412, body: { code: 'PRECONDITION_FAILED' } })
    t.equal((await call('PATCH', url, admin, {})).status, 400, 'an empty change is a mistake')
    t.equal((await call('PATCH', `/users/${randomUUID()}`, admin, { displayName: 'x' })).status, 404)
  })
}

async function noticesElsewhere(t: Test, url: string) {
  const [a, b] = [await start(url), await start(url)]
  const name = `eve${Date.now()}`
  await createUser(await a.tenant(), { username: name, role: 'staff', password: PASSWORD })
  const mine = (await a.login(name, PASSWORD)).body.accessToken
  const signedOut = (await a.login(name, PASSWORD)).body.accessToken
  for (const each of [mine, signedOut]) t.equal((await b.call('GET', '/auth/me', each)).status, 200)
  await a.call('POST', '/auth/logout', signedOut)
  await disableUser(await a.tenant(), name)
  for (const held of [mine, signedOut]) t.equal((await b.call('GET', '/auth/me', held)).status, 401)
  const c = await start(url)
  t.equal((await c.call('GET', '/auth/me', mine)).status, 401, 'a process that starts later knows at its first request')
  for (const { app } of [a, b, c]) await app.close()
}

t.test('without the database nobody gets in', async (t) => {
  const { app, tenant, auth, token } = await start('sqlite::memory:')
  const held = await tenant()
  await app.close()
  await t.rejects(Promise.resolve(isRevoked(auth.verify(token('admin')), held)), {
    code: 'ID_REVOCATIONS_UNAVAILABLE',
    status: 503
  })
})

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
