import type { Fit } from './types.js'

/** What is known beforehand of every period, the forecast ones included. */
export interface FactorColumn {
  /** 0 or 1, or the share of a week, for an event; any figure otherwise */
  values: Float64Array
  event: boolean
}

/** Relative effects of factors, and what they were learnt from. */
export interface Effects {
  /** per factor: change of demand, as a share, for one unit of it */
  perUnit: Float64Array
  /** per factor: periods in which it stood out from those around it */
  occurrences: Int32Array
}

/** Same phases on either side that a period is compared with. */
const NEIGHBOURS = 4
/** How large effects are thought to be before any was seen: standard deviation of the relative change. */
const PRIOR_EVENT = 1
/** The same for a change of one standard deviation of a figure. */
const PRIOR_FIGURE = 0.5
const LARGEST_FACTOR = 10

interface Local {
  /** mean of the neighbours without events */
  level: Float64Array
  /** per factor, its value less the mean of its neighbours */
  contrast: Float64Array[]
}

/**
 * Factors of one series. Demand is compared with its own level on the same phases before and after that no event touches,
 * and the differences are regressed on those of the factors in proportion to the level. The coefficients are shrunk as by a
 * normal prior (ridge; Hoerl & Kennard 1970), so that one noisy occurrence says little and a clear one nearly all.
 */
export class Factors {
  readonly columns: readonly FactorColumn[]
  readonly #season: number
  readonly #touched: Uint8Array
  /** by length: every member asks for the same prefixes */
  readonly #known = new Map<number, { effects: Effects; local: Local }>()

  /** @param columns per factor a value for each period of the data and of the horizon */
  constructor(columns: readonly FactorColumn[], season: number) {
    this.columns = columns
    this.#season = season
    this.#touched = new Uint8Array(columns[0]?.values.length ?? 0)
    for (const { event, values } of columns) {
      if (event) for (let t = 0; t < values.length; t++) if (values[t] !== 0) this.#touched[t] = 1
    }
  }

  /** Effects learnt from the periods of `y` and nothing after them. */
  effects(y: Float64Array): Effects {
    return this.#learn(y).effects
  }

  /** The series as it would be without its factors; what was not negative stays so. */
  without(y: Float64Array): Float64Array {
    const { effects, local } = this.#learn(y)
    return y.map((value, t) => {
      const shift = local.level[t]! * this.#sum(effects, (j) => local.contrast[j]![t]!)
      return value >= 0 ? Math.max(0, value - shift) : value - shift
    })
  }

  /** Puts the effects of the periods after `y` on forecasts made without them. */
  apply(y: Float64Array, out: Float64Array): void {
    const { effects } = this.#learn(y)
    for (let k = 0; k < out.length; k++) {
      const change = this.#sum(effects, (j) => this.#ahead(j, y.length, y.length + k))
      out[k]! *= Math.min(LARGEST_FACTOR, Math.max(0, 1 + change))
    }
  }

