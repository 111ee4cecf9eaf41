import type { AuditEntry, Tenant, Transaction } from '../../plugins/contracts.js'
import { fromMicros, toMicros } from '../../schemas/decimal.js'
import { type Item, type ItemPatch, type ItemRow, type NewItem, RESERVED_ITEM_CODES } from '../../schemas/inventory.js'
import { createCatalogueStore } from './catalogue-store.js'
import type { Context } from './context.js'
import {
  BarcodeTaken,
  ItemCodeReserved,
  ItemExists,
  ItemHasStock,
  ItemNotFound,
  ItemUnitFixed,
  UnitNotFound
} from './errors.js'
import { presentRow } from './item-rows.js'
import { createItemStore, type ItemRecord } from './item-store.js'
import { STOCK_CACHE } from './movements.js'

/** Asks other modules what they know of these items; answers what is shown of each. */
export async function outlookFor(
  { onOrder, dailyDemand }: Pick<Context, 'onOrder' | 'dailyDemand'>,
  tenant: Tenant,
  itemCodes: readonly string[]
): Promise<(itemCode: string, availableMicros: number) => Pick<ItemRow, 'onOrder' | 'daysOfCover'>> {
  const [ordered, demand] = await Promise.all([onOrder?.(tenant, itemCodes), dailyDemand?.(tenant, itemCodes)])
  return (itemCode, availableMicros) => {
    const perDay = demand?.get(itemCode)
    const daysOfCover =
      perDay === undefined || perDay <= 0 ? null : Math.round((fromMicros(availableMicros) / perDay) * 10) / 10
    return { onOrder: ordered?.get(itemCode) ?? 0, daysOfCover }
  }
}

/** An item as a client sees it, with what is on order and how long it lasts. @throws ItemNotFound */
export async function loadItem(
  context: Pick<Context, 'onOrder' | 'dailyDemand'>,
  tenant: Tenant,
  db: Tenant['db'],
  itemCode: string,
  showCost: boolean
): Promise<Item> {
  const store = createItemStore(db)
  const [row] = await store.find([itemCode])
  if (row === undefined) throw new ItemNotFound({ itemCode })
  const outlookOf = await outlookFor(context, tenant, [itemCode])
  const outlook = outlookOf(itemCode, row.on_hand - row.reserved)
  return { ...presentRow(row, showCost), ...outlook, ...(await store.details(row)) }
}

/** The micro values and defaults of what a client sent, over what is stored. */
export function recordOf(fields: NewItem | ItemPatch, base: ItemRecord, categoryId: number | null): ItemRecord {
  const decimal = (value: number | null | undefined, stored: number | null) =>
    value === undefined ? stored : value === null ? null : toMicros(value)
  return {
    ...base,
    name: fields.name ?? base.name,
    nameFr: fields.nameFr === undefined ? base.nameFr : fields.nameFr,
    categoryId: fields.category === undefined ? base.categoryId : categoryId,
    shelfLifeDays: fields.shelfLifeDays === undefined ? base.shelfLifeDays : fields.shelfLifeDays,
    reorderPoint: decimal(fields.reorderPoint, base.reorderPoint),
    parLevel: decimal(fields.parLevel, base.parLevel),
    unitCost: decimal(fields.unitCost, base.unitCost),
    barcodes: fields.barcodes ?? base.barcodes,
    updatedAt: Date.now()
  }
}

export const blankRecord = (code: string, unit: string, tracking: NewItem['tracking'] = 'none'): ItemRecord => ({
  code,
  name: code,
  nameFr: null,
  categoryId: null,
  unit,
  tracking,
  shelfLifeDays: null,
  reorderPoint: null,
  parLevel: null,
  unitCost: null,
  barcodes: [],
  createdAt: Date.now(),
  updatedAt: Date.now(),
  archivedAt: null
})

/** For the audit trail. */
const itemChange = (
  action: 'create' | 'update' | 'delete',
  before: ItemRecord | undefined,
  after: ItemRecord | null
): AuditEntry => ({
  action: `item.${action}`,
  object: { type: 'item', id: (after ?? before)?.code ?? '' },
  before: before === undefined ? null : shownRecord(before),
  after: after === null ? null : shownRecord(after)
})

