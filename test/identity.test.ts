import { createHash, randomUUID } from 'node:crypto'
import { hash } from '@node-rs/argon2'
import type { InjectOptions } from 'fastify'
import t, { type Test } from 'tap'
import { createUser, disableUser, listUsers, setPassword } from '../modules/identity/index.js'
import { isRevoked } from '../modules/identity/revocations.js'
import type { Role } from '../schemas/common.js'
import { databases, PASSWORD, type Service, start } from './identity-harness.js'

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
      t.notMatch(text, /argon2|hash|"password|au lait|x9-/i)
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
    const { headers: seen } = await call('GET', url, admin)
    const atOnce = await Promise.all(
      ['H.', 'I.', 'J.', 'K.'].map((displayName) =>
        call('PATCH', url, admin, { displayName }, { headers: { 'if-match': String(seen.etag) } })
      )
    )
    t.same(atOnce.map(({ status }) => status).sort(), [200, 412, 412, 412], 'of several at once one is in time')
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
