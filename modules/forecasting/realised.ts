import type { Tenant } from '../../plugins/contracts.js'
import type { AccuracyHistory, Drift, Frequency, ItemAccuracy, Realised } from '../../schemas/forecasting.js'
import { WINDOWS_DAYS } from '../../schemas/forecasting.js'
import { OUTCOME_DAYS } from './learn.js'
import { createLearningStore, type DriftRow } from './learning-store.js'
import { addSums, measuresOf, noSums, type Sums, sumOutcomes } from './outcomes.js'
import { dayNumber, dayText, periodDays } from './series.js'

/** What became of the forecasts that were served. */

const storeOf = (tenant: Tenant) => createLearningStore(tenant.db, tenant.dialect)

/** The first period of a window that ends with `last`: whole periods only, at least one. */
function firstOf(last: string, windowDays: number, frequency: Frequency): string {
  const step = periodDays(frequency)
  return dayText(dayNumber(last) - (Math.max(1, Math.floor(windowDays / step)) - 1) * step)
}

const emptyWindow = (windowDays: number, frequency: Frequency) => ({ windowDays, frequency, from: null, to: null })

/** All items, by model and together. Without a frequency the daily ones, or the weekly where there are no others. */
export async function realisedAccuracy(tenant: Tenant, windowDays: number, wanted?: Frequency) {
  const store = storeOf(tenant)
  const daily = wanted === 'week' ? undefined : await store.lastPeriod('day')
  const frequency: Frequency = wanted ?? (daily === undefined ? 'week' : 'day')
  const last = daily ?? (wanted === 'day' ? undefined : await store.lastPeriod('week'))
  if (last === undefined) {
    return { ...emptyWindow(windowDays, wanted ?? 'day'), ...measuresOf(noSums()), byModel: [] }
  }
  const from = firstOf(last, windowDays, frequency)
  const byModel = new Map<string, Sums>()
  for (const { model, sums } of await store.accuracyFrom(frequency, from)) {
    byModel.set(model, addSums(byModel.get(model) ?? noSums(), sums))
  }
  return {
    windowDays,
    frequency,
    from,
    to: last,
    ...measuresOf([...byModel.values()].reduce(addSums, noSums())),
    byModel: [...byModel].sort(([a], [b]) => (a < b ? -1 : 1)).map(([model, sums]) => ({ model, ...measuresOf(sums) }))
  }
}

/** All items per month, oldest first, from the first forecast on. */
export async function accuracyHistory(tenant: Tenant, frequency: Frequency): Promise<AccuracyHistory> {
  const months = new Map<string, Sums>()
  for (const { period, sums } of await storeOf(tenant).accuracyFrom(frequency, '')) {
    const month = period.slice(0, 7)
    months.set(month, addSums(months.get(month) ?? noSums(), sums))
  }
  return { frequency, data: [...months].map(([month, sums]) => ({ month, ...measuresOf(sums) })) }
}

export type Locale = 'en' | 'fr'
const REASONS: Record<DriftRow['kind'], Record<Locale, string>> = {
  'level-up': {
    en: 'More is used than was forecast, and that is no chance.',
    fr: 'La consommation dépasse la prévision, et ce n’est pas un hasard.'
  },
  'level-down': {
    en: 'Less is used than was forecast, and that is no chance.',
    fr: 'La consommation est inférieure à la prévision, et ce n’est pas un hasard.'
  },
  'error-growth': {
    en: 'The errors have grown beyond those of the back-test.',
    fr: 'Les erreurs dépassent celles mesurées lors de l’apprentissage.'
  },
  'bias-high': {
    en: 'Forecasts have been too high on the whole.',
    fr: 'Les prévisions ont été trop hautes dans l’ensemble.'
  },
  'bias-low': {
    en: 'Forecasts have been too low on the whole.',
    fr: 'Les prévisions ont été trop basses dans l’ensemble.'
  }
}
export const toDrift = (row: DriftRow, locale: Locale): Drift => ({
  id: row.id,
  itemCode: row.item_code,
  frequency: row.frequency,
  detectedOn: row.detected_on,
  kind: row.kind,
  statistic: row.statistic,
  reason: REASONS[row.kind][locale],
  detectedAt: new Date(row.detected_at).toISOString(),
  retrainedAt: row.retrained_at === null ? null : new Date(row.retrained_at).toISOString()
})

/** One series: accuracy by window, alarms, and each period that was forecast beside what happened. */
export async function itemAccuracy(
  tenant: Tenant,
  itemCode: string,
  frequency: Frequency,
  locale: Locale
): Promise<ItemAccuracy> {
  const store = storeOf(tenant)
  const outcomes = (await store.outcomes([itemCode], frequency, '')).get(itemCode) ?? []
  const last = outcomes.at(-1)?.period
  const windows: Realised[] = WINDOWS_DAYS.map((windowDays) => {
    if (last === undefined) return { ...emptyWindow(windowDays, frequency), ...measuresOf(noSums()) }
    const from = firstOf(last, windowDays, frequency)
    const sums = sumOutcomes(outcomes.filter(({ period }) => period >= from))
    return { windowDays, frequency, from, to: last, ...measuresOf(sums) }
  })
  const drift = await store.drifts({ itemCode, frequency }, undefined, 10)
  return {
    itemCode,
    frequency,
    windows,
    drift: drift.map((row) => toDrift(row, locale)),
    history: outcomes.slice(-OUTCOME_DAYS).map(({ itemCode: _, period, mae, rmse, scale, ...shown }) => ({
      date: period,
      ...shown
    }))
  }
}

/** For metrics. */
export async function learningFigures(tenant: Tenant, today: string) {
  const store = storeOf(tenant)
  const realised: Realised[] = []
  for (const windowDays of WINDOWS_DAYS) {
    const { byModel: _, ...figures } = await realisedAccuracy(tenant, windowDays)
    realised.push(figures)
  }
  return {
    realised,
    waiting: (await store.driftCounts()).reduce((sum, { waiting }) => sum + waiting, 0),
    overrides: await store.activeOverrides(today)
  }
}
