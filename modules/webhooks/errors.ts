import { problem } from '../../plugins/contracts.js'

export const WebhookNotFound = problem<{ id: string }>('WEBHOOK_NOT_FOUND', 404, {
  en: 'There is no webhook {id}.',
  fr: 'Le webhook {id} n’existe pas.'
})
export const WebhookTargetRefused = problem<{ reason: string }>('WEBHOOK_TARGET_REFUSED', 422, {
  en: 'Webhooks are not sent to this URL ({reason}): it may be https to a public host, without credentials or a fragment.',
  fr: 'Aucun webhook n’est envoyé à cette URL ({reason}) : il faut https vers un hôte public, sans identifiants ni fragment.'
})
export const WebhookLimitReached = problem<{ maximum: number }>('WEBHOOK_LIMIT_REACHED', 409, {
  en: 'There are {maximum} webhooks already, which is the most there may be.',
  fr: 'Il y a déjà {maximum} webhooks, le maximum permis.'
})
export const WebhookInactive = problem<{ id: string }>('WEBHOOK_INACTIVE', 409, {
  en: 'The webhook {id} is not active, so nothing is sent to it.',
  fr: 'Le webhook {id} n’est pas actif ; rien ne lui est envoyé.'
})
export const DeliveryNotFound = problem<{ id: string }>('WEBHOOK_DELIVERY_NOT_FOUND', 404, {
  en: 'The webhook has no delivery {id}; those that ended are kept for 30 days.',
  fr: 'Le webhook n’a pas d’envoi {id} ; les envois terminés sont conservés 30 jours.'
})
export const DeliveryPending = problem<{ id: string }>('WEBHOOK_DELIVERY_PENDING', 409, {
  en: 'The delivery {id} has not ended, so it cannot be replayed.',
  fr: 'L’envoi {id} n’est pas terminé ; il ne peut être rejoué.'
})
