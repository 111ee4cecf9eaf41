import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

const TYPES = ['full', 'incremental'] as const
type BackupType = (typeof TYPES)[number]
const OUTCOMES = ['success', 'failure'] as const
type Outcome = (typeof OUTCOMES)[number]

/** What the last good ones of a tenant were, in milliseconds; 0: none. */
interface LastGood {
  readonly full: number
  /** Up to when everything is in a backup. */
  readonly incremental: number
  readonly drill: number
  readonly drillSeconds: number
}

/** Where backups are made. Of all tenants together; a moment is that of the tenant which is worst off. */
export function createBackupMetrics(
  registry: Registry,
  { increments, drills }: { increments: boolean; drills: boolean }
) {
  const registers = [registry]
  const types = increments ? TYPES : TYPES.slice(0, 1)
  const runs = new Counter({
    name: 'backup_runs_total',
    help: 'Backups that ended.',
    labelNames: ['type', 'outcome'] as const,
    registers
  })
  const lastSuccess = new Gauge({
    name: 'backup_last_success_timestamp_seconds',
    help: 'Unix time up to which the last good backup holds everything, of the tenant that is furthest behind; 0: none.',
    labelNames: ['type'] as const,
    registers
  })
  const size = new Gauge({
    name: 'backup_last_size_bytes',
    help: 'Size of the last backup that this process made.',
    labelNames: ['type'] as const,
    registers
  })
  const duration = new Histogram({
    name: 'backup_duration_seconds',
    help: 'How long backups took.',
    labelNames: ['type'] as const,
    buckets: [0.1, 0.5, 1, 5, 15, 30, 60, 300, 900, 3600],
    registers
  })
  const checks = new Counter({
    name: 'backup_restore_checks_total',
    help: 'Restore drills that ended.',
    labelNames: ['outcome'] as const,
    registers
  })
  // Where none are due, none is late.
  const drillRegisters = drills ? registers : []
  const checkedAt = new Gauge({
    name: 'backup_restore_check_last_success_timestamp_seconds',
    help: 'Unix time of the last good restore drill, of the tenant that is furthest behind; 0: none.',
    registers: drillRegisters
  })
  const checkSeconds = new Gauge({
    name: 'backup_restore_check_last_duration_seconds',
    help: 'How long the last good restore drill took, of the tenant that took longest: the measured time to restore.',
    registers: drillRegisters
  })
  for (const type of types) {
    lastSuccess.set({ type }, 0)
    size.set({ type }, 0)
    duration.zero({ type })
    for (const outcome of OUTCOMES) runs.inc({ type, outcome }, 0)
  }
  for (const outcome of OUTCOMES) checks.inc({ outcome }, 0)
  const known = new Map<string, LastGood>()
  const worst = (of: (last: LastGood) => number) => Math.min(...[...known.values()].map(of)) / 1000
  return {
    ended(type: BackupType, outcome: Outcome): void {
      runs.inc({ type, outcome })
    },
    made(type: BackupType, bytes: number, seconds: number): void {
      size.set({ type }, bytes)
      duration.observe({ type }, seconds)
    },
    drilled(outcome: Outcome): void {
      checks.inc({ outcome })
    },
    /** Every node looks it up, whoever made them. */
    observe(tenant: string, last: LastGood): void {
      known.set(tenant, last)
      lastSuccess.set(
        { type: 'full' },
        worst(({ full }) => full)
      )
      if (increments)
        lastSuccess.set(
          { type: 'incremental' },
          worst(({ incremental }) => incremental)
        )
      checkedAt.set(worst(({ drill }) => drill))
      checkSeconds.set(Math.max(...[...known.values()].map(({ drillSeconds }) => drillSeconds)))
    }
  }
}
export type BackupMetrics = ReturnType<typeof createBackupMetrics>
