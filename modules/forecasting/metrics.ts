import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import {
  type AccuracySummary,
  DRIFT_KINDS,
  type DriftKind,
  FORECAST_MODELS,
  type Realised
} from '../../schemas/forecasting.js'

const DURATION_BUCKETS_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15]
const LEVELS = { 80: 'coverage80', 95: 'coverage95' } as const

const REALISED = ['wape', 'mase', 'bias', 'coverage80', 'coverage95', 'baselineWape'] as const

/** What learning shows of one tenant. */
export interface LearningFigures {
  realised: Realised[]
  waiting: number
  overrides: number
}

type Measure = 'wape' | 'mase' | 'bias' | 'coverage80' | 'coverage95'
type Row = AccuracySummary['byModel'][number]

/** Mean over tenants of one figure, weighted by series; undefined where none has it. */
function mean(rows: readonly Row[], measure: Measure): number | undefined {
  const known = rows.filter((row) => row[measure] !== null)
  const series = known.reduce((sum, row) => sum + row.series, 0)
  return series === 0 ? undefined : known.reduce((sum, row) => sum + row.series * (row[measure] ?? 0), 0) / series
}

/** What forecasting shows Prometheus. The gauges hold the figures last read of each tenant. */
export function createForecastMetrics(registry: Registry) {
  const registers = [registry]
  const tenants = new Map<string, AccuracySummary>()
  let newest = 0
  const runs = new Counter({
    name: 'forecast_runs_total',
    help: 'Series whose training ended, by the model that serves and outcome.',
    labelNames: ['model', 'outcome'] as const,
    registers
  })
  const duration = new Histogram({
    name: 'forecast_run_duration_seconds',
    help: 'Training time of one series, by the model that serves.',
    labelNames: ['model'] as const,
    buckets: DURATION_BUCKETS_SECONDS,
    registers
  })
  const skipped = new Counter({
    name: 'forecast_skipped_total',
    help: 'Series not trained again because nothing had changed.',
    registers
  })
  const lastSuccess = new Gauge({
    name: 'forecast_last_success_timestamp_seconds',
    help: 'Unix time of the end of the last training run.',
    registers
  })
  for (const model of FORECAST_MODELS) duration.zero({ model })
  for (const model of [...FORECAST_MODELS, 'none']) {
    for (const outcome of ['success', 'failure', 'timeout']) runs.inc({ model, outcome }, 0)
  }
  const rowsByModel = () => {
    const byModel = new Map<string, Row[]>()
    for (const { byModel: rows } of tenants.values()) {
      for (const row of rows) byModel.set(row.model, [...(byModel.get(row.model) ?? []), row])
    }
    return byModel
  }
  const gauge = (name: string, help: string, measure: Measure, scale: number) =>
    new Gauge({
      name,
      help,
      labelNames: ['model'] as const,
      registers,
      collect() {
        this.reset()
        for (const [model, rows] of rowsByModel()) {
          const value = mean(rows, measure)
          if (value !== undefined) this.set({ model }, value * scale)
        }
      }
    })
  gauge('forecast_wape_ratio', 'Weighted absolute percentage error on the last back-test.', 'wape', 0.01)
  gauge('forecast_mase_ratio', 'Mean absolute scaled error on the last back-test.', 'mase', 1)
  gauge('forecast_bias_ratio', 'Signed error over actuals on the last back-test.', 'bias', 0.01)
  new Gauge({
    name: 'forecast_interval_coverage_ratio',
    help: 'Share of actual values inside the interval on the last back-test.',
    labelNames: ['model', 'level'] as const,
    registers,
    collect() {
      this.reset()
      for (const [model, rows] of rowsByModel()) {
        for (const [level, measure] of Object.entries(LEVELS)) {
          const value = mean(rows, measure)
          if (value !== undefined) this.set({ model, level }, value)
        }
      }
    }
  })
  new Gauge({
    name: 'forecast_series',
    help: 'Series by the model that serves them.',
    labelNames: ['model'] as const,
    registers,
    collect() {
      const found = rowsByModel()
      for (const model of FORECAST_MODELS) {
        this.set(
          { model },
          (found.get(model) ?? []).reduce((sum, row) => sum + row.series, 0)
        )
      }
    }
  })
  new Gauge({
    name: 'forecast_naive_wins_ratio',
    help: 'Share of series where nothing beat the naive baseline.',
    registers,
    collect() {
      let series = 0
      let naive = 0
      for (const summary of tenants.values()) {
        series += summary.series
        naive += summary.baselineServes
      }
      this.set(series === 0 ? 0 : naive / series)
    }
  })
  const { drifts, learnt } = learningMetrics(registry)
  return {
    drifted: (kind: DriftKind) => drifts.inc({ kind }),
    learnt: (tenant: string, figures: LearningFigures) => void learnt.set(tenant, figures),
    trained(model: string, seconds: number) {
      runs.inc({ model, outcome: 'success' })
      duration.observe({ model }, seconds)
    },
    failed: (outcome: 'failure' | 'timeout') => runs.inc({ model: 'none', outcome }),
    skipped: (count: number) => skipped.inc(count),
    ended(at: number) {
      newest = Math.max(newest, at)
      lastSuccess.set(newest / 1000)
    },
    observe: (tenant: string, summary: AccuracySummary) => void tenants.set(tenant, summary)
  }
}

export type ForecastMetrics = ReturnType<typeof createForecastMetrics>

/** What became of the forecasts that were served. Means over tenants are weighted by periods. */
function learningMetrics(registry: Registry) {
  const registers = [registry]
  const learnt = new Map<string, LearningFigures>()
  const drifts = new Counter({
    name: 'forecast_drift_total',
    help: 'Series found to have drifted from their forecast, by kind.',
    labelNames: ['kind'] as const,
    registers
  })
  for (const kind of DRIFT_KINDS) drifts.inc({ kind }, 0)
  new Gauge({
    name: 'forecast_realised_ratio',
    help: 'Accuracy of the forecasts that were served, over the last days of data: errors over what was used, shares covered.',
    labelNames: ['measure', 'window_days'] as const,
    registers,
    collect() {
      this.reset()
      for (const window of [7, 28, 90]) {
        const found = [...learnt.values()].flatMap(({ realised }) =>
          realised.filter((one) => one.windowDays === window)
        )
        for (const measure of REALISED) {
          const known = found.filter((one) => one[measure] !== null)
          const periods = known.reduce((sum, one) => sum + one.periods, 0)
          if (periods === 0) continue
          const value = known.reduce((sum, one) => sum + one.periods * (one[measure] ?? 0), 0) / periods
          const percent = measure === 'wape' || measure === 'bias' || measure === 'baselineWape'
          this.set({ measure, window_days: String(window) }, percent ? value / 100 : value)
        }
      }
    }
  })
  const count = (name: string, help: string, of: (figures: LearningFigures) => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set([...learnt.values()].reduce((sum, figures) => sum + of(figures), 0))
      }
    })
  count('forecast_drift_waiting', 'Drifted series that wait to be trained again.', ({ waiting }) => waiting)
  count('forecast_overrides', 'Overrides of forecasts in force.', ({ overrides }) => overrides)
  return { drifts, learnt }
}
