import { Counter, type Registry } from 'prom-client'
import { NO_TELEMETRY, type Telemetry, type TelemetrySettings } from './tracing.js'

export {
  NO_TELEMETRY,
  NO_TRACING,
  type SpanOptions,
  type Telemetry,
  type TelemetrySettings,
  type Tracing
} from './tracing.js'

/**
 * What the service tells of single requests, beside its metrics.
 *
 * Traces: `tracing.ts` is what the rest of the program knows of them; `open.ts` loads OpenTelemetry for it, `provider.ts` makes and sends
 * the spans, and `http.ts`, `channels.ts`, `query-spans.ts` and `traced-worker.ts` find what to make them of. Logs: `request-log.ts` gives a
 * line the ids of its request, `log-redaction.ts` takes secrets out of it, `log-level.ts` sets while the service runs how much is told, and
 * `slow-queries.ts` adds the plan. `trace-id.ts` connects the two.
 */

/** Traces when there is somewhere to send them. Without, no package of OpenTelemetry is even loaded. */
export async function openTelemetry(settings: TelemetrySettings | undefined): Promise<Telemetry> {
  if (settings === undefined) return NO_TELEMETRY
  const { openProvider } = await import('./open.js')
  return openProvider(settings)
}

export function telemetryMetrics(registry: Registry, telemetry: Telemetry): void {
  new Counter({
    name: 'telemetry_spans_total',
    help: 'Spans handed to the collector, by whether it took them.',
    labelNames: ['outcome'] as const,
    registers: [registry],
    collect() {
      this.reset()
      for (const outcome of ['success', 'failure'] as const) this.inc({ outcome }, telemetry.exported[outcome])
    }
  })
}
