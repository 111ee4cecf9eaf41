import type { FastifyRequest } from 'fastify'
import { type Agent, type Audit, type Auth, agentOf, Problem, type Tenant } from '../../plugins/contracts.js'
import type { Login, LoginAnswer } from '../../schemas/identity.js'
import { LoginFailed, LoginThrottled } from './errors.js'
import type { IdentityMetrics } from './metrics.js'
import type { PasswordHasher } from './passwords.js'
import { type Account, createIdentityStore, usernameKey } from './store.js'
import type { LoginThrottle } from './throttle.js'

export interface SignIn {
  readonly auth: Auth
  readonly audit: Audit
  readonly hasher: PasswordHasher
  readonly throttle: LoginThrottle
  readonly metrics: IdentityMetrics
  readonly ttlSeconds: number
  readonly defaultTenant: string
}

/**
 * A token for a name and a password. An unknown tenant, an unknown user, a disabled one and a wrong password are the same
 * answer after the same work.
 * @throws LoginFailed, LoginThrottled, HashingBusy
 */
export async function signIn(service: SignIn, request: FastifyRequest, login: Login): Promise<LoginAnswer> {
  const { auth, metrics, ttlSeconds } = service
  const tenantId = login.tenant ?? service.defaultTenant
  const attempt = { tenant: tenantId, username: usernameKey(login.username), address: request.ip }
  return throttled(service, attempt, async () => {
    const tenant = await enter(auth, request, tenantId)
    const account = tenant === undefined ? undefined : await createIdentityStore(tenant.db).byUsername(login.username)
    const matches = await service.hasher.verify(account?.passwordHash, login.password)
    if (!matches || tenant === undefined || account === undefined || account.user.disabled) {
      // Whoever it was meant to be is named by id; what was typed is not kept, since passwords end up in the wrong field.
      const known = account === undefined ? {} : { object: { type: 'user', id: account.user.id } }
      service.audit.note(request, { action: 'auth.login.failed', outcome: 'failure', ...known })
      return undefined
    }
    await strengthen(service.hasher, tenant, account, login.password)
    const { user, epoch } = account
    await tenant.transact(async (tx) => tx.audit({ action: 'auth.login' }), signedIn(request, user))
    const accessToken = auth.sign({ subject: user.id, role: user.role, tenant: tenant.id, epoch }, ttlSeconds)
    metrics.issued.inc()
    return { accessToken, tokenType: 'Bearer' as const, expiresInSeconds: ttlSeconds, user }
  })
}

const signedIn = (request: FastifyRequest, { id, role }: LoginAnswer['user']): Agent => ({
  ...agentOf(request),
  actor: id,
  role,
  method: 'password'
})

/** Runs a check of a password under the limits; undefined from it is a failure. @throws LoginFailed, LoginThrottled */
export async function throttled<R>(
  { throttle, metrics }: Pick<SignIn, 'throttle' | 'metrics'>,
  attempt: Parameters<LoginThrottle['take']>[0],
  check: () => Promise<R | undefined>
): Promise<R> {
  const retryAfterSeconds = throttle.take(attempt)
  if (retryAfterSeconds > 0) {
    metrics.attempts.inc({ outcome: 'throttled' })
    throw new LoginThrottled({ retryAfterSeconds })
  }
  const result = await check()
  metrics.attempts.inc({ outcome: result === undefined ? 'failure' : 'success' })
  if (result === undefined) throw new LoginFailed({})
  throttle.succeeded(attempt)
  return result
}

async function enter(auth: Auth, request: FastifyRequest, tenantId: string): Promise<Tenant | undefined> {
  try {
    return await auth.enterTenant(request, tenantId)
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return undefined
    throw error
  }
}

/** The password is at hand only now: a hash made at a lower cost is replaced. */
async function strengthen(hasher: PasswordHasher, tenant: Tenant, account: Account, password: string): Promise<void> {
  if (!hasher.isOutdated(account.passwordHash)) return
  const stronger = await hasher.hash(password)
  await tenant.transact((tx) => createIdentityStore(tx.db).replaceHash(account.user.id, account.passwordHash, stronger))
}
