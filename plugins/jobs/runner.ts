import { setTimeout as sleep } from 'node:timers/promises'
import type { GivenUpJob, JobContext, Tenant } from '../contracts.js'
import { JobFailed } from '../http/errors.js'
import { Problem } from '../http/problem.js'
import type { Tracing } from '../telemetry/tracing.js'
import type { JobMetrics } from './metrics.js'
import { type ClaimedJob, createJobStore, type Ending, type JobStore, type Progress, type QueuedJob } from './store.js'

const FINISH_ATTEMPTS_MAX = 3
const FINISH_RETRY_MS = 1_000

/** A job's definition without the types of its parameters (JSON text here) and its tables. */
export interface Definition {
  readonly where: 'anywhere' | 'local'
  readonly runsCancelled: boolean
  run(context: JobContext<string>): Promise<unknown>
  givenUp(context: GivenUpJob<string>): Promise<void>
}

export interface JobLog {
  debug(fields: object, message: string): void
  info(fields: object, message: string): void
  warn(fields: object, message: string): void
  error(fields: object, message: string): void
}

interface RunnerOptions {
  getTenant(id: string): Promise<Tenant>
  readonly definitions: ReadonlyMap<string, Definition>
  readonly node: string
  /** Names this process in its claims. */
  readonly owner: string
  readonly log: JobLog
  readonly tracing: Tracing
  readonly metrics: JobMetrics
  readonly concurrency: number
  readonly heartbeatMs: number
  readonly pollMs: number
  readonly progressMs: number
  readonly closeMs: number
  onEnd(id: string): void
}

type Stop = 'cancelled' | 'closing' | 'lost'

interface Run {
  readonly job: ClaimedJob
  readonly tenant: Tenant
  readonly store: JobStore
  readonly controller: AbortController
  readonly startedAt: number
  stop: Stop | undefined
  progress: Progress | undefined
  writtenAt: number
  timer: NodeJS.Timeout | undefined
}

/** Claims jobs and runs them in this process, at most `concurrency` of those it queued itself. */
export class JobRunner {
  readonly #options: RunnerOptions
  readonly #waiting = new Map<string, string>()
  readonly #executions = new Set<Promise<void>>()
  readonly #running = new Map<string, Run>()
  #poll: NodeJS.Timeout | undefined
  #polling = false
  #busy = 0
  #closing = false

  constructor(options: RunnerOptions) {
    this.#options = options
  }

