import { ConfigError } from './config/error.js'
import type { TlsIdentity } from './config/secrets.js'
import type { Place } from './contracts.js'
import type { DatabaseEvents, DatabaseServer } from './dialects/dialect.js'
import { HOME, placedServer, postgresPlacements } from './dialects/placed.js'
import { postgresServer, SCHEMA_PREFIX } from './dialects/postgres.js'
import { replicatedServer } from './dialects/replica.js'
import { sqliteServer, tenantFile } from './dialects/sqlite.js'
import { tlsFailure } from './tls-failure.js'

export interface DatabaseOptions {
  /** `sqlite:<path>`, `sqlite::memory:` or `postgres://user@host:port/database`. */
  databaseUrl: string
  tenancy: 'single' | 'multi'
  poolSize: number
  /** Other PostgreSQL servers by name, where `inventory tenants move` has put tenants. */
  servers?: ReadonlyMap<string, string> | undefined
  /** A streaming replica of the server of `databaseUrl`, from which reports are read. */
  replicaUrl?: string | undefined
  /** The URL of the one that holds a tenant now; `databaseUrl` where it is left out. */
  urlOf?: ((tenant: string) => string) | undefined
  /** For PostgreSQL. */
  tls?: TlsIdentity | undefined
  /** For PostgreSQL: what the names of the tenants' schemas start with, where it is not the service's own. */
  schemaPrefix?: string
}

/** The dialect switcher: the scheme of the URL chooses the engine. @throws ConfigError for any other scheme */
export function openDatabaseServer(options: DatabaseOptions, events: DatabaseEvents): DatabaseServer {
  const { databaseUrl: url, tenancy, poolSize, tls, schemaPrefix = SCHEMA_PREFIX } = options
  if (/^postgres(ql)?:\/\//.test(url)) {
    const open = (at: string) => postgresServer({ url: at, tls, poolSize, events, schemaPrefix })
    const { servers = new Map<string, string>(), replicaUrl } = options
    const home =
      replicaUrl === undefined ? open(url) : replicatedServer({ primary: open(url), replica: open(replicaUrl), events })
    if (servers.size === 0) return home
    const all = new Map([[HOME, home], ...[...servers].map(([name, at]) => [name, open(at)] as const)])
    return placedServer({ servers: all, placements: postgresPlacements(url, tls) })
  }
  const path = sqlitePath(url)
  if (path !== undefined) return sqliteServer({ path, multi: tenancy === 'multi', events })
  throw new ConfigError(
    'DATABASE_URL is a value that is refused (not shown); it may be sqlite:<path> or postgres://user@host:port/database'
  )
}

export const sqlitePath = (url: string) => /^sqlite:(?:\/\/)?(.+)$/.exec(url)?.[1]

/** Where a tenant's data is, for those who read or write it past the service: a file, or a schema of a server. */
export function placeOf(options: Omit<DatabaseOptions, 'poolSize'>, tenant: string): Place {
  const { tenancy, tls, schemaPrefix = SCHEMA_PREFIX } = options
  const databaseUrl = options.urlOf?.(tenant) ?? options.databaseUrl
  const path = sqlitePath(databaseUrl)
  if (path !== undefined) return { dialect: 'sqlite', path: tenantFile(path, tenancy === 'multi', tenant) }
  const schema = schemaPrefix + tenant
  return { dialect: 'postgres', url: databaseUrl, schema, ...(tls === undefined ? {} : { tls }) }
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
