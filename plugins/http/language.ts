import type { FastifyReply } from 'fastify'
import type { Locale } from './problem.js'

/** Says in which language the answer is, and that the request chose it; what else it varies by stays. */
export function answerIn(locale: Locale, reply: FastifyReply): void {
  const set = reply.getHeader('vary')
  reply
    .header('content-language', locale)
    .header('vary', set === undefined ? 'accept-language' : `${set}, accept-language`)
}
