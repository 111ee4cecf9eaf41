import { createHmac, generateKeyPairSync, type KeyObject, sign as signBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { text } from 'node:stream/consumers'
import Provider from 'oidc-provider'
import type { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import type { OidcOptions } from '../../modules/identity/index.js'
import { claimAt, roleOf } from '../../modules/identity/oidc.js'
import { ConfigError, loadConfig } from '../../plugins/config/index.js'
import type { Role } from '../../schemas/common.js'
import { eachDialect } from '../helper.js'
import { type IdentityService, PASSWORD, PUBLIC_URL, startIdentity } from '../identity-service.js'
import { freePort, freshDatabase } from '../services.js'

/** Single sign-on against a real provider over real HTTP, by a browser that keeps cookies and fills in the provider's form. */

const CLIENT = { client_id: 'stock', client_secret: 'tH9-wq2Lk5Zr8vXb7yNd3mPf' }
const CALLBACK = `${PUBLIC_URL}/api/auth/oidc/callback`
const ROLES: Readonly<Record<string, Role>> = { keepers: 'staff', owners: 'admin', 'cn:readers': 'viewer' }

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
const jwk = { ...privateKey.export({ format: 'jwk' }), kid: 'p1', alg: 'RS256', use: 'sig' }

interface Person {
  groups?: unknown
  preferred_username?: string
  name?: string
  email?: string
}
type Token = { header: Record<string, unknown>; claims: Record<string, unknown> }
/** What an ID token is turned into on its way. */
type Tamper = (token: Token, raw: string) => string

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
function signed({ header, claims }: Token, key: KeyObject = privateKey): string {
  const input = `${encode(header)}.${encode(claims)}`
  return `${input}.${signBytes('sha256', Buffer.from(input), key).toString('base64url')}`
}
function read(token: string): Token {
  const [header = '', claims = ''] = token.split('.')
  const decode = (part: string): Record<string, unknown> => JSON.parse(Buffer.from(part, 'base64url').toString())
  return { header: decode(header), claims: decode(claims) }
}

/** The provider on a port of its own. Its login form asks for a name and whether a second factor was shown. */
async function startProvider(t: Test) {
  const issuer = `http://127.0.0.1:${await freePort()}`
  const people = new Map<string, Person>()
  const state: { tamper: Tamper | undefined; down: boolean; idTokenClaims: boolean } = {
    tamper: undefined,
    down: false,
    idTokenClaims: true
  }
  const provider = new Provider(issuer, {
    clients: [{ ...CLIENT, redirect_uris: [CALLBACK], require_auth_time: true }],
    claims: { openid: ['sub', 'amr', 'acr', 'auth_time'], profile: ['preferred_username', 'name', 'email', 'groups'] },
    acrValues: ['urn:strong'],
    conformIdTokenClaims: false,
    features: { devInteractions: { enabled: false } },
    interactions: { url: (_ctx, { uid }) => `/form/${uid}` },
    cookies: { keys: ['a key of the test'] },
    jwks: { keys: [jwk] },
    ttl: { Session: 3600, Grant: 3600, Interaction: 3600, AccessToken: 600, IdToken: 600 },
    findAccount: (_ctx, id) => ({
      accountId: id,
      claims: (use) => ({ sub: id, ...(use === 'userinfo' || state.idTokenClaims ? people.get(id) : {}) })
    }),
    // Nobody is asked for consent: the client is the house's own.
    loadExistingGrant: async ({ oidc }) => {
      const grant = new provider.Grant({
        clientId: oidc.client?.clientId ?? '',
        accountId: oidc.session?.accountId ?? ''
      })
      grant.addOIDCScope('openid profile')
      await grant.save()
      return grant
    }
  })
  const serve = provider.callback()
  const form = async (request: IncomingMessage, response: ServerResponse) => {
    if (request.method === 'GET') {
      return response.end('<form method="post"><input name="login"><input name="factors"></form>')
    }
    const fields = new URLSearchParams(await text(request))
    const strong = fields.get('factors') === '2'
    return provider.interactionFinished(request, response, {
      login: {
        accountId: fields.get('login') ?? '',
        amr: strong ? ['pwd', 'mfa'] : ['pwd'],
        ...(fields.get('factors') === 'acr' ? { acr: 'urn:strong' } : {})
      }
    })
  }
  const server = createServer((request, response) => {
    if (state.down) return response.writeHead(503).end()
    if (request.url?.startsWith('/form/')) return void form(request, response)
    if (request.url === '/token') onTheWay(response, state)
    return serve(request, response)
  })
  server.listen(Number(new URL(issuer).port), '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return { issuer, people, state }
}
type RunningProvider = Awaited<ReturnType<typeof startProvider>>

/** Puts somebody between the provider and us who can change the ID token. */
function onTheWay(response: ServerResponse, state: { tamper: Tamper | undefined }): void {
  const { tamper } = state
  if (tamper === undefined) return
  const end = response.end.bind(response)
  response.end = (chunk: unknown) => {
    const answer = JSON.parse(String(chunk))
    if (answer.id_token !== undefined) answer.id_token = tamper(read(answer.id_token), answer.id_token)
    const changed = JSON.stringify(answer)
    response.setHeader('content-length', Buffer.byteLength(changed))
    return end(changed)
  }
}

interface Page {
  status: number
  url: string
  text: string
  body: ReturnType<typeof JSON.parse>
  cookies: string[]
}

/** Follows redirects between the provider, over its socket, and our service, and keeps each one's cookies by their paths. */
class Browser {
  readonly cookies: { origin: string; name: string; value: string; path: string; attributes: string }[] = []
  readonly #service: IdentityService
  constructor(service: IdentityService) {
    this.#service = service
  }

  #header(url: URL): string {
    const sent = this.cookies.filter(({ origin, path }) => origin === url.origin && url.pathname.startsWith(path))
    return sent.map(({ name, value }) => `${name}=${value}`).join('; ')
  }

  #keep(url: URL, lines: string[]): void {
    for (const line of lines) {
      const [pair = '', ...attributes] = line.split('; ')
      const [name = '', value = ''] = [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]
      const path = /path=([^;]+)/i.exec(line)?.[1] ?? '/'
      const at = this.cookies.findIndex(
        (each) => each.origin === url.origin && each.name === name && each.path === path
      )
      if (at >= 0) this.cookies.splice(at, 1)
      const isOver = value === '' || /max-age=0/i.test(line) || /expires=Thu, 01 Jan 1970/i.test(line)
      if (!isOver) this.cookies.push({ origin: url.origin, name, value, path, attributes: attributes.join('; ') })
    }
  }

  /** One request; `location` when it sends elsewhere. */
  async request(
    method: 'GET' | 'POST',
    href: string,
    fields?: Record<string, string>,
    more: Record<string, string> = {}
  ) {
    const url = new URL(href)
    const headers = { cookie: this.#header(url), ...more }
    if (url.origin === PUBLIC_URL) {
      // What a request says of its host counts for nothing.
      const answer = await this.#service.app.inject({
        method,
        url: url.pathname + url.search,
        headers: { host: 'evil.example', 'x-forwarded-host': 'evil.example', ...headers }
      })
      const cookies = [answer.headers['set-cookie'] ?? []].flat()
      this.#keep(url, cookies)
      const location = answer.headers.location
      return { status: answer.statusCode, location, text: answer.body, cookies, url }
    }
    const answer = await fetch(url, {
      method,
      headers,
      redirect: 'manual',
      ...(fields === undefined ? {} : { body: new URLSearchParams(fields) })
    })
    const cookies = answer.headers.getSetCookie()
    this.#keep(url, cookies)
    return {
      status: answer.status,
      location: answer.headers.get('location') ?? undefined,
      text: await answer.text(),
      cookies,
      url
    }
  }

  /** Until a page, or until `stop` says that the next address is of interest. */
  async visit(
    href: string,
    stop: (url: string) => boolean = () => false,
    fields?: Record<string, string>
  ): Promise<Page> {
    let next = href
    let form = fields
    for (let hops = 0; hops < 12; hops++) {
      const { status, location, text, cookies } = await this.request(form === undefined ? 'GET' : 'POST', next, form)
      form = undefined
      const isJson = text.startsWith('{')
      if (location === undefined || status < 300) {
        return { status, url: next, text, body: isJson ? JSON.parse(text) : undefined, cookies }
      }
      next = new URL(location, next).href
      if (stop(next) || next === `${PUBLIC_URL}/`) return { status, url: next, text: '', body: undefined, cookies }
    }
    throw new Error('sent round in circles')
  }

  /** Begins here, signs in there, and comes back as far as `stop` lets it. */
  async signIn(login: string, factors = '1', stop?: (url: string) => boolean, query = ''): Promise<Page> {
    const page = await this.visit(`${PUBLIC_URL}/api/auth/oidc/login${query}`, stop)
    if (!page.text.includes('<form')) return page
    return this.visit(page.url, stop, { login, factors })
  }

  async api(
    method: 'GET' | 'POST',
    path: string,
    headers: Record<string, string> = { 'sec-fetch-site': 'same-origin' }
  ) {
    const { status, text } = await this.request(method, `${PUBLIC_URL}/api${path}`, undefined, headers)
    return { status, body: text === '' ? undefined : JSON.parse(text) }
  }
}

