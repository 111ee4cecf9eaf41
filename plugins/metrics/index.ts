import { gzipSync } from 'node:zlib'
import { negotiate } from '@fastify/accept-negotiator'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import { problems } from '../../schemas/common.js'
import { access } from '../contracts.js'
import type { DatabaseEvents, DatabaseServer } from '../dialects/dialect.js'
import type { Tenants } from '../tenants.js'
import { exposition, expositionType } from './exposition.js'
import { kept, WATCHED } from './kept-figures.js'

const DATABASE_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5]

/** At once: 100 kB take under 1 ms, a stream of them takes 5 and goes round the event loop with each piece. */
const GZIP = { level: 1 }

/** One registry for each app, never the global one: two apps in one process must work. */
export function createRegistry(version: string): Registry {
  const registry = new Registry()
  const info = new Gauge({
    name: 'app_build_info',
    help: 'Build identity; always 1.',
    labelNames: ['version'],
    registers: [registry]
  })
  info.set({ version }, 1)
  return registry
}

/** `slowSeconds`: a query that takes longer counts as slow. */
export function databaseMetrics(registry: Registry, dialect: string, slowSeconds: number): DatabaseEvents {
  const queries = new Histogram({
    name: 'db_query_duration_seconds',
    help: 'Query latency.',
    labelNames: ['dialect', 'operation'] as const,
    buckets: DATABASE_SECONDS,
    registers: [registry]
  })
  const errors = new Counter({
    name: 'db_query_errors_total',
    help: 'Failed queries.',
    labelNames: ['dialect', 'kind'] as const,
    registers: [registry]
  })
  const slow = new Counter({
    name: 'db_slow_queries_total',
    help: 'Queries that took longer than SLOW_QUERY_MS.',
    labelNames: ['dialect', 'operation'] as const,
    registers: [registry]
  })
  const transactions = new Counter({
    name: 'db_transactions_total',
    help: 'Transactions ended.',
    labelNames: ['dialect', 'outcome'] as const,
    registers: [registry]
  })
  const durations = new Histogram({
    name: 'db_transaction_duration_seconds',
    help: 'Transaction latency, waiting included.',
    labelNames: ['dialect'] as const,
    buckets: DATABASE_SECONDS,
    registers: [registry]
  })
  const waits = new Histogram({
    name: 'db_wait_seconds',
    help: 'Wait for a connection of the pool (PostgreSQL), or for the turn to write (SQLite).',
    labelNames: ['dialect'] as const,
    buckets: DATABASE_SECONDS,
    registers: [registry]
  })
  const groups = new Histogram({
    name: 'db_group_commit_transactions',
    help: 'Transactions that shared one commit, and so one wait for the disk; on PostgreSQL each has its own.',
    buckets: [1, 2, 4, 8, 16, 32, 64],
    registers: [registry]
  })
  const reports = new Counter({
    name: 'db_reports_total',
    help: 'Reports begun where there is a read replica, by where they were read.',
    labelNames: ['place'] as const,
    registers: [registry]
  })
  const caughtUp = new Histogram({
    name: 'db_replica_wait_seconds',
    help: 'Wait of a report until the replica had all that was committed before it.',
    buckets: DATABASE_SECONDS,
    registers: [registry]
  })
  for (const place of ['replica', 'primary']) reports.inc({ place }, 0)
  waits.zero({ dialect })
  for (const kind of ERROR_KINDS) errors.inc({ dialect, kind }, 0)
  for (const outcome of ['commit', 'rollback', 'retry']) transactions.inc({ dialect, outcome }, 0)
  for (const operation of ['select', 'insert', 'update', 'delete', 'other']) {
    queries.zero({ dialect, operation })
    slow.inc({ dialect, operation }, 0)
  }
  durations.zero({ dialect })
  return {
    query: (operation, seconds, error) => {
      queries.observe({ dialect, operation }, seconds)
      if (seconds > slowSeconds) slow.inc({ dialect, operation })
      if (error !== undefined) errors.inc({ dialect, kind: errorKind(error) })
    },
    transaction: (outcome, seconds) => {
      transactions.inc({ dialect, outcome })
      if (outcome !== 'retry') durations.observe({ dialect }, seconds)
    },
    waited: (seconds) => waits.observe({ dialect }, seconds),
    grouped: (transactions) => groups.observe(transactions),
    reported: (place, seconds) => {
      reports.inc({ place })
      if (place === 'replica') caughtUp.observe(seconds)
    }
  }
}

