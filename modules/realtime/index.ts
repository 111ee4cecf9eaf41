import { randomInt } from 'node:crypto'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { v7 as uuidv7 } from 'uuid'
import {
  access,
  type Broadcast,
  type EnterModule,
  type Events,
  type ModuleOptions,
  type Principal,
  shape,
  type Tenant
} from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import { REALTIME_TOPICS, RealtimeEnvelope, RealtimeQuery } from '../../schemas/realtime.js'
import { RealtimeFull, RealtimeNotAcceptable, RealtimeTooMany } from './errors.js'
import { Hub, type Stream } from './hub.js'
import { createRealtimeMetrics, type RealtimeMetrics } from './metrics.js'
import { eventStream, webSocketStream } from './streams.js'
import { createUpgrades } from './upgrades.js'

export interface RealtimeOptions extends ModuleOptions {
  /** Whether a request that was let in still would be: asked before each message and every few seconds. */
  stillAllowed: (request: FastifyRequest) => Promise<boolean>
  /** How often a connection is looked at and kept open (15). */
  beatSeconds?: number
  /** Streams of one process (2,000). */
  streamsMax?: number
  /** Streams of one caller on one process (20). */
  streamsPerCallerMax?: number
  /** A client with more bytes waiting is ended (262,144). */
  waitingBytesMax?: number
}

const CHANNEL = 'realtime'
const RETRY_AFTER_SECONDS = 5

/** Tells who listens what happens, as it happens: by WebSocket, or by server-sent events on the same path. */
const realtime: FastifyPluginAsyncTypebox<RealtimeOptions> = async (app, options) => {
  const { beatSeconds = 15, streamsMax = 2_000, streamsPerCallerMax = 20, waitingBytesMax = 262_144 } = options
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const upgrades = createUpgrades(app)
  const hub: Hub = new Hub({ metrics: () => metrics, waitingBytesMax })
  const metrics: RealtimeMetrics = createRealtimeMetrics(app.getDecorator<Registry>('registry'), () => hub.counts)
  const broadcast = app.getDecorator<Broadcast>('broadcast')
  broadcast.listen(
    CHANNEL,
    (text, own) => void hear(hub, text, own),
    () => hub.gap()
  )
  const events = app.getDecorator<Events>('events')
  for (const topic of REALTIME_TOPICS)
    events.subscribe({
      topic,
      name: 'realtime',
      handle: async ({ payload, createdAt }, tenant) => {
        const message = { id: uuidv7(), topic, at: new Date(createdAt).toISOString(), data: payload }
        broadcast.send(CHANNEL, JSON.stringify({ tenant: tenant.id, message }))
      }
    })
  const beating = setInterval(() => void hub.beat(), beatSeconds * 1_000).unref()
  let closing = false
  // Before requests are waited for: a stream is one that never ends by itself.
  app.addHook('preClose', async () => {
    closing = true
    clearInterval(beating)
    hub.close()
  })

  const listenerOf = (request: FastifyRequest) => ({
    subject: request.getDecorator<Principal | null>('principal')?.subject ?? request.ip,
    allowed: async () => !closing && (await options.stillAllowed(request))
  })
  const enter = (request: FastifyRequest<{ Querystring: RealtimeQuery }>, stream: Stream) => {
    const header = request.headers['last-event-id']
    const last = request.query.lastEventId ?? (typeof header === 'string' ? header : undefined)
    return hub.add(request.getDecorator<Tenant>('tenant').id, stream, last)
  }
  app.route<{ Querystring: RealtimeQuery }>({
    method: 'GET',
    url: '/realtime',
    schema: {
      summary: 'What happens, as it happens: a WebSocket, or server-sent events with `Accept: text/event-stream`',
      tags: ['realtime'],
      querystring: RealtimeQuery,
      response: {
        200: { description: 'Events', content: { 'text/event-stream': { schema: { type: 'string' } } } },
        ...problems
      }
    },
    config: access('viewer'),
    preHandler: async (request) => {
      if (!upgrades.asked(request.raw) && request.headers.accept?.includes('text/event-stream') !== true)
        throw new RealtimeNotAcceptable({})
      const { subject } = listenerOf(request)
      if (hub.of(request.getDecorator<Tenant>('tenant').id, subject) >= streamsPerCallerMax)
        throw new RealtimeTooMany({ maximum: streamsPerCallerMax, retryAfterSeconds: RETRY_AFTER_SECONDS })
      if (closing || hub.size >= streamsMax) throw new RealtimeFull({ retryAfterSeconds: RETRY_AFTER_SECONDS })
    },
    handler: (request, reply) => {
      if (upgrades.asked(request.raw)) {
        upgrades.accept(reply, (socket) => {
          const stream = webSocketStream(socket, listenerOf(request))
          const leave = enter(request, stream)
          socket.on('message', () => {
            metrics.ended('spoke')
            stream.end('spoke')
          })
          socket.once('close', leave)
        })
        return
      }
      // A proxy that gathers answers would hold back what should be told at once.
      reply.headers({
        'content-type': 'text/event-stream; charset=utf-8',
        'cache-control': 'no-store',
        'x-accel-buffering': 'no'
      })
      reply.hijack()
      for (const [name, value] of Object.entries(reply.getHeaders()))
        if (value !== undefined) reply.raw.setHeader(name, value)
      reply.raw.writeHead(200)
      const leave = enter(request, eventStream(reply.raw, listenerOf(request), randomInt(1_000, 5_000)))
      reply.raw.once('close', () => {
        leave()
        // As a request it has ended, also where the client broke it off.
        if (!reply.raw.writableFinished) reply.raw.emit('finish')
      })
    }
  })
}

async function hear(hub: Hub, text: string, own: boolean): Promise<void> {
  const envelope: unknown = JSON.parse(text)
  if (shape(RealtimeEnvelope)(envelope)) await hub.publish(envelope.tenant, envelope.message, own)
}

export default fp(realtime, {
  name: 'inventory-enterprise/realtime',
  fastify: '5.x',
  encapsulate: true,
  decorators: { fastify: ['enterModule', 'registry', 'events', 'broadcast'], request: ['tenant', 'principal'] }
})
