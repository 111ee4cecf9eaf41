import fc from 'fast-check'
import t from 'tap'
import type { Dataset } from '../bench/forecast-data.js'
import { assertNoPeeking, evaluate, type Forecaster } from '../bench/forecast-scores.js'
import { naive2, product } from '../bench/forecast-yardsticks.js'
import { closedPhases } from '../modules/forecasting/models/closed.js'
import { blend, tabulate, weigh } from '../modules/forecasting/models/combine.js'
import { forecastEach, rowOf } from '../modules/forecasting/models/ends.js'
import {
  type ForecastErrorCode,
  type ForecastInput,
  ForecastInputError,
  type ForecastOutput,
  forecast,
  LEVELS,
  loadModels,
  MODEL_NAMES,
  type ModelName
} from '../modules/forecasting/models/index.js'
import { learnErrors, spread, weightedShape } from '../modules/forecasting/models/intervals.js'
import { POOL } from '../modules/forecasting/models/pool.js'
import { decompose } from '../modules/forecasting/models/seasons.js'
import { fillMissing, isSeasonal } from '../modules/forecasting/models/series.js'
import type { FitContext, Fitted } from '../modules/forecasting/models/types.js'
import { hampel } from '../modules/forecasting/models/wrap.js'
import { uniform } from './noise.js'

const SHORT = Float64Array.of(17, 21, 19, 25, 23, 28, 24, 30, 27, 33, 29, 35, 31, 36, 34, 40, 37, 41, 38, 45)

t.test('what is called between fits changes nothing', async (t) => {
  const asked: ForecastInput = { values: SHORT, frequency: 'week', horizon: 4 }
  let calls = 0
  t.same(forecast({ ...asked, beforeFit: () => void calls++ }), forecast(asked))
  t.ok(calls > 20, 'often enough for others to get a processor')
})

t.test('series tools', async (t) => {
  t.same(Array.from(fillMissing(Float64Array.of(4, 0, 6), Uint8Array.of(0, 1, 0), 1)), [4, 5, 6])
  const weekly = Float64Array.from({ length: 70 }, (_, i) => (i % 7 === 5 ? 40 : 10) + ((i * 31) % 5))
  t.ok(isSeasonal(weekly, 7))
  t.notOk(isSeasonal(Float64Array.from({ length: 70 }, uniform(1)), 7))
  const step = uniform(5)
  let level = 0
  t.notOk(
    isSeasonal(
      Float64Array.from({ length: 500 }, () => (level += step())),
      7
    ),
    'a random walk has no season'
  )
  const [figures] = decompose(weekly, [7], 1, false)
  t.ok(figures![5]! > 20 && Math.abs(figures!.reduce((a, b) => a + b, 0)) < 1e-9, 'figures sum to zero')
  const spiked = Float64Array.from({ length: 40 }, (_, i) => 10 + (i % 3))
  spiked[20] = 900
  const held = hampel(spiked)
  t.ok(held(40)[20]! < 20, 'a lone extreme is held')
  t.same(held(40)[3], spiked[3])
  t.same(held(18), hampel(spiked.slice(0, 18))(18), 'what comes later changes nothing')
  const weights = new Float64Array(2)
  const plan = { origins: Int32Array.of(2), refits: Int32Array.of(0), horizon: 2 }
  const members = [Float64Array.of(1, 1), Float64Array.of(4, 4)]
  weigh(tabulate(members, Float64Array.of(0, 0, 2, 2), new Uint8Array(4).fill(1), plan, false), 4, weights)
  t.ok(weights[0]! > 0.5 && Math.abs(weights[0]! + weights[1]! - 1) < 1e-12, 'the smaller error weighs more')
  t.equal(blend(Float64Array.of(0.25, 0.5, 0.25), Float64Array.of(9, 1, 2), 0.5, new Int32Array(3)), (3.25 + 1) / 2)
})

