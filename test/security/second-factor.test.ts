import Fastify from 'fastify'
import { sql } from 'kysely'
import t from 'tap'
import { app as registerAll } from '../../app.js'
import { hashRecoveryCode } from '../../modules/identity/recovery-codes.js'
import { createSecondFactorStore } from '../../modules/identity/second-factor-store.js'
import { codeAt, stepAt } from '../../modules/identity/totp.js'
import { loadConfig } from '../../plugins/config/index.js'
import type { Auth } from '../../plugins/contracts.js'
import { serverOptions } from '../../plugins/http/server-options.js'
import { eachDialect } from '../helper.js'
import { enrolled, fromBase32, PASSWORD, SHORT_PASSWORD } from '../identity-service.js'
import { temporaryFolder } from '../service-process.js'
import { everything, fromAnywhere, open, PARALLEL } from './second-factor-harness.js'

/** Second factors by the rows of ASVS 5.0.0 that ask for them. Passkeys and accounts have files of their own. */

await eachDialect(t, async (t, dialect) => {
  const service = await open(t, dialect)
  const { call, login, token, code, clock } = service
  const tenant = await service.tenant()
  const verify = (pending: string, proof: object, n = 0) =>
    call('POST', '/auth/2fa/verify', pending, proof, fromAnywhere(n))
  const pendingOf = async (username: string, password = PASSWORD) =>
    String((await login(username, password, `203.0.113.${username.length}`)).body.pendingToken)

  await t.test('a manager enrols, and signs in by two factors from then on', async (t) => {
    const maria = await enrolled(service, 'maria', 'manager', SHORT_PASSWORD)
    t.match(maria.confirmed, { status: 200, headers: { 'cache-control': 'no-store' } })
    t.equal(maria.recoveryCodes.length, 10)
    t.equal(new Set(maria.recoveryCodes).size, 10)
    t.equal((await call('GET', '/auth/me', maria.accessToken)).status, 200, 'the enrolment ends signed in')
    t.equal((await call('GET', '/auth/me', maria.first)).status, 401, 'and the token that enrolled is used up')
    const signedIn = await login('maria', SHORT_PASSWORD)
    t.match(signedIn.body, { step: 'second-factor', methods: ['totp', 'recovery-code'] })
    t.notOk(signedIn.body.accessToken ?? signedIn.body.refreshToken, 'the password alone opens nothing')
    const pending = signedIn.body.pendingToken
    t.match(await verify(pending, { code: '000000' }), { status: 401, body: { code: 'ID_SECOND_FACTOR_FAILED' } })
    const done = await verify(pending, { code: code(maria.secret) })
    t.match(done, { status: 200, headers: { 'cache-control': 'no-store' }, body: { user: { username: 'maria' } } })
    t.equal((await call('GET', '/auth/me', done.body.accessToken)).status, 200)
    t.equal((await verify(pending, { code: code(maria.secret) })).status, 401, 'the step was taken once')
    t.match(await call('GET', '/auth/2fa', done.body.accessToken), {
      body: { required: true, enrolled: true, totp: true, passkeys: 0, recoveryCodesLeft: 10 }
    })
    t.match(await verify(done.body.accessToken, { code: code(maria.secret) }), {
      status: 409,
      body: { code: 'ID_NO_STEP_PENDING' }
    })
    for (const [method, url] of [
      ['POST', '/auth/2fa/totp'],
      ['POST', '/auth/passkeys/options']
    ] as const) {
      t.match(
        await call(method, url, token('admin')),
        { status: 409, body: { code: 'ID_NO_OWN_PASSWORD' } },
        'the console has no factors'
      )
    }
  })

  await t.test(`V6.5.1 a TOTP or recovery code works once, also under ${PARALLEL} parallel tries`, async (t) => {
    const user = await enrolled(service, 'paul', 'staff')
    const tries = (proof: object, pending: string) =>
      Promise.all(Array.from({ length: PARALLEL }, (_, n) => verify(pending, proof, n)))
    const won = (answers: { status: number }[]) => answers.filter(({ status }) => status === 200).length
    for (const proof of [{ code: code(user.secret) }, { recoveryCode: user.recoveryCodes[0] ?? '' }]) {
      const name = Object.keys(proof).join()
      const answers = await tries(proof, await pendingOf('paul'))
      t.equal(won(answers), 1, `${name}: one of ${PARALLEL}`)
      t.ok(answers.every(({ status }) => [200, 401].includes(status)))
      t.equal(won([await verify(await pendingOf('paul'), proof)]), 0, `${name}: nor ever again`)
    }
    // The row itself decides, whatever comes before it.
    const store = createSecondFactorStore(tenant.db)
    const seed = (await store.totp(user.id))?.seed ?? ''
    const step = stepAt(clock.at) + 1
    const used = await Promise.all(
      Array.from({ length: PARALLEL }, () =>
        tenant.transact((tx) => createSecondFactorStore(tx.db).useTotpStep(user.id, seed, step))
      )
    )
    t.equal(used.filter(Boolean).length, 1)
    clock.at += 30_000
    const earlier = codeAt(fromBase32(user.secret), step - 1)
    t.equal(
      won([await verify(await pendingOf('paul'), { code: earlier })]),
      0,
      'nor a code of a step before the last one'
    )
    const typed = (user.recoveryCodes[1] ?? '')
      .toUpperCase()
      .replaceAll('-', ' ')
      .replaceAll('0', 'o')
      .replaceAll('1', 'l')
    t.equal(
      won([await verify(await pendingOf('paul'), { recoveryCode: typed }, 30)]),
      1,
      'however a recovery code is typed'
    )
    t.equal((await createSecondFactorStore(tenant.db).factors(user.id)).recoveryCodesLeft, 8)
  })

  await t.test(
    'V6.5.2, V6.5.3 recovery codes are kept as hashes and seeds sealed, for their owner alone',
    async (t) => {
      const [ann, bob] = [await enrolled(service, 'ann', 'staff'), await enrolled(service, 'bob', 'staff')]
      await call('POST', '/auth/2fa/totp', ann.accessToken, undefined, { headers: { 'idempotency-key': 'once' } })
      const kept = await everything(tenant)
      const seed = fromBase32(ann.secret)
      for (const form of [ann.secret, seed.toString('hex'), seed.toString('base64'), seed.toString('base64url')]) {
        t.notOk(kept.toLowerCase().includes(form.toLowerCase()), 'no form of the seed')
      }
      for (const each of ann.recoveryCodes) {
        t.notOk(kept.includes(each) || kept.includes(each.replaceAll('-', '')), 'no recovery code')
        t.ok(kept.includes(hashRecoveryCode(each)))
        t.match(each, /^([0-9a-hjkmnp-tv-z]{6}-){3}[0-9a-hjkmnp-tv-z]{6}$/, '120 bits: 24 characters of 32')
      }
      const sealed = (await createSecondFactorStore(tenant.db).totp(ann.id))?.seed ?? ''
      t.same(service.seal.open(sealed, `totp main ${ann.id}`), seed)
      t.throws(() => service.seal.open(sealed, `totp main ${bob.id}`), { code: 'SEAL_UNREADABLE' })
      await tenant.transact((tx) =>
        sql`update ${sql.table('totp_factors')} set seed = ${sealed} where user_id = ${bob.id}`.execute(tx.db)
      )
      const answer = await verify(await pendingOf('bob'), { code: code(ann.secret) })
      t.match(answer, { status: 500, body: { code: 'SEAL_UNREADABLE' } }, 'a seed copied to another row opens nothing')
    }
  )

  await t.test('a user without the duty may give a factor up; whoever needs one may not', async (t) => {
    const sam = await enrolled(service, 'sam', 'staff')
    const again = await call('POST', '/auth/2fa/recovery-codes', sam.accessToken)
    t.equal(again.body.recoveryCodes.length, 10)
    t.equal(
      (await verify(await pendingOf('sam'), { recoveryCode: sam.recoveryCodes[0] })).status,
      401,
      'earlier codes are void'
    )
    const renewed = await verify(await pendingOf('sam'), { recoveryCode: again.body.recoveryCodes[0] })
    t.equal(renewed.status, 200)
    t.equal((await call('DELETE', '/auth/2fa/totp', renewed.body.accessToken)).status, 204)
    t.equal((await call('GET', '/auth/me', renewed.body.accessToken)).status, 401, 'which ends all tokens')
    const plain = await login('sam', PASSWORD)
    t.equal(plain.status, 200)
    t.match((await call('GET', '/auth/2fa', plain.body.accessToken)).body, { enrolled: false, recoveryCodesLeft: 0 })
    for (const [method, url] of [
      ['DELETE', '/auth/2fa/totp'],
      ['POST', '/auth/2fa/recovery-codes']
    ] as const) {
      t.match(await call(method, url, plain.body.accessToken), { status: 409, body: { code: 'ID_SECOND_FACTOR_NONE' } })
    }
    const max = await enrolled(service, 'max', 'manager')
    t.match(await call('DELETE', '/auth/2fa/totp', max.accessToken), {
      status: 409,
      body: { code: 'ID_SECOND_FACTOR_MANDATORY', role: 'manager' }
    })
    t.equal((await createSecondFactorStore(tenant.db).factors(max.id)).totp, true, 'and nothing was taken away')
  })

  await t.test('an app counts once it was confirmed, and the one before until then', async (t) => {
    const eve = await enrolled(service, 'eve', 'staff')
    const begun = await call('POST', '/auth/2fa/totp', eve.accessToken)
    t.match(begun.body.otpauthUri, `secret=${begun.body.secret}`)
    t.equal((await verify(await pendingOf('eve'), { code: code(begun.body.secret) })).status, 401, 'not before')
    t.equal((await verify(await pendingOf('eve'), { code: code(eve.secret) })).status, 200)
    const confirm = (secret: string) => call('POST', '/auth/2fa/totp/confirm', eve.accessToken, { code: code(secret) })
    t.match(await confirm(eve.secret), { status: 422, body: { code: 'ID_CODE_WRONG' } })
    const done = await confirm(begun.body.secret)
    t.match(
      done,
      { status: 200, body: { recoveryCodes: [], session: { tokenType: 'Bearer' } } },
      'the recovery codes stay'
    )
    t.equal((await verify(await pendingOf('eve'), { code: code(eve.secret) })).status, 401, 'the old one is out')
    const late = done.body.session.accessToken
    const { secret } = (await call('POST', '/auth/2fa/totp', late)).body
    clock.at += 16 * 60_000
    const tooLate = await call('POST', '/auth/2fa/totp/confirm', late, { code: code(secret) })
    t.match(
      tooLate,
      { status: 409, body: { code: 'ID_ENROLMENT_NOT_STARTED' } },
      'a secret waits for a quarter of an hour'
    )
  })

  await t.test('V6.3.1, V2.4.1 guesses of a code are bounded, and cost the password’s tries nothing', async (t) => {
    const joe = await enrolled(service, 'joe', 'staff')
    const pending = await pendingOf('joe')
    const statuses: number[] = []
    for (let n = 0; n < 50; n++) statuses.push((await verify(pending, { code: String(n).padStart(6, '0') })).status)
    t.equal(statuses.filter((status) => status === 401).length, 5)
    t.equal(statuses.filter((status) => status === 429).length, 45)
    const refused = await verify(pending, { code: code(joe.secret) })
    t.match(
      refused,
      { status: 429, body: { code: 'ID_LOGIN_THROTTLED' }, headers: { 'retry-after': /^\d+$/ } },
      'also a right one, for a while'
    )
    t.equal((await login('joe', PASSWORD)).status, 200)
    t.equal((await verify(pending, { code: code(joe.secret) }, 9)).status, 200, 'the user’s own network is another')
  })

  await t.test('an administrator takes a lost factor away, and nobody else does', async (t) => {
    const lost = await enrolled(service, 'lost', 'manager')
    const path = `/users/${lost.id}/second-factor`
    t.equal((await call('DELETE', path, token('manager'))).status, 403)
    t.equal((await call('DELETE', path, token('admin'))).status, 204)
    t.equal((await call('GET', '/auth/me', lost.accessToken)).status, 401, 'it ends all tokens')
    t.match((await login('lost', PASSWORD)).body, { step: 'enrol', methods: [] }, 'and the duty is still there')
    t.equal(
      (await call('DELETE', '/users/0190a000-0000-7000-8000-000000000000/second-factor', token('admin'))).status,
      404
    )
  })

  await t.test('V7.5.1 a change of factors needs fresh authentication', async (t) => {
    const old = await enrolled(service, 'olga', 'admin')
    const { sub, role, epoch = 0, sid = '', amr = [] } = service.auth.verify(old.accessToken)
    const aged = (seconds: number) =>
      service.auth.sign(
        {
          subject: sub,
          role,
          tenant: 'main',
          epoch,
          session: sid,
          methods: amr,
          authenticatedAt: Date.now() - seconds * 1000
        },
        600
      )
    const id = '0190a000-0000-7000-8000-000000000000'
    for (const [method, url] of [
      ['POST', '/auth/2fa/totp'],
      ['POST', '/auth/2fa/totp/confirm'],
      ['DELETE', '/auth/2fa/totp'],
      ['POST', '/auth/2fa/recovery-codes'],
      ['POST', '/auth/passkeys/options'],
      ['POST', '/auth/passkeys'],
      ['DELETE', `/auth/passkeys/${id}`],
      ['DELETE', `/users/${id}/second-factor`],
      ['POST', `/users/${id}/link`]
    ] as const) {
      const body = method === 'POST' ? {} : undefined
      t.match(
        await call(method, url, aged(3600), body),
        { status: 403, body: { code: 'AUTH_FRESH_REQUIRED' } },
        `${method} ${url}`
      )
      t.not((await call(method, url, aged(5), body)).status, 403, `${method} ${url} just after a sign-in`)
    }
  })

  await t.test('V6.3.4 every pathway enforces the second factor alike', async (t) => {
    const dora = await enrolled(service, 'dora', 'manager')
    const pending = await pendingOf('dora')
    t.match(await call('GET', '/auth/me', pending), { status: 403, body: { code: 'AUTH_SECOND_FACTOR_REQUIRED' } })
    t.match(await call('POST', '/auth/refresh', undefined, { refreshToken: pending.slice(0, 200) }), { status: 401 })
    t.equal((await call('POST', '/auth/2fa/totp', pending)).status, 403, 'nor does it enrol another app')
    t.equal(
      (await call('POST', '/auth/password', pending, { currentPassword: PASSWORD, newPassword: 'another passphrase' }))
        .status,
      403
    )
    t.equal((await call('POST', '/tokens', pending, { name: 'x', scopes: ['*:read'], expiresInDays: 1 })).status, 403)
    const asleep = (await call('POST', '/auth/reauthenticate', dora.accessToken, { password: PASSWORD })).body
    t.match(asleep, { step: 'second-factor' }, 'proving it again takes both')
  })

  await t.test('V6.4.3 neither a reset by link nor one at the console skips the second factor', async (t) => {
    const rosa = await enrolled(service, 'rosa', 'admin')
    const link = await call('POST', `/users/${rosa.id}/link`, token('admin'))
    const linkToken = new URL(link.body.url).hash.replace('#token=', '')
    const accepted = await call('POST', '/auth/accept', undefined, { token: linkToken, password: 'fir tree 7' })
    t.same([accepted.status, accepted.text], [204, ''], 'a new password signs nobody in')
    t.equal((await call('GET', '/auth/me', rosa.accessToken)).status, 401)
    t.match((await login('rosa', 'fir tree 7')).body, { step: 'second-factor' })
    t.equal((await call('PATCH', `/users/${rosa.id}`, token('admin'), { password: 'fir tree 8' })).status, 200)
    t.match((await login('rosa', 'fir tree 8')).body, { step: 'second-factor' })
  })
})

