import {
  Kysely,
  type KyselyPlugin,
  OperationNodeTransformer,
  PostgresDialect,
  type QueryId,
  type RawNode,
  sql,
  TableNode
} from 'kysely'
import pg from 'pg'
import type { TlsIdentity } from '../config/secrets.js'
import { type DatabaseEvents, type DatabaseServer, PLUGINS, type RawTransact, type TenantDatabase } from './dialect.js'
import { explainAt } from './postgres-explain.js'
import { createStatistics } from './postgres-statistics.js'
import { observe } from './sqlite.js'
import { endSilent, WatchedClient } from './watched-client.js'

const RETRIES_MAX = 5
const PING_TIMEOUT_MS = 2_000
/**
 * serialization_failure, deadlock_detected, unique_violation: the transaction had no effect and may run again. The last is
 * two that make the same thing at once; run again, the later one sees what the other made and says so in its own words.
 */
const RETRYABLE = new Set(['40001', '40P01', '23505'])
export const SCHEMA_PREFIX = 'tenant_'

interface PostgresServerOptions {
  url: string
  /** Given: the connection is encrypted, and the server's certificate and name are verified (`verify-full`). */
  tls?: TlsIdentity | undefined
  poolSize: number
  events: DatabaseEvents
  /** What the names of the tenants' schemas start with. */
  schemaPrefix?: string
}

/** PostgreSQL: a schema is a tenant, over one shared pool. */
export function postgresServer(options: PostgresServerOptions): DatabaseServer {
  const { url, tls, poolSize, events, schemaPrefix = SCHEMA_PREFIX } = options
  const connection = {
    connectionString: tls === undefined ? url : withoutTlsParameters(url),
    ...(tls === undefined ? {} : { ssl: { ...tls, rejectUnauthorized: true } }),
    connectionTimeoutMillis: 5_000,
    application_name: 'inventory-enterprise'
  }
  const pool = new pg.Pool({ ...connection, max: poolSize, types: { getTypeParser }, Client: WatchedClient })
  const unwatch = endSilent(pool, connection)
  // An idle connection that breaks (server restart) must not end the process; the next checkout makes a new one.
  pool.on('error', () => {})
  // One that breaks between two statements of a transaction says so too; the statement that follows fails and tells the caller.
  pool.on('connect', (client) => void client.on('error', () => {}))
  const waits = {
    connect: async () => {
      const askedAt = performance.now()
      try {
        return await pool.connect()
      } finally {
        events.waited((performance.now() - askedAt) / 1000)
      }
    },
    end: () => {
      unwatch()
      return pool.end()
    }
  }
  const dialect = new PostgresDialect({ pool: waits })
  const log = observe(events, explainAt(connection))
  const root = new Kysely<unknown>({ dialect, log, plugins: PLUGINS })
  return {
    dialect: 'postgres',
    tenants: async () => {
      const { rows } = await sql<{ name: string }>`
        select nspname as name from pg_namespace where starts_with(nspname, ${schemaPrefix}) order by nspname`.execute(
        root
      )
      return rows.map(({ name }) => name.slice(schemaPrefix.length))
    },
    exists: async (tenant) => {
      const { rows } = await sql`select from pg_namespace where nspname = ${schemaPrefix + tenant}`.execute(root)
      return rows.length > 0
    },
    create: async (tenant) => {
      const make = () =>
        root.schema
          .createSchema(schemaPrefix + tenant)
          .ifNotExists()
          .execute()
      // Of two nodes that make it at once one is told that the other has, in spite of `if not exists`.
      await make().catch((error) => {
        if (!(error instanceof pg.DatabaseError) || !/^(23505|42P06)$/.test(error.code ?? '')) throw error
      })
    },
    drop: async (tenant) => {
      await root.schema
        .dropSchema(schemaPrefix + tenant)
        .ifExists()
        .cascade()
        .execute()
    },
    open: async (tenant) => openSchema(root, schemaPrefix + tenant, events),
    ping: async () => {
      const client = await pool.connect()
      try {
        await client.query({ text: 'select 1', query_timeout: PING_TIMEOUT_MS } as pg.QueryConfig)
      } finally {
        client.release()
      }
    },
    pool: () => ({
      idle: pool.idleCount,
      active: pool.totalCount - pool.idleCount,
      waiting: pool.waitingCount,
      max: poolSize
    }),
    statistics: createStatistics(pool),
    close: () => root.destroy()
  }
}

