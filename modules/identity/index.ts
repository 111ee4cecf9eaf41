import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { identityMigrations } from '../../migrations/identity.js'
import type { Answers, Audit, Auth, EnterModule, Migrations, ModuleOptions } from '../../plugins/contracts.js'
import { identityMetrics } from './metrics.js'
import { createPasswordHasher } from './passwords.js'
import { createRevocationList } from './revocations.js'
import { sessionRoutes, userRoutes } from './routes.js'
import { createLoginThrottle } from './throttle.js'

export interface IdentityOptions extends ModuleOptions {
  /** How long a token from a sign-in counts. */
  accessTokenTtlSeconds?: number
  /** The tenant of a sign-in that names none. */
  defaultTenant?: string
}

const TTL_SECONDS = 3_600
const TTL_SECONDS_MAX = 86_400

/** Users, sign-in and sign-out; says to the core which tokens no longer count. */
async function identity(app: FastifyInstance, options: IdentityOptions): Promise<void> {
  const { accessTokenTtlSeconds: ttlSeconds = TTL_SECONDS, defaultTenant = 'main' } = options
  if (!Number.isInteger(ttlSeconds) || ttlSeconds < 1 || ttlSeconds > TTL_SECONDS_MAX) {
    throw new RangeError(`the option accessTokenTtlSeconds may be 1–${TTL_SECONDS_MAX}, not ${ttlSeconds}`)
  }
  app.getDecorator<EnterModule>('enterModule')(app, options)
  app.getDecorator<Migrations>('migrations').add({ module: 'identity', migrations: identityMigrations })
  const auth = app.getDecorator<Auth>('auth')
  const metrics = identityMetrics(app.getDecorator<Registry>('registry'))
  const revocations = createRevocationList()
  auth.refuseWhen(revocations.isRevoked)
  const context = {
    answers: app.getDecorator<Answers>('answers'),
    auth,
    audit: app.getDecorator<Audit>('audit'),
    metrics,
    revocations,
    hasher: createPasswordHasher((seconds) => metrics.hashing.observe(seconds)),
    throttle: createLoginThrottle(),
    ttlSeconds,
    defaultTenant
  }
  await app.register(sessionRoutes, context)
  await app.register(userRoutes, context)
}

export { identityMigrations as migrations } from '../../migrations/identity.js'
export { createUser, disableUser, issueToken, listUsers, recordToken, setPassword } from './console.js'
export { personalData, rectifyUser, userExists } from './personal.js'

export default fp(identity, {
  name: 'inventory-enterprise/identity',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'answers', 'registry', 'audit', 'auth', 'migrations'],
    request: ['tenant', 'principal']
  }
})
