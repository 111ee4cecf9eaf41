import type { ArchiveProof, Tenant, TenantCopy } from '../../plugins/contracts.js'
import { fromMicros } from '../../schemas/decimal.js'
import { createLedgerQueries } from './ledger-queries.js'
import type { InventoryTables } from './tables.js'

/** What other domains read of inventory; a host hands these functions to them as options. */

const tablesOf = (tenant: Tenant) => tenant.db.withTables<InventoryTables>()

/** Active items in code order, a page at a time. */
export function items(
  tenant: Tenant,
  { itemCodes, afterItemCode = '', limit }: { itemCodes?: readonly string[]; afterItemCode?: string; limit: number }
): Promise<{ itemCode: string; name: string; category: string | null }[]> {
  if (itemCodes?.length === 0) return Promise.resolve([])
  let query = tablesOf(tenant)
    .selectFrom('items as i')
    .leftJoin('categories as c', 'c.id', 'i.category_id')
    .select(['i.code as itemCode', 'i.name', 'c.name as category'])
    .where('i.archived_at', 'is', null)
    .where('i.code', '>', afterItemCode)
  if (itemCodes !== undefined) query = query.where('i.code', 'in', itemCodes)
  return query.orderBy('i.code').limit(limit).execute()
}

/** What is available of each item that has stock or had some: on hand less reserved. */
export async function availableStock(tenant: Tenant): Promise<{ itemCode: string; available: number }[]> {
  const rows = await tablesOf(tenant)
    .selectFrom('items as i')
    .innerJoin('item_totals as t', 't.item_id', 'i.id')
    .where('i.archived_at', 'is', null)
    .where('t.on_hand', '>', 0)
    .select(['i.code', 't.on_hand', 't.reserved'])
    .execute()
  return rows.map(({ code, on_hand, reserved }) => ({ itemCode: code, available: fromMicros(on_hand - reserved) }))
}

export interface InventoryHeadline {
  items: number
  stockValue: number
  lowStock: number
  outOfStock: number
  movementsToday: number
}

/** For a dashboard. */
export async function inventoryHeadline(tenant: Tenant): Promise<InventoryHeadline> {
  const queries = createLedgerQueries(tenant.db)
  const { items: byStatus, stockValue } = await queries.headline()
  return {
    items: byStatus.in + byStatus.low + byStatus.out + byStatus.over,
    stockValue,
    lowStock: byStatus.low,
    outOfStock: byStatus.out,
    movementsToday: await queries.recordedSince(new Date().setUTCHours(0, 0, 0, 0))
  }
}

/** Recomputes every balance from the moves. */
export const verifyLedger = ({ db }: Pick<Tenant, 'db'>, signal?: AbortSignal) =>
  createLedgerQueries(db).verify(undefined, signal)

/** The same of a copy, such as a restored one. */
export async function ledgerProof(copy: TenantCopy): Promise<ArchiveProof> {
  const { moves, mismatches } = await verifyLedger(copy)
  const problems = mismatches.map(
    ({ itemCode, what, stored, recomputed }) => `${itemCode}: ${what} is ${stored}, the moves say ${recomputed}`
  )
  return { name: 'ledger', checked: moves, problems }
}
