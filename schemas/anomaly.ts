import { type Static, Type } from 'typebox'
import { Closed, Code, Day, Instant, List, Nullable, PageQuery, Text, Uuid } from './common.js'
import { JUDGEMENT, personal } from './personal.js'

const AnomalyKind = Type.Union([Type.Literal('spike'), Type.Literal('drop')])
const AnomalySeverity = Type.Union([Type.Literal('low'), Type.Literal('medium'), Type.Literal('high')])
export const AnomalyStatus = Type.Union([Type.Literal('open'), Type.Literal('acknowledged'), Type.Literal('resolved')])
export type AnomalyStatus = Static<typeof AnomalyStatus>
const AnomalyDetector = Type.Union([Type.Literal('zscore'), Type.Literal('seasonal'), Type.Literal('count-tail')])
export const Verdict = Type.Union([Type.Literal('confirmed'), Type.Literal('dismissed')])

export const DetectRequest = Closed({
  itemCodes: Type.Optional(Type.Array(Code, { minItems: 1, maxItems: 10_000, uniqueItems: true })),
  from: Type.Optional(Day),
  to: Type.Optional(Day),
  method: Type.Optional(
    Type.Union([Type.Literal('auto'), Type.Literal('sigma')], {
      description: 'sigma: mean ± 3σ everywhere; auto: by the kind of series, with fewer false alarms'
    })
  ),
  limit: Type.Optional(
    Type.Integer({ minimum: 1, maximum: 5000, description: 'How many to answer, gravest first; all are stored' })
  )
})
export type DetectRequest = Static<typeof DetectRequest>

export const Anomaly = Closed({
  id: Uuid,
  itemCode: Type.String(),
  date: Day,
  kind: AnomalyKind,
  severity: AnomalySeverity,
  detector: AnomalyDetector,
  observed: Type.Number(),
  expected: Type.Number(),
  lower: Type.Number(),
  upper: Type.Number(),
  score: Type.Number({
    description: 'Distance in standard deviations; for count-tail −log₁₀ of the probability of so much or more'
  }),
  explanation: Type.String(),
  status: AnomalyStatus,
  verdict: Nullable(Verdict),
  note: Nullable(personal(Type.String(), JUDGEMENT)),
  handledBy: Nullable(personal(Type.String(), JUDGEMENT)),
  handledAt: Nullable(Instant),
  detectedAt: Instant
})
export type Anomaly = Static<typeof Anomaly>

export const Detected = Closed({
  data: Type.Array(Anomaly),
  found: Type.Integer({ description: 'In the range asked for' }),
  stored: Type.Integer({ description: 'Of these, not known before' }),
  items: Type.Integer({ description: 'Series looked at' })
})

export const AnomalyQuery = Closed({
  ...PageQuery,
  itemCode: Type.Optional(Code),
  status: Type.Optional(AnomalyStatus),
  severity: Type.Optional(AnomalySeverity),
  kind: Type.Optional(AnomalyKind),
  from: Type.Optional(Day),
  to: Type.Optional(Day)
})
export const AnomalyList = List(Anomaly)
export const AnomalyParams = Closed({ id: Uuid })
export const AcknowledgeRequest = Closed({ note: Type.Optional(personal(Text, JUDGEMENT)) })
export const ResolveRequest = Closed({ verdict: Verdict, note: Type.Optional(personal(Text, JUDGEMENT)) })
