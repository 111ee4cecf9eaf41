import { isUtf8 } from 'node:buffer'
import type { FastifyInstance } from 'fastify'
import { Malformed } from './errors.js'

const NOT_UTF8 = { en: 'the body is not valid UTF-8.', fr: 'le corps n’est pas en UTF-8 valide.' }

/**
 * Makes a context read JSON in UTF-8 and nothing else. Fastify's own parser would put a question mark into a text for what is not
 * UTF-8, and it has one of plain text, which no schema fits. The core calls it for each module, never for the host.
 */
export function readJsonOnly(app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  const parse = app.getDefaultJsonParser('error', 'error')
  app.addContentTypeParser<Buffer>('application/json', { parseAs: 'buffer' }, (request, body, done) => {
    if (!isUtf8(body)) return done(new Malformed({ reason: NOT_UTF8 }))
    return parse(request, body.toString('utf8'), done)
  })
}
