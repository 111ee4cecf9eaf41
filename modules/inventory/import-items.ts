import type { Tenant, Transaction } from '../../plugins/contracts.js'
import { fromMicros } from '../../schemas/decimal.js'
import { type NewItem, RESERVED_ITEM_CODES } from '../../schemas/inventory.js'
import { createCatalogueStore } from './catalogue-store.js'
import { BarcodeTaken, ItemHasStock } from './errors.js'
import { RowError } from './import-cells.js'
import type { ItemImportRow } from './import-reader.js'
import { createItemStore, type ItemRecord } from './item-store.js'
import { blankRecord, recordOf } from './items.js'

/** What an import did to one item; null: it did not exist. */
export interface ItemChange {
  readonly itemCode: string
  readonly before: (ItemRecord & { id: number }) | null
}

const DEFAULT_UNIT = 'each'

/** What the file has said so far: of each item, and whose each barcode is. */
export interface Seen {
  readonly items: Map<string, Pick<ItemRecord, 'unit' | 'tracking'>>
  readonly owners: Map<string, string>
}

/** Checks a chunk of rows without storing anything. */
export async function rehearseItemRows(
  tenant: Tenant,
  rows: readonly ItemImportRow[],
  seen: Seen,
  refuse: (error: RowError) => void
) {
  const store = createItemStore(tenant.db)
  const catalogue = createCatalogueStore(tenant.db)
  const known = await store.records([...new Set(rows.map(({ itemCode }) => itemCode))])
  const { items, owners } = seen
  for (const { barcode, itemCode } of await store.ownersOf(rows.flatMap(({ barcodes }) => barcodes ?? [])))
    if (!owners.has(barcode)) owners.set(barcode, itemCode)
  const units = new Set<string>()
  for (const unit of new Set(rows.map(({ unit }) => unit ?? DEFAULT_UNIT)))
    if (await catalogue.unitExists(unit)) units.add(unit)
  const outcome = { created: 0, updated: 0 }
  for (const row of rows) {
    const stored = known.get(row.itemCode)
    const fixed = stored ?? items.get(row.itemCode)
    const isNew = fixed === undefined
    const taken = row.barcodes?.find((barcode) => (owners.get(barcode) ?? row.itemCode) !== row.itemCode)
    if (isNew && row.name === undefined)
      refuse(
        new RowError(row.row, 'name', 'REQUIRED', {
          en: 'name is missing, and the item is new',
          fr: 'name manque, et l’article est nouveau'
        })
      )
    else if (isNew && RESERVED_ITEM_CODES.has(row.itemCode))
      refuse(
        new RowError(row.row, 'itemCode', 'INV_ITEM_CODE_RESERVED', {
          en: `${JSON.stringify(row.itemCode)} is a part of this API’s own addresses`,
          fr: `${JSON.stringify(row.itemCode)} fait partie des adresses de cette API`
        })
      )
    else if (!units.has(row.unit ?? DEFAULT_UNIT))
      refuse(
        new RowError(row.row, 'unit', 'INV_UNIT_NOT_FOUND', {
          en: `the unit ${row.unit} does not exist`,
          fr: `l’unité ${row.unit} n’existe pas`
        })
      )
    else if (fixed !== undefined && row.unit !== undefined && row.unit !== fixed.unit)
      refuse(
        new RowError(row.row, 'unit', 'UNIT_FIXED', {
          en: `${row.itemCode} is counted in ${fixed.unit}; the base unit of an item never changes`,
          fr: `${row.itemCode} se compte en ${fixed.unit} ; l’unité de base d’un article ne change jamais`
        })
      )
    else if (fixed !== undefined && row.tracking !== undefined && row.tracking !== fixed.tracking)
      refuse(
        new RowError(row.row, 'tracking', 'TRACKING_FIXED', {
          en: `${row.itemCode} is tracked by ${fixed.tracking}; the tracking of an item never changes`,
          fr: `${row.itemCode} est suivi par ${fixed.tracking} ; le suivi d’un article ne change jamais`
        })
      )
    else if (taken !== undefined)
      refuse(
        new RowError(row.row, 'barcode', 'INV_BARCODE_TAKEN', {
          en: `the barcode ${taken} belongs to ${owners.get(taken)}`,
          fr: `le code-barres ${taken} appartient à ${owners.get(taken)}`
        })
      )
    else {
      for (const barcode of row.barcodes ?? []) owners.set(barcode, row.itemCode)
      if (isNew) outcome.created++
      else if (!items.has(row.itemCode)) outcome.updated++
      if (!items.has(row.itemCode))
        items.set(row.itemCode, fixed ?? blankRecord(row.itemCode, row.unit ?? DEFAULT_UNIT, row.tracking))
    }
  }
  return outcome
}

