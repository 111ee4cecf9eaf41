import { CompiledQuery } from 'kysely'
import { Counter, Gauge, type Registry } from 'prom-client'
import type { HealthCheck, Tenant } from '../contracts.js'
import type { Mirror } from './controller.js'

/** Of all tenants together: sums, and the worst where a sum says nothing. */
export function mirrorMetrics(registry: Registry, mirror: Pick<Mirror, 'status'>): void {
  const gauge = (name: string, help: string, read: () => number) =>
    void new Gauge({
      name,
      help,
      registers: [registry],
      collect() {
        this.set(read())
      }
    })
  const counter = (name: string, help: string, read: () => number) => {
    let counted = 0
    void new Counter({
      name,
      help,
      registers: [registry],
      collect() {
        // What is counted starts anew with the thread that counts it.
        const now = read()
        this.inc(now < counted ? now : now - counted)
        counted = now
      }
    })
  }
  const sum = (of: 'pendingChanges' | 'appliedChanges') =>
    mirror.status().tenants.reduce((total, each) => total + each[of], 0)
  gauge('mirror_on', '1 while a copy on the other database engine is kept.', () => (mirror.status().on ? 1 : 0))
  gauge('mirror_lag_seconds', 'How long ago the copy that is furthest behind was the same as its original.', () =>
    Math.max(0, ...mirror.status().tenants.map(({ lagSeconds }) => lagSeconds))
  )
  gauge('mirror_pending_changes', 'Changes that the copies are behind.', () => sum('pendingChanges'))
  gauge(
    'mirror_parity_mismatched_rows',
    'Rows that differed when the copies were last verified.',
    () => mirror.status().verified?.differing ?? 0
  )
  gauge(
    'mirror_last_verified_timestamp_seconds',
    'When every row of the copies was last compared; 0: not since the start.',
    () => (mirror.status().verified?.at ?? 0) / 1000
  )
  counter('mirror_applied_changes_total', 'Rows written to the copies.', () => sum('appliedChanges'))
  counter('mirror_errors_total', 'Times that the copying stopped and began again.', () => mirror.status().errors)
}

/** The service goes on without its copy. */
export const mirrorCheck = (mirror: Mirror): HealthCheck => ({
  name: 'mirror',
  optional: true,
  probe: async () => {
    const { on, error } = mirror.status()
    if (on && error !== undefined) throw new Error(error)
  }
})

/** Removes what was noted and is in the copy by now, a little at a time between other writes. */
export async function forgetMirrored(mirror: Mirror, tenant: Tenant): Promise<void> {
  const pruning = mirror.pruning(tenant.id)
  if (pruning === undefined) return
  const query = CompiledQuery.raw(pruning.statement, [...pruning.values])
  const once = () => tenant.transact(({ db }) => db.executeQuery(query), { durability: 'relaxed' })
  while (((await once()).numAffectedRows ?? 0n) > 0n);
}
