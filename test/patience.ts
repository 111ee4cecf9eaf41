import { setTimeout as sleep } from 'node:timers/promises'

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
