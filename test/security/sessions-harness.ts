import { randomUUID } from 'node:crypto'
import Fastify, { type InjectOptions, type LightMyRequestResponse } from 'fastify'
import type { Test } from 'tap'
import identity, { issueToken } from '../../modules/identity/index.js'
import { createPasswordHasher } from '../../modules/identity/passwords.js'
import { openSession } from '../../modules/identity/session-store.js'
import { createIdentityStore } from '../../modules/identity/store.js'
import { type Audit, type Auth, access, type EnterModule } from '../../plugins/contracts.js'
import core, { type Tenants } from '../../plugins/core.js'
import { serverOptions } from '../../plugins/http/server-options.js'
import type { Role } from '../../schemas/common.js'
import type { Dialect } from '../helper.js'
import { freshDatabase } from '../services.js'

/** The identity module with routes of another, and sign-ins that skip the work of a password. */

export const KEYS = [{ id: 'k1', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }] as const
export const PASSWORD = 'correct horse battery staple'
const PASSWORD_HASH = createPasswordHasher().hash(PASSWORD)
export const IDLE_SECONDS = 3_600
export const ABSOLUTE_SECONDS = 10_000
export const ACCESS_SECONDS = 600

export interface Setup {
  redisUrl?: string
  secureCookies?: boolean
}

interface Called {
  status: number
  body: ReturnType<typeof JSON.parse>
  headers: LightMyRequestResponse['headers']
  cookies: LightMyRequestResponse['cookies']
}

export async function start(t: Test, databaseUrl: string, { redisUrl, secureCookies = false }: Setup = {}) {
  const app = Fastify({ ...serverOptions({ logLevel: 'silent', trustProxy: '10.0.0.0/8' }) })
  await app.register(core, {
    databaseUrl,
    jwtKeys: [...KEYS],
    secretsKeys: [...KEYS],
    secureCookies,
    ...(redisUrl === undefined ? {} : { redisUrl })
  })
  const auth = app.getDecorator<Auth>('auth')
  await app.register(identity, {
    secondFactor: 'optional',
    prefix: '/api',
    authorize: auth.authorize,
    accessTokenTtlSeconds: ACCESS_SECONDS,
    sessionIdleSeconds: IDLE_SECONDS,
    sessionTtlSeconds: ABSOLUTE_SECONDS
  })
  await app.register(async (stock) => {
    app.getDecorator<EnterModule>('enterModule')(stock, { authorize: auth.authorize })
    const schema = { tags: ['stock'] }
    stock.get('/stock', { schema, config: access('viewer') }, async () => ({}))
    stock.post('/stock', { schema, config: access('staff') }, async () => ({}))
    stock.post('/stock/close', { schema, config: access('manager') }, async () => ({}))
    stock.post('/enrol', { schema, config: access('viewer', { pending: ['enrol'] }) }, async () => ({}))
  })
  const trail: string[] = []
  app.getDecorator<Audit>('audit').keepIn({
    append: async (_db, _agent, entries) => void trail.push(...entries.map(({ action }) => action)),
    note: () => {}
  })
  await app.ready()
  t.teardown(() => app.close())
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  const call = async (
    method: InjectOptions['method'],
    url: string,
    token?: string,
    payload?: object,
    rest: InjectOptions = {}
  ): Promise<Called> => {
    const headers = { ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...rest.headers }
    const answer = await app.inject({ ...rest, method, url, headers, ...(payload ? { payload } : {}) })
    return {
      status: answer.statusCode,
      body: answer.body === '' ? undefined : answer.json(),
      headers: answer.headers,
      cookies: answer.cookies
    }
  }
  const signIn = (username: string, password: string, token?: string) =>
    call('POST', '/api/auth/login', token, { username, password }, { remoteAddress: randomUUID() })
  /** What a sign-in hands out, without the work of a password. */
  const login = async (username: string): Promise<Held> => {
    const account = await createIdentityStore(tenant.db).byUsername(username)
    if (account === undefined) throw new Error(`there is no ${username}`)
    const proof = { account, methods: ['pwd'], authenticatedAt: Date.now() }
    const device = { address: '192.0.2.1', userAgent: 'a test' }
    const life = { idleSeconds: IDLE_SECONDS, absoluteSeconds: ABSOLUTE_SECONDS }
    const { session, refreshToken } = await tenant.transact((tx) => openSession(tx, tenant, proof, device, life))
    const { user, epoch } = account
    const { id, methods, authenticatedAt } = session
    const subject = { subject: user.id, role: user.role, tenant: 'main', epoch, session: id, methods, authenticatedAt }
    return { access: auth.sign(subject, ACCESS_SECONDS), refresh: refreshToken }
  }
  const create = async (username: string, role: Role = 'staff') => {
    const user = { username, displayName: username, role, passwordHash: await PASSWORD_HASH }
    const created = await tenant.transact((tx) => createIdentityStore(tx.db).insertUser(user))
    if (created === undefined) throw new Error(`${username} exists`)
    return created
  }
  const refresh = (refreshToken: string) => call('POST', '/api/auth/refresh', undefined, { refreshToken })
  const me = async (token: string) => (await call('GET', '/api/auth/me', token)).status
  const admin = issueToken(auth, { role: 'admin', tenant: 'main', ttlSeconds: 86_400 * 30 })
  return { app, auth, tenant, trail, call, signIn, login, create, refresh, me, admin }
}
export type Service = Awaited<ReturnType<typeof start>>
export interface Held {
  access: string
  refresh: string
}

export async function database(t: Test, dialect: Dialect): Promise<string> {
  if (dialect === 'sqlite') return `sqlite:${t.testdir()}/sessions.sqlite`
  const { url, drop } = await freshDatabase()
  t.teardown(drop)
  return url
}

/** Stops the wall clock of this process, to be moved by hand; only what asks `Date.now()` notices. */
export function clock(t: Test) {
  const real = Date.now
  let now = real()
  Date.now = () => now
  t.teardown(() => {
    Date.now = real
  })
  return {
    pass: (seconds: number) => {
      now += seconds * 1000
    }
  }
}

export const sessionOf = (token: string): { sid?: string; exp: number; auth_time?: number; amr?: string[] } =>
  JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString())
