import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

const RUN_SECONDS = [0.1, 0.5, 1, 5, 15, 30, 60, 300, 900, 3600]
const WAIT_SECONDS = [0.05, 0.25, 1, 5, 30, 120, 600]
const OUTCOMES = ['success', 'failure', 'cancelled'] as const
export type Outcome = (typeof OUTCOMES)[number]

interface QueueDepth {
  readonly kind: string
  readonly depth: number
  /** Unix time in milliseconds of the oldest. */
  readonly oldest: number
}

/** `task` is the kind of a job; `job` is a label of Prometheus' own. */
export function createJobMetrics(registry: Registry) {
  const common = { labelNames: ['task'] as const, registers: [registry] }
  const runs = new Counter({
    name: 'job_runs_total',
    help: 'Background runs ended.',
    labelNames: ['task', 'outcome'] as const,
    registers: [registry]
  })
  const seconds = new Histogram({
    name: 'job_run_duration_seconds',
    help: 'Background run time.',
    buckets: RUN_SECONDS,
    ...common
  })
  const waits = new Histogram({
    name: 'job_wait_seconds',
    help: 'Time from the start of a job by its caller until a process took it.',
    buckets: WAIT_SECONDS,
    ...common
  })
  const lastSuccess = new Gauge({
    name: 'job_last_success_timestamp_seconds',
    help: 'Unix time of the last success; 0 before the first.',
    ...common
  })
  const retries = new Counter({
    name: 'job_retries_total',
    help: 'Runs taken back from a process that died.',
    ...common
  })
  const inProgress = new Gauge({
    name: 'job_runs_in_progress',
    help: 'Runs now in progress in this process.',
    ...common
  })
  const depth = new Gauge({ name: 'job_queue_depth', help: 'Queued runs at the last sweep, all tenants.', ...common })
  const oldestAge = new Gauge({
    name: 'job_queue_oldest_age_seconds',
    help: 'Age of the oldest queued run at the last sweep.',
    ...common
  })
  const tasks = new Set<string>()

  return {
    define(task: string): void {
      tasks.add(task)
      for (const outcome of OUTCOMES) runs.inc({ task, outcome }, 0)
      seconds.zero({ task })
      waits.zero({ task })
      retries.inc({ task }, 0)
      for (const gauge of [lastSuccess, inProgress, depth, oldestAge]) gauge.set({ task }, 0)
    },
    /** `waited` only where it is taken for the first time. */
    started(task: string, waited?: number): void {
      inProgress.inc({ task })
      if (waited !== undefined) waits.observe({ task }, Math.max(0, waited))
    },
    left(task: string): void {
      inProgress.dec({ task })
    },
    ended(task: string, outcome: Outcome, duration: number): void {
      runs.inc({ task, outcome })
      seconds.observe({ task }, duration)
      if (outcome === 'success') lastSuccess.setToCurrentTime({ task })
    },
    interrupted(task: string, fate: 'retry' | 'failure' | 'cancelled'): void {
      if (fate === 'retry') retries.inc({ task })
      else runs.inc({ task, outcome: fate })
    },
    succeededBefore(task: string, at: number): void {
      lastSuccess.set({ task }, at / 1000)
    },
    queue(depths: readonly QueueDepth[]): void {
      const now = Date.now()
      for (const task of tasks) {
        const own = depths.filter(({ kind }) => kind === task)
        const oldest = Math.min(now, ...own.map((each) => each.oldest))
        depth.set(
          { task },
          own.reduce((sum, each) => sum + each.depth, 0)
        )
        oldestAge.set({ task }, (now - oldest) / 1000)
      }
    }
  }
}
export type JobMetrics = ReturnType<typeof createJobMetrics>
