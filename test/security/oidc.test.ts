import type { Registry } from 'prom-client'
import t from 'tap'
import { eachDialect } from '../helper.js'
import { PASSWORD, PUBLIC_URL, startIdentity } from '../identity-service.js'
import { freePort } from '../ports.js'
import { atCallback, CALLBACK, start, startProvider } from './oidc-harness.js'

/** Single sign-on against a real provider over real HTTP, by a browser that keeps cookies and fills in the provider's form. */

const provider = await startProvider(t)
const { people, state } = provider

await eachDialect(t, async (t, dialect) => {
  const service = await start(t, provider, dialect)
  const { browser, call, token, login } = service
  const users = async () => (await call('GET', '/users', token('admin'))).body.data

  await t.test(
    'the first sign-in makes an account with the role of the groups; the session is in cookies',
    async (t) => {
      people.set('s-1', { groups: ['others', 'keepers', 'cn:readers'], preferred_username: 'kim', name: 'Kim K.' })
      const kim = browser()
      const page = await kim.signIn('s-1')
      t.match(page, { status: 303, url: `${PUBLIC_URL}/` }, 'and back to the configured address')
      const me = await kim.api('GET', '/auth/me')
      t.match(me, {
        status: 200,
        body: { role: 'staff', user: { username: 'kim', displayName: 'Kim K.', role: 'staff' } }
      })
      const ours = kim.cookies.filter(({ origin }) => origin === PUBLIC_URL)
      t.same(
        ours.map(({ name }) => name).filter((name) => name.includes('oidc')),
        [],
        'nothing of the way is left'
      )
      t.equal((await kim.api('POST', '/auth/refresh')).status, 400, 'a refresh has a body')
      const again = browser()
      await again.signIn('s-1')
      t.equal((await again.api('GET', '/auth/me')).body.subject, me.body.subject, 'known again')
      t.equal((await users()).length, 1)
      const [session] = (await kim.api('GET', '/auth/sessions')).body.data
      t.same(session.methods, ['oidc'])
    }
  )

  await t.test('an account is never taken over by a name or an address', async (t) => {
    const local = await call('POST', '/users', token('admin'), { username: 'boss', role: 'staff', password: PASSWORD })
    people.set('s-2', { groups: 'keepers', preferred_username: 'BOSS', email: 'kim@example.org' })
    const other = browser()
    await other.signIn('s-2')
    const { body } = await other.api('GET', '/auth/me')
    t.not(body.subject, local.body.id)
    t.match(body.user.username, /^BOSS-[0-9a-f]{8}$/)
    t.equal((await login('boss', PASSWORD)).status, 200, 'whose name it was keeps it')
    people.set('s-2', { groups: 'keepers', preferred_username: 'renamed' })
    const renamed = browser()
    await renamed.signIn('s-2')
    t.equal((await renamed.api('GET', '/auth/me')).body.subject, body.subject, 'the subject counts, not the name')
    people.set('s-3', { groups: ['keepers'], preferred_username: 'two words\n' })
    const odd = browser()
    await odd.signIn('s-3')
    t.match((await odd.api('GET', '/auth/me')).body.user.username, /^sso-[0-9a-f]{24}$/, 'a name that is none')
    t.equal((await login('renamed', '!')).status, 401, 'and none of them has a password')
    t.equal((await login(body.user.username, '')).status, 400)
  })

  await t.test('the role is that of today: another one ends what was, none lets nobody in', async (t) => {
    people.set('s-4', { groups: ['keepers'], preferred_username: 'lee' })
    const lee = browser()
    await lee.signIn('s-4')
    people.set('s-4', { groups: ['cn:readers'], preferred_username: 'lee' })
    const now = browser()
    await now.signIn('s-4')
    t.match((await now.api('GET', '/auth/me')).body, { role: 'viewer' })
    t.equal((await lee.api('GET', '/auth/me')).status, 401, 'the session with more rights is over')
    for (const groups of [[], ['others'], undefined, 'owners ', { owners: true }, ['constructor', '__proto__']]) {
      people.set('s-4', { groups })
      const page = await browser().signIn('s-4')
      t.match(page, { status: 403, body: { code: 'ID_OIDC_REFUSED', reason: 'role' } }, JSON.stringify(groups))
      t.notMatch(page.cookies.join(), /access=[^;]/)
    }
    t.equal((await now.api('GET', '/auth/me')).status, 401, 'and the last session is over too')
    people.set('s-new', { groups: ['others'] })
    const before = (await users()).length
    t.equal((await browser().signIn('s-new')).status, 403)
    t.equal((await users()).length, before, 'whoever may do nothing gets no account')

    people.set('s-4', { groups: ['keepers'] })
    t.equal((await browser().signIn('s-4')).status, 303)
    const { id } = (await users()).find(({ username }: { username: string }) => username === 'lee')
    await call('PATCH', `/users/${id}`, token('admin'), { disabled: true })
    t.match(await browser().signIn('s-4'), { status: 403, body: { reason: 'disabled' } })
    await call('DELETE', `/users/${id}`, token('admin'))
    t.match(
      await browser().signIn('s-4'),
      { status: 403, body: { reason: 'disabled' } },
      'nor does a deleted one come back'
    )
  })

  await t.test('V6.3.4 the second factor is the provider’s if it says so, else the own one', async (t) => {
    people.set('s-5', { groups: ['owners'], preferred_username: 'olga' })
    const weak = browser()
    t.match(await weak.signIn('s-5'), { status: 303, url: `${PUBLIC_URL}/` })
    t.equal((await weak.api('GET', '/auth/me')).status, 401, 'no session yet')
    t.match(await weak.api('POST', '/auth/oidc/step', { 'sec-fetch-site': 'cross-site' }), { status: 403 })
    const step = await weak.api('POST', '/auth/oidc/step')
    t.match(step, { status: 200, body: { step: 'enrol', methods: [] } })
    t.match(
      await weak.api('POST', '/auth/oidc/step'),
      { status: 409, body: { code: 'ID_NO_STEP_PENDING' } },
      'told once'
    )
    const pending = step.body.pendingToken
    t.equal((await call('GET', '/users', pending)).status, 403, 'it is good for that step alone')
    const { secret } = (await call('POST', '/auth/2fa/totp', pending)).body
    const confirmed = await call('POST', '/auth/2fa/totp/confirm', pending, { code: service.code(secret) })
    t.match(confirmed, { status: 200, body: { session: { user: { username: 'olga' } } } })
    const enrolled = browser()
    await enrolled.signIn('s-5')
    t.match((await enrolled.api('POST', '/auth/oidc/step')).body, {
      step: 'second-factor',
      methods: ['totp', 'recovery-code']
    })

    for (const factors of ['2', 'acr']) {
      const strong = browser()
      await strong.signIn('s-5', factors)
      t.match(await strong.api('GET', '/auth/me'), { status: 200, body: { role: 'admin' } }, factors)
      t.equal((await strong.api('POST', '/auth/oidc/step')).status, 409)
    }
    t.match((await call('GET', '/users', token('admin'))).status, 200)
  })
})

