import type { FastifyBaseLogger } from 'fastify'
import type { Periodic, Tenant } from './contracts.js'

interface Task {
  readonly name: string
  readonly seconds: number
  work(tenant: Tenant): Promise<void>
}

export interface PeriodicService extends Periodic {
  /** Begins; before it, tasks are only noted. */
  start(): void
  /** Waits for what is under way. */
  close(): Promise<void>
}

/**
 * Small upkeep of every tenant, from time to time, on every node: each task must be harmless when two nodes do it at once.
 * What takes long or must be done once is a job.
 */
export function createPeriodic(tenants: () => Promise<Tenant[]>, log: FastifyBaseLogger): PeriodicService {
  const tasks: Task[] = []
  const timers: NodeJS.Timeout[] = []
  const running = new Set<Promise<void>>()
  let closed = false

  async function round({ name, work }: Task): Promise<void> {
    for (const tenant of await tenants()) {
      if (closed) return
      await work(tenant).catch((error) => log.warn({ err: error, task: name, tenant: tenant.id }, 'upkeep failed'))
    }
  }

  function schedule(task: Task): void {
    // The next round is set when this one has ended, so rounds never pile up; nodes drift apart by chance.
    const timer = setTimeout(
      () => {
        const run = round(task)
          .catch((error) => log.warn({ err: error, task: task.name }, 'upkeep failed'))
          .finally(() => {
            running.delete(run)
            timers.splice(timers.indexOf(timer), 1)
            if (!closed) schedule(task)
          })
        running.add(run)
      },
      task.seconds * 1000 * (0.9 + Math.random() * 0.2)
    )
    timer.unref()
    timers.push(timer)
  }

  return {
    every: (seconds, name, work) => void tasks.push({ seconds, name, work }),
    start: () => tasks.forEach(schedule),
    close: async () => {
      closed = true
      for (const timer of timers) clearTimeout(timer)
      await Promise.all(running)
    }
  }
}
