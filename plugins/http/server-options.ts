import { randomUUID } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import type { Writable } from 'node:stream'
import { type FastifyReply, type FastifyRequest, type FastifyServerOptions, LogController } from 'fastify'
import { loggedError, REDACTED } from '../telemetry/log-redaction.js'
import { lineFields, requestLog } from '../telemetry/request-log.js'
import { NO_TRACING, type Tracing } from '../telemetry/tracing.js'
import { answerProblem } from './errors.js'

const REQUEST_ID = /^[\w.:-]{1,128}$/
const BODY_LIMIT_BYTES = 1024 * 1024

/** What hooks put on every other answer, for a request that reaches none: a URL or a message that cannot be read. */
const BARE_HEADERS = {
  'content-security-policy': "default-src 'none';frame-ancestors 'none'",
  'referrer-policy': 'no-referrer',
  'strict-transport-security': 'max-age=31536000; includeSubDomains',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY'
}

interface ServerSettings {
  logLevel: string
  trustProxy?: string
  tracing?: Tracing
  /** Standard output, where it is left out. */
  logTo?: Writable
}

/** A taken id goes into logs and headers, so only harmless characters are taken. */
export function requestIdOf(raw: IncomingMessage): string {
  const given = raw.headers['x-request-id']
  return typeof given === 'string' && REQUEST_ID.test(given) ? given : randomUUID()
}

/** How the server is made, in one place: the service and the tests must not differ. */
export function serverOptions({ logLevel, trustProxy, tracing = NO_TRACING, logTo }: ServerSettings) {
  return {
    bodyLimit: BODY_LIMIT_BYTES,
    // The migrations of a large database run while the service starts, and half of one is no use.
    pluginTimeout: 0,
    trustProxy: trustProxy ?? false,
    routerOptions: { maxParamLength: 200, ignoreTrailingSlash: true },
    genReqId: requestIdOf,
    // A line for each request costs more than a cached answer; counts and times are metrics, failures are logged.
    logController: new LogController({ disableRequestLogging: true }),
    childLoggerFactory: requestLog,
    forceCloseConnections: 'idle' as const,
    // What still arrives on an open connection is served, and the connection closed: nobody needs to see that we stop.
    return503OnClosing: false,
    logger: {
      level: logLevel,
      ...(logTo === undefined ? {} : { stream: logTo }),
      mixin: lineFields(tracing),
      serializers: { err: loggedError },
      redact: REDACTED
    },
    frameworkErrors: (error: Error, request: FastifyRequest, reply: FastifyReply) => {
      void reply.headers(BARE_HEADERS).header('x-request-id', request.id)
      void answerProblem(error, request, reply)
    },
    clientErrorHandler(error: Error & { code?: string }, socket: Socket) {
      if (error.code === 'ECONNRESET' || !socket.writable) return
      const status = error.code === 'HPE_HEADER_OVERFLOW' ? '431 Request Header Fields Too Large' : '400 Bad Request'
      const code = Number(status.slice(0, 3))
      const requestId = randomUUID()
      const body = JSON.stringify({
        type: 'urn:problem:inventory:REQUEST_MALFORMED',
        title: 'Bad request',
        status: code,
        detail: 'The request is not valid HTTP.',
        instance: '',
        code: 'REQUEST_MALFORMED',
        requestId
      })
      const headers = {
        ...BARE_HEADERS,
        'x-request-id': requestId,
        'content-type': 'application/problem+json; charset=utf-8',
        'content-length': Buffer.byteLength(body),
        connection: 'close'
      }
      const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
      socket.end(`HTTP/1.1 ${status}\r\n${lines.join('')}\r\n${body}`)
    }
  } satisfies FastifyServerOptions
}
