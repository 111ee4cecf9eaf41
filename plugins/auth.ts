import type { FastifyInstance, FastifyRequest, FastifySchema, onRequestHookHandler } from 'fastify'
import { LRUCache } from 'lru-cache'
import { Counter, type Registry } from 'prom-client'
import type { Role, TokenClaims, TokenUse } from '../schemas/common.js'
import type { Auth, OpaqueToken, OpaqueTokens, Principal, RevocationCheck, Tenant } from './contracts.js'
import { createCookies, requireSameSite } from './http/cookies.js'
import {
  CrossSite,
  Forbidden,
  FreshAuthenticationRequired,
  RouteClosed,
  ScopeMissing,
  SecondFactorRequired,
  Unauthenticated
} from './http/errors.js'
import { Problem } from './http/problem.js'
import { createTokens, REJECTIONS, rejection, type TokenOptions } from './tokens.js'

export { createTokens, type TokenOptions } from './tokens.js'

const VERIFIED_MAX = 5_000
/** For how long somebody who has proved who it is need not do so again before the few dangerous things. */
const FRESH_SECONDS = 600
/** Of a request whose body took longer than this to come it is asked again whether it may: what it was let in by can have ended. */
const BODY_MILLISECONDS = 1_000

const ROLES: readonly Role[] = ['viewer', 'staff', 'manager', 'admin']
const RANK: Readonly<Record<Role, number>> = { viewer: 0, staff: 1, manager: 2, admin: 3 }

interface AuthOptions extends TokenOptions {
  registry: Registry
  /** Cookies count as sent over HTTPS even where the request does not look so. */
  secureCookies?: boolean
  /** The tenant's database; rejects or throws when there is no such tenant. */
  enterTenant(id: string): Tenant | Promise<Tenant>
}

interface Verified {
  readonly claims: TokenClaims
  readonly principal: Principal
  readonly expiresAtMs: number
  /** Undefined: whatever the role may. */
  readonly scopes: ReadonlySet<string> | undefined
}

const BEARER = /^Bearer +(\S+)$/i

