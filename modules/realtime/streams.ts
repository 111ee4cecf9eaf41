import type { ServerResponse } from 'node:http'
import type { WebSocket } from 'ws'
import type { RealtimeMessage } from '../../schemas/realtime.js'
import type { Stream } from './hub.js'
import type { Ending } from './metrics.js'

interface Listener {
  readonly subject: string
  allowed(): Promise<boolean>
}

/** RFC 6455: 1001 going away, 1003 cannot accept, 1013 try again later; 4401 is ours. */
const CODES: Record<Ending, number> = { unauthorized: 4401, slow: 1013, silent: 1001, spoke: 1003, closing: 1001 }

/** How long a client has to answer a farewell. */
const FAREWELL_MILLISECONDS = 2_000

/** Where a control message has no id, a client does not take it for the last that it has seen. */
const control = (topic: string, data: object) => ({ topic, data })

/** A client on a WebSocket (RFC 6455): pings, farewells, and an end for one that falls silent or speaks. */
export function webSocketStream(socket: WebSocket, listener: Listener): Stream {
  let answered = true
  // What it says is followed by `close`.
  socket.on('error', () => {})
  socket.on('pong', () => {
    answered = true
  })
  const say = (message: object) => socket.send(JSON.stringify(message))
  return {
    ...listener,
    transport: 'websocket',
    ready: (resumed) => say(control('ready', { resumed })),
    send: say,
    reset: () => say(control('reset', {})),
    waiting: () => socket.bufferedAmount,
    beat: () => {
      const alive = answered
      answered = false
      socket.ping()
      return alive
    },
    end: (reason) => {
      // A client that does not take what is sent does not answer a farewell either.
      if (reason === 'slow' || reason === 'silent') return socket.terminate()
      socket.close(CODES[reason], reason)
      setTimeout(() => socket.terminate(), FAREWELL_MILLISECONDS).unref()
    }
  }
}

/** Server-sent events (HTML Living Standard, 9.2). `retry` is spread, so that not all come back in one moment. */
export function eventStream(response: ServerResponse, listener: Listener, retryMilliseconds: number): Stream {
  const say = (event: string, data: object, id?: string) =>
    response.write(`${id === undefined ? '' : `id: ${id}\n`}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`)
  return {
    ...listener,
    transport: 'sse',
    ready: (resumed) => {
      response.write(`retry: ${retryMilliseconds}\n\n`)
      say('ready', { resumed })
    },
    send: (message: RealtimeMessage) => say(message.topic, message, message.id),
    reset: () => say('reset', {}),
    waiting: () => response.writableLength,
    // The peer's TCP answers; one that is gone lets what waits grow.
    beat: () => response.write(':\n\n') || response.writableLength < response.writableHighWaterMark * 4,
    end: (reason) => {
      if (reason === 'slow' || reason === 'silent') response.destroy()
      else response.end(`event: end\ndata: ${JSON.stringify({ reason })}\n\n`)
    }
  }
}
