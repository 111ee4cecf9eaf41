import { type Static, Type } from 'typebox'
import { Closed, Instant } from '../../schemas/common.js'
import { shape } from '../http/validation.js'
import type { Member } from './index.js'

export const CheckStatus = Type.Union([Type.Literal('ok'), Type.Literal('degraded'), Type.Literal('down')])
export const ServingState = Type.Union([Type.Literal('ready'), Type.Literal('draining')])

export const WorkerHealth = Closed({
  worker: Type.Integer({ minimum: 1, description: 'As in metrics and logs; who replaces it has the same' }),
  status: CheckStatus,
  state: Type.Union([ServingState, Type.Literal('starting'), Type.Literal('silent'), Type.Literal('ended')], {
    description: '`silent`: it hangs, or is stopped. `ended`: another takes its place, and does not serve yet'
  }),
  since: Instant
})
export type WorkerHealth = Static<typeof WorkerHealth>

/** What a process tells the others. */
const Own = Closed({ status: CheckStatus, state: ServingState, since: Type.Integer() })
type Own = Static<typeof Own>

export type Processes = Pick<Member, 'answer' | 'askEach'>

const TOPIC = 'health'

/** How every process of the node is, by its own word where it has one. */
export function workersHealth(processes: Processes, own: () => Promise<Own>): () => Promise<WorkerHealth[]> {
  const isOwn = shape(Own)
  processes.answer(TOPIC, async () => JSON.stringify(await own()))
  return async () => {
    const answers = await processes.askEach(TOPIC)
    return answers.map(({ worker, state, since, text }) => {
      const told: unknown = text === '' ? undefined : JSON.parse(text)
      if (state === 'answers' && isOwn(told)) return { worker, ...told, since: instant(told.since) }
      return { worker, status: 'down', state: state === 'answers' ? 'silent' : state, since: instant(since) }
    })
  }
}

const instant = (milliseconds = Date.now()) => new Date(milliseconds).toISOString()
