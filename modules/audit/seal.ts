import type { Tenant } from '../../plugins/contracts.js'
import {
  batchHash,
  checkpointHash,
  entryHash,
  formatMembers,
  GENESIS,
  gapsOf,
  parseMembers,
  type Range,
  rootOf
} from './chain.js'
import { type AuditStore, createAuditStore, type EntryRow } from './store.js'
import type { BatchTable, CheckpointTable } from './tables.js'

const BATCH_MAX = 2_000
/**
 * Longer than any transaction: numbers are drawn before the commit, so on PostgreSQL an entry may appear below those that
 * are sealed already. After this time nothing may.
 */
export const LATE_MILLISECONDS = 3_600_000
const BATCHES_PER_PAGE = 1_000
const DAY_MILLISECONDS = 86_400_000

/** Chains what is not chained yet, in batches. @returns how many entries were sealed */
export async function sealTrail(tenant: Tenant, now: () => number = Date.now): Promise<number> {
  let sealed = 0
  for (;;) {
    const count = await sealBatch(tenant, now())
    sealed += count
    if (count < BATCH_MAX) return sealed
    await new Promise((resolve) => setImmediate(resolve))
  }
}

async function sealBatch(tenant: Tenant, now: number): Promise<number> {
  // Entries never change, so they are read and hashed outside the transaction that chains them.
  const store = createAuditStore(tenant.db)
  const last = await store.lastBatch()
  const entries = await unsealed(store, last, now)
  const newest = entries.at(-1)
  if (newest === undefined) return 0
  const unhashed = {
    seq: (last?.seq ?? 0) + 1,
    through_seq: Math.max(last?.through_seq ?? 0, newest.seq),
    members: formatMembers(entries.map(({ seq }) => seq)),
    entries: entries.length,
    newest_at: Math.max(...entries.map(({ recorded_at }) => recorded_at)),
    root: rootOf(entries.map(entryHash)),
    previous: last?.hash ?? GENESIS,
    sealed_at: now
  }
  const batch: BatchTable = { ...unhashed, hash: batchHash(unhashed) }
  return tenant.transact(async ({ db }) => {
    const inside = createAuditStore(db)
    // Another node may have been quicker; it has sealed the same.
    if ((await inside.lastBatch())?.hash !== last?.hash) return 0
    await inside.insertBatch(batch)
    return entries.length
  })
}

/** In order of number: those that came late below the last batch, then those above it. */
async function unsealed(store: AuditStore, last: BatchTable | undefined, now: number): Promise<EntryRow[]> {
  const late = last === undefined ? [] : await store.within(await openGaps(store, now))
  const fresh = await store.after(last?.through_seq ?? 0, Math.max(BATCH_MAX - late.length, 1))
  return [...late, ...fresh]
}

/** Numbers below the last batch that no batch holds and where an entry may still appear. */
async function openGaps(store: AuditStore, now: number): Promise<Range[]> {
  const settled = await store.lastBatchSealedBefore(now - LATE_MILLISECONDS)
  const recent = await store.batchesAfter(settled?.seq ?? 0, Number.MAX_SAFE_INTEGER)
  return gapsOf(
    recent.flatMap(({ members }) => parseMembers(members)),
    (settled?.through_seq ?? 0) + 1
  )
}

/**
 * Removes what is older than the retention, in whole batches and oldest first. A checkpoint says what was dropped before it
 * goes; the batches stay, so the chain from the first one on still verifies.
 */
export async function pruneTrail(tenant: Tenant, retentionDays: number, now: number = Date.now()): Promise<void> {
  const store = createAuditStore(tenant.db)
  const olderThan = now - retentionDays * DAY_MILLISECONDS
  const previous = await store.lastCheckpoint()
  const through = await lastDue(store, previous?.through_batch ?? 0, olderThan)
  if (through !== undefined) await keepCheckpoint(tenant, previous, through, olderThan, retentionDays, now)
  // What an earlier run left when its process ended is removed too.
  const checkpoints = await store.checkpoints()
  const [last, before] = [checkpoints.at(-1), checkpoints.at(-2)]
  if (last === undefined) return
  const from = before?.through_batch ?? 0
  for (const { members } of await store.batchesAfter(from, last.through_batch - from)) {
    await tenant.transact(({ db }) => createAuditStore(db).remove(parseMembers(members)))
  }
}

interface Due {
  readonly batch: BatchTable
  readonly entries: number
}

/** The last batch of the run from the oldest on in which nothing is younger. */
async function lastDue(store: AuditStore, after: number, olderThan: number): Promise<Due | undefined> {
  let due: Due | undefined
  for (;;) {
    const page = await store.batchesAfter(due?.batch.seq ?? after, BATCHES_PER_PAGE)
    for (const batch of page) {
      if (batch.newest_at >= olderThan) return due
      due = { batch, entries: (due?.entries ?? 0) + batch.entries }
    }
    if (page.length < BATCHES_PER_PAGE) return due
  }
}

const keepCheckpoint = (
  tenant: Tenant,
  previous: CheckpointTable | undefined,
  { batch, entries }: Due,
  olderThan: number,
  retentionDays: number,
  now: number
) =>
  tenant.transact(async (tx) => {
    const store = createAuditStore(tx.db)
    if ((await store.lastCheckpoint())?.hash !== previous?.hash) return
    const unhashed = {
      seq: (previous?.seq ?? 0) + 1,
      through_batch: batch.seq,
      through_seq: batch.through_seq,
      older_than: olderThan,
      entries,
      batch_hash: batch.hash,
      previous: previous?.hash ?? GENESIS,
      created_at: now
    }
    await store.insertCheckpoint({ ...unhashed, hash: checkpointHash(unhashed) })
    tx.audit({
      action: 'audit.prune',
      object: { type: 'audit-batch', id: String(batch.seq) },
      details: { entries, retentionDays }
    })
  })
