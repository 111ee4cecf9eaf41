import { type Static, Type } from 'typebox'
import { Closed, Instant, List, Nullable, PageQuery, Text, Uuid } from './common.js'
import { StockMoved } from './inventory.js'

export const DisabledReason = Type.Enum(['manual', 'failing', 'gone'])
export type DisabledReason = Static<typeof DisabledReason>

/** A webhook was taken out of service because its receiver failed for days, or said that it is gone (410). */
export const WebhookDisabled = {
  topic: 'webhooks.disabled',
  payload: Closed({ webhookId: Uuid, reason: DisabledReason, failures: Type.Integer() })
} as const
/** What `POST /webhooks/:id/test` sends; no subscription is needed. */
export const WebhookPing = { topic: 'webhooks.ping', payload: Closed({ webhookId: Uuid }) } as const

/** What may be subscribed to; docs/webhooks.md says what each holds. */
export const PUBLIC_TOPICS = [StockMoved.topic, WebhookDisabled.topic] as const
export const WebhookTopic = Type.Enum([...PUBLIC_TOPICS])
export type WebhookTopic = Static<typeof WebhookTopic>
const Topics = Type.Array(WebhookTopic, { minItems: 1, maxItems: 50, uniqueItems: true })

const Target = Type.String({
  minLength: 10,
  maxLength: 2000,
  pattern: '^https?://[^\\s\\\\\\u0000-\\u001f\\u007f]+$',
  description: 'https, a public host, no credentials, no fragment'
})
const Secret = Type.String({ description: 'Shown here only: `whsec_` and the key in base64' })

export const WebhookParams = Closed({ id: Uuid })
export const NewWebhook = Closed({
  url: Target,
  topics: Topics,
  description: Type.Optional(Text),
  active: Type.Optional(Type.Boolean())
})
export type NewWebhook = Static<typeof NewWebhook>
export const WebhookPatch = Type.Object(
  {
    url: Type.Optional(Target),
    topics: Type.Optional(Topics),
    description: Type.Optional(Text),
    active: Type.Optional(Type.Boolean({ description: 'true also forgets past failures' }))
  },
  { additionalProperties: false, minProperties: 1 }
)
export type WebhookPatch = Static<typeof WebhookPatch>

const fields = {
  id: Uuid,
  url: Type.String(),
  topics: Type.Array(WebhookTopic),
  description: Nullable(Type.String()),
  active: Type.Boolean(),
  disabledReason: Nullable(DisabledReason),
  failingSince: Nullable(Instant),
  previousSecretUntil: Nullable(Instant),
  createdAt: Instant,
  updatedAt: Instant
}
export const Webhook = Closed(fields)
export type Webhook = Static<typeof Webhook>
export const WebhookList = List(Webhook)
export const WebhookQuery = Closed(PageQuery)
export const WebhookWithSecret = Closed({ ...fields, secret: Secret })
export type WebhookWithSecret = Static<typeof WebhookWithSecret>
export const RotateSecret = Closed({
  overlapSeconds: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: 604_800,
      default: 86_400,
      description: 'How long the previous secret signs as well'
    })
  )
})

export const DeliveryStatus = Type.Enum(['pending', 'delivered', 'dead'])
export type DeliveryStatus = Static<typeof DeliveryStatus>
export const AttemptOutcome = Type.Enum(['success', 'status', 'timeout', 'network', 'refused'], {
  description: 'status: answered other than 2xx; refused: the address is not one that webhooks may reach'
})
export type AttemptOutcome = Static<typeof AttemptOutcome>

const deliveryFields = {
  id: Uuid,
  webhookId: Uuid,
  messageId: Type.String({ description: 'The header `webhook-id`: the same at each attempt and replay' }),
  topic: Type.String(),
  status: DeliveryStatus,
  attempts: Type.Integer({ description: 'Since it was made, or last replayed' }),
  nextAttemptAt: Nullable(Instant),
  createdAt: Instant,
  finishedAt: Nullable(Instant)
}
export const Delivery = Closed(deliveryFields)
export type Delivery = Static<typeof Delivery>
export const DeliveryList = List(Delivery)
export const DeliveryQuery = Closed({ ...PageQuery, status: Type.Optional(DeliveryStatus) })
export const DeliveryParams = Closed({ id: Uuid, deliveryId: Uuid })
export const DeliveryDetail = Closed({
  ...deliveryFields,
  body: Type.String({ description: 'What is sent and signed' }),
  log: Type.Array(
    Closed({
      at: Instant,
      outcome: AttemptOutcome,
      httpStatus: Nullable(Type.Integer()),
      detail: Nullable(Type.String()),
      durationMilliseconds: Type.Integer()
    })
  )
})
export type DeliveryDetail = Static<typeof DeliveryDetail>
export const Replayed = Closed({ replayed: Type.Integer() })
