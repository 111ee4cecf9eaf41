import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { access, type EnterModule, type ModuleOptions } from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { type RequestObjective, SloReport, type StateObjective } from '../../schemas/slo.js'
import { countRequests, largest } from './counts.js'
import { createHistory, type History } from './history.js'
import {
  badShare,
  burning,
  type Counts,
  OBJECTIVES,
  type Objective,
  PERIOD_DAYS,
  WINDOWS,
  type Window
} from './objectives.js'

/** Counters are read this often; each reading costs about as much as a scrape. */
const SAMPLE_SECONDS = 15

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

export interface SloOptions extends ModuleOptions {
  readonly states: readonly State[]
}

/** `GET /slo`: how the objectives of docs/slo.md are met, as this process has seen it, by the arithmetic of alerts/slo.yml. */
const slo: FastifyPluginAsyncTypebox<SloOptions> = async (app, options) => {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const registry = app.getDecorator<Registry>('registry')
  const startedAt = Date.now()
  const clock = () => performance.now() / 1000
  const bornAt = clock()
  const history = createHistory()
  const sample = async () => history.add(clock(), await countRequests(registry))
  const timer = setInterval(() => void sample(), SAMPLE_SECONDS * 1000).unref()
  app.addHook('onClose', async () => clearInterval(timer))

  app.get(
    '/slo',
    {
      config: access('manager'),
      schema: {
        summary: 'How the service level objectives are met, as the process that answers has seen it',
        tags: ['health'],
        response: { 200: SloReport, ...problems }
      }
    },
    async (_request, reply) => {
      const counts = await countRequests(registry)
      reply.header('cache-control', 'no-store')
      return {
        scope: 'process' as const,
        since: new Date(startedAt).toISOString(),
        periodDays: PERIOD_DAYS,
        requests: OBJECTIVES.map((objective) => judge(objective, counts, history, clock(), clock() - bornAt)),
        states: await Promise.all(options.states.map((state) => judgeState(state, registry)))
      }
    }
  )
}

const names = Object.keys(WINDOWS).filter((name): name is Window => name in WINDOWS)

export default fp(slo, {
  name: 'inventory-enterprise/slo',
  fastify: '5.x',
  encapsulate: true,
  decorators: { fastify: ['enterModule', 'registry'], request: ['tenant'] }
})

/** One objective from what was counted until now; `lived` is how long that is, in seconds. */
export function judge(
  objective: Objective,
  counts: Counts,
  history: History,
  now: number,
  lived: number
): RequestObjective {
  const { name, allowed, seconds } = objective
  const share = (window: Window) => badShare(counts, history.before(now, WINDOWS[window]), name)
  const whole = share('30d')
  const alerts = burning(name, allowed, share)
  const budgetLeft = whole === null ? null : 1 - whole / allowed
  return {
    name,
    objective: 1 - allowed,
    ...(seconds === undefined ? {} : { withinSeconds: seconds }),
    status: budgetLeft === null ? 'unknown' : budgetLeft < 0 ? 'missed' : alerts.length > 0 ? 'burning' : 'met',
    requests: counts[name].all,
    budgetLeft,
    alerts,
    windows: names.map((window) => {
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

async function judgeState({ name, unit, gauge, atMost, provedAt }: State, registry: Registry): Promise<StateObjective> {
  const read = await largest(registry, gauge)
  // A moment of 0 is none: it has not happened in this process.
  const moment = unit === 'seconds' ? read : provedAt === undefined ? undefined : await largest(registry, provedAt)
  const known = read !== undefined && moment !== undefined && moment > 0
  const value = !known ? null : unit === 'seconds' ? Date.now() / 1000 - read : read
  return {
    name,
    status: value === null ? 'unknown' : value <= atMost ? 'met' : 'missed',
    unit,
    atMost,
    value,
    at: known ? new Date(moment * 1000).toISOString() : null
  }
}
