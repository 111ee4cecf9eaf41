import { setTimeout as sleep } from 'node:timers/promises'
import type { InjectOptions } from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { setPassword } from '../../modules/identity/index.js'
import type { TokenUse } from '../../plugins/contracts.js'
import { eachDialect } from '../helper.js'
import { ACCESS_SECONDS, clock, database, PASSWORD, type Service, sessionOf, start } from './sessions-harness.js'

/** Proofs, tokens of programs and cookies against ASVS 5.0: each test is named by the rows that it holds. */

await eachDialect(t, async (t, dialect) => {
  const url = await database(t, dialect)
  const service = await start(t, url)
  await proofs(t, service)
  await apiTokens(t, service)
  await cookies(t, service, url)
})

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