/** What must hold for every answer, whatever the input. */
function problemsOf(input: ForecastInput, output: ForecastOutput): string[] {
  const problems: string[] = []
  const { mean, quantiles, cumulativeQuantiles, levels } = output
  if (mean.length !== input.horizon) problems.push('length')
  if (levels.length !== quantiles.length || levels.length !== cumulativeQuantiles.length) problems.push('levels')
  if (!mean.every(Number.isFinite)) problems.push('mean not finite')
  if (input.nonNegative !== false && mean.some((value) => value < 0)) problems.push('negative')
  for (const rows of [quantiles, cumulativeQuantiles]) {
    rows.forEach((row, l) => {
      if (row.length !== input.horizon || !row.every(Number.isFinite)) problems.push('quantile not finite')
      if (l > 0 && row.some((value, k) => value < rows[l - 1]![k]!)) problems.push('crossing')
    })
  }
  const { 80: inner, 95: outer } = output.intervals
  for (let k = 0; k < input.horizon; k++) {
    const ends = [outer.lower[k]!, inner.lower[k]!, inner.upper[k]!, outer.upper[k]!]
    if (ends.some((end, i) => !Number.isFinite(end) || (i > 0 && end < ends[i - 1]!))) problems.push('intervals')
  }
  const total = output.members.reduce((sum, { weight }) => sum + weight, 0)
  if (Math.abs(total - 1) > 1e-9) problems.push('weights')
  const { servesBaseline, accuracy, baseline, reason } = output
  if (reason === 'combination-beats-baseline' && accuracy.mae >= baseline.mae && accuracy.rmse >= baseline.rmse) {
    problems.push('serves what lost')
  }
  if (servesBaseline && output.model !== baseline.model) problems.push('baseline named wrongly')
  for (const value of [accuracy.mae, accuracy.rmse, accuracy.mase ?? 0, accuracy.pinball ?? 0]) {
    if (!Number.isFinite(value)) problems.push('accuracy not finite')
  }
  return problems
}

t.test('any series: never NaN, never crossing, the same answer twice', async (t) => {
  const value = fc.oneof(
    { weight: 5, arbitrary: fc.integer({ min: 0, max: 50 }) },
    { weight: 3, arbitrary: fc.constant(0) },
    fc.double({ min: -1e6, max: 1e6, noNaN: true }),
    fc.constantFrom(1e12, 1e-9, -3)
  )
  const series = fc.array(value, { maxLength: 90 })
  const frequency = fc.constantFrom<ForecastInput['frequency']>('day', 'week', 'month', 4, 24)
  const details = fc.check(
    fc.property(
      series,
      frequency,
      fc.integer({ min: 1, max: 15 }),
      fc.boolean(),
      fc.nat(),
      (values, every, horizon, clamp, seed) => {
        const missing = Uint8Array.from(values, (_, i) => ((i * 7919 + seed) % 11 === 0 ? 1 : 0))
        const input: ForecastInput = {
          values: Float64Array.from(values),
          frequency: every,
          horizon,
          nonNegative: clamp,
          missing
        }
        const output = forecast(input)
        const problems = problemsOf(input, output)
        if (problems.length > 0) throw new Error(problems.join())
        if (JSON.stringify(forecast(input)) !== JSON.stringify(output)) throw new Error('not the same twice')
      }
    ),
    { numRuns: 60, seed: 11 }
  )
  t.equal(details.numRuns, 60)
  t.notOk(details.failed, fc.defaultReportMessage(details) ?? 'every random series is answered')
})

