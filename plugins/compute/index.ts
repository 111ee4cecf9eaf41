import { setMaxListeners } from 'node:events'
import { basename } from 'node:path'
import type { Registry } from 'prom-client'
import type { Compute } from '../contracts.js'
import { ComputeThreadLost } from '../http/errors.js'
import type { TracedInput, TracedOutput } from '../telemetry/traced-worker.js'
import { NO_TRACING, type Tracing } from '../telemetry/tracing.js'
import { type Child, createChild } from './child.js'
import { limiter } from './limiter.js'
import { computeMetrics } from './metrics.js'

const MEMORY_MEGABYTES = 512
const IDLE_MILLISECONDS = 60_000

export interface ComputeOptions {
  registry: Registry
  /** How many tasks run at once, each in a thread of its own. */
  threads: number
  /** Heap of one thread; a task that wants more is ended and rejected. */
  memoryMegabytes?: number
  /** How long their process outlives the last task. */
  idleMilliseconds?: number
  tracing?: Tracing
}

export interface ComputeService extends Compute {
  /** Ends the threads and their process; tasks that run or wait are rejected. */
  close(): Promise<void>
}

/**
 * Worker threads for arithmetic, in a process of the lowest priority. It starts with the first task and ends when idle. Input and
 * output are structured clones. Aborting ends the thread at once and rejects with the signal's reason; a task whose thread dies is
 * rejected with `COMPUTE_MEMORY_EXCEEDED` or `COMPUTE_THREAD_LOST`, and so is one that takes the process with it; the others go on.
 */
export function createCompute(options: ComputeOptions): ComputeService {
  const { threads, tracing = NO_TRACING } = options
  const { memoryMegabytes = MEMORY_MEGABYTES, idleMilliseconds = IDLE_MILLISECONDS } = options
  let closed = false
  const slots = limiter(threads)
  const metrics = computeMetrics(options.registry, threads, slots.load)
  const child = createChild({ threads, memoryMegabytes, idleMilliseconds, used: metrics.used, lost: metrics.lost })
  return {
    // The pool does not replace a thread that died while tasks wait in its own queue, so they wait here instead.
    run: <Input, Output>(file: URL, input: Input, { signal }: { signal?: AbortSignal } = {}) => {
      // A job computes thousands of tasks under its one signal; many listeners are no leak here.
      if (signal !== undefined) setMaxListeners(0, signal)
      const askedAt = performance.now()
      return slots.run(signal, async () => {
        if (closed) throw new ComputeThreadLost({})
        const ended = metrics.started(askedAt)
        try {
          const result =
            tracing.traceId() === undefined
              ? await child.run<Output>(file.href, input, signal)
              : await traced<Output>(child, tracing, { file: file.href, input }, signal)
          ended('success')
          return result
        } catch (error) {
          ended(signal?.aborted === true ? 'cancelled' : 'failure')
          throw error
        }
      })
    },
    close: async () => {
      closed = true
      await child.close()
    }
  }
}

const TRACED_WORKER = new URL('../telemetry/traced-worker.js', import.meta.url).href

/** One span for the task as a whole, with its wait for a thread, and one for what the thread did. */
function traced<Output>(child: Child, tracing: Tracing, task: TracedInput, signal: AbortSignal | undefined) {
  const name = basename(task.file, '.js')
  return tracing.span(`compute ${name}`, {}, async () => {
    const done = await child.run<TracedOutput<Output>>(TRACED_WORKER, task, signal)
    tracing.past(`thread ${name}`, done.time, { attributes: { 'thread.id': done.threadId } })
    return done.output
  })
}
