import t from 'tap'
import { DIALECTS } from '../helper.js'
import { enrolled, PASSWORD, PUBLIC_URL, SEALING_KEY, startIdentity } from '../identity-service.js'
import { freshDatabase } from '../services.js'
import { createAuthenticator } from '../software-authenticator.js'

/** Passkeys (WebAuthn) with an authenticator in software, and what one that lies, or was stolen, gets. */

type Authenticator = ReturnType<typeof createAuthenticator>
type Behaviour = Parameters<Authenticator['assert']>[1]

for (const dialect of DIALECTS) {
  t.test(dialect, async (t) => {
    const database = dialect === 'postgres' ? await freshDatabase() : undefined
    if (database !== undefined) t.teardown(() => database.drop())
    const service = await startIdentity(database?.url ?? 'sqlite::memory:')
    t.teardown(() => service.app.close())
    const { call, login, token, clock } = service

    /** A user of the role, signed in as far as the password goes. */
    const begin = async (username: string, role: 'staff' | 'manager' = 'staff') => {
      await call('POST', '/users', token('admin'), { username, role, password: PASSWORD })
      const { body } = await login(username, PASSWORD)
      return String(body.pendingToken ?? body.accessToken)
    }
    const register = async (held: string, authenticator: Authenticator, behaviour: Behaviour & object = {}) => {
      const options = (await call('POST', '/auth/passkeys/options', held)).body
      const credential = authenticator.register(options, behaviour)
      return call('POST', '/auth/passkeys', held, { name: 'Key', credential })
    }
    const pendingOf = async (username: string) =>
      String((await login(username, PASSWORD, `203.0.113.${username.length}`)).body.pendingToken)
    const secondStep = async (username: string, authenticator: Authenticator, behaviour: Behaviour = {}) => {
      const pending = await pendingOf(username)
      const options = (await call('POST', '/auth/2fa/passkey/options', pending)).body
      const passkey = authenticator.assert(options, behaviour)
      return { options, passkey, pending, answer: await call('POST', '/auth/2fa/verify', pending, { passkey }) }
    }
    let visitors = 0
    const signIn = async (authenticator: Authenticator, behaviour: Behaviour = {}) => {
      const options = (await call('POST', '/auth/passkeys/sign-in/options', undefined, {})).body
      const credential = authenticator.assert(options, behaviour)
      const remoteAddress = `198.51.100.${++visitors % 250}`
      return {
        credential,
        answer: await call('POST', '/auth/passkeys/sign-in', undefined, { credential }, { remoteAddress })
      }
    }

    await t.test('a passkey is registered, listed, renamed, used as second factor, and deleted', async (t) => {
      const held = await begin('maria', 'manager')
      const options = await call('POST', '/auth/passkeys/options', held)
      t.match(options.body, {
        rp: { id: 'stock.example.org', name: 'Inventory Enterprise' },
        user: { name: 'maria' },
        attestation: 'none',
        authenticatorSelection: { residentKey: 'preferred' }
      })
      const key = createAuthenticator(PUBLIC_URL)
      const made = await register(held, key)
      t.match(made, { status: 201, headers: { 'cache-control': 'no-store' } })
      t.equal(made.body.recoveryCodes.length, 10, 'the first factor comes with recovery codes')
      t.match(made.body.passkey, { name: 'Key', backedUp: false, lastUsedAt: null })
      const { accessToken } = made.body.session
      const { id } = made.body.passkey
      t.same((await call('GET', '/auth/passkeys', accessToken)).body, { data: [made.body.passkey] })
      const renamed = await call('PATCH', `/auth/passkeys/${id}`, accessToken, { name: 'Blue key' })
      t.match(renamed, { status: 200, body: { id, name: 'Blue key' } })
      const again = (await call('POST', '/auth/passkeys/options', accessToken)).body
      t.match(again.excludeCredentials, [{ type: 'public-key' }], 'a browser will not register the same one twice')

      t.match((await login('maria', PASSWORD)).body, { step: 'second-factor', methods: ['passkey', 'recovery-code'] })
      const { options: asked, answer } = await secondStep('maria', key)
      t.match(asked, { rpId: 'stock.example.org', allowCredentials: again.excludeCredentials })
      t.match(answer, { status: 200, body: { user: { username: 'maria' } } })
      t.match((await call('GET', '/auth/passkeys', answer.body.accessToken)).body.data, [{ lastUsedAt: /^20/ }])

      const last = await call('DELETE', `/auth/passkeys/${id}`, answer.body.accessToken)
      t.match(last, { status: 409, body: { code: 'ID_SECOND_FACTOR_MANDATORY' } })
      const second = createAuthenticator(PUBLIC_URL)
      const added = await register(answer.body.accessToken, second)
      t.same(added.body.recoveryCodes, [], 'the next one brings no codes')
      const now = added.body.session.accessToken
      t.equal((await call('DELETE', `/auth/passkeys/${id}`, now)).status, 204)
      t.equal((await call('GET', '/auth/me', now)).status, 401, 'which ends all tokens')
      t.equal((await secondStep('maria', key)).answer.status, 401, 'a deleted passkey opens nothing')
      t.equal((await secondStep('maria', second)).answer.status, 200)
    })

    await t.test('a passkey that recognises its owner signs in alone, with both factors passed', async (t) => {
      const key = createAuthenticator(PUBLIC_URL)
      await register(await begin('nora', 'manager'), key)
      const { answer } = await signIn(key)
      t.match(answer, {
        status: 200,
        body: { tokenType: 'Bearer', user: { username: 'nora' } },
        headers: { 'cache-control': 'no-store' }
      })
      t.equal((await call('GET', '/auth/me', answer.body.accessToken)).status, 200)
      const unverified = await signIn(key, { isVerified: false })
      t.match(
        unverified.answer,
        { status: 401, body: { code: 'ID_SECOND_FACTOR_FAILED' } },
        'one that only was touched does not'
      )
      const stranger = await signIn(createAuthenticator(PUBLIC_URL))
      const nowhere = await call('POST', '/auth/passkeys/sign-in', undefined, {
        tenant: 'nowhere',
        credential: stranger.credential
      })
      const bare = ({ body }: { body: object }) => ({ ...body, requestId: '' })
      t.same(bare(nowhere), bare(stranger.answer), 'an unknown tenant and an unknown passkey are told alike')
      t.equal((await call('POST', '/auth/passkeys/sign-in/options', undefined, { tenant: 'nowhere' })).status, 200)
      const { id } = answer.body.user
      await call('PATCH', `/users/${id}`, token('admin'), { disabled: true })
      t.equal((await signIn(key)).answer.status, 401, 'nor does a disabled user’s')
    })

    await t.test('what a liar, a copy or a listener presents is refused', async (t) => {
      const key = createAuthenticator(PUBLIC_URL)
      await register(await begin('vera'), key)
      const lies: Record<string, Behaviour & object> = {
        'another site': { origin: 'https://stock.example.org.evil.example' },
        'the site without TLS': { origin: 'http://stock.example.org' },
        'another relying party': { rpId: 'evil.example' },
        'another ceremony': { type: 'webauthn.create' },
        'a signature of something else': { isForged: true },
        'a counter that does not rise': { counter: 1 }
      }
      for (const [name, lie] of Object.entries(lies)) {
        t.match((await signIn(key, lie)).answer, { status: 401, body: { code: 'ID_SECOND_FACTOR_FAILED' } }, name)
      }
      // The liar's own counter is made to rise again.
      const { credential, answer } = await signIn(key, { counter: 100 })
      t.equal(answer.status, 200)
      const replayed = await call(
        'POST',
        '/auth/passkeys/sign-in',
        undefined,
        { credential },
        { remoteAddress: '192.0.2.77' }
      )
      t.equal(replayed.status, 401, 'the same answer again')
      const options = (await call('POST', '/auth/passkeys/sign-in/options', undefined, {})).body
      const twice = [key.assert(options), key.assert(options)].map((each, n) =>
        call('POST', '/auth/passkeys/sign-in', undefined, { credential: each }, { remoteAddress: `192.0.2.${80 + n}` })
      )
      const statuses = (await Promise.all(twice)).map(({ status }) => status).sort()
      t.same(statuses, [200, 401], 'two answers to one challenge')
      const late = (await call('POST', '/auth/passkeys/sign-in/options', undefined, {})).body
      clock.at += 301_000
      const expired = { credential: key.assert(late) }
      t.equal(
        (await call('POST', '/auth/passkeys/sign-in', undefined, expired, { remoteAddress: '192.0.2.90' })).status,
        401,
        'a challenge counts for five minutes'
      )
      const invented = { challenge: Buffer.from('v1.s1.AAAA').toString('base64url'), rpId: 'stock.example.org' }
      const own = { credential: key.assert(invented) }
      t.equal(
        (await call('POST', '/auth/passkeys/sign-in', undefined, own, { remoteAddress: '192.0.2.91' })).status,
        401,
        'a challenge of one’s own'
      )
    })

    await t.test('a challenge and a passkey serve one user and one purpose', async (t) => {
      const [mine, theirs] = [createAuthenticator(PUBLIC_URL), createAuthenticator(PUBLIC_URL)]
      const anna = (await register(await begin('anna'), mine)).body
      const bert = (await register(await begin('bert'), theirs)).body
      t.equal((await secondStep('bert', mine)).answer.status, 401, 'another user’s passkey is no second factor')
      const pending = await pendingOf('anna')
      const forBert = (await call('POST', '/auth/2fa/passkey/options', await pendingOf('bert'))).body
      t.equal((await call('POST', '/auth/2fa/verify', pending, { passkey: mine.assert(forBert) })).status, 401)
      const toSignIn = (await call('POST', '/auth/passkeys/sign-in/options', undefined, {})).body
      t.equal((await call('POST', '/auth/2fa/verify', pending, { passkey: mine.assert(toSignIn) })).status, 401)
      const toStep = (await call('POST', '/auth/2fa/passkey/options', pending)).body
      t.equal(
        (await call('POST', '/auth/passkeys/sign-in', undefined, { credential: mine.assert(toStep) })).status,
        401
      )
      t.equal((await secondStep('anna', mine)).answer.status, 200)

      const { accessToken } = bert.session
      for (const [method, body] of [
        ['PATCH', { name: 'Mine' }],
        ['DELETE', undefined]
      ] as const) {
        const answer = await call(method, `/auth/passkeys/${anna.passkey.id}`, accessToken, body)
        t.match(answer, { status: 404, body: { code: 'ID_PASSKEY_NOT_FOUND' } }, `${method} of another’s`)
      }
      t.match(
        await register(accessToken, mine),
        { status: 422, body: { code: 'ID_PASSKEY_REFUSED' } },
        'a passkey has one owner'
      )
    })

    await t.test('registrations that prove nothing, or bring certificates along, are refused', async (t) => {
      const held = await begin('cora')
      const refused: Record<string, Behaviour & object> = {
        'another site': { origin: 'https://evil.example' },
        'another relying party': { rpId: 'evil.example' },
        'another ceremony': { type: 'webauthn.get' },
        'certificates, whose revocation lists would be fetched': {
          fmt: 'packed',
          attStmt: new Map([['x5c', Buffer.from('00', 'hex')]])
        },
        'a format with certificates': { fmt: 'android-key' },
        'an unknown format': { fmt: 'none-such' }
      }
      for (const [name, lie] of Object.entries(refused)) {
        t.match(
          await register(held, createAuthenticator(PUBLIC_URL), lie),
          { status: 422, body: { code: 'ID_PASSKEY_REFUSED' } },
          name
        )
      }
      const key = createAuthenticator(PUBLIC_URL)
      const options = (await call('POST', '/auth/passkeys/options', held)).body
      const credential = key.register(options)
      const rubbish = { ...credential, response: { ...credential.response, attestationObject: 'AAAA' } }
      t.equal((await call('POST', '/auth/passkeys', held, { name: 'x', credential: rubbish })).status, 422)
      const other = await begin('dina')
      t.equal(
        (await call('POST', '/auth/passkeys', other, { name: 'x', credential })).status,
        422,
        'a challenge made for another user'
      )
      const made = await call('POST', '/auth/passkeys', held, { name: 'x', credential })
      t.equal(made.status, 201, 'while the pattern of them all is good')
      const after = made.body.session.accessToken
      t.equal((await call('POST', '/auth/passkeys', after, { name: 'x', credential })).status, 422, 'once')
    })

    await t.test('GHSA-9vh6-qfv6-vcqp: the site is the configured one, whatever the Host header says', async (t) => {
      const held = await begin('hanna')
      const forged = { headers: { host: 'evil.example', 'x-forwarded-host': 'evil.example' } }
      const options = (await call('POST', '/auth/passkeys/options', held, undefined, forged)).body
      t.equal(options.rp.id, 'stock.example.org')
      const credential = createAuthenticator('https://evil.example').register(options)
      t.equal((await call('POST', '/auth/passkeys', held, { name: 'x', credential }, forged)).status, 422)
      const asked = await call('POST', '/auth/passkeys/sign-in/options', undefined, {}, forged)
      t.match(asked.body, { rpId: 'stock.example.org', userVerification: 'required' })
    })

    await t.test('a user has twenty passkeys at most, beside the app', async (t) => {
      const user = await enrolled(service, 'tina', 'staff')
      let held = user.accessToken
      for (let n = 0; n < 20; n++)
        held = (await register(held, createAuthenticator(PUBLIC_URL))).body.session.accessToken
      t.match(await register(held, createAuthenticator(PUBLIC_URL)), {
        status: 409,
        body: { code: 'ID_PASSKEYS_FULL', maximum: 20 }
      })
      t.match((await login('tina', PASSWORD)).body.methods, ['totp', 'passkey', 'recovery-code'])
    })
  })
}

