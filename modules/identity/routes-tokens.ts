import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { access, agentOf, type Principal, type Tenant } from '../../plugins/contracts.js'
import { List, problems } from '../../schemas/common.js'
import { ApiToken, ApiTokenCreate, ApiTokenCreated, TokenParams, UserParams } from '../../schemas/identity.js'
import { createApiToken, deleteApiToken, isAbove, listApiTokens } from './api-tokens.js'
import { NoAccount, ScopeUnknown, TokenNotFound, TokenRoleTooHigh, UserNotFound } from './errors.js'
import type { RouteContext } from './routes.js'
import { createIdentityStore } from './store.js'

const DAYS = 90
const tags = ['identity']
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
const principalOf = (request: FastifyRequest) => request.getDecorator<Principal>('principal')
const listOf = (data: ApiToken[]) => ({ data, page: { limit: data.length, nextCursor: null } })

/** API tokens: a user's own, and all of them for the administrator. */
export const tokenRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, { answers, auth }) => {
  app.post(
    '/tokens',
    {
      config: access('viewer', { fresh: true }),
      schema: {
        tags,
        summary: 'Make an API token; the answer alone shows it',
        description: 'An Idempotency-Key is not honoured here: a kept answer would hold the secret.',
        body: ApiTokenCreate,
        response: { 201: ApiTokenCreated, ...problems }
      }
    },
    async (request, reply) => {
      const tenant = tenantOf(request)
      const { subject, role: own } = principalOf(request)
      const { name, scopes, role = own, expiresInDays = DAYS } = request.body
      if (isAbove(role, own)) throw new TokenRoleTooHigh({ role, own })
      const areas = ['*', ...auth.areas()]
      const unknown = scopes.find((scope) => !areas.includes(scope.split(':', 1)[0] ?? ''))
      if (unknown !== undefined) throw new ScopeUnknown({ scope: unknown, areas })
      const made = await tenant.transact(
        async (tx) => {
          const account = await createIdentityStore(tx.db).byId(subject)
          if (account === undefined) throw new NoAccount({})
          const made = await createApiToken(tx, tenant, account, {
            name,
            role,
            scopes: [...new Set(scopes)],
            expiresInDays
          })
          tx.audit({ action: 'token.create', object: { type: 'token', id: made.id }, details: { role, expiresInDays } })
          return made
        },
        { agent: agentOf(request) }
      )
      return reply.code(201).header('cache-control', 'no-store').send(made)
    }
  )

  app.get(
    '/tokens',
    {
      config: access('viewer'),
      schema: { tags, summary: 'The own API tokens', response: { 200: List(ApiToken), ...problems } }
    },
    async (request, reply) => {
      reply.header('cache-control', 'no-store')
      return listOf(await listApiTokens(tenantOf(request).db, principalOf(request).subject))
    }
  )

  app.delete(
    '/tokens/:id',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'End an API token: one of the own, or any for an administrator',
        params: TokenParams,
        response: { 204: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { subject, role } = principalOf(request)
      const tenant = tenantOf(request)
      return answers.write(request, reply, 204, async (tx) => {
        const deleted = await deleteApiToken(tx, tenant, id, role === 'admin' ? undefined : subject)
        if (!deleted) throw new TokenNotFound({ id })
        tx.audit({ action: 'token.delete', object: { type: 'token', id } })
      })
    }
  )

  app.get(
    '/users/:id/tokens',
    {
      config: access('admin'),
      schema: {
        tags,
        summary: 'The API tokens of a user',
        params: UserParams,
        response: { 200: List(ApiToken), ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { db } = tenantOf(request)
      if ((await createIdentityStore(db).byId(id)) === undefined) throw new UserNotFound({ id })
      reply.header('cache-control', 'no-store')
      return listOf(await listApiTokens(db, id))
    }
  )
}
