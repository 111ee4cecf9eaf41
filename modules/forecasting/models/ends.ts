import type { Ends, Fitted } from './types.js'

/** The row of one end. */
export const rowOf = ({ out, horizon }: Ends, j: number): Float64Array => out.subarray(j * horizon, (j + 1) * horizon)

/** Forecasts from each of several ends, in one pass where the model has one. */
export function forecastEach(fitted: Fitted, y: Float64Array, ends: Ends): void {
  if (fitted.forecastEach) {
    fitted.forecastEach(y, ends)
    return
  }
  for (let j = 0; j < ends.lengths.length; j++) fitted.forecast(y.subarray(0, ends.lengths[j]!), rowOf(ends, j))
}

/** A model of which one pass over the data serves every end: `forecast` is the case of a single one. */
export function inOnePass(forecastFromEach: (y: Float64Array, ends: Ends) => void): Fitted {
  return {
    forecast(y, out) {
      const lengths = new Int32Array(1)
      lengths[0] = y.length
      forecastFromEach(y, { lengths, horizon: out.length, out })
    },
    forecastEach: forecastFromEach
  }
}
