import { type Kysely, sql } from 'kysely'
import { decodeCursor, encodeCursor } from '../../plugins/contracts.js'
import { fromMicros } from '../../schemas/decimal.js'
import type { Mismatch, Movement, MovementQuery, Verification } from '../../schemas/inventory.js'
import { internal } from './daily.js'
import { DEFAULT_LOT, INTERNAL_KINDS, type InventoryTables } from './tables.js'

/** Items checked by one statement: each keeps the event loop for a few milliseconds only. */
const VERIFY_CHUNK = 50

/** Reading the ledger: history, stock at a time, proofs. */
export function createLedgerQueries(root: Kysely<unknown>) {
  const db = root.withTables<InventoryTables>()

  const transactions = () =>
    db
      .selectFrom('stock_transactions as t')
      .leftJoin('stock_transactions as o', 'o.seq', 't.reverses')
      .leftJoin('stock_transactions as r', 'r.reverses', 't.seq')
      .select([
        't.seq',
        't.id',
        't.type',
        't.occurred_at',
        't.recorded_at',
        't.actor',
        't.reason',
        't.reference',
        't.import_id',
        't.request_id'
      ])
      .select(['o.id as reverses', 'r.id as reversed_by'])

  /** Moves with both ends named; the joins are by primary key. */
  const moves = () =>
    db
      .selectFrom('stock_moves as m')
      .innerJoin('items as i', 'i.id', 'm.item_id')
      .innerJoin('stock_accounts as fa', 'fa.id', 'm.from_account')
      .innerJoin('stock_accounts as ta', 'ta.id', 'm.to_account')
      .innerJoin('locations as fl', 'fl.id', 'fa.location_id')
      .innerJoin('locations as tl', 'tl.id', 'ta.location_id')
      .innerJoin('lots as l', 'l.id', 'fa.lot_id')
      .select([
        'm.transaction_seq',
        'm.line',
        'm.request_line',
        'm.item_id',
        'i.code',
        'i.unit',
        'm.quantity',
        'm.entered_quantity',
        'm.entered_unit'
      ])
      .select([
        'm.unit_cost',
        'm.value',
        'm.occurred_at',
        'fl.code as from',
        'fl.kind as from_kind',
        'tl.code as to',
        'tl.kind as to_kind',
        'l.code as lot'
      ])

  async function withLines(
    heads: Awaited<ReturnType<ReturnType<typeof transactions>['execute']>>,
    showCost: boolean
  ): Promise<Movement[]> {
    if (heads.length === 0) return []
    const seqs = heads.map(({ seq }) => seq)
    const lines = await moves()
      .where('m.transaction_seq', 'in', seqs)
      .orderBy('m.transaction_seq')
      .orderBy('m.line')
      .execute()
    const bySeq = new Map<number, Movement['lines']>(seqs.map((seq) => [seq, []]))
    for (const row of lines) {
      bySeq.get(row.transaction_seq)?.push({
        line: row.request_line,
        itemCode: row.code,
        quantity: fromMicros(row.quantity),
        unit: row.unit,
        enteredQuantity: fromMicros(row.entered_quantity),
        enteredUnit: row.entered_unit,
        from: row.from,
        to: row.to,
        lot: row.lot === DEFAULT_LOT ? null : row.lot,
        unitCost: showCost ? fromMicros(row.unit_cost) : null,
        value: showCost ? fromMicros(row.value) : null
      })
    }
    return heads.map((head) => ({
      id: head.id,
      type: head.type,
      occurredAt: iso(head.occurred_at),
      recordedAt: iso(head.recorded_at),
      actor: head.actor,
      reason: head.reason,
      reference: head.reference,
      reverses: head.reverses,
      reversedBy: head.reversed_by,
      importId: head.import_id,
      requestId: head.request_id,
      lines: bySeq.get(head.seq) ?? []
    }))
  }

  return {
    async movement(id: string, showCost: boolean): Promise<Movement | undefined> {
      const [movement] = await withLines(await transactions().where('t.id', '=', id).execute(), showCost)
      return movement
    },

    /** Newest recorded first. */
    async movements({ limit = 50, cursor, itemCode, type, from, to, reference }: MovementQuery, showCost: boolean) {
      const purpose = 'movements'
      const key = decodeCursor(purpose, cursor, ['number'])
      let query = transactions()
      if (key !== undefined) query = query.where('t.seq', '<', Number(key[0]))
      if (type !== undefined) query = query.where('t.type', '=', type)
      if (from !== undefined) query = query.where('t.occurred_at', '>=', Date.parse(from))
      if (to !== undefined) query = query.where('t.occurred_at', '<', Date.parse(to))
      if (reference !== undefined) query = query.where('t.reference', '=', reference)
      if (itemCode !== undefined) {
        const touching = db
          .selectFrom('stock_moves as m')
          .innerJoin('items as i', 'i.id', 'm.item_id')
          .where('i.code', '=', itemCode)
        query = query.where('t.seq', 'in', touching.select('m.transaction_seq'))
      }
      const heads = await query
        .orderBy('t.seq', 'desc')
        .limit(limit + 1)
        .execute()
      const shown = heads.slice(0, limit)
      const last = shown.at(-1)
      return {
        data: await withLines(shown, showCost),
        page: {
          limit,
          nextCursor: heads.length > limit && last !== undefined ? encodeCursor(purpose, [last.seq]) : null
        }
      }
    },

    /** One item's history, latest occurrence first. */
    async itemMovements(itemCode: string, { limit, cursor }: { limit: number; cursor?: string }, showCost: boolean) {
      const purpose = `item-movements:${itemCode}`
      const key = decodeCursor(purpose, cursor, ['number', 'number', 'number'])
      let query = moves()
        .innerJoin('stock_transactions as t', 't.seq', 'm.transaction_seq')
        .where('i.code', '=', itemCode)
      if (key !== undefined) {
        // A line is a shorter integer on PostgreSQL, which would refuse to compare it with one that does not fit.
        query = query.where(
          sql<boolean>`(m.occurred_at, m.transaction_seq, m.line) < (${key[0]}, ${key[1]}, cast(${key[2]} as bigint))`
        )
      }
      const rows = await query
        .select(['t.id', 't.type', 't.recorded_at', 't.reference', 't.reason'])
        .orderBy('m.occurred_at', 'desc')
        .orderBy('m.transaction_seq', 'desc')
        .orderBy('m.line', 'desc')
        .limit(limit + 1)
        .execute()
      const shown = rows.slice(0, limit)
      const last = shown.at(-1)
      return {
        data: shown.map((row) => ({
          movementId: row.id,
          type: row.type,
          occurredAt: iso(row.occurred_at),
          recordedAt: iso(row.recorded_at),
          quantity: fromMicros(isInternal(row.to_kind) || !isInternal(row.from_kind) ? row.quantity : -row.quantity),
          from: row.from,
          to: row.to,
          lot: row.lot === DEFAULT_LOT ? null : row.lot,
          unitCost: showCost ? fromMicros(row.unit_cost) : null,
          reference: row.reference,
          reason: row.reason
        })),
        page: {
          limit,
          nextCursor:
            rows.length > limit && last !== undefined
              ? encodeCursor(purpose, [last.occurred_at, last.transaction_seq, last.line])
              : null
        }
      }
    },

    /** Stock on hand at a moment: today's balance less what moved since, so that recent moments cost little. */
    async stockAsOf(asOf: number, { limit, cursor, itemCode }: { limit: number; cursor?: string; itemCode?: string }) {
      const key = decodeCursor('stock', cursor, ['string'])
      let query = db
        .selectFrom('items as i')
        .innerJoin('item_totals as t', 't.item_id', 'i.id')
        .where('i.archived_at', 'is', null)
        .select(['i.id', 'i.code', 'i.name', 'i.unit', 't.on_hand'])
      if (key !== undefined) query = query.where('i.code', '>', String(key[0]))
      if (itemCode !== undefined) query = query.where('i.code', '=', itemCode)
      const rows = await query
        .orderBy('i.code')
        .limit(limit + 1)
        .execute()
      const shown = rows.slice(0, limit)
      const since = await netChanges(
        root,
        shown.map(({ id }) => id),
        asOf
      )
      const last = shown.at(-1)
      return {
        data: shown.map(({ id, code, name, unit, on_hand }) => ({
          itemCode: code,
          name,
          unit,
          onHand: fromMicros(on_hand - (since.get(id) ?? 0))
        })),
        page: {
          limit,
          nextCursor: rows.length > limit && last !== undefined ? encodeCursor('stock', [last.code]) : null
        }
      }
    },

    /**
     * Recomputes every balance, total and value from the moves and compares. Each statement sees one state of its items, so it
     * can run while postings go on.
     */
    async verify(mismatchesMax = 100, signal?: AbortSignal): Promise<Verification> {
      const counts = await db
        .selectFrom('stock_transactions')
        .select((eb) => [eb.fn.countAll<number>().as('transactions')])
        .select((eb) =>
          eb
            .selectFrom('stock_moves')
            .select(({ fn }) => fn.countAll<number>().as('n'))
            .as('moves')
        )
        .executeTakeFirstOrThrow()
      const mismatches: Mismatch[] = []
      for (let after = 0; ; ) {
        signal?.throwIfAborted()
        const ids = await db
          .selectFrom('items')
          .select('id')
          .where('id', '>', after)
          .orderBy('id')
          .limit(VERIFY_CHUNK)
          .execute()
        const last = ids.at(-1)
        if (last === undefined || mismatches.length >= mismatchesMax) break
        mismatches.push(...(await compareChunk(root, after, last.id)))
        after = last.id
        // Others get their turn between two statements.
        await new Promise((resolve) => setImmediate(resolve))
      }
      return {
        ok: mismatches.length === 0,
        transactions: Number(counts.transactions),
        moves: Number(counts.moves ?? 0),
        mismatches: mismatches.slice(0, mismatchesMax)
      }
    },

    /** Totals for dashboards and metrics. */
    async headline() {
      const { rows } = await sql<{
        status: 'in' | 'low' | 'out' | 'over'
        items: number
        value: string | number | null
      }>`
        select t.status, count(*) as items, cast(sum(t.value) as text) as value
        from ${sql.table('item_totals')} as t join ${sql.table('items')} as i on i.id = t.item_id
        where i.archived_at is null group by t.status`.execute(root)
      const items = { in: 0, low: 0, out: 0, over: 0 }
      let valueMicros = 0n
      for (const row of rows) {
        items[row.status] = Number(row.items)
        valueMicros += BigInt(row.value ?? 0)
      }
      return { items, stockValue: Number(valueMicros) / 1_000_000 }
    },

    /** How many transactions were recorded since a moment. */
    async recordedSince(moment: number): Promise<number> {
      const row = await db
        .selectFrom('stock_transactions')
        .select((eb) => eb.fn.countAll<number>().as('n'))
        .where('recorded_at', '>=', moment)
        .executeTakeFirstOrThrow()
      return Number(row.n)
    }
  }
}

