import { createHash } from 'node:crypto'
import { promisify } from 'node:util'
import { gzip as gzipCallback } from 'node:zlib'
import type { PortableReader, PortableRow, PortableTable } from '../contracts.js'
import type { Change, State } from '../mirror/side.js'
import { linesOf } from '../portable/index.js'
import { keyOf } from '../portable/values.js'
import { HEADER, type Header, MANIFEST, type Manifest, type PartKind, partName } from './format.js'
import { tarEnd, tarFile } from './tar.js'

const gzip = promisify(gzipCallback)
/** Of lines, before they are compressed: what is lost together, and what is in memory. */
const PART_BYTES = 1_000_000
const CHUNK_ROWS = 500
/** A part is put together from texts of this length: one long text would keep that of every row, and memory with it. */
const PIECE_CHARACTERS = 16_384
/** Nearly as small as the default, in half the time. */
const GZIP_LEVEL = 4

export interface Written {
  readonly rows: number
  readonly counts: Record<string, number>
  readonly parts: number
}
type Advance = (done: number, total: number) => void

/** Lines of one table, cut into parts. */
class Parts {
  readonly manifest: Manifest['parts'] = []
  readonly #at: Date
  readonly #numbers = new Map<string, number>()

  constructor(at: Date) {
    this.#at = at
  }

  async part(kind: PartKind, table: string, lines: Buffer, rows: number): Promise<Buffer[]> {
    const n = (this.#numbers.get(`${kind} ${table}`) ?? 0) + 1
    this.#numbers.set(`${kind} ${table}`, n)
    const content = await gzip(lines, { level: GZIP_LEVEL })
    const name = partName(kind, table, n)
    const sha256 = createHash('sha256').update(content).digest('hex')
    this.manifest.push({ name, rows, bytes: content.length, sha256 })
    return tarFile({ name, content }, this.#at)
  }

  async *of(kind: PartKind, table: string, chunks: AsyncIterable<readonly PortableRow[]>): AsyncGenerator<Buffer> {
    let [pieces, bytes, text, rows]: [Buffer[], number, string, number] = [[], 0, '', 0]
    const gather = () => {
      const piece = Buffer.from(text)
      pieces.push(piece)
      bytes += piece.length
      text = ''
    }
    for await (const chunk of chunks) {
      for (const row of chunk) {
        text += linesOf([row])
        rows++
        if (text.length >= PIECE_CHARACTERS) gather()
        if (bytes < PART_BYTES) continue
        yield* await this.part(kind, table, Buffer.concat(pieces), rows)
        ;[pieces, bytes, rows] = [[], 0, 0]
      }
    }
    if (rows === 0) return
    gather()
    yield* await this.part(kind, table, Buffer.concat(pieces), rows)
  }
}

const json = (name: string, value: object, at: Date) =>
  tarFile({ name, content: Buffer.from(`${JSON.stringify(value, null, 1)}\n`) }, at)

/** Every row of one state, as a tar stream; `written` is complete once the stream has ended. */
export async function* fullArchive(
  header: Header,
  state: Omit<PortableReader, 'close'>,
  advance: Advance,
  done: (written: Written) => void
): AsyncGenerator<Buffer> {
  const at = new Date(header.stateAt)
  const parts = new Parts(at)
  const counts: Record<string, number> = {}
  let total = 0
  for (const table of state.schema.tables) total += await state.count(table)
  yield* json(HEADER, header, at)
  let rows = 0
  for (const table of state.schema.tables) {
    let read = 0
    const counted = async function* () {
      for await (const chunk of state.rows(table, { chunk: CHUNK_ROWS })) {
        read += chunk.length
        rows += chunk.length
        advance(rows, total)
        yield chunk
      }
    }
    yield* parts.of('rows', table.name, counted())
    counts[table.name] = read
  }
  yield* json(MANIFEST, { id: header.id, parts: parts.manifest, counts } satisfies Manifest, at)
  yield tarEnd()
  done({ rows, counts, parts: parts.manifest.length })
}

/** What differs from an earlier state: the rows as they are now, and the keys of those that are gone. */
export async function* incrementArchive(
  header: Header,
  state: State,
  since: string,
  done: (written: Written) => void
): AsyncGenerator<Buffer> {
  const at = new Date(header.stateAt)
  const parts = new Parts(at)
  const touched = new Map<string, PortableTable>()
  let rows = 0
  yield* json(HEADER, header, at)
  for await (const change of gathered(state.changes(since))) {
    const { table } = change
    touched.set(table.name, table)
    rows += change.rows.length + change.gone.length
    yield* parts.of('gone', table.name, once(change.gone))
    yield* parts.of('rows', table.name, once(change.rows))
  }
  const counts: Record<string, number> = {}
  for (const [name, table] of touched) counts[name] = await state.count(table)
  yield* json(MANIFEST, { id: header.id, parts: parts.manifest, counts } satisfies Manifest, at)
  yield tarEnd()
  done({ rows, counts, parts: parts.manifest.length })
}

const GATHERED_ROWS = 5_000

/** Changes come in small pieces, and a row may come twice; those of a table are put together while they are few. */
async function* gathered(changes: AsyncIterable<Change>): AsyncGenerator<Change> {
  let table: PortableTable | undefined
  const rows = new Map<string, PortableRow>()
  const gone = new Map<string, PortableRow>()
  const collected = (of: PortableTable): Change => {
    const change = { table: of, rows: [...rows.values()], gone: [...gone.values()] }
    rows.clear()
    gone.clear()
    return change
  }
  for await (const change of changes) {
    if (table !== undefined && (table !== change.table || rows.size >= GATHERED_ROWS)) yield collected(table)
    table = change.table
    for (const row of change.rows) rows.set(JSON.stringify(keyOf(table, row)), row)
    for (const key of change.gone) gone.set(JSON.stringify(key), key)
  }
  if (table !== undefined) yield collected(table)
}

async function* once(rows: readonly PortableRow[]): AsyncGenerator<readonly PortableRow[]> {
  if (rows.length > 0) yield rows
}