const ERROR_KINDS = ['constraint', 'busy', 'timeout', 'connection', 'deadlock', 'serialization', 'other'] as const
const ERROR_CODES: [RegExp, (typeof ERROR_KINDS)[number]][] = [
  [/^(SQLITE_CONSTRAINT|23)/, 'constraint'],
  [/^(SQLITE_BUSY|SQLITE_LOCKED|55P03)/, 'busy'],
  [/^(57014)/, 'timeout'],
  [/^(08|57P0|ECONN|EPIPE)/, 'connection'],
  [/^40P01/, 'deadlock'],
  [/^40001/, 'serialization']
]
function errorKind(error: unknown): (typeof ERROR_KINDS)[number] {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  return ERROR_CODES.find(([pattern]) => pattern.test(code))?.[1] ?? 'other'
}

/** What this process knows is read when Prometheus asks; what the database knows is found behind a scrape. */
export function databaseGauges(registry: Registry, server: DatabaseServer, tenants: Tenants): void {
  const dialect = server.dialect === 'postgres' ? 'postgresql' : 'sqlite'
  const answers = (): Promise<number> =>
    server.ping().then(
      () => 1,
      () => 0
    )
  const ping = kept(answers, WATCHED)
  new Gauge({
    name: 'db_up',
    help: '1 when the database answers a probe.',
    labelNames: ['dialect'],
    registers: [registry],
    async collect() {
      const up = await ping()
      if (up !== undefined) this.set({ dialect }, up)
    }
  })
  new Gauge({
    name: 'db_pool_connections',
    help: 'Connections by state.',
    labelNames: ['state'],
    registers: [registry],
    collect() {
      const { idle, active, waiting } = server.pool()
      this.set({ state: 'idle' }, idle)
      this.set({ state: 'active' }, active)
      this.set({ state: 'waiting' }, waiting)
    }
  })
  new Gauge({
    name: 'db_pool_max_connections',
    help: 'Pool limit.',
    registers: [registry],
    collect() {
      this.set(server.pool().max)
    }
  })
  const found = kept(() => tenants.sizes())
  const size = (name: string, help: string, part: 'database' | 'writeAheadLog') =>
    new Gauge({
      name,
      help,
      labelNames: ['dialect'],
      registers: [registry],
      async collect() {
        const sizes = await found()
        if (sizes !== undefined) this.set({ dialect }, sizes[part])
      }
    })
  size('db_size_bytes', 'Database size.', 'database')
  size('db_wal_size_bytes', 'Write-ahead log size.', 'writeAheadLog')
}

/**
 * `/metrics` in Prometheus text, or OpenMetrics when asked. Behind `METRICS_TOKEN` when one is set.
 * @param gather tells the metrics of this process and its neighbours, where it is one of a cluster
 */
export function metricsRoute(
  app: FastifyInstance,
  registry: Registry,
  gather: ((openMetrics: boolean) => Promise<string>) | undefined,
  allowed: (request: FastifyRequest) => boolean,
  refuse: () => Error
): void {
  const text = { schema: { type: 'string' } }
  const schema = {
    summary: 'Metrics for Prometheus; behind a token of its own where METRICS_TOKEN is set',
    tags: ['metrics'],
    response: {
      200: { description: 'Metrics', content: { 'text/plain': text, 'application/openmetrics-text': text } },
      ...problems
    }
  }
  app.get('/metrics', { schema, config: access('public'), logLevel: 'warn' }, async (request, reply: FastifyReply) => {
    if (!allowed(request)) throw refuse()
    const openMetrics = request.headers.accept?.includes('application/openmetrics-text') === true
    const told = await (gather?.(openMetrics) ?? exposition(registry, openMetrics))
    reply.type(expositionType(openMetrics))
    if (negotiate(request.headers['accept-encoding'] ?? '', ['br', 'gzip']) !== 'gzip') return reply.send(told)
    return reply.header('content-encoding', 'gzip').send(gzipSync(told, GZIP))
  })
}
