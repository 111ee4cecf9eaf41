import { createReadStream } from 'node:fs'
import { CsvError, parse } from 'csv-parse'
import { DECIMAL_LIMIT } from '../../schemas/common.js'
import {
  type ImportKind,
  type ImportQuery,
  type MovementLine,
  MovementType,
  Tracking
} from '../../schemas/inventory.js'
import { ImportUnreadable } from './errors.js'
import { CELL_MAX_LENGTH, cellsOf, RowError } from './import-cells.js'
import { wrongQuantity } from './rules.js'

/** From the bytes of a file to rows of known fields, each value checked; nothing here knows the database. */

/** Of a file of items, in the order of an export. */
export const ITEM_FIELDS = [
  'itemCode',
  'name',
  'unit',
  'nameFr',
  'category',
  'barcode',
  'reorderPoint',
  'parLevel',
  'unitCost',
  'tracking',
  'shelfLifeDays'
] as const
const FIELDS = {
  items: ITEM_FIELDS,
  movements: [
    'itemCode',
    'type',
    'quantity',
    'occurredAt',
    'location',
    'toLocation',
    'unit',
    'lot',
    'unitCost',
    'reason',
    'reference'
  ]
} as const satisfies Record<ImportKind, readonly string[]>
const REQUIRED = { items: ['itemCode'], movements: ['itemCode', 'quantity'] } as const satisfies Record<
  ImportKind,
  readonly string[]
>

/** Keeps a spreadsheet from running a text as a formula; exports write it. */
const TEXT_MARK = /^'(?='*[=+\-@])/
const RECORD_MAX_BYTES = 65_536

export interface ReadOptions {
  readonly kind: ImportKind
  readonly format: 'csv' | 'ndjson'
  /** field → header */
  readonly map: Readonly<Record<string, string>>
  readonly type: ImportQuery['type']
}

/** A row's fields as text, as they stand in the file; empty cells are left out. */
export interface RawRow {
  readonly row: number
  readonly fields: ReadonlyMap<string, string>
}

/** @throws ImportUnreadable where a pair names a field that this kind does not have, or one that another pair names */
export function parseMap(kind: ImportKind, map: string | undefined): Record<string, string> {
  const pairs = (map ?? '').split(',').filter((pair) => pair !== '')
  const fields: readonly string[] = FIELDS[kind]
  const taken: Record<string, string> = {}
  for (const pair of pairs) {
    const field = pair.slice(0, pair.indexOf(':'))
    if (!fields.includes(field))
      throw new ImportUnreadable({
        reason: {
          en: `map names the field ${field}; the fields of ${kind} are ${fields.join(', ')}`,
          fr: `map nomme le champ ${field} ; les champs de ${kind} sont ${fields.join(', ')}`
        }
      })
    if (taken[field] !== undefined)
      throw new ImportUnreadable({
        reason: { en: `map names the field ${field} twice`, fr: `map nomme deux fois le champ ${field}` }
      })
    taken[field] = pair.slice(pair.indexOf(':') + 1)
  }
  return taken
}

/** The fields that a column holds, by the map or its own name; none for one that is not taken. */
const fieldsOf = (column: string, { kind, map }: ReadOptions): readonly string[] =>
  FIELDS[kind].filter((field) => (map[field] ?? field) === column)

/**
 * Reads a file row by row; one that has not a cell for each column comes as what is wrong with it.
 * @throws ImportUnreadable with the place, when the file itself is broken
 */
export async function* readRows(path: string, options: ReadOptions): AsyncGenerator<RawRow | RowError> {
  try {
    yield* options.format === 'csv' ? readCsv(path, options) : readNdjson(path, options)
  } catch (error) {
    if (error instanceof CsvError) throw new ImportUnreadable({ reason: { en: error.message, fr: error.message } })
    throw error
  }
}

async function* readCsv(path: string, options: ReadOptions): AsyncGenerator<RawRow | RowError> {
  const parser = createReadStream(path).pipe(
    parse({
      bom: true,
      skip_empty_lines: true,
      max_record_size: RECORD_MAX_BYTES,
      relax_column_count: true
    })
  )
  let columns: (readonly string[])[] | undefined
  let row = 0
  for await (const record of parser as AsyncIterable<string[]>) {
    row++
    if (columns === undefined) {
      columns = columnsOf(record, options)
      continue
    }
    if (record.length !== columns.length) {
      yield cellsMissing(row, record.length, columns.length)
      continue
    }
    const fields = new Map<string, string>()
    for (const [index, held] of columns.entries()) {
      const cell = (record[index]?.trim() ?? '').replace(TEXT_MARK, '')
      if (cell !== '') for (const field of held) fields.set(field, cell)
    }
    yield { row, fields }
  }
  if (columns === undefined)
    throw new ImportUnreadable({
      reason: {
        en: 'it is empty; the first row names the columns',
        fr: 'il est vide ; la première ligne nomme les colonnes'
      }
    })
}

