/**
 * Detectors of unusual use. Pure: a series of daily values in, findings out. Each day is judged by the days before it
 * only, and what was found unusual enters the later judgements no further than its bound, so that one spike does not hide
 * the next.
 */

export type Kind = 'spike' | 'drop'
export type Detector = 'zscore' | 'seasonal' | 'count-tail'
export type Severity = 'low' | 'medium' | 'high'
/** `sigma`: mean ± 3σ everywhere. `auto`: by the kind of series, which raises far fewer false alarms. */
export type Method = 'sigma' | 'auto'

export interface Finding {
  /** position in the series */
  index: number
  kind: Kind
  detector: Detector
  severity: Severity
  observed: number
  expected: number
  lower: number
  upper: number
  /** zscore, seasonal: distance in standard deviations; count-tail: −log₁₀ of the probability of so much or more */
  score: number
}

interface Judgement {
  detector: Detector
  expected: number
  lower: number
  upper: number
  score: number
}
type Judge = (history: Float64Array, value: number) => Judgement | undefined

const WINDOW_DAYS = 91
const HISTORY_DAYS_MIN = 14
const SEASONAL_DAYS_MIN = 28
const SIGMAS = 3
const TAIL_PROBABILITY = 1e-3
/** Below this share of days with use a series is sparse: the average interval of 1.32 days of Syntetos & Boylan (2005). */
const DENSE_SHARE = 1 / 1.32
/** A series that never varied gives no standard deviation; these stand in for it. */
const SIGMA_FLOOR_RATIO = 0.05
const LOG_SIGMA_FLOOR = 0.1
const TAIL_STEPS_MAX = 100_000

function moments(values: Float64Array): { mean: number; deviation: number } {
  let sum = 0
  let squares = 0
  for (const value of values) {
    sum += value
    squares += value * value
  }
  const mean = sum / values.length
  return { mean, deviation: Math.sqrt(Math.max(0, squares / values.length - mean * mean)) }
}

/** Mean ± 3σ of the days before. */
const sigma: Judge = (history, value) => {
  const { mean, deviation } = moments(history)
  const unit = Math.max(deviation, SIGMA_FLOOR_RATIO * Math.abs(mean))
  if (unit === 0) return undefined
  return {
    detector: 'zscore',
    // Net returns can outweigh use.
    expected: Math.max(0, mean),
    lower: Math.max(0, mean - SIGMAS * unit),
    upper: mean + SIGMAS * unit,
    score: Math.abs(value - mean) / unit
  }
}

/** ±3σ of log(1 + use) around the level of the same weekday: demand scatters in proportion, and has its week. */
const seasonal =
  (counts: boolean): Judge =>
  (history, value) => {
    const n = history.length
    if (n < SEASONAL_DAYS_MIN) return sigma(history, value)
    const logs = history.map((each) => Math.log1p(Math.max(0, each)))
    const level = moments(logs).mean
    const sums = new Float64Array(7)
    const seen = new Float64Array(7)
    // Counted back from the day judged, which is phase 0.
    const phase = (i: number) => (n - i) % 7
    for (let i = 0; i < n; i++) {
      sums[phase(i)]! += logs[i]! - level
      seen[phase(i)]!++
    }
    const effect = (at: number) => sums[at]! / seen[at]!
    const { deviation } = moments(logs.map((each, i) => each - level - effect(phase(i))))
    const centre = level + effect(0)
    // Seven effects were estimated from the same days, and the one used here is not exact either.
    const scatter = deviation * Math.sqrt((n / (n - 7)) * (1 + 1 / seen[0]!))
    // Effects of quiet weekdays can take the centre below log 1, where there is no use to take away any more.
    const expected = Math.max(0, Math.expm1(centre))
    // Counts scatter at least as Poisson's law does, on quiet weekdays too.
    const poisson = counts ? Math.sqrt(expected) / (1 + expected) : 0
    const unit = Math.max(scatter, poisson, LOG_SIGMA_FLOOR)
    const back = (log: number) => Math.max(0, Math.expm1(log))
    return {
      detector: 'seasonal',
      expected,
      lower: back(centre - SIGMAS * unit),
      upper: back(centre + SIGMAS * unit),
      score: Math.abs(Math.log1p(Math.max(0, value)) - centre) / unit
    }
  }

