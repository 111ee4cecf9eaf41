import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { access, type Principal, type Tenant, type Transaction } from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { LoginAnswer } from '../../schemas/identity.js'
import {
  Passkey,
  PasskeyAdded,
  PasskeyCreate,
  PasskeyList,
  PasskeyOptions,
  PasskeyParams,
  PasskeyPatch,
  PasskeySignIn,
  PasskeySignInOptions
} from '../../schemas/identity-accounts.js'
import { PasskeyNotFound, PasskeyRefused, PasskeysFull } from './errors.js'
import { createPasskeyStore, type NewPasskey } from './passkey-store.js'
import type { RouteContext } from './routes.js'
import { addFactor, enrolling, ownAccount, removeFactor } from './routes-second-factor.js'
import { enter, proceed, throttled } from './sign-in.js'
import { createIdentityStore } from './store.js'

const PASSKEYS_MAX = 20
const tags = ['identity']
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')
const subjectOf = (request: FastifyRequest) => request.getDecorator<Principal>('principal').subject

/** The user's own passkeys, and signing in by one alone. */
export const passkeyRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, auth, secondFactor, defaultTenant } = context
  const { passkeys } = secondFactor

  app.post(
    '/auth/passkeys/options',
    {
      config: enrolling,
      schema: { tags, summary: 'What a new passkey has to sign', response: { 200: PasskeyOptions, ...problems } }
    },
    async (request) => passkeys.registrationOptions(tenantOf(request), (await ownAccount(request)).user)
  )

  app.post(
    '/auth/passkeys',
    {
      config: enrolling,
      schema: {
        tags,
        summary: 'Register a passkey; ends the user’s tokens and begins a new session',
        body: PasskeyCreate,
        response: { 201: PasskeyAdded, ...problems }
      }
    },
    async (request, reply) => {
      const { name, credential, cookie = false } = request.body
      const verified = await passkeys.verifyRegistration(tenantOf(request), subjectOf(request), credential)
      if (verified === undefined) throw new PasskeyRefused({})
      const add = (tx: Transaction) => insert(tx, { ...verified, name })
      const { added, ...rest } = await addFactor(context, request, reply, { method: 'hwk', cookie, add })
      reply.code(201)
      return { passkey: added, ...rest }
    }
  )

  app.get(
    '/auth/passkeys',
    {
      config: access('viewer'),
      schema: { tags, summary: 'The own passkeys', response: { 200: PasskeyList, ...problems } }
    },
    async (request) => {
      const held = await createPasskeyStore(tenantOf(request).db).ofUser(subjectOf(request))
      return { data: held.map(({ passkey }) => passkey) }
    }
  )

  app.patch(
    '/auth/passkeys/:id',
    {
      config: access('viewer'),
      schema: {
        tags,
        summary: 'Rename a passkey',
        params: PasskeyParams,
        body: PasskeyPatch,
        response: { 200: Passkey, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      return answers.write(request, reply, 200, async (tx) => {
        const renamed = await createPasskeyStore(tx.db).rename(subjectOf(request), id, request.body.name)
        if (renamed === undefined) throw new PasskeyNotFound({ id })
        return renamed
      })
    }
  )

  app.delete(
    '/auth/passkeys/:id',
    {
      config: access('viewer', { fresh: true }),
      schema: {
        tags,
        summary: 'Delete a passkey; ends all tokens of the user',
        params: PasskeyParams,
        response: { 204: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const tenant = tenantOf(request)
      const account = await createIdentityStore(tenant.db).byId(subjectOf(request))
      return answers.write(request, reply, 204, async (tx) => {
        if (account === undefined) throw new PasskeyNotFound({ id })
        await removeFactor(context, tx, tenant, account, async () => {
          const isRemoved = await createPasskeyStore(tx.db).remove(account.user.id, id)
          if (!isRemoved) throw new PasskeyNotFound({ id })
        })
      })
    }
  )

  app.post(
    '/auth/passkeys/sign-in/options',
    {
      config: access('public'),
      schema: {
        tags,
        summary: 'What a passkey has to sign to sign in without a password',
        body: PasskeySignInOptions,
        response: { 200: PasskeyOptions, ...problems }
      }
    },
    async (request) => passkeys.signInOptions(request.body.tenant ?? defaultTenant)
  )

  app.post(
    '/auth/passkeys/sign-in',
    {
      config: access('public'),
      schema: {
        tags,
        summary: 'Sign in by a passkey that has recognised its owner; no password and no further factor is asked for',
        body: PasskeySignIn,
        response: { 200: LoginAnswer, ...problems }
      }
    },
    async (request, reply) => {
      const { tenant: tenantId = defaultTenant, credential, cookie = false } = request.body
      if (cookie) auth.requireSameSite(request)
      const attempt = { tenant: tenantId, username: `passkey ${credential.id}`, address: request.ip }
      const found = await throttled(
        context,
        attempt,
        async () => {
          const tenant = await enter(auth, request, tenantId)
          if (tenant === undefined) return undefined
          const userId = await passkeys.verifyAssertion(tenant, { purpose: 'sign-in' }, credential)
          const account = userId === undefined ? undefined : await createIdentityStore(tenant.db).byId(userId)
          return account === undefined || account.user.disabled ? undefined : { tenant, account }
        },
        'second-factor'
      )
      // Two factors at once: the key itself, and what its owner unlocks it by.
      const passed = { ...found, methods: ['hwk', 'mfa'], authenticatedAt: Date.now(), cookie }
      return proceed(context, request, reply, passed)
    }
  )
}

async function insert(tx: Transaction, passkey: NewPasskey): Promise<Passkey> {
  const store = createPasskeyStore(tx.db)
  if ((await store.ofUser(passkey.userId)).length >= PASSKEYS_MAX) throw new PasskeysFull({ maximum: PASSKEYS_MAX })
  const added = await store.insert(passkey)
  if (added === undefined) throw new PasskeyRefused({})
  return added
}
