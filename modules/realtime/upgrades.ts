import { type IncomingMessage, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { FastifyInstance, FastifyReply } from 'fastify'
import { type WebSocket, WebSocketServer } from 'ws'

/** A client only listens. */
const SAID_BYTES_MAX = 1_024

interface Pending {
  readonly socket: Socket
  readonly head: Buffer
  readonly response: ServerResponse
}

interface Upgrades {
  /** Whether the request asks for a WebSocket. */
  asked(raw: IncomingMessage): boolean
  /** Makes it one. When the connection ends, so does the reply, for whoever counts requests. */
  accept(reply: FastifyReply, opened: (socket: WebSocket) => void): void
}

/**
 * Sends requests that want to become a WebSocket through the routes like any other, so that hooks let them in or not. Node hands over
 * their bare socket, and it is ours to end it: after an answer that is no WebSocket, whatever the route.
 */
export function createUpgrades(app: FastifyInstance): Upgrades {
  const server = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: SAID_BYTES_MAX
  })
  const pending = new WeakMap<IncomingMessage, Pending>()

  const onUpgrade = (raw: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy())
    // Node's servers over TCP and TLS have no other.
    if (!(socket instanceof Socket)) {
      socket.destroy()
      return
    }
    const response = new ServerResponse(raw)
    response.shouldKeepAlive = false
    response.assignSocket(socket)
    response.once('finish', () => socket.destroySoon())
    pending.set(raw, { socket, head, response })
    app.routing(raw, response)
  }
  app.server.on('upgrade', onUpgrade)
  app.addHook('onClose', async () => {
    app.server.off('upgrade', onUpgrade)
  })

  return {
    asked: (raw) => pending.has(raw),
    accept: (reply, opened) => {
      const { raw } = reply.request
      const found = pending.get(raw)
      if (found === undefined) throw new Error('it was asked for')
      const { socket, head, response } = found
      reply.hijack()
      response.detachSocket(socket)
      // Fastify hears of the end of an answer by `finish`, which a socket that became something else never says.
      socket.once('close', () => {
        response.statusCode = 101
        response.emit('finish')
      })
      server.handleUpgrade(raw, socket, head, opened)
    }
  }
}
