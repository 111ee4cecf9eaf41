import {
  type CompiledQuery,
  type DatabaseConnection,
  type LogEvent,
  PostgresDialect,
  PostgresDriver,
  type QueryResult
} from 'kysely'
import pg from 'pg'
import { statementName } from '../prepared.js'
import { endSilent, WatchedClient } from './watched-client.js'

/** So many statements a connection keeps ready: each takes some 30 kB of the server, and each tenant has its own. */
const STATEMENTS_MAX = 200
const CHANGES = new Set(['INSERT', 'UPDATE', 'DELETE', 'MERGE'])

/** @returns the pool, and what stops looking for connections that fell silent */
export function openPool(connection: pg.PoolConfig, max: number): { pool: pg.Pool; unwatch: () => void } {
  const pool = new pg.Pool({ ...connection, max, types: { getTypeParser }, Client: WatchedClient, pipeline: true })
  const unwatch = endSilent(pool, connection)
  // An idle connection that breaks (server restart) must not end the process; the next checkout makes a new one.
  pool.on('error', () => {})
  // One that breaks between two statements of a transaction says so too; the statement that follows fails and tells the caller.
  pool.on('connect', (client) => void client.on('error', () => {}))
  return { pool, unwatch }
}

interface PooledOptions {
  pool: pg.Pool
  /** Is told for how many seconds somebody waited for a connection. */
  waited: (seconds: number) => void
  /** Is told of each statement how long the server was at it, without the time that it was at those before. */
  log: (event: LogEvent) => void
}

/** PostgreSQL over a pool of connections that take statements before they have answered those before, and keep prepared ones. */
export class PooledDialect extends PostgresDialect {
  readonly #options: PooledOptions
  constructor(options: PooledOptions) {
    super({ pool: options.pool })
    this.#options = options
  }
  override createDriver(): PooledDriver {
    return new PooledDriver(this.#options)
  }
}

class PooledDriver extends PostgresDriver {
  readonly #options: PooledOptions
  readonly #connections = new WeakMap<pg.PoolClient, PooledConnection>()
  constructor(options: PooledOptions) {
    super({ pool: options.pool })
    this.#options = options
  }
  override async acquireConnection(): Promise<DatabaseConnection> {
    const { pool, waited, log } = this.#options
    const askedAt = performance.now()
    try {
      const client = await pool.connect()
      const connection = this.#connections.get(client) ?? new PooledConnection(client, log)
      this.#connections.set(client, connection)
      return connection
    } finally {
      waited((performance.now() - askedAt) / 1000)
    }
  }
  override async releaseConnection(connection: DatabaseConnection): Promise<void> {
    if (connection instanceof PooledConnection) connection.release()
  }
}

class PooledConnection implements DatabaseConnection {
  readonly #client: pg.PoolClient
  readonly #log: PooledOptions['log']
  readonly #kept = new Set<string>()
  #direct = false
  #corked = false
  #answeredAt = 0

  constructor(client: pg.PoolClient, log: PooledOptions['log']) {
    this.#client = client
    this.#log = log
    // A pooler in between gives each transaction another session, which keeps nothing of this one; it greets with a number of its own.
    client
      .query<{ pid: number }>('select pg_backend_pid() as pid')
      .then(({ rows }) => {
        this.#direct = rows[0]?.pid === Reflect.get(client, 'processID')
      })
      .catch(() => {})
  }

  async executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>> {
    this.#together()
    const sentAt = performance.now()
    const took = () => {
      const begunAt = Math.max(sentAt, this.#answeredAt)
      this.#answeredAt = performance.now()
      return { query, queryDurationMillis: this.#answeredAt - begunAt }
    }
    try {
      const result = await this.#run<R>(query)
      this.#log({ level: 'query', ...took() })
      return result
    } catch (error) {
      this.#log({ level: 'error', error, ...took() })
      throw error
    }
  }

  /** What is sent in one go leaves in one packet: each write of a socket costs as much as the rest of sending. */
  #together(): void {
    if (this.#corked || !(this.#client instanceof WatchedClient)) return
    const { socket } = this.#client
    this.#corked = true
    socket.cork()
    process.nextTick(() => {
      this.#corked = false
      socket.uncork()
    })
  }

  async #run<R>(query: CompiledQuery): Promise<QueryResult<R>> {
    const name = this.#nameFor(query)
    const config = { text: query.sql, values: [...query.parameters], ...(name === undefined ? {} : { name }) }
    const { command, rowCount, rows } = await this.#client.query<R & pg.QueryResultRow>(config)
    // A statement before it had failed, and whoever asked for that has not told.
    if (query.sql === 'commit' && command !== 'COMMIT') throw new Error('the transaction was rolled back at its commit')
    return CHANGES.has(command) ? { numAffectedRows: BigInt(rowCount ?? 0), rows } : { rows: rows ?? [] }
  }

  // biome-ignore lint/correctness/useYield: nothing here streams
  async *streamQuery<R>(): AsyncIterableIterator<QueryResult<R>> {
    throw new Error('a connection that takes several statements at once does not stream')
  }

  release(): void {
    this.#client.release()
  }

  /**
   * What is asked again and again with other values is planned once for each connection: to plan such a statement takes the server
   * longer than to run it.
   */
  #nameFor(query: CompiledQuery): string | undefined {
    const name = this.#direct ? statementName(query) : undefined
    if (name === undefined || this.#kept.has(name)) return name
    if (this.#kept.size >= STATEMENTS_MAX) return undefined
    this.#kept.add(name)
    return name
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
