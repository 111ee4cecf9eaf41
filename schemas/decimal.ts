/** The database holds quantities and money as integers of 10⁻⁶; the API speaks decimals. Exact for |x| ≤ 10⁹. */
export const MICROS = 1_000_000

export const toMicros = (decimal: number): number => Math.round(decimal * MICROS)
export const fromMicros = (micros: number): number => micros / MICROS

/** `a · b` of two micro values, rounded half away from zero to micros. */
export const multiplyMicros = (a: number, b: number): number => proportionMicros(a, b, MICROS)

/** `a · b / c` of three micro values without an intermediate rounding, half away from zero. */
export function proportionMicros(a: number, b: number, c: number): number {
  const product = a * b
  // Most products are exact as they are; only those that leave 2⁵³ need bigint, which is slower.
  if (!Number.isSafeInteger(product) || c <= 0) return divideRounded(BigInt(a) * BigInt(b), BigInt(c))
  const size = Math.abs(product)
  const rest = size % c
  const quotient = (size - rest) / c + (rest >= c - rest ? 1 : 0)
  return product < 0 ? -quotient : quotient
}

function divideRounded(dividend: bigint, divisor: bigint): number {
  const negative = dividend < 0n !== divisor < 0n
  const n = dividend < 0n ? -dividend : dividend
  const d = divisor < 0n ? -divisor : divisor
  const rounded = (n + d / 2n) / d
  return Number(negative ? -rounded : rounded)
}
