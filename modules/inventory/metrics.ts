import { setImmediate as nextTurn } from 'node:timers/promises'
import { Counter, Gauge, type Registry } from 'prom-client'
import { kept, type Tenant } from '../../plugins/contracts.js'
import { type ImportKind, type Movement, MovementType } from '../../schemas/inventory.js'
import { createLedgerQueries } from './ledger-queries.js'
import { upcoming } from './upcoming.js'

const REJECTIONS = {
  INV_INSUFFICIENT_STOCK: 'insufficient_stock',
  INV_LOT_RULE: 'lot_rule',
  INV_LOT_NOT_FOUND: 'lot_rule',
  INV_MOVEMENT_RULE: 'movement_rule',
  INV_UNIT_NOT_CONVERTIBLE: 'unit',
  INV_STOCK_LIMIT: 'limit'
} as const
const SOURCES = ['api', 'import'] as const
const IMPORT_KINDS: readonly ImportKind[] = ['items', 'movements']

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
  const lines = new Counter({
    name: 'inventory_movement_lines_total',
    help: 'Lines of ledger transactions posted.',
    labelNames: ['type'] as const,
    registers
  })
  const imported = new Counter({
    name: 'inventory_import_rows_total',
    help: 'Rows of uploaded files that were taken in.',
    labelNames: ['kind'] as const,
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
    lines.inc({ type }, 0)
    for (const source of SOURCES) movements.inc({ type, source }, 0)
  }
  for (const kind of IMPORT_KINDS) imported.inc({ kind }, 0)
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
  const proof = new Gauge({
    name: 'inventory_ledger_proof_duration_seconds',
    help: 'How long the last proof of a ledger took in this process; 0 before the first.',
    registers
  })
  const found = new Map<string, number>()
  return {
    posted(posted: readonly Movement[], source: (typeof SOURCES)[number]): void {
      for (const { type, lines: own } of posted) {
        movements.inc({ type, source })
        lines.inc({ type }, own.length)
        units.inc(
          { type },
          own.reduce((sum, line) => sum + line.quantity, 0)
        )
      }
    },
    rejected(error: unknown): void {
      const code = error instanceof Error && 'code' in error ? String(error.code) : ''
      const known = Object.entries(REJECTIONS).find(([name]) => name === code)
      if (known !== undefined) rejected.inc({ reason: known[1] })
    },
    imported: (kind: ImportKind, rows: number) => imported.inc({ kind }, rows),
    verified(tenant: string, mismatches: number, seconds: number): void {
      verified.set(Date.now() / 1000)
      proof.set(seconds)
      found.set(tenant, mismatches)
      imbalance.set([...found.values()].reduce((sum, each) => sum + each, 0))
    }
  }
}

/** What is in stock, summed over the tenants, found behind a scrape. The same from every node. */
export function stockGauges(registry: Registry, tenants: () => Promise<Tenant[]>): void {
  const figures = kept(() => sum(tenants))
  const gauge = (name: string, help: string, label: string, read: (found: StockFigures) => Record<string, number>) =>
    new Gauge({
      name,
      help,
      labelNames: [label],
      registers: [registry],
      async collect() {
        const found = await figures()
        this.reset()
        for (const [value, count] of Object.entries(found === undefined ? {} : read(found)))
          this.set({ [label]: value }, count)
      }
    })
  gauge('inventory_items', 'Active items by stock status.', 'status', ({ items }) => items)
  gauge(
    'inventory_expiring_lots',
    'Lots in stock that have expired, or will within the window, shorter windows included.',
    'window',
    ({ expiring }) => expiring
  )
  gauge(
    'inventory_reservations',
    'Reservations that are open; overdue ones are about to be voided.',
    'state',
    ({ reservations }) => reservations
  )
  new Gauge({
    name: 'inventory_stock_value',
    help: 'Value of stock at moving average cost, in major currency units.',
    registers: [registry],
    async collect() {
      const found = await figures()
      this.remove()
      if (found !== undefined) this.set(found.stockValue)
    }
  })
}

type StockFigures = Awaited<ReturnType<typeof sum>>

async function sum(tenants: () => Promise<Tenant[]>) {
  const total = {
    items: { in: 0, low: 0, out: 0, over: 0 },
    stockValue: 0,
    expiring: { expired: 0, '7d': 0, '30d': 0, '90d': 0 },
    reservations: { open: 0, overdue: 0 }
  }
  const add = <K extends string>(into: Record<K, number>, found: Readonly<Record<K, number>>, keys: readonly K[]) => {
    for (const key of keys) into[key] += found[key]
  }
  for (const tenant of await tenants()) {
    // On SQLite nothing here waits, and requests would wait for all tenants.
    await nextTurn()
    const { items, stockValue } = await createLedgerQueries(tenant.db).headline()
    total.stockValue += stockValue
    add(total.items, items, ['in', 'low', 'out', 'over'])
    const { expiring, reservations } = await upcoming(tenant.db, Date.now())
    add(total.expiring, expiring, ['expired', '7d', '30d', '90d'])
    add(total.reservations, reservations, ['open', 'overdue'])
  }
  return total
}
