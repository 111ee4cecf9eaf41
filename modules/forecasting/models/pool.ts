import { autoregression } from './ar.js'
import { fitMean, fitMedian, fitNaive, fitSeasonalNaive } from './baseline.js'
import { fitNegativeBinomial } from './counts.js'
import { fitHoltWinters } from './holt-winters.js'
import { adjusted } from './seasons.js'
import { fitHolt, fitSes } from './smoothing.js'
import { fitAdida, fitCroston, fitImapa, fitSba, fitTsb } from './sparse.js'
import { fitDotm, fitTheta } from './theta.js'
import type { Fit, ModelName } from './types.js'
import { aggregated, everySeason, logged, robust, seasonallyDifferenced } from './wrap.js'

const differences = autoregression(true)

/** Seasonal figures with every cycle nearly as heavy as the next, or with the recent ones clearly heavier. */
const steady = (core: Fit): Fit => everySeason(adjusted(core, 0.9, true, false))
const recent = (core: Fit): Fit => everySeason(adjusted(core, 0.7, true, false))

/** Fit function per model that needs no loading. */
export const POOL: Partial<Record<ModelName, Fit>> = {
  naive: fitNaive,
  'seasonal-naive': fitSeasonalNaive,
  median: fitMedian,
  ses: steady(fitSes),
  'holt-damped': steady(fitHolt),
  'holt-winters': fitHoltWinters,
  theta: recent(fitTheta),
  dotm: steady(fitDotm),
  ar: everySeason(logged(differences)),
  'ar-levels': everySeason(logged(autoregression(false))),
  'ar-robust': everySeason(logged(robust(differences))),
  'ar-seasonal': seasonallyDifferenced(autoregression(false)),
  'stl-damped': everySeason(adjusted(fitHolt, 0.8, true, true)),
  'stl-theta': everySeason(adjusted(fitTheta, 0.8, true, true)),
  'stl-ar': adjusted(differences, 0.8, true, true),
  'stl-ar-levels': adjusted(autoregression(false), 0.9, true, true),
  'mapa-damped': logged(recent(aggregated(fitHolt))),
  'mapa-theta': logged(steady(aggregated(fitTheta))),
  'mapa-dotm': steady(aggregated(fitDotm)),
  'mapa-robust': logged(robust(steady(aggregated(fitHolt)))),
  croston: fitCroston,
  sba: fitSba,
  tsb: fitTsb,
  adida: fitAdida,
  imapa: fitImapa,
  'negative-binomial': fitNegativeBinomial,
  empirical: fitMean
}

/** Models that are fitted anew at every origin: they are judged from fewer origins. */
export const SLOW_MODELS: readonly ModelName[] = ['arima', 'prophet']

/**
 * Loads the models named that live in WebAssembly; to be awaited before `forecast` is asked for one of them. The default
 * pool needs nothing.
 */
export async function loadModels(names: readonly ModelName[]): Promise<void> {
  if (names.includes('arima')) POOL.arima ??= await (await import('./arima.js')).loadArima()
  if (names.includes('prophet')) POOL.prophet ??= (await import('./prophet.js')).fitProphet
}

/** Members of the default combination. The mean of all that is known stands for demand that comes back to where it was. */
export const DEFAULT_MEMBERS: readonly ModelName[] = [
  'naive',
  'empirical',
  'seasonal-naive',
  'median',
  'theta',
  'holt-winters',
  'stl-damped',
  'stl-ar-levels',
  'ar',
  'ar-levels',
  'ar-robust',
  'ar-seasonal',
  'mapa-theta',
  'mapa-dotm',
  'mapa-robust'
]

/** Members of the default combination for uneven demand too short to show more than a level. */
export const LEVEL_MEMBERS: readonly ModelName[] = ['empirical', 'ses', 'tsb', 'negative-binomial']

/** Members of the default combination for sparse demand without a season: rates, and two that see demand die out. */
export const SPARSE_MEMBERS: readonly ModelName[] = ['tsb', 'negative-binomial', 'theta', 'ar-levels']
