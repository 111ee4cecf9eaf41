import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'

type Answer<R> = R | undefined | false

/**
 * Makes a test's `until`: asks every so often until the answer is neither undefined nor false.
 * @throws Error when there is none in time, with what was waited for
 */
export const patience =
  ({ seconds, pauseMs = 10 }: { seconds: number; pauseMs?: number }) =>
  async <R>(what: string, ask: () => Answer<R> | Promise<Answer<R>>): Promise<R> => {
    for (const deadline = performance.now() + seconds * 1000; ; await sleep(pauseMs)) {
      const found = await ask()
      if (found !== undefined && found !== false) return found
      if (performance.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`)
    }
  }

/** For how long plugins/redis.ts waits for a call, and for a command. */
const REDIS_LIMITS_MS: readonly unknown[] = [100, 200]
const timeout = globalThis.setTimeout
const patientTimeout: typeof timeout = Object.assign(
  <A extends unknown[]>(run: (...args: A) => void, milliseconds?: number, ...args: A) =>
    timeout(run, REDIS_LIMITS_MS.includes(milliseconds) ? 30_000 : milliseconds, ...args),
  { __promisify__: timeout.__promisify__ }
)

/**
 * For where Redis is up, or gone, but never slow: a busy machine holds it up for longer than a call waits, and whoever asks then goes
 * on without it. Ends with the test, or when the answer is called.
 */
export function patientRedis(t: Test): () => void {
  globalThis.setTimeout = patientTimeout
  const end = () => {
    globalThis.setTimeout = timeout
  }
  t.teardown(end)
  return end
}
