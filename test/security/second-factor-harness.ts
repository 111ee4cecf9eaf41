import { sql } from 'kysely'
import type { Test } from 'tap'
import type { Tenant } from '../../plugins/contracts.js'
import type { Dialect } from '../helper.js'
import { startIdentity } from '../identity-service.js'
import { freshDatabase } from '../services.js'

export const PARALLEL = 20

export async function open(t: Test, dialect: Dialect, options: Parameters<typeof startIdentity>[1] = {}) {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const service = await startIdentity(database?.url ?? 'sqlite::memory:', options)
  t.teardown(() => service.app.close())
  return service
}

/** Each from a network of its own, so that no limit of one network is what refuses them. */
export const fromAnywhere = (n: number) => ({ remoteAddress: `198.51.100.${n + 1}` })

/** Everything that the tables of this module hold, as text. */
export async function everything(tenant: Tenant): Promise<string> {
  const tables = [
    'users',
    'totp_factors',
    'recovery_codes',
    'passkeys',
    'used_challenges',
    'one_time_links',
    'sessions',
    'outbox',
    'idempotency_keys'
  ]
  const rows = await Promise.all(tables.map((name) => sql`select * from ${sql.table(name)}`.execute(tenant.db)))
  return JSON.stringify(rows.map((each) => each.rows))
}
