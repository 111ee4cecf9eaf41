/** A waiting thread is given a processor at a tick of the system's clock (4 ms), or when the one that computes lets go of it. */
const WORK_MILLISECONDS = 0.3
const REST_MILLISECONDS = 0.05
const never = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT))
let restedAt = 0

/**
 * Rests for a moment where this thread has computed for a while; to be called often. A priority counts only among what runs in one
 * session or service: the database and the clients of this machine are others, and would wait for the tick.
 */
export function giveWay(): void {
  if (performance.now() - restedAt < WORK_MILLISECONDS) return
  Atomics.wait(never, 0, 0, REST_MILLISECONDS)
  restedAt = performance.now()
}
