import type { FastifyReply, FastifyRequest } from 'fastify'
import {
  type Agent,
  type Audit,
  type Auth,
  agentOf,
  Problem,
  type Tenant,
  type TokenClaims,
  type TokenUse
} from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { Login, LoginAnswer, SignedIn } from '../../schemas/identity.js'
import { LoginFailed, LoginThrottled, SecondFactorFailed, SessionEnded } from './errors.js'
import type { IdentityMetrics } from './metrics.js'
import { isTooShortAlone } from './password-rules.js'
import type { PasswordHasher } from './passwords.js'
import {
  type Device,
  endSession,
  type OpenedSession,
  openSession,
  type Proof,
  type RefreshRefusal,
  rotate,
  type SessionLife,
  tenantOfRefreshToken
} from './session-store.js'
import { type Account, changeUser, createIdentityStore, usernameKey } from './store.js'
import type { LoginThrottle } from './throttle.js'

/** What a second factor has to say of a user. */
export interface SecondFactor {
  /** The methods that the user has enrolled. */
  methods(tenant: Tenant, userId: string): Promise<readonly string[]>
  /** Whether nobody of this role works without one. */
  required(role: Role): boolean
}

export interface SignIn {
  readonly auth: Auth
  readonly audit: Audit
  readonly hasher: PasswordHasher
  readonly throttle: LoginThrottle
  readonly metrics: IdentityMetrics
  readonly secondFactor: SecondFactor
  readonly accessSeconds: number
  readonly life: SessionLife
  readonly defaultTenant: string
  /** The one path that is sent the refresh cookie. */
  readonly refreshPath: string
}

/** How long the step after the password may take. */
const PENDING_SECONDS: Readonly<Record<TokenUse, number>> = { enrol: 900, 'second-factor': 300, password: 900 }
/** RFC 8176, what proves more than a password does: a code, a key, several factors at once. */
const STRONG: ReadonlySet<string> = new Set(['otp', 'hwk', 'swk', 'mfa'])

/** Who has proved who it is by now, and what for. */
interface Passed extends Proof {
  readonly tenant: Tenant
  /** Tokens in cookies. */
  readonly cookie: boolean
  /** The session that the new one takes the place of. */
  readonly replaces?: string | undefined
}

/**
 * A session for a name and a password, or the step that is left. An unknown tenant, an unknown user, a disabled one and a wrong
 * password are the same answer after the same work.
 * @throws LoginFailed, LoginThrottled, HashingBusy
 */
export async function signIn(
  service: SignIn,
  request: FastifyRequest,
  reply: FastifyReply,
  login: Login
): Promise<LoginAnswer> {
  const { auth, hasher } = service
  const cookie = login.cookie === true
  if (cookie) auth.requireSameSite(request)
  const tenantId = login.tenant ?? service.defaultTenant
  const attempt = { tenant: tenantId, username: usernameKey(login.username), address: request.ip }
  const found = await throttled(service, attempt, async () => {
    const tenant = await enter(auth, request, tenantId)
    const account = tenant === undefined ? undefined : await createIdentityStore(tenant.db).byUsername(login.username)
    const matches = await hasher.verify(account?.passwordHash, login.password)
    if (!matches || tenant === undefined || account === undefined || account.user.disabled) {
      // Whoever it was meant to be is named by id; what was typed is not kept, since passwords end up in the wrong field.
      const known = account === undefined ? {} : { object: { type: 'user', id: account.user.id } }
      service.audit.note(request, { action: 'auth.login.failed', outcome: 'failure', ...known })
      return undefined
    }
    await strengthen(hasher, tenant, account, login.password)
    return { tenant, account: await demandLonger(service, tenant, account, login.password) }
  })
  const replaces = presentSession(auth, request, found.tenant, found.account)
  return proceed(service, request, reply, { ...found, methods: ['pwd'], authenticatedAt: Date.now(), cookie, replaces })
}

