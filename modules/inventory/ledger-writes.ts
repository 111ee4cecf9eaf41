import { type Kysely, sql } from 'kysely'
import { isPostgres } from '../../migrations/columns.js'
import { prepared, type Writer } from '../../plugins/contracts.js'
import { fieldsOf, type InsertShape, insertion, insertOf, insertRows } from './bulk.js'
import type { TransactionHead } from './ledger-store.js'
import { type AccountState, type ItemState, type Move, statusOf } from './posting.js'

/** What a book has posted, as it is written: all rows of a table at once. */

export const BALANCES = {
  table: 'stock_balances',
  columns: { account_id: 'integer', item_id: 'integer', on_hand: 'integer', reserved: 'integer' },
  upsertOn: 'account_id'
} as const satisfies InsertShape
export const balanceRow = ({ id, itemId, onHand, reserved }: AccountState) => [id, itemId, onHand, reserved]

export const TOTALS = {
  table: 'item_totals',
  columns: { item_id: 'integer', on_hand: 'integer', reserved: 'integer', value: 'integer', status: 'text' },
  upsertOn: 'item_id'
} as const satisfies InsertShape
export const totalRow = (item: ItemState) => [item.id, item.onHand, item.reserved, item.value, statusOf(item)]

const HEADS = {
  table: 'stock_transactions',
  columns: {
    id: 'text',
    type: 'text',
    occurred_at: 'integer',
    recorded_at: 'integer',
    actor: 'text',
    reason: 'text',
    reference: 'text',
    reverses: 'integer',
    import_id: 'text',
    request_id: 'text'
  },
  returning: ['seq', 'id']
} as const satisfies InsertShape
const headRow = (head: TransactionHead) => [
  head.id,
  head.type,
  head.occurredAt,
  head.recordedAt,
  head.actor,
  head.reason,
  head.reference,
  head.reverses,
  head.importId,
  head.requestId
]

/** Behind the sequence number of its transaction. */
const MOVE_COLUMNS = {
  line: 'integer',
  item_id: 'integer',
  from_account: 'integer',
  to_account: 'integer',
  quantity: 'integer',
  entered_quantity: 'integer',
  entered_unit: 'text',
  request_line: 'integer',
  unit_cost: 'integer',
  value: 'integer',
  occurred_at: 'integer'
} as const
const MOVES = {
  table: 'stock_moves',
  columns: { transaction_seq: 'integer', ...MOVE_COLUMNS }
} as const satisfies InsertShape
const moveRows = <Of extends number | string>(of: Of, { head, moves }: Posting) =>
  moves.map((move, index) => [
    of,
    index + 1,
    move.item.id,
    move.from.id,
    move.to.id,
    move.quantity,
    move.enteredQuantity,
    move.enteredUnit,
    move.requestLine,
    move.unitCost,
    move.value,
    head.occurredAt
  ])

interface Posting {
  readonly head: TransactionHead
  readonly moves: readonly Move[]
}
export interface Postings {
  readonly posted: readonly Posting[]
  /** Whose balances they left. */
  readonly accounts: readonly AccountState[]
  readonly items: readonly ItemState[]
}

/** On PostgreSQL one statement: each costs a way there and back and a plan, and what the moves refer to is numbered on the way. */
const allAtOnce = prepared<{ heads: string; moves: string; balances: string; totals: string }, unknown>(
  (root, slot) => {
    const columns = sql.join(Object.keys(MOVES.columns).map((name) => sql.ref(name)))
    return sql<unknown>`with heads as (${insertion(root, HEADS, slot('heads'))}),
    moved as (insert into ${sql.table(MOVES.table)} (${columns})
      select heads.seq, ${fieldsOf(MOVE_COLUMNS, 1)}
      from jsonb_array_elements(${slot('moves')}::jsonb) with ordinality as rows (row, position)
      join heads on heads.id = row ->> 0 order by position),
    balanced as (${insertion(root, BALANCES, slot('balances'))})
    ${insertion(root, TOTALS, slot('totals'))}`
  }
)

/** @param write given: nothing is waited for that need not be */
export async function writePostings(
  db: Kysely<unknown>,
  { posted, accounts, items }: Postings,
  write?: Writer['write']
): Promise<void> {
  const run = async (query: ReturnType<typeof insertOf>) =>
    write === undefined ? db.executeQuery(query) : write(query)
  const heads = posted.map(({ head }) => headRow(head))
  const [balances, totals] = [accounts.map(balanceRow), items.map(totalRow)]
  if (isPostgres(db)) {
    const moves = posted.flatMap((posting) => moveRows(posting.head.id, posting))
    const [first, second] = [JSON.stringify(heads), JSON.stringify(moves)]
    const values = { heads: first, moves: second, balances: JSON.stringify(balances), totals: JSON.stringify(totals) }
    await run(allAtOnce(db, values))
    return
  }
  const rows = await insertRows<{ seq: number; id: string }>(db, { ...HEADS, rows: heads })
  const seqs = new Map(rows.map(({ id, seq }) => [id, seq]))
  const moves = posted.flatMap((posting) => moveRows(seqs.get(posting.head.id) ?? 0, posting))
  await run(insertOf(db, { ...MOVES, rows: moves }))
  if (balances.length > 0) await run(insertOf(db, { ...BALANCES, rows: balances }))
  await run(insertOf(db, { ...TOTALS, rows: totals }))
}
