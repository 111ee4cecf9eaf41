import { createHash } from 'node:crypto'
import type { Place, Portability, PortableRow, PortableTable, PortableWriter } from '../contracts.js'
import { linesOf } from '../portable/index.js'
import { keyOf } from '../portable/values.js'
import type { Comparison, Difference } from './files.js'
import { postgresSide } from './postgres-side.js'
import type { Mark, Purpose, Side, State } from './side.js'
import { sqliteSide } from './sqlite-side.js'

const COPY_ROWS = 2_000
const COMPARED_ROWS = 1_000
/** So many differing rows are named, and all are counted. */
const NAMED_MAX = 20
const UNIQUE_VIOLATION = '23505'

export type Progress = (step: string, done: number, total: number) => void

export const openSide = async (
  place: Place,
  traits: readonly Portability[],
  purpose: Purpose = 'mirror'
): Promise<Side> =>
  place.dialect === 'sqlite' ? sqliteSide(place.path, traits, purpose) : postgresSide(place, traits, purpose)

/**
 * A tenant's database and the copy that follows it. After each step the copy is some committed state of the original, and
 * says itself up to where it has come, so whoever is killed, whenever, goes on from there.
 */
export class Link {
  readonly #source: Side
  readonly #target: Side
  readonly #places: readonly [Place, Place]
  readonly #traits: readonly Portability[]
  #mark: Mark | undefined
  #capture = ''
  #durable: string | undefined

