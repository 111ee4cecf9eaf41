import type { Archives, Jobs, Tenant } from '../../plugins/contracts.js'
import type { BackupMetrics } from './metrics.js'
import type { Runs } from './runs.js'
import { createBackupStore, type Turn } from './store.js'

export const FULL_JOB = 'backups.full'
export const VERIFY_JOB = 'backups.verify'
export const DRILL_JOB = 'backups.drill'

const DAY_MS = 86_400_000
/** After a failure a full one is tried again so soon. */
const FULL_RETRY_MS = 15 * 60_000
const DRILL_RETRY_MS = 6 * 3_600_000
/** A process that died in an increment is waited for no longer; one that is at it says so again and again. */
const INCREMENT_LEASE_MS = 30_000
const INCREMENT_RENEW_MS = 10_000

export interface ScheduleOptions {
  /** Minutes after midnight, UTC. */
  readonly fullAtMinute: number
  /** 0: none. */
  readonly incrementSeconds: number
  readonly drillDays: number
}
interface Dependencies extends ScheduleOptions {
  archives: Archives
  jobs: Jobs
  runs: Runs
  metrics: BackupMetrics
  now(): number
}

/** The last moment at which a full one became due. */
export function dueAt(now: number, minute: number): number {
  const today = Math.floor(now / DAY_MS) * DAY_MS + minute * 60_000
  return today <= now ? today : today - DAY_MS
}

/** What is due for a tenant is done once, whichever nodes look: rows of its database say whose turn it is. */
export function createSchedule({ archives, jobs, runs, metrics, now, ...options }: Dependencies) {
  const { fullAtMinute, incrementSeconds, drillDays } = options
  const take = (tenant: Tenant, name: Turn, milliseconds: number) =>
    tenant.transact(({ db }) => createBackupStore(db).takeTurn(name, now() + milliseconds, now()))

  async function startFull(tenant: Tenant): Promise<void> {
    if ((await createBackupStore(tenant.db).sharedUntil('full-running')) > now()) return
    if (await take(tenant, 'full', FULL_RETRY_MS)) await jobs.start(tenant, FULL_JOB, {})
  }

  async function increment(tenant: Tenant): Promise<void> {
    const store = createBackupStore(tenant.db)
    if ((await store.turnUntil('increment')) > now()) return
    if (!(await take(tenant, 'increment', INCREMENT_LEASE_MS))) return
    const hold = (milliseconds: number) =>
      tenant.transact(({ db }) => createBackupStore(db).setTurn('increment', now() + milliseconds), {
        durability: 'relaxed'
      })
    const holding = setInterval(() => void hold(INCREMENT_LEASE_MS).catch(() => {}), INCREMENT_RENEW_MS).unref()
    let result: Awaited<ReturnType<Runs['increment']>> | undefined
    try {
      result = await runs.increment(tenant)
    } finally {
      clearInterval(holding)
      // Rounds of all nodes drift; whoever comes first after most of the time has passed makes the next.
      await hold(incrementSeconds * 800)
    }
    if (result === 'full') await startFull(tenant)
  }

  async function drill(tenant: Tenant, last: { full: number; drill: number }): Promise<void> {
    if (drillDays === 0 || !archives.readable || last.full === 0) return
    if (last.drill > now() - drillDays * DAY_MS) return
    const store = createBackupStore(tenant.db)
    if ((await store.turnUntil('drill')) > now()) return
    if (await take(tenant, 'drill', DRILL_RETRY_MS)) await jobs.start(tenant, DRILL_JOB, {})
  }

  return async (tenant: Tenant): Promise<void> => {
    const store = createBackupStore(tenant.db)
    const full = await store.lastStateAt('full')
    if (full < dueAt(now(), fullAtMinute)) await startFull(tenant)
    try {
      if (incrementSeconds > 0) await increment(tenant)
    } finally {
      const [chain, check] = [await store.chain(), await store.lastDrill()]
      const last = {
        full: await store.lastStateAt('full'),
        incremental: chain?.coveredAt ?? 0,
        drill: check?.at ?? 0,
        drillSeconds: (check?.duration_ms ?? 0) / 1000
      }
      metrics.observe(tenant.id, last)
      await drill(tenant, last)
    }
  }
}
