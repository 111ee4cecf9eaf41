import type { ExpressionBuilder, Kysely } from 'kysely'
import { v7 as uuidv7 } from 'uuid'
import type { Job, JobStatus } from '../../schemas/common.js'
import type { Tenant, Transaction } from '../contracts.js'
import { JobAbandoned, JobLost } from '../http/errors.js'
import type { Problem } from '../http/problem.js'
import type { Liveness } from './liveness.js'

type JobTable = {
  id: string
  kind: string
  status: JobStatus
  params: string
  progress_done: number
  progress_total: number
  result: string | null
  error_code: string | null
  error_message: string | null
  node: string | null
  claim: string | null
  attempts: number
  cancel_requested_at: number | null
  created_at: number
  heartbeat_at: number
  finished_at: number | null
  /** The `traceparent` of what started it. */
  trace: string | null
}
// Kysely's `withTables` takes type literals only.
export type JobTables = { jobs: JobTable }

const ENDED = ['succeeded', 'failed', 'cancelled'] as const
/** A sweep takes up at most this many queued jobs of a tenant; the next one takes more. */
const QUEUED_MAX = 1_000

/** A queued job: `queuedAt` changes each time that it is queued again. */
export interface QueuedJob {
  readonly id: string
  readonly kind: string
  readonly node: string | null
  readonly queuedAt: number
}

export interface ClaimedJob {
  readonly id: string
  readonly kind: string
  readonly claim: string
  /** JSON text. */
  readonly params: string
  readonly trace: string | null
  readonly createdAt: number
  /** This one included. */
  readonly attempts: number
  readonly cancelRequested: boolean
}

export interface Progress {
  readonly done: number
  readonly total: number
}

export interface Ending {
  readonly status: 'succeeded' | 'failed' | 'cancelled'
  /** JSON text. */
  readonly result?: string | undefined
  readonly error?: Problem
  readonly progress: Progress | undefined
}

export interface JobFilter {
  status?: JobStatus
  kind?: string
}

/** Where a page of the list, newest first, goes on. */
export interface JobPosition {
  readonly createdAt: number
  readonly id: string
}

/** What the kind of a job has to do in the transaction that gives it up. */
type GivenUp = (tx: Transaction, job: { kind: string; params: string }) => Promise<void>

interface Interruption {
  readonly staleBefore: number
  readonly node: string
  readonly alive: readonly string[]
  readonly attemptsMax: number
  readonly runsCancelled: readonly string[]
  readonly liveness: Pick<Liveness, 'isDead' | 'forget'>
  readonly givenUp: GivenUp
}

interface Interrupted {
  readonly requeued: { kind: string }[]
  readonly cancelled: { kind: string }[]
  readonly lost: { kind: string }[]
}

const instant = (milliseconds: number) => new Date(milliseconds).toISOString()

function toJob(row: JobTable): Job {
  const { error_code: code, error_message: message } = row
  return {
    id: row.id,
    kind: row.kind,
    status: row.status,
    progress: { done: row.progress_done, total: row.progress_total },
    ...(row.result === null ? {} : { result: JSON.parse(row.result) }),
    ...(code === null ? {} : { error: { code, message: message ?? '' } }),
    createdAt: instant(row.created_at),
    finishedAt: row.finished_at === null ? null : instant(row.finished_at)
  }
}

/** Puts a job on record, in the caller's transaction. */
export async function insertJob(
  tx: Transaction,
  kind: string,
  params: unknown,
  node: string | null,
  trace: string | null
): Promise<{ job: Job; queued: QueuedJob }> {
  const now = Date.now()
  const row: JobTable = {
    id: uuidv7({ msecs: now }),
    kind,
    status: 'queued',
    params: JSON.stringify(params ?? null),
    progress_done: 0,
    progress_total: 0,
    result: null,
    error_code: null,
    error_message: null,
    node,
    claim: null,
    attempts: 0,
    cancel_requested_at: null,
    created_at: now,
    heartbeat_at: now,
    finished_at: null,
    trace
  }
  await tx.db.withTables<JobTables>().insertInto('jobs').values(row).execute()
  return { job: toJob(row), queued: { id: row.id, kind, node, queuedAt: now } }
}