t.test('hard inputs are answered', async (t) => {
  const day = (length: number, f: (i: number) => number) => Float64Array.from({ length }, (_, i) => f(i))
  const cases: Record<string, Float64Array> = {
    empty: day(0, () => 0),
    zeros: day(60, () => 0),
    constant: day(60, () => 4.5),
    one: day(1, () => 3),
    two: day(2, (i) => i),
    three: day(3, (i) => 2 * i),
    negative: day(60, (i) => -5 + (i % 3)),
    huge: day(60, (i) => 1e15 * (1 + (i % 5))),
    step: day(80, (i) => (i < 40 ? 1 : 1e6)),
    'single sale': day(60, (i) => (i === 30 ? 7 : 0)),
    exponential: day(60, (i) => 1.5 ** i),
    'twenty years of days': day(7300, (i) => 50 + 10 * Math.sin((2 * Math.PI * i) / 7) + ((i * 7919) % 13))
  }
  for (const [name, values] of Object.entries(cases)) {
    const input: ForecastInput = { values, frequency: 'day', horizon: 14 }
    t.same(problemsOf(input, forecast(input)), [], name)
  }
  const unknown: ForecastInput = {
    values: day(30, () => Number.NaN),
    missing: new Uint8Array(30).fill(1),
    frequency: 'day',
    horizon: 3
  }
  t.equal(forecast(unknown).reason, 'all-missing')
  t.equal(forecast({ values: cases.zeros!, frequency: 'week', horizon: 4 }).reason, 'all-zero')
  const huge = forecast({ values: cases.exponential!, frequency: 'day', horizon: 14 })
  t.ok(Math.max(...huge.mean) < 1e3 * 1.5 ** 60, 'no explosion')
})

t.test('censored periods are not zero demand', async (t) => {
  const full = Float64Array.from({ length: 120 }, (_, i) => 20 + 5 * Math.sin((2 * Math.PI * i) / 7) + ((i * 31) % 4))
  const holes = full.slice()
  const missing = new Uint8Array(120)
  for (let i = 60; i < 75; i++) {
    holes[i] = 0
    missing[i] = 1
  }
  const ask = (values: Float64Array, flags?: Uint8Array) => {
    const output = forecast({ values, frequency: 'day', horizon: 7, ...(flags ? { missing: flags } : {}) })
    return output.mean.reduce((a, b) => a + b, 0)
  }
  t.ok(Math.abs(ask(holes, missing) / ask(full) - 1) < 0.05, 'within 5 % of the forecast without stock-outs')
})

t.test('weekdays on which nothing is ever sold are closed', async (t) => {
  const noise = uniform(3)
  const shop = (weeks: number, open: (i: number) => boolean) =>
    Float64Array.from({ length: 7 * weeks }, (_, i) => (open(i) ? Math.round(40 + 10 * (i % 7) + 20 * noise()) : 0))
  const values = shop(30, (i) => i % 7 !== 2 && i % 7 !== 6)
  const input: ForecastInput = { values, frequency: 'day', horizon: 14 }
  const output = forecast(input)
  t.same(problemsOf(input, output), [])
  const median = output.quantiles[output.levels.indexOf(0.5)]!
  const sums = output.cumulativeQuantiles[output.levels.indexOf(0.9)]!
  for (let k = 0; k < 14; k++) {
    const closed = k % 7 === 2 || k % 7 === 6
    t.equal(output.mean[k] === 0 && output.intervals[95].upper[k] === 0, closed, `day ${k}`)
    if (closed) t.equal(sums[k], sums[k - 1], 'sums stand still')
    else t.ok(median[k]! > 25 && output.mean[k]! > 25, 'the other days are not drawn down')
  }
  t.same(output.seasonalPeriods, [7], 'the week is a season')
  const own = forecast({ ...input, values: values.filter((v) => v > 0), frequency: 5, horizon: 10 })
  t.same(
    Array.from(output.mean).filter((v) => v > 0),
    Array.from(own.mean),
    'the series of the open days'
  )
  t.ok(Math.abs(output.accuracy.mae - (5 / 7) * own.accuracy.mae) < 1e-9, 'errors are of all days')
  t.equal(output.accuracy.wape, own.accuracy.wape)
  t.same(Array.from(forecast({ ...input, values: values.slice(0, -5), horizon: 1 }).mean), [0], 'a closed day alone')
  const days = Float64Array.from({ length: values.length + 14 }, (_, i) => (i % 31 === 4 ? 1 : 0))
  const known = { values: days, event: true }
  const [ahead] = forecast({ ...input, factors: [known] }).mean
  t.ok(ahead! > 25, 'factors keep to the days they fall on')
  const alone = {
    ...input,
    values: values.slice(0, -5),
    horizon: 1,
    factors: [{ ...known, values: days.slice(0, -18) }]
  }
  t.same(Array.from(forecast(alone).mean), [0])
  const [named] = forecast({ ...input, models: ['ses'] }).mean
  t.ok(
    named! > 0 && forecast({ ...input, models: ['ses'] }).mean[2] !== 0,
    'a model named is given the series as it is'
  )
})

