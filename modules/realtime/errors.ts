import { problem } from '../../plugins/contracts.js'

export const RealtimeNotAcceptable = problem('REALTIME_NOT_ACCEPTABLE', 406, {
  en: 'This is a stream: ask for it by a WebSocket, or with `Accept: text/event-stream`.',
  fr: 'Ceci est un flux : demandez-le par un WebSocket, ou avec `Accept: text/event-stream`.'
})
export const RealtimeTooMany = problem<{ maximum: number; retryAfterSeconds: number }>('REALTIME_TOO_MANY', 429, {
  en: 'You have {maximum} streams open already, which is the most there may be.',
  fr: 'Vous avez déjà {maximum} flux ouverts, le maximum permis.'
})
export const RealtimeFull = problem<{ retryAfterSeconds: number }>('REALTIME_FULL', 503, {
  en: 'This node has as many streams open as it may have; try again, or ask another.',
  fr: 'Ce nœud a autant de flux ouverts que permis ; réessayez, ou demandez à un autre.'
})
