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

/** The one value that at least half of the last ones have, if there is one. That nothing is used is no usual value: it is a pause. */
function usualValue(y: Float64Array): number | undefined {
  const last = y.slice(-MEDIAN_VALUES).sort()
  if (last.length < LEAST_VALUES) return undefined
  // Whatever half of them have is one of the two in the middle.
  const middle = new Set([last[(last.length - 1) >> 1]!, last[last.length >> 1]!])
  const usual = [...middle].filter((value) => 2 * last.filter((one) => one === value).length >= last.length)
  return usual.length === 1 && usual[0] !== 0 ? usual[0] : undefined
}

const usualForecast: Fitted = {
  forecast(y, out) {
    out.fill(usualValue(y) ?? y[y.length - 1] ?? 0)
  }
}

/**
 * The median of the same phase of the last seasons, again and again: neither an odd day nor two weeks of holidays move it. Without
 * a season, the value that is usual, if one is. From an early origin too few are seen to tell; there it is the last value, as naive.
 */
export const fitMedian: Fit = (y, { periods, known = y.length }) => {
  if (periods.length === 0) {
    if (y.length < LEAST_VALUES && known >= LEAST_VALUES) return usualForecast
    return usualValue(y) === undefined ? undefined : usualForecast
  }
  const period = dominantPeriod(
    y,
    periods.filter((each) => y.length >= LEAST_SEASONS * each)
  )
  if (period === undefined) return undefined
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