/** The core's `auth`. The host keeps its own hooks; a module passes `authorize` to its routes. */
export function createAuth(app: FastifyInstance, options: AuthOptions): Auth {
  const tokens = createTokens(app, options)
  const cookies = createCookies(options.secureCookies ?? false)
  const counted = authMetrics(options.registry)
  const areas = collectAreas(app)
  const steps = collectSteps(app)
  // Checking a signature costs more than a cached answer, so a token's is checked once; its time and revocation always.
  const known = new LRUCache<string, Verified>({ max: VERIFIED_MAX })
  const claimsOf = new WeakMap<Principal, TokenClaims>()
  const opaque: OpaqueTokens[] = []
  let isRevoked: RevocationCheck | undefined

  const enterTenant: Auth['enterTenant'] = (request, id) => {
    const enter = (tenant: Tenant) => {
      request.setDecorator('tenant', tenant)
      return tenant
    }
    const tenant = options.enterTenant(id)
    return tenant instanceof Promise ? tenant.then(enter) : enter(tenant)
  }

  const remember = (key: string, claims: TokenClaims, scopes?: readonly string[]): Verified => {
    const principal = Object.freeze({
      subject: claims.sub,
      role: claims.role,
      tenant: claims.tenant,
      session: claims.sid ?? claims.jti,
      ...(claims.amr === undefined ? {} : { method: claims.amr.join('+') })
    })
    claimsOf.set(principal, claims)
    const fresh = { claims, principal, expiresAtMs: claims.exp * 1000, scopes: scopes && new Set(scopes) }
    known.set(key, fresh)
    return fresh
  }

  const findOpaque = async (kind: OpaqueTokens, key: string, token: string): Promise<Verified> => {
    const tenantId = kind.tenantOf(token)
    // Nothing vouches yet for the tenant that it names, so which ones exist is not told.
    const tenant =
      tenantId === undefined ? undefined : await Promise.resolve(options.enterTenant(tenantId)).catch(noSuchTenant)
    const found: OpaqueToken | undefined = tenant === undefined ? undefined : await kind.find(token, tenant)
    if (found === undefined || found.claims.exp * 1000 <= Date.now()) throw rejection('unknown')
    return remember(key, found.claims, found.scopes)
  }

  /** What the request's token says, when it was seen before or is a JWT; a promise when it has to be looked up. */
  const verified = (request: FastifyRequest): Verified | Promise<Verified> => {
    const { authorization } = request.headers
    const key = authorization ?? cookies.accessToken(request)
    if (key === undefined) throw rejection('missing')
    const found = known.get(key)
    if (found !== undefined) {
      if (Date.now() < found.expiresAtMs) return found
      known.delete(key)
    }
    const token = authorization === undefined ? key : BEARER.exec(authorization)?.[1]
    if (token === undefined) throw rejection('malformed')
    const kind = authorization === undefined ? undefined : opaque.find(({ prefix }) => token.startsWith(prefix))
    return kind === undefined ? remember(key, tokens.verify(token)) : findOpaque(kind, key, token)
  }

  /** Why a token that counts may not do this; undefined when it may. */
  const refusal = ({ claims, scopes }: Verified, rule: Rule): readonly [Denial, Error] | undefined => {
    const { role, use } = claims
    if (use !== undefined && !rule.pending.includes(use)) {
      return ['second-factor', new SecondFactorRequired({ use, routes: steps.get(use) ?? [] })]
    }
    if (RANK[role] < RANK[rule.role]) return ['role', new Forbidden({ required: rule.role, role })]
    if (scopes !== undefined && !scopes.has(rule.scope) && !scopes.has(rule.scopeOfAll)) {
      return ['scope', new ScopeMissing({ required: rule.scope })]
    }
    if (rule.fresh && !isFresh(claims)) {
      return ['fresh', new FreshAuthenticationRequired({ maxAgeSeconds: FRESH_SECONDS })]
    }
    return undefined
  }

  const judge = (request: FastifyRequest, rule: Rule, token: Verified): Verdict => {
    // Whoever is refused below is named in the audit trail.
    request.setDecorator('principal', token.principal)
    const tenant = enterTenant(request, token.claims.tenant)
    const refused = refusal(token, rule)
    const conclude = (revoked: boolean): undefined | Error => {
      if (revoked) return counted.rejected(rejection('revoked'))
      return refused && counted.denied(token.claims.role, ...refused)
    }
    if (tenant instanceof Promise) {
      return tenant.then((entered) => isRevoked?.(token.claims, entered) ?? false).then(conclude)
    }
    const revoked = isRevoked?.(token.claims, tenant) ?? false
    if (typeof revoked === 'boolean') return conclude(revoked)
    if (refused === undefined) rule.ahead?.(request)
    return revoked.then(conclude)
  }

  const decide = (request: FastifyRequest): Verdict => {
    const rule = ruleOf(request)
    if (rule === 'public') return undefined
    if (rule === undefined) return counted.denied('none', 'undeclared', new RouteClosed({}))
    const token = verified(request)
    // A browser sends a cookie whoever made it ask.
    if (request.headers.authorization === undefined && (rule.writes || request.headers.upgrade !== undefined)) {
      requireSameSite(request)
    }
    return token instanceof Promise ? token.then((found) => judge(request, rule, found)) : judge(request, rule, token)
  }

  const allowedAt = new WeakMap<FastifyRequest, number>()
  const allow: typeof decide = (request) => {
    let outcome: Verdict
    try {
      outcome = decide(request)
    } catch (error) {
      outcome = counted.rejected(error)
    }
    return outcome instanceof Promise ? outcome.catch(counted.rejected) : outcome
  }
  const conclude = (outcome: Verdict, done: (error?: Error) => void): void => {
    if (outcome instanceof Promise) outcome.then(done)
    else done(outcome)
  }

  const authorize: onRequestHookHandler = (request, _reply, done) => {
    if (request.method !== 'GET' && request.method !== 'HEAD') allowedAt.set(request, performance.now())
    conclude(allow(request), done)
  }
  app.addHook('preValidation', (request, _reply, done) => {
    const at = allowedAt.get(request)
    if (at === undefined || performance.now() - at < BODY_MILLISECONDS) done()
    else conclude(allow(request), done)
  })

  return {
    ...tokens,
    authorize,
    enterTenant,
    requireSameSite,
    cookies,
    stillAllowed: async (request) => {
      try {
        return (await decide(request)) === undefined
      } catch {
        return false
      }
    },
    areas: () => [...areas].sort(),
    claims: (request) => {
      const principal = request.getDecorator<Principal | null>('principal')
      const claims = principal === null ? undefined : claimsOf.get(principal)
      if (claims !== undefined) return claims
      const { authorization } = request.headers
      const token = authorization === undefined ? cookies.accessToken(request) : BEARER.exec(authorization)?.[1]
      if (token === undefined) throw rejection('missing')
      return tokens.verify(token)
    },
    refuseWhen: (check) => {
      if (isRevoked !== undefined) throw new Error('only one module may say which tokens are revoked')
      isRevoked = check
    },
    accept: (kind) => void opaque.push(kind)
  }
}

/** Undefined: the request may go on. A promise where the database has to be asked. */
type Verdict = undefined | Error | Promise<undefined | Error>

