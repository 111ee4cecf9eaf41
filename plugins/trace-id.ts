import type { FastifyRequest } from 'fastify'

/** W3C Trace Context, version 00. */
const TRACEPARENT = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/

const kept = new WeakMap<FastifyRequest, string>()

/** Traces are on: the request is part of this one. */
export const keepTraceId = (request: FastifyRequest, id: string): void => void kept.set(request, id)

/** The trace that the request is part of: ours, or the caller's. */
export function traceIdOf(request: FastifyRequest): string | null {
  const { traceparent } = request.headers
  return kept.get(request) ?? (typeof traceparent === 'string' ? TRACEPARENT.exec(traceparent)?.[1] : undefined) ?? null
}
