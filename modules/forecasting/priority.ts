import { readlinkSync } from 'node:fs'
import { setPriority } from 'node:os'
import { isMainThread } from 'node:worker_threads'

const NICENESS = 15

/** Requests go first: where the system knows priorities of threads (Linux), this one takes what others leave. */
export function yieldToRequests(): void {
  if (isMainThread || process.platform !== 'linux') return
  try {
    setPriority(Number(readlinkSync('/proc/thread-self').split('/').at(-1)), NICENESS)
  } catch {
    // Without /proc, or where it is not allowed, training only takes a larger share.
  }
}
