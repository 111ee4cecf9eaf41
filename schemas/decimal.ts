/** The database holds quantities and money as integers of 10⁻⁶; the API speaks decimals. Exact for |x| ≤ 10⁹. */
export const MICROS = 1_000_000

export const toMicros = (decimal: number): number => Math.round(decimal * MICROS)
export const fromMicros = (micros: number): number => micros / MICROS

/** `a · b` of two micro values, rounded half away from zero to micros; bigint inside, since the product leaves 2⁵³. */
export const multiplyMicros = (a: number, b: number): number => divideRounded(BigInt(a) * BigInt(b), BigInt(MICROS))

/** `a · b / c` of three micro values without an intermediate rounding. */
export const proportionMicros = (a: number, b: number, c: number): number =>
  divideRounded(BigInt(a) * BigInt(b), BigInt(c))

const divideRounded = (dividend: bigint, divisor: bigint): number => {
  const negative = dividend < 0n !== divisor < 0n
  const n = dividend < 0n ? -dividend : dividend
  const d = divisor < 0n ? -divisor : divisor
  const rounded = (n + d / 2n) / d
  return Number(negative ? -rounded : rounded)
}
