import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'

/** Prometheus asks every 10 s by our configuration: each scrape has figures found again that the next one tells. */
const FRESH_MILLISECONDS = 5_000
/** Older ones are not told: a graph that stands still looks like stock that does. */
const OLD_MILLISECONDS = 120_000
/** Nobody has asked for so long: nobody will soon. */
const FORGOTTEN_MILLISECONDS = 60_000
/** While there are none to tell; a database that hangs must not take the other metrics with it. */
const FIRST_MILLISECONDS = 500

interface KeptOptions {
  readonly freshMilliseconds?: number
  /** How long to wait for new ones while there are old ones; 0 when left out. */
  readonly waitMilliseconds?: number
  /** Found again by themselves so often, as long as somebody asks now and then: whoever asks waits for nothing and is told nothing old. */
  readonly everyMilliseconds?: number
}

/** Whether something answers is worth a moment, and an answer of a moment ago is worth as much. */
export const PROBED: KeptOptions = { freshMilliseconds: 1_000, waitMilliseconds: 5 }
/** The same for a scrape. A moment is a turn of the event loop, and under load that is most of what a scrape takes. */
export const WATCHED: KeptOptions = { freshMilliseconds: 1_000, everyMilliseconds: 5_000 }

/**
 * Figures that have to be asked for, for a scrape, which must not wait: told is what was found last, and what is no longer fresh
 * is found again behind it. Undefined where there are none: without the database the other metrics are wanted most.
 */
export function kept<T>(
  find: () => Promise<T>,
  { freshMilliseconds = FRESH_MILLISECONDS, waitMilliseconds = 0, everyMilliseconds }: KeptOptions = {}
): () => Promise<T | undefined> {
  let last: { readonly at: number; readonly value: T } | undefined
  let finding: Promise<void> | undefined
  let askedAt = 0
  let watch: NodeJS.Timeout | undefined
  const old = everyMilliseconds === undefined ? OLD_MILLISECONDS : 3 * everyMilliseconds
  const refresh = async () => {
    try {
      // What takes the processor takes it after the answer.
      if (last !== undefined && waitMilliseconds === 0) await nextTurn()
      last = { value: await find(), at: performance.now() }
    } catch {
      last = undefined
    } finally {
      finding = undefined
    }
  }
  const again = () => {
    if (performance.now() - askedAt < FORGOTTEN_MILLISECONDS) finding ??= refresh()
    else {
      clearInterval(watch)
      watch = undefined
    }
  }
  return async () => {
    askedAt = performance.now()
    if (everyMilliseconds !== undefined) watch ??= setInterval(again, everyMilliseconds).unref()
    const age = last === undefined ? Number.POSITIVE_INFINITY : performance.now() - last.at
    if (age < freshMilliseconds) return last?.value
    finding ??= refresh()
    const patience = age < old ? waitMilliseconds : FIRST_MILLISECONDS
    if (patience > 0) await Promise.race([finding, sleep(patience, undefined, { ref: false })])
    return last !== undefined && performance.now() - last.at < old ? last.value : undefined
  }
}
