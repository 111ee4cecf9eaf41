import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import Database from 'better-sqlite3'
import Fastify, { type FastifyInstance, type FastifySchema } from 'fastify'
import pg from 'pg'
import type { Test } from 'tap'
import { app as register } from '../../app.js'
import { loadConfig } from '../../plugins/config/index.js'
import { serverOptions } from '../../plugins/http/server-options.js'
import type { Dialect } from '../helper.js'
import { temporaryFolder } from '../service-process.js'
import { provideDatabase } from '../templates.js'

/** The whole service with what the security tests must see of its inside: the table of its routes and its database's content. */

export const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'] as const

export interface Route {
  readonly method: (typeof METHODS)[number]
  readonly url: string
  /** The role that it declares; undefined where it declares none. */
  readonly role: unknown
  readonly schema: FastifySchema
}

/** Hashes of the tables, by name, taken from outside the service. */
export interface Content {
  tables(): Promise<ReadonlyMap<string, string>>
  /** Events that are not delivered yet, and jobs that have not ended. */
  pending(): Promise<number>
  /** Resolves once there are none. */
  quiet(): Promise<void>
  columns(): Promise<string[]>
}

export interface Service {
  readonly app: FastifyInstance
  readonly routes: readonly Route[]
  readonly content: Content
}

interface Options {
  dialect: Dialect
  config?: Record<string, string>
  /** Adds to the service before it is ready. */
  plant?: (app: FastifyInstance) => Promise<void>
}

export async function openService(t: Test, { dialect, config = {}, plant }: Options): Promise<Service> {
  const folder = temporaryFolder(t)
  const path = join(folder, 'inventory.sqlite')
  const level = process.env.LOG_LEVEL ?? 'silent'
  const app = Fastify(serverOptions({ logLevel: level }))
  const routes: Route[] = []
  app.addHook('onRoute', ({ method, url, config: declared, schema = {} }) => {
    const role = declared !== undefined && 'role' in declared ? declared.role : undefined
    for (const each of METHODS) if ([method].flat().includes(each)) routes.push({ method: each, url, role, schema })
  })
  const url = (await provideDatabase(t, { dialect, dataDir: folder })) ?? `sqlite:${path}`
  await register(
    app,
    loadConfig({ NODE_ENV: 'test', LOG_LEVEL: level, DATA_DIR: folder, DATABASE_URL: url, ...config })
  )
  await plant?.(app)
  await app.ready()
  t.teardown(() => app.close())
  const content = dialect === 'postgres' ? await postgresContent(t, url) : sqliteContent(t, path)
  return { app, routes, content }
}

/** What changes without anybody having changed stock, people or forecasts. */
const LOGS =
  /^(outbox|jobs|forecast_schedule|consumption_barriers|idempotency_keys|kysely_.*|.*migration.*|audit_.*|item_search.*|sqlite_.*)$/
const PENDING = `select (select count(*) from outbox where attempts < 10)
  + (select count(*) from jobs where status in ('queued', 'running')) as pending`
const QUIET_TIMEOUT_MS = 20_000

async function quiet(pending: () => Promise<number>): Promise<void> {
  for (const deadline = Date.now() + QUIET_TIMEOUT_MS; (await pending()) > 0; await sleep(2)) {
    if (Date.now() > deadline) throw new Error('events or jobs of the service do not come to an end')
  }
}

const hashed = (text: string) => createHash('sha256').update(text).digest('base64')

function sqliteContent(t: Test, path: string): Content {
  const db = new Database(path, { readonly: true, fileMustExist: true })
  t.teardown(() => void db.close())
  const listed: { name: string }[] = db
    .prepare<[], { name: string }>("select name from sqlite_master where type = 'table' order by name")
    .all()
  const names = listed.map(({ name }) => name)
  const selects = names
    .filter((name) => !LOGS.test(name))
    .map((name) => ({ name, select: db.prepare<[], string[]>(`select * from "${name}"`).raw() }))
  const waiting = db.prepare<[], { pending: number }>(PENDING)
  const pending = async () => waiting.get()?.pending ?? 0
  let version = -1
  let known: ReadonlyMap<string, string> = new Map()
  return {
    tables: async () => {
      // Counts the commits of others, so that what nobody wrote is not read again.
      const now = Number(db.pragma('data_version', { simple: true }))
      if (now !== version)
        known = new Map(selects.map(({ name, select }) => [name, hashed(JSON.stringify(select.all()))]))
      version = now
      return known
    },
    pending,
    quiet: () => quiet(pending),
    columns: async () =>
      names.flatMap((name) =>
        db
          .prepare<[string], { name: string }>('select name from pragma_table_info(?)')
          .all(name)
          .map((column) => column.name)
      )
  }
}

async function postgresContent(t: Test, url: string): Promise<Content> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  t.teardown(() => client.end())
  await client.query('set search_path to tenant_main')
  const listed = await client.query<{ name: string }>(
    "select table_name as name from information_schema.tables where table_schema = 'tenant_main' order by 1"
  )
  const names = listed.rows.map(({ name }) => name)
  const pending = async () => Number((await client.query<{ pending: string }>(PENDING)).rows[0]?.pending ?? 0)
  const hashOf = (name: string) =>
    `select '${name}' as name, md5(coalesce(string_agg(md5(x::text), '' order by md5(x::text)), '')) as hash from "${name}" x`
  const text = names
    .filter((name) => !LOGS.test(name))
    .map(hashOf)
    .join(' union all ')
  return {
    tables: async () => {
      const { rows } = await client.query<{ name: string; hash: string }>({ name: 'content', text })
      return new Map(rows.map(({ name, hash }) => [name, hash]))
    },
    pending,
    quiet: () => quiet(pending),
    columns: async () => {
      const { rows } = await client.query<{ name: string }>(
        "select distinct column_name as name from information_schema.columns where table_schema = 'tenant_main'"
      )
      return rows.map(({ name }) => name)
    }
  }
}

/** The tables that differ. */
export const changed = (before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): string[] =>
  [...after].filter(([name, hash]) => before.get(name) !== hash).map(([name]) => name)