t.test('what a browser brings back: state, its own departure, codes that were used, errors', async (t) => {
  const service = await start(t, provider, 'sqlite')
  const { browser, call, token } = service
  people.set('n-1', { groups: ['keepers'], preferred_username: 'nia' })
  const failed = { status: 401, body: { code: 'ID_OIDC_FAILED' } }

  const begun = browser()
  const there = await begun.request('GET', `${PUBLIC_URL}/api/auth/oidc/login`)
  const asked = new URL(there.location ?? '')
  t.equal(asked.origin, provider.issuer)
  t.match(Object.fromEntries(asked.searchParams), {
    redirect_uri: CALLBACK,
    response_type: 'code',
    client_id: 'stock',
    scope: 'openid profile',
    code_challenge_method: 'S256',
    code_challenge: /^[\w-]{43}$/,
    state: /^[\w-]{43}$/,
    nonce: /^[\w-]{43}$/
  })
  t.match(
    there.cookies.join(),
    /^__Secure-inventory-oidc=[^;]+; Max-Age=600; Path=\/api\/auth\/oidc\/callback; HttpOnly; Secure; SameSite=Lax$/
  )
  for (const query of [
    '?redirect=https://evil.example',
    '?redirect_uri=https://evil.example',
    '?fresh=perhaps',
    '?tenant=other'
  ]) {
    t.equal((await begun.request('GET', `${PUBLIC_URL}/api/auth/oidc/login${query}`)).status, 400, query)
  }

  const nia = browser()
  const back = await nia.signIn('n-1', '1', atCallback)
  const altered = (name: string, value: string | null) => {
    const url = new URL(back.url)
    if (value === null) url.searchParams.delete(name)
    else url.searchParams.set(name, value)
    return url.href
  }
  t.match(await browser().visit(back.url), { ...failed, body: { reason: 'state' } }, 'another browser: no departure')
  const stranger = browser()
  await stranger.request('GET', `${PUBLIC_URL}/api/auth/oidc/login`)
  t.match(
    await stranger.visit(back.url),
    { ...failed, body: { reason: 'provider' } },
    'a departure of its own: another state'
  )
  /** As often as one likes: each attempt uses the departure up. */
  const attempt = async (href: string) => {
    const kept = [...nia.cookies]
    const page = await nia.visit(href)
    nia.cookies.splice(0, nia.cookies.length, ...kept)
    return page
  }
  t.match(await attempt(altered('state', 'x'.repeat(43))), failed, 'wrong state')
  t.match(await attempt(altered('state', null)), failed, 'no state')
  t.match(await attempt(altered('iss', 'https://evil.example')), failed, 'another issuer (RFC 9207)')
  t.match(await attempt(altered('code', 'x'.repeat(43))), failed, 'a code that the provider never gave')
  t.match(await attempt(altered('code', null)), failed, 'no code')
  t.match(await attempt(`${CALLBACK}?error=access_denied&state=${new URL(back.url).searchParams.get('state')}`), failed)
  t.equal((await nia.request('GET', `${back.url}&code=twice`)).status, 400, 'a parameter twice')

  const mallory = browser()
  people.set('n-2', { groups: ['owners'] })
  const stolen = new URL((await mallory.signIn('n-2', '2', atCallback)).url).searchParams.get('code') ?? ''
  t.match(await attempt(altered('code', stolen)), failed, 'a code that was given for another departure (PKCE)')

  const second = await nia.signIn('n-1', '1', atCallback)
  const departure = [...nia.cookies]
  t.match(await nia.visit(second.url), { status: 303, url: `${PUBLIC_URL}/` })
  nia.cookies.splice(0, nia.cookies.length, ...departure)
  t.match(await nia.visit(second.url), failed, 'a code is used once')
  const third = await nia.signIn('n-1', '1', atCallback)
  for (const each of nia.cookies)
    if (each.name.endsWith('inventory-oidc'))
      each.value = each.value.replace(/.(?=.{9}$)/, (is) => (is === 'A' ? 'B' : 'A'))
  t.match(await nia.visit(third.url), { ...failed, body: { reason: 'state' } }, 'a departure that was altered')

  const silent = await nia.signIn('n-1', '1', atCallback)
  t.ok(atCallback(silent.url), 'the provider remembers who was there')
  const fresh = await nia.visit(`${PUBLIC_URL}/api/auth/oidc/login?fresh=true`, atCallback)
  t.match(fresh.text, /<form/, 'and asks again when it is to')
  t.match(await nia.visit(fresh.url, undefined, { login: 'n-1', factors: '1' }), { status: 303, url: `${PUBLIC_URL}/` })

  const metrics = await service.app.getDecorator<Registry>('registry').metrics()
  t.match(metrics, /auth_oidc_sign_ins_total\{outcome="success"\} 2\n/)
  t.match(metrics, /auth_oidc_sign_ins_total\{outcome="failure"\} 11\n/)
  t.equal((await call('GET', '/users', token('admin'))).body.data.length, 1, 'one account came of all this')
})