t.test('what is idle by luck, seldom or no more is not closed', async (t) => {
  const input = (values: Float64Array, missing?: Uint8Array): ForecastInput => ({
    values,
    frequency: 'day',
    horizon: 7,
    ...(missing ? { missing } : {})
  })
  const days = (f: (i: number) => number) => Float64Array.from({ length: 140 }, (_, i) => f(i))
  const saturdays = days((i) => (i % 7 === 3 ? 0 : 5 + (i % 4)))
  t.same(closedPhases(input(saturdays), 7)?.indexOf(true), 3)
  t.equal(closedPhases(input(saturdays.map((v, i) => (i === 136 ? 1 : v))), 7), undefined, 'open again')
  t.equal(closedPhases(input(saturdays.slice(0, 55)), 7), undefined, 'eight weeks are not known')
  t.same(closedPhases(input(saturdays.map((v, i) => (i === 52 ? 1 : v))), 7)?.indexOf(true), 3, 'closed since')
  t.equal(closedPhases(input(days((i) => (i % 17 === 0 ? 3 : 0))), 7), undefined, 'seldom asked for')
  t.equal(closedPhases(input(days(() => 0)), 7), undefined, 'never asked for')
  const unknown = Uint8Array.from({ length: 140 }, (_, i) => (i % 7 === 3 && i > 40 ? 1 : 0))
  t.equal(closedPhases(input(saturdays, unknown), 7), undefined, 'without stock is not closed')
})

t.test('intervals of short and of jumping series', async (t) => {
  const origins = Int32Array.from({ length: 10 }, (_, o) => 10 + o)
  const plan = { origins, refits: Int32Array.of(0), horizon: 1 }
  const errors = [1, -2, 3, -1, 9, -3, 2, -4, 1, -2]
  const y = Float64Array.from({ length: 20 }, (_, i) => (i < 10 ? 100 : 100 + errors[i - 10]!))
  const rolled = new Float64Array(10).fill(100)
  const learnt = learnErrors(rolled, y, new Uint8Array(20).fill(1), plan, false)
  const ends = (centre: number, from: number, to: number) => {
    const rows = spread(Float64Array.of(centre), learnt, Number.NEGATIVE_INFINITY, 0)
    return rows[LEVELS.indexOf(to)]![0]! - rows[LEVELS.indexOf(from)]![0]!
  }
  const shape = weightedShape(Float64Array.from(errors).sort(), new Float64Array(10).fill(1), 10)
  const at = (level: number) => shape[LEVELS.indexOf(level)]!
  t.ok(Math.abs(at(0.99) - (3 + 3 * Math.log(20))) < 1e-9, 'beyond the largest of ten errors, 9, the tail goes on')
  t.ok(Math.abs(at(0.01) - (-3 - 0.5 * Math.log(20))) < 1e-9, 'below the least as well, by its own fall')
  t.equal(at(0.5), 0, 'the middle is read off the errors')
  const many = weightedShape(Float64Array.from(errors).sort(), new Float64Array(10).fill(1), 1000)
  t.equal(many[LEVELS.indexOf(0.99)], 9, 'errors worth a thousand have shown their tail')
  const ratio = ends(1600, 0.05, 0.95) / ends(100, 0.05, 0.95)
  t.ok(Math.abs(ratio - 2) < 1e-9, `sixteen times the level, twice the width: ${ratio}`)
  const equal = learnErrors(rolled, new Float64Array(20).fill(100), new Uint8Array(20).fill(1), plan, false)
  t.same(
    Array.from(spread(Float64Array.of(100), equal, 0, 0), (row) => Math.round(row[0]!)),
    Array(23).fill(100)
  )
})

