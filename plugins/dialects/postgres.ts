import { Kysely, type KyselyPlugin, OperationNodeTransformer, type QueryId, type RawNode, sql, TableNode } from 'kysely'
import pg from 'pg'
import type { TlsIdentity } from '../config/secrets.js'
import { type DatabaseEvents, type DatabaseServer, PLUGINS, type RawTransact, type TenantDatabase } from './dialect.js'
import { explainAt } from './postgres-explain.js'
import { openPool, PooledDialect } from './postgres-pool.js'
import { createStatistics } from './postgres-statistics.js'
import { pipelined, unused } from './postgres-transaction.js'
import { observe } from './sqlite.js'

const RETRIES_MAX = 5
const PING_TIMEOUT_MS = 2_000
/** An online migration takes two at once. */
const POOL_MIN_WITH_GATE = 2
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
  // What every request waits for stands in no line behind those that were let in; where there are so few, all share them.
  const kept = poolSize > POOL_MIN_WITH_GATE ? 1 : 0
  const { pool, unwatch } = openPool(connection, poolSize - kept)
  const log = observe(events, explainAt(connection))
  const dialect = new PooledDialect({ pool, waited: events.waited, log })
  const root = new Kysely<unknown>({ dialect, plugins: PLUGINS })
  const gate = kept === 0 ? undefined : openGate(connection, log)
  const open = { root, gate: gate?.root, rest: unused(dialect), events }
  const ask = async (text: string): Promise<pg.QueryResultRow[]> => {
    const client = await pool.connect()
    try {
      return (await client.query({ text, query_timeout: PING_TIMEOUT_MS } as pg.QueryConfig)).rows
    } finally {
      client.release()
    }
  }
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
    open: async (tenant) => openSchema(open, schemaPrefix + tenant),
    ping: async () => void (await ask('select 1')),
    takesWrites: async () => {
      const [row] = await ask("select current_setting('transaction_read_only') as read_only")
      if (row?.read_only !== 'off') throw new Error('it takes no writes')
    },
    pool: () => ({
      idle: pool.idleCount,
      active: pool.totalCount - pool.idleCount,
      waiting: pool.waitingCount,
      max: poolSize - kept
    }),
    statistics: createStatistics(pool),
    close: async () => {
      unwatch()
      await gate?.close()
      await root.destroy()
    }
  }
}

/** The driver lets those of the URL win, and one of them turns verification off. */
export function withoutTlsParameters(url: string): string {
  const parsed = new URL(url)
  for (const name of [...parsed.searchParams.keys()]) if (name.startsWith('ssl')) parsed.searchParams.delete(name)
  return parsed.href
}

/** One connection, which takes no transactions. */
function openGate(connection: pg.ClientConfig, log: ReturnType<typeof observe>) {
  // Kept while nobody asks, too: when there is a crowd it may be late for a new one.
  const { pool, unwatch } = openPool({ ...connection, idleTimeoutMillis: 0 }, 1)
  const root = new Kysely<unknown>({ dialect: new PooledDialect({ pool, waited: () => {}, log }), plugins: PLUGINS })
  const close = async () => {
    unwatch()
    await root.destroy()
  }
  return { root, close }
}

interface Open {
  root: Kysely<unknown>
  gate: Kysely<unknown> | undefined
  rest: ReturnType<typeof unused>
  events: DatabaseEvents
}

function openSchema({ root, gate, rest, events }: Open, schema: string): TenantDatabase {
  const tables = new RawTablesInSchema(schema)
  const own = (all: Kysely<unknown>) => all.withSchema(schema).withPlugin(tables)
  const db = own(root)
  return {
    dialect: 'postgres',
    db,
    transact: retrying(db, rest, events),
    ...(gate === undefined ? {} : { gate: own(gate) }),
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
  (db: Kysely<unknown>, rest: ReturnType<typeof unused>, events: DatabaseEvents): RawTransact =>
  async (work, options = {}) => {
    for (let attempt = 1; ; attempt++) {
      const startedAt = performance.now()
      const seconds = () => (performance.now() - startedAt) / 1000
      try {
        const result = await pipelined(db, rest, work, options)
        events.transaction('commit', seconds())
        return result
      } catch (error) {
        const retry = attempt < RETRIES_MAX && error instanceof pg.DatabaseError && RETRYABLE.has(error.code ?? '')
        events.transaction(retry ? 'retry' : 'rollback', seconds())
        if (!retry) throw error
      }
    }
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
