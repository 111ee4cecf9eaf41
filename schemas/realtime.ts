import { type Static, Type } from 'typebox'
import { Closed, Instant, Uuid } from './common.js'
import { StockMoved } from './inventory.js'

/** What is told as it happens; docs/realtime.md says what each holds. */
export const REALTIME_TOPICS = [StockMoved.topic] as const

/** One message, as a WebSocket's text or the data of a server-sent event. */
export const RealtimeMessage = Closed({
  id: Uuid,
  topic: Type.String({ maxLength: 100 }),
  at: Instant,
  data: Type.Unknown()
})
export type RealtimeMessage = Static<typeof RealtimeMessage>

/** Between the nodes: whose message it is. */
export const RealtimeEnvelope = Closed({ tenant: Type.String(), message: RealtimeMessage })
export type RealtimeEnvelope = Static<typeof RealtimeEnvelope>

export const RealtimeQuery = Closed({
  lastEventId: Type.Optional(
    Type.String({ format: 'uuid', description: 'The last message that was seen; what came after it is sent first' })
  )
})
export type RealtimeQuery = Static<typeof RealtimeQuery>
