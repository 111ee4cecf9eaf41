import type { Frequency } from '../../schemas/forecasting.js'
import type { Known } from './calendar.js'
import { giveWay } from './give-way.js'
import { closeDays, columnOf, type Span } from './known.js'
import { type ForecastOutput, forecast, LEVELS } from './models/index.js'
import type { ServedPath } from './outcomes.js'
import { dayText, periodDays } from './series.js'

/** Base forecasts of a hierarchy's series, in a worker thread. */
export interface BaseSeries {
  start: number
  values: Float64Array
  missing: Uint8Array
  /** whether the forecast from the end of the data is wanted as well */
  ahead: boolean
  known?: Known
}
export interface BaseBatch {
  series: BaseSeries[]
  frequency: Frequency
  horizon: number
  /** periods before the end from which forecasts are made again, to be judged by what followed */
  origins: number[]
}
export interface BaseForecast {
  /** per origin */
  past: Float64Array[]
  ahead: Omit<ServedPath, 'baseline'> | null
}

function run(one: BaseSeries, back: number, { frequency, horizon }: BaseBatch): ForecastOutput | undefined {
  const { start, values, missing, known } = one
  const length = values.length - back
  const span: Span = { start, periods: length, horizon, stepDays: periodDays(frequency) }
  const columns = (known?.factors ?? []).map((factor) => columnOf(factor, span))
  try {
    const output = forecast({
      values: values.slice(0, length),
      missing: missing.slice(0, length),
      frequency,
      horizon,
      startDate: dayText(start),
      beforeFit: giveWay,
      ...(columns.length === 0 ? {} : { factors: columns })
    })
    closeDays(output, known?.closed ?? [], span)
    return output
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

export default function base(batch: BaseBatch): BaseForecast[] {
  return batch.series.map((one) => {
    const ahead = one.ahead ? run(one, 0, batch) : undefined
    return {
      past: batch.origins.map((back) => run(one, back, batch)?.mean ?? new Float64Array(batch.horizon)),
      ahead: ahead === undefined ? null : pathOf(ahead)
    }
  })
}
