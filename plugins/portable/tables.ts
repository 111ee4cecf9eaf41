import type { ColumnKind, PortableColumn, PortableSchema, PortableTable } from '../contracts.js'

/** What an engine says of its tables, before it is put in the order of their references. */
export interface FoundTable {
  readonly name: string
  readonly physical: string
  readonly columns: readonly PortableColumn[]
  readonly key: readonly string[]
  /** Names of other tables that its rows refer to. */
  readonly references: readonly string[]
}

const KINDS: readonly [RegExp, ColumnKind][] = [
  [/^(small|big)?int(eger)?$|^int[248]$/, 'integer'],
  [/^(double precision|real|float|double)$/, 'number'],
  [/^(text|uuid|date|character varying(\(\d+\))?|varchar(\(\d+\))?)$/, 'text'],
  [/^bool(ean)?$/, 'boolean'],
  [/^jsonb?$/, 'json'],
  [/^(bytea|blob)$/, 'bytes'],
  [/^(timestamp with time zone|timestamptz|timestamp)$/, 'instant']
]

/** @throws Error for a type whose values cannot be carried to the other engine as they are */
export function kindOf(declared: string, where: string): ColumnKind {
  const found = KINDS.find(([pattern]) => pattern.test(declared.toLowerCase()))
  if (found === undefined) throw new Error(`${where} is of the type "${declared}", which is not portable`)
  return found[1]
}

/** Where the names of applied migrations are kept; their rows say how a schema was made and are never copied. */
export const isLedger = (table: string): boolean => /^migrations_\w+$/.test(table)
export const ledgerModule = (table: string): string | undefined =>
  table.endsWith('_lock') ? undefined : /^migrations_(\w+)$/.exec(table)?.[1]

/** Tables so that each comes after those it refers to; by name where that leaves a choice. */
export function inOrder(found: readonly FoundTable[], migrations: PortableSchema['migrations']): PortableSchema {
  const byName = new Map(found.map((table) => [table.physical, table]))
  const ordered: PortableTable[] = []
  const placed = new Set<string>()
  const place = ({ references, ...table }: FoundTable, path: readonly string[]): void => {
    if (placed.has(table.physical)) return
    if (path.includes(table.physical)) throw new Error(`tables refer to each other in a ring: ${path.join(', ')}`)
    for (const name of [...references].sort()) {
      const referred = byName.get(name)
      if (referred !== undefined && name !== table.physical) place(referred, [...path, table.physical])
    }
    placed.add(table.physical)
    ordered.push(table)
  }
  for (const table of [...found].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (table.key.length === 0) throw new Error(`the table ${table.name} has no primary key, so it cannot be copied`)
    place(table, [])
  }
  return { tables: ordered, migrations }
}
