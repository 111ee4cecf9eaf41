import Fastify, { type InjectOptions } from 'fastify'
import type { Registry } from 'prom-client'
import identity, { issueToken } from '../modules/identity/index.js'
import type { Auth } from '../plugins/contracts.js'
import core, { type Tenants } from '../plugins/core.js'
import { serverOptions } from '../plugins/http/server-options.js'
import type { Role } from '../schemas/common.js'
import { scraped } from './scrape.js'
import { freshDatabase } from './services.js'

export const SECRET = 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ'
export const OTHER_SECRET = 'aN5!uE0oRi7-Wt2zKx9lVb4hYc8qMd6f'
export const KEYS = [{ id: 'k1', secret: SECRET }] as const
export const ISSUER = 'inventory-enterprise'
export const PASSWORD = 'correct horse battery staple'

export const databases = {
  sqlite: async () => ({ url: 'sqlite::memory:', drop: async () => {} }),
  postgres: freshDatabase
}

type StartOptions = Partial<Parameters<typeof core>[1]> & { accessTokenTtlSeconds?: number }

export async function start(databaseUrl: string, { accessTokenTtlSeconds = 600, ...options }: StartOptions = {}) {
  const app = Fastify(serverOptions({ logLevel: 'silent' }))
  await app.register(core, { databaseUrl, jwtKeys: [...KEYS], secretsKeys: [...KEYS], ...options })
  const auth = app.getDecorator<Auth>('auth')
  await app.register(identity, {
    prefix: '/api',
    authorize: auth.authorize,
    accessTokenTtlSeconds,
    secondFactor: 'optional'
  })
  await app.ready()
  const tenants = app.getDecorator<Tenants>('tenants')
  const call = async (
    method: InjectOptions['method'],
    url: string,
    token?: string,
    body?: object,
    rest: InjectOptions = {}
  ) => {
    const headers = { ...(token === undefined ? {} : { authorization: `Bearer ${token}` }), ...rest.headers }
    const response = await app.inject({
      ...rest,
      method,
      url: `/api${url}`,
      headers,
      ...(body ? { payload: body } : {})
    })
    return {
      status: response.statusCode,
      body: response.body === '' ? undefined : response.json(),
      headers: response.headers,
      text: response.body
    }
  }
  const login = (username: string, password: string, remoteAddress = '192.0.2.1') =>
    call('POST', '/auth/login', undefined, { username, password }, { remoteAddress })
  const token = (role: Role) => issueToken(auth, { role, tenant: 'main', ttlSeconds: 3_600 })
  const metric = (line: string) => scraped(app.getDecorator<Registry>('registry'), line)
  return { app, auth, tenants, call, login, token, metric, tenant: () => tenants.get('main') }
}

export type Service = Awaited<ReturnType<typeof start>>
