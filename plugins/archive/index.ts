import { sql } from 'kysely'
import { type Config, ConfigError } from '../config/index.js'
import type { ArchiveProof, ArchiveRehearsal, ArchiveRun, MigrationSet, TenantCopy } from '../contracts.js'
import { type DatabaseOptions, placeOf } from '../database.js'
import { postgresPlacements } from '../dialects/placed.js'
import { SCHEMA_PREFIX } from '../dialects/postgres.js'
import { openSide } from '../mirror/link.js'
import { portabilityOf } from '../portable/index.js'
import { ArchiveService } from './archives.js'

export { ArchiveService } from './archives.js'
export type { ArchiveSettings } from './operations.js'

type Where = Omit<DatabaseOptions, 'poolSize'>

/** Archives at the console, where no service runs. @throws ConfigError */
export function archivesOf(config: Config, sets: readonly MigrationSet[] = [], database?: Where): ArchiveService {
  if (config.backups === undefined)
    throw new ConfigError('BACKUP_URL is not set; it may be a folder, or s3://bucket/prefix')
  return new ArchiveService({
    settings: config.backups.settings,
    increments: false,
    database: database ?? { databaseUrl: config.DATABASE_URL, tenancy: 'single' },
    migrations: () => sets
  })
}

interface RestoreOrder {
  readonly tenant: string
  readonly wanted: { readonly id: string } | { readonly at: number }
  readonly sets: readonly MigrationSet[]
  readonly prove: (copy: TenantCopy) => Promise<readonly ArchiveProof[]>
}

/**
 * Restores a tenant: loaded into a database beside the real one, proved there, then exchanged in one step. Whatever fails before,
 * the real one was not touched. `config` names the database that counts (`primaryOf`).
 * @returns what was restored, and the name under which the former database is kept
 * @throws Problem, such as BACKUP_DAMAGED
 */
export async function restoreTenant(
  config: Config,
  { sets, ...order }: RestoreOrder,
  run: ArchiveRun = {}
): Promise<ArchiveRehearsal & { readonly kept: string | null }> {
  const { DATABASE_URL: databaseUrl, TENANCY, postgresTls: tls, databaseServers: servers } = config
  const tenancy = TENANCY === 'multi' ? 'multi' : 'single'
  const placements = servers.size === 0 ? undefined : postgresPlacements(databaseUrl, tls)
  const placed = await placements?.all().finally(() => placements.close())
  const urlOf = (tenant: string) => servers.get(placed?.get(tenant) ?? '') ?? databaseUrl
  const archives = archivesOf(config, sets, { databaseUrl, tenancy, tls, urlOf })
  try {
    const { rehearsal, scratch } = await archives.restore({ ...order, purpose: 'restoring' }, run)
    try {
      return { ...rehearsal, kept: (await scratch.replace()) ?? null }
    } catch (error) {
      await scratch.remove()
      throw error
    }
  } finally {
    await archives.close()
  }
}

/** Where increments are not made any more, nobody would ever forget what is noted. */
export async function releaseCapture(
  { id, db, dialect }: TenantCopy,
  database: Where,
  sets: readonly MigrationSet[]
): Promise<void> {
  const found =
    dialect === 'sqlite'
      ? sql`select 1 from sqlite_schema where name = 'backup_capture'`
      : sql`select 1 from pg_catalog.pg_tables where schemaname = ${SCHEMA_PREFIX + id} and tablename = 'backup_capture'`
  if ((await found.execute(db)).rows.length === 0) return
  const side = await openSide(placeOf(database, id), portabilityOf(sets), 'backup')
  await side.release().finally(() => side.close())
}
