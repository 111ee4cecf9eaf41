import type { ArchiveEntry } from '../../plugins/contracts.js'

/** How many full archives stay, and for how many days every increment does. */
export interface Retention {
  readonly increments: number
  readonly daily: number
  readonly weekly: number
  readonly monthly: number
}

const DAY_MS = 86_400_000
type Bucket = (at: Date) => string
const day: Bucket = (at) => at.toISOString().slice(0, 10)
const month: Bucket = (at) => at.toISOString().slice(0, 7)
/** Weeks begin on Monday; 1970 began on a Thursday. */
const week: Bucket = (at) => String(Math.floor((at.getTime() / DAY_MS + 3) / 7))

/**
 * What may be removed: full archives that are the last one of none of the days, weeks and months that are kept, and
 * increments that are old or have lost what they go on from. The newest full one and what follows it always stay.
 */
export function expired(entries: readonly ArchiveEntry[], rules: Retention, now: number): ArchiveEntry[] {
  const full = entries.filter(({ kind }) => kind === 'full').sort((a, b) => b.stateAt - a.stateAt)
  const kept = new Set<string>(full.slice(0, 1).map(({ id }) => id))
  const keepLastOf = (bucket: Bucket, count: number) => {
    const seen = new Set<string>()
    for (const { id, stateAt } of full) {
      const name = bucket(new Date(stateAt))
      if (seen.has(name)) continue
      if (seen.size === count) return
      seen.add(name)
      kept.add(id)
    }
  }
  keepLastOf(day, rules.daily)
  keepLastOf(week, rules.weekly)
  keepLastOf(month, rules.monthly)

  const byId = new Map(entries.map((entry) => [entry.id, entry]))
  const newest = full[0]?.stateAt ?? Number.POSITIVE_INFINITY
  const from = Math.min(newest, now - rules.increments * DAY_MS)
  const increments = entries.filter(({ kind, stateAt }) => kind === 'increment' && stateAt >= from)
  for (const increment of increments) {
    const chain: string[] = []
    let entry: ArchiveEntry | undefined = increment
    // The whole chain down to its full archive, or to what is kept already.
    while (entry !== undefined && !kept.has(entry.id)) {
      chain.push(entry.id)
      entry = entry.previous === null ? undefined : byId.get(entry.previous)
      if (entry === undefined && byId.get(chain.at(-1) ?? '')?.kind !== 'full') chain.length = 0
    }
    for (const id of chain) kept.add(id)
  }
  return entries.filter(({ id }) => !kept.has(id))
}
