import { createHash } from 'node:crypto'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { type Answers, access, type Principal, type Tenant } from '../../plugins/contracts.js'
import { List, problems } from '../../schemas/common.js'
import {
  Login,
  LoginAnswer,
  Me,
  PasswordChange,
  User,
  UserCreate,
  UserListQuery,
  UserParams,
  UserPatch
} from '../../schemas/identity.js'
import { NoOwnPassword, UserNotFound, UsernameTaken } from './errors.js'
import { checkPassword } from './passwords.js'
import type { RevocationList } from './revocations.js'
import { type SignIn, signIn, throttled } from './sign-in.js'
import { createIdentityStore, usernameKey } from './store.js'

export interface RouteContext extends SignIn {
  readonly answers: Answers
  readonly revocations: RevocationList
}

const NAMESPACE = 'identity'
const tags = ['identity']
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
const principalOf = (request: FastifyRequest) => request.getDecorator<Principal>('principal')

/** Signing in and out, and what the caller may do with the own account. */
export const sessionRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, auth, hasher, revocations } = context

  app.post(
    '/auth/login',
    {
      config: access('public', 'sign-in'),
      schema: { tags, summary: 'Sign in', body: Login, response: { 200: LoginAnswer, ...problems } }
    },
    // Not an idempotent write: its answer is a secret, and must not be kept.
    async (request, reply) => {
      reply.header('cache-control', 'no-store')
      return signIn(context, request, request.body)
    }
  )

  app.post(
    '/auth/logout',
    { config: access('viewer'), schema: { tags, summary: 'Sign out', response: { 204: Type.Null(), ...problems } } },
    async (request, reply) => {
      const { jti, sub, exp } = auth.claims(request)
      const tenant = tenantOf(request)
      return answers.write(request, reply, 204, async (tx) => {
        await createIdentityStore(tx.db).revokeToken(jti, sub, exp * 1000)
        tx.afterCommit(() => revocations.tokenRevoked(tenant, jti, exp * 1000))
      })
    }
  )

  app.get(
    '/auth/me',
    {
      config: access('viewer'),
      schema: { tags, summary: 'Who the token speaks for', response: { 200: Me, ...problems } }
    },
    async (request, reply) => {
      const { subject, role, tenant } = principalOf(request)
      return answers.read(request, reply, NAMESPACE, `me ${subject} ${role}`, async () => {
        const account = await createIdentityStore(tenantOf(request).db).byId(subject)
        return { subject, role, tenant, user: account?.user ?? null }
      })
    }
  )

  app.post(
    '/auth/password',
    {
      config: access('viewer', 'sign-in'),
      schema: {
        tags,
        summary: 'Change the own password; ends all tokens of the user',
        body: PasswordChange,
        response: { 204: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { currentPassword, newPassword } = request.body
      const account = await createIdentityStore(tenant.db).byId(principalOf(request).subject)
      if (account === undefined) throw new NoOwnPassword({})
      const { id, username } = account.user
      const attempt = { tenant: tenant.id, username: usernameKey(username), address: request.ip }
      // Else a stolen token would be a way to guess the password.
      await throttled(context, attempt, async () =>
        (await hasher.verify(account.passwordHash, currentPassword)) ? true : undefined
      )
      checkPassword(newPassword, { username })
      const passwordHash = await hasher.hash(newPassword)
      await concealPassword(context, request, 'newPassword')
      return answers.write(request, reply, 204, async (tx) => {
        const changed = await createIdentityStore(tx.db).updateUser(id, { passwordHash })
        if (changed === undefined) throw new UserNotFound({ id })
        tx.invalidate(NAMESPACE)
        tx.afterCommit(() => revocations.tokensEnded(tenant, id, changed.epoch))
      })
    }
  )
}

/** The administrator's view of the users. */
export const userRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, hasher, revocations } = context
  const config = access('admin')

  app.get(
    '/users',
    {
      config,
      schema: { tags, summary: 'List users', querystring: UserListQuery, response: { 200: List(User), ...problems } }
    },
    async (request, reply) => {
      const { limit = 50, cursor } = request.query
      return answers.read(request, reply, NAMESPACE, `users ${limit} ${cursor ?? ''}`, async () => {
        const store = createIdentityStore(tenantOf(request).db)
        const rows = await store.page(limit + 1, cursor)
        const data = rows.slice(0, limit)
        const nextCursor = rows.length > limit ? (data.at(-1)?.id ?? null) : null
        return { data, page: { limit, nextCursor, total: await store.count() } }
      })
    }
  )

  app.post(
    '/users',
    { config, schema: { tags, summary: 'Create a user', body: UserCreate, response: { 201: User, ...problems } } },
    async (request, reply) => {
      const { username, displayName = username, role, password } = request.body
      checkPassword(password, { username })
      const passwordHash = await hasher.hash(password)
      await concealPassword(context, request, 'password')
      return answers.write(request, reply, 201, async (tx) => {
        const user = await createIdentityStore(tx.db).insertUser({ username, displayName, role, passwordHash })
        if (user === undefined) throw new UsernameTaken({ username })
        tx.invalidate(NAMESPACE)
        reply.header('location', `${app.prefix}/users/${user.id}`)
        return user
      })
    }
  )

  app.get(
    '/users/:id',
    { config, schema: { tags, summary: 'Read a user', params: UserParams, response: { 200: User, ...problems } } },
    async (request, reply) => {
      const { id } = request.params
      return answers.read(request, reply, NAMESPACE, `user ${id}`, async () => {
        const account = await createIdentityStore(tenantOf(request).db).byId(id)
        if (account === undefined) throw new UserNotFound({ id })
        return account.user
      })
    }
  )

  app.patch(
    '/users/:id',
    {
      config,
      schema: {
        tags,
        summary: 'Change a user; another role, another password or disabling ends all of the user’s tokens',
        params: UserParams,
        body: UserPatch,
        response: { 200: User, ...problems }
      }
    },
    async (request, reply) => {
      const { password, ...changes } = request.body
      if (password === undefined) return change(request, reply, changes)
      const account = await createIdentityStore(tenantOf(request).db).byId(request.params.id)
      if (account === undefined) throw new UserNotFound(request.params)
      checkPassword(password, account.user)
      const passwordHash = await hasher.hash(password)
      await concealPassword(context, request, 'password')
      return change(request, reply, { ...changes, passwordHash })
    }
  )

  app.delete(
    '/users/:id',
    {
      config,
      schema: {
        tags,
        summary: 'Disable a user; the history keeps the id',
        params: UserParams,
        response: { 200: User, ...problems }
      }
    },
    async (request, reply) => change(request, reply, { disabled: true })
  )

  const change = (
    request: FastifyRequest<{ Params: { id: string } }>,
    reply: Parameters<Answers['write']>[1],
    changes: Parameters<ReturnType<typeof createIdentityStore>['updateUser']>[1]
  ) => {
    const { id } = request.params
    const tenant = tenantOf(request)
    return answers.write(request, reply, 200, async (tx) => {
      const store = createIdentityStore(tx.db)
      const before = await store.byId(id)
      if (before === undefined) throw new UserNotFound({ id })
      answers.requireMatch(request, reply, before.user)
      const after = await store.updateUser(id, changes)
      if (after === undefined) throw new UserNotFound({ id })
      tx.invalidate(NAMESPACE)
      tx.afterCommit(() => revocations.tokensEnded(tenant, id, after.epoch))
      return after.user
    })
  }
}

/**
 * With an `Idempotency-Key` a fast hash of the body is stored, and from that a password could be guessed at speed. So the
 * password in it is replaced by what is as dear to guess from as its argon2 hash, and the same for the same request.
 */
async function concealPassword(
  { hasher }: Pick<RouteContext, 'hasher'>,
  request: FastifyRequest,
  field: 'password' | 'newPassword'
): Promise<void> {
  const key = request.headers['idempotency-key']
  const { body } = request
  if (key === undefined || typeof body !== 'object' || body === null) return
  const given: Record<string, unknown> = { ...body }
  const salt = createHash('sha256')
    .update(`${principalOf(request).subject} ${key}`)
    .digest()
  given[field] = await hasher.fingerprint(String(given[field]), salt)
  // The current password is known to be right by now; its text is not needed either.
  delete given.currentPassword
  request.body = given
}
