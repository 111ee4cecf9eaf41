import type { Forecast, Frequency } from '../../schemas/forecasting.js'
import type { Aggregate } from '../../schemas/hierarchy.js'
import type { BaseForecast } from './hierarchy-worker.js'
import { bottomUp, type Errors, fitToTotal, type Hierarchy, minTrace, shrinkage } from './models/hierarchy.js'
import { moved } from './outcomes.js'
import { type DemandSeries, dayText } from './series.js'

/** Smaller changes of a mean are not worth a new answer. */
const CHANGE_MIN = 1e-4

/** The arithmetic of forecasts of sums: which method, and the answers. Pure. */

export interface Shape {
  frequency: Frequency
  stepDays: number
  /** periods */
  horizon: number
  history: number
  /** below this nothing is judged, and sums are made from the bottom */
  historyMin: number
}
export const SHAPES: Record<Frequency, Shape> = {
  day: { frequency: 'day', stepDays: 1, horizon: 28, history: 730, historyMin: 84 },
  week: { frequency: 'week', stepDays: 7, horizon: 13, history: 260, historyMin: 39 }
}
/** Origins of the back-test: the earlier one teaches the covariance, the later one judges. */
export const originsOf = ({ horizon }: Shape): number[] => [2 * horizon, horizon]

/** As much of a series as the back-test looks at: less to send to a thread. */
export const recentOf = ({ values }: DemandSeries, shape: Shape): Pick<DemandSeries, 'values'> => ({
  values: values.slice(-Math.max(...originsOf(shape)))
})

type Child = Aggregate['children'][number]
export interface Bottom {
  level: Child['level']
  key: string
  category: string
  series: DemandSeries
}

const MICROS = 1_000_000
const round = (value: number) => Math.round(value * MICROS) / MICROS

/** Errors of the forecasts made from an origin, a row per period. */
function errorsAt(
  all: readonly Pick<DemandSeries, 'values'>[],
  base: readonly Pick<BaseForecast, 'past'>[],
  origin: number,
  shape: Shape
): Float64Array[] {
  const back = originsOf(shape)[origin] ?? 0
  return Array.from({ length: shape.horizon }, (_, k) =>
    Float64Array.from(
      all,
      ({ values }, i) => (values[values.length - back + k] ?? 0) - (base[i]?.past[origin]?.[k] ?? 0)
    )
  )
}

export interface Chosen extends Pick<Aggregate, 'method' | 'backTest'> {
  errors: Errors
}

/** Bottom-up or MinT: whichever erred less on the last horizon, over items and sums, from what was known before it. */
export function choose(
  hierarchy: Hierarchy,
  all: readonly Pick<DemandSeries, 'values'>[],
  base: readonly Pick<BaseForecast, 'past'>[],
  periods: number,
  shape: Shape
): Chosen {
  const earlier = errorsAt(all, base, 0, shape)
  const later = errorsAt(all, base, 1, shape)
  const errors = [...earlier, ...later]
  const { lambda } = shrinkage(errors)
  const none = { baseWape: null, bottomUpWape: null, mintWape: null, shrinkage: round(lambda) }
  if (periods < shape.historyMin) return { method: 'bottom-up', backTest: none, errors }
  const learnt = shrinkage(earlier)
  const sums = { base: 0, bottomUp: 0, mint: 0, actual: 0 }
  for (let k = 0; k < shape.horizon; k++) {
    const made = Float64Array.from(base, ({ past }) => past[1]?.[k] ?? 0)
    const up = bottomUp(hierarchy, made)
    const mint = minTrace(hierarchy, made, earlier, learnt)
    for (let i = 0; i < made.length; i++) {
      const actual = made[i]! + later[k]![i]!
      sums.actual += Math.abs(actual)
      sums.base += Math.abs(actual - made[i]!)
      sums.bottomUp += Math.abs(actual - up[i]!)
      sums.mint += Math.abs(actual - mint[i]!)
    }
  }
  const wape = (sum: number) => (sums.actual > 0 ? Math.round((1_000_000 * sum) / sums.actual) / 10_000 : null)
  return {
    method: sums.mint < sums.bottomUp ? 'mint' : 'bottom-up',
    backTest: {
      baseWape: wape(sums.base),
      bottomUpWape: wape(sums.bottomUp),
      mintWape: wape(sums.mint),
      shrinkage: round(lambda)
    },
    errors
  }
}

