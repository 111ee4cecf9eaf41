import { randomBytes } from 'node:crypto'
import { type Static, Type } from 'typebox'
import { TenantId } from '../../schemas/common.js'
import type { ArchiveEntry } from '../contracts.js'

/** What docs/backups.md describes: how an archive is called, and what its first and last file say. */

export const FORMAT = 'inventory-enterprise-archive'
export const VERSION = 1
export const HEADER = 'archive.json'
export const MANIFEST = 'manifest.json'

const Id = Type.String({ pattern: '^[0-9a-f]{12}$' })
const Count = Type.Integer({ minimum: 0 })
const Kind = Type.Union([Type.Literal('full'), Type.Literal('increment')])
export const newId = (): string => randomBytes(6).toString('hex')

const Column = Type.Object({
  name: Type.String(),
  kind: Type.Union([
    Type.Literal('integer'),
    Type.Literal('number'),
    Type.Literal('text'),
    Type.Literal('boolean'),
    Type.Literal('json'),
    Type.Literal('bytes'),
    Type.Literal('instant')
  ])
})
/** The first file: what it is a copy of, and how its tables are made. */
export const Header = Type.Object({
  format: Type.Literal(FORMAT),
  version: Type.Literal(VERSION),
  program: Type.String(),
  id: Id,
  kind: Kind,
  previous: Type.Union([Id, Type.Null()]),
  tenant: TenantId,
  dialect: Type.Union([Type.Literal('sqlite'), Type.Literal('postgres')]),
  /** Everything that was acknowledged before is in it. */
  stateAt: Type.String(),
  migrations: Type.Record(Type.String(), Type.Array(Type.String())),
  tables: Type.Array(
    Type.Object({ name: Type.String(), columns: Type.Array(Column), key: Type.Array(Type.String(), { minItems: 1 }) })
  )
})
export type Header = Static<typeof Header>
export type ArchivedTable = Header['tables'][number]

/** The last file: what must have been read before it. */
export const Manifest = Type.Object({
  id: Id,
  parts: Type.Array(
    Type.Object({ name: Type.String(), rows: Count, bytes: Count, sha256: Type.String({ pattern: '^[0-9a-f]{64}$' }) })
  ),
  /** Rows of each table in this state; an increment tells them of the tables that it changes. */
  counts: Type.Record(Type.String(), Count)
})
export type Manifest = Static<typeof Manifest>

/** `rows/items/000001.ndjson.gz`; `gone` holds keys of rows that are there no more. */
export type PartKind = 'rows' | 'gone'
export const partName = (kind: PartKind, table: string, n: number): string =>
  `${kind}/${table}/${String(n).padStart(6, '0')}.ndjson.gz`
/** Undefined for a name that is none of ours. */
export function parsePartName(name: string): { kind: PartKind; table: string } | undefined {
  const [, kind, table] = /^(rows|gone)\/(\w+)\/\d{6,}\.ndjson\.gz$/.exec(name) ?? []
  return table === undefined ? undefined : { kind: kind === 'rows' ? 'rows' : 'gone', table }
}

const NAME =
  /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(\d{3})Z\.(full|increment)\.([0-9a-f]{12})(?:\.([0-9a-f]{12}))?\.age$/

/** `20261126T023000123Z.full.<id>.age`, `….increment.<id>.<previous id>.age`: in the order of time, whoever lists them. */
export function fileNameOf({ id, kind, previous, stateAt }: Omit<ArchiveEntry, 'bytes'>): string {
  const at = new Date(stateAt).toISOString().replace(/[-:.]/g, '')
  return `${at}.${kind}.${id}${previous === null ? '' : `.${previous}`}.age`
}

/** Undefined for a file that is none of ours. */
export function parseFileName(name: string, bytes: number): ArchiveEntry | undefined {
  const [, year, month, day, hour, minute, second, ms, kind, id, previous] = NAME.exec(name) ?? []
  if (id === undefined) return undefined
  const stateAt = Date.parse(`${year}-${month}-${day}T${hour}:${minute}:${second}.${ms}Z`)
  if (Number.isNaN(stateAt) || (kind === 'full') !== (previous === undefined)) return undefined
  return { id, kind: kind === 'full' ? 'full' : 'increment', previous: previous ?? null, stateAt, bytes }
}

/** The archive cannot be used as it is; `part` says which of its parts is to blame. */
export class ArchiveDamaged extends Error {
  readonly part: string
  constructor(archive: string, part: string, reason: string) {
    super(`the archive ${archive} is damaged in ${part}: ${reason}`)
    this.part = part
  }
}

/** What is needed for a state is not there, or not all of it. */
export class ArchiveMissing extends Error {}

/**
 * What to load for a state, the full archive first.
 * @param wanted an id, or a moment (milliseconds): the last state that was taken by then
 * @throws ArchiveMissing
 */
export function chainTo(entries: readonly ArchiveEntry[], wanted: { id: string } | { at: number }): ArchiveEntry[] {
  const byId = new Map(entries.map((entry) => [entry.id, entry]))
  const target =
    'id' in wanted
      ? byId.get(wanted.id)
      : entries.filter(({ stateAt }) => stateAt <= wanted.at).reduce<ArchiveEntry | undefined>(later, undefined)
  if (target === undefined) {
    const what =
      'id' in wanted ? `no archive ${wanted.id}` : `no archive of ${new Date(wanted.at).toISOString()} or before`
    throw new ArchiveMissing(`there is ${what}`)
  }
  const chain = [target]
  for (let first = target; first.previous !== null; ) {
    const before = byId.get(first.previous)
    if (before === undefined || chain.includes(before))
      throw new ArchiveMissing(`the archive ${first.previous}, which ${first.id} goes on from, is missing`)
    chain.unshift(before)
    first = before
  }
  return chain
}
/** Of two of the same moment a full one needs nothing else. */
const later = (a: ArchiveEntry | undefined, b: ArchiveEntry): ArchiveEntry =>
  a === undefined || b.stateAt > a.stateAt || (b.stateAt === a.stateAt && b.kind === 'full') ? b : a