const iso = (milliseconds: number) => new Date(milliseconds).toISOString()
const isInternal = (kind: (typeof INTERNAL_KINDS)[number]) => INTERNAL_KINDS.includes(kind)
async function netChanges(
  root: Kysely<unknown>,
  itemIds: readonly number[],
  after: number
): Promise<Map<number, number>> {
  if (itemIds.length === 0) return new Map()
  const { rows } = await sql<{ itemId: number; change: number }>`
    select m.item_id as "itemId", sum((${internal('tl')} - ${internal('fl')}) * m.quantity) as change
    from ${sql.table('stock_moves')} as m
    join ${sql.table('stock_accounts')} as fa on fa.id = m.from_account
    join ${sql.table('stock_accounts')} as ta on ta.id = m.to_account
    join ${sql.table('locations')} as fl on fl.id = fa.location_id
    join ${sql.table('locations')} as tl on tl.id = ta.location_id
    where m.item_id in (${sql.join(itemIds)}) and m.occurred_at > ${after}
    group by m.item_id`.execute(root)
  return new Map(rows.map(({ itemId, change }) => [itemId, Number(change)]))
}

/**
 * The three things kept beside the moves: balances, on hand and value of an item. Moves between the same two accounts are summed
 * before anything is joined to them, which takes less than half of the time.
 */
