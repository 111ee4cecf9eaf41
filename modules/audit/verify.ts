import type { ArchiveProof, Tenant, TenantCopy } from '../../plugins/contracts.js'
import type { AuditVerification } from '../../schemas/audit.js'
import {
  addressDigest,
  batchHash,
  checkpointHash,
  entryHash,
  GENESIS,
  gapsOf,
  parseMembers,
  type Range,
  rootOf
} from './chain.js'
import { LATE_MILLISECONDS } from './seal.js'
import { type AuditStore, createAuditStore, type EntryRow } from './store.js'
import type { BatchTable, CheckpointTable } from './tables.js'

const BATCHES_PER_PAGE = 200
/** Beyond this many the trail is plainly not what it was, and listing on helps nobody. */
const MISMATCHES_MAX = 100

type Mismatch = AuditVerification['mismatches'][number]

/** Recomputes every batch from its entries and every link of the chain; reads only, while entries are added. */
export async function verifyTrail(tenant: Pick<Tenant, 'db'>, now: number = Date.now()): Promise<AuditVerification> {
  const store = createAuditStore(tenant.db)
  const mismatches: Mismatch[] = []
  const report = (what: Mismatch['what'], detail: string, batch: number | null = null, entry: number | null = null) => {
    if (mismatches.length < MISMATCHES_MAX) mismatches.push({ batch, entry, what, detail })
  }
  const checkpoints = await store.checkpoints()
  const last = checkpoints.at(-1)
  const dropped = { through: last?.through_batch ?? 0, settled: (last?.created_at ?? 0) < now - LATE_MILLISECONDS }
  const removed = verifyCheckpoints(checkpoints, report)
  const spans = new Map(checkpoints.map(({ through_batch, batch_hash }) => [through_batch, batch_hash]))

  const ranges: Range[] = []
  let sealed = 0
  let previous: BatchTable | undefined
  let settled = 0
  for (;;) {
    const page = await store.batchesAfter(previous?.seq ?? 0, BATCHES_PER_PAGE)
    for (const batch of page) {
      verifyLink(batch, previous, report)
      if ((spans.get(batch.seq) ?? batch.hash) !== batch.hash)
        report('checkpoint', 'the checkpoint names another hash for this batch', batch.seq)
      const members = parseMembers(batch.members)
      if (batch.seq > dropped.through) {
        await verifyEntries(store, batch, members, report)
        sealed += batch.entries
      }
      // What is dropped may be there until it has been removed, and not again later.
      if (batch.seq > dropped.through || !dropped.settled) ranges.push(...members)
      if (batch.sealed_at < now - LATE_MILLISECONDS) settled = Math.max(settled, batch.through_seq)
      previous = batch
    }
    if (page.length < BATCHES_PER_PAGE) break
  }
  if (last !== undefined && (previous?.seq ?? 0) < last.through_batch)
    report('checkpoint', `batch ${last.through_batch}, up to which entries were dropped, is missing`)

  for (const seq of await store.foundIn(gapsOf(ranges, -Number.MAX_SAFE_INTEGER).filter(([from]) => from <= settled)))
    if (seq <= settled) report('inserted', 'no batch holds this entry, though it is older than the newest', null, seq)
  const entries = await store.count()
  return {
    ok: mismatches.length === 0,
    entries,
    batches: previous?.seq ?? 0,
    unsealed: Math.max(0, entries - sealed),
    removed,
    head: previous === undefined ? null : { batch: previous.seq, hash: previous.hash },
    mismatches
  }
}

/** The same of a copy, such as a restored one. */
export async function trailProof(copy: TenantCopy): Promise<ArchiveProof> {
  const { entries, mismatches } = await verifyTrail(copy)
  const problems = mismatches.map(({ what, detail }) => `${what}, ${detail}`)
  return { name: 'audit trail', checked: entries, problems }
}

type Report = (what: Mismatch['what'], detail: string, batch?: number | null, entry?: number | null) => void

function verifyCheckpoints(checkpoints: readonly CheckpointTable[], report: Report): number {
  let previous: CheckpointTable | undefined
  for (const checkpoint of checkpoints) {
    const name = `checkpoint ${checkpoint.seq}`
    if (checkpoint.seq !== (previous?.seq ?? 0) + 1) report('checkpoint', `${name} follows ${previous?.seq ?? 0}`)
    if (checkpoint.previous !== (previous?.hash ?? GENESIS))
      report('checkpoint', `${name} is not linked to the one before`)
    if (checkpointHash(checkpoint) !== checkpoint.hash) report('checkpoint', `${name} was changed`)
    previous = checkpoint
  }
  return checkpoints.reduce((sum, { entries }) => sum + entries, 0)
}

function verifyLink(batch: BatchTable, previous: BatchTable | undefined, report: Report): void {
  const { seq } = batch
  if (seq !== (previous?.seq ?? 0) + 1) report('chain', `it follows batch ${previous?.seq ?? 0}`, seq)
  if (batch.previous !== (previous?.hash ?? GENESIS)) report('chain', 'it is not linked to the batch before', seq)
  if (batchHash(batch) !== batch.hash) report('chain', 'the batch itself was changed', seq)
}

async function verifyEntries(
  store: AuditStore,
  batch: BatchTable,
  members: readonly Range[],
  report: Report
): Promise<void> {
  const rows = await store.within(members)
  const present = new Set(rows.map(({ seq }) => seq))
  let missing = 0
  for (const [from, to] of members) {
    for (let seq = from; seq <= to; seq++) {
      if (present.has(seq)) continue
      missing++
      report('removed', 'the entry is missing', batch.seq, seq)
    }
  }
  for (const row of rows)
    if (!addressHolds(row)) report('changed', 'the address is not the one recorded', batch.seq, row.seq)
  if (missing === 0 && rootOf(rows.map(entryHash)) !== batch.root) {
    const where = batch.members.length > 100 ? `${batch.members.slice(0, 100)}…` : batch.members
    report('changed', `entries ${where}: one or more were changed or exchanged`, batch.seq)
  }
}

const addressHolds = ({ address, address_salt, address_digest }: EntryRow): boolean =>
  address === null
    ? address_salt === null
    : address_salt !== null && addressDigest(address_salt, address) === address_digest
