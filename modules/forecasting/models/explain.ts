/** What a series is made of, in figures that people can read. Pure; nothing here changes a forecast. */

export interface Structure {
  /** mean of the known periods of the last four seasons (or 28 periods) */
  level: number
  /** median slope over the last 90 known periods, per period (Theil 1950, Sen 1968): single wild days do not move it */
  trend: number
  /** periods in a season; null where none stands out */
  period: number | null
  /** share of the detrended variance that the season explains, 0 to 1 (Wang, Smith & Hyndman 2006; FPP3, section 4.3) */
  seasonalStrength: number
  /** mean of each phase over the mean of all, phase 0 being that of the first value; null where no season stands out */
  seasonalFactors: number[] | null
  /** mean periods from one use to the next, and squared variation of what is used then (Syntetos, Boylan & Croston 2005) */
  averageInterval: number | null
  sizeVariation: number | null
}

const TREND_PERIODS = 90
const LEVEL_PERIODS = 28

const meanOf = (values: readonly number[]) =>
  values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length
const varianceOf = (values: readonly number[]) => {
  const mean = meanOf(values)
  return meanOf(values.map((value) => (value - mean) ** 2))
}

function median(values: number[]): number {
  values.sort((a, b) => a - b)
  const half = values.length >> 1
  return values.length === 0 ? 0 : values.length % 2 === 1 ? values[half]! : (values[half - 1]! + values[half]!) / 2
}

/** Median of the slopes between all pairs that are whole seasons apart, so that the season does not count as trend. */
function slope(values: Float64Array, missing: Uint8Array, period: number): number {
  const slopes: number[] = []
  for (let i = Math.max(0, values.length - TREND_PERIODS); i < values.length; i++) {
    if (missing[i] === 1) continue
    for (let j = i + period; j < values.length; j += period) {
      if (missing[j] !== 1) slopes.push((values[j]! - values[i]!) / (j - i))
    }
  }
  return median(slopes)
}

function season(values: Float64Array, missing: Uint8Array, period: number, trend: number) {
  const phases: number[][] = Array.from({ length: period }, () => [])
  const detrended: { value: number; phase: number }[] = []
  const middle = (values.length - 1) / 2
  for (let i = 0; i < values.length; i++) {
    if (missing[i] === 1) continue
    phases[i % period]!.push(values[i]!)
    detrended.push({ value: values[i]! - trend * (i - middle), phase: i % period })
  }
  const byPhase = Array.from({ length: period }, (_, phase) =>
    meanOf(detrended.filter((one) => one.phase === phase).map(({ value }) => value))
  )
  const all = varianceOf(detrended.map(({ value }) => value))
  const rest = varianceOf(detrended.map(({ value, phase }) => value - byPhase[phase]!))
  const mean = meanOf(phases.map(meanOf))
  return {
    strength: all > 0 ? Math.max(0, 1 - rest / all) : 0,
    factors: mean > 0 ? phases.map((phase) => meanOf(phase) / mean) : null
  }
}

/**
 * Describes a series.
 * @param missing 1 = not known
 * @param period the season that the forecast found, or undefined
 */
export function describe(values: Float64Array, missing: Uint8Array, period: number | undefined): Structure {
  const known: number[] = []
  for (let i = values.length - 1; i >= 0 && known.length < Math.max(LEVEL_PERIODS, 4 * (period ?? 1)); i--) {
    if (missing[i] !== 1) known.push(values[i]!)
  }
  const sizes = Array.from(values).filter((value, i) => value > 0 && missing[i] !== 1)
  const count = missing.reduce((sum, flag) => sum + (1 - flag), 0)
  const mean = meanOf(sizes)
  const trend = slope(values, missing, period ?? 1)
  const found = period === undefined ? undefined : season(values, missing, period, trend)
  return {
    level: meanOf(known),
    trend,
    period: period ?? null,
    seasonalStrength: found?.strength ?? 0,
    seasonalFactors: found?.factors ?? null,
    averageInterval: sizes.length > 0 ? count / sizes.length : null,
    sizeVariation: mean > 0 ? varianceOf(sizes) / mean ** 2 : null
  }
}
