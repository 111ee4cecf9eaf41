import { setImmediate as nextTurn } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { Counter, Gauge, type Registry } from 'prom-client'
import type { Periodic, Tenant } from './contracts.js'

interface Task {
  readonly name: string
  readonly seconds: number
  work(tenant: Tenant): Promise<void>
}

interface PeriodicService extends Periodic {
  /** Begins; before it, tasks are only noted. */
  start(): void
  /** Waits for what is under way. */
  close(): Promise<void>
}

/**
 * Small upkeep of every tenant, from time to time, on every node: each task must be harmless when two nodes do it at once.
 * What takes long or must be done once is a job.
 */
export function createPeriodic(
  tenants: () => Promise<Tenant[]>,
  log: FastifyBaseLogger,
  registry: Registry
): PeriodicService {
  const metrics = periodicMetrics(registry)
  const tasks: Task[] = []
  const timers: NodeJS.Timeout[] = []
  const running = new Set<Promise<void>>()
  let closed = false

  async function round({ name, work }: Task): Promise<void> {
    const startedAt = performance.now()
    let failed = false
    for (const tenant of await tenants()) {
      if (closed) return
      // On SQLite upkeep may wait for nothing, and requests would wait for that of all tenants.
      await nextTurn()
      await work(tenant).catch((error) => {
        failed = true
        log.warn({ err: error, task: name, tenant: tenant.id }, 'upkeep failed')
      })
    }
    if (failed) metrics.failed(name)
    else metrics.succeeded(name, (performance.now() - startedAt) / 1000)
  }

  function schedule(task: Task): void {
    // The next round is set when this one has ended, so rounds never pile up; nodes drift apart by chance.
    const timer = setTimeout(
      () => {
        const run = round(task)
          .catch((error) => {
            metrics.failed(task.name)
            log.warn({ err: error, task: task.name }, 'upkeep failed')
          })
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
    every: (seconds, name, work) => {
      tasks.push({ seconds, name, work })
      metrics.define(name)
    },
    start: () => tasks.forEach(schedule),
    close: async () => {
      closed = true
      for (const timer of timers) clearTimeout(timer)
      await Promise.all(running)
    }
  }
}

function periodicMetrics(registry: Registry) {
  const registers = [registry]
  const rounds = new Counter({
    name: 'upkeep_rounds_total',
    help: 'Rounds of upkeep over all tenants; a failure is one where that of any tenant failed.',
    labelNames: ['task', 'outcome'] as const,
    registers
  })
  const duration = new Gauge({
    name: 'upkeep_last_duration_seconds',
    help: 'How long the last round without a failure took.',
    labelNames: ['task'] as const,
    registers
  })
  const lastSuccess = new Gauge({
    name: 'upkeep_last_success_timestamp_seconds',
    help: 'Unix time of the last round without a failure; 0 before the first of this process.',
    labelNames: ['task'] as const,
    registers
  })
  return {
    define: (task: string): void => {
      for (const outcome of ['success', 'failure']) rounds.inc({ task, outcome }, 0)
      duration.set({ task }, 0)
      lastSuccess.set({ task }, 0)
    },
    succeeded: (task: string, seconds: number): void => {
      rounds.inc({ task, outcome: 'success' })
      duration.set({ task }, seconds)
      lastSuccess.setToCurrentTime({ task })
    },
    failed: (task: string): void => rounds.inc({ task, outcome: 'failure' })
  }
}