/** The driver lets those of the URL win, and one of them turns verification off. */
export function withoutTlsParameters(url: string): string {
  const parsed = new URL(url)
  for (const name of [...parsed.searchParams.keys()]) if (name.startsWith('ssl')) parsed.searchParams.delete(name)
  return parsed.href
}

function openSchema(root: Kysely<unknown>, schema: string, events: DatabaseEvents): TenantDatabase {
  const db = root.withSchema(schema).withPlugin(new RawTablesInSchema(schema))
  return {
    dialect: 'postgres',
    db,
    transact: retrying(db, events),
    migrator: { db, schema },
    foreignVersion: () => undefined,
    sizeBytes: async () => {
      const { rows } = await sql<{ size: number }>`select pg_database_size(current_database()) as size`.execute(root)
      return { database: rows[0]?.size ?? 0, writeAheadLog: 0 }
    },
    close: async () => {}
  }
}

const retrying =
  (db: Kysely<unknown>, events: DatabaseEvents): RawTransact =>
  async (work, { durability = 'full' } = {}) => {
    const run = async (tx: Kysely<unknown>) => {
      if (durability === 'relaxed') await sql`set local synchronous_commit = off`.execute(tx)
      return work(tx)
    }
    for (let attempt = 1; ; attempt++) {
      const startedAt = performance.now()
      const seconds = () => (performance.now() - startedAt) / 1000
      try {
        const result = await db.transaction().execute(run)
        events.transaction('commit', seconds())
        return result
      } catch (error) {
        const retry = attempt < RETRIES_MAX && error instanceof pg.DatabaseError && RETRYABLE.has(error.code ?? '')
        events.transaction(retry ? 'retry' : 'rollback', seconds())
        if (!retry) throw error
      }
    }
  }

/** BIGINT and NUMERIC come as text. All we store fits 2⁵³; what would not must fail rather than lose digits. */
function getTypeParser(oid: number, format?: 'text' | 'binary') {
  if (oid === pg.types.builtins.INT8 || oid === pg.types.builtins.NUMERIC) {
    return (text: string) => {
      const value = Number(text)
      if (Number.isInteger(value) && !Number.isSafeInteger(value))
        throw new RangeError('an integer from the database leaves 2^53')
      return value
    }
  }
  return pg.types.getTypeParser(oid, format === 'binary' ? 'text' : format)
}

/** `withSchema` leaves tables inside raw SQL alone; this puts `sql.table('x')` of a raw fragment into the tenant's schema too. */
class RawTablesInSchema implements KyselyPlugin {
  readonly #transformer: OperationNodeTransformer
  constructor(schema: string) {
    this.#transformer = new (class extends OperationNodeTransformer {
      protected override transformRaw(node: RawNode, queryId: QueryId): RawNode {
        const raw = super.transformRaw(node, queryId)
        return {
          ...raw,
          parameters: raw.parameters.map((parameter) =>
            TableNode.is(parameter) && parameter.table.schema === undefined
              ? TableNode.createWithSchema(schema, parameter.table.identifier.name)
              : parameter
          )
        }
      }
    })()
  }
  transformQuery: KyselyPlugin['transformQuery'] = ({ node, queryId }) => this.#transformer.transformNode(node, queryId)
  transformResult: KyselyPlugin['transformResult'] = async ({ result }) => result
}
