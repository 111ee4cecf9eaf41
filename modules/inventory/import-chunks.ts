import { LINES_MAX, type MovementLine } from '../../schemas/inventory.js'
import type { Draft } from './book.js'
import { RowError } from './import-cells.js'
import {
  type ItemImportRow,
  itemRow,
  type MovementRow,
  movementRow,
  type RawRow,
  type ReadOptions,
  readRows
} from './import-reader.js'

/** A file's rows as they are posted: what can be read of them, in chunks, the next one while the server writes. */

/** One ledger transaction of a file: consecutive rows of one type, time and reference. */
export interface Group {
  readonly draft: Draft
  readonly rows: readonly MovementRow[]
}

/** What does not count as read is given to `refuse`. */
export interface Heard {
  refuse(error: RowError): void
  count(rows: number): void
}

export const readItems = (path: string, options: ReadOptions, heard: Heard): AsyncGenerator<ItemImportRow> =>
  readEach(path, options, itemRow, heard)

export const readMovements = (path: string, options: ReadOptions, heard: Heard): AsyncGenerator<MovementRow> =>
  readEach(path, options, (raw) => movementRow(raw, options.type), heard)

async function* readEach<R>(path: string, options: ReadOptions, read: (raw: RawRow) => R, { refuse, count }: Heard) {
  for await (const raw of readRows(path, options)) {
    count(1)
    if (raw instanceof RowError) {
      refuse(raw)
      continue
    }
    let row: R
    try {
      row = read(raw)
    } catch (error) {
      if (!(error instanceof RowError)) throw error
      refuse(error)
      continue
    }
    yield row
  }
}

export async function* chunksOf<T>(source: AsyncIterable<T>, size: number): AsyncGenerator<T[]> {
  let chunk: T[] = []
  for await (const each of source) {
    chunk.push(each)
    if (chunk.length >= size) {
      yield chunk
      chunk = []
    }
  }
  if (chunk.length > 0) yield chunk
}

/** Whole groups, together about a chunk of lines. */
export async function* groupChunks(rows: AsyncIterable<MovementRow>, size: number): AsyncGenerator<Group[]> {
  const startedAt = Date.now()
  let groups: Group[] = []
  let lines = 0
  let open: MovementRow[] = []
  const close = () => {
    const [first] = open
    if (first === undefined) return
    const { type, occurredAt = startedAt, reason, reference } = first
    groups.push({
      rows: open,
      draft: { type, occurredAt, reason, reference, importId: null, lines: open.map(({ line }): MovementLine => line) }
    })
    lines += open.length
    open = []
  }
  for await (const row of rows) {
    const [first] = open
    const same =
      first !== undefined &&
      first.type === row.type &&
      first.occurredAt === row.occurredAt &&
      first.reference === row.reference
    if (!same || open.length >= LINES_MAX) close()
    if (lines >= size) {
      yield groups
      groups = []
      lines = 0
    }
    open.push(row)
  }
  close()
  if (groups.length > 0) yield groups
}

/** What a book has to know for them. */
export const touchedBy = (groups: readonly Group[]) =>
  [groups.flatMap(({ draft }) => draft.lines), new Set(groups.map(({ draft }) => draft.type))] as const

/** Reads the next before it is asked for, when told to. */
export function readAhead<T>(source: AsyncGenerator<T>) {
  let next: ReturnType<typeof source.next> | undefined
  const fetch = () => {
    next ??= source.next()
    // Its failure is met at the next turn, or not at all when the present one fails first.
    next.catch(() => {})
    return next
  }
  async function* each(): AsyncGenerator<T> {
    try {
      for (;;) {
        const { done, value } = await fetch()
        next = undefined
        if (done === true) return
        yield value
      }
    } finally {
      await source.return(undefined)
    }
  }
  return { fetch, each: each() }
}
