import { Counter, type Registry } from 'prom-client'
import { IdempotencyInProgress, IdempotencyKeyReused } from '../http/errors.js'

const OUTCOMES = ['stored', 'replayed', 'conflict', 'in_progress'] as const

/** What became of requests with an `Idempotency-Key`; counted outside of transactions, which may run again. */
export function idempotencyMetrics(registry: Registry) {
  const outcomes = new Counter({
    name: 'http_idempotency_outcomes_total',
    help: 'Requests with an Idempotency-Key: done and kept, answered again, refused for another body, refused while the first runs.',
    labelNames: ['outcome'] as const,
    registers: [registry]
  })
  for (const outcome of OUTCOMES) outcomes.inc({ outcome }, 0)
  return {
    answered: (again: boolean) => outcomes.inc({ outcome: again ? 'replayed' : 'stored' }),
    /** Hands on what was thrown. */
    refused: (error: unknown): never => {
      if (error instanceof IdempotencyKeyReused) outcomes.inc({ outcome: 'conflict' })
      if (error instanceof IdempotencyInProgress) outcomes.inc({ outcome: 'in_progress' })
      throw error
    }
  }
}
