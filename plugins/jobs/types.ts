import type { Job } from '../../schemas/common.js'
import type { Tenant, Transaction } from '../contracts.js'

export interface JobContext<Params> {
  readonly id: string
  readonly tenant: Tenant
  readonly params: Params
  /** Aborted when the job is cancelled or the service stops. */
  readonly signal: AbortSignal
  /** Whether somebody asked for its end: then no other run goes on with it. */
  cancelled(): boolean
  progress(done: number, total: number): void
}

export interface GivenUpJob<Params> {
  readonly tenant: Tenant
  readonly tx: Transaction
  readonly params: Params
}

export interface JobDefinition<Params> {
  readonly kind: string
  /** `local`: needs this node's files, never goes to another machine. */
  readonly where?: 'anywhere' | 'local'
  /** Though it is cancelled before it runs, it runs, as one that is cancelled at once: something waits for what it does then. */
  readonly runsCancelled?: boolean
  /** Returns the job's result (JSON). Runs again from the start after a crash, so it must be safe to repeat. */
  run(context: JobContext<Params>): Promise<unknown>
  /** Of a job that no run will end, as its process died too often or its node did not come back: in the transaction that says so. */
  givenUp?(job: GivenUpJob<Params>): Promise<void>
}

/** Named background work: in this process, or on BullMQ workers when Redis is there. State is kept in the tenant's database. */
export interface Jobs {
  define<Params>(definition: JobDefinition<Params>): void
  /** With a transaction the job is there if that commits, and runs no sooner. */
  start(tenant: Tenant, kind: string, params: unknown, tx?: Transaction): Promise<Job>
}
