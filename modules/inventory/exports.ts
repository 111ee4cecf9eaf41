import type { Tenant } from '../../plugins/contracts.js'
import type { ExportKind } from '../../schemas/inventory.js'
import { presentRow } from './item-list.js'
import { createItemStore } from './item-store.js'
import { createLedgerQueries } from './ledger-queries.js'

type Cell = string | number | null
const PAGE = 500

const COLUMNS = {
  items: [
    'itemCode',
    'name',
    'unit',
    'nameFr',
    'category',
    'reorderPoint',
    'parLevel',
    'unitCost',
    'tracking',
    'onHand',
    'value'
  ],
  stock: ['itemCode', 'name', 'unit', 'onHand'],
  movements: [
    'movementId',
    'itemCode',
    'type',
    'quantity',
    'occurredAt',
    'from',
    'to',
    'unit',
    'lot',
    'unitCost',
    'reason',
    'reference',
    'reverses'
  ]
} as const satisfies Record<ExportKind, readonly string[]>

/** The rows of an export in pages, so that it needs no more memory for ten million rows than for ten. */
async function* rowsOf(kind: ExportKind, tenant: Tenant, showCost: boolean): AsyncGenerator<Record<string, Cell>> {
  const queries = createLedgerQueries(tenant.db)
  for (let cursor: string | undefined; ; ) {
    const from = cursor === undefined ? {} : { cursor }
    let next: string | null = null
    if (kind === 'items') {
      const { rows, cursorOf } = await createItemStore(tenant.db).list({ limit: PAGE, ...from })
      for (const row of rows.slice(0, PAGE)) yield presentRow(row, showCost)
      const last = rows[PAGE - 1]
      next = rows.length > PAGE && last !== undefined ? cursorOf(last) : null
    } else if (kind === 'stock') {
      const { data, page } = await queries.stockAsOf(Number.MAX_SAFE_INTEGER, { limit: PAGE, ...from })
      yield* data
      next = page.nextCursor
    } else {
      const { data, page } = await queries.movements({ limit: PAGE, ...from }, showCost)
      for (const { id, type, occurredAt, reason, reference, reverses, lines } of data) {
        for (const line of lines) yield { movementId: id, type, occurredAt, reason, reference, reverses, ...line }
      }
      next = page.nextCursor
    }
    if (next === null) return
    cursor = next
  }
}

export async function* exportCsv(kind: ExportKind, tenant: Tenant, showCost: boolean): AsyncGenerator<string> {
  yield `${COLUMNS[kind].join(',')}\r\n`
  for await (const row of rowsOf(kind, tenant, showCost))
    yield `${COLUMNS[kind].map((name) => csvCell(row[name] ?? null)).join(',')}\r\n`
}

export async function* exportNdjson(kind: ExportKind, tenant: Tenant, showCost: boolean): AsyncGenerator<string> {
  for await (const row of rowsOf(kind, tenant, showCost)) {
    yield `${JSON.stringify(Object.fromEntries(COLUMNS[kind].map((name) => [name, row[name] ?? null])))}\n`
  }
}

/** RFC 4180. A text that a spreadsheet would run as a formula is marked as text. */
export function csvCell(value: Cell): string {
  if (value === null) return ''
  if (typeof value === 'number') return String(value)
  const harmless = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value
  return /[",\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless
}
