import { fromMicros } from '../../schemas/decimal.js'
import type { Movement } from '../../schemas/inventory.js'
import type { LedgerItem, TransactionHead } from './ledger-store.js'
import type { Move } from './posting.js'
import { DEFAULT_LOT } from './tables.js'

export interface Posted {
  readonly head: TransactionHead
  readonly reversesId: string | null
  readonly moves: Move[]
}

/** A posted transaction as it is answered. */
export function movementOf({ head, reversesId, moves }: Posted, items: ReadonlyMap<string, LedgerItem>): Movement {
  return {
    id: head.id,
    type: head.type,
    occurredAt: new Date(head.occurredAt).toISOString(),
    recordedAt: new Date(head.recordedAt).toISOString(),
    actor: head.actor,
    reason: head.reason,
    reference: head.reference,
    reverses: reversesId,
    reversedBy: null,
    importId: head.importId,
    requestId: head.requestId,
    lines: moves.map((move) => ({
      line: move.requestLine,
      itemCode: move.item.code,
      quantity: fromMicros(move.quantity),
      unit: items.get(move.item.code)?.unit ?? '',
      enteredQuantity: fromMicros(move.enteredQuantity),
      enteredUnit: move.enteredUnit,
      from: move.from.location.code,
      to: move.to.location.code,
      lot: move.from.lot.code === DEFAULT_LOT ? null : move.from.lot.code,
      unitCost: fromMicros(move.unitCost),
      value: fromMicros(move.value)
    }))
  }
}
