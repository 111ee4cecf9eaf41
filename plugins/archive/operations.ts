import { createHash } from 'node:crypto'
import type {
  ArchiveEntry,
  ArchivePosition,
  ArchiveRun,
  MadeArchive,
  Place,
  Portability,
  PortableReader,
  PortableRow,
  PortableTable,
  PortableWriter
} from '../contracts.js'
import { openSide } from '../mirror/link.js'
import type { Side } from '../mirror/side.js'
import { openReader, openWriter, parseRow } from '../portable/index.js'
import { keyOf } from '../portable/values.js'
import { VERSION as PROGRAM } from '../version.js'
import { seen } from './bytes.js'
import {
  ArchiveDamaged,
  type ArchivedTable,
  FORMAT,
  fileNameOf,
  type Header,
  type Manifest,
  newId,
  parseFileName,
  VERSION
} from './format.js'
import { type ArchiveKeys, Keyring } from './keys.js'
import { type ArchiveReading, checkArchive, openArchive } from './read.js'
import { type ArchiveStore, openStore, type StoreOptions } from './store.js'
import { fullArchive, incrementArchive, type Written } from './write.js'

export interface ArchiveSettings {
  readonly store: StoreOptions
  readonly keys: ArchiveKeys
}
export interface Loaded {
  readonly rows: number
  readonly header: Header
}

const UNIQUE_VIOLATION = '23505'
const folderOf = (tenant: string) => `tenants/${tenant}`

/** What is done with archives, in whatever thread. Databases are opened on connections of their own. */
export class Operations {
  readonly #store: ArchiveStore
  readonly #keys: Keyring
  readonly #traits: readonly Portability[]

  constructor({ store, keys }: ArchiveSettings, traits: readonly Portability[]) {
    this.#store = openStore(store)
    this.#keys = new Keyring(keys, this.#store)
    this.#traits = traits
  }

  /** In the order of their states. */
  async list(tenant: string): Promise<ArchiveEntry[]> {
    const files = await this.#store.list(folderOf(tenant))
    const entries = files.flatMap(({ name, bytes }) => parseFileName(name, bytes) ?? [])
    return entries.sort((a, b) => a.stateAt - b.stateAt || (a.id < b.id ? -1 : 1))
  }

  async remove(tenant: string, entries: readonly ArchiveEntry[]): Promise<void> {
    for (const entry of entries) await this.#store.remove(pathOf(tenant, entry))
    await this.#store.tidy(folderOf(tenant))
  }