t.test('a provider that tells groups elsewhere, or not at all, or is not there', async (t) => {
  people.set('u-1', { groups: ['keepers'], preferred_username: 'uma' })
  state.idTokenClaims = false
  const service = await start(t, provider, 'sqlite')
  const uma = service.browser()
  await uma.signIn('u-1')
  t.match((await uma.api('GET', '/auth/me')).body, { role: 'staff', user: { username: 'uma' } }, 'from the user info')
  state.idTokenClaims = true

  const nested = await start(t, provider, 'sqlite', { roleClaim: 'groups.of.stock' })
  people.set('u-2', { groups: { of: { stock: ['keepers'] } } })
  const una = nested.browser()
  await una.signIn('u-2')
  t.equal((await una.api('GET', '/auth/me')).body.role, 'staff')
  t.equal((await nested.browser().signIn('u-1')).status, 403)

  const late = nested.browser()
  const back = await late.signIn('u-2', '1', atCallback)
  state.down = true
  t.match(await late.visit(back.url), { status: 503, body: { code: 'ID_OIDC_UNAVAILABLE' } })
  const cold = await start(t, provider, 'sqlite')
  t.match(await cold.browser().visit(`${PUBLIC_URL}/api/auth/oidc/login`), {
    status: 503,
    body: { code: 'ID_OIDC_UNAVAILABLE' }
  })
  state.down = false
  t.match(await cold.browser().signIn('u-1'), { status: 303 }, 'a failure is not remembered')
  const nowhere = await start(t, { ...provider, issuer: `http://127.0.0.1:${await freePort()}` }, 'sqlite')
  t.match(await nowhere.browser().visit(`${PUBLIC_URL}/api/auth/oidc/login`), { status: 503 })
  const none = await startIdentity('sqlite::memory:')
  t.teardown(() => none.app.close())
  t.equal((await none.call('GET', '/auth/oidc/login')).status, 404, 'without a provider there are no such routes')
})
