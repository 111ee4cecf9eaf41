import { Ajv } from 'ajv'
import formats from 'ajv-formats'
import * as fc from 'fast-check'

/** Values that fit a JSON schema, and values that come close. */

/** Stands for the `index`th value of that name which the service has shown; which one that is depends on the run. */
export class Known {
  constructor(
    readonly name: string,
    readonly index: number,
    readonly otherwise: unknown
  ) {}
}

/** JSON text that `JSON.stringify` would not write. */
export class Verbatim {
  constructor(readonly text: string) {}
}

export type Schema = Readonly<Record<string, unknown>>
export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
const schemas = (value: unknown): Schema[] => (Array.isArray(value) ? value.filter(isObject) : [])
const numberOf = (value: unknown, otherwise: number) => (typeof value === 'number' ? value : otherwise)

/** Where SQL, JSON, HTTP, spreadsheets, logs, paths, patterns and Unicode have bitten others. */
export const HOSTILE = [
  "'",
  '"',
  "' or '1'='1",
  "'; drop table items; --",
  '$1',
  '?',
  '%',
  '_',
  '\\',
  '%s%n',
  '*',
  '(a+)+$',
  '[',
  '^\\s*$',
  '\u0000',
  'a\u0000b',
  '\r\nSet-Cookie: a=b',
  '\u001b[31m',
  '\u202egnp',
  '\ud800',
  '😀',
  'e\u0301',
  'İ',
  'ß',
  '٣',
  '\ufeff',
  '\u200b',
  ' ',
  '',
  ' padded ',
  '../../../etc/passwd',
  '..',
  '/',
  '%2e%2e%2f',
  '<script>alert(1)</script>',
  '{{7*7}}',
  '#{7*7}',
  '=1+1',
  '@sum',
  '-1',
  '0',
  '1e309',
  'NaN',
  'null',
  'true',
  '[]',
  '{}',
  '__proto__',
  'constructor',
  'toString',
  'x'.repeat(65),
  'y'.repeat(1001),
  'each',
  'main',
  'supplier'
]

const ODD_VALUES: readonly unknown[] = [
  null,
  true,
  0,
  -1,
  1.5,
  0.1 + 0.2,
  1e-7,
  1e9,
  1e9 + 1,
  2 ** 53,
  new Verbatim('9007199254740993'),
  new Verbatim('1e309'),
  new Verbatim('-0'),
  '',
  'text',
  '\u0000',
  [],
  [null],
  {},
  { __proto__: null, length: -1 },
  'z'.repeat(50_000)
]
export const odd = fc.oneof(fc.constantFrom(...ODD_VALUES), fc.constantFrom(...HOSTILE))

const ajv = formats.default(new Ajv({ strict: false, validateFormats: true }))
/** `multipleOf` is exact decimals here and not ajv's: numbers are made to fit. */
const fits = (schema: Schema) => {
  const { multipleOf: _, ...rest } = schema
  return ajv.compile(rest)
}

const DAYS = ['2026-01-05', '2024-02-29', '1970-01-01', '0001-01-01', '9999-12-31', '2026-11-24']
const TIMES = ['T00:00:00Z', 'T23:59:59.999999999Z', 'T12:00:00+14:00', 'T12:00:00-12:00', 'T09:30:00.5Z']

function strings(schema: Schema, name: string): fc.Arbitrary<unknown> {
  const test = fits(schema)
  const found = HOSTILE.filter((text) => test(text))
  const choices: fc.WeightedArbitrary<unknown>[] = []
  if (schema.format === 'uuid') choices.push({ weight: 2, arbitrary: fc.uuid() })
  else if (schema.format === 'date') choices.push({ weight: 2, arbitrary: fc.constantFrom(...DAYS) })
  else if (schema.format === 'date-time') {
    const near = fc.integer({ min: -90, max: 2 }).map((days) => new Date(Date.now() + days * 86_400_000).toISOString())
    const far = fc.tuple(fc.constantFrom(...DAYS), fc.constantFrom(...TIMES)).map(([day, time]) => day + time)
    choices.push({ weight: 3, arbitrary: near }, { weight: 2, arbitrary: far })
  } else if (typeof schema.pattern === 'string') {
    choices.push({ weight: 2, arbitrary: matching(schema.pattern).filter((text) => test(text)) })
  } else {
    const minLength = numberOf(schema.minLength, 0)
    const length = { minLength, maxLength: Math.min(numberOf(schema.maxLength, 40), minLength + 40) }
    choices.push({ weight: 2, arbitrary: fc.string({ ...length, unit: 'grapheme' }).filter((text) => test(text)) })
  }
  if (found.length > 0) choices.push({ weight: 2, arbitrary: fc.constantFrom(...found) })
  const [plain = 'A-1'] = ['A-1', 'Plain', ...found].filter((text) => test(text))
  const otherwise = schema.format === 'uuid' ? '00000000-0000-7000-8000-000000000000' : plain
  const known = fc.nat(50).map((index) => new Known(name, index, otherwise))
  return fc.oneof({ weight: 6, arbitrary: known }, ...choices)
}

