/** Quantile levels of every forecast. */
export const LEVELS = Float64Array.of(
  0.01,
  0.025,
  0.05,
  0.1,
  0.15,
  0.2,
  0.25,
  0.3,
  0.35,
  0.4,
  0.45,
  0.5,
  0.55,
  0.6,
  0.65,
  0.7,
  0.75,
  0.8,
  0.85,
  0.9,
  0.95,
  0.975,
  0.99
)

/** Positions in `LEVELS` of the ends of the 80, 90 and 95 % intervals, and of the upper end where nothing can lie below. */
export const INTERVALS = { 80: [3, 19, 17], 90: [2, 20, 19], 95: [1, 21, 20] } as const

/** Nominal coverages, per cent. */
export const COVERAGES = [80, 90, 95] as const
export type Coverage = (typeof COVERAGES)[number]

/** Lower and upper end per step. */
export type Intervals = Record<Coverage, { lower: Float64Array; upper: Float64Array }>

/** Standard normal quantiles at `LEVELS`. */
export const Z = Float64Array.of(
  -2.326347874,
  -1.959963985,
  -1.644853627,
  -1.281551566,
  -1.036433389,
  -0.841621234,
  -0.67448975,
  -0.524400513,
  -0.385320466,
  -0.253347103,
  -0.125661347,
  0,
  0.125661347,
  0.253347103,
  0.385320466,
  0.524400513,
  0.67448975,
  0.841621234,
  1.036433389,
  1.281551566,
  1.644853627,
  1.959963985,
  2.326347874
)

const GAPS = [1577, 701, 301, 132, 57, 23, 10, 4, 1]

/** Sorts `keys` in place, ascending, and `values` with them. Source: Shell (1959), gaps of Ciura (2001). */
export function sortTogether(keys: Float64Array, values: Float64Array): void {
  for (const gap of GAPS) {
    for (let i = gap; i < keys.length; i++) {
      const key = keys[i]!
      const value = values[i]!
      let at = i
      for (; at >= gap && keys[at - gap]! > key; at -= gap) {
        keys[at] = keys[at - gap]!
        values[at] = values[at - gap]!
      }
      keys[at] = key
      values[at] = value
    }
  }
}
