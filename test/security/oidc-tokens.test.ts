import { createHmac, generateKeyPairSync } from 'node:crypto'
import t from 'tap'
import { claimAt, roleOf } from '../../modules/identity/oidc.js'
import { ConfigError, loadConfig } from '../../plugins/config/index.js'
import type { Role } from '../../schemas/common.js'
import { CLIENT, encode, ROLES, signed, start, startProvider, type Tamper } from './oidc-harness.js'

/** What a provider says of somebody, and what is refused of it. */

const provider = await startProvider(t)
const { people, state } = provider

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