const cellsMissing = (row: number, cells: number, columns: number) =>
  new RowError(row, null, 'CELLS', {
    en: `the row has ${cells} cell(s) where the header has ${columns}; a comma within a cell takes quotes around it`,
    fr: `la ligne compte ${cells} cellule(s) où l’en-tête en a ${columns} ; une virgule dans une cellule demande des guillemets`
  })

function columnsOf(header: readonly string[], options: ReadOptions): (readonly string[])[] {
  const { kind, map } = options
  const names = header.map((name) => name.trim())
  const [only = ''] = names
  if (names.length === 1 && /[;\t]/.test(only) && fieldsOf(only, options).length === 0)
    throw new ImportUnreadable({
      reason: {
        en: 'its header has semicolons or tabs and no comma; cells are separated by commas',
        fr: 'son en-tête a des points-virgules ou des tabulations et aucune virgule ; les cellules se séparent par des virgules'
      }
    })
  const repeated = names.find((name, index) => name !== '' && names.indexOf(name) !== index)
  if (repeated !== undefined)
    throw new ImportUnreadable({
      reason: {
        en: `the header names the column ${JSON.stringify(repeated)} twice`,
        fr: `l’en-tête nomme deux fois la colonne ${JSON.stringify(repeated)}`
      }
    })
  for (const [field, name] of Object.entries(map)) {
    if (!names.includes(name))
      throw new ImportUnreadable({
        reason: {
          en: `map takes ${field} from the column ${JSON.stringify(name)}, which the header does not have`,
          fr: `map prend ${field} dans la colonne ${JSON.stringify(name)}, absente de l’en-tête`
        }
      })
  }
  const columns = names.map((name) => fieldsOf(name, options))
  // With a map the file is someone else's, and its other columns are not for us; without one they are misspelt.
  const unknown = names.find((_, index) => columns[index]?.length === 0)
  if (Object.keys(map).length === 0 && unknown !== undefined) {
    throw new ImportUnreadable({
      reason: {
        en: `the column ${JSON.stringify(unknown.slice(0, 100))} is not known; the columns of ${kind} are ${FIELDS[kind].join(', ')}`,
        fr: `la colonne ${JSON.stringify(unknown.slice(0, 100))} est inconnue ; les colonnes de ${kind} sont ${FIELDS[kind].join(', ')}`
      }
    })
  }
  for (const field of REQUIRED[kind]) {
    if (!columns.flat().includes(field))
      throw new ImportUnreadable({ reason: { en: `the column ${field} is missing`, fr: `la colonne ${field} manque` } })
  }
  return columns
}

async function* readNdjson(path: string, options: ReadOptions): AsyncGenerator<RawRow> {
  const mapped = Object.keys(options.map).length > 0
  let row = 0
  let empty = true
  for await (const line of linesOf(path)) {
    row++
    if (line.trim() === '') continue
    let value: unknown
    try {
      value = JSON.parse(line)
    } catch {
      throw new ImportUnreadable({ reason: { en: `line ${row} is not JSON`, fr: `la ligne ${row} n’est pas du JSON` } })
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value))
      throw new ImportUnreadable({
        reason: { en: `line ${row} is not an object`, fr: `la ligne ${row} n’est pas un objet` }
      })
    const found = new Map<string, string>()
    for (const [name, cell] of Object.entries(value)) {
      const held = fieldsOf(name, options)
      if (held.length === 0 && !mapped)
        throw new ImportUnreadable({
          reason: {
            en: `line ${row} has the unknown field ${JSON.stringify(name.slice(0, 100))}`,
            fr: `la ligne ${row} a le champ inconnu ${JSON.stringify(name.slice(0, 100))}`
          }
        })
      if (held.length === 0 || cell === null || cell === '') continue
      if (typeof cell !== 'string' && typeof cell !== 'number')
        throw new ImportUnreadable({
          reason: {
            en: `line ${row}: ${name} is neither text nor a number`,
            fr: `ligne ${row} : ${name} n’est ni un texte ni un nombre`
          }
        })
      if (/\p{Surrogate}/u.test(String(cell)))
        throw new ImportUnreadable({
          reason: {
            en: `line ${row}: ${name} has half of a character`,
            fr: `ligne ${row} : ${name} a la moitié d’un caractère`
          }
        })
      for (const field of held) found.set(field, String(cell).trim())
    }
    empty = false
    yield { row, fields: found }
  }
  if (empty) throw new ImportUnreadable({ reason: { en: 'it is empty', fr: 'il est vide' } })
}