/** What follows a proof: a second one where the user has or needs it, else the session. */
export async function proceed(
  service: SignIn,
  request: FastifyRequest,
  reply: FastifyReply,
  passed: Passed
): Promise<LoginAnswer> {
  const { auth, secondFactor } = service
  const { tenant, account, methods, replaces } = passed
  const enrolled = isStrong(methods) ? [] : await secondFactor.methods(tenant, account.user.id)
  const use = missingStep(secondFactor, account, methods, enrolled)
  if (use === undefined) return beginSession(service, request, reply, passed)
  const { user, epoch } = account
  const seconds = PENDING_SECONDS[use]
  const subject = { subject: user.id, role: user.role, tenant: tenant.id, epoch, methods, use }
  const { authenticatedAt } = passed
  const pendingToken = auth.sign(
    { ...subject, authenticatedAt, ...(replaces === undefined ? {} : { session: replaces }) },
    seconds
  )
  return { step: use, methods: [...enrolled], pendingToken, expiresInSeconds: seconds }
}

export const isStrong = (methods: readonly string[]): boolean => methods.some((method) => STRONG.has(method))

/** Every way in asks this: sign-in, refresh, API tokens. */
function missingStep(
  secondFactor: SecondFactor,
  { user }: Account,
  methods: readonly string[],
  enrolled: readonly string[]
): TokenUse | undefined {
  if (!isStrong(methods) && enrolled.length > 0) return 'second-factor'
  if (!isStrong(methods) && secondFactor.required(user.role)) return 'enrol'
  return user.mustChangePassword ? 'password' : undefined
}

async function beginSession(
  service: SignIn,
  request: FastifyRequest,
  reply: FastifyReply,
  passed: Passed
): Promise<SignedIn> {
  const { tenant, account, replaces } = passed
  const { id, role } = account.user
  const agent = { ...agentOf(request), actor: id, role, method: passed.methods.join('+') }
  const opened = await tenant.transact(
    async (tx) => {
      if (replaces !== undefined) await endSession(tx, tenant, replaces, account.user.id)
      tx.audit({ action: 'auth.login' })
      return openSession(tx, tenant, passed, deviceOf(request), service.life)
    },
    { agent }
  )
  return answerSession(service, request, reply, tenant, opened, passed.cookie)
}

const deviceOf = (request: FastifyRequest): Device => ({
  address: request.ip,
  userAgent: request.headers['user-agent'] ?? ''
})

/** The answer that hands over a session: its tokens in the body, or in cookies. */
function answerSession(
  service: SignIn,
  request: FastifyRequest,
  reply: FastifyReply,
  tenant: Tenant,
  { session, refreshToken }: OpenedSession,
  cookie: boolean
): SignedIn {
  const { auth, metrics, life, refreshPath } = service
  const { user, epoch } = session.account
  const leftSeconds = Math.max(1, Math.floor((session.expiresAt - Date.now()) / 1000))
  const expiresInSeconds = Math.min(service.accessSeconds, life.idleSeconds, leftSeconds)
  const accessToken = auth.sign(
    {
      subject: user.id,
      role: user.role,
      tenant: tenant.id,
      epoch,
      session: session.id,
      methods: session.methods,
      authenticatedAt: session.authenticatedAt
    },
    expiresInSeconds
  )
  metrics.issued.inc()
  const shown = { expiresInSeconds, sessionExpiresAt: new Date(session.expiresAt).toISOString(), user }
  reply.header('cache-control', 'no-store')
  if (!cookie) return { accessToken, refreshToken, tokenType: 'Bearer', ...shown }
  auth.cookies.set(request, reply, {
    accessToken,
    accessSeconds: expiresInSeconds,
    refreshToken,
    refreshSeconds: Math.min(life.idleSeconds, leftSeconds),
    refreshPath
  })
  return { tokenType: 'Cookie', ...shown }
}

