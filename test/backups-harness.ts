import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { generateX25519Identity, identityToRecipient } from 'age-encryption'
import type { FastifyInstance } from 'fastify'
import { sql } from 'kysely'
import type { Test } from 'tap'
import type { Archives, TenantCopy } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { openDatabaseServer, placeOf } from '../plugins/database.js'
import { UNWATCHED } from '../plugins/dialects/dialect.js'
import { linesOf, openReader, portabilityOf } from '../plugins/portable/index.js'
import type { Dialect } from './helper.js'
import { patience } from './patience.js'
import { temporaryFolder } from './service-process.js'
import { freshDatabase } from './services.js'

export const IDENTITY = await generateX25519Identity()
const RECIPIENT = await identityToRecipient(IDENTITY)

/** Half a day away: while a test runs no full backup becomes due by the time of day. */
const FULL_AT = new Date(Date.now() + 43_200_000).toISOString().slice(11, 16)

export type Environment = Record<string, string>
export const environment = (t: Test, more: Environment = {}): Environment => ({
  BACKUP_URL: temporaryFolder(t),
  BACKUP_RECIPIENTS: RECIPIENT,
  BACKUP_IDENTITY: IDENTITY,
  BACKUP_FULL_AT: FULL_AT,
  BACKUP_INCREMENT_SECONDS: '1',
  BACKUP_DRILL_DAYS: '300',
  ...more
})

export async function freshUrl(t: Test, dialect: Dialect): Promise<string> {
  if (dialect === 'sqlite') return `sqlite:${join(temporaryFolder(t), 'inventory.sqlite')}`
  const { url, drop } = await freshDatabase()
  t.teardown(drop)
  return url
}

export const archivesOf = (app: FastifyInstance): Archives => {
  const archives = app.getDecorator<Archives | null>('archives')
  if (archives === null) throw new Error('backups are configured')
  return archives
}
export const mainOf = (app: FastifyInstance) => app.getDecorator<Tenants>('tenants').get('main')

export const until = patience({ seconds: 60, pauseMs: 50 })

/** Up to when everything is in a backup. */
export async function coveredAt(app: FastifyInstance): Promise<number> {
  const { db } = await mainOf(app)
  const { rows } = await sql<{ at: number }>`select covered_at as at from ${sql.table('backup_chain')}`.execute(db)
  return rows[0]?.at ?? 0
}
export async function covered(app: FastifyInstance): Promise<number> {
  const now = Date.now()
  return until('an increment', async () => {
    const at = await coveredAt(app)
    return at > now && at
  })
}

/** What a restored database says, without a service. */
export async function asked<R>(databaseUrl: string, ask: (copy: TenantCopy) => Promise<R>): Promise<R> {
  const server = openDatabaseServer({ databaseUrl, tenancy: 'single', poolSize: 1 }, UNWATCHED)
  try {
    const { db, dialect } = await server.open('main')
    return await ask({ id: 'main', db, dialect })
  } finally {
    await server.close()
  }
}
export const codesIn = (databaseUrl: string) =>
  asked(databaseUrl, async ({ db }) => {
    const { rows } = await sql<{ code: string }>`select code from ${sql.table('items')} order by code`.execute(db)
    return rows.map(({ code }) => code)
  })

/** SHA-256 of each table's rows. */
export async function digests(databaseUrl: string, app: FastifyInstance): Promise<Record<string, string>> {
  const sets = app.getDecorator<Tenants>('tenants').migrations()
  const reader = await openReader(placeOf({ databaseUrl, tenancy: 'single' }, 'main'), portabilityOf(sets))
  const all: Record<string, string> = {}
  for (const table of reader.schema.tables) {
    const hash = createHash('sha256')
    const order = table.columns.map(({ name }, n) => [name, n] as const).sort(([a], [b]) => (a < b ? -1 : 1))
    for await (const rows of reader.rows(table))
      hash.update(linesOf(rows.map((row) => order.map(([, n]) => row[n] ?? null))))
    all[table.name] = hash.digest('hex')
  }
  await reader.close()
  return all
}
