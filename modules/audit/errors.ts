import { problem } from '../../plugins/contracts.js'

export const AuditRangeInvalid = problem<{ from: string; to: string }>('AUDIT_RANGE_INVALID', 400, {
  en: 'The range from {from} to {to} ends before it starts.',
  fr: 'La période de {from} à {to} se termine avant son début.'
})
