import type { BaseForecast } from './hierarchy-worker.js'
import type { Hierarchy } from './models/hierarchy.js'
import type { DemandSeries } from './series.js'
import { type Chosen, choose, reconcile, type Shape } from './sums.js'

/** Which method makes the sums of a hierarchy, and what its bottom series then serve, in a worker thread. */
export interface SumsTask {
  hierarchy: Hierarchy
  /** sums first, then the bottom series; no more of them than is judged, which `recentOf` answers */
  all: readonly Pick<DemandSeries, 'values'>[]
  base: readonly Pick<BaseForecast, 'past'>[]
  /** of the history that all of them have */
  periods: number
  shape: Shape
  /** each series' forecast from the end of the data */
  made: readonly number[][]
}
export interface Agreed extends Pick<Chosen, 'method' | 'backTest'> {
  /** a path for each bottom series; undefined where sums are made from the bottom */
  agreed: number[][] | undefined
}

export default function agree({ hierarchy, all, base, periods, shape, made }: SumsTask): Agreed {
  const chosen = choose(hierarchy, all, base, periods, shape)
  const { method, backTest } = chosen
  return {
    method,
    backTest,
    agreed: method === 'mint' ? reconcile(hierarchy, made, chosen, shape.horizon) : undefined
  }
}
