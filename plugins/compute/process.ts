import { readdirSync, writeFileSync } from 'node:fs'
import { setPriority } from 'node:os'
import { Piscina } from 'piscina'

/**
 * The process that computes, with threads of the lowest priority in it: what they allocate is freed, and what they run is
 * compiled, by helpers that requests do not share, and what ends them ends no service. Its parent starts it (`child.ts`).
 * usage: process.js <threads> <megabytes of one thread>
 */

export type Order =
  | { readonly id: number; readonly file: string; readonly input: unknown }
  | { readonly id: number; readonly cancelled: true }
export type Answer = { readonly id: number; readonly usage: Usage } & (
  | { readonly output: unknown }
  | { readonly error: unknown; readonly code: string | undefined }
)
/** What this process uses. */
export interface Usage {
  readonly residentBytes: number
  /** since it started */
  readonly cpuSeconds: number
}

const NICENESS = 19
/** Where memory runs out, Linux ends what is marked with more before what is marked with less (0 to 1,000). */
const ENDED_FIRST = '500'
const THREAD_IDLE_MS = 10_000

const [threads = 1, megabytes = 512] = process.argv.slice(2).map(Number)

takeWhatOthersLeave()
// Whoever stops the service sends these to all of its processes; this one is needed until its parent has no more use of it.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => {})
// However the parent ends, its channel closes.
process.on('disconnect', () => process.exit(0))

const pool = new Piscina({
  minThreads: 0,
  maxThreads: threads,
  idleTimeout: THREAD_IDLE_MS,
  resourceLimits: { maxOldGenerationSizeMb: megabytes }
}).on('error', () => {
  // A thread that dies between tasks concerns nobody; without a listener it would end the process.
})
const running = new Map<number, AbortController>()

process.on('message', (order: Order) => {
  if ('cancelled' in order) running.get(order.id)?.abort()
  else void compute(order.id, order.file, order.input)
})

async function compute(id: number, filename: string, input: unknown): Promise<void> {
  const controller = new AbortController()
  running.set(id, controller)
  try {
    const output: unknown = await pool.run(input, { filename, signal: controller.signal })
    answer({ id, output, usage: usage() })
  } catch (error) {
    // What crosses between processes keeps an error's name and message, not its code.
    const code = error instanceof Error && 'code' in error ? String(error.code) : undefined
    answer({ id, error, code, usage: usage() })
  } finally {
    running.delete(id)
  }
}

function answer(message: Answer): void {
  // Without a parent there is nobody to tell, and this process is about to end.
  process.send?.(message, undefined, undefined, () => {})
}

function usage(): Usage {
  const { user, system } = process.cpuUsage()
  return { residentBytes: process.memoryUsage.rss(), cpuSeconds: (user + system) / 1e6 }
}

/** Each of these helps alone; where the system does not know it, or does not allow it, the others do. */
function takeWhatOthersLeave(): void {
  attempt(() => setPriority(NICENESS))
  if (process.platform !== 'linux') return
  // Linux has a priority for each thread. New ones take that of who starts them, but V8's helpers are there already.
  attempt(() => {
    for (const thread of readdirSync('/proc/self/task')) setPriority(Number(thread), NICENESS)
  })
  attempt(() => writeFileSync('/proc/self/oom_score_adj', ENDED_FIRST))
}

function attempt(work: () => void): void {
  try {
    work()
  } catch {
    // See above.
  }
}