async function start(t: Test, provider: RunningProvider, dialect: string, more: Partial<OidcOptions> = {}) {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const service = await startIdentity(database?.url ?? 'sqlite::memory:', {
    oidc: {
      issuer: provider.issuer,
      clientId: CLIENT.client_id,
      clientSecret: CLIENT.client_secret,
      roles: ROLES,
      strongAcr: ['urn:strong'],
      ...more
    }
  })
  t.teardown(() => service.app.close())
  return { ...service, browser: () => new Browser(service) }
}
const atCallback = (url: string) => url.startsWith(CALLBACK)

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
  for (const each of nia.cookies) if (each.name.endsWith('inventory-oidc')) each.value = `${each.value.slice(0, -2)}AA`
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

t.test('what comes from the provider: every ID token that is not exactly right is refused', async (t) => {
  const service = await start(t, provider, 'sqlite')
  const { browser } = service
  t.teardown(() => {
    state.tamper = undefined
  })
  people.set('v-1', { groups: ['owners'], preferred_username: 'vera' })
  const seconds = Math.floor(Date.now() / 1000)
  const other = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey
  const claims =
    (changes: Record<string, unknown>): Tamper =>
    (token) =>
      signed({ ...token, claims: { ...token.claims, ...changes } })
  const table: [string, Tamper][] = [
    ['a nonce of another sign-in', claims({ nonce: 'x'.repeat(43) })],
    ['no nonce', claims({ nonce: undefined })],
    ['another issuer', claims({ iss: 'https://evil.example' })],
    ['another audience', claims({ aud: 'another-client' })],
    ['several audiences, meant for another', claims({ aud: ['stock', 'another'], azp: 'another' })],
    ['expired', claims({ exp: seconds - 3600 })],
    ['of the future', claims({ iat: seconds + 3600, nbf: seconds + 3600 })],
    ['no subject', claims({ sub: undefined })],
    ['an empty subject', claims({ sub: '' })],
    ['an endless subject', claims({ sub: 'x'.repeat(300) })],
    ['a subject that is a number', claims({ sub: 7 })],
    [
      'its claims changed, its signature kept',
      ({ header, claims }, raw) => `${encode(header)}.${encode({ ...claims, sub: 'somebody' })}.${raw.split('.')[2]}`
    ],
    ['its signature changed', (_token, raw) => `${raw.slice(0, -8)}AAAAAAAA`],
    ['no signature', (_token, raw) => `${raw.split('.').slice(0, 2).join('.')}.`],
    ['another key', (token) => signed(token, other)],
    ['alg none', ({ header, claims }) => `${encode({ ...header, alg: 'none' })}.${encode(claims)}.`],
    [
      'HS256 with the public key or the client’s secret',
      ({ header, claims }) => {
        const input = `${encode({ ...header, alg: 'HS256' })}.${encode(claims)}`
        return `${input}.${createHmac('sha256', CLIENT.client_secret).update(input).digest('base64url')}`
      }
    ],
    [
      'a key that it brings itself',
      ({ header, claims }) =>
        signed(
          { header: { ...header, kid: undefined, jwk: { ...other.export({ format: 'jwk' }), d: undefined } }, claims },
          other
        )
    ],
    ['no token', () => ''],
    ['no JSON', () => 'a.b.c']
  ]
  for (const [what, tamper] of table) {
    state.tamper = tamper
    const page = await browser().signIn('v-1', '2')
    t.match(page, { status: 401, body: { code: 'ID_OIDC_FAILED' } }, what)
    t.notMatch(page.cookies.join(), /access=[^;]/, what)
  }
  t.same((await service.call('GET', '/users', service.token('admin'))).body.data, [])
  state.tamper = (token) => signed(token)
  const right = browser()
  t.match(
    await right.signIn('v-1', '2'),
    { status: 303 },
    'the same way of tampering, but right: so that the table proves something'
  )
  t.equal((await right.api('GET', '/auth/me')).status, 200)
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

t.test('claims and groups', async (t) => {
  const claims = { groups: ['a'], 'https://x.example/roles': 'b', realm_access: { roles: ['c'] }, deep: 'text' }
  const paths: [string, unknown][] = [
    ['groups', ['a']],
    ['https://x.example/roles', 'b'],
    ['realm_access.roles', ['c']],
    ['realm_access.none', undefined],
    ['deep.length', undefined],
    ['constructor', undefined],
    ['__proto__.constructor', undefined],
    ['', undefined]
  ]
  for (const [path, expected] of paths) t.same(claimAt(claims, path), expected, path)
  const groups: [unknown, Role | undefined][] = [
    [['keepers', 'owners'], 'admin'],
    [['owners', 'keepers'], 'admin'],
    ['cn:readers', 'viewer'],
    [['Owners'], undefined],
    [[['owners']], undefined],
    [{ 0: 'owners' }, undefined],
    [null, undefined]
  ]
  for (const [held, expected] of groups) t.equal(roleOf(held, ROLES), expected, JSON.stringify(held))
})

t.test('the configuration of the provider', async (t) => {
  const base = {
    DATA_DIR: t.testdir(),
    OIDC_ISSUER: 'https://id.example.org',
    OIDC_CLIENT_ID: 'stock',
    OIDC_CLIENT_SECRET: 'tH9-wq2Lk5Zr8vXb7yNd3mPf',
    OIDC_ROLES: 'stock:keepers:staff,owners:admin',
    PUBLIC_URL: 'https://stock.example.org/'
  }
  const { oidc, publicUrl } = loadConfig(base)
  t.equal(publicUrl, 'https://stock.example.org')
  t.match(oidc, {
    roles: { 'stock:keepers': 'staff', owners: 'admin' },
    roleClaim: 'groups',
    scope: 'openid profile',
    tenant: 'main'
  })
  t.equal(loadConfig({ DATA_DIR: base.DATA_DIR }).oidc, undefined)
  const refused: [Record<string, string | undefined>, RegExp][] = [
    [{ OIDC_CLIENT_ID: undefined }, /^OIDC_CLIENT_ID is not set; with OIDC_ISSUER it may be/],
    [{ OIDC_CLIENT_SECRET: undefined }, /^OIDC_CLIENT_SECRET is not set/],
    [{ OIDC_CLIENT_SECRET: 'too-short' }, /^OIDC_CLIENT_SECRET is a value that is refused \(not shown\)/],
    [{ OIDC_ROLES: undefined }, /^OIDC_ROLES is not set/],
    [{ OIDC_ROLES: 'owners:root' }, /^OIDC_ROLES is "owners:root"; it may be group:role/],
    [{ PUBLIC_URL: undefined }, /^PUBLIC_URL is not set/],
    [{ OIDC_ISSUER: 'http://id.example.org' }, /^OIDC_ISSUER is "http:\/\/id.example.org"; it may be https/],
    [{ OIDC_ISSUER: 'https://' }, /^OIDC_ISSUER is/],
    [{ OIDC_SCOPE: 'profile' }, /^OIDC_SCOPE is "profile"/]
  ]
  for (const [changes, message] of refused) {
    t.throws(() => loadConfig({ ...base, ...changes }), new ConfigError(), JSON.stringify(changes))
    try {
      loadConfig({ ...base, ...changes })
    } catch (error) {
      t.match(String(error instanceof Error ? error.message : error), message)
    }
  }
})