async function* linesOf(path: string): AsyncGenerator<string> {
  // A mark of the order of bytes stands before the first line.
  let rest: string | undefined
  for await (const read of createReadStream(path, { encoding: 'utf8' })) {
    const chunk = rest === undefined ? String(read).replace(/^\ufeff/, '') : read
    rest ??= ''
    const lines = (rest + chunk).split('\n')
    rest = lines.pop() ?? ''
    if (rest.length > RECORD_MAX_BYTES)
      throw new ImportUnreadable({
        reason: {
          en: `a line is longer than ${RECORD_MAX_BYTES} bytes`,
          fr: `une ligne dépasse ${RECORD_MAX_BYTES} octets`
        }
      })
    yield* lines
  }
  if (rest) yield rest
}

export interface MovementRow {
  readonly row: number
  readonly type: MovementType
  readonly occurredAt: number | undefined
  readonly reason: string | null
  readonly reference: string | null
  readonly line: MovementLine
}

/** @throws RowError naming the column */
export function movementRow({ row, fields }: RawRow, defaultType: MovementType | undefined): MovementRow {
  const cell = cellsOf(row, fields)
  const named = cell.oneOf('type', MovementType.enum) ?? defaultType
  if (named === undefined)
    throw new RowError(row, 'type', 'REQUIRED', {
      en: `type is missing; it is one of ${MovementType.enum.join(', ')} (or give all rows one with ?type=)`,
      fr: `type manque ; c’est l’un de ${MovementType.enum.join(', ')} (ou donnez-en un à toutes les lignes par ?type=)`
    })
  const signed = cell.decimal('quantity', -DECIMAL_LIMIT)
  if (signed === undefined || signed === 0)
    throw new RowError(row, 'quantity', 'REQUIRED', {
      en: 'quantity is missing or 0',
      fr: 'quantity manque ou vaut 0'
    })
  // A sales file marks what came back by a negative quantity: a negative issue is a return, and the other way round.
  const opposite = named === 'issue' ? 'return' : named === 'return' ? 'issue' : undefined
  const turned = signed < 0 && opposite !== undefined
  if (signed < 0 && !turned && named !== 'adjustment')
    throw new RowError(row, 'quantity', 'RANGE', wrongQuantity(named, signed))
  const optional = {
    unit: cell.text('unit', 20),
    location: cell.text('location', 64),
    toLocation: cell.text('toLocation', 64),
    lot: cell.text('lot', 64),
    unitCost: cell.decimal('unitCost', 0)
  }
  const line: MovementLine = { itemCode: cell.required('itemCode', 64), quantity: turned ? -signed : signed }
  return {
    row,
    type: turned && opposite !== undefined ? opposite : named,
    occurredAt: cell.instant('occurredAt'),
    reason: cell.text('reason', CELL_MAX_LENGTH) ?? null,
    reference: cell.text('reference', 200) ?? null,
    line: Object.assign(line, Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)))
  }
}

/** Undefined where the file says nothing, so that an update leaves it as it is. */
export function itemRow({ row, fields }: RawRow) {
  const cell = cellsOf(row, fields)
  return {
    row,
    itemCode: cell.required('itemCode', 64),
    name: cell.text('name', 200),
    unit: cell.text('unit', 20),
    nameFr: cell.text('nameFr', 200),
    category: cell.text('category', 200),
    barcodes: cell.barcodes('barcode'),
    reorderPoint: cell.decimal('reorderPoint', 0),
    parLevel: cell.decimal('parLevel', 0),
    unitCost: cell.decimal('unitCost', 0),
    tracking: cell.oneOf('tracking', Tracking.enum),
    shelfLifeDays: cell.integer('shelfLifeDays', 1, 36_500)
  }
}
export type ItemImportRow = ReturnType<typeof itemRow>
