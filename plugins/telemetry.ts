import type { FastifyInstance } from 'fastify'
import { Counter, type Registry } from 'prom-client'
import { NO_TRACING, type Tracing } from './tracing.js'

export { NO_TRACING, type SpanOptions, type Tracing } from './tracing.js'

export interface TelemetrySettings {
  /** Of a collector, such as `http://127.0.0.1:4318`. */
  readonly endpoint: string
  readonly serviceName: string
  readonly version: string
  /** As `OTEL_TRACES_SAMPLER` names it. */
  readonly sampler: string
  /** The share of traces that is kept, for the samplers that have one. */
  readonly ratio: number
}

/** Tracing of one app, with what only its core needs of it. */
export interface Telemetry extends Tracing {
  /** Makes spans of requests, and of what the process asks of Redis and over HTTP. Before any other hook. */
  watch(app: FastifyInstance): void
  /** Spans that were sent, and that the collector did not take. */
  readonly exported: Readonly<Record<'success' | 'failure', number>>
  /** Sends what is left, for two seconds at most. */
  close(): Promise<void>
}

export const NO_TELEMETRY: Telemetry = {
  ...NO_TRACING,
  watch: () => {},
  exported: { success: 0, failure: 0 },
  close: async () => {}
}

/** Traces when there is somewhere to send them. Without, no package of OpenTelemetry is even loaded. */
export async function openTelemetry(settings: TelemetrySettings | undefined): Promise<Telemetry> {
  if (settings === undefined) return NO_TELEMETRY
  const { openProvider } = await import('./telemetry/open.js')
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