  private constructor(sides: readonly [Side, Side], places: readonly [Place, Place], traits: readonly Portability[]) {
    ;[this.#source, this.#target] = sides
    this.#places = places
    this.#traits = traits
  }

  /** Opens both ends; notes changes of the source from here on. */
  static async open(source: Place, target: Place, traits: readonly Portability[]): Promise<Link> {
    const from = await openSide(source, traits)
    const to = await openSide(target, traits).catch(async (error) => {
      await from.close()
      throw error
    })
    const link = new Link([from, to], [source, target], traits)
    try {
      link.#capture = await from.capture()
      link.#mark = await to.mark()
      if (link.position !== undefined) await to.fence(true)
      return link
    } catch (error) {
      await link.close()
      throw error
    }
  }

  get source(): Side {
    return this.#source
  }
  get target(): Side {
    return this.#target
  }
  /** Up to where the copy has come; undefined before it was made. */
  get position(): string | undefined {
    return this.#mark?.capture === this.#capture ? this.#mark.position : undefined
  }

  /** Up to where it has come for certain, whatever crashes: what was noted before may be forgotten. */
  get durablePosition(): string | undefined {
    return this.#durable
  }

  /** How many changes the copy is behind. */
  async pending(): Promise<number> {
    return this.position === undefined ? 0 : this.#source.pending(this.position)
  }

  /**
   * Makes the copy, where it is not there or of another capture, or brings it up to the source's present state.
   * @returns how many rows were written
   * @throws Superseded
   */
  async step(progress: Progress = () => {}, durable = true): Promise<number> {
    const state = await this.#source.state()
    try {
      return await (this.position === undefined ? this.#copy(state, progress) : this.#follow(state, durable))
    } finally {
      await state.close()
    }
  }

  async #copy(state: State, progress: Progress): Promise<number> {
    const { writer } = this.#target
    // It counts as nothing until it is whole.
    await this.#moveMark(undefined, async () => {})
    await this.#target.release()
    await this.#target.fence(false)
    let total = 0
    for (const table of state.schema.tables) total += await state.count(table)
    await writer.startLoad()
    let done = 0
    for (const { source, target } of this.#tables(state)) {
      for await (const rows of state.rows(source, { chunk: COPY_ROWS })) {
        await writer.transaction(() => writer.insert(target, arranged(source, target, rows)))
        done += rows.length
        progress(source.name, done, total)
      }
    }
    await writer.finishLoad()
    await this.#target.fence(true)
    await this.#moveMark({ capture: this.#capture, position: state.position }, async () => {})
    return done
  }

  async #follow(state: State, durable: boolean): Promise<number> {
    const since = this.position ?? ''
    if (state.position === since) return 0
    const to = { capture: this.#capture, position: state.position }
    const attempt = (clearFirst: boolean) =>
      this.#moveMark(to, (writer) => this.#write(writer, state, since, clearFirst), durable)
    return attempt(false).catch((error: unknown) => {
      // Two rows may have changed places in a unique column: then all that changed leaves before any comes.
      if (error instanceof Error && 'code' in error && error.code === UNIQUE_VIOLATION) return attempt(true)
      throw error
    })
  }

  async #write(writer: PortableWriter, state: State, since: string, clearFirst: boolean): Promise<number> {
    const twins = new Map(this.#tables(state).map(({ source, target }) => [source, target]))
    const twin = (table: PortableTable) => twins.get(table) ?? table
    if (clearFirst) {
      for await (const { table, rows, gone } of state.changes(since))
        await writer.remove(twin(table), [...gone, ...rows.map((row) => keyOf(table, row))])
    }
    let written = 0
    for await (const { table, rows, gone } of state.changes(since)) {
      const target = twin(table)
      if (gone.length > 0) await writer.remove(target, gone)
      if (rows.length > 0) await writer.put(target, arranged(table, target, rows))
      written += rows.length + gone.length
    }
    return written
  }

  async #moveMark<R>(to: Mark | undefined, work: (writer: PortableWriter) => Promise<R>, durable = true): Promise<R> {
    let result: { value: R } | undefined
    // When a commit's answer is lost, so is the link: a new one asks the copy up to where it has come.
    await this.#target.apply(
      this.#mark,
      to,
      async (writer) => {
        result = { value: await work(writer) }
      },
      { durable }
    )
    this.#mark = to
    if (durable) this.#durable = this.position
    if (result === undefined) throw new Error('the work of a transaction was not run')
    return result.value
  }

  /** The tables of both ends, in the order of their references. @throws Error when they are not the same */
  #tables(state: State): { source: PortableTable; target: PortableTable }[] {
    const targets = new Map(this.#target.schema.tables.map((table) => [table.name, table]))
    const pairs = state.schema.tables.map((source) => {
      const target = targets.get(source.name)
      if (target === undefined || !sameColumns(source, target))
        throw new Error(`the table ${source.name} is not the same in both databases: were both migrated?`)
      return { source, target }
    })
    if (pairs.length !== targets.size) throw new Error('the copy has tables that the original has not')
    return pairs
  }

  /**
   * Compares one and the same state in both, every row of every table, on connections of its own: once `started`
   * resolves, both may go on.
   */
  async compare(progress: Progress = () => {}, started: () => void = () => {}): Promise<Comparison> {
    const [from, to] = await this.#openBoth()
    try {
      const original = await from.state()
      const position = this.position
      if (position === undefined) throw new Error('there is no copy yet')
      // The copy is brought to exactly this state before it is read.
      await this.#follow(original, true)
      const copy = await to.state()
      started()
      try {
        return await compareStates(original, copy, progress)
      } finally {
        await Promise.allSettled([original.close(), copy.close()])
      }
    } finally {
      await Promise.allSettled([from.close(), to.close()])
    }
  }

  async #openBoth(): Promise<[Side, Side]> {
    const from = await openSide(this.#places[0], this.#traits)
    const to = await openSide(this.#places[1], this.#traits).catch(async (error) => {
      await from.close()
      throw error
    })
    return [from, to]
  }

  /** Compares the rows that changed since a position, and those alone. The copy must have caught up, and nobody write. */
  async compareChanges(since: string): Promise<Comparison> {
    const [original, copy] = [await this.#source.state(), await this.#target.state()]
    const found = new Findings()
    try {
      const twins = new Map(copy.schema.tables.map((table) => [table.name, table]))
      for await (const { table, rows, gone } of original.changes(since)) {
        const twin = twins.get(table.name) ?? table
        const keys = [...gone, ...rows.map((row) => keyOf(table, row))]
        const there = (await copy.find(twin, keys)).map((row) => arrangedRow(twin, table, row))
        found.compare(table, rows, there)
      }
      return found.result(original.schema.tables.length)
    } finally {
      await Promise.allSettled([original.close(), copy.close()])
    }
  }

  /**
   * Ends the following so that the copy can take over: no writer is let in any more, the last changes are carried over and
   * compared, and changes of the copy are noted from its present state on. Whoever takes over lets its writers in.
   * @throws Error when rows differ
   */
  async finish(verifiedAt: string, { wayBack = true } = {}): Promise<Comparison> {
    await this.#source.fence(true)
    await this.step()
    await this.#moveMark(this.#mark, async () => {})
    const comparison = await this.compareChanges(verifiedAt)
    if (comparison.differing > 0) return comparison
    await this.#target.advance()
    if (!wayBack) return comparison
    const capture = await this.#target.capture()
    const state = await this.#target.state()
    await state.close()
    await this.#source.apply(await this.#source.mark(), { capture, position: state.position }, async () => {})
    return comparison
  }

  async close(): Promise<void> {
    await Promise.allSettled([this.#source.close(), this.#target.close()])
  }
}

const sameColumns = (a: PortableTable, b: PortableTable) =>
  JSON.stringify(a.columns.map(({ name }) => name).sort()) ===
    JSON.stringify(b.columns.map(({ name }) => name).sort()) && JSON.stringify(a.key) === JSON.stringify(b.key)

/** The order of columns may differ between engines. */
function arranged(from: PortableTable, to: PortableTable, rows: readonly PortableRow[]): readonly PortableRow[] {
  const same = from.columns.every(({ name }, n) => to.columns[n]?.name === name)
  return same ? rows : rows.map((row) => arrangedRow(from, to, row))
}
function arrangedRow(from: PortableTable, to: PortableTable, row: PortableRow): PortableRow {
  const at = new Map(from.columns.map(({ name }, n) => [name, n]))
  return to.columns.map(({ name }) => row[at.get(name) ?? -1] ?? null)
}

class Findings {
  readonly #differences: Difference[] = []
  readonly #hash = createHash('sha256')
  #rows = 0
  #differing = 0

  /** Rows of the same keys, or of the same range of keys; both in the columns of `table`. */
  compare(table: PortableTable, original: readonly PortableRow[], copy: readonly PortableRow[]): void {
    this.#rows += original.length
    const lines = linesOf(original)
    this.#hash.update(lines)
    if (lines === linesOf(copy)) return
    const byKey = new Map(copy.map((row) => [JSON.stringify(keyOf(table, row)), row]))
    for (const row of original) {
      const key = keyOf(table, row)
      const name = JSON.stringify(key)
      const there = byKey.get(name)
      byKey.delete(name)
      if (there === undefined) this.#note({ table: table.name, key: [...key], what: 'missing' })
      else if (JSON.stringify(there) !== JSON.stringify(row))
        this.#note({ table: table.name, key: [...key], what: 'differs' })
    }
    for (const row of byKey.values()) this.#note({ table: table.name, key: [...keyOf(table, row)], what: 'extra' })
  }

  #note(difference: Difference): void {
    this.#differing++
    if (this.#differences.length < NAMED_MAX) this.#differences.push(difference)
  }

  result(tables: number): Comparison {
    return {
      tables,
      rows: this.#rows,
      differing: this.#differing,
      differences: this.#differences,
      hash: this.#hash.digest('hex')
    }
  }
}

/** Range after range of keys: read from one, then the same range from the other. */
async function compareStates(original: State, copy: State, progress: Progress): Promise<Comparison> {
  const found = new Findings()
  const twins = new Map(copy.schema.tables.map((table) => [table.name, table]))
  let total = 0
  for (const table of original.schema.tables) total += await original.count(table)
  let done = 0
  for (const table of original.schema.tables) {
    const twin = twins.get(table.name) ?? table
    const collect = async (range: { after?: PortableRow; through?: PortableRow }) => {
      const all: PortableRow[] = []
      for await (const rows of copy.rows(twin, { ...range, chunk: COMPARED_ROWS }))
        all.push(...rows.map((row) => arrangedRow(twin, table, row)))
      return all
    }
    let after: PortableRow | undefined
    for await (const rows of original.rows(table, { chunk: COMPARED_ROWS })) {
      const last = rows.at(-1)
      if (last === undefined) continue
      const through = keyOf(table, last)
      found.compare(table, rows, await collect({ through, ...(after === undefined ? {} : { after }) }))
      after = through
      done += rows.length
      progress(table.name, done, total)
    }
    // Nothing of the original is left; what the copy still has is too much.
    found.compare(table, [], await collect(after === undefined ? {} : { after }))
  }
  return found.result(original.schema.tables.length)
}
