import { EventEmitter } from 'node:events'
import type { Registry } from 'prom-client'
import type { Job } from '../../schemas/common.js'
import type { TlsIdentity } from '../config/secrets.js'
import type { JobDefinition, Jobs, Tenant, Transaction } from '../contracts.js'
import { JobEnded, JobKindUnknown, JobNotFound } from '../http/errors.js'
import { NO_TRACING, type Tracing } from '../telemetry/tracing.js'
import { createLiveness, type Liveness } from './liveness.js'
import { createJobMetrics } from './metrics.js'
import { createRedisQueue, type RedisQueue } from './redis-queue.js'
import { type Definition, type JobLog, JobRunner } from './runner.js'
import { createJobStore, insertJob, type JobFilter, type JobPosition, type QueuedJob } from './store.js'

export type { JobFilter, JobPosition } from './store.js'

const ATTEMPTS_MAX = 3
const CONCURRENCY = 4
const KEPT_MS = 30 * 86_400_000
const TIDIED_MS = 3_600_000
const ABANDONED_MS = 86_400_000
const WAIT_MS_MIN = 20
const WAIT_MS_MAX = 500

/** How long things take, in milliseconds. A process that is not heard of for `stale` is taken for dead. */
const TIMINGS = {
  heartbeat: 10_000,
  stale: 45_000,
  sweep: 30_000,
  /** The sweep of a worker process that has no Redis to be called by. */
  workerSweep: 5_000,
  poll: 1_000,
  progress: 500,
  /** With what requests take after it, less than the 10 s in which the process is to have ended. */
  close: 4_000,
  redisAnswer: 200,
  redisLost: 1_000
}
type JobTimings = typeof TIMINGS

export interface JobsOptions {
  tenants: { get(id: string): Promise<Tenant>; list(): Promise<string[]> }
  redisUrl: string | undefined
  redisTls?: TlsIdentity | undefined
  /** Names the queue on Redis: the same for every process of one database, another for every other database. */
  queueName: string
  registry: Registry
  log: JobLog
  tracing?: Tracing
  /** `worker`: a process that does nothing else. */
  mode: 'service' | 'worker'
  /** Jobs at once of each source, this process's own queue and Redis (4). */
  concurrency?: number
  /** False: this process leaves the jobs on Redis to others while Redis answers. */
  consume?: boolean
  /** Names this machine's files: `local` jobs run only where this is the same. It must survive a restart. */
  node: string
  /** Where processes of this machine see each other live and die; without it only silence tells. */
  dataDir?: string | undefined
  timings?: Partial<JobTimings>
}

export interface JobService extends Jobs {
  /** Where its routes are; they say so when they are registered. Without them a job has no address. */
  path: string | undefined
  /** @throws JOB_NOT_FOUND */
  get(tenant: Tenant, id: string): Promise<Job>
  /** Newest first; each with the position after which the next page goes on. */
  list(tenant: Tenant, filter?: JobFilter, limit?: number, after?: JobPosition): Promise<[JobPosition, Job][]>
  /** Cancels a queued job at once, unless its kind runs all the same, and asks a running one to stop. @throws JOB_NOT_FOUND, JOB_ENDED */
  cancel(tenant: Tenant, id: string): Promise<Job>
  /** The job as soon as it has ended, or as it is after so many seconds. @throws JOB_NOT_FOUND */
  wait(tenant: Tenant, id: string, seconds: number): Promise<Job>
  /** Begins to run jobs, those of before the last stop first. Call it when every kind is defined. */
  ready(): Promise<void>
  /** Takes back what runs to the queue, for the next start or another process. Bounded by `timings.close`. */
  close(): Promise<void>
}

/**
 * Named background work. The tenant's `jobs` table is the truth and a claim on its row is exclusive, so Redis and this
 * process's own queue are no more than messengers: a message lost or doubled changes nothing.
 */
export function createJobs(options: JobsOptions): JobService {
  return new Service(options)
}

class Service implements JobService {
  path: string | undefined
  readonly #options: JobsOptions
  readonly #timings: JobTimings
  readonly #definitions = new Map<string, Definition>()
  readonly #metrics
  readonly #runner: JobRunner
  readonly #liveness: Liveness
  #redis: RedisQueue | undefined
  readonly #ended = new EventEmitter().setMaxListeners(0)
  readonly #handOvers = new Set<Promise<void>>()
  #state: 'new' | 'open' | 'closing' = 'new'
  /** When what has ended long ago was last deleted, by tenant. */
  readonly #tidiedAt = new Map<string, number>()
  #sweepTimer: NodeJS.Timeout | undefined
  #sweeping: Promise<void> | undefined

