import { type ForecastOutput, forecast, LEVELS } from './models/index.js'
import type { ServedPath } from './outcomes.js'
import { yieldToRequests } from './priority.js'
import { dayText } from './series.js'

yieldToRequests()

/** Base forecasts of a hierarchy's series, in a worker thread. */
export interface BaseSeries {
  start: number
  values: Float64Array
  missing: Uint8Array
  /** whether the forecast from the end of the data is wanted as well */
  ahead: boolean
}
export interface BaseBatch {
  series: BaseSeries[]
  horizon: number
  /** periods before the end from which forecasts are made again, to be judged by what followed */
  origins: number[]
}
export interface BaseForecast {
  /** per origin */
  past: Float64Array[]
  ahead: Omit<ServedPath, 'baseline'> | null
}

function run({ start, values, missing }: BaseSeries, back: number, horizon: number): ForecastOutput | undefined {
  const length = values.length - back
  try {
    return forecast({
      values: values.slice(0, length),
      missing: missing.slice(0, length),
      frequency: 'day',
      horizon,
      startDate: dayText(start)
    })
  } catch {
    // What cannot be forecast counts as nil, and the back-test shows what that costs.
    return undefined
  }
}

function pathOf(output: ForecastOutput): Omit<ServedPath, 'baseline'> {
  const at = (level: number) =>
    Array.from(output.quantiles[LEVELS.findIndex((each) => Math.abs(each - level) < 1e-9)] ?? output.mean)
  return {
    mean: Array.from(output.mean),
    lower80: at(0.1),
    upper80: at(0.9),
    lower95: at(0.025),
    upper95: at(0.975)
  }
}

export default function base({ series, horizon, origins }: BaseBatch): BaseForecast[] {
  return series.map((one) => {
    const ahead = one.ahead ? run(one, 0, horizon) : undefined
    return {
      past: origins.map((back) => run(one, back, horizon)?.mean ?? new Float64Array(horizon)),
      ahead: ahead === undefined ? null : pathOf(ahead)
    }
  })
}