/** The bottom series' means that agree with their sums, a row per series, rounded: what items serve when MinT is the better one. */
export function reconcile(
  hierarchy: Hierarchy,
  base: readonly number[][],
  { errors }: Chosen,
  horizon: number
): number[][] {
  const learnt = shrinkage(errors)
  const m = hierarchy.members.length
  const found = Array.from({ length: hierarchy.bottoms }, () => new Array<number>(horizon).fill(0))
  for (let k = 0; k < horizon; k++) {
    const made = Float64Array.from(base, (path) => path[k] ?? 0)
    const means = minTrace(hierarchy, made, errors, learnt)
    for (let i = 0; i < hierarchy.bottoms; i++) found[i]![k] = round(means[m + i]!)
  }
  return found
}

/** A path as far as it goes, and another from there on: an item may be forecast for fewer periods than its sums are. */
export const onwards = (path: readonly number[] | undefined, rest: readonly number[]): number[] => [
  ...(path ?? []),
  ...rest.slice(path?.length ?? 0)
]

/** An item's part of what its bottom series was reconciled to; undefined where that changes nothing, or it serves nothing. */
export function shareOf(
  { level, own }: Pick<Bottom, 'level'> & { own: number[] | undefined },
  agreed: number[] | undefined,
  alone: number[] | undefined
): number[] | undefined {
  if (own === undefined || agreed === undefined || alone === undefined) return undefined
  const means = alone.map((mean, k) => {
    const whole = own[k] ?? 0
    const part = agreed[k] ?? whole
    return level === 'item' ? part : whole > 0 ? (mean * part) / whole : mean
  })
  return means.some((mean, k) => Math.abs(mean - (alone[k] ?? 0)) > CHANGE_MIN) ? means : undefined
}

/** A forecast's means for the periods from `first` on, as far as it goes; undefined where it says nothing of the first. */
export function meansFrom({ points }: Forecast, first: number, horizon: number): number[] | undefined {
  const at = points.findIndex(({ date }) => date === dayText(first))
  return at < 0 ? undefined : points.slice(at, at + horizon).map(({ mean }) => mean)
}

/** Adds paths up, rounded once. */
export const addUp = (paths: readonly (readonly number[])[], horizon: number): number[] =>
  Array.from({ length: horizon }, (_, k) => round(paths.reduce((sum, path) => sum + (path[k] ?? 0), 0)))

/** Points with these means, and the intervals that were found around others, in proportion. */
export function pointsOf(
  means: readonly number[],
  own: BaseForecast['ahead'] | undefined,
  first: number,
  stepDays: number
): Aggregate['points'] {
  return means.map((mean, k) => {
    const made = own?.mean[k] ?? mean
    const bound = (value: number | undefined) => round(Math.max(0, moved(value ?? made, made, mean)))
    return {
      date: dayText(first + k * stepDays),
      mean,
      lower80: bound(own?.lower80[k]),
      upper80: bound(own?.upper80[k]),
      lower95: bound(own?.lower95[k]),
      upper95: bound(own?.upper95[k])
    }
  })
}

interface Answering extends Pick<Aggregate, 'method' | 'backTest' | 'trainedAt' | 'dataTo'> {
  shape: Shape
  bottoms: readonly Pick<Bottom, 'level' | 'key' | 'category'>[]
  /** what each bottom series serves */
  paths: readonly number[][]
  categories: readonly string[]
  /** of the total and each category */
  base: readonly BaseForecast[]
  locations: readonly { location: string; series: DemandSeries; base: BaseForecast }[]
  /** first day of the first period */
  first: number
}

