import { csvCell, reportsOf, type Tenant } from '../../plugins/contracts.js'
import { fromMicros } from '../../schemas/decimal.js'
import type { ExportKind } from '../../schemas/inventory.js'
import { ITEM_FIELDS } from './import-reader.js'
import { faceOf } from './item-rows.js'
import { createItemStore, type ItemRecord } from './item-store.js'
import { createLedgerQueries } from './ledger-queries.js'

type Cell = string | number | null
const PAGE = 500

/** Those of items are what an import of items reads, so that a file may go out, be edited and come back. */
const COLUMNS = {
  items: ITEM_FIELDS,
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
  const report = await reportsOf(tenant)
  for (let cursor: string | undefined; ; ) {
    const from = cursor === undefined ? {} : { cursor }
    let next: string | null = null
    if (kind === 'items') {
      const { rows, cursorOf, records } = await report(async (db) => {
        const store = createItemStore(db)
        const listed = await store.list({ limit: PAGE, ...from })
        return { ...listed, records: await store.records(listed.rows.map(({ code }) => code)) }
      })
      for (const row of rows.slice(0, PAGE)) {
        const record = records.get(row.code)
        if (record !== undefined) yield presentRecord(record, faceOf(row).category, showCost)
      }
      const last = rows[PAGE - 1]
      next = rows.length > PAGE && last !== undefined ? cursorOf(last) : null
    } else if (kind === 'stock') {
      const { data, page } = await report((db) =>
        createLedgerQueries(db).stockAsOf(Number.MAX_SAFE_INTEGER, { limit: PAGE, ...from })
      )
      yield* data
      next = page.nextCursor
    } else {
      const { data, page } = await report((db) => createLedgerQueries(db).movements({ limit: PAGE, ...from }, showCost))
      for (const { id, type, occurredAt, reason, reference, reverses, lines } of data) {
        for (const line of lines) yield { movementId: id, type, occurredAt, reason, reference, reverses, ...line }
      }
      next = page.nextCursor
    }
    if (next === null) return
    cursor = next
  }
}

const presentRecord = (record: ItemRecord, category: string | null, showCost: boolean): Record<string, Cell> => {
  const decimal = (micros: number | null) => (micros === null ? null : fromMicros(micros))
  return {
    itemCode: record.code,
    name: record.name,
    unit: record.unit,
    nameFr: record.nameFr,
    category,
    barcode: record.barcodes.join('|') || null,
    reorderPoint: decimal(record.reorderPoint),
    parLevel: decimal(record.parLevel),
    unitCost: showCost ? decimal(record.unitCost) : null,
    tracking: record.tracking,
    shelfLifeDays: record.shelfLifeDays
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
