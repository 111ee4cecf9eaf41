import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'

const MILLISECONDS_MIN = 1
const MILLISECONDS_MAX = 10

/**
 * Between the steps of a job: each call leaves the event loop to requests for as long as it was busy since the call before. A
 * turn of the loop is not enough, since a request takes several and would wait for a step at each of them.
 */
export function breather(): () => Promise<void> {
  let before = performance.eventLoopUtilization()
  return async () => {
    const { active } = performance.eventLoopUtilization(before)
    if (active < MILLISECONDS_MIN) return turn()
    await sleep(Math.min(MILLISECONDS_MAX, Math.ceil(active)))
    before = performance.eventLoopUtilization()
  }
}
