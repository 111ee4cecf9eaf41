import type { Counts } from './objectives.js'

/** How finely what is how old is kept: 5 minutes to the quarter minute, 30 days to the hour. */
const TIERS = [
  { everySeconds: 15, keptSeconds: 3_600 },
  { everySeconds: 300, keptSeconds: 86_400 },
  { everySeconds: 3_600, keptSeconds: 31 * 86_400 }
]

interface Sample {
  readonly at: number
  readonly counts: Counts
}

export interface History {
  /** Seconds of a clock that never goes back. */
  add(at: number, counts: Counts): void
  /** The counts at so many seconds before, or a little earlier; undefined when that is before the first: they were 0. */
  before(at: number, seconds: number): Counts | undefined
}

/** Counts of the past, some 1,200 of them at most: counters say how many, and never when. */
export function createHistory(): History {
  const tiers = TIERS.map((tier) => ({ ...tier, samples: [] as Sample[] }))
  return {
    add(at, counts) {
      for (const { everySeconds, keptSeconds, samples } of tiers) {
        const last = samples.at(-1)
        if (last !== undefined && at - last.at < everySeconds) continue
        samples.push({ at, counts })
        // One that is too old stays: it is what the longest window begins with.
        while (samples[1] !== undefined && at - samples[1].at > keptSeconds) samples.shift()
      }
    },
    before(at, seconds) {
      const tier = tiers.find(({ keptSeconds }) => seconds <= keptSeconds)
      return tier?.samples.findLast((sample) => at - sample.at >= seconds)?.counts
    }
  }
}
