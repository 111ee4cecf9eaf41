import { Type } from 'typebox'
import { ConfigError } from './error.js'
import { requireServerUrl } from './server-url.js'

/** Which databases there are: the one of `DATABASE_URL`, and what stands beside it. */

const SERVER = '[a-z][a-z0-9-]{0,39}=postgres(ql)?://\\S+'
const SERVERS_RULE =
  'name=postgres://… pairs separated by spaces, other servers for tenants beside the PostgreSQL of DATABASE_URL, with TENANCY=multi'
const Url = (protocols: string, description: string) => Type.String({ pattern: `^(${protocols}):`, description })

export const DATABASE_VARIABLES = {
  DATABASE_URL: Type.Optional(Url('sqlite|postgres|postgresql', 'sqlite:<path> or postgres://user@host:port/database')),
  DATABASE_SERVERS: Type.Optional(Type.String({ pattern: `^${SERVER}(\\s+${SERVER})*$`, description: SERVERS_RULE })),
  DATABASE_REPLICA_URL: Type.Optional(
    Url(
      'postgres|postgresql',
      'postgres://user@host:port/database of a streaming replica, where DATABASE_URL is a PostgreSQL server'
    )
  ),
  MIRROR_URL: Type.Optional(
    Url('postgres|postgresql', 'postgres://user@host:port/database, where DATABASE_URL is a sqlite:<path>')
  ),
  POSTGRES_POOL_SIZE: Type.Integer({ minimum: 1, maximum: 1000, default: 10, description: '1–1000 connections' })
}

export const DATABASE_SECRETS = ['DATABASE_URL', 'DATABASE_SERVERS', 'DATABASE_REPLICA_URL', 'MIRROR_URL']

interface DatabaseEnvironment {
  readonly TENANCY: string
  readonly CLUSTER_WORKERS: number
  readonly DATABASE_SERVERS?: string | undefined
  readonly DATABASE_REPLICA_URL?: string | undefined
}

/**
 * The other servers, by name.
 * @param url of the first
 * @throws ConfigError for what does not go with it
 */
export function databaseServersOf(env: DatabaseEnvironment, url: string): ReadonlyMap<string, string> {
  const sqlite = url.startsWith('sqlite:')
  if (sqlite && env.CLUSTER_WORKERS > 1) {
    throw new ConfigError(
      `CLUSTER_WORKERS is ${env.CLUSTER_WORKERS}; with a SQLite database it may be 1, since one process serves a file`
    )
  }
  if (sqlite && env.DATABASE_REPLICA_URL !== undefined) {
    throw new ConfigError(
      'DATABASE_REPLICA_URL is a value that is refused (not shown); it may be set where DATABASE_URL is a PostgreSQL server'
    )
  }
  const pairs = env.DATABASE_SERVERS
  if (pairs === undefined) return new Map()
  const servers = new Map(
    pairs.split(/\s+/).map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)] as const)
  )
  for (const [name, at] of servers) requireServerUrl('DATABASE_SERVERS', at, SERVERS_RULE, `what ${name}= names`)
  if (!sqlite && env.TENANCY === 'multi' && !servers.has('home')) return servers
  throw new ConfigError(
    `DATABASE_SERVERS is a value that is refused (not shown); it may be ${SERVERS_RULE}; home is the one of DATABASE_URL`
  )
}
