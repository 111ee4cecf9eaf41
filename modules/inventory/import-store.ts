import type { Kysely } from 'kysely'
import { decodeCursor, encodeCursor, pageOf } from '../../plugins/contracts.js'
import type { ImportRun } from '../../schemas/inventory.js'
import { among, insertRows } from './bulk.js'
import type { ItemChange } from './import-items.js'
import type { InventoryTables } from './tables.js'

/** Imports on record: how far each got, and what one of items changed. */
export function createImportStore(root: Kysely<unknown>) {
  const db = root.withTables<InventoryTables>()
  return {
    insert: (row: Omit<InventoryTables['imports'], 'seq'>) => db.insertInto('imports').values(row).execute(),
    find: (id: string) => db.selectFrom('imports').selectAll().where('id', '=', id).executeTakeFirst(),
    list: async ({ limit = 50, cursor }: { limit?: number; cursor?: string }) => {
      const before = Number(decodeCursor('imports', cursor, ['number'])?.[0] ?? Number.MAX_SAFE_INTEGER)
      const rows = await db
        .selectFrom('imports')
        .selectAll()
        .where('seq', '<', before)
        .orderBy('seq', 'desc')
        .limit(limit + 1)
        .execute()
      return pageOf(rows, limit, ({ seq }) => encodeCursor('imports', [seq]), presentRun)
    },
    /** Moves on only while the import runs, so that of a run and an undo only one goes on. */
    advance: async (id: string, doneRows: number): Promise<boolean> => {
      const { numUpdatedRows } = await db
        .updateTable('imports')
        .set({ done_rows: doneRows })
        .where('id', '=', id)
        .where('status', '=', 'running')
        .executeTakeFirst()
      return Number(numUpdatedRows) > 0
    },
    setStatus: async (
      id: string,
      from: readonly InventoryTables['imports']['status'][],
      to: InventoryTables['imports']['status']
    ): Promise<boolean> => {
      const { numUpdatedRows } = await db
        .updateTable('imports')
        .set({ status: to, ...(to === 'running' || to === 'undoing' ? {} : { finished_at: Date.now(), spool: null }) })
        .where('id', '=', id)
        .where('status', 'in', from)
        .executeTakeFirst()
      return Number(numUpdatedRows) > 0
    },
    keepChanges: async (id: string, changes: readonly ItemChange[]): Promise<void> => {
      const codes = changes.map(({ itemCode }) => itemCode)
      const known = new Set(
        (
          await db
            .selectFrom('import_changes')
            .select('item_code')
            .where('import_id', '=', id)
            .where(among(root, 'item_code', codes))
            .execute()
        ).map((row) => row.item_code)
      )
      // An item that the file names twice is set back to what it was before the first.
      const rows = changes
        .filter(({ itemCode }) => !known.has(itemCode))
        .map(({ itemCode, before }) => [id, itemCode, before === null ? null : JSON.stringify(before)])
      await insertRows(root, {
        table: 'import_changes',
        columns: { import_id: 'text', item_code: 'text', before: 'text' },
        rows
      })
    },
    changes: async (id: string, limit: number): Promise<ItemChange[]> => {
      const rows = await db
        .selectFrom('import_changes')
        .selectAll()
        .where('import_id', '=', id)
        .orderBy('item_code')
        .limit(limit)
        .execute()
      return rows.map(({ item_code, before }) => ({
        itemCode: item_code,
        before: before === null ? null : JSON.parse(before)
      }))
    },
    dropChanges: (id: string, codes: readonly string[]) =>
      db
        .deleteFrom('import_changes')
        .where('import_id', '=', id)
        .where(among(root, 'item_code', codes))
        .execute()
  }
}

export const presentRun = (
  row: Pick<
    InventoryTables['imports'],
    'id' | 'kind' | 'status' | 'total_rows' | 'done_rows' | 'created_at' | 'finished_at'
  >
): ImportRun => ({
  id: row.id,
  kind: row.kind,
  status: row.status,
  rows: row.total_rows,
  // Rows are named as they stand in the file, whose header is one.
  done: Math.min(row.done_rows, row.total_rows),
  createdAt: new Date(row.created_at).toISOString(),
  finishedAt: row.finished_at === null ? null : new Date(row.finished_at).toISOString()
})