  #sum({ perUnit }: Effects, at: (factor: number) => number): number {
    let sum = 0
    for (let j = 0; j < perUnit.length; j++) sum += perUnit[j]! * at(j)
    return sum
  }

  /** A factor of a period to come, against the last known periods of the same phase. */
  #ahead(factor: number, n: number, t: number): number {
    const { event, values } = this.columns[factor]!
    if (event) return values[t]!
    const phase = t - Math.ceil((t - n + 1) / this.#season) * this.#season
    let sum = 0
    let count = 0
    for (let i = phase; i >= 0 && count < NEIGHBOURS; i -= this.#season) {
      sum += values[i]!
      count++
    }
    return count > 0 ? values[t]! - sum / count : 0
  }

  #learn(y: Float64Array) {
    let found = this.#known.get(y.length)
    if (found === undefined) {
      const local = this.#compare(y)
      found = { local, effects: this.#regress(y, local) }
      this.#known.set(y.length, found)
    }
    return found
  }

  #compare(y: Float64Array): Local {
    const n = y.length
    const mean = y.reduce((sum, value) => sum + value, 0) / Math.max(1, n)
    const level = new Float64Array(n)
    const contrast = this.columns.map(() => new Float64Array(n))
    for (let t = 0; t < n; t++) {
      let count = 0
      const sums = new Float64Array(this.columns.length)
      for (const side of [-1, 1]) {
        let taken = 0
        for (let i = t + side * this.#season; i >= 0 && i < n && taken < NEIGHBOURS; i += side * this.#season) {
          if (this.#touched[i] === 1) continue
          level[t]! += y[i]!
          for (let j = 0; j < sums.length; j++) sums[j]! += this.columns[j]!.values[i]!
          taken++
        }
        count += taken
      }
      level[t] = Math.max(0, count > 0 ? level[t]! / count : mean)
      for (let j = 0; j < sums.length; j++) {
        const { event, values } = this.columns[j]!
        contrast[j]![t] = event ? values[t]! : count > 0 ? values[t]! - sums[j]! / count : 0
      }
    }
    return { level, contrast }
  }

  #regress(y: Float64Array, { level, contrast }: Local): Effects {
    const width = this.columns.length
    const n = y.length
    const gram = Array.from({ length: width }, () => new Float64Array(width))
    const cross = new Float64Array(width)
    const occurrences = new Int32Array(width)
    const squares = new Float64Array(width)
    let noise = 0
    let quiet = 0
    for (let t = 0; t < n; t++) {
      const gap = y[t]! - level[t]!
      if (this.#touched[t] === 0) {
        noise += gap * gap
        quiet++
      }
      for (let i = 0; i < width; i++) {
        const x = contrast[i]![t]!
        if (x === 0) continue
        occurrences[i]!++
        squares[i]! += x * x
        cross[i]! += level[t]! * x * gap
        for (let j = 0; j < width; j++) gram[i]![j]! += level[t]! * level[t]! * x * contrast[j]![t]!
      }
    }
    const variance = quiet > 0 ? noise / quiet : 0
    for (let i = 0; i < width; i++) {
      const spread = Math.sqrt(squares[i]! / Math.max(1, n))
      const prior = this.columns[i]!.event ? PRIOR_EVENT : PRIOR_FIGURE / Math.max(spread, Number.MIN_VALUE)
      gram[i]![i]! += variance / (prior * prior) + 1e-9 * (1 + gram[i]![i]!)
    }
    return { perUnit: solve(gram, cross), occurrences }
  }
}

/** Gauss with the ridge on the diagonal: symmetric and positive definite, so no pivoting. */
function solve(a: Float64Array[], b: Float64Array): Float64Array {
  const n = b.length
  const x = b.slice()
  for (let i = 0; i < n; i++) {
    for (let r = i + 1; r < n; r++) {
      const ratio = a[r]![i]! / a[i]![i]!
      if (ratio === 0) continue
      for (let c = i; c < n; c++) a[r]![c]! -= ratio * a[i]![c]!
      x[r]! -= ratio * x[i]!
    }
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let c = i + 1; c < n; c++) x[i]! -= a[i]![c]! * x[c]!
    x[i]! /= a[i]![i]!
  }
  return x
}

/** Models that take factors as regressors of their own. */
const NATIVE: ReadonlySet<string> = new Set(['arima', 'prophet'])

/** Any model on the series without its factors, whose effects are put back on what it forecasts (regression with its errors). */
export function withFactors(name: string, core: Fit): Fit {
  return (y, context) => {
    const { factors } = context
    if (factors === undefined || NATIVE.has(name)) return core(y, context)
    const fitted = core(factors.without(y), context)
    return (
      fitted && {
        forecast(prefix, out) {
          fitted.forecast(factors.without(prefix), out)
          factors.apply(prefix, out)
        }
      }
    )
  }
}

/** What varies within [from, to): a constant says nothing, and libraries fail on it. */
export const varying = ({ columns }: Factors, from: number, to: number): Float64Array[] =>
  columns
    .map(({ values }) => values)
    .filter((values) => {
      for (let t = from + 1; t < to; t++) if (values[t] !== values[from]) return true
      return false
    })
