import { hostname } from 'node:os'
import {
  type Attributes,
  type Context,
  context,
  createContextKey,
  defaultTextMapGetter,
  defaultTextMapSetter,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace
} from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { type ExportResult, ExportResultCode, W3CTraceContextPropagator } from '@opentelemetry/core'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { resourceFromAttributes } from '@opentelemetry/resources'
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BatchSpanProcessor,
  ParentBasedSampler,
  type ReadableSpan,
  type Sampler,
  type SpanExporter,
  TraceIdRatioBasedSampler,
  TracerProvider
} from '@opentelemetry/sdk-trace'
import type { SpanOptions, SpanTime, TelemetrySettings, Tracing } from './tracing.js'

/** One batch to the collector; what it does not take by then is lost. */
const EXPORT_TIMEOUT_MS = 5_000
/** A service that ends waits no longer for a collector. */
const CLOSE_TIMEOUT_MS = 2_000
const EXPORT_EVERY_MS = 2_000
const QUEUE_MAX = 8_192
const ATTRIBUTE_MAX_CHARS = 4_000

const KINDS = {
  internal: SpanKind.INTERNAL,
  client: SpanKind.CLIENT,
  producer: SpanKind.PRODUCER,
  consumer: SpanKind.CONSUMER
} as const

/** Says in a context which of the traced apps of this process it belongs to. */
const OWNER = createContextKey('inventory-enterprise tracer')
const propagator = new W3CTraceContextPropagator()

const SAMPLERS: Readonly<Record<string, (ratio: number) => Sampler>> = {
  always_on: () => new AlwaysOnSampler(),
  always_off: () => new AlwaysOffSampler(),
  traceidratio: (ratio) => new TraceIdRatioBasedSampler(ratio),
  parentbased_always_on: () => new ParentBasedSampler({ root: new AlwaysOnSampler() }),
  parentbased_always_off: () => new ParentBasedSampler({ root: new AlwaysOffSampler() }),
  parentbased_traceidratio: (ratio) => new ParentBasedSampler({ root: new TraceIdRatioBasedSampler(ratio) })
}

/** How many spans the collector took, and how many it did not. */
interface Exported {
  success: number
  failure: number
}

/** Tells how the export went; nothing else ever hears of a failure. */
class CountingExporter implements SpanExporter {
  readonly #exporter: SpanExporter
  readonly #counts: Exported
  constructor(exporter: SpanExporter, counts: Exported) {
    this.#exporter = exporter
    this.#counts = counts
  }
  export(spans: ReadableSpan[], done: (result: ExportResult) => void): void {
    this.#exporter.export(spans, (result) => {
      this.#counts[result.code === ExportResultCode.SUCCESS ? 'success' : 'failure'] += spans.length
      done(result)
    })
  }
  forceFlush = async () => {}
  shutdown = () => this.#exporter.shutdown()
}

/** What is under way in one app, and the spans that are made of it. */
export class Provider implements Tracing {
  readonly on = true
  readonly exported: Exported = { success: 0, failure: 0 }
  readonly #provider: TracerProvider
  readonly #tracer: Tracer

