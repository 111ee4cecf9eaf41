import { setTimeout as sleep } from 'node:timers/promises'
import type { Queue, Worker } from 'bullmq'
import type { RedisOptions } from 'ioredis'
import type { TlsIdentity } from '../config/secrets.js'
import { hearAllErrors, ioredis, tlsOptions } from '../redis.js'
import type { JobLog } from './runner.js'
import type { QueuedJob } from './store.js'

/** After Redis did not answer, it is not asked again for so long: nothing waits on it job after job. */
const PAUSE_MS = 5_000
const RECONNECT_MS_MAX = 2_000
const CLOSE_MS = 2_000

/** All that Redis is told: the job itself is in the tenant's database. */
interface Payload {
  tenant: string
  jobId: string
}

interface RedisQueueOptions {
  url: string
  tls?: TlsIdentity | undefined
  name: string
  concurrency: number
  /** False: this process only adds. */
  consume: boolean
  answerMs: number
  log: JobLog
  run(tenant: string, id: string): Promise<void>
  /** Redis went away: what it was told may be lost. */
  onLost(): void
}

export interface RedisQueue {
  /** Begins to take jobs. Waits a moment for Redis, and no longer. */
  open(): Promise<void>
  /** Hands a job over; false when Redis does not answer in time. It may have it even so: a claim is exclusive. */
  add(tenant: string, job: QueuedJob): Promise<boolean>
  /** Takes no more jobs; `add` still works. */
  stop(): Promise<void>
  close(): Promise<void>
}

/** Jobs handed to whichever process is free, by BullMQ. What is in Redis is a hint: the truth is the row in the database. */
export async function createRedisQueue(options: RedisQueueOptions): Promise<RedisQueue> {
  const { url, name, concurrency, answerMs, log } = options
  const { Redis } = await ioredis()
  const secured = tlsOptions(url, options.tls)
  const retryStrategy = (times: number) => Math.min(times * 100, RECONNECT_MS_MAX)
  const connect = (behaviour: RedisOptions) =>
    hearAllErrors(new Redis(url, { ...secured, ...behaviour, retryStrategy }))
  const producer = connect({ enableOfflineQueue: false, maxRetriesPerRequest: 1 })
  const consumer = options.consume ? connect({ maxRetriesPerRequest: null }) : undefined
  let queue: Queue<Payload> | undefined
  let worker: Worker<Payload> | undefined
  let pausedUntil = 0
  let up = false
  // Connection errors repeat at each attempt; that Redis went away is said once, below.
  const ignore = (err: unknown) => log.debug({ err }, 'job queue')

  producer.on('error', ignore)
  consumer?.on('error', ignore)
  producer.on('ready', () => {
    up = true
    pausedUntil = 0
    log.info({}, 'jobs are queued on Redis')
  })
  producer.on('close', () => {
    if (!up) return
    up = false
    log.warn({}, 'Redis is away: jobs run in this process')
    options.onLost()
  })

  return {
    async open() {
      // Loaded here, since whoever has no Redis would pay a quarter of a second for it at each start.
      const bullmq = await import('bullmq')
      queue = new bullmq.Queue<Payload>(name, { connection: producer })
      queue.on('error', ignore)
      if (consumer !== undefined) {
        worker = new bullmq.Worker<Payload>(name, ({ data }) => options.run(data.tenant, data.jobId), {
          connection: consumer,
          concurrency
        })
        worker.on('error', ignore)
      }
      const deadline = performance.now() + answerMs
      while (!up && performance.now() < deadline) await sleep(5)
      if (!up) log.warn({}, 'Redis does not answer: jobs run in this process')
    },

    async add(tenant, { id, kind, queuedAt }) {
      if (queue === undefined || !up || performance.now() < pausedUntil) return false
      const added = queue.add(
        kind,
        { tenant, jobId: id },
        // Named after this time in the queue, so that a sweep adds nothing that waits already.
        { jobId: `${tenant}_${id}_${queuedAt}`, removeOnComplete: true, removeOnFail: true }
      )
      const outcome = await Promise.race([
        added.then(
          () => true,
          () => false
        ),
        sleep(answerMs, false)
      ])
      if (!outcome) pausedUntil = performance.now() + PAUSE_MS
      return outcome
    },

    async stop() {
      const stopping = worker?.close(true).catch(ignore)
      await Promise.race([stopping, sleep(CLOSE_MS)])
      consumer?.disconnect()
    },

    async close() {
      up = false
      await Promise.race([queue?.close().catch(ignore), sleep(CLOSE_MS)])
      producer.disconnect()
    }
  }
}