t.test(
  'V6.3.3 admin and manager without a second factor: only the routes to enrol answer, all others 403',
  async (t) => {
    const app = Fastify(serverOptions({ logLevel: 'silent' }))
    const routes: { method: string; url: string; open: boolean }[] = []
    app.addHook('onRoute', ({ method, url, config }) => {
      if (!url.startsWith('/api/') || config === undefined || !('role' in config) || config.role === 'public') return
      const pending = 'pending' in config && Array.isArray(config.pending) ? config.pending : []
      routes.push({ method: String(method), url, open: pending.includes('enrol') })
    })
    await registerAll(app, loadConfig({ LOG_LEVEL: 'silent', DATA_DIR: temporaryFolder(t) }))
    await app.ready()
    t.teardown(() => app.close())
    const auth = app.getDecorator<Auth>('auth')
    const admin = auth.sign({ subject: 'cli', role: 'admin', tenant: 'main' }, 60)
    for (const role of ['manager', 'admin'] as const) {
      const send = (method: string, url: string, token?: string, payload?: object) =>
        app.inject({
          method:
            method === 'GET' || method === 'POST' || method === 'PUT' || method === 'PATCH' || method === 'DELETE'
              ? method
              : 'HEAD',
          url: url.replaceAll(/:\w+/g, '0190a000-0000-7000-8000-000000000000').replace('*', 'x'),
          headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
          ...(payload === undefined ? {} : { payload })
        })
      await send('POST', '/api/users', admin, { username: role, role, password: SHORT_PASSWORD })
      const signedIn = (
        await send('POST', '/api/auth/login', undefined, { username: role, password: SHORT_PASSWORD })
      ).json()
      t.match(signedIn, { step: 'enrol', methods: [] })
      t.notOk(signedIn.accessToken ?? signedIn.refreshToken)
      const pending = signedIn.pendingToken
      t.ok(routes.length > 70, `${routes.length} routes`)
      for (const { method, url, open } of routes) {
        // It would end the token that the others are tried with.
        if (url === '/api/auth/logout') continue
        const answer = await send(method, url, pending)
        if (open) {
          t.not(answer.statusCode, 403, `${method} ${url} answers`)
          continue
        }
        t.equal(answer.statusCode, 403, `${method} ${url}`)
        if (method === 'HEAD') continue
        t.match(answer.json(), { code: 'AUTH_SECOND_FACTOR_REQUIRED', use: 'enrol' })
        t.ok(answer.json().routes.includes('POST /api/auth/2fa/totp'), 'and says where to enrol')
      }
    }
  }
)
