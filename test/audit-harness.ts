import type { FastifyInstance } from 'fastify'
import type { Kysely } from 'kysely'
import { type NewEntry, rowOf } from '../modules/audit/store.js'
import type { AuditTables } from '../modules/audit/tables.js'
import type { Agent, Tenant } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import type { AuditEntry } from '../schemas/audit.js'
import { client } from './helper.js'

export const DAY_MS = 86_400_000
export const PASSWORD = 'correct horse battery staple'
export const TRACE = '0af7651916cd43dd8448eb211c80319c'
export const AGENT: Agent = {
  actor: 'u1',
  role: 'staff',
  method: 'token',
  session: 's1',
  requestId: 'r1',
  traceId: null,
  address: '192.0.2.9'
}

export const tenantOf = (app: FastifyInstance): Promise<Tenant> => app.getDecorator<Tenants>('tenants').get('main')
export const tables = (db: Kysely<unknown>) => db.withTables<AuditTables>()

/** Every entry, oldest first, as the route shows it; what was only noted is waited for. */
export async function trail(app: FastifyInstance, query = ''): Promise<AuditEntry[]> {
  const entries: AuditEntry[] = []
  const reader = client(app, 'manager', { subject: 'reader' })
  for (let cursor = ''; ; ) {
    const { status, body, text } = await reader.get(`/api/audit?limit=500${query}${cursor}`)
    if (status !== 200) throw new Error(text)
    entries.push(...body.data)
    if (body.page.nextCursor === null) return entries.reverse()
    cursor = `&cursor=${body.page.nextCursor}`
  }
}

/** Waits for entries that are kept outside a transaction. */
export async function eventually(find: () => Promise<AuditEntry[]>, count: number): Promise<AuditEntry[]> {
  for (let n = 0; ; n++) {
    const found = await find()
    if (found.length >= count || n > 60) return found
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

export const filler = (count: number, at: number): NewEntry[] =>
  Array.from({ length: count }, (_, n) =>
    rowOf(AGENT, { action: 'shelf.count', object: { type: 'shelf', id: String(n) }, details: { n } }, at + n)
  )
