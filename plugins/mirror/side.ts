import type { PortableReader, PortableRow, PortableSchema, PortableTable, PortableWriter } from '../contracts.js'

/** Who has changes noted: each has tables and triggers of its own, and neither knows of the other. */
export type Purpose = 'mirror' | 'backup'

/** What is kept in the databases themselves while changes are noted; it is neither mirrored nor backed up. */
export const MIRROR_TABLES = [
  ...['mirror_capture', 'mirror_changes', 'mirror_position', 'mirror_fence'],
  ...['backup_capture', 'backup_changes']
]

/** Rows of one table as they are now, and keys of those that are gone. */
export interface Change {
  readonly table: PortableTable
  readonly rows: readonly PortableRow[]
  readonly gone: readonly PortableRow[]
}

/** One committed state of a database. It must be closed. */
export interface State extends PortableReader {
  /** Stands for everything up to this state; only the engine that made it reads it. */
  readonly position: string
  /** What differs from the state that an earlier position stands for. */
  changes(since: string): AsyncIterable<Change>
}

/** How far a copy has come: of which capture, and up to which position. */
export interface Mark {
  readonly capture: string
  readonly position: string
}

/** A tenant's database as one end of a mirror. Everything is done on connections of its own; it must be closed. */
export interface Side {
  readonly schema: PortableSchema
  /** Notes from now on which rows change, in the transaction that changes them. @returns the capture's id: a new one says that what was noted before is not all */
  capture(): Promise<string>
  /** Stops noting, and forgets. */
  release(): Promise<void>
  /** Refuses every writer but us, after those that are at it have ended; or lets them in again. */
  fence(on: boolean): Promise<void>
  state(): Promise<State>
  /** About how many changes came after; cheap. */
  pending(since: string): Promise<number>
  /** Forgets what was noted up to a position. Not for SQLite under a service, whose writer does it (`pruneStatement`). */
  prune(through: string): Promise<void>
  mark(): Promise<Mark | undefined>
  /**
   * Changes rows past guards and fence, and moves the mark, in one transaction.
   * Where it need not be durable, a crash may take it, and the mark with it, until the next that is.
   * @throws Superseded when the mark is not `from`: somebody else has moved it
   */
  apply(
    from: Mark | undefined,
    to: Mark | undefined,
    work: (writer: PortableWriter) => Promise<void>,
    options?: { durable?: boolean }
  ): Promise<void>
  /** Writes rows in bulk; see `PortableWriter.startLoad`. */
  readonly writer: PortableWriter
  /** Sets what numbers new rows past what is there. */
  advance(): Promise<void>
  close(): Promise<void>
}

/** Another process follows too, and was faster; what was begun had no effect. */
export class Superseded extends Error {
  constructor() {
    super('another process has moved the mirror on')
  }
}

/** Tells whether a capture still notes every table. */
export const shapeOf = ({ tables }: PortableSchema): string =>
  JSON.stringify(tables.map(({ physical, columns, key }) => [physical, columns.map(({ name }) => name), key]))

export const sameMark = (a: Mark | undefined, b: Mark | undefined): boolean =>
  a?.capture === b?.capture && a?.position === b?.position

/** Keys in pieces, each with the rows that exist and the keys whose rows do not. */
export async function* changesOf(
  reader: Pick<PortableReader, 'find'>,
  table: PortableTable,
  keys: readonly PortableRow[],
  chunk: number
): AsyncGenerator<Change> {
  const at = table.key.map((name) => table.columns.findIndex((column) => column.name === name))
  for (let from = 0; from < keys.length; from += chunk) {
    const asked = keys.slice(from, from + chunk)
    const rows = await reader.find(table, asked)
    const found = new Set(rows.map((row) => JSON.stringify(at.map((n) => row[n]))))
    yield { table, rows, gone: asked.filter((key) => !found.has(JSON.stringify(key))) }
  }
}
