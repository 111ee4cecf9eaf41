import fc from 'fast-check'
import t from 'tap'
import { assertNoPeeking, evaluate, type Forecaster, naive2, product } from '../bench/forecast.js'
import type { Dataset } from '../bench/forecast-data.js'
import { autoregression } from '../modules/forecasting/models/ar.js'
import { blend, tabulate, weigh } from '../modules/forecasting/models/combine.js'
import { fitCounts, mixtureIntervals, mixtureMean, mixtureQuantiles } from '../modules/forecasting/models/counts.js'
import { holtWintersPass } from '../modules/forecasting/models/holt-winters.js'
import {
  contest,
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
import { POOL } from '../modules/forecasting/models/pool.js'
import { decompose } from '../modules/forecasting/models/seasons.js'
import {
  autocorrelations,
  classifyDemand,
  fillMissing,
  isSeasonal,
  movingTrend
} from '../modules/forecasting/models/series.js'
import { bestSmoothing, bestStart, holtForecast, smooth } from '../modules/forecasting/models/smoothing.js'
import { crostonRate, tsbRate } from '../modules/forecasting/models/sparse.js'
import { dotmPass, fitTheta, slope, thetaForecast } from '../modules/forecasting/models/theta.js'
import type { FitContext } from '../modules/forecasting/models/types.js'
import { hampel } from '../modules/forecasting/models/wrap.js'

/** AirPassengers: Box & Jenkins (1976), series G; as in R's datasets. */
const AIR = Float64Array.of(
  ...[112, 118, 132, 129, 121, 135, 148, 148, 136, 119, 104, 118, 115, 126, 141, 135, 125, 149, 170, 170, 158, 133],
  ...[114, 140, 145, 150, 178, 163, 172, 178, 199, 199, 184, 162, 146, 166, 171, 180, 193, 181, 183, 218, 230, 242],
  ...[209, 191, 172, 194, 196, 196, 236, 235, 229, 243, 264, 272, 237, 211, 180, 201, 204, 188, 235, 227, 234, 264],
  ...[302, 293, 259, 229, 203, 229, 242, 233, 267, 269, 270, 315, 364, 347, 312, 274, 237, 278, 284, 277, 317, 313],
  ...[318, 374, 413, 405, 355, 306, 271, 306, 315, 301, 356, 348, 355, 422, 465, 467, 404, 347, 305, 336, 340, 318],
  ...[362, 348, 363, 435, 491, 505, 404, 359, 310, 337, 360, 342, 406, 396, 420, 472, 548, 559, 463, 407, 362, 405],
  ...[417, 391, 419, 461, 472, 535, 622, 606, 508, 461, 390, 432]
)
const SHORT = Float64Array.of(17, 21, 19, 25, 23, 28, 24, 30, 27, 33, 29, 35, 31, 36, 34, 40, 37, 41, 38, 45)
const PLAIN: FitContext = { periods: [], candidates: [], horizon: 6, offset: 0, frequency: 'month' }

/** Reproducible noise in [−½, ½). */
const uniform = (seed: number) => {
  let state = seed
  return () => {
    state = (state * 1664525 + 1013904223) % 4294967296
    return state / 4294967296 - 0.5
  }
}

const rounded = (values: ArrayLike<number>, digits = 6): number[] =>
  Array.from(values, (v) => Number(v.toPrecision(digits)))

t.test('smoothing agrees with R 4.2 (stats and forecast 8.20)', async (t) => {
  // predict(HoltWinters(ts(y), alpha = .3, beta = FALSE, gamma = FALSE, l.start = y[1]), 1)
  t.same(rounded([smooth(SHORT, 0.3, SHORT[0]!)]), rounded([39.6943949881]))
  // forecast(ets(ts(y), 'ANN', alpha = .3, opt.crit = 'mse'), h = 1): the start level is fitted
  t.same(rounded([smooth(SHORT, 0.3, bestStart(SHORT, 0.3).start)]), rounded([39.6978598426]))
  // ets(ts(y), 'ANN'): alpha .5906052, l 18.70509, mse 14.102765902632
  const { alpha, start } = bestSmoothing(SHORT)
  t.ok(Math.abs(alpha - 0.590605) < 5e-3 && Math.abs(start - 18.705) < 0.05, `alpha ${alpha}, start ${start}`)
  t.ok(bestStart(SHORT, alpha).sse / SHORT.length <= 14.102765902632 * (1 + 1e-5), 'no worse than the optimum of R')
  // ets(ts(y), 'AAN', damped = TRUE, alpha = .4, beta = .1, phi = .9, opt.crit = 'mse'): beta is alpha times ours
  const out = new Float64Array(5)
  const damped = { alpha: 0.4, beta: 0.25, phi: 0.9, level: 15.16222299760599, slope: 2.49176778927545 }
  holtForecast(SHORT, damped, out)
  t.same(rounded(out), rounded([43.0318806878, 43.9313233431, 44.7408217329, 45.4693702837, 46.1250639794]))
})

t.test('Holt-Winters agrees with R', async (t) => {
  // HoltWinters(AirPassengers, alpha = .3, beta = .05, gamma = .4, l.start = 120, b.start = 1.5, s.start = figures),
  // which starts its recursion one season into the data
  const figures = Float64Array.of(-24.7, -36.2, -2.2, -8, -4.5, 35.4, 63.8, 62.8, 16.5, -20.6, -53.6, -28.7)
  const additive = {
    alpha: 0.3,
    beta: 0.05,
    gamma: 0.4 * 0.7,
    phi: 1,
    level: 120,
    slope: 1.5,
    figures,
    multiplicative: false
  }
  const out = new Float64Array(3)
  const sse = holtWintersPass(AIR.slice(12), additive, new Float64Array(12), out)
  t.same(rounded([sse, ...out]), rounded([55269.0363232, 466.148694317, 452.534789219, 500.762409895]))
  // ets(AirPassengers, 'MAM', damped = TRUE, alpha = .3, beta = .02, gamma = .1, phi = .95): start and end states, SSE
  const seasonal = Float64Array.of(
    ...[
      0.900230741208057, 0.898492488800482, 1.030049076651375, 0.998549249801185, 0.99248331830377, 1.115186929877047
    ],
    ...[1.22630120695062, 1.203526167027245, 1.047394813169251, 0.909550012529496, 0.7890452288329, 0.889190766848573]
  )
  const start = { level: 124.45095995139889, slope: 0.878564917855941, figures: seasonal, multiplicative: true }
  const ends = Float64Array.of(
    ...[
      0.919133973450421, 0.894858201601545, 1.028030795021594, 1.00997599985324, 1.015321927274664, 1.146830891129283
    ],
    ...[
      1.270472505566829, 1.246947031909194, 1.065126022403901, 0.929842395215395, 0.804774984588251, 0.900176874057706
    ]
  )
  const work = new Float64Array(12)
  const error = holtWintersPass(AIR, { alpha: 0.3, beta: 0.02 / 0.3, gamma: 0.1, phi: 0.95, ...start }, work)
  t.same(rounded([error]), rounded([26921.3079068]))
  t.same(rounded(work), rounded(ends))
})

t.test('Theta, DOTM and regressions agree with R', async (t) => {
  const out = new Float64Array(6)
  // thetaf(ts(y), h = 6) at the constants that ses(ts(y)) finds
  thetaForecast(SHORT, 0.590508203062823, 18.709042387397599, out)
  t.same(
    rounded(out),
    rounded([43.4333459415, 44.0562782724, 44.6792106032, 45.302142934, 45.9250752648, 46.5480075957])
  )
  // with our own constants; R's come from a search that stops at about four digits
  fitTheta(SHORT, PLAIN)!.forecast(SHORT, out)
  t.same(rounded(out, 4), rounded([43.4333, 44.0563, 44.6792, 45.3021, 45.9251, 46.548], 4))
  t.same(rounded([slope(SHORT)]), rounded([1.24586466165]), 'lm(y ~ t)')
  // DOTM, Fiorucci et al. (2016) eq. 13–17 written out in R, every line by lm(), none by recursion; l starts at α y₁ + (1 − α) l₀:
  // for (t in 1:(n + 5)) { mu <- l + (1 - 1 / theta) * ((1 - a)^t * A + (1 - (1 - a)^(t + 1)) / a * B)
  //   v <- if (t < n) y[t + 1] else mu; y[t + 1] <- v; l <- a * v + (1 - a) * l
  //   s <- 1:(t + 1); co <- coef(lm(y[s] ~ s)); A <- co[[1]]; B <- co[[2]] }  # errors from the third value on are summed
  let sse = dotmPass(SHORT, 16, 0.4, 2.5, out)
  const short = [42.7688115145, 43.4975765555, 44.2145344111, 44.9196133103, 45.6128839753, 46.2945172139]
  t.same(rounded([sse, ...out]), rounded([212.5137794197, ...short]))
  sse = dotmPass(AIR, 110, 0.7, 3, out)
  const air = [430.343452652, 432.103409571, 433.855547637, 435.600020002, 437.336974482, 439.066553797]
  t.same(rounded([sse, ...out]), rounded([204536.97104599, ...air]))
  // acf(AirPassengers): lags 1 and 12
  t.same(rounded([0, 11].map((i) => autocorrelations(AIR, 12)[i]!)), rounded([0.948047340752, 0.760395042263]))
  // decompose(AirPassengers)$trend and $figure
  const trend = movingTrend(AIR.map(Math.log), 12)
  t.same(rounded([6, 49, 137].map((i) => trend[i]!)), rounded([4.83727985211, 5.37830911665, 6.15152592611]))
  // an AR(2) without noise is recovered and continued exactly
  const wave = Float64Array.from({ length: 80 }, (_, i) => 50 + 10 * Math.sin(i / 3))
  autoregression(false)(wave, PLAIN)!.forecast(wave, out)
  t.same(
    rounded(out, 5),
    rounded(
      Float64Array.from(out, (_, k) => 50 + 10 * Math.sin((80 + k) / 3)),
      5
    )
  )
})

t.test('sparse models agree with R and worked examples', async (t) => {
  const sales = Float64Array.of(0, 2, 0, 0, 1, 3, 0, 0, 0, 4, 0, 1, 0, 0, 2)
  // croston(ts(sales), alpha = .1, h = 1)
  t.same(rounded([crostonRate(sales, 0.1)]), rounded([0.922198420196]))
  // TSB by hand: p and z start at 2/4 and 2; after 2, 0, 0, 4 with both constants ½ …
  // p: .75 .375 .1875 .59375, z: 2 2 2 3 → 1.78125
  t.equal(tsbRate(Float64Array.of(2, 0, 0, 4), 0.5, 0.5), 1.78125)
  t.equal(classifyDemand(Float64Array.of(5, 5, 6, 5)), 'smooth')
  t.equal(classifyDemand(Float64Array.of(0, 0, 3, 0, 3)), 'intermittent')
  t.equal(classifyDemand(Float64Array.of(0, 0, 1, 0, 30)), 'lumpy')
  t.equal(classifyDemand(Float64Array.of(1, 30, 2, 60)), 'erratic')
  t.equal(
    classifyDemand(Float64Array.of(0, 7, 0, 7), Uint8Array.of(1, 0, 1, 0)),
    'smooth',
    'censored zeros do not count'
  )
  // qnbinom(c(.5, .9, .99), size = 1, prob = .4)
  const one = { unit: 1, means: Float64Array.of(1.5), dispersion: 2.5, weights: Float64Array.of(1) }
  const quantiles = mixtureQuantiles(one, 1)
  t.same(
    [0.5, 0.9, 0.99].map((p) => quantiles[LEVELS.indexOf(p)]),
    [1, 4, 9]
  )
  // dnbinom(0:9, 1, .4): middles .2 .52 .712 .827 .896 .938 .963 …; zero is inside, so each interval ends before its level
  t.same(
    mixtureIntervals(one).map(({ lower, upper }) => [lower, upper]),
    [
      [0, 2],
      [0, 4],
      [0, 5]
    ]
  )
  const mixture = fitCounts(sales)
  t.ok(Math.abs(mixtureMean(mixture) - 13 / 15) < 0.35 && mixture.dispersion > 1, 'near the historical mean')
  const wide = mixtureQuantiles(mixture, 4)
  t.ok(
    wide.every((value, l) => value >= mixtureQuantiles(mixture, 1)[l]!),
    'four periods need at least one'
  )
})

t.test('baselines, rates and regressions with seasons agree with R 4.2.2 (forecast 8.20)', async (t) => {
  const monthly: FitContext = { periods: [12], candidates: [12], horizon: 3, offset: 0, frequency: 'month' }
  const ahead = (name: ModelName, y: Float64Array, context: FitContext): number[] => {
    const out = new Float64Array(3)
    POOL[name]!(y, context)!.forecast(y.slice(), out)
    return rounded(out)
  }
  t.same(ahead('naive', SHORT, PLAIN), [45, 45, 45], 'naive(ts(y), h = 3)')
  t.same(ahead('seasonal-naive', AIR, monthly), [417, 391, 419], 'snaive(AirPassengers, h = 3)')
  t.same(ahead('empirical', SHORT, PLAIN), [30.65, 30.65, 30.65], 'meanf(ts(y), h = 3)')
  // lm() of AirPassengers, of its differences and of those at lag 12 on lags 1–5, 12 and 13, the lags by AICc; then iterated
  const levels = autoregression(false)(AIR, monthly)!
  const differences = autoregression(true)(AIR, monthly)!
  const out = new Float64Array(3)
  levels.forecast(AIR, out)
  t.same(rounded(out), rounded([448.848042006, 424.533435389, 455.970650772]))
  differences.forecast(AIR, out)
  t.same(rounded(out), rounded([448.24626725, 420.298603449, 448.352569989]))
  t.same(ahead('ar-seasonal', AIR, monthly), rounded([445.630508934, 420.340180366, 449.099816422]))
  const sales = Float64Array.of(0, 2, 0, 0, 1, 3, 0, 0, 0, 4, 0, 1, 0, 0, 2)
  // the recursion of Teunter, Syntetos & Babai (2011) written out in R: p <- p + b * ((v != 0) - p); z <- z + a * (v - z) where v != 0
  t.same(rounded([tsbRate(sales, 0.2, 0.1)]), rounded([0.874813152852]))
  // 0.95 * croston(ts(sales), alpha = .1, h = 1): the constant of the search is one of a grid
  const rates = [0.05, 0.1, 0.15, 0.2, 0.3].map((alpha) => (1 - alpha / 2) * crostonRate(sales, alpha))
  t.same(rounded([rates[1]!]), rounded([0.876088499186]))
  t.ok(
    rates.some((rate) => Math.abs(rate - ahead('sba', sales, PLAIN)[0]!) < 1e-5),
    'SBA is one of them'
  )
  // demand every 24 / 11 periods: sums of 2. optimize() of the squared errors of SES with its best start: alpha .431564580164
  const parts = Float64Array.of(0, 2, 0, 0, 1, 3, 0, 0, 0, 4, 0, 1, 0, 0, 2, 0, 3, 0, 5, 0, 4, 6, 0, 5)
  const pairs = Float64Array.of(2, 0, 4, 0, 4, 1, 0, 2, 3, 5, 10, 5)
  const rate = smooth(pairs, 0.431564580164, bestStart(pairs, 0.431564580164).start) / 2
  t.same(rounded([rate]), rounded([2.84907750492]))
  // with our own constant, and the mean over sums of 1 and of 2: R 2.84907750492 and (1.50000080508 + 2.84907750492) / 2
  t.match(rounded(ahead('adida', parts, PLAIN), 3), rounded([2.84907750492, 2.84907750492, 2.84907750492], 3))
  t.match(rounded(ahead('imapa', parts, PLAIN), 3), rounded([2.174539155, 2.174539155, 2.174539155], 3))
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
  t.ok(hampel()(spiked)[20]! < 20, 'a lone extreme is held')
  t.same(hampel()(spiked)[3], spiked[3])
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

t.test('selection is honest', async (t) => {
  const noise = uniform(42)
  const seasonal = Float64Array.from(
    { length: 210 },
    (_, i) => 100 + 30 * Math.sin((2 * Math.PI * i) / 7) + 20 * noise()
  )
  const good = forecast({ values: seasonal, frequency: 'day', horizon: 7 })
  t.equal(good.reason, 'combination-beats-baseline')
  t.equal(good.baseline.model, 'seasonal-naive')
  t.ok(good.accuracy.mae < good.baseline.mae && good.seasonalPeriods.includes(7))
  t.ok(good.members.length > 5, 'the weights are shown')
  const repeating = Float64Array.from({ length: 140 }, (_, i) => [5, 9, 2, 40, 7, 7, 30][i % 7]!)
  const exact = forecast({ values: repeating, frequency: 'day', horizon: 7 })
  t.equal(exact.reason, 'baseline-wins', 'nothing beats the repetition of an exact season')
  t.same(Array.from(exact.mean), Array.from(repeating.slice(0, 7)))
  const { baseline, challenger, challengerServes } = contest({ values: repeating, frequency: 'day', horizon: 7 })
  t.same([challengerServes, baseline.accuracy.mae], [false, 0], 'both sides of the choice can be looked at')
  t.ok(challenger !== undefined && challenger.accuracy.mae > 0)
  const named = forecast({ values: seasonal, frequency: 'day', horizon: 7, models: ['ses'] })
  t.same([named.model, named.reason, named.servesBaseline], ['ses', 'named', false])
  const two = forecast({ values: seasonal, frequency: 'day', horizon: 7, models: ['theta', 'ses'] })
  t.same([two.model, two.members.length], ['combination', 2])
})

t.test('the day and the week of hourly data', async (t) => {
  const noise = uniform(3)
  let level = 0
  const hours = Float64Array.from({ length: 24 * 42 + 48 }, (_, i) => {
    level = 0.9 * level + 8 * noise()
    const weekend = Math.floor(i / 24) % 7 >= 5 ? 0.5 : 1
    return 100 + level + weekend * 40 * Math.sin((2 * Math.PI * (i % 24)) / 24)
  })
  const known = hours.slice(0, -48)
  const { mean, seasonalPeriods, servesBaseline } = forecast({ values: known, frequency: 24, horizon: 48 })
  t.same(seasonalPeriods, [24, 168])
  const error = (ahead: (k: number) => number) =>
    mean.reduce((sum, _, k) => sum + Math.abs(ahead(k) - hours[known.length + k]!), 0)
  t.ok(error((k) => mean[k]!) < 0.85 * error((k) => hours[known.length + k - 168]!), 'clearly better than last week')
  t.notOk(servesBaseline)
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
  // inside the engine too: no model is ever handed more than the values before its origin
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
