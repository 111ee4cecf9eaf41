import Fastify, { type InjectOptions } from 'fastify'
import identity, { type IdentityOptions, issueToken } from '../modules/identity/index.js'
import { codeAt, stepAt } from '../modules/identity/totp.js'
import type { Auth, Seal, Tenant } from '../plugins/contracts.js'
import core, { type Tenants } from '../plugins/core.js'
import { serverOptions } from '../plugins/http/server-options.js'
import type { Role } from '../schemas/common.js'

/** The identity module on the core alone, with a clock that the test moves. */

const KEYS = [{ id: 'k1', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }] as const
export const SEALING_KEY = { id: 's1', secret: 'aN5!uE0oRi7-Wt2zKx9lVb4hYc8qMd6f' }
export const PUBLIC_URL = 'https://stock.example.org'
/** Fifteen characters and more, for those who are asked for nothing else. */
export const PASSWORD = 'correct horse battery staple'
/** Eight, for those who have a second factor. */
export const SHORT_PASSWORD = 'tin-kiwi'

type Options = Partial<Omit<IdentityOptions, 'authorize'>> & { secretsKeys?: Parameters<typeof core>[1]['secretsKeys'] }

export async function startIdentity(databaseUrl: string, { secretsKeys = [SEALING_KEY], ...options }: Options = {}) {
  const app = Fastify(serverOptions({ logLevel: process.env.LOG_LEVEL ?? 'silent' }))
  await app.register(core, { databaseUrl, jwtKeys: [...KEYS], secretsKeys })
  const auth = app.getDecorator<Auth>('auth')
  // As if every test began at the beginning of a step; real time goes on, so that tokens count.
  const clock = { at: stepAt(Date.now()) * 30_000 }
  await app.register(identity, {
    prefix: '/api',
    authorize: auth.authorize,
    publicUrl: PUBLIC_URL,
    now: () => clock.at,
    ...options
  })
  await app.ready()
  const call = async (
    method: InjectOptions['method'],
    url: string,
    token?: string,
    body?: object,
    { headers: more = {}, ...rest }: InjectOptions = {}
  ) => {
    const headers = { ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...more }
    const payload = body === undefined ? {} : { payload: body }
    const response = await app.inject({ ...rest, method, url: `/api${url}`, headers, ...payload })
    const { statusCode: status, body: text } = response
    return { status, text, body: text === '' ? undefined : response.json(), headers: response.headers }
  }
  const tenants = app.getDecorator<Tenants>('tenants')
  return {
    app,
    auth,
    clock,
    call,
    seal: app.getDecorator<Seal>('seal'),
    tenant: (): Promise<Tenant> => Promise.resolve(tenants.get('main')),
    /** A token of the console, which counts as fresh and as having passed the second factor. */
    token: (role: Role) => issueToken(auth, { role, tenant: 'main', ttlSeconds: 60 }),
    login: (username: string, password: string, remoteAddress = '192.0.2.1') =>
      call('POST', '/auth/login', undefined, { username, password }, { remoteAddress }),
    /** The next code of an app: a step later than any before. */
    code: (secret: string): string => {
      clock.at += 30_000
      return codeAt(fromBase32(secret), stepAt(clock.at))
    }
  }
}
export type IdentityService = Awaited<ReturnType<typeof startIdentity>>

/** Written apart from the encoder, which it checks. */
export function fromBase32(text: string): Buffer {
  const bits = [...text].map((each) => 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'.indexOf(each).toString(2).padStart(5, '0'))
  const bytes = bits.join('').match(/.{8}/g) ?? []
  return Buffer.from(bytes.map((each) => Number.parseInt(each, 2)))
}

/** A user of the role who has enrolled an authenticator app, and what shows it. */
export async function enrolled(service: IdentityService, username: string, role: Role, password = PASSWORD) {
  const { call, login, token, code } = service
  const made = await call('POST', '/users', token('admin'), { username, role, password })
  const signedIn = await login(username, password)
  const first: string = signedIn.body.pendingToken ?? signedIn.body.accessToken
  const { secret } = (await call('POST', '/auth/2fa/totp', first)).body
  const confirmed = await call('POST', '/auth/2fa/totp/confirm', first, { code: code(secret) })
  const id: string = made.body.id
  const accessToken: string = confirmed.body.session?.accessToken
  const recoveryCodes: string[] = confirmed.body.recoveryCodes
  return { id, username, password, secret: String(secret), first, accessToken, recoveryCodes, confirmed }
}
