import { setTimeout as sleep } from 'node:timers/promises'
import { type Kysely, sql } from 'kysely'
import type { Report } from '../contracts.js'
import type { DatabaseEvents, DatabaseServer, TenantDatabase } from './dialect.js'

/** How long a report waits for the replica before it reads from the primary, and for how long the others then do not wait at all. */
const WAIT_MILLISECONDS = 1_000
const POLL_MILLISECONDS = 20
const AVOID_MILLISECONDS = 3_000

interface ReplicatedOptions {
  primary: DatabaseServer
  /** A streaming replica of it, which takes no writes. */
  replica: DatabaseServer
  events: Pick<DatabaseEvents, 'reported'>
}

/**
 * A server whose reports are read from its replica: never older than the moment they were asked for, since each first waits until the
 * replica has what the primary had then. Everything else, and reports that the replica is too late for, stays on the primary.
 */
export function replicatedServer({ primary, replica, events }: ReplicatedOptions): DatabaseServer {
  let avoidUntil = 0
  const avoid = () => {
    avoidUntil = performance.now() + AVOID_MILLISECONDS
  }

  const reportsOf = (own: Kysely<unknown>, copy: Kysely<unknown>) => async (): Promise<Report> => {
    const askedAt = performance.now()
    const usable = askedAt >= avoidUntil && (await hasCaughtUp(own, copy).catch(() => false))
    events.reported(usable ? 'replica' : 'primary', (performance.now() - askedAt) / 1000)
    if (!usable) {
      if (askedAt >= avoidUntil) avoid()
      return (read) => read(own)
    }
    // A replica cancels a read that is in the way of what it has to replay, and may be gone at any time.
    return (read) =>
      read(copy).catch(() => {
        avoid()
        return read(own)
      })
  }

  return {
    ...primary,
    open: async (tenant): Promise<TenantDatabase> => {
      const database = await primary.open(tenant)
      const { db } = await replica.open(tenant)
      return { ...database, reports: reportsOf(database.db, db) }
    },
    close: async () => {
      await replica.close()
      await primary.close()
    }
  }
}

async function hasCaughtUp(primary: Kysely<unknown>, replica: Kysely<unknown>): Promise<boolean> {
  const deadline = performance.now() + WAIT_MILLISECONDS
  // Where the next record will be written: what was committed without waiting for the disk is before it as well.
  const { rows } = await sql<{ at: string }>`select pg_current_wal_insert_lsn()::text as at`.execute(primary)
  const at = rows[0]?.at
  for (;;) {
    const answer = sql<{ done: boolean | null }>`select pg_last_wal_replay_lsn() >= ${at}::pg_lsn as done`.execute(
      replica
    )
    const found = await Promise.race([
      answer,
      sleep(Math.max(0, deadline - performance.now()), undefined, { ref: false })
    ])
    // Not a replica: what it would answer is nobody's.
    if (found === undefined || found.rows[0]?.done == null) return false
    if (found.rows[0].done) return true
    if (performance.now() + POLL_MILLISECONDS > deadline) return false
    await sleep(POLL_MILLISECONDS)
  }
}
