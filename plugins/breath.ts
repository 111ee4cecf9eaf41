import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import type { Breather } from './contracts.js'
import type { UnderWay } from './http/under-way.js'

const BUSY_MILLISECONDS_MIN = 1
const REST_MILLISECONDS_MAX = 10
/** As long as this without a request passes for nobody asking. */
const QUIET_MILLISECONDS = 25
/** While requests come, a step waits this many times as long as the event loop was busy … */
const PATIENCE = 25
/** … and no longer than this, so that work goes on however much is asked. */
const PATIENCE_MILLISECONDS_MAX = 250

/**
 * Steps of long work leave the event loop for as long as it was busy since the step before, and where requests come one after another, until
 * they pause or for long enough that few of them meet a step at all. A turn of the loop is not enough, since a request takes several and
 * would wait for a step at each of them.
 */
export function createBreather({ lastAt }: Pick<UnderWay, 'lastAt'>): Breather {
  return () => {
    let before = performance.eventLoopUtilization()
    return async () => {
      const { active } = performance.eventLoopUtilization(before)
      if (active < BUSY_MILLISECONDS_MIN) return turn()
      const latest = performance.now() + Math.min(PATIENCE_MILLISECONDS_MAX, PATIENCE * active)
      await sleep(Math.min(REST_MILLISECONDS_MAX, Math.ceil(active)))
      for (let now = performance.now(); now < latest; now = performance.now()) {
        const quiet = now - lastAt()
        if (quiet >= QUIET_MILLISECONDS) break
        await sleep(Math.ceil(Math.min(QUIET_MILLISECONDS - quiet, latest - now)))
      }
      before = performance.eventLoopUtilization()
    }
  }
}
