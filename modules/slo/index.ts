import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { access, type EnterModule, type ModuleOptions, shape } from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { type RequestObjective, SloReport, type StateObjective } from '../../schemas/slo.js'
import { countRequests } from './counts.js'
import { createHistory } from './history.js'
import {
  badShare,
  burning,
  type Count,
  OBJECTIVES,
  type Objective,
  PERIOD_DAYS,
  WINDOW_NAMES,
  WINDOWS,
  type Window
} from './objectives.js'
import { Seen, type SeenRequests, type SeenState, type State, seenBy } from './seen.js'

export type { State } from './seen.js'

/** Counters are read this often; each reading costs about as much as a scrape. */
const SAMPLE_SECONDS = 15
const TOPIC = 'slo'
const isSeen = shape(Seen)

/** The processes that serve one address together, this one among them: any of them answers, and for all. */
export interface Processes {
  answer(topic: string, say: () => Promise<string>): void
  ask(topic: string): Promise<string[]>
}

export interface SloOptions extends ModuleOptions {
  readonly states: readonly State[]
  /** Left out, the report is of this process. */
  readonly processes?: Processes
}

/** `GET /slo`: how the objectives of docs/slo.md are met, as this node has seen it, by the arithmetic of alerts/slo.yml. */
const slo: FastifyPluginAsyncTypebox<SloOptions> = async (app, options) => {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const { states, processes } = options
  const registry = app.getDecorator<Registry>('registry')
  const clock = () => performance.now() / 1000
  const history = createHistory()
  const watch = { registry, history, states, startedAt: Date.now(), clock, bornAt: clock() }
  const sample = async () => history.add(clock(), await countRequests(registry))
  const timer = setInterval(() => void sample(), SAMPLE_SECONDS * 1000).unref()
  app.addHook('onClose', async () => clearInterval(timer))
  processes?.answer(TOPIC, async () => JSON.stringify(await seenBy(watch)))
  const all = async (): Promise<Seen[]> => {
    const told = (await processes?.ask(TOPIC)) ?? []
    // One of another version, while it is rolled out, may say something else.
    const seen = told.map((text): unknown => JSON.parse(text)).filter((each) => isSeen(each))
    return seen.length > 0 ? seen : [await seenBy(watch)]
  }

  app.get(
    '/slo',
    {
      config: access('manager'),
      schema: {
        summary: 'How the service level objectives are met, as the processes of the node that answers have seen it',
        tags: ['health'],
        response: { 200: SloReport, ...problems }
      }
    },
    async (_request, reply) => {
      reply.header('cache-control', 'no-store')
      return report(await all(), states, processes === undefined ? 'process' : 'node')
    }
  )
}

export default fp(slo, {
  name: 'inventory-enterprise/slo',
  fastify: '5.x',
  encapsulate: true,
  decorators: { fastify: ['enterModule', 'registry'], request: ['tenant'] }
})

/** Of processes that may have started at different times, and of one as of several. */
export function report(seen: readonly Seen[], states: readonly State[], scope: SloReport['scope']): SloReport {
  const lived = Math.min(...seen.map(({ livedSeconds }) => livedSeconds))
  const of = <T>(list: (seen: Seen) => readonly T[], n: number) => seen.flatMap((each) => list(each).slice(n, n + 1))
  return {
    scope,
    processes: seen.length,
    since: new Date(Math.min(...seen.map(({ startedAt }) => startedAt))).toISOString(),
    periodDays: PERIOD_DAYS,
    requests: OBJECTIVES.map((objective, n) =>
      judge(
        objective,
        of(({ requests }) => requests, n),
        lived
      )
    ),
    states: states.map((state, n) =>
      judgeState(
        state,
        of((each) => each.states, n)
      )
    )
  }
}

/** One objective by what each process has seen; `lived` is how long the youngest did, in seconds. */
export function judge(
  { name, allowed, seconds }: Objective,
  seen: readonly SeenRequests[],
  lived: number
): RequestObjective {
  const share = (window: Window) =>
    badShare(sum(seen.flatMap(({ windows }) => windows.slice(WINDOW_NAMES.indexOf(window)).slice(0, 1))))
  const whole = share('30d')
  const alerts = burning(name, allowed, share)
  const budgetLeft = whole === null ? null : 1 - whole / allowed
  return {
    name,
    objective: 1 - allowed,
    ...(seconds === undefined ? {} : { withinSeconds: seconds }),
    status: budgetLeft === null ? 'unknown' : budgetLeft < 0 ? 'missed' : alerts.length > 0 ? 'burning' : 'met',
    requests: seen.reduce((all, { total }) => all + total, 0),
    budgetLeft,
    alerts,
    windows: WINDOW_NAMES.map((window) => {
      const bad = share(window)
      return {
        window,
        complete: lived >= WINDOWS[window],
        badShare: bad,
        burnRate: bad === null ? null : bad / allowed
      }
    })
  }
}

const sum = (counts: readonly Count[]): Count => ({
  all: counts.reduce((total, { all }) => total + all, 0),
  bad: counts.reduce((total, { bad }) => total + bad, 0)
})

/** By whichever process looked last: what an earlier one found may have been mended since. */
function judgeState({ name, unit, atMost }: State, seen: readonly SeenState[]): StateObjective {
  const [last] = seen.flatMap((each) => each ?? []).sort((one, other) => other.at - one.at)
  const value = last === undefined ? null : unit === 'seconds' ? Date.now() / 1000 - last.at : last.value
  return {
    name,
    status: value === null ? 'unknown' : value <= atMost ? 'met' : 'missed',
    unit,
    atMost,
    value,
    at: last === undefined ? null : new Date(last.at * 1000).toISOString()
  }
}
