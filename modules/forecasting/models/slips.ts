/** Values that can only be slips: a quantity typed in the wrong unit, or without its decimal point. Pure. */

/** So many times what nine of ten uses stay below. Of a shop's 3,922 items two pass it, one of them by an order that was taken back. */
const TIMES = 200
/** Fewer uses do not tell what is usual. */
const USES_MIN = 10
/** More than this share of the values is no slip, but what demand has become. */
const SHARE_MAX = 0.01
const USUAL = 0.9

/**
 * Positions of values so far beyond all others that what they say of demand is not believed. They should be taken back, or marked as
 * exceptional, by a person; until then no forecast follows them.
 * @param missing 1 where a value is not known
 */
export function slipsIn(values: ArrayLike<number>, missing?: ArrayLike<number>): number[] {
  const uses: number[] = []
  for (let i = 0; i < values.length; i++) if (missing?.[i] !== 1 && values[i] !== 0) uses.push(Math.abs(values[i]!))
  if (uses.length < USES_MIN) return []
  uses.sort((a, b) => a - b)
  const bound = TIMES * uses[Math.floor(USUAL * (uses.length - 1))]!
  const slips: number[] = []
  for (let i = 0; i < values.length; i++) if (missing?.[i] !== 1 && Math.abs(values[i]!) > bound) slips.push(i)
  return slips.length <= Math.max(1, SHARE_MAX * values.length) ? slips : []
}

/** Flags of what is missing, `positions` among it. */
export function alsoMissing(length: number, missing: Uint8Array | undefined, positions: readonly number[]): Uint8Array {
  const flags = missing?.slice() ?? new Uint8Array(length)
  for (const at of positions) flags[at] = 1
  return flags
}
