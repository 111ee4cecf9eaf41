import * as client from 'openid-client'
import { type Static, Type } from 'typebox'
import { shape } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import { OidcFailed, OidcUnavailable } from './errors.js'

/** Single sign-on by OpenID Connect: authorization code with PKCE, state and nonce. Here is the protocol; accounts are elsewhere. */

export interface OidcOptions {
  /** As the provider spells it: what its discovery document and every ID token must say. */
  readonly issuer: string
  readonly clientId: string
  readonly clientSecret: string
  readonly scope?: string
  /** The claim that holds a user's groups; `realm_access.roles` is the member of a member. */
  readonly roleClaim?: string
  /** The role of each group; of several the highest counts. */
  readonly roles: Readonly<Record<string, Role>>
  /** Values of `acr` that stand for more than one factor, beside `mfa` in `amr`. */
  readonly strongAcr?: readonly string[]
  /** The one tenant whose users sign in this way: who may use another is nothing that a group says. */
  readonly tenant?: string
}

/** What a browser keeps, sealed, between leaving for the provider and coming back. */
export const Departure = Type.Object({
  state: Type.String(),
  nonce: Type.String(),
  verifier: Type.String(),
  fresh: Type.Boolean(),
  at: Type.Integer()
})
export type Departure = Static<typeof Departure>

/** What the provider says of who came back. */
export interface Arrival {
  readonly issuer: string
  readonly subject: string
  readonly role: Role | undefined
  /** Whether the provider has seen more than one factor. */
  readonly strong: boolean
  /** When the provider has seen them, milliseconds; 0 when it does not say. */
  readonly authenticatedAt: number
  readonly username: string | undefined
  readonly displayName: string | undefined
}

const Claims = Type.Object({
  iss: Type.String({ minLength: 1, maxLength: 500 }),
  sub: Type.String({ minLength: 1, maxLength: 255 }),
  auth_time: Type.Optional(Type.Number()),
  acr: Type.Optional(Type.String()),
  amr: Type.Optional(Type.Array(Type.String()))
})
const Groups = Type.Union([Type.String(), Type.Array(Type.String())])

const TIMEOUT_SECONDS = 5
const METADATA_MILLISECONDS = 3_600_000
/** A fresh sign-in at the provider may be so old when its code is redeemed. */
const FRESH_SECONDS = 120
const RANK: readonly Role[] = ['viewer', 'staff', 'manager', 'admin']

interface OidcProvider {
  /** @throws OidcUnavailable */
  depart(fresh: boolean, at: number): Promise<{ url: URL; departure: Departure }>
  /** @param query as the provider sent it. @throws OidcFailed, OidcUnavailable */
  arrive(query: string, departure: Departure): Promise<Arrival>
}

