import type { FastifyBaseLogger } from 'fastify'
import type {
  ArchiveProof,
  ArchiveRun,
  Archives,
  AuditEntry,
  MadeArchive,
  Tenant,
  TenantCopy
} from '../../plugins/contracts.js'
import type { BackupMetrics } from './metrics.js'
import { expired, type Retention } from './retention.js'
import { createBackupStore, type SharedTurn } from './store.js'

/** A run that is not heard of for so long is taken for dead. */
const LEASE_MS = 15 * 60_000
const RENEW_MS = 60_000
const CHECKS_KEPT_MS = 400 * 86_400_000

/** A job at its work. */
interface Run extends ArchiveRun {
  readonly id: string
}
export interface Runs {
  full(tenant: Tenant, run: Run): Promise<{ backupId: string; bytes: number; rows: number; removed: number }>
  /** `full`: a full one is due, since nothing can be gone on from. */
  increment(tenant: Tenant): Promise<MadeArchive | 'unchanged' | 'full'>
  verify(tenant: Tenant, id: string, run: Run): Promise<{ archives: number; rows: number; parts: number }>
  drill(tenant: Tenant, run: Run): Promise<{ backupId: string; seconds: number; rows: number; bytes: number }>
}
interface Dependencies {
  archives: Archives
  retention: Retention
  metrics: BackupMetrics
  prove(copy: TenantCopy): Promise<readonly ArchiveProof[]>
  log: FastifyBaseLogger
  now(): number
}