  async full(tenant: string, place: Place, capture: boolean, run: ArchiveRun): Promise<MadeArchive> {
    if (!capture) {
      const stateAt = Date.now()
      const reader = await openReader(place, this.#traits)
      try {
        return await this.#writeFull(tenant, stateAt, reader, null, run)
      } finally {
        await reader.close()
      }
    }
    return this.#withSide(place, async (side) => {
      const id = await side.capture()
      const stateAt = Date.now()
      const state = await side.state()
      try {
        return await this.#writeFull(tenant, stateAt, state, { capture: id, position: state.position }, run)
      } finally {
        await state.close()
      }
    })
  }

  async #writeFull(
    tenant: string,
    stateAt: number,
    reader: Omit<PortableReader, 'close'>,
    next: ArchivePosition | null,
    run: ArchiveRun
  ): Promise<MadeArchive> {
    const entry = { id: newId(), kind: 'full' as const, previous: null, stateAt }
    const header = headerOf(entry, tenant, reader)
    const advance = (done: number, total: number) => {
      run.signal?.throwIfAborted()
      run.progress?.(done, total)
    }
    return this.#put(tenant, entry, next, (written) => fullArchive(header, reader, advance, written))
  }

  /** @returns when it was looked, where nothing has changed or what did cannot be told */
  async increment(
    tenant: string,
    place: Place,
    previous: string,
    since: ArchivePosition
  ): Promise<MadeArchive | { nothing: 'unchanged' | 'broken'; at: number }> {
    return this.#withSide(place, async (side) => {
      const capture = await side.capture()
      const stateAt = Date.now()
      if (capture !== since.capture) return { nothing: 'broken' as const, at: stateAt }
      if ((await side.pending(since.position)) === 0) return { nothing: 'unchanged' as const, at: stateAt }
      const state = await side.state()
      try {
        const entry = { id: newId(), kind: 'increment' as const, previous, stateAt }
        const header = headerOf(entry, tenant, state)
        const next = { capture, position: state.position }
        return await this.#put(tenant, entry, next, (written) =>
          incrementArchive(header, state, since.position, written)
        )
      } finally {
        await state.close()
      }
    })
  }

  async #put(
    tenant: string,
    entry: Omit<ArchiveEntry, 'bytes'>,
    next: ArchivePosition | null,
    write: (written: (what: Written) => void) => AsyncIterable<Uint8Array>
  ): Promise<MadeArchive> {
    const startedAt = performance.now()
    const hash = createHash('sha256')
    let bytes = 0
    let written: Written | undefined
    const plain = write((what) => {
      written = what
    })
    const encrypted = seen(this.#keys.encrypt(plain), (piece) => {
      hash.update(piece)
      bytes += piece.length
    })
    await this.#store.put(pathOf(tenant, entry), encrypted)
    if (written === undefined) throw new Error('an archive ended before its end')
    const seconds = (performance.now() - startedAt) / 1000
    return { ...entry, ...written, bytes, sha256: hash.digest('hex'), seconds, next }
  }

  /** For PostgreSQL; on SQLite the service's own writer does it. */
  async prune(place: Place, position: string): Promise<void> {
    await this.#withSide(place, (side) => side.prune(position))
  }

  /** Changes are noted no more. */
  async release(place: Place): Promise<void> {
    await this.#withSide(place, (side) => side.release())
  }

  /** @throws ArchiveDamaged, KeyRefused */
  async check(tenant: string, chain: readonly ArchiveEntry[], run: ArchiveRun) {
    const found = { archives: 0, rows: 0, parts: 0 }
    await this.#eachOf(tenant, chain, run, async (reading) => {
      const { rows, parts } = await checkArchive(reading)
      found.archives++
      found.rows += rows
      found.parts += parts
    })
    return found
  }

  /** What the first archive of a chain was made of. @throws ArchiveDamaged, KeyRefused */
  async describe(tenant: string, entry: ArchiveEntry): Promise<Header> {
    return this.#reading(
      tenant,
      entry,
      () => {},
      async ({ header }) => header
    )
  }

  /**
   * Loads a chain of archives into a fresh database that has the migrations of the first; what differs from what was
   * archived is refused.
   * @throws ArchiveDamaged, KeyRefused, Error
   */
  async load(tenant: string, chain: readonly ArchiveEntry[], place: Place, run: ArchiveRun): Promise<Loaded> {
    const counts: Record<string, number> = {}
    let header: Header | undefined
    const writer = await openWriter(place, this.#traits)
    try {
      await writer.startLoad()
      await this.#eachOf(tenant, chain, run, async (reading, open) => {
        header ??= reading.header
        requireSame(header, reading.header)
        const targets = targetsOf(reading.header, writer)
        const attempt =
          reading.header.kind === 'full'
            ? insertAll(reading, writer, targets)
            : writer.transaction(() => applyIncrement(reading, writer, targets))
        const found = await attempt.catch((error: unknown) => {
          if (!isUniqueViolation(error) || reading.header.kind === 'full') throw error
          return writer.transaction(async () => {
            await open((again) => clearIncrement(again, writer, targets))
            return open((again) => applyIncrement(again, writer, targets))
          })
        })
        Object.assign(counts, found)
      })
      await writer.finishLoad()
    } finally {
      await writer.close()
    }
    if (header === undefined) throw new Error('an empty chain was loaded')
    return { rows: await this.#requireCounts(place, counts), header }
  }

  async #requireCounts(place: Place, counts: Readonly<Record<string, number>>): Promise<number> {
    const reader = await openReader(place, this.#traits)
    try {
      let rows = 0
      for (const table of reader.schema.tables) {
        const [found, expected = 0] = [await reader.count(table), counts[table.name]]
        if (found !== expected) throw new Error(`${table.name} has ${found} rows; ${expected} were archived`)
        rows += found
      }
      return rows
    } finally {
      await reader.close()
    }
  }

  async #eachOf(
    tenant: string,
    chain: readonly ArchiveEntry[],
    { signal, progress }: ArchiveRun,
    work: (
      reading: ArchiveReading,
      open: <R>(work: (again: ArchiveReading) => Promise<R>) => Promise<R>
    ) => Promise<void>
  ): Promise<void> {
    const total = chain.reduce((sum, { bytes }) => sum + bytes, 0)
    let done = 0
    for (const entry of chain) {
      const see = (piece: Uint8Array) => {
        signal?.throwIfAborted()
        done += piece.length
        progress?.(Math.min(done, total), total)
      }
      await this.#reading(tenant, entry, see, (reading) =>
        work(reading, (again) => this.#reading(tenant, entry, () => {}, again))
      )
    }
  }

  async #reading<R>(
    tenant: string,
    entry: ArchiveEntry,
    see: (piece: Uint8Array) => void,
    work: (reading: ArchiveReading) => Promise<R>
  ): Promise<R> {
    const bytes = seen(await this.#store.get(pathOf(tenant, entry)), see)
    try {
      return await work(await openArchive(entry, tenant, bytes, this.#keys))
    } finally {
      // Whoever stops early must not keep the file open.
      await bytes.return(undefined)
    }
  }

  async #withSide<R>(place: Place, work: (side: Side) => Promise<R>): Promise<R> {
    const side = await openSide(place, this.#traits, 'backup')
    try {
      return await work(side)
    } finally {
      await side.close()
    }
  }
}

const pathOf = (tenant: string, entry: Omit<ArchiveEntry, 'bytes'>) => `${folderOf(tenant)}/${fileNameOf(entry)}`

function headerOf(
  { id, kind, previous, stateAt }: Omit<ArchiveEntry, 'bytes'>,
  tenant: string,
  { dialect, schema }: Omit<PortableReader, 'close'>
): Header {
  return {
    format: FORMAT,
    version: VERSION,
    program: PROGRAM,
    ...{ id, kind, previous, tenant, dialect, stateAt: new Date(stateAt).toISOString() },
    migrations: Object.fromEntries(Object.entries(schema.migrations).map(([module, names]) => [module, [...names]])),
    tables: schema.tables.map(({ name, columns, key }) => ({
      name,
      columns: columns.map((column) => ({ ...column })),
      key: [...key]
    }))
  }
}

function requireSame(first: Header, { id, migrations }: Header): void {
  if (JSON.stringify(first.migrations) === JSON.stringify(migrations)) return
  throw new ArchiveDamaged(id, 'archive.json', `its tables are not those of ${first.id}, which it goes on from`)
}

interface Target {
  readonly archived: PortableTable
  readonly table: PortableTable
}
type Targets = ReadonlyMap<string, Target>

/** The order of columns may differ between engines; which ones there are may not. */
function targetsOf(header: Header, { schema }: PortableWriter): Targets {
  const names = ({ columns }: ArchivedTable | PortableTable) => JSON.stringify(columns.map(({ name }) => name).sort())
  const tables = new Map(schema.tables.map((table) => [table.name, table]))
  return new Map(
    header.tables.map((archived) => {
      const table = tables.get(archived.name)
      if (table === undefined || names(table) !== names(archived))
        throw new Error(`the table ${archived.name} of the archive is not one that this program makes`)
      return [archived.name, { archived: { ...archived, physical: archived.name }, table }]
    })
  )
}

function targetOf(targets: Targets, name: string): Target {
  const target = targets.get(name)
  if (target === undefined) throw new Error(`the archive has rows of ${name}, which it does not describe`)
  return target
}

function rowsOf(lines: readonly string[], { archived, table }: Target): PortableRow[] {
  const places = table.columns.map(({ name }) => archived.columns.findIndex((column) => column.name === name))
  return lines.map((line) => {
    const row = parseRow(archived, line)
    return places.map((at) => row[at] ?? null)
  })
}
function keysOf(lines: readonly string[], { archived, table }: Target): PortableRow[] {
  const places = table.key.map((name) => archived.key.indexOf(name))
  return lines.map((line) => {
    const key: unknown = JSON.parse(line)
    if (!Array.isArray(key) || key.length !== places.length) throw new Error(`a key does not fit ${table.name}`)
    return places.map((at) => key[at] ?? null)
  })
}

type Counts = Manifest['counts']

async function insertAll(reading: ArchiveReading, writer: PortableWriter, targets: Targets): Promise<Counts> {
  for await (const { table: name, lines } of reading.parts) {
    const target = targetOf(targets, name)
    await writer.transaction(() => writer.insert(target.table, rowsOf(lines, target)))
  }
  return reading.manifest().counts
}

/**
 * Rows are inserted, or replace those that have their keys. Where two have changed places in a unique column PostgreSQL
 * refuses that; then all that changed leaves before any comes.
 */
async function applyIncrement(reading: ArchiveReading, writer: PortableWriter, targets: Targets): Promise<Counts> {
  for await (const { table: name, kind, lines } of reading.parts) {
    const target = targetOf(targets, name)
    if (kind === 'gone') await writer.remove(target.table, keysOf(lines, target))
    else await writer.put(target.table, rowsOf(lines, target))
  }
  return reading.manifest().counts
}

/** Takes away what an increment brings. */
async function clearIncrement(reading: ArchiveReading, writer: PortableWriter, targets: Targets): Promise<void> {
  for await (const { table: name, kind, lines } of reading.parts) {
    const target = targetOf(targets, name)
    if (kind !== 'rows') continue
    const keys = rowsOf(lines, target).map((row) => keyOf(target.table, row))
    await writer.remove(target.table, keys)
  }
}

const isUniqueViolation = (error: unknown) =>
  error instanceof Error && 'code' in error && error.code === UNIQUE_VIOLATION