/** Creates and updates by code. Of rows with the same code the later wins. @throws BarcodeTaken */
export async function applyItemRows(tx: Transaction, rows: readonly ItemImportRow[]): Promise<ItemChange[]> {
  const store = createItemStore(tx.db)
  const catalogue = createCatalogueStore(tx.db)
  const codes = [...new Set(rows.map(({ itemCode }) => itemCode))]
  await store.lock(codes)
  const known = await store.records(codes)
  const categoryIds = new Map<string, number>()
  for (const { category } of rows) {
    if (category !== undefined && !categoryIds.has(category))
      categoryIds.set(category, await catalogue.categoryId(category))
  }
  const records = new Map<string, ItemRecord>()
  for (const row of rows) {
    const base =
      records.get(row.itemCode) ??
      known.get(row.itemCode) ??
      blankRecord(row.itemCode, row.unit ?? DEFAULT_UNIT, row.tracking)
    records.set(row.itemCode, {
      ...recordOf(fieldsOf(row), base, categoryIds.get(row.category ?? '') ?? null),
      archivedAt: null
    })
  }
  await requireFreeBarcodes(tx, [...records.values()])
  const entries = [...records.values()].map((record) => ({ record, stored: known.get(record.code) }))
  await store.insert(entries.filter(({ stored }) => stored === undefined).map(({ record }) => record))
  await store.update(
    entries.flatMap(({ record, stored }) => (stored === undefined ? [] : [{ ...record, id: stored.id }]))
  )
  return entries.map(({ record, stored }) => ({ itemCode: record.code, before: stored ?? null }))
}

type Fields = Omit<NewItem, 'name' | 'unit' | 'itemCode' | 'tracking'> & { name?: string }

function fieldsOf(row: ItemImportRow): Fields {
  const { name, nameFr, category, barcodes, reorderPoint, parLevel, unitCost, shelfLifeDays } = row
  const fields = { name, nameFr, category, barcodes, reorderPoint, parLevel, unitCost, shelfLifeDays }
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}

/** Others may have taken one since the rehearsal, or since the import that is undone. */
async function requireFreeBarcodes(tx: Transaction, records: readonly ItemRecord[]): Promise<void> {
  const owners = new Map(records.flatMap(({ code, barcodes }) => barcodes.map((barcode) => [barcode, code])))
  // Those of these items are written anew.
  const own = new Set(records.map(({ code }) => code))
  const stored = await createItemStore(tx.db).ownersOf([...owners.keys()])
  const taken = stored.find(({ barcode, itemCode }) => owners.get(barcode) !== itemCode && !own.has(itemCode))
  if (taken !== undefined) throw new BarcodeTaken(taken)
}

/**
 * Sets items back to what they were; one that was new is gone, or archived when the ledger has come to know it.
 * @throws ItemHasStock, BarcodeTaken
 */
export async function undoItemChanges(tx: Transaction, changes: readonly ItemChange[]): Promise<void> {
  const store = createItemStore(tx.db)
  const codes = changes.map(({ itemCode }) => itemCode)
  await store.lock(codes)
  const current = await store.records(codes)
  const stock = new Map((await store.find(codes)).map(({ code, on_hand }) => [code, on_hand]))
  const restored: (ItemRecord & { id: number })[] = []
  const removed: number[] = []
  for (const { itemCode, before } of changes) {
    const item = current.get(itemCode)
    if (item === undefined) continue
    const onHand = stock.get(itemCode) ?? 0
    if (before !== null) restored.push({ ...before, id: item.id })
    else if (onHand > 0) throw new ItemHasStock({ itemCode, onHand: fromMicros(onHand) })
    else if (await store.hasHistory(item.id)) restored.push({ ...item, barcodes: [], archivedAt: Date.now() })
    else removed.push(item.id)
  }
  await requireFreeBarcodes(tx, restored)
  await store.update(restored)
  await store.remove(removed)
}
