import { mean } from './series.js'
import type { Fit, Fitted } from './types.js'

const naiveForecast: Fitted = {
  forecast(y, out) {
    out.fill(y.length > 0 ? y[y.length - 1]! : 0)
  }
}

/** The last value again and again. */
export const fitNaive: Fit = () => naiveForecast

/** The last season again and again, by the longest season found. */
export const fitSeasonalNaive: Fit = (_y, { periods }) => {
  const period = periods[0]
  if (period === undefined) return undefined
  return {
    forecast(y, out) {
      const n = y.length
      for (let k = 0; k < out.length; k++) {
        const index = n - period + (k % period)
        out[k] = index >= 0 && index < n ? y[index]! : mean(y)
      }
    }
  }
}
