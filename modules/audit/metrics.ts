import { Counter, Gauge, type Registry } from 'prom-client'

const OUTCOMES = ['success', 'failure', 'denied'] as const

export function createAuditMetrics(registry: Registry) {
  const registers = [registry]
  const written = new Counter({
    name: 'audit_entries_written_total',
    help: 'Audit entries written by this process; one whose transaction was undone, or run again, is counted too.',
    labelNames: ['outcome'] as const,
    registers
  })
  for (const outcome of OUTCOMES) written.inc({ outcome }, 0)
  const sealed = new Counter({
    name: 'audit_entries_sealed_total',
    help: 'Audit entries chained into a batch by this process.',
    registers
  })
  const sealedAt = new Gauge({
    name: 'audit_last_sealed_timestamp_seconds',
    help: 'Unix time when this process last looked for entries to chain, and chained them; 0 before the first.',
    registers
  })
  const coalesced = new Counter({
    name: 'audit_notes_coalesced_total',
    help: 'Refusals and failures put together with alike ones, because there were too many.',
    registers
  })
  const lost = new Counter({
    name: 'audit_notes_lost_total',
    help: 'Refusals and failures that could not be kept: the database did not answer for long.',
    registers
  })
  const unattributed = new Counter({
    name: 'audit_notes_unattributed_total',
    help: 'Refusals and failures of no tenant, which are in the log alone.',
    registers
  })
  const mismatches = new Gauge({
    name: 'audit_chain_mismatches',
    help: 'Mismatches that the last verification in this process found, all tenants; must be 0.',
    registers
  })
  const verifiedAt = new Gauge({
    name: 'audit_chain_last_verified_timestamp_seconds',
    help: 'Unix time of the last verification of the audit trail in this process; 0 before the first.',
    registers
  })
  const found = new Map<string, number>()
  return {
    written: (outcome: (typeof OUTCOMES)[number]) => written.inc({ outcome }),
    sealed: (count: number) => {
      sealed.inc(count)
      sealedAt.setToCurrentTime()
    },
    coalesced: (count: number) => coalesced.inc(count),
    lost: (count: number) => lost.inc(count),
    unattributed: (count: number) => unattributed.inc(count),
    verified: (tenant: string, count: number) => {
      found.set(tenant, count)
      verifiedAt.setToCurrentTime()
      mismatches.set([...found.values()].reduce((sum, each) => sum + each, 0))
    }
  }
}
export type AuditMetrics = ReturnType<typeof createAuditMetrics>
