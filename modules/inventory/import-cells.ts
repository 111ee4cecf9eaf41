import type { Localised } from '../../plugins/contracts.js'
import { DECIMAL_LIMIT } from '../../schemas/common.js'
import { OCCURRED_AT_MIN } from './rules.js'

/** What one cell of an imported file may hold. */

export const CELL_MAX_LENGTH = 1_000

/** A refused cell. */
export class RowError {
  constructor(
    readonly row: number,
    readonly column: string | null,
    readonly code: string,
    readonly message: Localised
  ) {}
}

/** Clocks differ a little between machines. */
const FUTURE_TOLERANCE_MILLISECONDS = 5 * 60_000
const DECIMAL = /^[+-]?(\d+(\.\d*)?|\.\d+)$/
const INSTANT = /^(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?\s*(Z|[+-]\d\d:?\d\d)?$/
/** As many and as long as an item may have, so that what is exported comes back. */
const BARCODES_MAX_LENGTH = 20 * (64 + 1)
const BARCODE = /^[A-Za-z0-9._-]{4,64}$/
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is refused
const CONTROL = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\ufffd]/
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is refused
const CONTROL_OR_LINES = /[\u0000-\u001f\u007f\ufffd]/

/** Reads the cells of a row, each by what it may hold. @throws RowError naming the column */
export function cellsOf(row: number, fields: ReadonlyMap<string, string>) {
  const text = (column: string, maxLength: number): string | undefined => {
    const value = fields.get(column)
    if (value === undefined) return undefined
    // As the API counts: a character beyond the first 65,536 is two units of a text.
    const length = value.length > maxLength ? [...value].length : value.length
    if (length > maxLength)
      throw new RowError(row, column, 'LENGTH', {
        en: `${column} has ${length} characters; at most ${maxLength} are taken`,
        fr: `${column} compte ${length} caractères ; ${maxLength} au plus sont admis`
      })
    if ((column === 'reason' ? CONTROL : CONTROL_OR_LINES).test(value))
      throw new RowError(row, column, 'TEXT', {
        en: `${column} holds control characters or bytes that are not UTF-8`,
        fr: `${column} contient des caractères de commande ou des octets qui ne sont pas de l’UTF-8`
      })
    return value
  }
  const decimal = (column: string, minimum: number): number | undefined => {
    const value = text(column, 40)
    if (value === undefined) return undefined
    const number = Number(value)
    if (!DECIMAL.test(value) || !Number.isFinite(number))
      throw new RowError(row, column, 'NUMBER', {
        en: `${column} is ${JSON.stringify(value)}, not a decimal number`,
        fr: `${column} vaut ${JSON.stringify(value)}, qui n’est pas un nombre décimal`
      })
    if (number < minimum || number > DECIMAL_LIMIT)
      throw new RowError(row, column, 'RANGE', {
        en: `${column} is ${value}; it may be ${minimum} to ${DECIMAL_LIMIT}`,
        fr: `${column} vaut ${value} ; il va de ${minimum} à ${DECIMAL_LIMIT}`
      })
    if ((value.split('.')[1]?.replace(/0+$/, '').length ?? 0) > 6)
      throw new RowError(row, column, 'PRECISION', {
        en: `${column} is ${value}; it may have six decimals`,
        fr: `${column} vaut ${value} ; six décimales au plus sont admises`
      })
    return number
  }
  return {
    text,
    decimal,
    required(column: string, maxLength: number): string {
      const value = text(column, maxLength)
      if (value === undefined)
        throw new RowError(row, column, 'REQUIRED', { en: `${column} is missing`, fr: `${column} manque` })
      return value
    },
    integer(column: string, minimum: number, maximum: number): number | undefined {
      const value = decimal(column, minimum)
      if (value !== undefined && (!Number.isInteger(value) || value > maximum))
        throw new RowError(row, column, 'RANGE', {
          en: `${column} is ${value}; it may be a whole number from ${minimum} to ${maximum}`,
          fr: `${column} vaut ${value} ; c’est un nombre entier de ${minimum} à ${maximum}`
        })
      return value
    },
    oneOf<const V extends string>(column: string, values: readonly V[]): V | undefined {
      const value = text(column, 40)
      const known = values.find((each) => each === value)
      if (value !== undefined && known === undefined)
        throw new RowError(row, column, 'VALUE', {
          en: `${column} is ${JSON.stringify(value)}; it is one of ${values.join(', ')}`,
          fr: `${column} vaut ${JSON.stringify(value)} ; c’est l’un de ${values.join(', ')}`
        })
      return known
    },
    /** Without an offset the time is UTC. */
    instant(column: string): number | undefined {
      const value = text(column, 40)
      if (value === undefined) return undefined
      const parts = INSTANT.exec(value)
      const [, year, month, day, hour = '00', minute = '00', second = '00', fraction = '0', offset = 'Z'] = parts ?? []
      const at =
        parts === null
          ? Number.NaN
          : Date.parse(
              `${year}-${month}-${day}T${hour}:${minute}:${second}.${fraction.padEnd(3, '0').slice(0, 3)}${offset}`
            )
      // Date.parse rolls 31 February over; the calendar does not have it.
      if (
        Number.isNaN(at) ||
        new Date(Date.UTC(Number(year), Number(month) - 1, Number(day))).getUTCDate() !== Number(day)
      ) {
        throw new RowError(row, column, 'TIME', {
          en: `${column} is ${JSON.stringify(value)}, not a time such as 2024-03-31T08:30:00Z or 2024-03-31 08:30`,
          fr: `${column} vaut ${JSON.stringify(value)}, qui n’est pas une date comme 2024-03-31T08:30:00Z ou 2024-03-31 08:30`
        })
      }
      if (at > Date.now() + FUTURE_TOLERANCE_MILLISECONDS)
        throw new RowError(row, column, 'TIME', {
          en: `${column} is ${value}, which is in the future`,
          fr: `${column} vaut ${value}, qui est dans l’avenir`
        })
      if (at < OCCURRED_AT_MIN)
        throw new RowError(row, column, 'TIME', {
          en: `${column} is ${value}, which is before 1970, where the ledger begins`,
          fr: `${column} vaut ${value}, ce qui précède 1970, où commence le journal`
        })
      return at
    },
    barcodes(column: string): string[] | undefined {
      const value = text(column, BARCODES_MAX_LENGTH)
      const codes = value?.split('|').map((each) => each.trim())
      const bad = codes?.find((each) => !BARCODE.test(each))
      if (bad !== undefined)
        throw new RowError(row, column, 'VALUE', {
          en: `${column} is ${JSON.stringify(bad)}; a barcode is 4–64 letters, digits, dots or dashes (several are joined by |)`,
          fr: `${column} vaut ${JSON.stringify(bad)} ; un code-barres compte 4 à 64 lettres, chiffres, points ou tirets (plusieurs sont joints par |)`
        })
      return codes
    }
  }
}