export function createRuns({ archives, retention, metrics, prove, log, now }: Dependencies): Runs {
  const audit = (tenant: Tenant, entry: AuditEntry) => tenant.transact(async (tx) => tx.audit(entry))

  /** Says that a job's work goes on while it does, so that others wait. One that begins again after a crash is the same. */
  async function holding<R>(tenant: Tenant, turn: SharedTurn, job: string, work: () => Promise<R>): Promise<R> {
    const hold = () => tenant.transact(({ db }) => createBackupStore(db).setTurn(`${turn} ${job}`, now() + LEASE_MS))
    await hold()
    let holds: Promise<unknown> = Promise.resolve()
    const timer = setInterval(() => {
      holds = hold().catch(() => {})
    }, RENEW_MS).unref()
    try {
      return await work()
    } finally {
      clearInterval(timer)
      await holds
      await tenant.transact(({ db }) => createBackupStore(db).endShared(turn, job, now()))
    }
  }

  /** After the next full one where archives are being read: what is read must not go meanwhile. */
  async function prune(tenant: Tenant): Promise<number> {
    if ((await createBackupStore(tenant.db).sharedUntil('archives-read')) > now()) return 0
    const gone = expired(await archives.list(tenant.id), retention, now())
    if (gone.length === 0) return 0
    await archives.remove(tenant.id, gone)
    await tenant.transact(async ({ db }) => {
      const store = createBackupStore(db)
      await store.forgetArchives(gone.map(({ id }) => id))
      await store.forgetChecks(now() - CHECKS_KEPT_MS)
    })
    return gone.length
  }

  return {
    async full(tenant, run) {
      try {
        const made = await holding(tenant, 'full-running', run.id, async () => {
          const made = await archives.full(tenant.id, run)
          await tenant.transact(async ({ db, audit }) => {
            const { id, bytes, rows, next, stateAt } = made
            const store = createBackupStore(db)
            await store.keepArchive(made)
            // What came after the state of a full one is in the next increment, whatever the chain before it held.
            if (next !== null) await store.setChain({ last: id, ...next, coveredAt: stateAt })
            audit({ action: 'backup.create', object: { type: 'backup', id }, details: { kind: 'full', bytes, rows } })
          })
          return made
        })
        metrics.ended('full', 'success')
        metrics.made('full', made.bytes, made.seconds)
        const removed = await prune(tenant)
        return { backupId: made.id, bytes: made.bytes, rows: made.rows, removed }
      } catch (error) {
        // One that was cancelled did not fail, and will be made again.
        if (run.signal?.aborted !== true) {
          metrics.ended('full', 'failure')
          await audit(tenant, { action: 'backup.create', outcome: 'failure', details: { kind: 'full' } })
        }
        throw error
      }
    },

    async increment(tenant) {
      const chain = await createBackupStore(tenant.db).chain()
      if (chain === undefined) return 'full'
      try {
        const made = await archives.increment(tenant.id, chain.last, chain)
        if ('nothing' in made) {
          if (made.nothing === 'broken') {
            await tenant.transact(({ db }) => createBackupStore(db).endChain())
            return 'full'
          }
          await tenant.transact(({ db }) => createBackupStore(db).covered(made.at), { durability: 'relaxed' })
          metrics.ended('incremental', 'success')
          return 'unchanged'
        }
        const { id, stateAt, next } = made
        const isOurs = await tenant.transact(async ({ db }) => {
          const store = createBackupStore(db)
          await store.keepArchive(made)
          // A full one that ended meanwhile is what the next increment goes on from.
          if ((await store.chain())?.last !== chain.last || next === null) return false
          await store.setChain({ last: id, ...next, coveredAt: stateAt })
          return true
        })
        // A full one that is being made has read an earlier state, and its first increment needs what was noted since.
        const isFullRunning = (await createBackupStore(tenant.db).sharedUntil('full-running')) > now()
        if (isOurs && next !== null && !isFullRunning) await archives.forget(tenant, next)
        metrics.ended('incremental', 'success')
        metrics.made('incremental', made.bytes, made.seconds)
        return made
      } catch (error) {
        metrics.ended('incremental', 'failure')
        throw error
      }
    },

    async verify(tenant, id, run) {
      const startedAt = now()
      const keep = (outcome: 'success' | 'failure', found: { archives: number; rows: number }, error: string | null) =>
        tenant.transact(async ({ db, audit }) => {
          await createBackupStore(db).keepCheck({
            ...{ kind: 'verify', at: startedAt, outcome, archive_id: id, error, bytes: 0 },
            ...{ archives: found.archives, rows: found.rows, duration_ms: now() - startedAt }
          })
          audit({ action: 'backup.verify', outcome, object: { type: 'backup', id } })
        })
      try {
        const found = await holding(tenant, 'archives-read', run.id, () => archives.check(tenant.id, id, run))
        await keep('success', found, null)
        return found
      } catch (error) {
        if (run.signal?.aborted !== true) await keep('failure', { archives: 0, rows: 0 }, messageOf(error))
        throw error
      }
    },

    async drill(tenant, run) {
      const startedAt = now()
      try {
        const drilled = await holding(tenant, 'archives-read', run.id, () => archives.rehearse(tenant.id, prove, run))
        const { id, archives: count, bytes, rows } = drilled
        const seconds = Math.round(drilled.seconds * 1000) / 1000
        await tenant.transact(async ({ db, audit }) => {
          await createBackupStore(db).keepCheck({
            ...{ kind: 'drill', at: startedAt, outcome: 'success', archive_id: id, error: null },
            ...{ archives: count, bytes, rows, duration_ms: Math.round(seconds * 1000) }
          })
          audit({ action: 'backup.drill', object: { type: 'backup', id }, details: { seconds, rows } })
        })
        metrics.drilled('success')
        return { backupId: id, seconds, rows, bytes }
      } catch (error) {
        if (run.signal?.aborted !== true) {
          log.error({ err: error, tenant: tenant.id }, 'a backup could not be restored')
          metrics.drilled('failure')
          await tenant.transact(async ({ db, audit }) => {
            await createBackupStore(db).keepCheck({
              ...{ kind: 'drill', at: startedAt, outcome: 'failure', archive_id: null, error: messageOf(error) },
              ...{ archives: 0, bytes: 0, rows: 0, duration_ms: now() - startedAt }
            })
            audit({ action: 'backup.drill', outcome: 'failure' })
          })
        }
        throw error
      }
    }
  }
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error))