/** The answers of all sums, from the total down: each is the sum of what its parts serve. */
export function answersOf(given: Answering): Aggregate[] {
  const { shape, bottoms, paths, categories, base, locations, first, method, backTest, trainedAt, dataTo } = given
  const { horizon, stepDays, frequency } = shape
  const shared = { frequency, method, backTest, trainedAt, dataTo }
  const indexes = categories.map((name) => bottoms.flatMap(({ category }, i) => (category === name ? [i] : [])))
  const ofCategories = indexes.map((own) =>
    addUp(
      own.map((i) => paths[i] ?? []),
      horizon
    )
  )
  const total = addUp(ofCategories, horizon)
  const variances = Float64Array.from(locations, ({ series, base: own }) => {
    return errorsAt([series], [own], 1, shape).reduce((sum, row) => sum + (row[0] ?? 0) ** 2, 0) / horizon
  })
  const parts = total.map((mean, k) =>
    fitToTotal(
      Float64Array.from(locations, ({ base: own }) => own.ahead?.mean[k] ?? 0),
      variances,
      mean
    ).map(round)
  )
  return [
    {
      ...shared,
      level: 'total',
      key: '',
      points: pointsOf(total, base[0]?.ahead, first, stepDays),
      children: categories.map((key, c) => ({ level: 'category', key, means: ofCategories[c] ?? [] }))
    },
    ...categories.map(
      (key, c): Aggregate => ({
        ...shared,
        level: 'category',
        key,
        points: pointsOf(ofCategories[c] ?? [], base[1 + c]?.ahead, first, stepDays),
        children: (indexes[c] ?? []).flatMap((i) => {
          const bottom = bottoms[i]
          return bottom === undefined ? [] : [{ level: bottom.level, key: bottom.key, means: paths[i] ?? [] }]
        })
      })
    ),
    ...locations.map(
      ({ location, base: own }, i): Aggregate => ({
        ...shared,
        level: 'location',
        key: location,
        points: pointsOf(
          parts.map((row) => row[i] ?? 0),
          own.ahead,
          first,
          stepDays
        ),
        children: []
      })
    )
  ]
}

/** The sums again after some items serve something else: `serves` answers what a child serves now, as far as it goes; beyond: as before. */
export function sumAgain(
  stored: readonly Aggregate[],
  serves: (child: Child, category: string) => readonly number[] | undefined
): Aggregate[] {
  const total = stored.find(({ level }) => level === 'total')
  if (total === undefined) return [...stored]
  const horizon = total.points.length
  const withMeans = (one: Aggregate, means: readonly number[]): Aggregate => ({
    ...one,
    points: one.points.map((point, k) => {
      const mean = means[k] ?? point.mean
      const bound = (value: number) => round(Math.max(0, moved(value, point.mean, mean)))
      return {
        date: point.date,
        mean,
        lower80: bound(point.lower80),
        upper80: bound(point.upper80),
        lower95: bound(point.lower95),
        upper95: bound(point.upper95)
      }
    })
  })
  const categories = stored
    .filter(({ level }) => level === 'category')
    .map((one) => {
      const children = one.children.map((child) => ({ ...child, means: onwards(serves(child, one.key), child.means) }))
      return {
        ...withMeans(
          one,
          addUp(
            children.map(({ means }) => means),
            horizon
          )
        ),
        children
      }
    })
  const means = addUp(
    categories.map(({ points }) => points.map(({ mean }) => mean)),
    horizon
  )
  const again = withMeans(total, means)
  const locations = stored
    .filter(({ level }) => level === 'location')
    .map((one) =>
      withMeans(
        one,
        one.points.map(({ mean }, k) => {
          const before = total.points[k]?.mean ?? 0
          return before > 0 ? round((mean * (means[k] ?? 0)) / before) : mean
        })
      )
    )
  return [
    {
      ...again,
      children: total.children.map((child) => {
        const category = categories.find(({ key }) => key === child.key)
        return { ...child, means: category?.points.map(({ mean }) => mean) ?? child.means }
      })
    },
    ...categories,
    ...locations
  ]
}
