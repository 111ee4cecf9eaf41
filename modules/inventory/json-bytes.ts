import { fromMicros, MICROS } from '../../schemas/decimal.js'

const START_BYTES = 64 * 1024
const MICRO_DIGITS = 6
/** So that what stands before the point is an integer of 31 bits. */
const DIGITS_BELOW = 2 ** 31 * MICROS
/** A call costs more than to copy so few one by one. */
const LOOP_BYTES_MAX = 24
const ZERO = 0x30

/**
 * JSON written as bytes from parts that are bytes already and numbers. As strings, a page would be made, joined and encoded, which
 * costs as much as the query that reads it.
 */
export class JsonBytes {
  #bytes = Buffer.allocUnsafe(START_BYTES)
  #at = 0

  /** Short texts of ASCII. */
  text(ascii: string): this {
    this.#room(ascii.length)
    const bytes = this.#bytes
    let at = this.#at
    for (let i = 0; i < ascii.length; i++) bytes[at++] = ascii.charCodeAt(i)
    this.#at = at
    return this
  }

  copy(from: Buffer, start = 0, end = from.length): this {
    this.#room(end - start)
    const bytes = this.#bytes
    let at = this.#at
    if (end - start > LOOP_BYTES_MAX) at += from.copy(bytes, at, start, end)
    else for (let i = start; i < end; i++) bytes[at++] = from[i] ?? 0
    this.#at = at
    return this
  }

  number(value: number | null): this {
    if (value === 0) return this.micros(0)
    return this.text(value === null ? 'null' : String(value))
  }

  /** A whole number of 10⁻⁶ as the decimal that it is: the digits that `fromMicros` would be printed with. */
  micros(value: number | null): this {
    if (value === null) return this.text('null')
    const size = Math.abs(value)
    if (size >= DIGITS_BELOW) return this.text(String(fromMicros(value)))
    if (value < 0) this.text('-')
    const whole = Math.floor(size / MICROS)
    this.#digits(whole, digitsOf(whole))
    let fraction = (size - whole * MICROS) | 0
    if (fraction === 0) return this
    this.text('.')
    let digits = MICRO_DIGITS
    for (; fraction % 10 === 0; fraction = (fraction / 10) | 0) digits--
    this.#digits(fraction, digits)
    return this
  }

  /** The last `digits` of an integer of 31 bits. */
  #digits(integer: number, digits: number): void {
    this.#room(digits)
    const bytes = this.#bytes
    const from = this.#at
    let rest = integer | 0
    for (let at = from + digits - 1; at >= from; at--) {
      const tenth = (rest / 10) | 0
      bytes[at] = ZERO + rest - tenth * 10
      rest = tenth
    }
    this.#at = from + digits
  }

  #room(bytes: number): void {
    if (this.#at + bytes <= this.#bytes.length) return
    const larger = Buffer.allocUnsafe((this.#at + bytes) * 2)
    this.#bytes.copy(larger, 0, 0, this.#at)
    this.#bytes = larger
  }

  clear(): this {
    this.#at = 0
    return this
  }

  written(): Buffer {
    return Buffer.from(this.#bytes.subarray(0, this.#at))
  }
}

function digitsOf(integer: number): number {
  let digits = 1
  for (let limit = 10; integer >= limit; limit *= 10) digits++
  return digits
}

const shared = new JsonBytes()
/** What `write` writes. It must not wait for anything: all share one buffer. */
export function writeJson(write: (out: JsonBytes) => void): Buffer {
  write(shared.clear())
  return shared.written()
}

const SPACE = ' '.charCodeAt(0)
const MINUS = '-'.charCodeAt(0)
const NULL = 'n'.charCodeAt(0)
const NULL_REST = 'ull,'.length

/**
 * Reads a JSON array of integers and nulls, one by one, that stands somewhere in a text: as bytes, since the text around it would have
 * to be decoded and cut out first, and without making an array of them.
 */
export class IntegerReader {
  /**
   * @param bytes as databases write them: at most a space behind each comma
   * @param at behind the bracket that opens the array; after the last integer, behind the one that closes it
   */
  constructor(
    readonly bytes: Buffer,
    public at: number
  ) {}

  next(): number | null {
    const { bytes } = this
    let { at } = this
    let byte = bytes[at++] ?? 0
    if (byte === SPACE) byte = bytes[at++] ?? 0
    if (byte === NULL) {
      this.at = at + NULL_REST
      return null
    }
    const negative = byte === MINUS
    if (negative) byte = bytes[at++] ?? 0
    let integer = 0
    // What ends an integer, a comma or a bracket, is no digit and is passed as well.
    for (; byte >= ZERO && byte < ZERO + 10; byte = bytes[at++] ?? 0) integer = integer * 10 + (byte - ZERO)
    this.at = at
    return negative ? -integer : integer
  }

  /** @throws Error when it is null */
  required(name: string): number {
    const integer = this.next()
    if (integer === null) throw new Error(`a row without its ${name}`)
    return integer
  }
}
