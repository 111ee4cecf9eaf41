import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import Fastify from 'fastify'
import { sql } from 'kysely'
import type { Registry } from 'prom-client'
import type { Test } from 'tap'
import webhooks, { type WebhooksOptions } from '../modules/webhooks/index.js'
import type { Tenant } from '../plugins/contracts.js'
import core, { type Tenants } from '../plugins/core.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { StockMoved } from '../schemas/inventory.js'
import type { Dialect } from './helper.js'
import { patience } from './patience.js'
import { listening } from './ports.js'
import { scraped } from './scrape.js'
import { temporaryFolder } from './service-process.js'
import { freshDatabase } from './services.js'

export const SECRETS_KEYS = [{ id: 'default', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }] as const
export const HOUR = 3_600_000
export const NEVER: AbortSignal = new AbortController().signal

interface Received {
  id: string
  headers: Record<string, string>
  body: string
  path: string
}
export type Answer = (response: ServerResponse, received: Received, count: number) => unknown

/** A receiver on a real socket; it answers 204 unless told otherwise. */
export async function receiver(t: Test) {
  const requests: Received[] = []
  const state: { answer: Answer } = { answer: (response) => response.writeHead(204).end() }
  const { url, port, close } = await listening((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (text) => {
      body += text
    })
    request.on('end', () => {
      const headers = flat(request.headers)
      const received = { id: headers['webhook-id'] ?? '', headers, body, path: request.url ?? '' }
      requests.push(received)
      state.answer(response, received, requests.length)
    })
  })
  t.teardown(close)
  return { url: `${url}/in`, port, requests, state }
}
export const flat = (headers: IncomingHttpHeaders) =>
  Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)]))
export const status =
  (code: number, headers = {}): Answer =>
  (response) =>
    response.writeHead(code, headers).end()

export const until = patience({ seconds: 8 })

/** One node: the core and webhooks alone, with a clock that can be put forward. */
export async function node(t: Test, databaseUrl: string, options: Partial<WebhooksOptions> = {}) {
  const clock = { ahead: 0 }
  const app = Fastify(serverOptions({ logLevel: process.env.LOG_LEVEL ?? 'silent' }))
  await app.register(core, { databaseUrl, secretsKeys: [...SECRETS_KEYS] })
  await app.register(webhooks, {
    prefix: '/api',
    authorize: async () => {},
    allowedHosts: ['127.0.0.1', 'hooks.intranet'],
    now: () => Date.now() + clock.ahead,
    pollSeconds: 0.05,
    ...options
  })
  await app.ready()
  t.teardown(() => app.close())
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  const call = async (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', url: string, payload?: object, headers = {}) => {
    const answer = await app.inject({ method, url: `/api${url}`, headers, ...(payload ? { payload } : {}) })
    return { status: answer.statusCode, body: answer.json(), headers: answer.headers, text: answer.body }
  }
  const create = async (url: string, topics: string[] = [StockMoved.topic]) => {
    const { status, body } = await call('POST', '/webhooks', { url, topics })
    if (status !== 201) throw new Error(JSON.stringify(body))
    return body
  }
  const metric = (line: string) => scraped(app.getDecorator<Registry>('registry'), line)
  const publish = (...itemCodes: string[]) =>
    tenant.transact(async (tx) => {
      for (const code of itemCodes) {
        await tx.publish(StockMoved.topic, { itemCodes: [code], fromDay: '2026-01-05', toDay: '2026-01-05' })
      }
    })
  const deliveries = async (id: string, query = '') =>
    (await call('GET', `/webhooks/${id}/deliveries${query}`)).body.data
  return { app, tenant, call, create, publish, deliveries, metric, clock }
}
export const itemOf = ({ body }: Received): string => JSON.parse(body).data.itemCodes[0]

/** Everything that the database holds, as text. */
export async function dump({ db, dialect, id }: Tenant): Promise<string> {
  const names =
    dialect === 'sqlite'
      ? sql<{ name: string }>`select name from sqlite_master where type = 'table'`
      : sql<{
          name: string
        }>`select table_name as name from information_schema.tables where table_schema = ${`tenant_${id}`}`
  let text = ''
  for (const { name } of (await names.execute(db)).rows) {
    text += JSON.stringify((await sql`select * from ${sql.table(name)}`.execute(db)).rows)
  }
  return text
}

export async function databaseFor(t: Test, dialect: Dialect): Promise<string> {
  if (dialect === 'sqlite') return `sqlite:${temporaryFolder(t)}/main.sqlite`
  const database = await freshDatabase()
  t.teardown(() => database.drop())
  return database.url
}
