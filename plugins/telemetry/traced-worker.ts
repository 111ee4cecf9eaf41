import { threadId } from 'node:worker_threads'
import type { SpanTime } from './tracing.js'

export interface TracedInput {
  readonly file: string
  readonly input: unknown
}
export interface TracedOutput<Output = unknown> {
  readonly output: Output
  readonly time: SpanTime
  readonly threadId: number
}

/** Runs a worker file in this thread, and says when: a thread sends no spans of its own. */
export default async function traced({ file, input }: TracedInput): Promise<TracedOutput> {
  const { default: work }: { default(input: unknown): unknown } = await import(file)
  const startedAt = Date.now()
  const began = performance.now()
  const output = await work(input)
  return { output, time: { startedAt, endedAt: startedAt + performance.now() - began }, threadId }
}
