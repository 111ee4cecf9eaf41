import { createHash, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import type { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import { eachDialect } from '../helper.js'
import { freshDatabase } from '../services.js'
import {
  ABSOLUTE_SECONDS,
  clock,
  database,
  type Held,
  IDLE_SECONDS,
  PASSWORD,
  type Service,
  sessionOf,
  start
} from './sessions-harness.js'

/** Sessions against ASVS 5.0: each test is named by the rows that it holds. */

await eachDialect(t, async (t, dialect) => {
  const service = await start(t, await database(t, dialect))
  await lives(t, service)
  await crowd(t, service)
  await rotation(t, service)
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

t.test('V7.4.1 when the database cannot tell, nobody gets in', async (t) => {
  const { url, drop } = await freshDatabase()
  const { me, create, login, admin } = await start(t, url)
  await create('ned')
  const { access } = await login('ned')
  t.equal(await me(access), 200)
  await drop()
  for (const token of [access, admin]) t.equal(await me(token), 503)
})

t.test('V7.4.1 a request whose body is held back does not outlive what let it in', async (t) => {
  const { app, create, login, call } = await start(t, await database(t, 'sqlite'))
  await create('dora', 'manager')
  const { access } = await login('dora')
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  const close = async (between: () => Promise<unknown>) => {
    const headers = { authorization: `Bearer ${access}`, 'content-type': 'application/json' }
    const sent = request({ port, host: '127.0.0.1', path: '/stock/close', method: 'POST', headers })
    sent.write('{')
    await sleep(1_100)
    await between()
    sent.end('}')
    const [answer] = await once(sent, 'response')
    answer.resume()
    return answer.statusCode
  }
  t.equal(await close(async () => {}), 200, 'slow is no fault')
  t.equal(await close(() => call('POST', '/api/auth/logout', access)), 401)
})