async function compareChunk(root: Kysely<unknown>, after: number, upTo: number): Promise<Mismatch[]> {
  const { rows } = await sql<{ itemCode: string; what: string; stored: number; recomputed: number }>`
    with pairs as (
      select m.item_id, m.from_account, m.to_account, sum(m.quantity) as quantity, sum(m.value) as value
      from ${sql.table('stock_moves')} as m
      where m.item_id > ${after} and m.item_id <= ${upTo}
      group by m.item_id, m.from_account, m.to_account
    ), ends as (
      select item_id, to_account as account, quantity, value from pairs
      union all
      select item_id, from_account, -quantity, -value from pairs
    ), sums as (
      select e.item_id, e.account, sum(e.quantity) as quantity, sum(e.value) as value
      from ends as e
      join ${sql.table('stock_accounts')} as a on a.id = e.account
      join ${sql.table('locations')} as p on p.id = a.location_id
      where p.kind in ('internal', 'transit')
      group by e.item_id, e.account
    ), totals as (
      select item_id, sum(quantity) as quantity, sum(value) as value from sums group by item_id
    ), balances as (
      select b.item_id, b.account_id, b.on_hand, b.reserved from ${sql.table('stock_balances')} as b
      where b.item_id > ${after} and b.item_id <= ${upTo}
    ), held as (
      select item_id, sum(reserved) as reserved from balances group by item_id
    ), pending as (
      select account_id, sum(quantity) as quantity from ${sql.table('reservations')} where status = 'pending' group by account_id
    )
    select i.code as "itemCode", found.what, found.stored, found.recomputed from (
      select b.item_id, 'balance' as what, b.on_hand as stored, coalesce(s.quantity, 0) as recomputed
        from balances as b left join sums as s on s.account = b.account_id
        where b.on_hand <> coalesce(s.quantity, 0)
      union all
      select s.item_id, 'balance', 0, s.quantity from sums as s left join balances as b on b.account_id = s.account
        where b.account_id is null and s.quantity <> 0
      union all
      select b.item_id, 'reservation', b.reserved, coalesce(p.quantity, 0)
        from balances as b left join pending as p on p.account_id = b.account_id
        where b.reserved <> coalesce(p.quantity, 0)
      union all
      select t.item_id, 'onHand', t.on_hand, coalesce(s.quantity, 0) from ${sql.table('item_totals')} as t
        left join totals as s on s.item_id = t.item_id
        where t.item_id > ${after} and t.item_id <= ${upTo} and t.on_hand <> coalesce(s.quantity, 0)
      union all
      select t.item_id, 'value', t.value, coalesce(s.value, 0) from ${sql.table('item_totals')} as t
        left join totals as s on s.item_id = t.item_id
        where t.item_id > ${after} and t.item_id <= ${upTo} and t.value <> coalesce(s.value, 0)
      union all
      select t.item_id, 'reserved', t.reserved, coalesce(h.reserved, 0) from ${sql.table('item_totals')} as t
        left join held as h on h.item_id = t.item_id
        where t.item_id > ${after} and t.item_id <= ${upTo} and t.reserved <> coalesce(h.reserved, 0)
    ) as found join ${sql.table('items')} as i on i.id = found.item_id`.execute(root)
  return rows.map((row) => ({
    ...row,
    stored: fromMicros(Number(row.stored)),
    recomputed: fromMicros(Number(row.recomputed))
  }))
}
