import { isUtf8 } from 'node:buffer'
import type { FastifyInstance } from 'fastify'
import { ContentEncodingRefused, Malformed } from './errors.js'

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

/**
 * Refuses bodies that nobody would unpack, and so would be read as if their bytes were the text. A route of files that takes
 * gzip knows it by its bytes. Of the service alone: a host may unpack bodies, and the header still says how they came.
 */
export function refuseEncoded(app: FastifyInstance): void {
  app.addHook('preParsing', (request, _reply, payload, done) => {
    // RFC 9110 has x-gzip for another name of gzip.
    const received = request.headers['content-encoding']?.trim().toLowerCase().replace('x-gzip', 'gzip') ?? ''
    if (received === '' || request.is404 || request.method === 'GET' || request.method === 'HEAD')
      return done(null, payload)
    const allowed = request.routeOptions.schema?.consumes?.includes('application/gzip') === true ? FILES : PLAIN
    if (allowed.includes(received)) return done(null, payload)
    // Nothing but a name is told back.
    const named = /^[\w-]{1,40}$/.test(received) ? received : 'unknown'
    done(new ContentEncodingRefused({ received: named, allowed }))
  })
}
const PLAIN: readonly string[] = ['identity']
const FILES: readonly string[] = ['identity', 'gzip']