/** Classes of letters are beyond fast-check's reader of patterns: they are tried by plain ones. */
function matching(pattern: string): fc.Arbitrary<string> {
  const plain = pattern.replaceAll('\\p{L}', 'a-zA-Z').replaceAll('\\p{N}', '0-9')
  return fc.stringMatching(new RegExp(plain)).map((text) => text.slice(0, 64))
}

function numbers(schema: Schema): fc.Arbitrary<number> {
  const step = schema.type === 'integer' ? 1 : numberOf(schema.multipleOf, 0.000001)
  const least = numberOf(schema.minimum, numberOf(schema.exclusiveMinimum, -1e9) + step)
  const most = numberOf(schema.maximum, 1e9)
  const inOne = Math.round(1 / step)
  const low = Math.max(Math.ceil(least), 0)
  const whole = fc.integer({ min: low, max: Math.max(Math.min(Math.floor(most), 100), low) })
  const any = fc
    .double({ min: least, max: most, noNaN: true })
    .map((value) => Math.min(Math.max(Math.round(value * inOne) / inOne, least), most))
  return fc.oneof({ weight: 3, arbitrary: whole }, any, fc.constantFrom(least, most))
}

function objects(schema: Schema): fc.Arbitrary<unknown> {
  const properties = isObject(schema.properties) ? schema.properties : {}
  const required = new Set(Array.isArray(schema.required) ? schema.required : [])
  const fields = Object.entries(properties).flatMap(([name, value]) => {
    if (!isObject(value)) return []
    const arbitrary = arbitraryOf(value, name)
    const optional = fc.oneof({ weight: 3, arbitrary: fc.constant(undefined) }, { weight: 2, arbitrary })
    return [[name, required.has(name) ? arbitrary : optional] as const]
  })
  return fc
    .record(Object.fromEntries(fields), { noNullPrototype: true })
    .map((made) => Object.fromEntries(Object.entries(made).filter(([, value]) => value !== undefined)))
}

/** Rows of a file, some of which may pass; the columns are those that the import knows, and others. */
export const csvText: fc.Arbitrary<string> = fc
  .record({
    header: fc.oneof(
      {
        weight: 3,
        arbitrary: fc.constantFrom(
          'itemCode,name,unit',
          'itemCode,type,quantity',
          'itemCode,name,unit,unitCost,category'
        )
      },
      fc
        .array(fc.constantFrom('itemCode', 'name', 'unit', 'quantity', 'type', 'occurredAt', 'other', '"', '=1+1'), {
          maxLength: 5
        })
        .map(String)
    ),
    rows: fc.array(
      fc.array(
        fc.oneof(fc.constantFrom('A-1', 'B-2', 'each', 'receipt', '5', '1.5', ''), fc.constantFrom(...HOSTILE)),
        { minLength: 2, maxLength: 5 }
      ),
      { maxLength: 4 }
    ),
    end: fc.constantFrom('\n', '\r\n', ';', '\t')
  })
  .map(({ header, rows, end }) =>
    [
      header,
      ...rows.map((row) =>
        row.map((cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell)).join(',')
      )
    ].join(end)
  )

/** @param name of the field, by which known values are chosen */
export function arbitraryOf(schema: Schema, name: string): fc.Arbitrary<unknown> {
  if ('const' in schema) return fc.constant(schema.const)
  if (Array.isArray(schema.enum)) return fc.constantFrom(...schema.enum)
  const branches = schemas(schema.anyOf ?? schema.oneOf)
  if (branches.length > 0) return fc.oneof(...branches.map((branch) => arbitraryOf(branch, name)))
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type
  switch (type) {
    case 'object':
      return objects(schema)
    case 'array': {
      const minLength = numberOf(schema.minItems, 0)
      const items = isObject(schema.items) ? arbitraryOf(schema.items, name) : fc.constant(null)
      return fc.array(items, { minLength, maxLength: Math.min(numberOf(schema.maxItems, 5), minLength + 2) })
    }
    case 'string':
      return strings(schema, name)
    case 'integer':
    case 'number':
      return numbers(schema)
    case 'boolean':
      return fc.boolean()
    case 'null':
      return fc.constant(null)
    default:
      return odd
  }
}
