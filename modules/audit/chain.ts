import { createHash, randomBytes } from 'node:crypto'
import type { BatchTable, CheckpointTable, EntryTable } from './tables.js'

/** Pure: how entries are hashed and batches chained. docs/audit.md says the same in words. */

/** Before the first batch, and before the first checkpoint. */
export const GENESIS = '0'.repeat(64)

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex')

type Covered = Omit<EntryTable, 'seq' | 'address' | 'address_salt'> & { seq: number }

/** Of everything an entry holds but its address, of which the digest counts: so an address can be erased. */
export const entryHash = (entry: Covered): string =>
  sha256(
    JSON.stringify([
      entry.seq,
      entry.recorded_at,
      entry.action,
      entry.outcome,
      entry.actor,
      entry.role,
      entry.method,
      entry.session,
      entry.object_type,
      entry.object_id,
      entry.changes,
      entry.details,
      entry.request_id,
      entry.trace_id,
      entry.address_digest,
      entry.occurrences,
      entry.first_at,
      entry.last_at
    ])
  )

/** Without the salt the few possible addresses could be tried. */
export const newSalt = (): string => randomBytes(16).toString('base64url')
export const addressDigest = (salt: string, address: string): string => sha256(`${salt} ${address}`)

/** Of the hashes of the batch's entries in order of `seq`. */
export const rootOf = (hashes: readonly string[]): string => sha256(hashes.join(''))

export const batchHash = (batch: Omit<BatchTable, 'hash'>): string =>
  sha256(
    JSON.stringify([
      batch.seq,
      batch.previous,
      batch.root,
      batch.members,
      batch.entries,
      batch.through_seq,
      batch.newest_at,
      batch.sealed_at
    ])
  )

export const checkpointHash = (checkpoint: Omit<CheckpointTable, 'hash'>): string =>
  sha256(
    JSON.stringify([
      checkpoint.seq,
      checkpoint.previous,
      checkpoint.through_batch,
      checkpoint.through_seq,
      checkpoint.older_than,
      checkpoint.entries,
      checkpoint.batch_hash,
      checkpoint.created_at
    ])
  )

/** First and last, both included. */
export type Range = readonly [number, number]

/** `[1, 2, 3, 7]` → `1-3,7`; the numbers ascend. */
export function formatMembers(seqs: readonly number[]): string {
  const ranges: [number, number][] = []
  for (const seq of seqs) {
    const last = ranges.at(-1)
    if (last !== undefined && last[1] === seq - 1) last[1] = seq
    else ranges.push([seq, seq])
  }
  return ranges.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(',')
}

export const parseMembers = (members: string): Range[] =>
  members.split(',').map((range) => {
    const [from, to = from] = range.split('-').map(Number)
    return [from ?? 0, to ?? 0]
  })

/** What lies between the ranges of several batches, from `low` to the highest of them. */
export function gapsOf(ranges: readonly Range[], low: number): Range[] {
  const gaps: Range[] = []
  let next = low
  for (const [from, to] of [...ranges].sort((a, b) => a[0] - b[0])) {
    if (from > next) gaps.push([next, from - 1])
    next = Math.max(next, to + 1)
  }
  return gaps
}
