import { problem } from '../../plugins/contracts.js'

export const AnomalyNotFound = problem<{ id: string }>('ANOMALY_NOT_FOUND', 404, {
  en: 'There is no anomaly {id}.',
  fr: 'L’anomalie {id} n’existe pas.'
})
export const AnomalyStateConflict = problem<{ id: string; current: string }>('ANOMALY_STATE_CONFLICT', 409, {
  en: 'The anomaly is {current} already.',
  fr: 'L’anomalie est déjà dans l’état « {current} ».'
})
export const AnomalyRangeInvalid = problem<{ from: string; to: string }>('ANOMALY_RANGE_INVALID', 400, {
  en: 'The range from {from} to {to} ends before it starts.',
  fr: 'La période du {from} au {to} se termine avant son début.'
})
