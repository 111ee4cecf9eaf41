import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { Detector, Severity } from './detectors.js'

const DETECTORS: Detector[] = ['zscore', 'seasonal', 'count-tail']
const SEVERITIES: Severity[] = ['low', 'medium', 'high']

export type OpenCounts = Record<Severity, number>

export function createAnomalyMetrics(registry: Registry) {
  const registers = [registry]
  const open = new Map<string, OpenCounts>()
  const detections = new Counter({
    name: 'anomaly_detections_total',
    help: 'Anomalies found for the first time.',
    labelNames: ['detector', 'severity'] as const,
    registers
  })
  const feedback = new Counter({
    name: 'anomaly_feedback_total',
    help: 'Verdicts of people on anomalies.',
    labelNames: ['verdict'] as const,
    registers
  })
  const scan = new Histogram({
    name: 'anomaly_scan_duration_seconds',
    help: 'Time to look through the series asked for.',
    buckets: [0.01, 0.05, 0.1, 0.5, 1, 5, 15, 30, 60, 300],
    registers
  })
  const scanned = new Counter({
    name: 'anomaly_series_scanned_total',
    help: 'Series of use looked through.',
    registers
  })
  const scannedAt = new Gauge({
    name: 'anomaly_last_scan_timestamp_seconds',
    help: 'Unix time of the last look through series by this process; 0 before the first.',
    registers
  })
  for (const detector of DETECTORS) for (const severity of SEVERITIES) detections.inc({ detector, severity }, 0)
  for (const verdict of ['confirmed', 'dismissed']) feedback.inc({ verdict }, 0)
  new Gauge({
    name: 'anomaly_open',
    help: 'Anomalies not resolved, as last counted.',
    labelNames: ['severity'] as const,
    registers,
    collect() {
      for (const severity of SEVERITIES) {
        this.set(
          { severity },
          [...open.values()].reduce((sum, counts) => sum + counts[severity], 0)
        )
      }
    }
  })
  return {
    detected: (detector: Detector, severity: Severity) => detections.inc({ detector, severity }),
    judged: (verdict: 'confirmed' | 'dismissed') => feedback.inc({ verdict }),
    scanned: (series: number, seconds: number) => {
      scan.observe(seconds)
      scanned.inc(series)
      scannedAt.setToCurrentTime()
    },
    observe: (tenant: string, counts: OpenCounts) => void open.set(tenant, counts)
  }
}

export type AnomalyMetrics = ReturnType<typeof createAnomalyMetrics>
