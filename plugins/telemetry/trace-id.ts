import type { FastifyRequest } from 'fastify'

/** W3C Trace Context, version 00. */
const TRACEPARENT = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/

interface Kept {
  readonly traceId: string
  /** It is sent to the collector, so it can be looked up there. */
  readonly sampled: boolean
}
const kept = new WeakMap<FastifyRequest, Kept>()

/** Traces are on: the request is part of this one. */
export const keepTraceId = (request: FastifyRequest, trace: Kept): void => void kept.set(request, trace)

/** Undefined where nobody could find it. */
export function sampledTraceIdOf(request: FastifyRequest): string | undefined {
  const trace = kept.get(request)
  return trace?.sampled === true ? trace.traceId : undefined
}

/** The trace that the request is part of: ours, or the caller's. */
export function traceIdOf(request: FastifyRequest): string | null {
  const { traceparent } = request.headers
  return (
    kept.get(request)?.traceId ??
    (typeof traceparent === 'string' ? TRACEPARENT.exec(traceparent)?.[1] : undefined) ??
    null
  )
}
