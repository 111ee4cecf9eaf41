/** How many may wait, and what the next one is told. */
interface Line {
  readonly max: number
  refuse(): Error
}

/** Runs what it is given, at most so many at once and in the order given. */
export function atMost(limit: number, line?: Line): <R>(work: () => Promise<R>) => Promise<R> {
  const waiting: (() => void)[] = []
  let running = 0
  return async (work) => {
    if (running >= limit) {
      if (line !== undefined && waiting.length >= line.max) throw line.refuse()
      await new Promise<void>((resolve) => void waiting.push(resolve))
    } else running++
    try {
      return await work()
    } finally {
      // A place that becomes free is handed on, so nobody passes those who wait.
      const next = waiting.shift()
      if (next === undefined) running--
      else next()
    }
  }
}

/** Tenants that are looked at together: each waits for the database, and that is busy with few of them (`npm run bench -- tenants`). */
export const TENANTS_AT_ONCE = 4

/** The same for all, a few at once. @throws what the first throws that fails; none is begun after it */
export async function forEachOf<T>(all: readonly T[], work: (one: T) => Promise<unknown>): Promise<void> {
  let next = 0
  const lane = async () => {
    while (next < all.length) {
      const one = all[next++]
      if (one !== undefined)
        await work(one).catch((error) => {
          next = all.length
          throw error
        })
    }
  }
  await Promise.all(Array.from({ length: TENANTS_AT_ONCE }, lane))
}
