import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { inventoryMigrations } from '../../migrations/inventory.js'
import type { Answers, EnterModule, Jobs, Migrations, ModuleOptions, Periodic } from '../../plugins/contracts.js'
import type { Context, ItemFigures } from './context.js'
import { createInventoryMetrics } from './metrics.js'
import { verifyLedger } from './ports.js'
import { reservationRoutes, voidExpired } from './reservations.js'
import { catalogueRoutes, locationRoutes } from './routes-catalogue.js'
import { itemRoutes } from './routes-items.js'
import { ledgerRoutes, movementRoutes } from './routes-movements.js'
import { defineImportJobs, transferRoutes } from './routes-transfer.js'
import { INDEXED_TEXT } from './search-text.js'
import { removeLeftUploads } from './spool.js'

const RESERVATION_SWEEP_SECONDS = 30
const UPLOADS_SWEEP_SECONDS = 3_600
/** LedgerProofStale fires when two in a row are missed. */
const PROOF_SECONDS = 6 * 3_600

export interface InventoryOptions extends ModuleOptions {
  /** Quantity on order of each item, in its base unit; nothing is on order without it. */
  onOrder?: ItemFigures
  /** Forecast use of each item a day, in its base unit; days of cover are unknown without it. */
  dailyDemand?: ItemFigures
  /** Where uploaded files wait while they are imported; it must outlive a restart for an import to go on after one. */
  dataDir?: string
}

/** Items, where they are, and the ledger of what moved. Paths below `prefix`: /inventory, /locations, /movements, … */
async function inventory(app: FastifyInstance, options: InventoryOptions): Promise<void> {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  app.getDecorator<Migrations>('migrations').add({
    module: 'inventory',
    migrations: inventoryMigrations,
    portability: {
      onSqlite: {
        item_search: {
          table: 'item_texts',
          rebuild: [
            "insert into item_search (item_search) values ('delete-all')",
            `insert into item_search (rowid, text) select item_id, ${INDEXED_TEXT} from item_texts`
          ],
          follow: {
            remove: ['delete from item_search where rowid = ?'],
            put: [
              `insert into item_search (rowid, text) select item_id, ${INDEXED_TEXT} from item_texts where item_id = ?`
            ]
          }
        }
      }
    }
  })
  const jobs = app.getDecorator<Jobs>('jobs')
  const context: Context = {
    answers: app.getDecorator<Answers>('answers'),
    jobs,
    metrics: createInventoryMetrics(app.getDecorator<Registry>('registry')),
    onOrder: options.onOrder,
    dailyDemand: options.dailyDemand,
    spoolDir: join(options.dataDir ?? tmpdir(), 'imports')
  }
  defineImportJobs(context)
  const periodic = app.getDecorator<Periodic>('periodic')
  periodic.every(RESERVATION_SWEEP_SECONDS, 'reservation expiry', voidExpired)
  // Without a folder of its own, the files of others lie beside.
  const { dataDir } = options
  if (dataDir !== undefined)
    periodic.every(UPLOADS_SWEEP_SECONDS, 'left uploads', (tenant) => removeLeftUploads(tenant, context.spoolDir))
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort())
  periodic.every(PROOF_SECONDS, 'ledger proof', async (tenant) => {
    const startedAt = performance.now()
    const { mismatches } = await verifyLedger(tenant, closing.signal)
    context.metrics.verified(tenant.id, mismatches.length, (performance.now() - startedAt) / 1000)
  })
  const at = (prefix: string) => ({ prefix, ...context })
  await app.register(catalogueRoutes, at('/inventory'))
  await app.register(itemRoutes, at('/inventory'))
  await app.register(locationRoutes, at('/locations'))
  await app.register(movementRoutes, at('/movements'))
  await app.register(ledgerRoutes, at(''))
  await app.register(reservationRoutes, at('/reservations'))
  await app.register(transferRoutes, at(''))
}

export { inventoryMigrations as migrations } from '../../migrations/inventory.js'
export type { ItemFigures } from './context.js'
export { dailyFlow, dailyUseByLocation } from './daily.js'
export { stockGauges } from './metrics.js'
export { postMovement } from './movements.js'
export { personalData } from './personal.js'
export {
  availableStock,
  inventoryHeadline,
  items,
  ledgerProof,
  verifyLedger
} from './ports.js'

export default fp(inventory, {
  name: 'inventory-enterprise/inventory',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'answers', 'registry', 'migrations', 'jobs', 'periodic'],
    request: ['tenant', 'principal']
  }
})
