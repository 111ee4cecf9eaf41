import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance, FastifyRequest } from 'fastify'

/** What a client has left behind may take so long; the rest of the drain belongs to others. */
const WAIT_MILLISECONDS = 5_000
const POLL_MILLISECONDS = 10

export interface UnderWay {
  /** Notes the requests of this context from their first hook to the answer of their handler. */
  watch(app: FastifyInstance): void
  /** When a request last came or was answered, by `performance.now()`. */
  lastAt(): number
  /** Resolves when no handler runs any more, or after a while. */
  ended(): Promise<void>
}

/**
 * Handlers that run, heard or not. A server that closes waits for its connections; the handler of a client that hung up goes on
 * without one, and the database must not close under it.
 */
export function createUnderWay(): UnderWay {
  const running = new Set<FastifyRequest>()
  let lastAt = Number.NEGATIVE_INFINITY
  return {
    watch(app) {
      app.addHook('onRequest', (request, _reply, done) => {
        running.add(request)
        lastAt = performance.now()
        done()
      })
      app.addHook('onSend', (request, _reply, _payload, done) => {
        running.delete(request)
        lastAt = performance.now()
        done()
      })
      // Not every answer passes `onSend`: one that was taken over (a stream) does not. One that was cut off has not ended by this.
      app.addHook('onResponse', (request, reply, done) => {
        if (reply.sent) running.delete(request)
        done()
      })
    },
    lastAt: () => lastAt,
    async ended() {
      const deadline = performance.now() + WAIT_MILLISECONDS
      while (running.size > 0 && performance.now() < deadline) await sleep(POLL_MILLISECONDS)
    }
  }
}
