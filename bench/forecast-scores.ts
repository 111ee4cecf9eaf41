import { COVERAGES, type Intervals, LEVELS } from '../modules/forecasting/models/index.js'
import type { Case, Dataset } from './forecast-data.js'

/** A forecast to be scored; quantiles per level of `LEVELS` where the method gives them. */
interface Forecasted {
  mean: ArrayLike<number>
  quantiles?: readonly ArrayLike<number>[]
  /** of the running sums */
  cumulativeQuantiles?: readonly ArrayLike<number>[]
  intervals?: Intervals
  servesBaseline?: boolean
}

/** Sees a copy of the training values and the set's frequency and horizon; the actuals stay with the harness. */
export type Forecaster = (
  train: Float64Array,
  set: Pick<Dataset, 'frequency' | 'horizon'>,
  startDate?: string
) => Forecasted

export interface Scores {
  mase: number
  /** root mean squared error over that of the naive forecast in the training part: unlike MASE it rewards no zeros */
  rmsse: number
  /** sum (forecast − actual) / sum |actual|, and zero actuals, per cent */
  bias: number
  zeros: number
  smape: number
  wape: number
  sumWape: number
  mape: number
  pinball: number
  /** per cent of the actuals inside the intervals; NaN where the method gives none */
  coverage: Record<80 | 90 | 95, number>
  /** the same of quantiles that split the chance of a value that many periods share */
  randomised: Record<80 | 90 | 95, number>
  /** the latter for the sum of the whole horizon */
  ofSums: Record<80 | 90 | 95, number>
  baselines: number
  /** of processor, a series */
  milliseconds: number
}

const ask = (forecaster: Forecaster, { frequency, horizon }: Dataset, { train, startDate }: Case): Forecasted =>
  forecaster(train.slice(), { frequency, horizon }, startDate)

/**
 * Refuses a forecaster that knows more than it is given: its forecasts must not change when the held-out values do.
 * @throws Error naming the series
 */
export function assertNoPeeking(set: Dataset, forecaster: Forecaster): void {
  const step = Math.max(1, Math.floor(set.cases.length / 3))
  for (let i = 0; i < set.cases.length; i += step) {
    const one = set.cases[i]!
    const honest = Array.from(ask(forecaster, set, one).mean)
    const actuals = one.test.slice()
    for (let k = 0; k < actuals.length; k++) one.test[k] = 7 * actuals[k]! + 1_000 + k
    const again = Array.from(ask(forecaster, set, one).mean)
    one.test.set(actuals)
    if (honest.some((value, k) => value !== again[k])) {
      throw new Error(`${set.name}, ${one.id}: the forecast changes with the held-out values; it peeks at the future`)
    }
  }
}

/** Mean |y[t] − y[t − period]|, or of another power. */
export function naiveError(y: Float64Array, period: number, power = 1): number {
  let sum = 0
  for (let i = period; i < y.length; i++) sum += Math.abs(y[i]! - y[i - period]!) ** power
  return y.length > period ? sum / (y.length - period) : 0
}

const PINBALL_LEVELS = [0.5, 0.75, 0.9, 0.95, 0.99].map((level) => LEVELS.indexOf(level))

/** Pinball loss over the levels .5 .75 .9 .95 .99. */
function upperPinball(actual: number, k: number, quantiles: readonly ArrayLike<number>[]): number {
  let loss = 0
  for (const l of PINBALL_LEVELS) {
    const gap = actual - quantiles[l]![k]!
    loss += (gap >= 0 ? LEVELS[l]! * gap : (LEVELS[l]! - 1) * gap) / PINBALL_LEVELS.length
  }
  return loss
}

/**
 * Chance that a central interval covers the actual when ties are broken by lot: the share of [P(Y < y), P(Y ≤ y)] inside it.
 * Of counts, intervals with whole ends cover too much whatever the forecast; this figure does not. Read off the quantile
 * levels, so exact to a level. Source: Czado, Gneiting & Held (2009), the randomised probability integral transform.
 */