t.test('a service at another address, or under another key, knows none of the challenges', async (t) => {
  const key = createAuthenticator('http://localhost:8083')
  const [here, there] = [
    await startIdentity('sqlite::memory:', { publicUrl: 'http://localhost:8083' }),
    await startIdentity('sqlite::memory:', {
      secretsKeys: [{ ...SEALING_KEY, secret: 'Qe7-rT2yUi9pAs4dFg6hJk1lZx3cVb5n' }]
    })
  ]
  for (const { app } of [here, there]) t.teardown(() => app.close())
  await here.call('POST', '/users', here.token('admin'), { username: 'zoe', role: 'staff', password: PASSWORD })
  const held = (await here.login('zoe', PASSWORD)).body.accessToken
  const options = (await here.call('POST', '/auth/passkeys/options', held)).body
  t.equal(options.rp.id, 'localhost')
  t.equal(
    (await here.call('POST', '/auth/passkeys', held, { name: 'x', credential: key.register(options) })).status,
    201
  )
  const foreign = (await there.call('POST', '/auth/passkeys/sign-in/options', undefined, {})).body
  const credential = key.assert({ ...foreign, rpId: 'localhost' })
  t.equal((await here.call('POST', '/auth/passkeys/sign-in', undefined, { credential })).status, 401)
})
