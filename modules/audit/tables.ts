import type { Generated } from 'kysely'
import type { AuditOutcome } from '../../schemas/audit.js'
import type { Role } from '../../schemas/common.js'

/** Times are milliseconds since 1970. */
export type EntryTable = {
  seq: Generated<number>
  recorded_at: number
  action: string
  outcome: AuditOutcome
  actor: string | null
  role: Role | null
  method: string | null
  session: string | null
  object_type: string | null
  object_id: string | null
  changes: string | null
  details: string | null
  request_id: string | null
  trace_id: string | null
  address: string | null
  address_salt: string | null
  address_digest: string | null
  occurrences: number
  first_at: number | null
  last_at: number | null
}
export type BatchTable = {
  seq: number
  through_seq: number
  members: string
  entries: number
  newest_at: number
  root: string
  previous: string
  hash: string
  sealed_at: number
}
export type CheckpointTable = {
  seq: number
  through_batch: number
  through_seq: number
  older_than: number
  entries: number
  batch_hash: string
  previous: string
  hash: string
  created_at: number
}
export type AuditTables = {
  audit_entries: EntryTable
  audit_batches: BatchTable
  audit_checkpoints: CheckpointTable
}
