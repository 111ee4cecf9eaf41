import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { auditMigrations } from '../../migrations/audit.js'
import type { Audit, EnterModule, Migrations, ModuleOptions, Periodic, Writer } from '../../plugins/contracts.js'
import { createAuditMetrics } from './metrics.js'
import { createNotes } from './notes.js'
import { routes } from './routes.js'
import { pruneTrail, sealTrail } from './seal.js'
import { appendEntries, type NewEntry, rowOf } from './store.js'
import { verifyTrail } from './verify.js'

export interface AuditOptions extends ModuleOptions {
  /** How long entries are kept. */
  retentionDays?: number
}

const RETENTION_DAYS = 365
const RETENTION_DAYS_MAX = 3_650
const SEAL_EVERY_SECONDS = 60
const PRUNE_EVERY_SECONDS = 3_600
const PROVE_EVERY_SECONDS = 24 * 3_600

/** Keeps who did what: in the transaction of the change, append-only, chained by hashes in batches. */
async function audit(app: FastifyInstance, options: AuditOptions): Promise<void> {
  const { retentionDays = RETENTION_DAYS } = options
  if (!Number.isInteger(retentionDays) || retentionDays < 1 || retentionDays > RETENTION_DAYS_MAX) {
    throw new RangeError(`the option retentionDays may be 1–${RETENTION_DAYS_MAX}, not ${retentionDays}`)
  }
  app.getDecorator<EnterModule>('enterModule')(app, options)
  app.getDecorator<Migrations>('migrations').add({ module: 'audit', migrations: auditMigrations })
  const metrics = createAuditMetrics(app.getDecorator<Registry>('registry'))
  const append = async (tx: Writer, rows: readonly NewEntry[]) => {
    await appendEntries(tx, rows)
    for (const { outcome } of rows) metrics.written(outcome)
  }
  const notes = createNotes({
    coalesced: metrics.coalesced,
    lost: metrics.lost,
    keep: async (tenant, rows) => {
      if (tenant !== null) {
        await tenant.transact((tx) => append(tx, rows))
        return
      }
      metrics.unattributed(rows.reduce((sum, { occurrences }) => sum + (occurrences ?? 1), 0))
      for (const { action, outcome, object_id, request_id, address, details, occurrences } of rows)
        app.log.warn({ action, outcome, object_id, request_id, address, details, occurrences }, 'refused, of no tenant')
    }
  })
  app.getDecorator<Audit>('audit').keepIn({
    append: (tx, agent, entries) => {
      const now = Date.now()
      return append(
        tx,
        entries.map((entry) => rowOf(agent, entry, now))
      )
    },
    note: notes.note
  })
  app.addHook('onClose', () => notes.close())
  const periodic = app.getDecorator<Periodic>('periodic')
  periodic.every(SEAL_EVERY_SECONDS, 'audit seal', async (tenant) => metrics.sealed(await sealTrail(tenant)))
  periodic.every(PRUNE_EVERY_SECONDS, 'audit retention', (tenant) => pruneTrail(tenant, retentionDays))
  periodic.every(PROVE_EVERY_SECONDS, 'audit proof', async (tenant) =>
    metrics.verified(tenant.id, (await verifyTrail(tenant)).mismatches.length)
  )
  await app.register(routes, { metrics })
}

export { auditMigrations as migrations } from '../../migrations/audit.js'
export { personalData } from './personal.js'
export { pruneTrail, sealTrail } from './seal.js'
export { trailProof, verifyTrail } from './verify.js'

export default fp(audit, {
  name: 'inventory-enterprise/audit',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'audit', 'registry', 'migrations', 'periodic'],
    request: ['tenant', 'principal']
  }
})
