import { createHash } from 'node:crypto'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { type Answers, access, type Principal, type Tenant } from '../../plugins/contracts.js'
import { List, problems } from '../../schemas/common.js'
import { Me, PasswordChange, User, UserCreate, UserListQuery, UserParams, UserPatch } from '../../schemas/identity.js'
import { NoOwnPassword, UserNotFound, UsernameTaken } from './errors.js'
import { checkPassword } from './password-rules.js'
import { NO_PASSWORD } from './passwords.js'
import { removeFactors, type SecondFactors } from './second-factor.js'
import { type SignIn, throttled } from './sign-in.js'
import { addUser, changeUser, createIdentityStore, IDENTITY_CACHE, type UserChanges, usernameKey } from './store.js'

export interface RouteContext extends SignIn {
  readonly answers: Answers
  readonly secondFactor: SecondFactors
  /** Where users find the service; links are built from it, and passkeys belong to it. */
  readonly publicUrl: string
}

const tags = ['identity']
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
const principalOf = (request: FastifyRequest) => request.getDecorator<Principal>('principal')

/** What the caller may do with the own account. */
export const accountRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, hasher, secondFactor } = context

  app.get(
    '/auth/me',
    {
      config: access('viewer'),
      schema: { tags, summary: 'Who the token speaks for', response: { 200: Me, ...problems } }
    },
    async (request, reply) => {
      const { subject, role, tenant } = principalOf(request)
      return answers.read(request, reply, IDENTITY_CACHE, `me ${subject} ${role}`, async () => {
        const account = await createIdentityStore(tenantOf(request).db).byId(subject)
        return { subject, role, tenant, user: account?.user ?? null }
      })
    }
  )

  app.post(
    '/auth/password',
    {
      config: access('viewer', { pending: ['password'], fresh: true, limit: 'sign-in' }),
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
      const isSoleFactor = await secondFactor.isPasswordAlone(tenant, account.user)
      checkPassword(newPassword, { username, tenant: tenant.id, isSoleFactor })
      const passwordHash = await hasher.hash(newPassword)
      await concealPassword(context, request, 'newPassword')
      return answers.write(request, reply, 204, async (tx) => {
        const changed = await changeUser(tx, tenant, id, { passwordHash, mustChangePassword: false })
        if (changed === undefined) throw new UserNotFound({ id })
      })
    }
  )
}

/** The administrator's view of the users. */
export const userRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, hasher, secondFactor } = context
  const config = access('admin')
  // Whoever makes users or changes roles makes administrators.
  const fresh = access('admin', { fresh: true })

  app.get(
    '/users',
    {
      config,
      schema: { tags, summary: 'List users', querystring: UserListQuery, response: { 200: List(User), ...problems } }
    },
    async (request, reply) => {
      const { limit = 50, cursor } = request.query
      return answers.read(request, reply, IDENTITY_CACHE, `users ${limit} ${cursor ?? ''}`, async () => {
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
    {
      config: fresh,
      schema: { tags, summary: 'Create a user', body: UserCreate, response: { 201: User, ...problems } }
    },
    async (request, reply) => {
      const { username, displayName = username, role, password, mustChangePassword = false } = request.body
      const passwordHash = password === undefined ? NO_PASSWORD : await hashNew(request, password, { username, role })
      return answers.write(request, reply, 201, async (tx) => {
        const user = await addUser(tx, { username, displayName, role, passwordHash, mustChangePassword })
        if (user === undefined) throw new UsernameTaken({ username })
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
      return answers.read(request, reply, IDENTITY_CACHE, `user ${id}`, async () => {
        const account = await createIdentityStore(tenantOf(request).db).byId(id)
        if (account === undefined) throw new UserNotFound({ id })
        return account.user
      })
    }
  )

  app.patch(
    '/users/:id',
    {
      config: fresh,
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
      const role = changes.role ?? account.user.role
      const passwordHash = await hashNew(request, password, { ...account.user, role })
      return change(request, reply, { ...changes, passwordHash })
    }
  )

  app.delete(
    '/users/:id',
    {
      config,
      schema: {
        tags,
        summary: 'Delete a user for good; the history keeps the id, and the name may be given to another',
        params: UserParams,
        response: { 200: User, ...problems }
      }
    },
    async (request, reply) => change(request, reply, { deleted: true })
  )

  const change = (
    request: FastifyRequest<{ Params: { id: string } }>,
    reply: Parameters<Answers['write']>[1],
    changes: UserChanges
  ) => {
    const { id } = request.params
    const tenant = tenantOf(request)
    return answers.write(request, reply, 200, async (tx) => {
      const before = await createIdentityStore(tx.db).byId(id, true)
      if (before === undefined || before.user.deleted) throw new UserNotFound({ id })
      answers.requireMatch(request, reply, before.user)
      const after = await changeUser(tx, tenant, id, changes)
      if (after === undefined) throw new UserNotFound({ id })
      if (changes.deleted === true) await removeFactors(tx, id)
      return after.user
    })
  }

  /** @throws PasswordRefused */
  const hashNew = async (
    request: FastifyRequest,
    password: string,
    user: { id?: string; username: string; role: User['role'] }
  ): Promise<string> => {
    const tenant = tenantOf(request)
    const { id = '', username, role } = user
    const isSoleFactor = await secondFactor.isPasswordAlone(tenant, { id, role })
    checkPassword(password, { username, tenant: tenant.id, isSoleFactor })
    const passwordHash = await hasher.hash(password)
    await concealPassword(context, request, 'password')
    return passwordHash
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
