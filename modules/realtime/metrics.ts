import { Counter, Gauge, type Registry } from 'prom-client'

export const TRANSPORTS = ['websocket', 'sse'] as const
export type Transport = (typeof TRANSPORTS)[number]

/** Why we ended a stream; the client may come again at once, but for `unauthorized`. */
const ENDINGS = ['unauthorized', 'slow', 'silent', 'spoke', 'closing'] as const
export type Ending = (typeof ENDINGS)[number]

export function createRealtimeMetrics(registry: Registry, open: () => Readonly<Record<Transport, number>>) {
  const registers = [registry]
  new Gauge({
    name: 'realtime_streams',
    help: 'Streams that clients of this process have open.',
    labelNames: ['transport'] as const,
    registers,
    collect() {
      const counts = open()
      for (const transport of TRANSPORTS) this.set({ transport }, counts[transport])
    }
  })
  const sent = new Counter({ name: 'realtime_messages_sent_total', help: 'Messages sent to streams.', registers })
  const ended = new Counter({
    name: 'realtime_streams_ended_total',
    help: 'Streams that this side ended, by why.',
    labelNames: ['reason'] as const,
    registers
  })
  const gaps = new Counter({
    name: 'realtime_gaps_total',
    help: 'Times that messages of other nodes may have been missed, so that all streams were told to load again.',
    registers
  })
  for (const reason of ENDINGS) ended.inc({ reason }, 0)
  return {
    sent: () => sent.inc(),
    ended: (reason: Ending) => ended.inc({ reason }),
    gap: () => gaps.inc()
  }
}
export type RealtimeMetrics = ReturnType<typeof createRealtimeMetrics>
