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

/** Seasons that the median is of: of days two months, after which most have a new level. */
const MEDIAN_SEASONS = 8
const LEAST_SEASONS = 3
/** Without a season the last values count, and only where half of them are the same. */
const MEDIAN_VALUES = 28
const LEAST_VALUES = 8

function medianOf(values: Float64Array): number {
  const sorted = values.sort()
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2
}

/** The value that half of the last ones have, if there is one. */
function usualValue(y: Float64Array): number | undefined {
  const last = y.slice(-MEDIAN_VALUES)
  if (last.length < LEAST_VALUES) return undefined
  const median = medianOf(last)
  let same = 0
  for (const value of last) if (value === median) same++
  return 2 * same >= last.length ? median : undefined
}

const usualForecast: Fitted = {
  forecast(y, out) {
    out.fill(usualValue(y) ?? y[y.length - 1] ?? 0)
  }
}

/**
 * The median of the same phase of the last seasons, again and again: neither an odd day nor two weeks of holidays move it. Without
 * a season, the value that is usual, if one is.
 */
export const fitMedian: Fit = (y, { periods }) => {
  const period = dominantPeriod(y, periods)
  if (period === undefined) return usualValue(y) === undefined ? undefined : usualForecast
  if (y.length < LEAST_SEASONS * period) return undefined
  return {
    forecast(y, out) {
      const phase = new Float64Array(MEDIAN_SEASONS)
      for (let k = 0; k < out.length; k++) {
        if (k >= period) {
          out[k] = out[k - period]!
          continue
        }
        let seasons = 0
        for (let i = y.length - period + k; i >= 0 && seasons < MEDIAN_SEASONS; i -= period) phase[seasons++] = y[i]!
        out[k] = seasons === 0 ? mean(y) : medianOf(phase.subarray(0, seasons))
      }
    }
  }
}
