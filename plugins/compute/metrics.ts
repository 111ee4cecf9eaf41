import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { Usage } from './process.js'

const SECONDS = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60]

export function computeMetrics(registry: Registry, threads: number, load: () => { running: number; waiting: number }) {
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
  const cpu = new Counter({
    name: 'compute_process_cpu_seconds_total',
    help: 'Processor time of the processes that computed.',
    registers
  })
  const losses = new Counter({
    name: 'compute_process_losses_total',
    help: 'Processes that computed and ended by themselves.',
    registers
  })
  let usage: Usage = { residentBytes: 0, cpuSeconds: 0 }
  gauge(
    'compute_process_resident_memory_bytes',
    'Memory of the process that computes, when it last answered; 0 where there is none.',
    () => usage.residentBytes
  )
  return {
    used(now: Usage) {
      // A process that was started since counts from nothing again.
      cpu.inc(now.cpuSeconds < usage.cpuSeconds ? now.cpuSeconds : now.cpuSeconds - usage.cpuSeconds)
      usage = now
    },
    lost: () => losses.inc(),
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
