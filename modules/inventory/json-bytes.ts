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

const NINE = 0x39
const MINUS = '-'.charCodeAt(0)
const NULL_LENGTH = 'null'.length
const END = ']'.charCodeAt(0)

/**
 * A JSON array of integers and nulls that begins at a place in a text: as bytes, since the text around it would have to be decoded and
 * cut out first.
 * @param from where its bracket is
 */
export function readIntegers(bytes: Buffer, from: number): (number | null)[] {
  const integers: (number | null)[] = []
  let at = from + 1
  while (at < bytes.length && bytes[at] !== END) {
    const first = bytes[at] ?? END
    if (first === MINUS || (first >= ZERO && first <= NINE)) {
      let integer = 0
      if (first === MINUS) at++
      for (let digit = bytes[at] ?? END; digit >= ZERO && digit <= NINE; digit = bytes[++at] ?? END)
        integer = integer * 10 + (digit - ZERO)
      integers.push(first === MINUS ? -integer : integer)
    } else if (first === 'n'.charCodeAt(0)) {
      integers.push(null)
      at += NULL_LENGTH
    } else at++
  }
  return integers
}
