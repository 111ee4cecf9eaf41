import { type Config, ConfigError } from '../config/index.js'
import type { MigrationSet } from '../contracts.js'
import { sqlitePath } from '../database.js'
import { HOME, postgresPlacements } from '../dialects/placed.js'
import { Mirror } from './controller.js'
import { MirrorFiles } from './files.js'
import { type Moved, moveTenant } from './move.js'

export { Mirror } from './controller.js'
export {
  MirrorFiles,
  type MirrorOrder,
  type MirrorOutcome,
  type MirrorReport,
  ORDERS
} from './files.js'
export { Front } from './front.js'
export { forgetMirrored, mirrorCheck, mirrorMetrics } from './metrics.js'
export { MoveRefused } from './move.js'
export { MIRROR_TABLES } from './side.js'

/**
 * The configuration with the database that counts: `MIRROR_URL` once that has taken over.
 * @throws ConfigError when that is not known, or a mirror cannot be
 */
export function primaryOf(config: Config): Config {
  const files = mirrorFiles(config)
  if (files === undefined || files.state().primary === 'sqlite') return config
  if (config.MIRROR_URL !== undefined) return { ...config, DATABASE_URL: config.MIRROR_URL }
  throw new ConfigError(
    'DATABASE_URL is a value (not shown) whose mirror has taken over; it may be the URL of that one, or MIRROR_URL may be'
  )
}

/** @throws ConfigError */
export function mirrorFiles({ DATABASE_URL: url, MIRROR_URL: mirror }: Config): MirrorFiles | undefined {
  const path = sqlitePath(url)
  if (path !== undefined && path !== ':memory:') return new MirrorFiles(path)
  if (mirror !== undefined)
    throw new ConfigError(
      'MIRROR_URL is a value that is refused (not shown): only a SQLite file can have a mirror; it may be left out'
    )
  return undefined
}

/** The mirror of this configuration's database, where it may have one. @throws ConfigError */
export function openMirror(config: Config): Mirror | undefined {
  const files = mirrorFiles(config)
  if (files === undefined || config.MIRROR_URL === undefined) return undefined
  const tenancy = config.TENANCY === 'multi' ? 'multi' : 'single'
  return new Mirror({
    files,
    databases: {
      sqlite: { databaseUrl: config.DATABASE_URL, tenancy },
      postgres: {
        databaseUrl: config.MIRROR_URL,
        tenancy,
        ...(config.postgresTls === undefined ? {} : { tls: config.postgresTls })
      }
    }
  })
}

/** Takes a tenant to another server of `DATABASE_SERVERS`, or `home`; undefined where it is there already. @throws MoveRefused */
export async function moveTenantOf(
  config: Config,
  sets: readonly MigrationSet[],
  tenant: string,
  to: string
): Promise<Moved | undefined> {
  const { DATABASE_URL: url, databaseServers, postgresTls: tls } = config
  if (databaseServers.size === 0) throw new ConfigError('DATABASE_SERVERS is not set; it may name servers to move to')
  const database = (databaseUrl: string) => ({ databaseUrl, tenancy: 'multi' as const, ...(tls && { tls }) })
  const placements = postgresPlacements(url, tls)
  try {
    const databases = new Map([
      [HOME, database(url)],
      ...[...databaseServers].map(([name, at]) => [name, database(at)] as const)
    ])
    return await moveTenant({ tenant, to, databases, placements, sets })
  } finally {
    await placements.close()
  }
}
