import type { Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import type { Kysely } from 'kysely'
import { sql } from 'kysely'
import type { Test } from 'tap'
import type { Tenants } from '../plugins/core.js'
import { buildApp, type Client, client, type Dialect } from './helper.js'
import { temporaryFolder } from './service-process.js'

export interface Context {
  app: FastifyInstance
  manager: Client
  staff: Client
  db: Kysely<unknown>
  dataDir: string
}

export const CSV = { 'content-type': 'text/csv' }
export const NDJSON = { 'content-type': 'application/x-ndjson' }
export const WAIT = { prefer: 'wait=30' }
export const lines = (...rows: (string | object)[]) =>
  rows.map((row) => (typeof row === 'string' ? row : JSON.stringify(row))).join('\n')

/** Imports and waits; answers the job. */
export async function imported(
  t: Test,
  as: Client,
  kind: string,
  file: string | Buffer | Readable,
  headers = CSV,
  query = ''
) {
  const { status, body, text } = await as.post(`/api/import/${kind}${query}`, file, { ...headers, ...WAIT })
  t.match(
    { status, jobStatus: body.status },
    { status: 200, jobStatus: 'succeeded' },
    status === 200 ? 'imported' : text.slice(0, 500)
  )
  return body
}

/** The whole service on an empty database, its data in a folder that the test looks into. */
export async function openImports(t: Test, dialect: Dialect): Promise<Context> {
  const dataDir = temporaryFolder(t)
  const app = await buildApp(t, { dialect, config: { DATA_DIR: dataDir } })
  const { db } = await app.getDecorator<Tenants>('tenants').get('main')
  return { app, manager: client(app, 'manager'), staff: client(app, 'staff'), db, dataDir }
}

export const TABLES = [
  'items',
  'item_totals',
  'item_units',
  'item_barcodes',
  'item_search',
  'categories',
  'units',
  'locations',
  'lots',
  'stock_accounts',
  'stock_balances',
  'stock_transactions',
  'stock_moves',
  'reservations',
  'imports',
  'import_changes',
  'jobs',
  'idempotency_keys'
]
export async function countRows(db: Kysely<unknown>): Promise<Record<string, number>> {
  const counts: Record<string, number> = {}
  for (const table of TABLES) {
    const { rows } = await sql<{ n: number }>`select count(*) as n from ${sql.table(table)}`.execute(db)
    counts[table] = Number(rows[0]?.n)
  }
  return counts
}