t.test('errors to one side are believed as far as they were seen apart', async (t) => {
  const medianAfter = (windows: number, horizon: number) => {
    const origins = Int32Array.from({ length: windows * horizon }, (_, o) => 10 + o)
    const plan = { origins, refits: Int32Array.of(0), horizon }
    const n = 10 + origins.length + horizon
    const rolled = new Float64Array(origins.length * horizon).fill(100)
    const learnt = learnErrors(rolled, new Float64Array(n).fill(110), new Uint8Array(n).fill(1), plan, false)
    const rows = spread(new Float64Array(horizon).fill(100), learnt, 0, n)
    return rows[LEVELS.indexOf(0.5)]![0]! - 100
  }
  for (const horizon of [1, 4]) {
    const shifts = [1, 2, 4, 8].map((windows) => medianAfter(windows, horizon))
    for (const [i, windows] of [1, 2, 4, 8].entries()) {
      // errors count half after three horizons: so many of equal weight say as much (Kish)
      const weights = Array.from({ length: windows * horizon }, (_, o) => 2 ** (-o / (3 * horizon)))
      const sum = (power: number) => weights.reduce((total, weight) => total + weight ** power, 0)
      const worth = sum(1) ** 2 / sum(2) / horizon
      t.ok(Math.abs(shifts[i]! - (10 * worth) / (worth + 2)) < 1e-9, `${windows} of ${horizon}: ${shifts[i]} of 10`)
    }
  }
})

t.test('every model by name', async (t) => {
  await t.rejects(async () => forecast({ values: SHORT, frequency: 'day', horizon: 2, models: ['prophet'] }), {
    code: 'FORECAST_MODEL_NOT_LOADED'
  })
  await loadModels(MODEL_NAMES)
  const values = Float64Array.from(
    { length: 84 },
    (_, i) => 30 + 0.2 * i + 8 * Math.sin((2 * Math.PI * i) / 7) + ((i * 13) % 5)
  )
  for (const name of MODEL_NAMES) {
    const input: ForecastInput = { values, frequency: 'day', horizon: 7, models: [name], startDate: '2025-01-06' }
    const output = forecast(input)
    t.same(problemsOf(input, output), [], name)
    t.equal(output.model, name)
    t.ok(
      output.mean.every((value) => value > 5 && value < 120),
      `${name}: ${output.mean}`
    )
  }
})

t.test('unusable input is refused with a code', async (t) => {
  const refused = (change: Partial<ForecastInput>, code: ForecastErrorCode) => {
    try {
      forecast({ values: SHORT, frequency: 'day', horizon: 3, ...change })
      t.fail(`${code} expected`)
    } catch (error) {
      t.ok(error instanceof ForecastInputError && error instanceof RangeError && error.code === code, code)
    }
  }
  refused({ horizon: 0 }, 'FORECAST_HORIZON_INVALID')
  refused({ horizon: 2.5 }, 'FORECAST_HORIZON_INVALID')
  refused({ values: Float64Array.of(1, Number.NaN) }, 'FORECAST_VALUE_NOT_FINITE')
  refused({ values: Float64Array.of(1, Number.POSITIVE_INFINITY) }, 'FORECAST_VALUE_NOT_FINITE')
  refused({ frequency: 0 }, 'FORECAST_FREQUENCY_INVALID')
  refused({ missing: new Uint8Array(2) }, 'FORECAST_MISSING_LENGTH')
  const unknown: string = 'crystal-ball'
  const names = [unknown].filter((name): name is ModelName => name !== '')
  refused({ models: names }, 'FORECAST_MODEL_UNKNOWN')
})

