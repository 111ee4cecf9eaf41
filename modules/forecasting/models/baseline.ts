import { dominantPeriod } from './seasons.js'
import { mean } from './series.js'
import type { Fit, Fitted } from './types.js'

const naiveForecast: Fitted = {
  forecast(y, out) {
    out.fill(y.length > 0 ? y[y.length - 1]! : 0)
  }
}

/** The last value again and again. */
export const fitNaive: Fit = () => naiveForecast

/** The mean of all values; its intervals are the empirical quantiles around it. */
export const fitMean: Fit = () => ({
  forecast(y, out) {
    out.fill(mean(y))
  }
})

/** The last season again and again, by the season whose repetition errs least. */
export const fitSeasonalNaive: Fit = (y, { periods }) => {
  const period = dominantPeriod(y, periods)
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
