import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { createBreather } from '../plugins/breath.js'

const STEP_MS = 12
/** How long a step that kept the event loop busy waits, in ms. */
async function restAfterStep(lastAt: () => number): Promise<number> {
  const breathe = createBreather({ lastAt })()
  // the loop counts as busy once it has turned
  await sleep(1)
  const end = performance.now() + STEP_MS
  while (performance.now() < end);
  await new Promise(setImmediate)
  const startedAt = performance.now()
  await breathe()
  return performance.now() - startedAt
}
const shortest = async (lastAt: () => () => number) => {
  const rests: number[] = []
  for (let i = 0; i < 4; i++) rests.push(await restAfterStep(lastAt()))
  return Math.min(...rests)
}

t.test('work waits for requests to pause, and not for ever', async (t) => {
  const never = await shortest(() => () => Number.NEGATIVE_INFINITY)
  t.ok(never >= 9 && never < 100, `nobody asks: ${never} ms`)
  const always = await restAfterStep(() => performance.now())
  t.ok(always >= 240, `somebody always asks: ${always} ms`)
  const paused = await shortest(() => {
    const pause = performance.now() + 60
    return () => Math.min(performance.now(), pause)
  })
  t.ok(paused > 40 && paused < 200, `until the requests pause: ${paused} ms`)
})

t.test('a step that took no time waits for none', async (t) => {
  const breathe = createBreather({ lastAt: () => performance.now() })()
  const rests: number[] = []
  for (let i = 0; i < 20; i++) {
    const startedAt = performance.now()
    await breathe()
    rests.push(performance.now() - startedAt)
  }
  t.ok(Math.min(...rests) < 10, `where nothing else keeps the loop busy: ${rests.map(Math.round)}`)
})