t.test('models and harness see the past only', async (t) => {
  const values = Float64Array.from(
    { length: 72 },
    (_, i) => 40 + 10 * Math.sin((2 * Math.PI * i) / 12) + ((i * 7919) % 7)
  )
  const set: Dataset = {
    name: 'made up',
    frequency: 'month',
    horizon: 12,
    scalePeriod: 12,
    cases: [{ id: 'a', train: values.slice(0, 60), test: values.slice(60) }]
  }
  const peek: Forecaster = () => ({ mean: set.cases[0]!.test.slice() })
  t.throws(() => assertNoPeeking(set, peek), /peeks at the future/, 'a planted future-peeking model is caught')
  t.throws(() => evaluate(set, 'peek', peek), /peeks at the future/)
  const viaBuffer: Forecaster = (train, { horizon }) => {
    const whole = new Float64Array(train.buffer)
    return { mean: Array.from({ length: horizon }, (_, k) => whole[train.length + k] ?? 0) }
  }
  t.ok(evaluate(set, 'buffer', viaBuffer).wape === 100, 'the training copy holds nothing behind its end')
  const scores = evaluate(set, 'product', product())
  t.ok(scores.mase < evaluate(set, 'naive2', naive2).mase, `MASE ${scores.mase}`)
  // inside the engine too: no model is ever fitted on more than the values before its origin
  const original = POOL.ses!
  const lengths = new Set<number>()
  POOL.ses = (y, context) => {
    lengths.add(y.buffer.byteLength / 8 - y.length)
    return original(y, context)
  }
  forecast({ values, frequency: 'month', horizon: 6, models: ['ses'] })
  POOL.ses = original
  t.same([...lengths], [0])
})

/** Largest relative gap between the forecasts of several ends in one pass and those of what was known at each end alone. */
function gapOfEnds(fitted: Fitted, y: Float64Array, lengths: Int32Array, horizon: number): number {
  const ends = { lengths, horizon, out: new Float64Array(lengths.length * horizon) }
  forecastEach(fitted, y, ends)
  const alone = new Float64Array(horizon)
  const gaps = Array.from(lengths, (length, j) => {
    fitted.forecast(y.slice(0, length), alone)
    return Math.max(...rowOf(ends, j).map((value, k) => Math.abs(value - alone[k]!) / (1 + Math.abs(alone[k]!))))
  })
  return Math.max(...gaps)
}

t.test('one pass over several ends forecasts from each as if no more were known', async (t) => {
  const noise = uniform(5)
  const dense = Float64Array.from({ length: 90 }, (_, i) => 60 + 12 * Math.sin((Math.PI * i) / 6) + 20 * noise())
  dense[66] = 400
  const context: FitContext = { periods: [12], candidates: [12], horizon: 7, offset: 0, frequency: 'month' }
  const lengths = Int32Array.of(61, 62, 67, 70, 71, 88)
  const names = MODEL_NAMES.filter((name) => !['arima', 'prophet', 'combination'].includes(name))
  for (const y of [dense, dense.map((value) => Math.max(0, Math.round(value - 60)))]) {
    for (const name of names) {
      const fitted = POOL[name]!(y.slice(0, 61), context)
      const gap = fitted ? gapOfEnds(fitted, y, lengths, 7) : 0
      t.ok(fitted && gap < 1e-9, `${name}: ${gap}`)
    }
  }
  const peeking: Fitted = {
    forecast: (y, out) => out.fill(y[y.length - 1]!),
    forecastEach: (y, { out }) => out.fill(y[y.length - 1]!)
  }
  t.ok(gapOfEnds(peeking, dense, lengths, 7) > 0.01, 'a planted model that looks beyond its end is caught')
})

t.test('Prophet by name, by every calendar', async (t) => {
  await loadModels(['prophet'])
  for (const frequency of ['day', 'week', 'month', 24, 4] as const) {
    const values = Float64Array.from({ length: 40 }, (_, i) => 50 + i + (i % 4))
    const { model, mean } = forecast({ values, frequency, horizon: 3, models: ['prophet'] })
    t.equal(model, 'prophet', `${frequency}`)
    // A line goes on: 90, 91, 92 and what the season adds.
    t.ok(
      mean.every((value) => value > 80 && value < 105),
      mean.join()
    )
  }
  const late = Float64Array.from({ length: 12 }, (_, i) => (i < 10 ? 7 : 8 + i))
  const { mean } = forecast({ values: late, frequency: 'day', horizon: 2, models: ['prophet'] })
  t.ok(mean.every(Number.isFinite), 'a start that never varies is gone on with')
})
