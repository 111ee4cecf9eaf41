import { subscribe, tracingChannel, unsubscribe } from 'node:diagnostics_channel'
import { type Attributes, context, type Span } from '@opentelemetry/api'
import { carriedBy, failed, type Provider } from './provider.js'

/** What libraries and Node itself publish about what they do. Every message is `unknown`: what does not fit is left alone. */
type Message = unknown
const fieldOf = (message: Message, name: string): unknown =>
  typeof message === 'object' && message !== null ? Reflect.get(message, name) : undefined
const textOf = (message: Message, name: string): string => {
  const value = fieldOf(message, name)
  return typeof value === 'string' ? value : ''
}

/** Spans of Redis commands and of outgoing HTTP, below what is under way. @returns what stops it */
export function listenToChannels(provider: Provider): () => void {
  const stops = [listenToRedis(provider), listenToHttp(provider), listenToFetch(provider)]
  return () => {
    for (const stop of stops) stop()
  }
}

function listen(handlers: Readonly<Record<string, (message: Message) => void>>): () => void {
  for (const [name, handler] of Object.entries(handlers)) subscribe(name, handler)
  return () => {
    for (const [name, handler] of Object.entries(handlers)) unsubscribe(name, handler)
  }
}

/** Spans that are under way, by what their messages have in common. */
class Open {
  readonly #provider: Provider
  readonly #spans = new WeakMap<object, Span>()
  constructor(provider: Provider) {
    this.#provider = provider
  }
  begin(key: unknown, name: string, attributes: Attributes): Span | undefined {
    if (typeof key !== 'object' || key === null || this.#provider.current() === undefined) return undefined
    const span = this.#provider.client(name, attributes)
    this.#spans.set(key, span)
    return span
  }
  of(key: unknown): Span | undefined {
    return typeof key === 'object' && key !== null ? this.#spans.get(key) : undefined
  }
}

/** ioredis says the command and its arguments; the arguments are nobody's business. */
function listenToRedis(provider: Provider): () => void {
  const open = new Open(provider)
  const handlers = {
    start: (message: Message) => {
      const command = textOf(message, 'command').toLowerCase()
      open.begin(message, `redis ${command}`, { 'db.system.name': 'redis', 'db.operation.name': command })
    },
    end: () => {},
    asyncStart: () => {},
    asyncEnd: (message: Message) => open.of(message)?.end(),
    error: (message: Message) => {
      const span = open.of(message)
      if (span !== undefined) failed(span, fieldOf(message, 'error'))
    }
  }
  const commands = tracingChannel('ioredis:command')
  commands.subscribe(handlers)
  return () => commands.unsubscribe(handlers)
}

/** No path: it may hold a secret, as those of webhooks do. */
const callAttributes = (method: string, host: string): Attributes => ({
  'http.request.method': method,
  'server.address': host
})

/** Node's own client, which webhooks use. Its headers are sent by then, so the trace does not go on by itself. */
function listenToHttp(provider: Provider): () => void {
  const open = new Open(provider)
  return listen({
    'http.client.request.start': (message) => {
      const request = fieldOf(message, 'request')
      const method = textOf(request, 'method')
      const host = textOf(request, 'host')
      open.begin(request, `${method} ${host}`, callAttributes(method, host))
    },
    'http.client.response.finish': (message) => {
      const span = open.of(fieldOf(message, 'request'))
      const status = fieldOf(fieldOf(message, 'response'), 'statusCode')
      if (typeof status === 'number') span?.setAttribute('http.response.status_code', status)
      span?.end()
    },
    'http.client.request.error': (message) => {
      const span = open.of(fieldOf(message, 'request'))
      if (span === undefined) return
      failed(span, fieldOf(message, 'error'))
      span.end()
    }
  })
}

/** `fetch`, which single sign-on and S3 use. The trace goes on at whoever is asked. */
function listenToFetch(provider: Provider): () => void {
  const open = new Open(provider)
  return listen({
    'undici:request:create': (message) => {
      const request = fieldOf(message, 'request')
      const method = textOf(request, 'method')
      const origin = textOf(request, 'origin')
      const host = URL.canParse(origin) ? new URL(origin).hostname : ''
      const span = open.begin(request, `${method} ${host}`, callAttributes(method, host))
      const addHeader = fieldOf(request, 'addHeader')
      const carrier = span === undefined ? undefined : carriedBy(provider.contextOf(span, context.active()))
      if (carrier !== undefined && typeof addHeader === 'function') addHeader.call(request, 'traceparent', carrier)
    },
    'undici:request:headers': (message) => {
      const status = fieldOf(fieldOf(message, 'response'), 'statusCode')
      if (typeof status === 'number')
        open.of(fieldOf(message, 'request'))?.setAttribute('http.response.status_code', status)
    },
    'undici:request:trailers': (message) => open.of(fieldOf(message, 'request'))?.end(),
    'undici:request:error': (message) => {
      const span = open.of(fieldOf(message, 'request'))
      if (span === undefined) return
      failed(span, fieldOf(message, 'error'))
      span.end()
    }
  })
}