/** New tokens for a refresh token. @throws SessionEnded */
export async function refresh(
  service: SignIn,
  request: FastifyRequest,
  reply: FastifyReply,
  token: string,
  cookie: boolean
): Promise<SignedIn> {
  const { auth, life, secondFactor, refreshPath } = service
  const refuse = (reason: RefreshRefusal | 'second-factor') => {
    service.metrics.refreshRejections.inc({ reason })
    if (cookie) auth.cookies.clear(request, reply, refreshPath)
    return new SessionEnded({ reason })
  }
  const tenantId = tenantOfRefreshToken(token)
  const tenant = tenantId === undefined ? undefined : await enter(auth, request, tenantId)
  if (tenant === undefined) throw refuse('unknown')
  // Who it is, the token tells only within the transaction.
  const known: { agent: Agent } = { agent: agentOf(request) }
  const opened = await tenant.transact(async (tx) => {
    const rotated = await rotate(tx, tenant, token, life)
    if (typeof rotated === 'string') return rotated
    const { account, methods, id } = rotated.session
    known.agent = { ...known.agent, actor: account.user.id, role: account.user.role, method: methods.join('+') }
    tx.audit({ action: 'auth.refresh', object: { type: 'session', id } })
    return rotated
  }, known)
  if (typeof opened === 'string') throw refuse(opened)
  const { account, methods, id } = opened.session
  const enrolled = isStrong(methods) ? [] : await secondFactor.methods(tenant, account.user.id)
  if (missingStep(secondFactor, account, methods, enrolled) !== undefined) {
    await tenant.transact((tx) => endSession(tx, tenant, id, account.user.id), known)
    throw refuse('second-factor')
  }
  return answerSession(service, request, reply, tenant, opened, cookie)
}

/** The session that the caller already has here: signing in again takes its place (ASVS 7.2.4). */
function presentSession(auth: Auth, request: FastifyRequest, tenant: Tenant, account: Account): string | undefined {
  let claims: TokenClaims
  try {
    claims = auth.claims(request)
  } catch {
    return undefined
  }
  return claims.tenant === tenant.id && claims.sub === account.user.id ? claims.sid : undefined
}

/**
 * Runs a check of a password, or of a second factor, under the limits; undefined from it is a failure.
 * @throws LoginFailed or SecondFactorFailed, LoginThrottled
 */
export async function throttled<R>(
  { throttle, metrics }: Pick<SignIn, 'throttle' | 'metrics'>,
  attempt: Parameters<LoginThrottle['take']>[0],
  check: () => Promise<R | undefined>,
  what: 'password' | 'second-factor' = 'password'
): Promise<R> {
  const attempts = what === 'password' ? metrics.attempts : metrics.factors
  const retryAfterSeconds = await throttle.take(attempt)
  if (retryAfterSeconds > 0) {
    attempts.inc({ outcome: 'throttled' })
    throw new LoginThrottled({ retryAfterSeconds })
  }
  const result = await check()
  attempts.inc({ outcome: result === undefined ? 'failure' : 'success' })
  if (result === undefined) throw what === 'password' ? new LoginFailed({}) : new SecondFactorFailed({})
  await throttle.succeeded(attempt)
  return result
}

/** Undefined when there is no such tenant, which is not told to whoever signs in. */
export async function enter(auth: Auth, request: FastifyRequest, tenantId: string): Promise<Tenant | undefined> {
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

/** Neither is its length known at another time: one that has to do alone what it was not made for must be changed. */
async function demandLonger(
  { secondFactor }: SignIn,
  tenant: Tenant,
  account: Account,
  password: string
): Promise<Account> {
  const { user } = account
  if (user.mustChangePassword || !isTooShortAlone(password)) return account
  if (secondFactor.required(user.role) || (await secondFactor.methods(tenant, user.id)).length > 0) return account
  const changes = { mustChangePassword: true }
  return (await tenant.transact((tx) => changeUser(tx, tenant, user.id, changes))) ?? account
}
