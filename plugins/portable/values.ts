import type { ColumnKind, PortableRow, PortableTable, PortableValue } from '../contracts.js'

/**
 * Values as both engines and JSON can hold them, exactly: an integer beyond 2^53 is a text of digits, bytes are base64, an
 * instant is UTC with microseconds, JSON is a text with its keys in order, NaN and infinities are texts.
 */
export class NotPortable extends Error {}

type Decode = (raw: unknown) => PortableValue | undefined

const INSTANT = /^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(?:Z|\+00(?::?00)?)$/

const fromDriver: Record<ColumnKind, Decode> = {
  integer: (raw) => {
    if (typeof raw === 'number') return Number.isSafeInteger(raw) ? raw : undefined
    if (typeof raw !== 'bigint' && !(typeof raw === 'string' && /^-?\d+$/.test(raw))) return undefined
    const value = Number(raw)
    return Number.isSafeInteger(value) ? value : String(raw)
  },
  number: (raw) => {
    const value = typeof raw === 'string' ? Number(raw) : raw
    if (typeof value !== 'number') return undefined
    if (Number.isFinite(value)) return value === 0 ? 0 : value
    return raw === 'NaN' || !Number.isNaN(value) ? String(value) : undefined
  },
  text: (raw) => (typeof raw === 'string' ? raw : undefined),
  boolean: (raw) => {
    if (raw === 't' || raw === 1n) return true
    return raw === 'f' || raw === 0n ? false : undefined
  },
  json: (raw) => (typeof raw === 'string' ? canonicalJson(JSON.parse(raw)) : undefined),
  bytes: (raw) => {
    if (raw instanceof Uint8Array) return Buffer.from(raw).toString('base64')
    return typeof raw === 'string' ? Buffer.from(raw.slice(2), 'hex').toString('base64') : undefined
  },
  instant: (raw) => {
    const [, day, time, fraction = ''] = (typeof raw === 'string' ? INSTANT.exec(raw) : null) ?? []
    return day === undefined ? undefined : `${day}T${time}.${fraction.padEnd(6, '0')}Z`
  }
}

function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const members = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonicalJson(member)}`).join(',')}}`
}

/** Turns what a driver answers (an array in the order of the columns) into a portable row. */
export function decoder(table: PortableTable): (raw: readonly unknown[]) => PortableRow {
  const decoders = table.columns.map(({ kind }) => fromDriver[kind])
  return (raw) =>
    raw.map((value, n) => {
      if (value === null) return null
      const decoded = decoders[n]?.(value)
      if (decoded !== undefined) return decoded
      const column = table.columns[n]
      throw new NotPortable(`${table.name}.${column?.name} holds a value that is no ${column?.kind}`)
    })
}

/** The other way, for SQLite: what its driver binds. @throws NotPortable */
export function forSqlite(kind: ColumnKind, value: PortableValue): bigint | number | string | Buffer | null {
  if (value === null) return null
  if (kind === 'boolean') return value ? 1n : 0n
  if (kind === 'integer') return BigInt(value)
  if (kind === 'number') return Number(value)
  if (kind === 'bytes') return Buffer.from(String(value), 'base64')
  return String(value)
}

/** And for PostgreSQL: a text that the type of the column reads. @throws NotPortable */
export function forPostgres(kind: ColumnKind, value: PortableValue): string | null {
  if (value === null) return null
  if (kind === 'bytes') return `\\x${Buffer.from(String(value), 'base64').toString('hex')}`
  const text = String(value)
  if (text.includes('\u0000')) throw new NotPortable('PostgreSQL cannot hold a text with U+0000')
  return text
}

/** One JSON array a row, one row a line: what is stored, and what is hashed. */
export const linesOf = (rows: readonly PortableRow[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join('')

/** A row of a file. @throws NotPortable when it does not fit the table */
export function parseRow(table: PortableTable, line: string): PortableRow {
  const row: unknown = JSON.parse(line)
  if (!Array.isArray(row) || row.length !== table.columns.length)
    throw new NotPortable(`a row does not fit ${table.name}`)
  return row
}

/** The values of a row's key. */
export function keyOf(table: PortableTable, row: PortableRow): PortableRow {
  return table.key.map((name) => row[table.columns.findIndex((column) => column.name === name)] ?? null)
}