function randomisedInside(
  actual: number,
  k: number,
  quantiles: readonly ArrayLike<number>[],
  coverage: number
): number {
  let below = 0
  let upTo = 0
  for (const row of quantiles) {
    if (row[k]! < actual) below++
    if (row[k]! <= actual) upTo++
  }
  const chance = (count: number): number => ((LEVELS[count - 1] ?? 0) + (LEVELS[count] ?? 1)) / 2
  const tail = (100 - coverage) / 200
  const from = chance(below)
  const to = chance(upTo)
  if (from === to) return from >= tail && to <= 1 - tail ? 1 : 0
  return Math.max(0, Math.min(to, 1 - tail) - Math.max(from, tail)) / (to - from)
}

export function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`)
}

/** Scores a forecaster on a set, after checking that it does not peek. */
export function evaluate(set: Dataset, label: string, forecaster: Forecaster): Scores {
  assertNoPeeking(set, forecaster)
  const total = { mase: 0, scaled: 0, smape: 0, error: 0, actual: 0, sum: 0, mape: 0, mapes: 0, pinball: 0, points: 0 }
  const more = { rmsse: 0, gap: 0, zeros: 0, steps: 0 }
  const inside = { 80: 0, 90: 0, 95: 0 }
  const fairly = { 80: 0, 90: 0, 95: 0 }
  const sums = { 80: 0, 90: 0, 95: 0 }
  let baselines = 0
  let milliseconds = 0
  set.cases.forEach((one, i) => {
    if (i % 10 === 0) progress(`${set.name}, ${label}: ${i} of ${set.cases.length}`)
    const started = process.cpuUsage()
    const { mean, quantiles, cumulativeQuantiles, intervals, servesBaseline } = ask(forecaster, set, one)
    const { user, system } = process.cpuUsage(started)
    milliseconds += (user + system) / 1000
    if (servesBaseline) baselines++
    const scale = naiveError(one.train, set.scalePeriod)
    let error = 0
    let gap = 0
    let squares = 0
    for (let k = 0; k < one.test.length; k++) {
      const actual = one.test[k]!
      const point = mean[k]!
      error += Math.abs(point - actual)
      squares += (point - actual) ** 2 / one.test.length
      gap += point - actual
      more.steps++
      if (actual === 0) more.zeros++
      total.actual += Math.abs(actual)
      total.smape +=
        point || actual ? (200 * Math.abs(point - actual)) / (Math.abs(point) + Math.abs(actual)) / one.test.length : 0
      if (actual !== 0) {
        total.mape += 100 * Math.abs((point - actual) / actual)
        total.mapes++
      }
      if (!quantiles || !intervals) continue
      total.points++
      if (scale > 0) total.pinball += upperPinball(actual, k, quantiles) / scale / one.test.length
      for (const coverage of COVERAGES) {
        const { lower, upper } = intervals[coverage]
        if (actual >= lower[k]! && actual <= upper[k]!) inside[coverage]++
        fairly[coverage] += randomisedInside(actual, k, quantiles, coverage)
      }
    }
    if (cumulativeQuantiles) {
      const needed = one.test.reduce((a, b) => a + b, 0)
      for (const coverage of COVERAGES) {
        sums[coverage] += randomisedInside(needed, one.test.length - 1, cumulativeQuantiles, coverage)
      }
    }
    total.error += error
    total.sum += Math.abs(gap)
    more.gap += gap
    if (scale > 0) {
      more.rmsse += Math.sqrt(squares / naiveError(one.train, set.scalePeriod, 2))
      total.mase += error / one.test.length / scale
      total.scaled++
    }
  })
  progress('')
  const percent = (count: number): number => (100 * count) / total.points
  const ofCases = (count: number): number => (100 * count) / set.cases.length
  return {
    mase: total.mase / total.scaled,
    rmsse: more.rmsse / total.scaled,
    bias: (100 * more.gap) / total.actual,
    zeros: (100 * more.zeros) / more.steps,
    smape: total.smape / set.cases.length,
    wape: (100 * total.error) / total.actual,
    sumWape: (100 * total.sum) / total.actual,
    mape: total.mape / total.mapes,
    pinball: total.pinball / total.scaled,
    coverage: { 80: percent(inside[80]), 90: percent(inside[90]), 95: percent(inside[95]) },
    randomised: { 80: percent(fairly[80]), 90: percent(fairly[90]), 95: percent(fairly[95]) },
    ofSums: { 80: ofCases(sums[80]), 90: ofCases(sums[90]), 95: ofCases(sums[95]) },
    baselines,
    milliseconds: milliseconds / set.cases.length
  }
}
