import pg from 'pg'
import type { TlsIdentity } from '../config/secrets.js'
import type { DatabaseServer, TenantDatabase } from './dialect.js'
import { withoutTlsParameters } from './postgres.js'

/** Where tenants are that are not on the server of `DATABASE_URL`, kept in a database of that server. */
export interface Placements {
  /** Names of servers by tenant. */
  all(): Promise<ReadonlyMap<string, string>>
  of(tenant: string): Promise<string | undefined>
  set(tenant: string, server: string): Promise<void>
  forget(tenant: string): Promise<void>
  close(): Promise<void>
}

const TABLE = 'inventory_control.placements'

/** Which server holds which tenant, in a table of the first server. */
export function postgresPlacements(url: string, tls?: TlsIdentity): Placements {
  const pool = new pg.Pool({
    connectionString: tls === undefined ? url : withoutTlsParameters(url),
    ...(tls === undefined ? {} : { ssl: { ...tls, rejectUnauthorized: true } }),
    max: 1,
    connectionTimeoutMillis: 5_000,
    application_name: 'inventory-enterprise placements'
  })
  pool.on('error', () => {})
  let made: Promise<unknown> | undefined
  const ready = async () => {
    // Two nodes may start at once; `if not exists` alone does not make that safe.
    made ??= pool.query(`begin; select pg_advisory_xact_lock(hashtext('${TABLE}'));
      create schema if not exists inventory_control;
      create table if not exists ${TABLE} (tenant text primary key, server text not null, moved_at timestamptz not null);
      commit`)
    await made.catch((error) => {
      made = undefined
      throw error
    })
  }
  return {
    all: async () => {
      await ready()
      const { rows } = await pool.query<{ tenant: string; server: string }>(`select tenant, server from ${TABLE}`)
      return new Map(rows.map(({ tenant, server }) => [tenant, server]))
    },
    of: async (tenant) => {
      await ready()
      const { rows } = await pool.query<{ server: string }>(`select server from ${TABLE} where tenant = $1`, [tenant])
      return rows[0]?.server
    },
    set: async (tenant, server) => {
      await ready()
      await pool.query(
        `insert into ${TABLE} values ($1, $2, now()) on conflict (tenant) do update set server = $2, moved_at = now()`,
        [tenant, server]
      )
    },
    forget: async (tenant) => {
      await ready()
      await pool.query(`delete from ${TABLE} where tenant = $1`, [tenant])
    },
    close: () => pool.end()
  }
}

/** The server of `DATABASE_URL`, under this name. */
export const HOME = 'home'

interface PlacedOptions {
  /** By name; `home` is among them. */
  servers: ReadonlyMap<string, DatabaseServer>
  placements: Placements
}

/** Several PostgreSQL servers as one: each tenant is on the one that its placement names, or at home. */
export function placedServer({ servers, placements }: PlacedOptions): DatabaseServer {
  let known = new Map<string, string>()
  const server = (name: string): DatabaseServer => {
    const found = servers.get(name)
    if (found === undefined) throw new Error(`no server is called ${name}: DATABASE_SERVERS does not name it`)
    return found
  }
  const homeOf = (tenant: string) => known.get(tenant) ?? HOME
  const list = async () => {
    const [placed, atHome] = await Promise.all([placements.all(), server(HOME).tenants()])
    known = new Map(placed)
    return [...new Set([...atHome, ...placed.keys()])].sort()
  }
  /** Asks where it is. */
  const find = async (tenant: string) => {
    const name = await placements.of(tenant)
    if (name === undefined) known.delete(tenant)
    else known.set(tenant, name)
    return homeOf(tenant)
  }
  const each = [...servers.values()]
  return {
    dialect: 'postgres',
    homeOf,
    tenants: list,
    exists: async (tenant) => (await find(tenant)) !== HOME || server(HOME).exists(tenant),
    create: (tenant) => server(HOME).create(tenant),
    drop: async (tenant) => {
      await server(await find(tenant)).drop(tenant)
      // What stayed behind when it was moved.
      await server(HOME).drop(tenant)
      await placements.forget(tenant)
    },
    open: async (tenant): Promise<TenantDatabase> => {
      const home = await find(tenant)
      return { ...(await server(home).open(tenant)), home }
    },
    // Where one of the others is away, its tenants are; the service is not.
    ping: () => server(HOME).ping(),
    takesWrites: async () => server(HOME).takesWrites?.(),
    pool: () => {
      const pools = each.map((one) => one.pool())
      const sum = (of: 'idle' | 'active' | 'waiting' | 'max') => pools.reduce((total, pool) => total + pool[of], 0)
      return { idle: sum('idle'), active: sum('active'), waiting: sum('waiting'), max: sum('max') }
    },
    // Of the others nobody asks here: each is watched by what watches PostgreSQL servers.
    statistics: () => server(HOME).statistics(),
    close: async () => {
      await placements.close()
      for (const one of each) await one.close()
    }
  }
}