  constructor(options: JobsOptions) {
    const { tenants, registry, log, concurrency = CONCURRENCY, node } = options
    this.#options = options
    this.#timings = { ...TIMINGS, ...options.timings }
    this.#metrics = createJobMetrics(registry)
    this.#liveness = createLiveness(options.dataDir)
    this.#runner = new JobRunner({
      getTenant: (id) => tenants.get(id),
      definitions: this.#definitions,
      node,
      owner: this.#liveness.id,
      log,
      tracing: options.tracing ?? NO_TRACING,
      metrics: this.#metrics,
      concurrency,
      heartbeatMs: this.#timings.heartbeat,
      pollMs: this.#timings.poll,
      progressMs: this.#timings.progress,
      closeMs: this.#timings.close,
      onEnd: (id) => void this.#ended.emit(id)
    })
  }

  define<Params>(definition: JobDefinition<Params>): void {
    const { kind, where = 'anywhere', runsCancelled = false } = definition
    if (this.#definitions.has(kind)) throw new Error(`the job kind ${kind} is defined twice`)
    this.#definitions.set(kind, {
      where,
      runsCancelled,
      run: ({ params, ...context }) => definition.run({ ...context, params: JSON.parse(params) }),
      givenUp: async ({ params, ...context }) => definition.givenUp?.({ ...context, params: JSON.parse(params) })
    })
    this.#metrics.define(kind)
  }

  async start(tenant: Tenant, kind: string, params: unknown, tx?: Transaction): Promise<Job> {
    if (tx === undefined) return tenant.transact((tx) => this.start(tenant, kind, params, tx))
    const definition = this.#definitions.get(kind)
    if (definition === undefined) throw new JobKindUnknown({ kind })
    const node = definition.where === 'local' ? this.#options.node : null
    const { job, queued } = await insertJob(tx, kind, params, node, (this.#options.tracing ?? NO_TRACING).carrier())
    tx.afterCommit(() => {
      // Not waited for: the job is durable already, and an answer must not be as slow as a Redis that hangs.
      if (this.#state === 'open') this.#handOver(tenant.id, queued)
    })
    return job
  }

  async get(tenant: Tenant, id: string): Promise<Job> {
    return found(id, await createJobStore(tenant).get(id))
  }

  async list(tenant: Tenant, filter: JobFilter = {}, limit = 50, after?: JobPosition) {
    return createJobStore(tenant).list(filter, limit, after)
  }

  async cancel(tenant: Tenant, id: string): Promise<Job> {
    const job = found(id, await createJobStore(tenant).cancel(id, this.#runsCancelled))
    if (job.status === 'succeeded' || job.status === 'failed') throw new JobEnded({ id, jobStatus: job.status })
    if (job.status === 'cancelled') this.#ended.emit(id)
    else this.#runner.cancel(id)
    return job
  }

  // A property, because the core hands it on by itself.
  readonly wait = async (tenant: Tenant, id: string, seconds: number): Promise<Job> => {
    const store = createJobStore(tenant)
    const deadline = performance.now() + seconds * 1000
    for (let pause = WAIT_MS_MIN; ; pause = Math.min(pause * 1.5, WAIT_MS_MAX)) {
      const job = found(id, await store.get(id))
      const left = deadline - performance.now()
      if (job.finishedAt !== null || left <= 0 || this.#state === 'closing') return job
      // It may end in another process, which tells nobody here.
      await this.#endOf(id, Math.min(pause, left))
    }
  }

  async ready(): Promise<void> {
    if (this.#state !== 'new') return
    this.#state = 'open'
    this.#redis = await this.#createRedis()
    await this.#redis?.open()
    await this.#recallSuccesses()
    await this.#sweep()
    this.#sweepIn(this.#sweepEvery)
  }

  async #createRedis(): Promise<RedisQueue | undefined> {
    const { redisUrl, redisTls, queueName, concurrency = CONCURRENCY, consume = true, log } = this.#options
    if (redisUrl === undefined) return undefined
    return createRedisQueue({
      url: redisUrl,
      tls: redisTls,
      name: queueName,
      concurrency,
      consume,
      answerMs: this.#timings.redisAnswer,
      log,
      run: (tenant, id) => this.#runner.execute(tenant, id),
      onLost: () => this.#sweepIn(this.#timings.redisLost)
    })
  }

  async close(): Promise<void> {
    this.#state = 'closing'
    clearTimeout(this.#sweepTimer)
    await this.#redis?.stop()
    await Promise.all([this.#sweeping, ...this.#handOvers])
    const released = await this.#runner.close()
    // So that another process goes on at once instead of at its next sweep.
    for (const [tenant, job] of released) if (job.node === null) await this.#redis?.add(tenant, job)
    await this.#redis?.close()
    this.#liveness.close()
  }

  get #runsCancelled(): string[] {
    return [...this.#definitions].flatMap(([kind, { runsCancelled }]) => (runsCancelled ? [kind] : []))
  }

  #handOver(tenant: string, job: QueuedJob): void {
    const handOver = this.#queue(tenant, job).finally(() => this.#handOvers.delete(handOver))
    this.#handOvers.add(handOver)
  }

  async #queue(tenant: string, job: QueuedJob): Promise<void> {
    const queued = job.node === null && (await this.#redis?.add(tenant, job))
    if (queued !== true) this.#runner.enqueue(tenant, job.id)
  }

  #endOf(id: string, milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer)
        this.#ended.off(id, end)
        resolve()
      }
      const timer = setTimeout(end, milliseconds)
      this.#ended.once(id, end)
    })
  }

  get #sweepEvery(): number {
    const { sweep, workerSweep } = this.#timings
    return this.#options.mode === 'worker' ? Math.min(sweep, workerSweep) : sweep
  }

  #sweepIn(milliseconds: number): void {
    clearTimeout(this.#sweepTimer)
    if (this.#state !== 'open') return
    this.#sweepTimer = setTimeout(() => void this.#sweep().then(() => this.#sweepIn(this.#sweepEvery)), milliseconds)
  }

  #sweep(): Promise<void> {
    this.#sweeping ??= this.#sweepAll().finally(() => {
      this.#sweeping = undefined
    })
    return this.#sweeping
  }

  async #sweepAll(): Promise<void> {
    const depths: { kind: string; depth: number; oldest: number }[] = []
    await this.#eachTenant(async (tenant) => {
      depths.push(...(await this.#sweepTenant(tenant)))
    })
    this.#metrics.queue(depths)
  }

  async #sweepTenant(tenant: Tenant) {
    const { node, log } = this.#options
    const store = createJobStore(tenant)
    const now = Date.now()
    if (now - (this.#tidiedAt.get(tenant.id) ?? 0) > TIDIED_MS) {
      await store.deleteEndedBefore(now - KEPT_MS)
      this.#tidiedAt.set(tenant.id, now)
    }
    // Most tenants have nothing to do most of the time, and are asked no more than that.
    if (!(await store.isAnyOpen())) return []
    const givenUp = async (tx: Transaction, { kind, params }: { kind: string; params: string }) =>
      this.#definitions.get(kind)?.givenUp({ tenant, tx, params })
    const { requeued, cancelled, lost } = await store.interrupt({
      staleBefore: now - this.#timings.stale,
      node,
      alive: this.#runner.claims,
      attemptsMax: ATTEMPTS_MAX,
      runsCancelled: this.#runsCancelled,
      liveness: this.#liveness,
      givenUp
    })
    for (const { kind } of requeued) this.#metrics.interrupted(kind, 'retry')
    for (const { kind } of cancelled) this.#metrics.interrupted(kind, 'cancelled')
    for (const { kind } of lost) this.#metrics.interrupted(kind, 'failure')
    const interrupted = requeued.length + cancelled.length + lost.length
    if (interrupted > 0) log.warn({ tenant: tenant.id, requeued, cancelled, lost }, 'jobs of a process that died')
    await store.abandon(now - ABANDONED_MS, node, givenUp)
    const kinds = [...this.#definitions.keys()]
    const queued = kinds.length === 0 ? [] : await store.queued(kinds, node)
    const depths = await store.depths()
    if (this.#state === 'open') for (const job of queued) this.#handOver(tenant.id, job)
    return depths
  }

  /** The last success outlives a restart, or an alert on its age would start anew each time. */
  async #recallSuccesses(): Promise<void> {
    const last = new Map<string, number>()
    await this.#eachTenant(async (tenant) => {
      for (const { kind, at } of await createJobStore(tenant).lastSuccesses()) {
        last.set(kind, Math.max(last.get(kind) ?? 0, at ?? 0))
      }
    })
    for (const [kind, at] of last) if (this.#definitions.has(kind)) this.#metrics.succeededBefore(kind, at)
  }

  async #eachTenant(work: (tenant: Tenant) => Promise<void>): Promise<void> {
    const { tenants, log } = this.#options
    try {
      for (const id of await tenants.list()) {
        if (this.#state !== 'open') return
        try {
          await work(await tenants.get(id))
        } catch (err) {
          // One tenant's trouble is not another's; the next sweep tries again.
          log.warn({ err, tenant: id }, 'the jobs of a tenant could not be swept')
        }
      }
    } catch (err) {
      log.warn({ err }, 'jobs could not be swept')
    }
  }
}

function found(id: string, job: Job | undefined): Job {
  if (job === undefined) throw new JobNotFound({ id })
  return job
}