function noSuchTenant(error: unknown): undefined {
  if (error instanceof Problem && error.status === 404) return undefined
  throw error
}

/** A token without a session was signed at the console or by a host, who vouch for its holder; an API token's holder is a program. */
function isFresh({ sid, use, amr, auth_time }: TokenClaims): boolean {
  if (amr?.includes('api')) return false
  if (sid === undefined && use === undefined) return true
  return auth_time !== undefined && Date.now() / 1000 - auth_time < FRESH_SECONDS
}

/** What a route asks of a token. */
interface Rule {
  readonly role: Role
  readonly pending: readonly TokenUse[]
  readonly fresh: boolean
  readonly writes: boolean
  readonly scope: string
  readonly scopeOfAll: string
  readonly ahead: ((request: FastifyRequest) => void) | undefined
}

const rules = new WeakMap<object, Rule | 'public'>()
/** Each route has a `config` of its own, so it is read once. */
function ruleOf(request: FastifyRequest): Rule | 'public' | undefined {
  const { config, schema, method } = request.routeOptions
  const known = rules.get(config)
  if (known !== undefined) return known
  const declared: unknown = 'role' in config ? config.role : undefined
  const role = ROLES.find((each) => each === declared)
  if (role === undefined && declared !== 'public') return undefined
  const writes = method !== 'GET' && method !== 'HEAD' && !(Array.isArray(method) && method.every(isRead))
  const verb = writes ? 'write' : 'read'
  const rule =
    role === undefined
      ? 'public'
      : {
          role,
          pending: 'pending' in config && Array.isArray(config.pending) ? config.pending : [],
          fresh: 'fresh' in config && config.fresh === true,
          writes,
          scope: `${areaOf(schema) ?? ''}:${verb}`,
          scopeOfAll: `*:${verb}`,
          ahead: aheadOf(config)
        }
  rules.set(config, rule)
  return rule
}

function aheadOf(config: object): Rule['ahead'] {
  const ahead: unknown = 'ahead' in config ? config.ahead : undefined
  return typeof ahead === 'function' ? (request) => void ahead(request) : undefined
}

const isRead = (method: string) => method === 'GET' || method === 'HEAD'

/** `import and export` is the area `import-and-export`. */
function areaOf(schema: FastifySchema | undefined): string | undefined {
  return schema?.tags?.[0]?.replace(/[^a-z0-9]+/gi, '-').toLowerCase()
}

function collectAreas(app: FastifyInstance): ReadonlySet<string> {
  const areas = new Set<string>()
  app.addHook('onRoute', ({ schema, config }) => {
    const area = areaOf(schema)
    if (area !== undefined && config !== undefined && 'role' in config && config.role !== 'public') areas.add(area)
  })
  return areas
}

/** The routes by which each step of a sign-in is taken, so that a refusal can say where to go on. */
function collectSteps(app: FastifyInstance): ReadonlyMap<TokenUse, readonly string[]> {
  const steps = new Map<TokenUse, string[]>()
  app.addHook('onRoute', ({ method, url, config }) => {
    if (config === undefined || !('pending' in config) || !Array.isArray(config.pending)) return
    if (method !== 'HEAD')
      for (const use of config.pending) steps.set(use, [...(steps.get(use) ?? []), `${method} ${url}`])
  })
  return steps
}

const DENIALS = ['role', 'undeclared', 'second-factor', 'scope', 'fresh', 'cross-site'] as const
type Denial = (typeof DENIALS)[number]

function authMetrics(registry: Registry) {
  const rejections = new Counter({
    name: 'auth_token_rejections_total',
    help: 'Bearer tokens refused.',
    labelNames: ['reason'] as const,
    registers: [registry]
  })
  const denials = new Counter({
    name: 'authz_denials_total',
    help: 'Requests refused though the token counts, or because the route declares no role, by what was missing.',
    labelNames: ['role', 'kind'] as const,
    registers: [registry]
  })
  for (const reason of REJECTIONS) rejections.inc({ reason }, 0)
  for (const kind of DENIALS) {
    if (kind === 'undeclared' || kind === 'cross-site') denials.inc({ role: 'none', kind }, 0)
    else for (const role of ROLES) denials.inc({ role, kind }, 0)
  }
  return {
    rejected: (error: unknown): Error => {
      if (error instanceof Unauthenticated) rejections.inc({ reason: String(error.params.reason) })
      if (error instanceof CrossSite) denials.inc({ role: 'none', kind: 'cross-site' })
      return error instanceof Error ? error : new Error('authorization failed', { cause: error })
    },
    denied: (role: Role | 'none', kind: Denial, error: Error): Error => {
      denials.inc({ role, kind })
      return error
    }
  }
}
