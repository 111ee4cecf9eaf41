import { randomUUID } from 'node:crypto'
import fastifyJwt from '@fastify/jwt'
import Fastify, { type FastifyInstance } from 'fastify'
import { type Static, Type } from 'typebox'
import { TokenClaims } from '../schemas/common.js'
import type { Tokens } from './contracts.js'
import { Unauthenticated } from './http/errors.js'
import { shape } from './http/validation.js'

/** The one algorithm: a token never chooses how it is checked (RFC 8725, 3.1). */
const ALGORITHM = 'HS256'
/** RFC 9068: tells an access token from any other that the same keys may sign one day. */
const TOKEN_TYPE = 'at+jwt'
const TOKEN_LENGTH_MAX = 4096

/** Why a token is refused; the label of `auth_token_rejections_total` and the `reason` of the 401. */
export const REJECTIONS = [
  'missing',
  'malformed',
  'algorithm',
  'signature',
  'type',
  'issuer',
  'audience',
  'early',
  'expired',
  'revoked',
  'unknown'
] as const
type Rejection = (typeof REJECTIONS)[number]

// No key is ever taken from the token itself (jwk, jku, x5u, x5c), so a header that offers one is not ours.
const Decoded = Type.Object({
  header: Type.Object(
    { alg: Type.String(), kid: Type.String(), typ: Type.Optional(Type.String()) },
    { additionalProperties: false }
  ),
  payload: Type.Object({ iss: Type.Optional(Type.Unknown()) })
})

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
    sign: ({ subject, role, tenant, epoch, session, methods, authenticatedAt, use }, ttlSeconds) =>
      signer().sign({
        sub: subject,
        role,
        tenant,
        jti: randomUUID(),
        exp: Math.floor(Date.now() / 1000 + ttlSeconds),
        ...(epoch === undefined ? {} : { epoch }),
        ...(session === undefined ? {} : { sid: session }),
        ...(methods === undefined ? {} : { amr: methods }),
        ...(authenticatedAt === undefined ? {} : { auth_time: Math.floor(authenticatedAt / 1000) }),
        ...(use === undefined ? {} : { use })
      }),
    verify: (token) => {
      const decoded = decode(signer(), token)
      if (decoded.header.alg !== ALGORITHM) throw rejection('algorithm')
      const engine = engineOf(engines, decoded.header.kid)
      const claims = check(() => engine.verify<object>(token), decoded.payload.iss === issuer ? 'audience' : 'issuer')
      if (!shape(TokenClaims)(claims)) throw rejection('malformed')
      return claims
    }
  }
}

export const rejection = (reason: Rejection) => new Unauthenticated({ reason })

function engineOf(engines: ReadonlyMap<string, fastifyJwt.JWT>, id: string): fastifyJwt.JWT {
  const engine = engines.get(id)
  if (engine === undefined) throw rejection('signature')
  return engine
}

function decode(engine: fastifyJwt.JWT, token: string): Static<typeof Decoded> {
  if (token.length > TOKEN_LENGTH_MAX) throw rejection('malformed')
  const decoded = check(() => engine.decode<object>(token), 'malformed')
  if (!shape(Decoded)(decoded)) throw rejection('malformed')
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
