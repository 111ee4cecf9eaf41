import { problem } from './http/problem.js'
import { isStorable } from './http/storable.js'

export const CursorInvalid = problem('CURSOR_INVALID', 400, {
  en: 'This cursor does not belong to this list, order or filter; start again without one.',
  fr: 'Ce curseur ne correspond pas à cette liste, à cet ordre ou à ce filtre ; recommencez sans curseur.'
})

type Key = readonly (string | number)[]

/** A keyset position: the sort key of the last row, bound to the order and filter it was made for. */
export const encodeCursor = (purpose: string, key: Key): string =>
  Buffer.from(JSON.stringify([purpose, ...key])).toString('base64url')

/**
 * @param shape what the key holds, in order
 * @throws CURSOR_INVALID when it was made for another list, order or filter
 */
export function decodeCursor(
  purpose: string,
  cursor: string | undefined,
  shape: readonly ('string' | 'number')[]
): Key | undefined {
  if (cursor === undefined) return undefined
  let parts: unknown
  try {
    parts = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8'))
  } catch {
    throw new CursorInvalid({})
  }
  if (!Array.isArray(parts) || parts.length !== shape.length + 1 || parts[0] !== purpose) throw new CursorInvalid({})
  const key: (string | number)[] = []
  for (const [index, type] of shape.entries()) {
    const part: unknown = parts[index + 1]
    if (typeof part !== type || !isComparable(part)) throw new CursorInvalid({})
    key.push(part)
  }
  return key
}

/** Whether both databases take it as a value to compare a key with. */
const isComparable = (part: unknown): part is string | number =>
  typeof part === 'string' ? isStorable(part) : Number.isSafeInteger(part)

/** Cuts the row read beyond the limit off again: it only says whether there is a next page. */
export function pageOf<Row, Out>(
  rows: readonly Row[],
  limit: number,
  cursorOf: (last: Row) => string,
  present: (row: Row) => Out
): { data: Out[]; page: { limit: number; nextCursor: string | null } } {
  const shown = rows.slice(0, limit)
  const last = shown.at(-1)
  return {
    data: shown.map(present),
    page: { limit, nextCursor: rows.length > limit && last !== undefined ? cursorOf(last) : null }
  }
}
