import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { parse, serialize } from 'cookie'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { access, agentOf, Problem, type Seal, shape } from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { OidcCallback, OidcLogin, StepPending } from '../../schemas/identity.js'
import { NoStepPending, OidcFailed, OidcRefused, OidcUnavailable } from './errors.js'
import { createOidcProvider, Departure, type OidcOptions } from './oidc.js'
import { accountOf } from './oidc-accounts.js'
import type { RouteContext } from './routes.js'
import { proceed } from './sign-in.js'

interface OidcContext extends RouteContext {
  readonly oidc: OidcOptions
  readonly seal: Seal
}

const tags = ['identity']
const DEPARTURE_SECONDS = 600
const Step = Type.Object({ answer: StepPending, expiresAt: Type.Integer() })

/** Signing in at the provider: there, back, and what is left to do here. */
export const oidcRoutes: FastifyPluginAsyncTypebox<OidcContext> = async (app, context) => {
  const { audit, auth, metrics, publicUrl, seal, oidc } = context
  // From the configuration: what a request says of its host could send codes elsewhere.
  const home = `${publicUrl}${app.prefix}/auth/oidc`
  const provider = createOidcProvider(oidc, `${home}/callback`)
  const tenantId = oidc.tenant ?? context.defaultTenant
  // The provider sends the browser back from another site; what is left to do is asked for by a page of ours.
  const departures = sealedCookie(seal, 'inventory-oidc', `${home}/callback`, 'lax')
  const steps = sealedCookie(seal, 'inventory-oidc-step', `${home}/step`, 'strict')

  app.get(
    '/auth/oidc/login',
    {
      config: access('public'),
      schema: {
        tags,
        summary: 'Sign in at the identity provider: sends the browser there',
        querystring: OidcLogin,
        response: { 303: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      const { url, departure } = await provider.depart(request.query.fresh === true, Date.now())
      departures.write(reply, departure, DEPARTURE_SECONDS)
      return reply.header('cache-control', 'no-store').redirect(url.href, 303)
    }
  )

  app.get(
    '/auth/oidc/callback',
    {
      config: access('public'),
      schema: {
        tags,
        summary: 'Back from the identity provider: begins a session in cookies and sends the browser to PUBLIC_URL',
        querystring: OidcCallback,
        response: { 303: Type.Null(), ...problems }
      }
    },
    async (request, reply) => {
      reply.header('cache-control', 'no-store')
      const departure = departures.read(request)
      departures.clear(reply)
      const tenant = await auth.enterTenant(request, tenantId)
      try {
        if (!shape(Departure)(departure) || Date.now() > departure.at + DEPARTURE_SECONDS * 1000) {
          throw new OidcFailed({ reason: 'state' })
        }
        const arrival = await provider.arrive(request.url.split('?')[1] ?? '', departure)
        const account = await accountOf(tenant, arrival, { ...agentOf(request), method: 'oidc' })
        const { authenticatedAt, strong } = arrival
        const methods = strong ? ['oidc', 'mfa'] : ['oidc']
        const answer = await proceed(context, request, reply, {
          ...{ tenant, account, methods, authenticatedAt },
          cookie: true
        })
        if ('pendingToken' in answer) {
          const expiresAt = Date.now() + answer.expiresInSeconds * 1000
          steps.write(reply, { answer, expiresAt }, answer.expiresInSeconds)
        }
      } catch (error) {
        metrics.oidc.inc({ outcome: error instanceof OidcRefused ? 'refused' : 'failure' })
        const details = { method: 'oidc', reason: error instanceof Problem ? error.code : '' }
        audit.note(request, { action: 'auth.login.failed', outcome: 'failure', details })
        if (error instanceof OidcFailed || error instanceof OidcUnavailable) explain(request, error)
        throw error
      }
      metrics.oidc.inc({ outcome: 'success' })
      return reply.redirect(`${publicUrl}/`, 303)
    }
  )

  app.post(
    '/auth/oidc/step',
    {
      config: access('public'),
      schema: {
        tags,
        summary:
          'What is left to do after the identity provider, such as a second factor; answered once to the browser',
        response: { 200: StepPending, ...problems }
      }
    },
    async (request, reply) => {
      reply.header('cache-control', 'no-store')
      const step = steps.read(request)
      if (step === undefined) throw new NoStepPending({})
      auth.requireSameSite(request)
      steps.clear(reply)
      if (!shape(Step)(step) || Date.now() > step.expiresAt) throw new NoStepPending({})
      return step.answer
    }
  )
}

/** For the operator: the code and text of the cause, which hold no token. */
function explain(request: FastifyRequest, { cause, code }: Error & { code: string }): void {
  const { message = '', code: detail = '' }: { message?: string; code?: string } = cause instanceof Error ? cause : {}
  request.log.warn({ code, cause: detail, reason: message.slice(0, 300) }, 'sign-in by the identity provider failed')
}

/** JSON that only this service can read or make, kept by a browser for one path. */
function sealedCookie(seal: Seal, plainName: string, url: string, sameSite: 'lax' | 'strict') {
  const { pathname: path, protocol } = new URL(url)
  const secure = protocol === 'https:'
  const name = secure ? `__Secure-${plainName}` : plainName
  const write = (reply: FastifyReply, text: string, maxAge: number) =>
    void reply.header('set-cookie', serialize(name, text, { path, maxAge, secure, sameSite, httpOnly: true }))
  return {
    write: (reply: FastifyReply, value: object, seconds: number) =>
      write(reply, seal.seal(JSON.stringify(value), plainName), seconds),
    clear: (reply: FastifyReply) => write(reply, '', 0),
    /** Undefined as well when it was altered. */
    read: ({ headers: { cookie = '' } }: FastifyRequest): unknown => {
      const sealed = parse(cookie)[name]
      if (sealed === undefined || sealed === '') return undefined
      try {
        return JSON.parse(seal.open(sealed, plainName).toString())
      } catch {
        return undefined
      }
    }
  }
}