function shownRecord(record: ItemRecord): object {
  const decimal = (micros: number | null) => (micros === null ? null : fromMicros(micros))
  const { name, nameFr, categoryId, unit, tracking, shelfLifeDays, barcodes } = record
  return {
    ...{ name, nameFr, categoryId, unit, tracking, shelfLifeDays, barcodes },
    reorderPoint: decimal(record.reorderPoint),
    parLevel: decimal(record.parLevel),
    unitCost: decimal(record.unitCost),
    archived: record.archivedAt !== null
  }
}

/** @throws ItemExists, ItemCodeReserved, UnitNotFound, BarcodeTaken, ItemUnitFixed */
export async function createItem(tx: Transaction, body: NewItem): Promise<void> {
  const store = createItemStore(tx.db)
  const catalogue = createCatalogueStore(tx.db)
  await store.lock([body.itemCode])
  const known = (await store.records([body.itemCode])).get(body.itemCode)
  if (known !== undefined && known.archivedAt === null) throw new ItemExists({ itemCode: body.itemCode })
  if (RESERVED_ITEM_CODES.has(body.itemCode)) throw new ItemCodeReserved({ itemCode: body.itemCode })
  if (!(await catalogue.unitExists(body.unit))) throw new UnitNotFound({ unit: body.unit })
  await refuseTakenBarcodes(tx, body.itemCode, body.barcodes ?? [])
  const categoryId = body.category == null ? null : await catalogue.categoryId(body.category)
  const record = recordOf(body, blankRecord(body.itemCode, body.unit, body.tracking), categoryId)
  // A code that was archived comes back to life with its history, so it is counted as the ledger counted it.
  if (known === undefined) await store.insert([record])
  else if (known.unit === record.unit && known.tracking === record.tracking)
    await store.update([{ ...record, id: known.id, createdAt: known.createdAt }])
  else throw new ItemUnitFixed({ itemCode: body.itemCode, unit: known.unit, tracking: known.tracking })
  tx.audit(itemChange('create', known, record))
  tx.invalidate(STOCK_CACHE)
}

/** What is not named stays as it is. @throws ItemNotFound, BarcodeTaken */
export async function patchItem(tx: Transaction, itemCode: string, patch: ItemPatch): Promise<void> {
  const store = createItemStore(tx.db)
  const known = (await store.records([itemCode])).get(itemCode)
  if (known === undefined || known.archivedAt !== null) throw new ItemNotFound({ itemCode })
  await refuseTakenBarcodes(tx, itemCode, patch.barcodes ?? [])
  const categoryId = patch.category == null ? null : await createCatalogueStore(tx.db).categoryId(patch.category)
  const record = recordOf(patch, known, categoryId)
  await store.update([{ ...record, id: known.id }])
  tx.audit(itemChange('update', known, record))
  tx.invalidate(STOCK_CACHE)
}

/** An item with history is archived, since the ledger refers to it; one without is gone. */
export async function removeItem(tx: Transaction, itemCode: string): Promise<void> {
  const store = createItemStore(tx.db)
  const known = (await store.records([itemCode])).get(itemCode)
  const [row] = await store.find([itemCode])
  if (known === undefined || row === undefined) throw new ItemNotFound({ itemCode })
  if (row.on_hand > 0) throw new ItemHasStock({ itemCode, onHand: fromMicros(row.on_hand) })
  if (await store.hasHistory(known.id))
    await store.update([{ ...known, barcodes: [], archivedAt: Date.now(), updatedAt: Date.now() }])
  else await store.remove([known.id])
  tx.audit(itemChange('delete', known, null))
  tx.invalidate(STOCK_CACHE)
}

async function refuseTakenBarcodes(tx: Transaction, itemCode: string, barcodes: readonly string[]): Promise<void> {
  const owners = await createItemStore(tx.db).ownersOf(barcodes)
  const other = owners.find((owner) => owner.itemCode !== itemCode)
  if (other !== undefined) throw new BarcodeTaken(other)
}
