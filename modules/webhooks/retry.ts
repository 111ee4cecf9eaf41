/** When to try again, and when to give up. Times are milliseconds. */

const FIRST_DELAY = 10_000
const FACTOR = 3
const LONGEST_DELAY = 6 * 3_600_000
/** Together with the delays about a day; a delivery that waits longer (its webhook was inactive) ends by its age. */
export const ATTEMPTS_MAX = 12
export const LIFE = 3 * 86_400_000

/** A webhook is taken out of service when it has failed so often, for so long, without one success between. */
const FAILURES_MAX = 10
const FAILING_MAX = 3 * 86_400_000
/** From so many failures in a row on, one delivery at a time asks whether the receiver is back. */
export const FAILURES_BEFORE_PROBING = 5

/**
 * Exponential backoff, of which the later half is by chance, so that what failed together does not come back together.
 * @param attempts that have failed, at least 1
 * @param chance in [0, 1)
 * @param asked what the receiver's Retry-After says; counts when it is longer, and never for more than the longest delay
 */
export function retryDelay(attempts: number, chance: number, asked = 0): number {
  const whole = Math.min(FIRST_DELAY * FACTOR ** (attempts - 1), LONGEST_DELAY)
  return Math.max(Math.round(whole / 2 + (whole / 2) * chance), Math.min(asked, LONGEST_DELAY))
}

export const isSpent = (attempts: number, nextAt: number, expiresAt: number): boolean =>
  attempts >= ATTEMPTS_MAX || nextAt >= expiresAt

export const isBroken = (failures: number, failingSince: number, now: number): boolean =>
  failures >= FAILURES_MAX && now - failingSince >= FAILING_MAX

/** RFC 9110, 10.2.3: seconds, or a date. Milliseconds from `now`; 0 when there is none or it cannot be read. */
export function retryAfter(header: string | undefined, now: number): number {
  if (header === undefined) return 0
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000
  const at = Date.parse(header)
  return Number.isNaN(at) ? 0 : Math.max(0, at - now)
}
