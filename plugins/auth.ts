import { randomUUID } from 'node:crypto'
import fastifyJwt from '@fastify/jwt'
import Fastify, { type FastifyInstance, type FastifyRequest, type onRequestHookHandler } from 'fastify'
import { LRUCache } from 'lru-cache'
import { Counter, type Registry } from 'prom-client'
import { type Static, Type } from 'typebox'
import { Compile } from 'typebox/compile'
import { type Role, TokenClaims } from '../schemas/common.js'
import type { Auth, Principal, RevocationCheck, Tenant, Tokens } from './contracts.js'
import { Forbidden, RouteClosed, Unauthenticated } from './errors.js'

/** The one algorithm: a token never chooses how it is checked (RFC 8725, 3.1). */
const ALGORITHM = 'HS256'
/** RFC 9068: tells an access token from any other that the same keys may sign one day. */
const TOKEN_TYPE = 'at+jwt'
const TOKEN_LENGTH_MAX = 4096
const VERIFIED_MAX = 5_000

const ROLES: readonly Role[] = ['viewer', 'staff', 'manager', 'admin']
const RANK: Readonly<Record<Role, number>> = { viewer: 0, staff: 1, manager: 2, admin: 3 }

/** Why a token is refused; the label of `auth_token_rejections_total` and the `reason` of the 401. */
const REJECTIONS = [
  'missing',
  'malformed',
  'algorithm',
  'signature',
  'type',
  'issuer',
  'audience',
  'early',
  'expired',
  'revoked'
] as const
type Rejection = (typeof REJECTIONS)[number]

const tokenClaims = Compile(TokenClaims)

// No key is ever taken from the token itself (jwk, jku, x5u, x5c), so a header that offers one is not ours.
const Decoded = Type.Object({
  header: Type.Object(
    { alg: Type.String(), kid: Type.String(), typ: Type.Optional(Type.String()) },
    { additionalProperties: false }
  ),
  payload: Type.Object({ iss: Type.Optional(Type.Unknown()) })
})

const tokenParts = Compile(Decoded)

export interface TokenOptions {
  /** The first signs, all verify: a new key is put in front, the old one leaves when its tokens have expired. */
  keys: readonly [SigningKey, ...SigningKey[]]
  issuer?: string
  audience?: string
}
interface SigningKey {
  readonly id: string
  readonly secret: string
}

export interface AuthOptions extends TokenOptions {
  registry: Registry
  /** The tenant's database; rejects or throws when there is no such tenant. */
  enterTenant(id: string): Tenant | Promise<Tenant>
}

/** Signs and verifies with @fastify/jwt, from `app.ready()` on. */
export function createTokens(app: FastifyInstance, options: TokenOptions): Tokens {
  const { keys, issuer = 'inventory-enterprise', audience = 'inventory-enterprise' } = options
  const engines = new Map<string, fastifyJwt.JWT>()
  if (new Set(keys.map(({ id }) => id)).size < keys.length) throw new Error('two signing keys have the same id')
  // A host may use @fastify/jwt for tokens of its own, and its decorators exist once in an app: each key has its own.
  app.register(async () => {
    for (const { id, secret } of keys) {
      const engine = Fastify()
      await engine.register(fastifyJwt, {
        secret,
        decode: { complete: true },
        sign: {
          algorithm: ALGORITHM,
          iss: issuer,
          aud: audience,
          header: { alg: ALGORITHM, typ: TOKEN_TYPE, kid: id }
        },
        verify: {
          algorithms: [ALGORITHM],
          allowedIss: issuer,
          allowedAud: audience,
          checkTyp: TOKEN_TYPE,
          requiredClaims: ['iss', 'aud', 'sub', 'jti', 'iat', 'exp'],
          cache: false
        }
      })
      engines.set(id, engine.jwt)
    }
  })
  const signer = () => {
    const engine = engines.get(keys[0].id)
    if (engine === undefined) throw new Error('tokens are signed and verified from app.ready() on')
    return engine
  }

  return {
    sign: ({ subject, role, tenant, epoch }, ttlSeconds) => {
      const exp = Math.floor(Date.now() / 1000 + ttlSeconds)
      return signer().sign({
        sub: subject,
        role,
        tenant,
        jti: randomUUID(),
        exp,
        ...(epoch === undefined ? {} : { epoch })
      })
    },
    verify: (token) => {
      const decoded = decode(signer(), token)
      if (decoded.header.alg !== ALGORITHM) throw rejection('algorithm')
      const engine = engineOf(engines, decoded.header.kid)
      const claims = check(() => engine.verify<object>(token), decoded.payload.iss === issuer ? 'audience' : 'issuer')
      if (!tokenClaims.Check(claims)) throw rejection('malformed')
      return claims
    }
  }
}

const rejection = (reason: Rejection) => new Unauthenticated({ reason })

function engineOf(engines: ReadonlyMap<string, fastifyJwt.JWT>, id: string): fastifyJwt.JWT {
  const engine = engines.get(id)
  if (engine === undefined) throw rejection('signature')
  return engine
}

function decode(engine: fastifyJwt.JWT, token: string): Static<typeof Decoded> {
  if (token.length > TOKEN_LENGTH_MAX) throw rejection('malformed')
  const decoded = check(() => engine.decode<object>(token), 'malformed')
  if (!tokenParts.Check(decoded)) throw rejection('malformed')
  return decoded
}