/** The tenant's `jobs` table, the only place where a job's state is kept. */
export function createJobStore({ db: reads, transact }: Tenant) {
  const db = reads.withTables<JobTables>()
  const write = <R>(work: (db: Kysely<JobTables>) => Promise<R>) =>
    transact((tx) => work(tx.db.withTables<JobTables>()))

  return {
    async get(id: string): Promise<Job | undefined> {
      const row = await db.selectFrom('jobs').selectAll().where('id', '=', id).executeTakeFirst()
      return row === undefined ? undefined : toJob(row)
    },

    async list(filter: JobFilter, limit: number, after: JobPosition | undefined): Promise<[JobPosition, Job][]> {
      let query = db.selectFrom('jobs').selectAll().orderBy('created_at', 'desc').orderBy('id', 'desc').limit(limit)
      if (filter.status !== undefined) query = query.where('status', '=', filter.status)
      if (filter.kind !== undefined) query = query.where('kind', '=', filter.kind)
      if (after !== undefined) {
        query = query.where((eb) => eb(eb.refTuple('created_at', 'id'), '<', eb.tuple(after.createdAt, after.id)))
      }
      const rows = await query.execute()
      return rows.map((row) => [{ createdAt: row.created_at, id: row.id }, toJob(row)])
    },

    /** Takes a queued job; undefined when another runner was first, or it was cancelled. */
    async claim(id: string, kinds: readonly string[], node: string, owner: string): Promise<ClaimedJob | undefined> {
      const claim = `${owner}.${uuidv7()}`
      const row = await write((tx) =>
        tx
          .updateTable('jobs')
          .set((eb) => ({
            status: 'running',
            claim,
            attempts: eb('attempts', '+', 1),
            heartbeat_at: Date.now(),
            progress_done: 0,
            progress_total: 0
          }))
          .where('id', '=', id)
          .where('status', '=', 'queued')
          .where('kind', 'in', kinds)
          .where((eb) => eb.or([eb('node', 'is', null), eb('node', '=', node)]))
          .returning(['kind', 'params', 'created_at', 'attempts', 'trace', 'cancel_requested_at'])
          .executeTakeFirst()
      )
      if (row === undefined) return undefined
      const { kind, params, created_at: createdAt, attempts, trace } = row
      return { id, kind, claim, params, createdAt, attempts, trace, cancelRequested: row.cancel_requested_at !== null }
    },

    /** Which of these runs still own their job, and which are asked to stop. */
    async owned(claims: readonly string[]): Promise<Map<string, { cancelRequested: boolean }>> {
      const rows = await db
        .selectFrom('jobs')
        .select(['claim', 'cancel_requested_at'])
        .where('claim', 'in', claims)
        .where('status', '=', 'running')
        .execute()
      return new Map(
        rows.map(({ claim, cancel_requested_at: at }) => [claim ?? '', { cancelRequested: at !== null }] as const)
      )
    },

    async beat({ id, claim }: ClaimedJob, progress?: Progress): Promise<void> {
      const heard = { heartbeat_at: Date.now() }
      const set = progress === undefined ? heard : { ...heard, ...columnsOf(progress) }
      await write((tx) => owner(tx.updateTable('jobs').set(set), id, claim).execute())
    },

    /** False when this run no longer owns the job. */
    async finish({ id, claim }: ClaimedJob, { status, result, error, progress }: Ending): Promise<boolean> {
      const now = Date.now()
      const set = {
        status,
        claim: null,
        result: result ?? null,
        error_code: error?.code ?? null,
        error_message: error?.detail('en') ?? null,
        heartbeat_at: now,
        finished_at: now,
        ...(progress === undefined ? {} : columnsOf(progress))
      }
      const { numUpdatedRows } = await write((tx) =>
        owner(tx.updateTable('jobs').set(set), id, claim).executeTakeFirstOrThrow()
      )
      return numUpdatedRows > 0n
    },

    /** Back to the queue, as if this run had not been: the service stops. */
    async release({ id, claim }: ClaimedJob): Promise<QueuedJob | undefined> {
      return write((tx) =>
        owner(tx.updateTable('jobs'), id, claim)
          .set((eb) => ({ ...requeued(), attempts: eb('attempts', '-', 1) }))
          .returning(QUEUED_COLUMNS)
          .executeTakeFirst()
      )
    },

    /** Ends a queued job at once, unless it is of those kinds; asks the runner of any other to stop. */
    async cancel(id: string, runsCancelled: readonly string[]): Promise<Job | undefined> {
      const now = Date.now()
      return write(async (tx) => {
        const open = (status: JobStatus) => tx.updateTable('jobs').where('id', '=', id).where('status', '=', status)
        await open('queued')
          .where(noneOf(runsCancelled))
          .set({ status: 'cancelled', cancel_requested_at: now, finished_at: now })
          .execute()
        for (const status of ['queued', 'running'] as const)
          await open(status).set({ cancel_requested_at: now }).execute()
        const row = await tx.selectFrom('jobs').selectAll().where('id', '=', id).executeTakeFirst()
        return row === undefined ? undefined : toJob(row)
      })
    },

    /** Takes back the jobs of processes that died: those known to be dead, and those not heard of since `staleBefore`. */
    async interrupt({ staleBefore, node, alive, attemptsMax, runsCancelled, liveness, givenUp }: Interruption) {
      const running = await db
        .selectFrom('jobs')
        .select(['claim', 'heartbeat_at'])
        .where('status', '=', 'running')
        .execute()
      const owners = new Set(running.map(({ claim }) => ownerOf(claim)).filter(liveness.isDead))
      const dead = running.flatMap(({ claim }) => (claim !== null && owners.has(ownerOf(claim)) ? [claim] : []))
      const stale = running.filter(({ heartbeat_at }) => heartbeat_at < staleBefore)
      const interrupted: Interrupted = { requeued: [], cancelled: [], lost: [] }
      if (stale.length === 0 && dead.length === 0) return interrupted
      const found = await transact(async (tx) => {
        const update = () => {
          const query = tx.db
            .withTables<JobTables>()
            .updateTable('jobs')
            .where('status', '=', 'running')
            .where((eb) =>
              eb.or([eb('heartbeat_at', '<', staleBefore), ...(dead.length === 0 ? [] : [eb('claim', 'in', dead)])])
            )
            .where((eb) => eb.or([eb('node', 'is', null), eb('node', '=', node)]))
            .returning(['kind'])
          return alive.length === 0 ? query : query.where('claim', 'not in', alive)
        }
        const ended = { claim: null, finished_at: Date.now() }
        const error = new JobLost({ attempts: attemptsMax })
        const cancelled = await update()
          .where('cancel_requested_at', 'is not', null)
          .where(noneOf(runsCancelled))
          .set({ ...ended, status: 'cancelled' })
          .execute()
        const lost = await update()
          .where('attempts', '>=', attemptsMax)
          .set({ ...ended, status: 'failed', error_code: error.code, error_message: error.detail('en') })
          .returning(['params'])
          .execute()
        for (const job of lost) await givenUp(tx, job)
        return {
          cancelled,
          lost: lost.map(({ kind }) => ({ kind })),
          requeued: await update().set(requeued()).execute()
        }
      })
      liveness.forget([...owners])
      return found
    },

    /** Whether anything waits or runs. */
    async isAnyOpen(): Promise<boolean> {
      const open = db.selectFrom('jobs').select('id').where('status', 'in', ['queued', 'running']).limit(1)
      return (await open.execute()).length > 0
    },

    /** Fails the jobs that need the files of another node when it has not been heard of since `before`. */
    async abandon(before: number, node: string, givenUp: GivenUp): Promise<void> {
      const error = new JobAbandoned({})
      const ended = {
        status: 'failed' as const,
        claim: null,
        error_code: error.code,
        error_message: error.detail('en')
      }
      const abandoned = await db
        .selectFrom('jobs')
        .select('id')
        .where('status', 'in', ['queued', 'running'])
        .where('heartbeat_at', '<', before)
        .where('node', '!=', node)
        .execute()
      for (const { id } of abandoned) {
        await transact(async (tx) => {
          const job = await tx.db
            .withTables<JobTables>()
            .updateTable('jobs')
            .set({ ...ended, finished_at: Date.now() })
            .where('id', '=', id)
            .where('status', 'in', ['queued', 'running'])
            .where('heartbeat_at', '<', before)
            .returning(['kind', 'params'])
            .executeTakeFirst()
          if (job !== undefined) await givenUp(tx, job)
        })
      }
    },

    queued(kinds: readonly string[], node: string): Promise<QueuedJob[]> {
      return db
        .selectFrom('jobs')
        .select(QUEUED_COLUMNS)
        .where('status', '=', 'queued')
        .where('kind', 'in', kinds)
        .where((eb) => eb.or([eb('node', 'is', null), eb('node', '=', node)]))
        .orderBy('created_at')
        .limit(QUEUED_MAX)
        .execute()
    },

    depths(): Promise<{ kind: string; depth: number; oldest: number }[]> {
      return db
        .selectFrom('jobs')
        .select((eb) => ['kind', eb.fn.countAll<number>().as('depth'), eb.fn.min('created_at').as('oldest')])
        .where('status', '=', 'queued')
        .groupBy('kind')
        .execute()
    },

    lastSuccesses(): Promise<{ kind: string; at: number | null }[]> {
      return db
        .selectFrom('jobs')
        .select((eb) => ['kind', eb.fn.max('finished_at').as('at')])
        .where('status', '=', 'succeeded')
        .groupBy('kind')
        .execute()
    },

    async deleteEndedBefore(instant: number): Promise<void> {
      const old = await db
        .selectFrom('jobs')
        .select('id')
        .where('status', 'in', ENDED)
        .where('created_at', '<', instant)
        .where('finished_at', '<', instant)
        .limit(QUEUED_MAX)
        .execute()
      if (old.length === 0) return
      const ids = old.map(({ id }) => id)
      await write((tx) => tx.deleteFrom('jobs').where('id', 'in', ids).execute())
    }
  }
}
export type JobStore = ReturnType<typeof createJobStore>

/** The process that made the claim. */
const ownerOf = (claim: string | null) => claim?.split('.', 1)[0] ?? ''
const QUEUED_COLUMNS = ['id', 'kind', 'node', 'heartbeat_at as queuedAt'] as const
const requeued = () => ({ status: 'queued' as const, claim: null, heartbeat_at: Date.now() })
const noneOf = (kinds: readonly string[]) => (eb: ExpressionBuilder<JobTables, 'jobs'>) =>
  kinds.length === 0 ? eb.lit(true) : eb('kind', 'not in', kinds)
const columnsOf = ({ done, total }: Progress) => ({ progress_done: done, progress_total: total })

interface Filterable<Query> {
  where(column: 'id' | 'claim' | 'status', operator: '=', value: string): Query
}
/** A run writes only while the job is its own. */
function owner<Query extends Filterable<Query>>(query: Query, id: string, claim: string): Query {
  return query.where('id', '=', id).where('claim', '=', claim).where('status', '=', 'running')
}
