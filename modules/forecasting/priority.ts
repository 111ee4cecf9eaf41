import { readlinkSync } from 'node:fs'
import { setPriority } from 'node:os'
import { isMainThread } from 'node:worker_threads'

const NICENESS = 19

/** What the system calls this thread; undefined where it has no name for it, and for the thread of the requests itself. */
const ownThread = (): number | undefined =>
  isMainThread || process.platform !== 'linux' ? undefined : Number(readlinkSync('/proc/thread-self').split('/').at(-1))

/** Requests go first: where the system knows priorities of threads (Linux), this one takes what others leave. */
export function yieldToRequests(thread = ownThread): void {
  try {
    const id = thread()
    if (id !== undefined) setPriority(id, NICENESS)
  } catch {
    // Without /proc, or where it is not allowed, training only takes a larger share.
  }
}