  /** The runs that this process knows to be alive. */
  get claims(): string[] {
    return [...this.#running.keys()]
  }

  /** Runs a queued job when there is room. A job that waits here already is not queued twice. */
  enqueue(tenant: string, id: string): void {
    if (this.#closing) return
    this.#waiting.set(id, tenant)
    this.#pump()
  }

  #pump(): void {
    for (const [id, tenant] of this.#waiting) {
      if (this.#busy >= this.#options.concurrency) return
      this.#waiting.delete(id)
      this.#busy++
      void this.execute(tenant, id)
        // The row stays queued, so the next sweep finds it.
        .catch((err) => this.#options.log.error({ err, tenant, job: id }, 'a queued job could not be taken'))
        .finally(() => {
          this.#busy--
          this.#pump()
        })
    }
  }

  /** Runs a job now unless another runner has it. Resolves when it has ended; its failure is stored, never thrown. */
  execute(tenant: string, id: string): Promise<void> {
    if (this.#closing) return Promise.resolve()
    // It may be a request that hands it over; what it belongs to is in its row.
    const execution = this.#options.tracing
      .detached(() => this.#execute(tenant, id))
      .finally(() => this.#executions.delete(execution))
    this.#executions.add(execution)
    return execution
  }

  /** Asks a job that runs here to stop, without waiting for the poll. */
  cancel(id: string): void {
    for (const run of this.#running.values()) if (run.job.id === id) stop(run, 'cancelled')
  }

  /** Aborts what runs and waits for it, within a bound. @returns the jobs that went back to the queue, by tenant */
  async close(): Promise<[string, QueuedJob][]> {
    this.#closing = true
    this.#waiting.clear()
    for (const run of this.#running.values()) stop(run, 'closing')
    const deadline = new AbortController()
    await Promise.race([
      Promise.allSettled(this.#executions),
      sleep(this.#options.closeMs, undefined, { signal: deadline.signal }).catch(() => {})
    ])
    deadline.abort()
    // What ignores its signal loses its claim, so whatever it still does is not written.
    for (const run of this.#running.values()) await this.#release(run).catch(() => {})
    this.#running.clear()
    clearInterval(this.#poll)
    return this.#released
  }
  readonly #released: [string, QueuedJob][] = []

  async #execute(tenantId: string, id: string): Promise<void> {
    const { definitions, node, owner, metrics, log } = this.#options
    const tenant = await this.#options.getTenant(tenantId)
    const store = createJobStore(tenant)
    const job = await store.claim(id, [...definitions.keys()], node, owner)
    const definition = job === undefined ? undefined : definitions.get(job.kind)
    if (job === undefined || definition === undefined) return
    const now = performance.now()
    const controller = new AbortController()
    const run: Run = {
      job,
      tenant,
      store,
      controller,
      startedAt: now,
      stop: undefined,
      progress: undefined,
      writtenAt: now,
      timer: undefined
    }
    this.#running.set(job.claim, run)
    this.#poll ??= setInterval(() => void this.#watch(), this.#options.pollMs)
    metrics.started(job.kind, job.attempts === 1 ? (Date.now() - job.createdAt) / 1000 : undefined)
    log.debug({ tenant: tenantId, job: id, task: job.kind }, 'job started')
    if (job.cancelRequested) stop(run, 'cancelled')
    try {
      // Stopped while it was being claimed.
      if (this.#closing) await this.#release(run)
      else await this.#settle(run, await outcomeOf(() => this.#traced(run, definition)))
    } catch (err) {
      log.error({ err, tenant: tenantId, job: id }, 'the end of a job could not be written')
    } finally {
      clearTimeout(run.timer)
      metrics.left(job.kind)
      this.#running.delete(job.claim)
      if (this.#running.size === 0) {
        clearInterval(this.#poll)
        this.#poll = undefined
      }
    }
  }

  #traced(run: Run, definition: Definition): Promise<unknown> {
    const { job, tenant } = run
    const attributes = { 'inventory.job': job.id, 'inventory.tenant': tenant.id }
    const span = { kind: 'consumer', parent: job.trace, attributes } as const
    return this.#options.tracing.span(`job ${job.kind}`, span, () => definition.run(this.#contextOf(run)))
  }

  #contextOf(run: Run): JobContext<string> {
    const { job, tenant, controller } = run
    return {
      id: job.id,
      tenant,
      params: job.params,
      signal: controller.signal,
      cancelled: () => run.stop === 'cancelled',
      progress: (done, total) => {
        run.progress = { done: count(done), total: count(total) }
        if (run.timer !== undefined) return
        const wait = Math.max(0, run.writtenAt + this.#options.progressMs - performance.now())
        run.timer = setTimeout(() => {
          run.timer = undefined
          void this.#beat(run)
        }, wait)
      }
    }
  }

  async #settle(run: Run, outcome: Outcome): Promise<void> {
    const { metrics, log } = this.#options
    clearTimeout(run.timer)
    const { job, tenant } = run
    if (run.stop === 'closing' && 'error' in outcome) return this.#release(run)
    const ending = this.#endingOf(run, outcome)
    const duration = (performance.now() - run.startedAt) / 1000
    if (!(await this.#finish(run, ending))) {
      log.warn({ tenant: tenant.id, job: job.id, task: job.kind }, 'a job ended here that another run had taken over')
      return
    }
    metrics.ended(job.kind, OUTCOME_OF[ending.status], duration)
    log.info({ tenant: tenant.id, job: job.id, task: job.kind, status: ending.status, duration }, 'job ended')
    this.#options.onEnd(job.id)
  }

  #endingOf(run: Run, outcome: Outcome): Ending {
    const { progress } = run
    if (run.stop === 'cancelled')
      return { status: 'cancelled', progress, ...('json' in outcome ? { result: outcome.json } : {}) }
    if ('json' in outcome) return { status: 'succeeded', result: outcome.json, progress }
    if (outcome.error instanceof Problem) return { status: 'failed', error: outcome.error, progress }
    const { job, tenant } = run
    this.#options.log.error({ err: outcome.error, tenant: tenant.id, job: job.id, task: job.kind }, 'job failed')
    return { status: 'failed', error: new JobFailed({}), progress }
  }

  /** A database that is away for a moment must not make a long run begin again. */
  async #finish(run: Run, ending: Ending): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await run.store.finish(run.job, ending)
      } catch (error) {
        if (attempt === FINISH_ATTEMPTS_MAX || this.#closing) throw error
        await sleep(FINISH_RETRY_MS)
      }
    }
  }

  async #release(run: Run): Promise<void> {
    const queued = await run.store.release(run.job)
    if (queued !== undefined) this.#released.push([run.tenant.id, queued])
  }

  /** Hears of cancellations asked in other processes and of jobs taken over; tells the others that this one is alive. */
  async #watch(): Promise<void> {
    if (this.#polling) return
    this.#polling = true
    try {
      for (const [tenant, runs] of this.#runningByTenant()) {
        const owned = await createJobStore(tenant).owned(runs.map(({ job }) => job.claim))
        for (const run of runs) {
          const own = owned.get(run.job.claim)
          if (own === undefined) stop(run, 'lost')
          else if (own.cancelRequested) stop(run, 'cancelled')
          if (performance.now() - run.writtenAt >= this.#options.heartbeatMs) await this.#beat(run)
        }
      }
    } catch (err) {
      this.#options.log.warn({ err }, 'running jobs could not be watched')
    } finally {
      this.#polling = false
    }
  }

  #runningByTenant(): Map<Tenant, Run[]> {
    const groups = new Map<Tenant, Run[]>()
    for (const run of this.#running.values()) groups.set(run.tenant, [...(groups.get(run.tenant) ?? []), run])
    return groups
  }

  async #beat(run: Run): Promise<void> {
    run.writtenAt = performance.now()
    try {
      await run.store.beat(run.job, run.progress)
    } catch (err) {
      this.#options.log.warn(
        { err, tenant: run.tenant.id, job: run.job.id },
        'the progress of a job could not be written'
      )
    }
  }
}

const OUTCOME_OF = { succeeded: 'success', failed: 'failure', cancelled: 'cancelled' } as const

type Outcome = { json: string | undefined } | { error: unknown }

async function outcomeOf(work: () => Promise<unknown>): Promise<Outcome> {
  try {
    return { json: JSON.stringify(await work()) }
  } catch (error) {
    return { error }
  }
}

function stop(run: Run, reason: Stop): void {
  if (run.stop !== undefined) return
  run.stop = reason
  run.controller.abort(new DOMException(`the job is stopped: ${reason}`, 'AbortError'))
}

const count = (value: number) => (Number.isFinite(value) ? Math.max(0, Math.round(value)) : 0)
