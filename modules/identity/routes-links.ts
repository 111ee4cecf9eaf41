import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { access, agentOf, type Tenant } from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { User, UserParams } from '../../schemas/identity.js'
import { FirstUser, LinkAcceptance, OneTimeLink } from '../../schemas/identity-accounts.js'
import { LinkInvalid, UserNotFound, UsernameTaken } from './errors.js'
import { createLinkStore } from './link-store.js'
import { hashOfLink, passwordLink, tenantOfLink } from './links.js'
import { checkPassword } from './password-rules.js'
import type { RouteContext } from './routes.js'
import { enter } from './sign-in.js'
import { addUser, changeUser, createIdentityStore } from './store.js'

const tags = ['identity']

/**
 * Links that count once: an administrator hands one to a user, the console one to whoever sets the service up. Neither signs
 * anybody in, so a second factor is asked for as ever. What answers or takes their secret is no idempotent write.
 */
export const linkRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { auth, hasher, publicUrl, secondFactor } = context

  app.post(
    '/users/:id/link',
    {
      config: access('admin', { fresh: true }),
      schema: {
        tags,
        summary: 'A link by which the user sets a password, once: an invitation, or a reset; it ends earlier links',
        params: UserParams,
        response: { 201: OneTimeLink, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const tenant = request.getDecorator<Tenant>('tenant')
      reply.code(201).header('cache-control', 'no-store')
      return tenant.transact(
        async (tx) => {
          const account = await createIdentityStore(tx.db).byId(id)
          if (account === undefined || account.user.deleted) throw new UserNotFound({ id })
          return passwordLink(tx, tenant, publicUrl, id)
        },
        { agent: agentOf(request) }
      )
    }
  )

  /** @throws LinkInvalid */
  const enterByLink = async (request: FastifyRequest, token: string): Promise<Tenant> => {
    const tenantId = tenantOfLink(token)
    const tenant = tenantId === undefined ? undefined : await enter(auth, request, tenantId)
    if (tenant === undefined) throw new LinkInvalid({})
    return tenant
  }

  app.post(
    '/auth/accept',
    {
      config: access('public'),
      schema: {
        tags,
        summary: 'Set the password that a link is for; ends all tokens of the user, who then signs in',
        body: LinkAcceptance,
        response: { 204: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const { token, password } = request.body
      const tenant = await enterByLink(request, token)
      const hash = hashOfLink(token)
      const id = await createLinkStore(tenant.db).userOf(hash)
      const account = id === undefined ? undefined : await createIdentityStore(tenant.db).byId(id)
      if (account === undefined || account.user.disabled) throw new LinkInvalid({})
      const { user } = account
      const isSoleFactor = await secondFactor.isPasswordAlone(tenant, user)
      // Before the link is used up: whoever is refused may try another.
      checkPassword(password, { username: user.username, tenant: tenant.id, isSoleFactor })
      const passwordHash = await hasher.hash(password)
      await tenant.transact(
        async (tx) => {
          if (!(await createLinkStore(tx.db).use(hash))) throw new LinkInvalid({})
          await changeUser(tx, tenant, user.id, { passwordHash, mustChangePassword: false })
        },
        { agent: agentOf(request) }
      )
      return reply.code(204).send(null)
    }
  )

  app.post(
    '/auth/setup',
    {
      config: access('public'),
      schema: {
        tags,
        summary: 'Make the first user, an administrator, by the link that the console printed',
        body: FirstUser,
        response: { 201: User, ...problems }
      }
    },
    async (request, reply) => {
      const { token, username, displayName = username, password } = request.body
      const tenant = await enterByLink(request, token)
      const hash = hashOfLink(token)
      if (!(await createLinkStore(tenant.db).isForSetup(hash))) throw new LinkInvalid({})
      checkPassword(password, { username, tenant: tenant.id, isSoleFactor: !secondFactor.required('admin') })
      const passwordHash = await hasher.hash(password)
      reply.code(201)
      return tenant.transact(
        async (tx) => {
          const store = createIdentityStore(tx.db)
          const counts = await createLinkStore(tx.db).useForSetup(hash)
          if (!counts || !(await store.isEmpty())) throw new LinkInvalid({})
          const user = await addUser(tx, { username, displayName, role: 'admin', passwordHash })
          if (user === undefined) throw new UsernameTaken({ username })
          return user
        },
        { agent: agentOf(request) }
      )
    }
  )
}
