import type { FastifyBaseLogger } from 'fastify'
import { LRUCache } from 'lru-cache'
import type { DatabaseEvents } from '../dialects/dialect.js'
import type { Tracing } from './tracing.js'

/** A plan costs a connection: one at a time, one in ten seconds, and one in ten minutes for each text. */
const PLAN_EVERY_MS = 10_000
const SAME_PLAN_EVERY_MS = 600_000
const TEXTS_MAX = 500
const SQL_MAX_CHARS = 4_000

interface SlowQueryOptions {
  /** Longer than this is slow. */
  readonly seconds: number
  readonly log: FastifyBaseLogger
  readonly tracing: Pick<Tracing, 'traceId' | 'detached'>
  readonly dialect: string
}

/** Writes slow queries to the log, now and then with the plan. The text has placeholders where the values were. */
export function logSlowQueries(events: DatabaseEvents, options: SlowQueryOptions): DatabaseEvents {
  const { seconds: threshold, log, tracing, dialect } = options
  const explained = new LRUCache<string, true>({ max: TEXTS_MAX, ttl: SAME_PLAN_EVERY_MS })
  let explainedAt = Number.NEGATIVE_INFINITY
  const mayExplain = (sql: string) => {
    const now = performance.now()
    if (now - explainedAt < PLAN_EVERY_MS || explained.has(sql)) return false
    explainedAt = now
    explained.set(sql, true)
    return true
  }
  return {
    ...events,
    query(operation, seconds, error, query, explain) {
      events.query(operation, seconds, error, query, explain)
      if (seconds <= threshold) return
      const traceId = tracing.traceId()
      const line = {
        dialect,
        operation,
        seconds,
        sql: query.sql.slice(0, SQL_MAX_CHARS),
        ...(traceId === undefined ? {} : { traceId })
      }
      const write = (plan?: readonly string[]) => log.warn(plan === undefined ? line : { ...line, plan }, 'slow query')
      if (!mayExplain(query.sql)) return write()
      tracing.detached(() => explain(query)).then(write, () => write())
    }
  }
}
