import { Counter, Gauge, type Registry } from 'prom-client'
import type { Tenant } from '../../plugins/contracts.js'
import { type Movement, MovementType } from '../../schemas/inventory.js'
import { createLedgerQueries } from './ledger-queries.js'

const REJECTIONS = {
  INV_INSUFFICIENT_STOCK: 'insufficient_stock',
  INV_LOT_RULE: 'lot_rule',
  INV_LOT_NOT_FOUND: 'lot_rule',
  INV_MOVEMENT_RULE: 'movement_rule',
  INV_UNIT_NOT_CONVERTIBLE: 'unit',
  INV_STOCK_LIMIT: 'limit'
} as const
const SOURCES = ['api', 'import'] as const

export type InventoryMetrics = ReturnType<typeof createInventoryMetrics>

export function createInventoryMetrics(registry: Registry) {
  const registers = [registry]
  const movements = new Counter({
    name: 'inventory_stock_movements_total',
    help: 'Ledger transactions posted.',
    labelNames: ['type', 'source'] as const,
    registers
  })
  const units = new Counter({
    name: 'inventory_moved_units_total',
    help: 'Units moved, in the base units of the items.',
    labelNames: ['type'] as const,
    registers
  })
  const rejected = new Counter({
    name: 'inventory_rejected_movements_total',
    help: 'Ledger transactions refused by a rule.',
    labelNames: ['reason'] as const,
    registers
  })
  for (const type of MovementType.enum) {
    units.inc({ type }, 0)
    for (const source of SOURCES) movements.inc({ type, source }, 0)
  }
  for (const reason of new Set(Object.values(REJECTIONS))) rejected.inc({ reason }, 0)
  const verified = new Gauge({
    name: 'inventory_ledger_last_verified_timestamp_seconds',
    help: 'Unix time of the last proof of the ledger in this process; 0 before the first.',
    registers
  })
  const imbalance = new Gauge({
    name: 'inventory_ledger_mismatches',
    help: 'Balances, totals and values that the last proof found to differ from the moves; must be 0.',
    registers
  })
  const found = new Map<string, number>()
  return {
    posted(posted: readonly Movement[], source: (typeof SOURCES)[number]): void {
      for (const { type, lines } of posted) {
        movements.inc({ type, source })
        units.inc(
          { type },
          lines.reduce((sum, line) => sum + line.quantity, 0)
        )
      }
    },
    rejected(error: unknown): void {
      const code = error instanceof Error && 'code' in error ? String(error.code) : ''
      const known = Object.entries(REJECTIONS).find(([name]) => name === code)
      if (known !== undefined) rejected.inc({ reason: known[1] })
    },
    verified(tenant: string, mismatches: number): void {
      verified.set(Date.now() / 1000)
      found.set(tenant, mismatches)
      imbalance.set([...found.values()].reduce((sum, each) => sum + each, 0))
    }
  }
}

/** Stock by status, summed over the tenants, read when Prometheus asks and kept for a while. */
export function stockGauges(registry: Registry, tenants: () => Promise<Tenant[]>): void {
  const registers = [registry]
  const KEEP_MILLISECONDS = 15_000
  let kept: { at: number; figures: Promise<Awaited<ReturnType<typeof sum>> | undefined> } | undefined
  const figures = () => {
    if (kept === undefined || Date.now() - kept.at > KEEP_MILLISECONDS) {
      // Without the database the other metrics are wanted most: these two are left out then.
      const asked = sum(tenants).catch(() => {
        kept = undefined
        return undefined
      })
      kept = { at: Date.now(), figures: asked }
    }
    return kept.figures
  }
  new Gauge({
    name: 'inventory_items',
    help: 'Active items by stock status.',
    labelNames: ['status'],
    registers,
    async collect() {
      const found = await figures()
      this.reset()
      for (const [status, count] of Object.entries(found?.items ?? {})) this.set({ status }, count)
    }
  })
  new Gauge({
    name: 'inventory_stock_value',
    help: 'Value of stock at moving average cost, in major currency units.',
    registers,
    async collect() {
      const found = await figures()
      this.remove()
      if (found !== undefined) this.set(found.stockValue)
    }
  })
}

async function sum(tenants: () => Promise<Tenant[]>) {
  const total = { items: { in: 0, low: 0, out: 0, over: 0 }, stockValue: 0 }
  for (const tenant of await tenants()) {
    const { items, stockValue } = await createLedgerQueries(tenant.db).headline()
    for (const status of ['in', 'low', 'out', 'over'] as const) total.items[status] += items[status]
    total.stockValue += stockValue
  }
  return total
}
