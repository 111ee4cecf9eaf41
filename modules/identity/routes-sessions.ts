import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { access, type Principal, type Tenant } from '../../plugins/contracts.js'
import { List, problems } from '../../schemas/common.js'
import {
  Login,
  LoginAnswer,
  Reauthentication,
  Refresh,
  Session,
  SessionParams,
  SignedIn,
  UserParams
} from '../../schemas/identity.js'
import { deleteApiToken, isApiToken } from './api-tokens.js'
import { NoSession, SessionEnded, SessionNotFound, UserNotFound } from './errors.js'
import { endTokens } from './revocations.js'
import type { RouteContext } from './routes.js'
import { endSession, liveSessions, type OpenSession } from './session-store.js'
import { proceed, refresh, signIn, throttled } from './sign-in.js'
import { createIdentityStore, usernameKey } from './store.js'

const tags = ['identity']
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
const principalOf = (request: FastifyRequest) => request.getDecorator<Principal>('principal')

const toSession = (session: OpenSession, current: string | undefined): Session => ({
  id: session.id,
  createdAt: new Date(session.createdAt).toISOString(),
  lastSeenAt: new Date(session.seenAt).toISOString(),
  expiresAt: new Date(session.expiresAt).toISOString(),
  current: session.id === current,
  methods: [...session.methods],
  ...session.device
})

/**
 * Signing in, staying in and signing out. What answers a secret is no idempotent write: a kept answer would hold the secret.
 */
export const sessionRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, auth, hasher, refreshPath } = context

  app.post(
    '/auth/login',
    {
      config: access('public'),
      schema: { tags, summary: 'Sign in', body: Login, response: { 200: LoginAnswer, ...problems } }
    },
    async (request, reply) => {
      reply.header('cache-control', 'no-store')
      return signIn(context, request, reply, request.body)
    }
  )

  app.post(
    '/auth/refresh',
    {
      config: access('public'),
      schema: {
        tags,
        summary: 'New tokens for a refresh token, which is used up by it',
        description:
          'The same token within 10 s gets the same successor; later, or when that was used, the whole session ends.',
        body: Refresh,
        response: { 200: SignedIn, ...problems }
      }
    },
    async (request, reply) => {
      const { refreshToken } = request.body
      if (refreshToken !== undefined) return refresh(context, request, reply, refreshToken, false)
      const kept = auth.cookies.refreshToken(request)
      if (kept === undefined) throw new SessionEnded({ reason: 'missing' })
      auth.requireSameSite(request)
      return refresh(context, request, reply, kept, true)
    }
  )

  app.post(
    '/auth/reauthenticate',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Prove again who you are, for what needs a fresh sign-in; a new session takes the place of this one',
        body: Reauthentication,
        response: { 200: LoginAnswer, ...problems }
      }
    },
    async (request, reply) => {
      reply.header('cache-control', 'no-store')
      const { sid, sub } = auth.claims(request)
      const tenant = tenantOf(request)
      const account = await createIdentityStore(tenant.db).byId(sub)
      if (sid === undefined || account === undefined) throw new NoSession({})
      const { password, cookie = false } = request.body
      // Else a stolen token would be a way to guess the password.
      const attempt = { tenant: tenant.id, username: usernameKey(account.user.username), address: request.ip }
      await throttled(context, attempt, async () =>
        (await hasher.verify(account.passwordHash, password)) ? true : undefined
      )
      const passed = { tenant, account, methods: ['pwd'], authenticatedAt: Date.now(), cookie, replaces: sid }
      return proceed(context, request, reply, passed)
    }
  )

  app.post(
    '/auth/logout',
    {
      config: access('viewer', { pending: ['enrol', 'second-factor', 'password'] }),
      schema: { tags, summary: 'Sign out: ends the session', response: { 204: Type.Null(), ...problems } }
    },
    async (request, reply) => {
      const claims = auth.claims(request)
      const { jti, sid, sub, exp, use } = claims
      const tenant = tenantOf(request)
      if (request.headers.authorization === undefined) auth.cookies.clear(request, reply, refreshPath)
      return answers.write(request, reply, 204, async (tx) => {
        tx.audit({ action: 'auth.logout' })
        // A step that is given up leaves the session that it was to replace.
        if (sid !== undefined && use === undefined) await endSession(tx, tenant, sid, sub)
        if (isApiToken(claims)) await deleteApiToken(tx, tenant, jti)
        else await endTokens(tx, tenant, { kind: 'token', key: jti, expiresAt: exp * 1000 })
      })
    }
  )

  app.get(
    '/auth/sessions',
    {
      config: access('viewer'),
      schema: { tags, summary: 'The own sessions, the youngest first', response: { 200: List(Session), ...problems } }
    },
    async (request, reply) => {
      const { sub, sid } = auth.claims(request)
      reply.header('cache-control', 'no-store')
      return listOf(await liveSessions(tenantOf(request).db, sub, context.life), sid)
    }
  )

  app.delete(
    '/auth/sessions',
    {
      config: access('viewer'),
      schema: { tags, summary: 'End all own sessions but this one', response: { 204: Type.Null(), ...problems } }
    },
    async (request, reply) => {
      const { sub, sid } = auth.claims(request)
      return endAll(request, reply, sub, sid)
    }
  )

  app.delete(
    '/auth/sessions/:id',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'End one of the own sessions',
        params: SessionParams,
        response: { 204: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const tenant = tenantOf(request)
      return answers.write(request, reply, 204, async (tx) => {
        if (!(await endSession(tx, tenant, id, principalOf(request).subject))) throw new SessionNotFound({ id })
      })
    }
  )

  app.get(
    '/users/:id/sessions',
    {
      config: access('admin'),
      schema: {
        tags,
        summary: 'The sessions of a user',
        params: UserParams,
        response: { 200: List(Session), ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { db } = tenantOf(request)
      if ((await createIdentityStore(db).byId(id)) === undefined) throw new UserNotFound({ id })
      reply.header('cache-control', 'no-store')
      return listOf(await liveSessions(db, id, context.life), auth.claims(request).sid)
    }
  )

  app.delete(
    '/users/:id/sessions',
    {
      config: access('admin'),
      schema: {
        tags,
        summary: 'End all sessions of a user',
        params: UserParams,
        response: { 204: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      if ((await createIdentityStore(tenantOf(request).db).byId(id)) === undefined) throw new UserNotFound({ id })
      return endAll(request, reply, id)
    }
  )

  const endAll = (
    request: FastifyRequest,
    reply: Parameters<typeof answers.write>[1],
    userId: string,
    but?: string
  ) => {
    const tenant = tenantOf(request)
    return answers.write(request, reply, 204, async (tx) => {
      for (const { id } of await liveSessions(tx.db, userId, context.life)) {
        if (id !== but) await endSession(tx, tenant, id, userId)
      }
    })
  }
}

const listOf = (sessions: readonly OpenSession[], current: string | undefined) => ({
  data: sessions.map((session) => toSession(session, current)),
  page: { limit: sessions.length, nextCursor: null }
})
