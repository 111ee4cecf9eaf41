import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { ComputeMemoryExceeded, ComputeThreadLost } from '../http/errors.js'
import type { Answer, Order, Usage } from './process.js'

const PROCESS = new URL('./process.js', import.meta.url)
/** What the process is told of the service's environment: nothing that is secret. */
const ENVIRONMENT = ['NODE_OPTIONS', 'NODE_V8_COVERAGE', 'LD_LIBRARY_PATH', 'SYSTEMROOT', 'TZ']
const END_MS = 2_000

export interface ChildOptions {
  threads: number
  memoryMegabytes: number
  /** how long the process outlives its last task */
  idleMilliseconds: number
  /** Told after each answer what the process has used, and of nothing when there is none any more. */
  used(usage: Usage): void
  /** Told that the process ended by itself. */
  lost(): void
}

export interface Child {
  /** @returns what the file's default export made of the input, which nothing checks */
  run<Output>(file: string, input: unknown, signal?: AbortSignal): Promise<Output>
  /** Ends the process; what it computes is rejected. */
  close(): Promise<void>
}

interface Task {
  readonly file: string
  readonly input: unknown
  resolve(output: unknown): void
  reject(error: unknown): void
}

const NOTHING: Usage = { residentBytes: 0, cpuSeconds: 0 }

/**
 * The one process that computes: started with the first task, ended when it was idle for long. When it ends by itself, tasks that it
 * computed are computed again, each alone; the one that it ends with then is at fault.
 */
export function createChild({ threads, memoryMegabytes, idleMilliseconds, used, lost }: ChildOptions): Child {
  let child: ChildProcess | undefined
  let idle: NodeJS.Timeout | undefined
  let last = 0
  const sent = new Map<number, Task>()
  const waiting: Task[] = []
  const suspects: Task[] = []
  /** a suspect is being computed, and nothing else may be until it is known what it does */
  let alone = false

  function next(): void {
    if (sent.size === 0) alone = false
    while (sent.size === 0 && suspects.length > 0) {
      for (const task of suspects.splice(0, 1)) send(task)
      alone = sent.size > 0
    }
    if (!alone) for (const task of waiting.splice(0)) send(task)
    // The process keeps nobody alive but whoever waits for it.
    if (sent.size > 0) {
      clearTimeout(idle)
      child?.ref()
      child?.channel?.ref()
    } else if (child !== undefined) {
      child.unref()
      child.channel?.unref()
      clearTimeout(idle)
      idle = setTimeout(end, idleMilliseconds).unref()
    }
  }

  function send(task: Task): void {
    const { file, input } = task
    const id = ++last
    sent.set(id, task)
    try {
      child ??= start()
      tell(child, { id, file, input })
    } catch (error) {
      sent.delete(id)
      task.reject(error)
    }
  }

  function start(): ChildProcess {
    const env = Object.fromEntries(
      ENVIRONMENT.flatMap((name) => (process.env[name] ? [[name, process.env[name]]] : []))
    )
    const started = fork(PROCESS, [String(threads), String(memoryMegabytes)], {
      env,
      execArgv: [],
      serialization: 'advanced',
      // Standard output is the service's log.
      stdio: ['ignore', 'ignore', 'inherit', 'ipc']
    })
    started.on('message', settle)
    const over = () => {
      if (child !== started) return
      child = undefined
      used(NOTHING)
      lost()
      const tasks = [...sent.values()]
      sent.clear()
      if (tasks.length === 1) for (const task of tasks) task.reject(new ComputeThreadLost({}))
      else suspects.push(...tasks)
      next()
    }
    started.on('error', over).on('exit', over)
    return started
  }

  function settle(answer: Answer): void {
    used(answer.usage)
    const task = sent.get(answer.id)
    sent.delete(answer.id)
    if ('error' in answer) task?.reject(named(answer.error, answer.code, memoryMegabytes))
    else task?.resolve(answer.output)
    next()
  }

  function forget(task: Task): void {
    for (const list of [waiting, suspects]) if (list.includes(task)) list.splice(list.indexOf(task), 1)
    for (const [id, one] of sent) {
      if (one !== task) continue
      sent.delete(id)
      if (child !== undefined) tell(child, { id, cancelled: true })
    }
    next()
  }

  function end(): ChildProcess | undefined {
    const ended = child
    child = undefined
    clearTimeout(idle)
    if (ended?.connected) ended.disconnect()
    used(NOTHING)
    return ended
  }

  return {
    run: <Output>(file: string, input: unknown, signal?: AbortSignal) =>
      new Promise<Output>((resolve, reject) => {
        const abort = () => {
          reject(signal?.reason)
          forget(task)
        }
        const over = () => signal?.removeEventListener('abort', abort)
        const task: Task = {
          file,
          input,
          resolve(output: Output) {
            over()
            resolve(output)
          },
          reject(error) {
            over()
            reject(error)
          }
        }
        signal?.addEventListener('abort', abort, { once: true })
        waiting.push(task)
        next()
      }),
    close: async () => {
      const tasks = [...waiting.splice(0), ...suspects.splice(0), ...sent.values()]
      sent.clear()
      const ended = end()
      for (const task of tasks) task.reject(new ComputeThreadLost({}))
      if (ended === undefined || ended.exitCode !== null || ended.signalCode !== null) return
      ended.ref()
      const late = setTimeout(() => ended.kill('SIGKILL'), END_MS)
      await once(ended, 'exit')
      clearTimeout(late)
    }
  }
}

/** One that cannot be told has ended, or is about to: whoever listens for that sees to its tasks. */
const tell = (child: ChildProcess, order: Order): boolean => child.send(order, () => {})

function named(error: unknown, code: string | undefined, memoryMegabytes: number): unknown {
  if (code === 'ERR_WORKER_OUT_OF_MEMORY') return new ComputeMemoryExceeded({ memoryMegabytes })
  if (error instanceof Error && /^worker exited with code|^Terminating worker thread$/.test(error.message))
    return new ComputeThreadLost({})
  return error
}
