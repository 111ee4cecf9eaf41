import { Counter, Gauge, type Registry } from 'prom-client'
import type { DatabaseServer, DatabaseStatistics, PostgresStatistics } from '../dialects/dialect.js'
import type { Tenants } from '../tenants.js'
import { kept } from './kept-figures.js'

/**
 * What the engine says of itself. On PostgreSQL these are figures of the server, the same from every node: a query over nodes takes
 * their maximum. Where the database does not answer they are left out, and the other metrics are there all the same.
 */
export function databaseStatistics(registry: Registry, server: DatabaseServer, tenants: Tenants): void {
  const dialect = server.dialect === 'postgres' ? 'postgresql' : 'sqlite'
  const declare = declarations(
    registry,
    kept(() => server.statistics())
  )
  declare.counter(
    'db_checkpoints_total',
    'Checkpoints of the server (PostgreSQL), or times that a write-ahead log began anew (SQLite).',
    'dialect',
    ({ checkpoints }) => ({ [dialect]: checkpoints })
  )
  if (dialect === 'sqlite') {
    const help = 'Space inside the database files that nothing uses.'
    declare.gauge('db_free_bytes', help, 'dialect', ({ freeBytes = 0 }) => ({ [dialect]: freeBytes }))
  } else serverMetrics(declare)
  schemaMetrics(registry, tenants)
}

/** Figures by the one label that they have. */
type Read = (found: DatabaseStatistics) => Readonly<Record<string, number>>
type Declare = (name: string, help: string, label: string, read: Read) => void

function declarations(registry: Registry, ask: () => Promise<DatabaseStatistics | undefined>) {
  const counter: Declare = (name, help, label, read) =>
    void new Counter({
      name,
      help,
      labelNames: [label],
      registers: [registry],
      async collect() {
        const found = await ask()
        // Not set back to 0 where there is no answer: Prometheus would count all of it again afterwards.
        if (found === undefined) return
        this.reset()
        for (const [value, count] of Object.entries(read(found))) this.inc({ [label]: value }, count)
      }
    })
  const gauge: Declare = (name, help, label, read) =>
    void new Gauge({
      name,
      help,
      labelNames: [label],
      registers: [registry],
      async collect() {
        const found = await ask()
        this.reset()
        for (const [value, count] of Object.entries(found === undefined ? {} : read(found)))
          this.set({ [label]: value }, count)
      }
    })
  return { counter, gauge }
}

function serverMetrics({ counter, gauge }: ReturnType<typeof declarations>): void {
  const whole =
    (read: (server: PostgresStatistics) => number): Read =>
    ({ server }): Record<string, number> =>
      server === undefined ? {} : { postgresql: read(server) }
  gauge(
    'db_server_connections',
    'Connections to this database on the server, by whomever, by state.',
    'state',
    ({ server }) => ({ ...server?.connections })
  )
  const max = 'Connections that the server allows, to all its databases.'
  gauge(
    'db_server_max_connections',
    max,
    'dialect',
    whole((server) => server.connectionsMax)
  )
  const waiters = 'Sessions of this database that wait for a lock of another.'
  gauge(
    'db_server_lock_waiters',
    waiters,
    'dialect',
    whole((server) => server.lockWaiters)
  )
  gauge(
    'db_server_oldest_transaction_age_seconds',
    'Age of the transaction that is open longest: until it ends, what died since cannot be removed.',
    'dialect',
    whole((server) => server.oldestTransactionSeconds)
  )
  const deadlocks = 'Deadlocks that the server broke.'
  counter(
    'db_server_deadlocks_total',
    deadlocks,
    'dialect',
    whole((server) => server.deadlocks)
  )
  counter(
    'db_blocks_read_total',
    'Blocks read, by whether the server had them in its memory.',
    'source',
    ({ server }) => ({ ...server?.blocks })
  )
  const temporary = 'Written to temporary files by queries that wanted more memory than work_mem allows.'
  counter(
    'db_temporary_bytes_total',
    temporary,
    'dialect',
    whole((server) => server.temporaryBytes)
  )
}

function schemaMetrics(registry: Registry, tenants: Tenants): void {
  const registers = [registry]
  new Gauge({
    name: 'db_schema_info',
    help: 'The last migration of each module that this process knows; always 1.',
    labelNames: ['module', 'migration'] as const,
    registers,
    collect() {
      for (const { module, migrations } of tenants.migrations()) {
        const migration = Object.keys(migrations).sort().at(-1)
        if (migration !== undefined) this.set({ module, migration }, 1)
      }
    }
  })
  new Gauge({
    name: 'db_tenants',
    help: 'Tenants that this process has open.',
    registers,
    collect() {
      this.set(tenants.opens)
    }
  })
}
