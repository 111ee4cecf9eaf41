import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import {
  COVERAGES,
  contest,
  forecast,
  type Intervals,
  LEVELS,
  loadModels,
  MODEL_NAMES,
  type ModelName
} from '../modules/forecasting/models/index.js'
import {
  type Case,
  carParts,
  type Dataset,
  m3Monthly,
  m4Weekly,
  retailDailyTop,
  retailWeekly
} from './forecast-data.js'
import { rForecasts } from './forecast-r.js'
import { printVolume } from './forecast-volume.js'

/** A forecast to be scored; quantiles per level of `LEVELS` where the method gives them. */
export interface Forecasted {
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
function naiveError(y: Float64Array, period: number, power = 1): number {
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

function progress(text: string): void {
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

/** The product as shipped, or with models named. */
export const product =
  (models?: readonly ModelName[]): Forecaster =>
  (values, { frequency, horizon }, startDate) =>
    forecast({ values, frequency, horizon, ...(models ? { models } : {}), ...(startDate ? { startDate } : {}) })

/** Naive on seasonally adjusted values where the season is significant: the yardstick of OWA. Source: M4 (2020). */
export const naive2: Forecaster = (y, { frequency, horizon }) => {
  const period = frequency === 'month' ? 12 : 1
  const applies = period > 1 && y.length >= 3 * period && y.every((value) => value > 0)
  const indices = applies && m4Seasonal(y, period) ? classicalIndices(y, period) : undefined
  const last = y[y.length - 1]! / (indices?.[(y.length - 1) % period] ?? 1)
  return { mean: Array.from({ length: horizon }, (_, k) => last * (indices?.[(y.length + k) % period] ?? 1)) }
}

function m4Seasonal(y: Float64Array, period: number): boolean {
  const centre = y.reduce((a, b) => a + b, 0) / y.length
  const covariance = (lag: number): number =>
    y.reduce((sum, value, i) => (i < lag ? sum : sum + (value - centre) * (y[i - lag]! - centre)), 0)
  const total = covariance(0)
  let squares = 0
  for (let lag = 1; lag < period; lag++) squares += (covariance(lag) / total) ** 2
  return Math.abs(covariance(period) / total) > 1.645 * Math.sqrt((1 + 2 * squares) / y.length)
}

function classicalIndices(y: Float64Array, period: number): number[] {
  const half = period / 2
  const ratios: number[][] = Array.from({ length: period }, () => [])
  for (let i = half; i + half < y.length; i++) {
    let trend = 0
    for (let j = -half; j <= half; j++) trend += (y[i + j]! * (Math.abs(j) === half ? 0.5 : 1)) / period
    ratios[i % period]!.push(y[i]! / trend)
  }
  const means = ratios.map((list) => list.reduce((a, b) => a + b, 0) / list.length)
  const level = means.reduce((a, b) => a + b, 0) / period
  return means.map((value) => value / level)
}

interface Row {
  label: string
  scores: Scores
}

const cell = (value: number, digits = 2): string => (Number.isFinite(value) ? value.toFixed(digits) : '–').padStart(9)

function printTable(set: Dataset, rows: readonly Row[], goals: string): void {
  const reference = rows.find(({ label }) => label === 'naive2')!.scores
  console.log(`\n${set.name}: ${set.cases.length} forecasts, horizon ${set.horizon}${goals && ` · goal ${goals}`}`)
  console.log(
    `${''.padEnd(18)}${['MASE', 'RMSSE', 'sMAPE', 'OWA', 'WAPE', 'sum WAPE', 'bias', 'MAPE', 'pinball', 'cov 80', 'cov 90', 'cov 95', 'rnd 80', 'rnd 90', 'rnd 95', 'sum 80', 'sum 90', 'sum 95', 'ms'].map((h) => h.padStart(9)).join('')}`
  )
  for (const { label, scores: s } of rows) {
    const owa = (s.mase / reference.mase + s.smape / reference.smape) / 2
    const cells = [cell(s.mase, 3), cell(s.rmsse, 3), cell(s.smape), cell(owa, 3), cell(s.wape), cell(s.sumWape)]
    cells.push(cell(s.bias, 1), cell(s.mape, 1))
    cells.push(s.coverage[80] >= 0 ? cell(s.pinball, 4) : cell(Number.NaN))
    cells.push(cell(s.coverage[80], 1), cell(s.coverage[90], 1), cell(s.coverage[95], 1))
    cells.push(cell(s.randomised[80], 1), cell(s.randomised[90], 1), cell(s.randomised[95], 1))
    const sums = s.coverage[80] >= 0 ? s.ofSums : { 80: Number.NaN, 90: Number.NaN, 95: Number.NaN }
    cells.push(cell(sums[80], 1), cell(sums[90], 1), cell(sums[95], 1), cell(s.milliseconds))
    console.log(label.padEnd(18) + cells.join('') + (s.baselines > 0 ? `  baseline served ${s.baselines}` : ''))
  }
}

/** Whether intervals cover what they say. Where most actuals are zero no whole ends can, and ties are broken by lot. */
function printCoverage({ zeros, coverage, randomised }: Scores): void {
  const measured = zeros > 50 ? randomised : coverage
  const verdicts = COVERAGES.map((c) => `${c} %: ${Math.abs(measured[c] - c) <= 2 ? 'met' : 'MISSED'}`)
  console.log(
    `coverage within ± 2${zeros > 50 ? `, ties by lot (${zeros.toFixed(0)} % zeros)` : ''}: ${verdicts.join(', ')}`
  )
}

/** All of a small set; of a large one every n-th series, so that at least `count` stay. */
const sampled = (set: Dataset, count: number): Dataset => {
  const step = set.cases.length > 3 * count ? Math.floor(set.cases.length / count) : 1
  return { ...set, cases: set.cases.filter((_, i) => i % step === 0) }
}

function compareWithR(set: Dataset, count: number): void {
  const sample = sampled(set, count)
  progress(`${set.name}: R on ${sample.cases.length}`)
  const peers = rForecasts(sample)
  if (peers.length === 0) {
    console.log('R rows left out: Rscript with the package forecast is not here')
    return
  }
  const position = new Map(sample.cases.map(({ train }, i) => [train.join(), i]))
  const own = evaluate(sample, 'product', product())
  const rows: Row[] = [
    { label: 'naive2', scores: evaluate(sample, 'naive2', naive2) },
    { label: 'product', scores: own }
  ]
  for (const peer of peers) {
    const scores = evaluate(sample, peer.label, (train) => ({ mean: peer.rows[position.get(train.join())!]! }))
    rows.push({ label: peer.label, scores: { ...scores, milliseconds: peer.milliseconds } })
  }
  const every = sample.cases.length === set.cases.length
  const part = every ? 'all series' : `every ${Math.round(set.cases.length / sample.cases.length)}th series`
  printTable({ ...sample, name: `${set.name}, ${part}, also by R` }, rows, '')
  const theirs = rows.filter(({ label }) => label.startsWith('R '))
  for (const [name, of] of [
    ['MASE', (s: Scores) => s.mase],
    ['RMSSE', (s: Scores) => s.rmsse],
    ['sum WAPE', (s: Scores) => s.sumWape]
  ] as const) {
    const ahead = theirs.filter(({ scores }) => of(own) < of(scores)).map(({ label }) => label)
    console.log(`${name}: ahead of ${ahead.length > 0 ? ahead.join(', ') : 'none'}`)
  }
  const together = peers.at(-1)!.milliseconds
  console.log(`${(together / own.milliseconds).toFixed(0)} × as fast as ets + auto.arima + thetaf · goal ≥ 20 ×`)
}

/** How well the choice between combination and baseline does on what really came. */
function printSelection(set: Dataset): void {
  const total = { n: 0, baselines: 0, right: 0, claimed: 0, claimedBase: 0, served: 0, combined: 0, base: 0, best: 0 }
  for (const { train, test } of set.cases) {
    const { baseline, challenger, challengerServes } = contest({
      values: train.slice(),
      frequency: set.frequency,
      horizon: set.horizon
    })
    const scale = naiveError(train, set.scalePeriod)
    if (!challenger || !(scale > 0)) continue
    // what the choice was made by: squared errors where the baseline is TSB, absolute ones elsewhere
    const squared = baseline.baseline.model === 'tsb'
    const loss = ({ mean }: { mean: Float64Array }): number => {
      const errors = test.map((actual, k) => Math.abs(mean[k]! - actual) ** (squared ? 2 : 1))
      const average = errors.reduce((a, b) => a + b, 0) / test.length
      return (squared ? Math.sqrt(average) : average) / scale
    }
    const claim = ({ accuracy }: { accuracy: { mae: number; rmse: number } }): number =>
      (squared ? accuracy.rmse : accuracy.mae) / scale
    const ours = loss(challenger)
    const theirs = loss(baseline)
    total.n++
    if (!challengerServes) total.baselines++
    if (challengerServes === ours <= theirs) total.right++
    total.claimed += claim(challenger)
    total.claimedBase += claim(baseline)
    total.served += challengerServes ? ours : theirs
    total.combined += ours
    total.base += theirs
    total.best += Math.min(ours, theirs)
  }
  const { n } = total
  const cells = [cell(total.claimed / total.claimedBase, 3), cell(total.combined / total.base, 3)]
  cells.push(cell((100 * total.baselines) / n, 1), cell((100 * total.right) / n, 1))
  for (const sum of [total.served, total.combined, total.base, total.best]) cells.push(cell(sum / n, 3))
  console.log(set.name.padEnd(22) + cells.join(''))
}

const SELECTION_HEAD = ['claimed', 'real', 'base %', 'right %', 'served', 'combined', 'baseline', 'best']

const SETS: Record<string, { load: (folder: string) => Dataset; goals: string; rows: readonly ModelName[] }> = {
  m4: { load: m4Weekly, goals: 'OWA ≤ 0.71, MASE ≤ 2.03', rows: ['naive'] },
  m3: { load: m3Monthly, goals: 'OWA ≤ 0.80', rows: ['naive'] },
  retail: { load: retailWeekly, goals: 'WAPE ≤ 54.5, sum WAPE ≤ 40.5, MASE ≤ 1.77', rows: ['naive'] },
  daily: {
    load: retailDailyTop,
    goals: 'ahead of naive, ARIMA and Prophet',
    rows: ['naive', 'seasonal-naive', 'arima', 'prophet']
  },
  carparts: { load: carParts, goals: 'pinball ≤ 0.355', rows: ['tsb', 'naive'] }
}

/** Milliseconds per series of 104 points with the default pool, and heap growth over many fits. */
function printCost(folder: string, fits: number): void {
  const series = m4Weekly(folder).cases.map(({ train }) => train.slice(-104))
  const fit = (i: number): void => {
    forecast({ values: series[i % series.length]!.slice(), frequency: 'week', horizon: 13 })
  }
  for (let i = 0; i < 50; i++) fit(i)
  globalThis.gc?.()
  const before = process.memoryUsage().rss
  const started = performance.now()
  const used = process.cpuUsage()
  for (let i = 0; i < fits; i++) {
    fit(i)
    if (i % 50 === 0) progress(`cost: ${i} of ${fits}`)
  }
  const wall = (performance.now() - started) / fits
  const { user, system } = process.cpuUsage(used)
  const each = (user + system) / 1000 / fits
  globalThis.gc?.()
  progress('')
  const growth = (process.memoryUsage().rss - before) / 2 ** 20
  console.log(
    `\ncost: ${each.toFixed(2)} ms of processor (${wall.toFixed(2)} by the clock) a series of 104 points, horizon 13 · goal ≤ 12`
  )
  console.log(`memory: ${growth.toFixed(0)} MB resident more after ${fits} fits`)
}

/**
 * Prints accuracy, interval coverage and cost on the public sets in the folder BENCH_DATA: fixed splits, the defaults of
 * the product, no tuning per set. Options: `--sets m4,daily,selection,cost,volume`, `--r 200` (of sets more than three times
 * as large, about so many series are also given to R, of others all; 0 = none), `--models ses,tsb` (further rows),
 * `--fits 200` (for the cost), `--items 10000` (for the volume).
 */
export async function run(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      sets: { type: 'string', default: [...Object.keys(SETS), 'selection', 'cost', 'volume'].join() },
      models: { type: 'string', default: '' },
      r: { type: 'string', default: '200' },
      fits: { type: 'string', default: '200' },
      items: { type: 'string', default: '10000' }
    }
  })
  const folder = process.env.BENCH_DATA
  if (!folder) throw new Error('BENCH_DATA is not set: it names the folder with the benchmark data')
  const extra = MODEL_NAMES.filter((name) => values.models.split(',').includes(name))
  for (const key of values.sets.split(',')) {
    if (key === 'cost') {
      printCost(folder, Number(values.fits))
      continue
    }
    if (key === 'volume') {
      printVolume(folder, Number(values.items))
      continue
    }
    if (key === 'selection') {
      console.log(
        `\nthe choice, out of sample: error of the combination over that of the baseline as claimed and as it came,`
      )
      console.log('baselines served, choices that were right, scaled errors of what served and of what might have')
      console.log(`${''.padEnd(22)}${SELECTION_HEAD.map((h) => h.padStart(9)).join('')}`)
      for (const { load } of Object.values(SETS)) printSelection(load(folder))
      continue
    }
    const entry = SETS[key]
    if (!entry)
      throw new Error(`no set named ${key}; there are ${Object.keys(SETS).join(', ')}, selection, cost, volume`)
    const set = entry.load(folder)
    const names = [...entry.rows, ...extra]
    await loadModels(names)
    const rows: Row[] = [
      { label: 'naive2', scores: evaluate(set, 'naive2', naive2) },
      { label: 'product', scores: evaluate(set, 'product', product()) }
    ]
    for (const name of names) rows.push({ label: name, scores: evaluate(set, name, product([name])) })
    printTable(set, rows, entry.goals)
    printCoverage(rows[1]!.scores)
    if (Number(values.r) > 0) compareWithR(set, Number(values.r))
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) await run(process.argv.slice(2))
