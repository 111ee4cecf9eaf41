/**
 * Whether a forecast still fits what happens. Pure: errors in, alarms out.
 *
 * Page (1954), Biometrika 41: cumulative sums of standardised errors with allowance k = 0.5 and decision limit h = 5. For
 * independent normal errors that is one false alarm in 465 periods for both directions together, and a shift of one standard
 * deviation is found after 10.4 periods on average (Montgomery, Introduction to Statistical Quality Control, table 9.3).
 */
export const CUSUM_ALLOWANCE = 0.5
export const CUSUM_LIMIT = 5
/** One wild day is an anomaly and not a drift: no error counts for more than this many standard deviations. */
export const CUSUM_CLIP = 3
/** Alarms of bias look at this many periods at least. */
export const BIAS_PERIODS_MIN = 10
/** Mean error over its standard error beyond which a bias is no chance (three sigma, as on a Shewhart chart). */
export const BIAS_LIMIT = 3
/** A bias below this share of what was used is not worth an alarm. */
export const BIAS_SHARE_MIN = 0.1

export interface Drift {
  kind: 'level-up' | 'level-down' | 'error-growth'
  /** index of the period at which the limit was passed */
  at: number
  statistic: number
}

/** A period's error beside what the back-test let expect. */
export interface ScaledError {
  /** actual − forecast */
  error: number
  /** mean absolute error of the back-test */
  mae: number
  /** root mean squared error of the back-test */
  rmse: number
}

const clip = (value: number) => Math.max(-CUSUM_CLIP, Math.min(CUSUM_CLIP, value))

/**
 * The first alarm of three cumulative sums: more is used than forecast, less is used, or errors of either sign have grown
 * beyond those of the back-test. Undefined while none has passed the limit.
 */
export function findDrift(errors: readonly ScaledError[]): Drift | undefined {
  let up = 0
  let down = 0
  let growth = 0
  for (let at = 0; at < errors.length; at++) {
    const { error, mae, rmse } = errors[at]!
    if (!(rmse > 0)) continue
    const z = clip(error / rmse)
    up = Math.max(0, up + z - CUSUM_ALLOWANCE)
    down = Math.max(0, down - z - CUSUM_ALLOWANCE)
    // The spread of |error| around its mean; for normal errors 0.6 of their standard deviation.
    const spread = Math.sqrt(Math.max(rmse * rmse - mae * mae, 0.01 * rmse * rmse))
    growth = Math.max(0, growth + clip((Math.abs(error) - mae) / spread) - CUSUM_ALLOWANCE)
    if (up > CUSUM_LIMIT) return { kind: 'level-up', at, statistic: up }
    if (down > CUSUM_LIMIT) return { kind: 'level-down', at, statistic: down }
    if (growth > CUSUM_LIMIT) return { kind: 'error-growth', at, statistic: growth }
  }
  return undefined
}

/**
 * Whether forecasts lie on one side: −1 too low, 1 too high, 0 neither. The mean of (forecast − actual) against its standard
 * error, and against what was used.
 */
export function biasAlarm(errors: Float64Array, actualSum: number): -1 | 0 | 1 {
  const n = errors.length
  if (n < BIAS_PERIODS_MIN) return 0
  let sum = 0
  for (let i = 0; i < n; i++) sum += errors[i]!
  const mean = sum / n
  let squares = 0
  for (let i = 0; i < n; i++) squares += (errors[i]! - mean) ** 2
  const standardError = Math.sqrt(squares / (n - 1) / n)
  if (Math.abs(sum) < BIAS_SHARE_MIN * Math.abs(actualSum) || sum === 0) return 0
  if (Math.abs(mean) <= BIAS_LIMIT * standardError) return 0
  return mean > 0 ? 1 : -1
}
