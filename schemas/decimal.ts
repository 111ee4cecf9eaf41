/** The database holds quantities and money as integers of 10⁻⁶; the API speaks decimals. Exact for |x| ≤ 10⁹. */
export const MICROS = 1_000_000

export const toMicros = (decimal: number): number => Math.round(decimal * MICROS)
export const fromMicros = (micros: number): number => micros / MICROS

/** `a · b` of two micro values, rounded half away from zero to micros. */
export const multiplyMicros = (a: number, b: number): number => proportionMicros(a, b, MICROS)

/** `a · b / c` of three micro values without an intermediate rounding, half away from zero. */
export function proportionMicros(a: number, b: number, c: number): number {
  if (c > 0) {
    // Most products are exact as they are, or for what is left of `a` beside whole multiples of `c`; bigint is several times slower.
    const product = a * b
    if (Number.isSafeInteger(product)) return quotientRounded(product, c)
    const rest = a % c
    const [whole, part] = [((a - rest) / c) * b, rest * b]
    if (Number.isSafeInteger(whole) && Number.isSafeInteger(part)) return whole + quotientRounded(part, c)
  }
  return divideRounded(BigInt(a) * BigInt(b), BigInt(c))
}

function quotientRounded(dividend: number, divisor: number): number {
  const size = Math.abs(dividend)
  const rest = size % divisor
  const quotient = (size - rest) / divisor + (rest >= divisor - rest ? 1 : 0)
  return dividend < 0 ? -quotient : quotient
}

function divideRounded(dividend: bigint, divisor: bigint): number {
  const negative = dividend < 0n !== divisor < 0n
  const n = dividend < 0n ? -dividend : dividend
  const d = divisor < 0n ? -divisor : divisor
  const rounded = (n + d / 2n) / d
  return Number(negative ? -rounded : rounded)
}
