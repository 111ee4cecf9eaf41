import { problem } from './problem.js'

export const PayloadTooLarge = problem<{ limitBytes: number }>('REQUEST_TOO_LARGE', 413, {
  en: 'The body is larger than {limitBytes} bytes.',
  fr: 'Le corps dépasse {limitBytes} octets.'
})
