import { setMaxListeners } from 'node:events'
import { basename } from 'node:path'
import { Piscina } from 'piscina'
import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { Compute } from './contracts.js'
import { ComputeMemoryExceeded, ComputeThreadLost } from './http/errors.js'
import type { TracedInput, TracedOutput } from './telemetry/traced-worker.js'
import { NO_TRACING, type Tracing } from './telemetry/tracing.js'

const IDLE_TIMEOUT_MS = 10_000
const MEMORY_MEGABYTES = 512

export interface ComputeOptions {
  registry: Registry
  /** How many tasks run at once, each in a thread of its own. */
  threads: number
  /** Heap of one thread; a task that wants more is ended and rejected. */
  memoryMegabytes?: number
  tracing?: Tracing
}

export interface ComputeService extends Compute {
  /** Ends the threads; tasks that run or wait are rejected. */
  close(): Promise<void>
}

/**
 * A pool of worker threads for arithmetic. Threads start with the first task and end when idle. Input and output are
 * structured clones. Aborting ends the thread at once and rejects with an `AbortError`; a task whose thread dies is
 * rejected with `COMPUTE_MEMORY_EXCEEDED` or `COMPUTE_THREAD_LOST`, and the pool goes on.
 */
export function createCompute(options: ComputeOptions): ComputeService {
  const { threads, memoryMegabytes = MEMORY_MEGABYTES, tracing = NO_TRACING } = options
  let pool: Piscina | undefined
  let closed = false
  const slots = limiter(threads)
  const metrics = computeMetrics(options.registry, threads, slots.load)
  const start = () =>
    new Piscina({
      minThreads: 0,
      maxThreads: threads,
      idleTimeout: IDLE_TIMEOUT_MS,
      resourceLimits: { maxOldGenerationSizeMb: memoryMegabytes }
    }).on('error', () => {
      // A thread that dies between tasks concerns nobody; without a listener it would end the process.
    })
  return {
    // The pool does not replace a thread that died while tasks wait in its own queue, so they wait here instead.
    run: (file, input, { signal } = {}) => {
      // A job computes thousands of tasks under its one signal; many listeners are no leak here.
      if (signal !== undefined) setMaxListeners(0, signal)
      const askedAt = performance.now()
      return slots.run(signal, async () => {
        if (closed) throw new ComputeThreadLost({})
        pool ??= start()
        const ended = metrics.started(askedAt)
        const how = signal === undefined ? {} : { signal }
        try {
          const result =
            tracing.traceId() === undefined
              ? await pool.run(input, { ...how, filename: file.href })
              : await traced(pool, tracing, { file: file.href, input }, how)
          ended('success')
          return result
        } catch (error) {
          ended(signal?.aborted === true ? 'cancelled' : 'failure')
          throw named(error, memoryMegabytes)
        }
      })
    },
    close: async () => {
      closed = true
      await pool?.destroy()
    }
  }
}

const TRACED_WORKER = new URL('./telemetry/traced-worker.js', import.meta.url).href

/** One span for the task as a whole, with its wait for a thread, and one for what the thread did. */
function traced(pool: Piscina, tracing: Tracing, task: TracedInput, how: { signal?: AbortSignal }) {
  const name = basename(task.file, '.js')
  return tracing.span(`compute ${name}`, {}, async () => {
    const done: TracedOutput = await pool.run(task, { ...how, filename: TRACED_WORKER })
    tracing.past(`thread ${name}`, done.time, { attributes: { 'thread.id': done.threadId } })
    return done.output
  })
}

function named(error: unknown, memoryMegabytes: number): unknown {
  if (!(error instanceof Error)) return error
  if ('code' in error && error.code === 'ERR_WORKER_OUT_OF_MEMORY')
    return new ComputeMemoryExceeded({ memoryMegabytes })
  if (/^worker exited with code|^Terminating worker thread$/.test(error.message)) return new ComputeThreadLost({})
  return error
}

/** Runs at most `limit` at once, the others in the order they came; one that is aborted while it waits is rejected at once. */
function limiter(limit: number) {
  const waiting: (() => void)[] = []
  let free = limit
  const slot = (signal: AbortSignal | undefined) =>
    new Promise<void>((resolve, reject) => {
      const give = () => {
        signal?.removeEventListener('abort', abort)
        resolve()
      }
      const abort = () => {
        waiting.splice(waiting.indexOf(give), 1)
        reject(signal?.reason)
      }
      waiting.push(give)
      signal?.addEventListener('abort', abort, { once: true })
    })
  const run = async <R>(signal: AbortSignal | undefined, work: () => Promise<R>): Promise<R> => {
    signal?.throwIfAborted()
    if (free > 0) free--
    else await slot(signal)
    try {
      return await work()
    } finally {
      const next = waiting.shift()
      if (next === undefined) free++
      else next()
    }
  }
  return { run, load: () => ({ running: limit - free, waiting: waiting.length }) }
}

const SECONDS = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60]

function computeMetrics(registry: Registry, threads: number, load: () => { running: number; waiting: number }) {
  const registers = [registry]
  const tasks = new Counter({
    name: 'compute_tasks_total',
    help: 'Computations in worker threads ended.',
    labelNames: ['outcome'] as const,
    registers
  })
  for (const outcome of ['success', 'failure', 'cancelled']) tasks.inc({ outcome }, 0)
  const histogram = (name: string, help: string) => new Histogram({ name, help, buckets: SECONDS, registers })
  const duration = histogram('compute_task_duration_seconds', 'Time of one computation in its thread.')
  const wait = histogram('compute_task_wait_seconds', 'Time that a computation waited for a thread.')
  const gauge = (name: string, help: string, read: () => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(read())
      }
    })
  gauge('compute_threads', 'Worker threads that there may be.', () => threads)
  gauge('compute_tasks_running', 'Computations that run now.', () => load().running)
  gauge('compute_tasks_waiting', 'Computations that wait for a thread.', () => load().waiting)
  return {
    started: (askedAt: number) => {
      const startedAt = performance.now()
      wait.observe((startedAt - askedAt) / 1000)
      return (outcome: 'success' | 'failure' | 'cancelled') => {
        tasks.inc({ outcome })
        duration.observe((performance.now() - startedAt) / 1000)
      }
    }
  }
}