/**
 * The upper tail of a negative binomial with the mean and variance of the days before (Poisson where the variance does not
 * exceed the mean): for items used now and then, where a normal law calls every use unusual.
 */
const countTail: Judge = (history, value) => {
  const { mean, deviation } = moments(history)
  // One more virtual use than seen: with nothing used yet, the first use is no alarm.
  const centre = Math.max(mean, 1 / history.length)
  const variance = Math.max(deviation * deviation, centre * 1.0001)
  const size = (centre * centre) / (variance - centre)
  const ratio = centre / (size + centre)
  let probability = Math.exp(size * Math.log(size / (size + centre)))
  if (probability === 0) return sigma(history, value)
  let tail = 1
  let upper = -1
  let atValue = 1
  for (let k = 0; k <= TAIL_STEPS_MAX; k++) {
    if (k <= value) atValue = tail
    if (tail < TAIL_PROBABILITY && upper < 0) upper = k - 1
    if (upper >= 0 && k >= value) break
    tail = Math.max(0, tail - probability)
    probability *= ((k + size) / (k + 1)) * ratio
  }
  if (upper < 0) return undefined
  return {
    detector: 'count-tail',
    expected: Math.max(0, mean),
    lower: 0,
    upper,
    score: -Math.log10(Math.max(atValue, 1e-15))
  }
}

const THRESHOLDS: Record<Detector, { medium: number; high: number }> = {
  zscore: { medium: 5, high: 8 },
  seasonal: { medium: 4, high: 6 },
  'count-tail': { medium: 5, high: 8 }
}

const severityOf = (detector: Detector, score: number): Severity =>
  score >= THRESHOLDS[detector].high ? 'high' : score >= THRESHOLDS[detector].medium ? 'medium' : 'low'

function choose(values: Float64Array, missing: Uint8Array, method: Method): Judge {
  let known = 0
  let used = 0
  let whole = true
  for (let i = 0; i < values.length; i++) {
    if (missing[i] === 1) continue
    known++
    if (values[i]! !== 0) used++
    if (!Number.isInteger(values[i]!)) whole = false
  }
  if (method === 'sigma') return sigma
  if (used >= DENSE_SHARE * known) return seasonal(whole)
  return whole ? countTail : sigma
}

/**
 * What is unusual in a daily series. Days without stock (`missing` 1) are neither judged nor learnt from. The day after a
 * finding is reported only when it is further out.
 * @param from first position to judge
 */
export function detect(values: Float64Array, missing: Uint8Array, method: Method = 'auto', from = 0): Finding[] {
  const judge = choose(values, missing, method)
  const clean = Float64Array.from(values)
  const found: Finding[] = []
  for (let i = 0; i < values.length; i++) {
    if (missing[i] === 1) continue
    const history = known(clean, missing, i)
    if (history.length < HISTORY_DAYS_MIN) continue
    const observed = values[i]!
    const judged = judge(history, observed)
    if (judged === undefined) continue
    const { detector, expected, lower, upper, score } = judged
    if (observed <= upper && observed >= lower) continue
    const kind = observed > upper ? 'spike' : 'drop'
    // A net return is the other side of an earlier use, not a fall in demand.
    if (observed < 0) continue
    clean[i] = kind === 'spike' ? upper : lower
    const last = found.at(-1)
    if (i < from || (last !== undefined && last.kind === kind && last.index === i - 1 && last.score >= score)) continue
    found.push({
      index: i,
      kind,
      detector,
      severity: severityOf(detector, score),
      observed,
      expected,
      lower,
      upper,
      score
    })
  }
  return found
}

/** The days before `end` within the window; a day without stock keeps its place with the mean, so that weekdays stay aligned. */
function known(values: Float64Array, missing: Uint8Array, end: number): Float64Array {
  const start = Math.max(0, end - WINDOW_DAYS)
  let count = 0
  let sum = 0
  for (let i = start; i < end; i++) {
    if (missing[i] === 1) continue
    sum += values[i]!
    count++
  }
  if (count === end - start) return values.subarray(start, end)
  if (count < HISTORY_DAYS_MIN) return values.subarray(end, end)
  return values.slice(start, end).map((value, i) => (missing[start + i] === 1 ? sum / count : value))
}
