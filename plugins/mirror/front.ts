import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import { DatabaseSwitching } from '../http/errors.js'
import { endIdleConnections } from '../http/idle-connections.js'

/** Those inside get so long to end before a switch goes on without them: they are told to come again. */
const DRAIN_MILLISECONDS = 2_000
/** Who waits longer at the door is told to come again: longer than a switch may take, so that none of those it holds up is refused. */
const WAIT_MILLISECONDS = 6_000
/** As Fastify has it. */
const KEEP_ALIVE_MILLISECONDS = 72_000

const again = new DatabaseSwitching({ retryAfterSeconds: 1 })
const AGAIN = JSON.stringify({
  type: `urn:problem:inventory:${again.code}`,
  title: 'Service unavailable',
  status: again.status,
  detail: again.message,
  code: again.code,
  ...again.members('en')
})

/**
 * The one server of the process, whatever service stands behind it: while a service is exchanged for another on another
 * database, requests wait here for a moment instead of being refused.
 */
export class Front {
  readonly server: Server
  #service: FastifyInstance | undefined
  #closing = false
  readonly #inside = new Set<ServerResponse>()
  readonly #waiting = new Map<ServerResponse, () => void>()

  constructor(clientError: (error: Error & { code?: string }, socket: Socket) => void) {
    this.server = createServer({ keepAliveTimeout: KEEP_ALIVE_MILLISECONDS, requestTimeout: 0 }, (request, response) =>
      this.#take(request, response)
    )
    this.server.on('clientError', (error, socket) => {
      if (socket instanceof Socket) clientError(error, socket)
    })
    this.server.on('upgrade', (request, socket, head) => {
      if (this.#service?.server.emit('upgrade', request, socket, head) !== true) socket.destroy()
    })
  }

  async listen(port: number, host: string): Promise<void> {
    this.server.listen(port, host)
    await once(this.server, 'listening')
  }

  /** Takes no new connection, and resolves when what is inside has been answered. */
  async close(): Promise<void> {
    const closed = once(this.server, 'close')
    this.#closing = true
    this.server.close()
    this.server.closeIdleConnections()
    const stopLooking = endIdleConnections(this.server)
    await closed
    stopLooking()
  }

  #take(request: IncomingMessage, response: ServerResponse): void {
    const service = this.#service
    if (service === undefined) {
      this.#wait(request, response)
      return
    }
    if (this.#closing) response.setHeader('connection', 'close')
    this.#inside.add(response)
    response.once('close', () => this.#inside.delete(response))
    service.routing(request, response)
  }

  #wait(request: IncomingMessage, response: ServerResponse): void {
    const late = setTimeout(() => {
      this.#waiting.delete(response)
      response.writeHead(again.status, {
        'content-type': 'application/problem+json; charset=utf-8',
        'retry-after': '1'
      })
      response.end(AGAIN)
    }, WAIT_MILLISECONDS)
    response.once('close', () => {
      clearTimeout(late)
      this.#waiting.delete(response)
    })
    this.#waiting.set(response, () => {
      clearTimeout(late)
      this.#take(request, response)
    })
  }

  /** From now on requests wait; resolves when those inside have ended, or had time to. */
  async hold(): Promise<FastifyInstance | undefined> {
    const service = this.#service
    this.#service = undefined
    const until = performance.now() + DRAIN_MILLISECONDS
    while (this.#inside.size > 0 && performance.now() < until) await sleep(5)
    return service
  }

  /** Lets in those who wait, in the order in which they came. */
  release(service: FastifyInstance): void {
    this.#service = service
    const waiting = [...this.#waiting.values()]
    this.#waiting.clear()
    for (const enter of waiting) enter()
  }
}