  constructor({ endpoint, serviceName, sampler, ratio, version }: TelemetrySettings) {
    // A host that traces has one already, and ours would be refused; spans find each other through either.
    context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
    const exporter = new OTLPTraceExporter({
      url: `${endpoint.replace(/\/+$/, '')}/v1/traces`,
      timeoutMillis: EXPORT_TIMEOUT_MS
    })
    this.#provider = new TracerProvider({
      resource: resourceFromAttributes({
        'service.name': serviceName,
        'service.version': version,
        'service.instance.id': `${hostname()}:${process.pid}`
      }),
      sampler: (SAMPLERS[sampler] ?? SAMPLERS.parentbased_always_on)?.(ratio) ?? new AlwaysOffSampler(),
      spanLimits: { attributeValueLengthLimit: ATTRIBUTE_MAX_CHARS },
      spanProcessors: [
        new BatchSpanProcessor({
          exporter: new CountingExporter(exporter, this.exported),
          scheduledDelayMillis: EXPORT_EVERY_MS,
          exportTimeoutMillis: EXPORT_TIMEOUT_MS,
          maxQueueSize: QUEUE_MAX
        })
      ]
    })
    this.#tracer = this.#provider.getTracer('inventory-enterprise', version)
  }

  span<R>(name: string, options: SpanOptions, work: () => Promise<R>): Promise<R> {
    const under = this.#parentOf(options)
    if (under === undefined) return work()
    const span = this.#begin(name, options, under)
    return context.with(this.contextOf(span, under), async () => {
      try {
        return await work()
      } catch (error) {
        failed(span, error)
        throw error
      } finally {
        span.end()
      }
    })
  }

  past(name: string, { startedAt, endedAt }: SpanTime, options: SpanOptions, error?: unknown): void {
    const under = this.#parentOf(options)
    if (under === undefined) return
    const span = this.#begin(name, options, under, startedAt)
    if (error !== undefined) failed(span, error)
    span.end(endedAt)
  }

  carrier(): string | null {
    const here = context.active()
    return here.getValue(OWNER) === this ? (carriedBy(here) ?? null) : null
  }

  bind<A extends unknown[], R>(work: (...args: A) => R): (...args: A) => R {
    const here = context.active()
    return (...args) => context.with(here, () => work(...args))
  }

  detached<R>(work: () => R): R {
    return context.with(ROOT_CONTEXT, work)
  }

  traceId(): string | undefined {
    return this.current()?.spanContext().traceId
  }

  /** The span of this app that is under way and is kept. */
  current(): Span | undefined {
    const here = context.active()
    if (here.getValue(OWNER) !== this) return undefined
    const span = trace.getSpan(here)
    return span?.isRecording() === true ? span : undefined
  }

  #begin(name: string, { kind = 'internal', attributes }: SpanOptions, under: Context, startTime?: number): Span {
    return this.#tracer.startSpan(
      name,
      {
        kind: KINDS[kind],
        ...(attributes === undefined ? {} : { attributes }),
        ...(startTime === undefined ? {} : { startTime })
      },
      under
    )
  }

  /** Of a request: below what its `traceparent` names. */
  serve(name: string, attributes: Attributes, headers: Readonly<Record<string, unknown>>): Span {
    const under = propagator.extract(ROOT_CONTEXT, headers, defaultTextMapGetter)
    return this.#tracer.startSpan(name, { kind: SpanKind.SERVER, attributes }, under)
  }

  /** Of a call to another service, below what is under way; who asks for it ends it. */
  client(name: string, attributes: Attributes): Span {
    return this.#tracer.startSpan(name, { kind: SpanKind.CLIENT, attributes }, context.active())
  }

  contextOf(span: Span, under: Context = ROOT_CONTEXT): Context {
    return trace.setSpan(under, span).setValue(OWNER, this)
  }

  /** Undefined: no span. */
  #parentOf({ parent }: SpanOptions): Context | undefined {
    if (parent === undefined) return this.current() === undefined ? undefined : context.active()
    if (parent === null) return ROOT_CONTEXT
    return propagator.extract(ROOT_CONTEXT, { traceparent: parent }, defaultTextMapGetter)
  }

  /** Sends what there is. Never rejects, and takes no longer than a service may take to end. */
  async close(): Promise<void> {
    const late = new Promise<void>((resolve) => setTimeout(resolve, CLOSE_TIMEOUT_MS).unref())
    await Promise.race([this.#provider.shutdown().catch(() => {}), late])
  }
}

/** As a `traceparent`; undefined where there is none. */
export function carriedBy(of: Context): string | undefined {
  const carrier: { traceparent?: string } = {}
  propagator.inject(of, carrier, defaultTextMapSetter)
  return carrier.traceparent
}

/** By a code or a class: a message may hold what somebody wrote. */
export function failed(span: Span, error: unknown): void {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  const name = error instanceof Error ? error.name : 'unknown'
  span.setAttribute('error.type', typeof code === 'string' ? code : name)
  span.setStatus({ code: SpanStatusCode.ERROR })
}
