import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { access, agentOf, type Principal, type Tenant, type Transaction } from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { LoginAnswer, UserParams } from '../../schemas/identity.js'
import {
  FactorAdded,
  PasskeyOptions,
  RecoveryCodes,
  SecondFactorProof,
  SecondFactorState,
  TotpConfirmation,
  TotpEnrolment
} from '../../schemas/identity-accounts.js'
import { NoOwnPassword, NoStepPending, NotEnrolled, SecondFactorMandatory, UserNotFound } from './errors.js'
import { endTokens } from './revocations.js'
import type { RouteContext } from './routes.js'
import { type ProofMethod, removeFactors, renewRecoveryCodes } from './second-factor.js'
import { createSecondFactorStore, isEnrolled } from './second-factor-store.js'
import { proceed, throttled } from './sign-in.js'
import { type Account, changeUser, createIdentityStore, usernameKey } from './store.js'

const tags = ['identity']
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
const subjectOf = (request: FastifyRequest) => request.getDecorator<Principal>('principal').subject

/** Whoever may enrol: a user whose role demands it and who has none yet, and any user who has just proved who it is. */
export const enrolling = access('viewer', { pending: ['enrol'], fresh: true })
const changing = access('viewer', { fresh: true })

/** @throws NoOwnPassword for a token of the console, which belongs to no user */
export async function ownAccount(request: FastifyRequest): Promise<Account> {
  const account = await createIdentityStore(tenantOf(request).db).byId(subjectOf(request))
  if (account === undefined) throw new NoOwnPassword({})
  return account
}

/**
 * A new factor ends what was opened without it, and the caller, who has just shown it, goes on in a new session. Its answer holds
 * secrets, so it is not kept under an `Idempotency-Key`.
 */
export async function addFactor<R>(
  context: RouteContext,
  request: FastifyRequest,
  reply: FastifyReply,
  { method, cookie, add }: { method: ProofMethod; cookie: boolean; add: (tx: Transaction) => Promise<R> }
) {
  const { auth } = context
  if (cookie) auth.requireSameSite(request)
  const tenant = tenantOf(request)
  const { amr = [], auth_time: authTime } = auth.claims(request)
  const { user } = await ownAccount(request)
  const { added, recoveryCodes, account } = await tenant.transact(
    async (tx) => {
      const isFirst = !isEnrolled(await createSecondFactorStore(tx.db).factors(user.id))
      const added = await add(tx)
      const recoveryCodes = isFirst ? await renewRecoveryCodes(tx, user.id) : []
      tx.audit({ action: 'user.second-factor.add', object: { type: 'user', id: user.id }, details: { method } })
      return { added, recoveryCodes, account: await endAll(tx, tenant, user.id) }
    },
    { agent: agentOf(request) }
  )
  const methods = [...new Set([...amr, method])]
  const authenticatedAt = authTime === undefined ? Date.now() : authTime * 1000
  reply.header('cache-control', 'no-store')
  const session = await proceed(context, request, reply, { tenant, account, methods, authenticatedAt, cookie })
  return { added, recoveryCodes, session }
}

/** Ends all tokens and sessions of a user. @throws UserNotFound */
async function endAll(tx: Transaction, tenant: Tenant, id: string): Promise<Account> {
  const account = await changeUser(tx, tenant, id, { endTokens: true })
  if (account === undefined) throw new UserNotFound({ id })
  return account
}

/** @throws SecondFactorMandatory when nothing would be left and the role demands something */
export async function removeFactor(
  { secondFactor }: RouteContext,
  tx: Transaction,
  tenant: Tenant,
  { user }: Account,
  remove: () => Promise<unknown>
): Promise<void> {
  const store = createSecondFactorStore(tx.db)
  await remove()
  const isLeft = isEnrolled(await store.factors(user.id))
  if (!isLeft && secondFactor.required(user.role)) throw new SecondFactorMandatory({ role: user.role })
  if (!isLeft) await store.replaceRecoveryCodes(user.id, [])
  await endAll(tx, tenant, user.id)
}