/** A provider by its discovery document, which is asked for when it is first needed (OpenID Connect Discovery 1.0). */
export function createOidcProvider(options: OidcOptions, redirectUri: string): OidcProvider {
  const { issuer, clientId, clientSecret, scope = 'openid profile' } = options
  let found: { configuration: Promise<client.Configuration>; at: number } | undefined

  /** Asked for when it is first needed, and again after an hour; a failure is not remembered. */
  function configuration(): Promise<client.Configuration> {
    if (found !== undefined && performance.now() - found.at < METADATA_MILLISECONDS) return found.configuration
    const url = new URL(issuer)
    // The signature of an ID token is checked though it comes straight from the provider.
    const execute = [client.enableNonRepudiationChecks]
    if (url.protocol === 'http:') execute.push(client.allowInsecureRequests)
    const asked = client.discovery(url, clientId, undefined, authentication(clientSecret), {
      execute,
      timeout: TIMEOUT_SECONDS
    })
    const fresh = { configuration: asked, at: performance.now() }
    found = fresh
    asked.catch(() => {
      if (found === fresh) found = undefined
    })
    return asked
  }

  const available = async () =>
    configuration().catch((error: unknown) => {
      throw because(new OidcUnavailable({ retryAfterSeconds: 5 }), error)
    })

  return {
    depart: async (fresh, at) => {
      const [state, nonce] = [client.randomState(), client.randomNonce()]
      const verifier = client.randomPKCECodeVerifier()
      const url = client.buildAuthorizationUrl(await available(), {
        redirect_uri: redirectUri,
        scope,
        state,
        nonce,
        code_challenge: await client.calculatePKCECodeChallenge(verifier),
        code_challenge_method: 'S256',
        ...(fresh ? { prompt: 'login', max_age: '0' } : {})
      })
      return { url, departure: { state, nonce, verifier, fresh, at } }
    },

    arrive: async (query, { state, nonce, verifier, fresh }) => {
      const provider = await available()
      const url = new URL(redirectUri)
      url.search = query
      try {
        const tokens = await client.authorizationCodeGrant(provider, url, {
          expectedState: state,
          expectedNonce: nonce,
          pkceCodeVerifier: verifier,
          idTokenExpected: true,
          ...(fresh ? { maxAge: FRESH_SECONDS } : {})
        })
        const claims = tokens.claims()
        if (!shape(Claims)(claims)) throw new TypeError('the ID token lacks a claim, or one has another type')
        const path = options.roleClaim ?? 'groups'
        const userInfo = async () =>
          provider.serverMetadata().userinfo_endpoint === undefined
            ? {}
            : client.fetchUserInfo(provider, tokens.access_token, claims.sub)
        // Some providers tell groups and names only there.
        const all = claimAt(claims, path) === undefined ? { ...(await userInfo()), ...claims } : claims
        return toArrival(claims, all, path, options)
      } catch (error) {
        const unreachable = isUnreachable(error)
        throw because(
          unreachable ? new OidcUnavailable({ retryAfterSeconds: 5 }) : new OidcFailed({ reason: 'provider' }),
          error
        )
      }
    }
  }
}

function because(problem: Error, cause: unknown): Error {
  problem.cause = cause
  return problem
}

/** The secret in the header where the provider takes it there, as the standard prefers; else in the body. */
function authentication(secret: string): client.ClientAuth {
  const [basic, post] = [client.ClientSecretBasic(secret), client.ClientSecretPost(secret)]
  return (server, ...rest) => {
    const methods = server.token_endpoint_auth_methods_supported ?? ['client_secret_basic']
    return methods.includes('client_secret_basic') ? basic(server, ...rest) : post(server, ...rest)
  }
}

function toArrival(
  { iss, sub, acr, amr = [], auth_time }: Static<typeof Claims>,
  all: object,
  path: string,
  { roles, strongAcr = [] }: OidcOptions
): Arrival {
  const text = (name: string): string | undefined => {
    const value = claimAt(all, name)
    return typeof value === 'string' ? value : undefined
  }
  return {
    issuer: iss,
    subject: sub,
    role: roleOf(claimAt(all, path), roles),
    strong: amr.includes('mfa') || (acr !== undefined && strongAcr.includes(acr)),
    authenticatedAt: auth_time === undefined ? 0 : Math.floor(auth_time) * 1000,
    username: text('preferred_username'),
    displayName: text('name')
  }
}

/** A claim by its name, which may have dots in it, or by the path to it. */
export function claimAt(claims: object, path: string): unknown {
  const own = (value: unknown, name: string): unknown =>
    typeof value === 'object' && value !== null && Object.hasOwn(value, name) ? Reflect.get(value, name) : undefined
  const direct = own(claims, path)
  return direct !== undefined ? direct : path.split('.').reduce<unknown>(own, claims)
}

/** The highest role that the groups grant; undefined when they grant none. */
export function roleOf(groups: unknown, roles: Readonly<Record<string, Role>>): Role | undefined {
  if (!shape(Groups)(groups)) return undefined
  const granted = [groups].flat().map((group) => (Object.hasOwn(roles, group) ? roles[group] : undefined))
  return RANK.findLast((role) => granted.includes(role))
}

/** The network or the provider itself failed, and not what the browser brought. */
function isUnreachable(error: unknown): boolean {
  if (error instanceof client.ResponseBodyError) return error.status >= 500
  if (!(error instanceof Error)) return false
  const code = 'code' in error ? String(error.code) : ''
  if (code === 'OAUTH_RESPONSE_IS_NOT_CONFORM') {
    return error.cause instanceof Response && error.cause.status >= 500
  }
  // `fetch` rejects with a TypeError that has its cause; the library's own have a code.
  return code === 'OAUTH_TIMEOUT' || (error instanceof TypeError && error.cause instanceof Error && code === '')
}
