import type { PersonalData, Tenant } from '../../plugins/contracts.js'
import { Movement } from '../../schemas/inventory.js'
import { BOOKKEEPING } from '../../schemas/personal.js'
import type { InventoryTables } from './tables.js'

const ROWS_PER_READ = 500
const instant = (ms: number | null) => (ms === null ? null : new Date(ms).toISOString())

async function* recorded({ db }: Tenant, actor: string): AsyncGenerator<object> {
  for (let after = 0; ; ) {
    const rows = await db
      .withTables<InventoryTables>()
      .selectFrom('stock_transactions')
      .select(['seq', 'id', 'type', 'occurred_at', 'recorded_at', 'reason', 'reference', 'request_id'])
      .where('actor', '=', actor)
      .where('seq', '>', after)
      .orderBy('seq')
      .limit(ROWS_PER_READ)
      .execute()
    for (const { id, type, occurred_at, recorded_at, reason, reference, request_id } of rows)
      yield {
        ...{ movementId: id, type, reason, reference, requestId: request_id },
        occurredAt: instant(occurred_at),
        recordedAt: instant(recorded_at)
      }
    const last = rows.at(-1)
    if (last === undefined || rows.length < ROWS_PER_READ) return
    after = last.seq
  }
}

async function* imported({ db }: Tenant, actor: string): AsyncGenerator<object> {
  const rows = await db
    .withTables<InventoryTables>()
    .selectFrom('imports')
    .selectAll()
    .where('actor', '=', actor)
    .orderBy('seq')
    .execute()
  for (const { id, kind, status, total_rows, created_at, finished_at } of rows)
    yield {
      importId: id,
      kind,
      status,
      rows: total_rows,
      createdAt: instant(created_at),
      finishedAt: instant(finished_at)
    }
}

/** The ledger knows people by opaque ids alone, so there is nothing to take out of it. */
export const personalData: PersonalData = {
  holder: 'inventory',
  schemas: { Movement },
  columns: { 'stock_transactions.actor': BOOKKEEPING, 'imports.actor': BOOKKEEPING },
  sections: { movements: recorded, imports: imported }
}
