import type { DatabaseEvents } from '../dialects/dialect.js'
import type { Tracing } from './tracing.js'

/** Of several statements in one, the first. */
const VERB = /^\s*(?:with\s+\w+\s+as\s+\(\s*)?(\w+)/i
const TARGET = /\b(?:from|into|update)\s+(?:"[^"]+"\.)?"([^"]+)"/

/** A span for each query below what is under way, on both databases alike. Its text has placeholders where the values were. */
export function traceQueries(events: DatabaseEvents, tracing: Tracing, dialect: string): DatabaseEvents {
  if (!tracing.on) return events
  return {
    ...events,
    query(operation, seconds, error, query, explain) {
      events.query(operation, seconds, error, query, explain)
      if (tracing.traceId() === undefined) return
      const endedAt = Date.now()
      const table = TARGET.exec(query.sql)?.[1]
      const verb = (VERB.exec(query.sql)?.[1] ?? operation).toLowerCase()
      const attributes = {
        'db.system.name': dialect,
        'db.operation.name': verb,
        'db.query.text': query.sql,
        ...(table === undefined ? {} : { 'db.collection.name': table })
      }
      const name = table === undefined ? verb : `${verb} ${table}`
      tracing.past(name, { startedAt: endedAt - seconds * 1000, endedAt }, { kind: 'client', attributes }, error)
    }
  }
}