/** Codes of an app, recovery codes, and the step of a sign-in that asks for one of them or for a passkey. */
export const secondFactorRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, auth, secondFactor } = context

  app.get(
    '/auth/2fa',
    {
      config: access('viewer', { pending: ['enrol', 'second-factor'] }),
      schema: { tags, summary: 'The own second factors', response: { 200: SecondFactorState, ...problems } }
    },
    async (request) => {
      const { role } = request.getDecorator<Principal>('principal')
      const factors = await secondFactor.of(tenantOf(request), subjectOf(request))
      return { required: secondFactor.required(role), enrolled: isEnrolled(factors), ...factors }
    }
  )

  app.post(
    '/auth/2fa/totp',
    {
      config: enrolling,
      schema: {
        tags,
        summary: 'A new secret for an authenticator app; it counts once a code of it was confirmed',
        response: { 200: TotpEnrolment, ...problems }
      }
    },
    async (request, reply) => {
      const { user } = await ownAccount(request)
      reply.header('cache-control', 'no-store')
      return secondFactor.startTotp(tenantOf(request), user)
    }
  )

  app.post(
    '/auth/2fa/totp/confirm',
    {
      config: enrolling,
      schema: {
        tags,
        summary: 'Confirm an authenticator app by a code; ends the user’s tokens and begins a new session',
        body: TotpConfirmation,
        response: { 200: FactorAdded, ...problems }
      }
    },
    async (request, reply) => {
      const { code, cookie = false } = request.body
      const add = await secondFactor.checkPendingTotp(tenantOf(request), subjectOf(request), code)
      const { recoveryCodes, session } = await addFactor(context, request, reply, { method: 'otp', cookie, add })
      return { recoveryCodes, session }
    }
  )

  app.delete(
    '/auth/2fa/totp',
    {
      config: changing,
      schema: {
        tags,
        summary: 'Give up the authenticator app; ends all tokens of the user',
        response: { 204: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const account = await ownAccount(request)
      const { id } = account.user
      return answers.write(request, reply, 204, async (tx) => {
        const store = createSecondFactorStore(tx.db)
        if (!(await store.factors(id)).totp) throw new NotEnrolled({})
        await removeFactor(context, tx, tenantOf(request), account, () => store.removeTotp(id))
      })
    }
  )

  app.post(
    '/auth/2fa/recovery-codes',
    {
      config: changing,
      schema: {
        tags,
        summary: 'New recovery codes in place of the earlier ones; each counts once, in place of the second factor',
        response: { 200: RecoveryCodes, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { id } = (await ownAccount(request)).user
      if (!isEnrolled(await secondFactor.of(tenant, id))) throw new NotEnrolled({})
      reply.header('cache-control', 'no-store')
      return { recoveryCodes: await tenant.transact((tx) => renewRecoveryCodes(tx, id), { agent: agentOf(request) }) }
    }
  )

  const answering = access('viewer', { pending: ['second-factor'] })
  app.post(
    '/auth/2fa/passkey/options',
    {
      config: answering,
      schema: {
        tags,
        summary: 'What a passkey has to sign as the second factor of this sign-in',
        response: { 200: PasskeyOptions, ...problems }
      }
    },
    async (request) => secondFactor.passkeys.secondFactorOptions(tenantOf(request), subjectOf(request))
  )

  app.post(
    '/auth/2fa/verify',
    {
      config: answering,
      schema: {
        tags,
        summary: 'Complete a sign-in by a code, a recovery code or a passkey',
        body: SecondFactorProof,
        response: { 200: LoginAnswer, ...problems }
      }
    },
    async (request, reply) => {
      const { cookie = false, ...proof } = request.body
      if (cookie) auth.requireSameSite(request)
      const { use, amr = [], auth_time: authTime = 0, sid, jti, exp } = auth.claims(request)
      if (use !== 'second-factor') throw new NoStepPending({})
      const tenant = tenantOf(request)
      const account = await ownAccount(request)
      const { id, username } = account.user
      const attempt = { tenant: tenant.id, username: `${usernameKey(username)} second factor`, address: request.ip }
      const method = await throttled(context, attempt, () => secondFactor.prove(tenant, id, proof), 'second-factor')
      await tenant.transact((tx) => endTokens(tx, tenant, { kind: 'token', key: jti, expiresAt: exp * 1000 }))
      const passed = { tenant, account, methods: [...amr, method], authenticatedAt: authTime * 1000, cookie }
      return proceed(context, request, reply, { ...passed, replaces: sid })
    }
  )

  app.delete(
    '/users/:id/second-factor',
    {
      config: access('admin', { fresh: true }),
      schema: {
        tags,
        summary: 'Take a user’s second factors away, for one who has lost them; ends all tokens of the user',
        params: UserParams,
        response: { 204: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      return answers.write(request, reply, 204, async (tx) => {
        await endAll(tx, tenantOf(request), id)
        await removeFactors(tx, id)
      })
    }
  )
}
