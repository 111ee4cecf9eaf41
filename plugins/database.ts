import { ConfigError } from './config.js'
import type { DatabaseEvents, DatabaseServer } from './dialects/dialect.js'
import { postgresServer } from './dialects/postgres.js'
import { sqliteServer } from './dialects/sqlite.js'
import type { TlsIdentity } from './secrets.js'
import { tlsFailure } from './tls-failure.js'

export interface DatabaseOptions {
  /** `sqlite:<path>`, `sqlite::memory:` or `postgres://user@host:port/database`. */
  databaseUrl: string
  tenancy: 'single' | 'multi'
  poolSize: number
  /** For PostgreSQL. */
  tls?: TlsIdentity | undefined
}

/** The dialect switcher: the scheme of the URL chooses the engine. @throws ConfigError for any other scheme */
export function openDatabaseServer(options: DatabaseOptions, events: DatabaseEvents): DatabaseServer {
  const { databaseUrl: url, tenancy, poolSize, tls } = options
  if (/^postgres(ql)?:\/\//.test(url)) return postgresServer({ url, tls, poolSize, events })
  const path = /^sqlite:(?:\/\/)?(.+)$/.exec(url)?.[1]
  if (path !== undefined) return sqliteServer({ path, multi: tenancy === 'multi', events })
  throw new ConfigError(
    'DATABASE_URL is a value that is refused (not shown); it may be sqlite:<path> or postgres://user@host:port/database'
  )
}

/** Codes of Node, SQLite and PostgreSQL for a database that is not there or does not let us in. */
const UNUSABLE =
  /^(ECONN\w+|ENOTFOUND|ETIMEDOUT|EAI_AGAIN|28\w{3}|3D000|42501|57P03|SQLITE_(CANTOPEN|NOTADB|READONLY)\w*)$/

/** What the operator is told when the service cannot start on its database: one line, without the URL. */
export function startFailure(error: unknown): unknown {
  const reason = tlsFailure(error)
  if (reason !== undefined)
    return new ConfigError(
      `DATABASE_URL is a value (not shown) whose server is not trusted: ${reason}; it may be one whose certificate POSTGRES_CA_FILE vouches for`
    )
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  if (!UNUSABLE.test(code)) return error
  return new ConfigError(
    `DATABASE_URL is a value (not shown) whose database cannot be used (${code}); it may be sqlite:<path> or postgres://user@host:port/database of one that can`
  )
}
