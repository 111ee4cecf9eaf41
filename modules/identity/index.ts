import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { identityMigrations } from '../../migrations/identity.js'
import type {
  Answers,
  Audit,
  Auth,
  EnterModule,
  Migrations,
  ModuleOptions,
  Periodic,
  Seal,
  SharedStore
} from '../../plugins/contracts.js'
import { apiTokens, forgetApiTokens, noteUses } from './api-tokens.js'
import { takeCensus } from './census.js'
import { identityMetrics } from './metrics.js'
import type { OidcOptions } from './oidc.js'
import { createPasswordHasher } from './passwords.js'
import { forgetTokenEnds, isRevoked, TOKEN_LIFE_SECONDS_MAX } from './revocations.js'
import { accountRoutes, userRoutes } from './routes.js'
import { linkRoutes } from './routes-links.js'
import { passkeyRoutes } from './routes-passkeys.js'
import { secondFactorRoutes } from './routes-second-factor.js'
import { sessionRoutes } from './routes-sessions.js'
import { tokenRoutes } from './routes-tokens.js'
import { createSecondFactors, lacksFactor, type SecondFactorPolicy } from './second-factor.js'
import { forgetSessions } from './session-store.js'
import { createLoginThrottle } from './throttle.js'

export interface IdentityOptions extends ModuleOptions {
  /** How long an access token counts. Default: 15 minutes. */
  accessTokenTtlSeconds?: number
  /** A session that is not refreshed for so long ends. Default: an hour. */
  sessionIdleSeconds?: number
  /** So long after the sign-in a session ends in any case. Default: a day. */
  sessionTtlSeconds?: number
  /** The tenant of a sign-in that names none. */
  defaultTenant?: string
  /** `required` (the default): managers and administrators need a second factor. */
  secondFactor?: SecondFactorPolicy
  /** Where users find the service: links are built from it, and passkeys belong to it. Never taken from a request. */
  publicUrl?: string
  /** Signing in at an identity provider as well. */
  oidc?: OidcOptions
  /** The clock of codes and passkeys, in milliseconds. */
  now?: () => number
}

/** NIST SP 800-63B Rev. 4, 2.2.3: at AAL2 an hour without activity, a day in all. */
const DEFAULTS = { accessTokenTtlSeconds: 900, sessionIdleSeconds: 3_600, sessionTtlSeconds: 86_400 }
/** As a service on this machine is found; a passkey for it works in a browser here and nowhere else. */
const DEFAULT_PUBLIC_URL = 'http://localhost:8083'
const SESSION_SECONDS_MAX = 31 * 86_400
const CENSUS_SECONDS = 30

/** Users, sign-in and sign-out; says to the core which tokens no longer count. */
async function identity(app: FastifyInstance, options: IdentityOptions): Promise<void> {
  const { accessTokenTtlSeconds, sessionIdleSeconds, sessionTtlSeconds } = lives(options)
  app.getDecorator<EnterModule>('enterModule')(app, options)
  app.getDecorator<Migrations>('migrations').add({ module: 'identity', migrations: identityMigrations })
  const auth = app.getDecorator<Auth>('auth')
  const metrics = identityMetrics(app.getDecorator<Registry>('registry'))
  const { secondFactor: policy = 'required', publicUrl = DEFAULT_PUBLIC_URL, now = Date.now } = options
  const seal = app.getDecorator<Seal>('seal')
  const secondFactor = createSecondFactors({ seal, policy, publicUrl, now })
  auth.refuseWhen(
    noteUses((claims, tenant) => lacksFactor(secondFactor, claims) || metrics.checks(isRevoked(claims, tenant)))
  )
  auth.accept(apiTokens(secondFactor))
  const context = {
    answers: app.getDecorator<Answers>('answers'),
    auth,
    audit: app.getDecorator<Audit>('audit'),
    metrics,
    hasher: createPasswordHasher((seconds) => metrics.hashing.observe(seconds)),
    throttle: createLoginThrottle(app.getDecorator<SharedStore | null>('sharedStore'), {
      exhausted: metrics.lockedOut
    }),
    secondFactor,
    publicUrl,
    accessSeconds: accessTokenTtlSeconds,
    life: { idleSeconds: sessionIdleSeconds, absoluteSeconds: sessionTtlSeconds },
    defaultTenant: options.defaultTenant ?? 'main',
    refreshPath: `${app.prefix}/auth/refresh`
  }
  await app.register(sessionRoutes, context)
  await app.register(accountRoutes, context)
  await app.register(userRoutes, context)
  await app.register(tokenRoutes, context)
  await app.register(secondFactorRoutes, context)
  await app.register(passkeyRoutes, context)
  await app.register(linkRoutes, context)
  if (options.oidc !== undefined) {
    const { oidcRoutes } = await import('./oidc-routes.js')
    await app.register(oidcRoutes, { ...context, oidc: options.oidc, seal })
  }
  const periodic = app.getDecorator<Periodic>('periodic')
  periodic.every(CENSUS_SECONDS, 'identity census', async (tenant) =>
    metrics.counted(tenant.id, await takeCensus(tenant, context.life))
  )
  periodic.every(3_600, 'sessions', (tenant) =>
    tenant.transact(async (tx) => {
      await forgetSessions(tx)
      await forgetApiTokens(tx)
      await forgetTokenEnds(tx)
    })
  )
}

function lives(options: IdentityOptions): typeof DEFAULTS {
  const { accessTokenTtlSeconds, sessionIdleSeconds, sessionTtlSeconds } = options
  const chosen = {
    accessTokenTtlSeconds: accessTokenTtlSeconds ?? DEFAULTS.accessTokenTtlSeconds,
    sessionIdleSeconds: sessionIdleSeconds ?? DEFAULTS.sessionIdleSeconds,
    sessionTtlSeconds: sessionTtlSeconds ?? DEFAULTS.sessionTtlSeconds
  }
  for (const [name, seconds] of Object.entries(chosen)) {
    const most = name === 'accessTokenTtlSeconds' ? TOKEN_LIFE_SECONDS_MAX : SESSION_SECONDS_MAX
    if (!Number.isInteger(seconds) || seconds < 1 || seconds > most) {
      throw new RangeError(`the option ${name} may be 1–${most}, not ${seconds}`)
    }
  }
  return chosen
}

export { identityMigrations as migrations } from '../../migrations/identity.js'
export {
  createUser,
  disableUser,
  issueToken,
  linkFor,
  listUsers,
  recordAtConsole,
  removeSecondFactor,
  setPassword,
  setupLinkFor
} from './console.js'
export type { OidcOptions } from './oidc.js'
export { personalData, rectifyUser, userExists } from './personal.js'

export default fp(identity, {
  name: 'inventory-enterprise/identity',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'answers', 'registry', 'audit', 'auth', 'migrations', 'seal', 'periodic', 'sharedStore'],
    request: ['tenant', 'principal']
  }
})
