import { generateKeyPairSync, type KeyObject, sign as signBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { text } from 'node:stream/consumers'
import Provider from 'oidc-provider'
import type { Test } from 'tap'
import type { OidcOptions } from '../../modules/identity/index.js'
import type { Role } from '../../schemas/common.js'
import { type IdentityService, PUBLIC_URL, startIdentity } from '../identity-service.js'
import { freePort } from '../ports.js'
import { freshDatabase } from '../services.js'

export const CLIENT = { client_id: 'stock', client_secret: 'tH9-wq2Lk5Zr8vXb7yNd3mPf' }
export const CALLBACK = `${PUBLIC_URL}/api/auth/oidc/callback`
export const ROLES: Readonly<Record<string, Role>> = { keepers: 'staff', owners: 'admin', 'cn:readers': 'viewer' }

export const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
export const jwk = { ...privateKey.export({ format: 'jwk' }), kid: 'p1', alg: 'RS256', use: 'sig' }

export interface Person {
  groups?: unknown
  preferred_username?: string
  name?: string
  email?: string
}
export type Token = { header: Record<string, unknown>; claims: Record<string, unknown> }
/** What an ID token is turned into on its way. */
export type Tamper = (token: Token, raw: string) => string

export const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
export function signed({ header, claims }: Token, key: KeyObject = privateKey): string {
  const input = `${encode(header)}.${encode(claims)}`
  return `${input}.${signBytes('sha256', Buffer.from(input), key).toString('base64url')}`
}
export function read(token: string): Token {
  const [header = '', claims = ''] = token.split('.')
  const decode = (part: string): Record<string, unknown> => JSON.parse(Buffer.from(part, 'base64url').toString())
  return { header: decode(header), claims: decode(claims) }
}

/** The provider on a port of its own. Its login form asks for a name and whether a second factor was shown. */
export async function startProvider(t: Test) {
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

export interface Page {
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

export async function start(t: Test, provider: RunningProvider, dialect: string, more: Partial<OidcOptions> = {}) {
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
export const atCallback = (url: string) => url.startsWith(CALLBACK)
