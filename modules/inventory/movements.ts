import type { AuditEntry, Transaction } from '../../plugins/contracts.js'
import { type Movement, type NewMovement, StockMoved } from '../../schemas/inventory.js'
import { type Author, Book, type Draft } from './book.js'
import { AlreadyReversed, MovementNotFound, OccurredInFuture, OccurredTooEarly, ReversalOfReversal } from './errors.js'
import { createLedgerStore } from './ledger-store.js'
import { OCCURRED_AT_MIN } from './rules.js'

/** Cached answers that show stock. */
export const STOCK_CACHE = 'inventory'
/** Clocks differ a little between machines. */
const FUTURE_TOLERANCE_MILLISECONDS = 5 * 60_000

export function draftOf({ type, occurredAt, reason, reference, lines }: NewMovement): Draft {
  const at = occurredAt === undefined ? Date.now() : Date.parse(occurredAt)
  if (at > Date.now() + FUTURE_TOLERANCE_MILLISECONDS) throw new OccurredInFuture({ occurredAt: occurredAt ?? '' })
  if (at < OCCURRED_AT_MIN) throw new OccurredTooEarly({ occurredAt: occurredAt ?? '' })
  return { type, occurredAt: at, reason: reason ?? null, reference: reference ?? null, importId: null, lines }
}

/** Posts one transaction: all of its lines or none. */
export async function postMovement(tx: Transaction, body: NewMovement, author: Author): Promise<Movement> {
  const draft = draftOf(body)
  const book = new Book(createLedgerStore(tx.db), { lock: true })
  await book.load(draft.lines, [draft.type])
  book.post(draft, author)
  const [movement] = await book.save({ write: tx.write })
  if (movement === undefined) throw new Error('a posted transaction was not saved')
  await announce(tx, [movement])
  tx.audit(posted('ledger.post', movement))
  return movement
}

/** Who posted what is in the ledger itself; the trail refers to it. */
const posted = (action: string, { id, type, lines, reverses }: Movement): AuditEntry => ({
  action,
  object: { type: 'movement', id },
  details: { type, lines: lines.length, ...(reverses === null ? {} : { reverses }) }
})

/** Takes a transaction back. @throws MovementNotFound, AlreadyReversed, ReversalOfReversal, InsufficientStock */
export async function reverseMovement(
  tx: Transaction,
  id: string,
  reason: string | null,
  author: Author
): Promise<Movement> {
  const store = createLedgerStore(tx.db)
  const original = await store.findTransaction(id)
  if (original === undefined) throw new MovementNotFound({ id })
  if (original.reverses !== null) throw new ReversalOfReversal({ id })
  const moves = await store.movesOf([original.seq])
  const book = new Book(store, { lock: true })
  await book.loadMoves(moves)
  // Asked again now that the items are locked: of two reversals at once, the second sees the first.
  const reversedBy = (await store.findTransaction(id))?.reversedBy
  if (reversedBy != null) throw new AlreadyReversed({ id, reversedBy })
  book.reverse(original, moves, reason, author)
  const [movement] = await book.save({ write: tx.write })
  if (movement === undefined) throw new Error('a reversal was not saved')
  await announce(tx, [movement])
  tx.audit(posted('ledger.reverse', movement))
  return movement
}

/** Tells the other modules, and drops cached answers, once it is committed. */
export async function announce(tx: Transaction, movements: readonly Movement[]): Promise<void> {
  if (movements.length === 0) return
  const days = movements.map(({ occurredAt }) => occurredAt.slice(0, 10)).sort()
  const payload: StockMoved = {
    itemCodes: [...new Set(movements.flatMap(({ lines }) => lines.map(({ itemCode }) => itemCode)))],
    fromDay: days[0] ?? '',
    toDay: days.at(-1) ?? ''
  }
  await tx.publish(StockMoved.topic, payload)
  tx.invalidate(STOCK_CACHE)
}
