import { fitNaive, fitSeasonalNaive } from './baseline.js'
import { fitSes } from './smoothing.js'
import type { Fit, ModelName } from './types.js'

/** Fit function per model that needs no loading. */
export const POOL: Partial<Record<ModelName, Fit>> = {
  naive: fitNaive,
  'seasonal-naive': fitSeasonalNaive,
  ses: fitSes
}

/** Members of the default combination. */
export const DEFAULT_MEMBERS: readonly ModelName[] = ['naive', 'seasonal-naive', 'ses']