const CODES: Readonly<Record<string, Rejection>> = {
  FAST_JWT_EXPIRED: 'expired',
  FAST_JWT_INACTIVE: 'early',
  FAST_JWT_INVALID_ALGORITHM: 'algorithm',
  FAST_JWT_INVALID_SIGNATURE: 'signature',
  FAST_JWT_MISSING_SIGNATURE: 'signature',
  FAST_JWT_INVALID_TYPE: 'type'
}

/** Runs a step of the engine; `claim` is the reason when the value of a claim is what it refuses. */
function check<R>(step: () => R, claim: Rejection): R {
  try {
    return step()
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : ''
    throw rejection(code === 'FAST_JWT_INVALID_CLAIM_VALUE' ? claim : (CODES[code] ?? 'malformed'))
  }
}

interface Verified {
  readonly claims: TokenClaims
  readonly principal: Principal
  readonly expiresAtMs: number
}

const BEARER = /^Bearer +(\S+)$/i

/** The core's `auth`. The host keeps its own hooks; a module passes `authorize` to its routes. */
export function createAuth(app: FastifyInstance, options: AuthOptions): Auth {
  const { registry } = options
  const tokens = createTokens(app, options)
  const counted = authMetrics(registry)
  // Checking a signature costs more than a cached answer, so a token's is checked once; its time and revocation always.
  const known = new LRUCache<string, Verified>({ max: VERIFIED_MAX })
  let isRevoked: RevocationCheck | undefined

  const enterTenant: Auth['enterTenant'] = (request, id) => {
    const enter = (tenant: Tenant) => {
      request.setDecorator('tenant', tenant)
      return tenant
    }
    const tenant = options.enterTenant(id)
    return tenant instanceof Promise ? tenant.then(enter) : enter(tenant)
  }

  const verified = (header: string | undefined): Verified => {
    if (header === undefined) throw rejection('missing')
    const found = known.get(header)
    if (found !== undefined) {
      if (Date.now() < found.expiresAtMs) return found
      known.delete(header)
    }
    const token = BEARER.exec(header)?.[1]
    if (token === undefined) throw rejection('malformed')
    const claims = tokens.verify(token)
    const principal = Object.freeze({
      subject: claims.sub,
      role: claims.role,
      tenant: claims.tenant,
      session: claims.jti
    })
    const fresh = { claims, principal, expiresAtMs: claims.exp * 1000 }
    known.set(header, fresh)
    return fresh
  }

  /** Undefined when the request may go on, else the problem; a promise when the database has to be asked. */
  const decide = (request: FastifyRequest): undefined | Error | Promise<undefined | Error> => {
    const required = requiredRole(request)
    if (required === 'public') return undefined
    if (required === undefined) return counted.denied('none', 'undeclared', new RouteClosed({}))
    const { claims, principal } = verified(request.headers.authorization)
    // Whoever is refused below is named in the audit trail.
    request.setDecorator('principal', principal)
    const judge = (revoked: boolean): undefined | Error => {
      if (revoked) return counted.rejected(rejection('revoked'))
      const { role } = principal
      return RANK[role] >= RANK[required] ? undefined : counted.denied(role, 'role', new Forbidden({ required, role }))
    }
    const tenant = enterTenant(request, claims.tenant)
    if (tenant instanceof Promise) {
      return tenant.then((entered) => isRevoked?.(claims, entered) ?? false).then(judge)
    }
    const revoked = isRevoked?.(claims, tenant) ?? false
    return typeof revoked === 'boolean' ? judge(revoked) : revoked.then(judge)
  }

  const authorize: onRequestHookHandler = (request, _reply, done) => {
    let outcome: ReturnType<typeof decide>
    try {
      outcome = decide(request)
    } catch (error) {
      outcome = counted.rejected(error)
    }
    if (outcome instanceof Promise) outcome.then(done, (error) => done(counted.rejected(error)))
    else done(outcome)
  }

  return {
    ...tokens,
    authorize,
    enterTenant,
    claims: (request) => verified(request.headers.authorization).claims,
    refuseWhen: (check) => {
      if (isRevoked !== undefined) throw new Error('only one module may say which tokens are revoked')
      isRevoked = check
    }
  }
}

function requiredRole(request: FastifyRequest): Role | 'public' | undefined {
  const { config } = request.routeOptions
  const role: unknown = 'role' in config ? config.role : undefined
  if (role === 'public') return role
  return ROLES.find((each) => each === role)
}

function authMetrics(registry: Registry) {
  const rejections = new Counter({
    name: 'auth_token_rejections_total',
    help: 'Bearer tokens refused.',
    labelNames: ['reason'] as const,
    registers: [registry]
  })
  const denials = new Counter({
    name: 'authz_denials_total',
    help: 'Requests refused for want of a role, or because the route declares none.',
    labelNames: ['role', 'kind'] as const,
    registers: [registry]
  })
  for (const reason of REJECTIONS) rejections.inc({ reason }, 0)
  for (const role of ROLES) denials.inc({ role, kind: 'role' }, 0)
  denials.inc({ role: 'none', kind: 'undeclared' }, 0)
  return {
    rejected: (error: unknown): Error => {
      if (error instanceof Unauthenticated) rejections.inc({ reason: String(error.params.reason) })
      return error instanceof Error ? error : new Error('authorization failed', { cause: error })
    },
    denied: (role: Role | 'none', kind: 'role' | 'undeclared', error: Error): Error => {
      denials.inc({ role, kind })
      return error
    }
  }
}
