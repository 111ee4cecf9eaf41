import type { Registry } from 'prom-client'
import { type Static, Type } from 'typebox'
import { Closed } from '../../schemas/common.js'
import { countRequests, largest } from './counts.js'
import type { History } from './history.js'
import { type Counts, increase, OBJECTIVES, WINDOW_NAMES, WINDOWS } from './objectives.js'

/** Something that is as it should be or is not, as a gauge tells. */
export interface State {
  readonly name: string
  /** `mismatches`: the gauge's own value. `seconds`: the age of the moment that the gauge holds. */
  readonly unit: 'mismatches' | 'seconds'
  readonly gauge: string
  readonly atMost: number
  /** A gauge with the moment of the proof, where the value itself is none. */
  readonly provedAt?: string
}

const Count = Closed({ all: Type.Number(), bad: Type.Number() })
const SeenState = Type.Union([Closed({ value: Type.Number(), at: Type.Number() }), Type.Null()])

/** What one process has seen since it started: each objective and each of its windows, each state, in the order they are declared. */
export const Seen = Closed({
  startedAt: Type.Number({ description: 'in ms since 1970' }),
  livedSeconds: Type.Number(),
  requests: Type.Array(Closed({ total: Type.Number(), windows: Type.Array(Count) })),
  states: Type.Array(SeenState)
})
export type Seen = Static<typeof Seen>
export type SeenRequests = Seen['requests'][number]
export type SeenState = Static<typeof SeenState>

/** `now` by the clock of the history. */
export const seenRequests = (counts: Counts, history: History, now: number): SeenRequests[] =>
  OBJECTIVES.map(({ name }) => ({
    total: counts[name].all,
    windows: WINDOW_NAMES.map((window) => increase(counts, history.before(now, WINDOWS[window]), name))
  }))

/** A moment of 0 is none: it has not happened in this process. */
async function seenState({ unit, gauge, provedAt }: State, registry: Registry): Promise<SeenState> {
  const value = await largest(registry, gauge)
  const at = unit === 'seconds' ? value : provedAt === undefined ? undefined : await largest(registry, provedAt)
  return value === undefined || at === undefined || at <= 0 ? null : { value, at }
}

interface Watch {
  readonly registry: Registry
  readonly history: History
  readonly states: readonly State[]
  readonly startedAt: number
  /** In seconds, and never back. */
  clock(): number
  readonly bornAt: number
}

/** What the objectives are judged by at this moment, from the metrics of this process. */
export async function seenBy({ registry, history, states, startedAt, clock, bornAt }: Watch): Promise<Seen> {
  const counts = await countRequests(registry)
  const now = clock()
  return {
    startedAt,
    livedSeconds: now - bornAt,
    requests: seenRequests(counts, history, now),
    states: await Promise.all(states.map((state) => seenState(state, registry)))
  }
}
