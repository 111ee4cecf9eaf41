import { ConfigError } from './config.js'
import type { DatabaseEvents, DatabaseServer } from './dialects/dialect.js'
import { postgresServer } from './dialects/postgres.js'
import { sqliteServer } from './dialects/sqlite.js'

export interface DatabaseOptions {
  /** `sqlite:<path>`, `sqlite::memory:` or `postgres://user@host:port/database`. */
  databaseUrl: string
  tenancy: 'single' | 'multi'
  poolSize: number
}

/** The dialect switcher: the scheme of the URL chooses the engine. @throws ConfigError for any other scheme */
export function openDatabaseServer(options: DatabaseOptions, events: DatabaseEvents): DatabaseServer {
  const { databaseUrl: url, tenancy, poolSize } = options
  if (/^postgres(ql)?:\/\//.test(url)) return postgresServer({ url, poolSize, events })
  const path = /^sqlite:(?:\/\/)?(.+)$/.exec(url)?.[1]
  if (path !== undefined) return sqliteServer({ path, multi: tenancy === 'multi', events })
  throw new ConfigError(
    'DATABASE_URL is a value that is refused (not shown); it may be sqlite:<path> or postgres://user@host:port/database'
  )
}
