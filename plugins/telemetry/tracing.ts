import type { FastifyInstance } from 'fastify'

/** What is known of a piece of work; ids and counts, never a person's data, never a query's values. */
type SpanAttributes = Readonly<Record<string, string | number | boolean>>

export interface SpanOptions {
  /** `producer`, `consumer`: the two ends of work that waits in between. `internal` when left out. */
  readonly kind?: 'internal' | 'client' | 'producer' | 'consumer'
  readonly attributes?: SpanAttributes
  /**
   * The `traceparent` that was kept with the work; null begins a trace of its own. Left out: below what is under way, and
   * no span where nothing is.
   */
  readonly parent?: string | null
}

/** Milliseconds since 1970. */
export interface SpanTime {
  readonly startedAt: number
  readonly endedAt: number
}

/** Traces, where they are switched on. Otherwise each of these does nothing but run the work. */
export interface Tracing {
  readonly on: boolean
  /** Runs `work` as a span; one that rejects marks it as failed, by its code. */
  span<R>(name: string, options: SpanOptions, work: () => Promise<R>): Promise<R>
  /** A span that is over. */
  past(name: string, time: SpanTime, options: SpanOptions, error?: unknown): void
  /** What is under way as a `traceparent`, to be kept with work that waits; null where nothing is. */
  carrier(): string | null
  /** `work`, to be run as part of what is under way now, whoever calls it. */
  bind<Arguments extends unknown[], R>(work: (...args: Arguments) => R): (...args: Arguments) => R
  /** Runs what outlives its cause, such as a timer, as part of nothing. */
  detached<R>(work: () => R): R
  /** Of what is under way; undefined where nothing is, or it is not kept. */
  traceId(): string | undefined
}

export const NO_TRACING: Tracing = {
  on: false,
  span: (_name, _options, work) => work(),
  past: () => {},
  carrier: () => null,
  bind: (work) => work,
  detached: (work) => work(),
  traceId: () => undefined
}

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
