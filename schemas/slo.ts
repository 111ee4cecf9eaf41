import { type Static, Type } from 'typebox'
import { Closed } from './common.js'

const Share = Type.Union([Type.Number({ minimum: 0, maximum: 1 }), Type.Null()])
const Time = Type.Union([Type.String({ format: 'date-time' }), Type.Null()])

const WindowFigures = Closed({
  window: Type.String({ description: 'its length, such as 5m, 6h or 30d' }),
  complete: Type.Boolean({ description: 'false: a process is younger, and speaks of its whole life' }),
  badShare: Type.Union([Share], {
    description: 'share of the requests that missed the objective; null without requests'
  }),
  burnRate: Type.Union([Type.Number({ minimum: 0 }), Type.Null()], {
    description: 'how many times as fast as it may; 1 uses up the budget in 30 days'
  })
})

export const RequestObjective = Closed({
  name: Type.String(),
  objective: Type.Number({ description: 'share of the requests that must be good' }),
  withinSeconds: Type.Optional(Type.Number({ description: 'a good request is answered within' })),
  status: Type.Union([Type.Literal('met'), Type.Literal('burning'), Type.Literal('missed'), Type.Literal('unknown')], {
    description: 'missed: of 30 days, or the life of the process; burning: met, and an alert of docs/slo.md would fire'
  }),
  requests: Type.Integer({ minimum: 0, description: 'that were counted, since `since`' }),
  budgetLeft: Type.Union([Type.Number(), Type.Null()], {
    description: 'share of what may be missed in that time; negative when more was'
  }),
  alerts: Type.Array(Type.String()),
  windows: Type.Array(WindowFigures)
})
export type RequestObjective = Static<typeof RequestObjective>

export const StateObjective = Closed({
  name: Type.String(),
  status: Type.Union([Type.Literal('met'), Type.Literal('missed'), Type.Literal('unknown')], {
    description: 'unknown: no process has seen it yet'
  }),
  unit: Type.Union([Type.Literal('mismatches'), Type.Literal('seconds')]),
  atMost: Type.Number(),
  value: Type.Union([Type.Number(), Type.Null()]),
  at: Type.Union([Time], { description: 'when that was proved or done' })
})
export type StateObjective = Static<typeof StateObjective>

export const SloReport = Closed({
  scope: Type.Union([Type.Literal('process'), Type.Literal('node')], {
    description: 'whose figures these are: node is all processes of CLUSTER_WORKERS; Prometheus knows every node'
  }),
  processes: Type.Integer({ minimum: 1, description: 'that told what they have seen since they started' }),
  since: Type.String({ format: 'date-time', description: 'when the first of them started' }),
  periodDays: Type.Integer(),
  requests: Type.Array(RequestObjective),
  states: Type.Array(StateObjective)
})
export type SloReport = Static<typeof SloReport>
