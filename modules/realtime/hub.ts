import type { RealtimeMessage } from '../../schemas/realtime.js'
import type { Ending, RealtimeMetrics, Transport } from './metrics.js'

/** What a client that was away for a moment may have missed. */
const KEPT_MESSAGES = 200
/** How long they are kept after the last stream of a tenant has ended. */
const KEPT_MILLISECONDS = 60_000
/** Longer than a message takes from one node to another that hears it at all. */
const REORDERED_MILLISECONDS = 2_000

/** One client, whatever it is spoken to by. */
export interface Stream {
  readonly transport: Transport
  /** Whose it is, for the limit of each. */
  readonly subject: string
  /** Whether what let it in would still let it in. */
  allowed(): Promise<boolean>
  /** `resumed`: nothing is missing since the message that was named; else what is shown should be loaded anew. */
  ready(resumed: boolean): void
  send(message: RealtimeMessage): void
  /** Messages may be missing: what is shown should be loaded anew. */
  reset(): void
  /** Bytes that the client has not taken yet. */
  waiting(): number
  /** Says something that keeps the connection open; false when the last one was not answered. */
  beat(): boolean
  end(reason: Ending): void
}

interface Kept {
  readonly message: RealtimeMessage
  readonly own: boolean
  readonly at: number
}

interface Room {
  readonly streams: Set<Stream>
  kept: Kept[]
  /** Messages go out one after the other, though each waits for who may hear it. */
  sending: Promise<void>
  forget?: NodeJS.Timeout
}

interface HubOptions {
  readonly metrics: () => RealtimeMetrics
  /** A client that has so many bytes waiting is ended: it would never catch up, and they are memory of ours. */
  readonly waitingBytesMax: number
}

/** The streams of one process, by tenant. */
export class Hub {
  readonly #rooms = new Map<string, Room>()
  readonly #options: HubOptions
  readonly #subjects = new Map<string, number>()
  readonly counts: Record<Transport, number> = { websocket: 0, sse: 0 }

  constructor(options: HubOptions) {
    this.#options = options
  }

  get size(): number {
    return this.counts.websocket + this.counts.sse
  }

  /** How many streams a caller of a tenant has. */
  of(tenant: string, subject: string): number {
    return this.#subjects.get(`${tenant} ${subject}`) ?? 0
  }

  /** @returns what takes it out again, once */
  add(tenant: string, stream: Stream, lastEventId: string | undefined): () => void {
    const room = this.#room(tenant)
    clearTimeout(room.forget)
    room.streams.add(stream)
    this.#count(tenant, stream, 1)
    const missed = lastEventId === undefined ? undefined : missedSince(room.kept, lastEventId)
    stream.ready(missed !== undefined)
    for (const { message } of missed ?? []) this.#send(stream, message)
    return () => {
      if (!room.streams.delete(stream)) return
      this.#count(tenant, stream, -1)
      if (room.streams.size > 0) return
      room.forget = setTimeout(() => this.#rooms.delete(tenant), KEPT_MILLISECONDS).unref()
    }
  }

  /**
   * Each client is asked for again: a message is an answer, and who was locked out meanwhile gets none.
   * @param own this node's, not heard from another
   */
  async publish(tenant: string, message: RealtimeMessage, own: boolean): Promise<void> {
    const room = this.#rooms.get(tenant)
    if (room === undefined) return
    room.kept.push({ message, own, at: performance.now() })
    if (room.kept.length > KEPT_MESSAGES) room.kept.shift()
    const streams = [...room.streams]
    room.sending = room.sending.then(() => this.#deliver(room, streams, message))
    await room.sending
  }

  async #deliver(room: Room, streams: readonly Stream[], message: RealtimeMessage): Promise<void> {
    const allowed = await Promise.all(streams.map((stream) => stream.allowed()))
    for (const [index, stream] of streams.entries()) {
      if (!room.streams.has(stream)) continue
      if (allowed[index] === true) this.#send(stream, message)
      else this.#end(stream, 'unauthorized')
    }
  }

  /** Messages may have been missed: what is kept is no answer any more. */
  gap(): void {
    if (this.size > 0) this.#options.metrics().gap()
    for (const room of this.#rooms.values()) {
      room.kept = []
      for (const stream of room.streams) stream.reset()
    }
  }

  /** Every so often: keeps connections open, and ends those whose client is gone, or may not listen any more. */
  async beat(): Promise<void> {
    for (const { streams } of this.#rooms.values()) {
      for (const stream of [...streams]) {
        if (!(await stream.allowed())) this.#end(stream, 'unauthorized')
        else if (!stream.beat()) this.#end(stream, 'silent')
      }
    }
  }

  close(): void {
    for (const { streams, forget } of this.#rooms.values()) {
      clearTimeout(forget)
      for (const stream of [...streams]) this.#end(stream, 'closing')
    }
    this.#rooms.clear()
  }

  #room(tenant: string): Room {
    const room = this.#rooms.get(tenant) ?? { streams: new Set<Stream>(), kept: [], sending: Promise.resolve() }
    this.#rooms.set(tenant, room)
    return room
  }

  #count(tenant: string, { transport, subject }: Stream, by: 1 | -1): void {
    this.counts[transport] += by
    const key = `${tenant} ${subject}`
    const count = (this.#subjects.get(key) ?? 0) + by
    if (count === 0) this.#subjects.delete(key)
    else this.#subjects.set(key, count)
  }

  #send(stream: Stream, message: RealtimeMessage): void {
    stream.send(message)
    this.#options.metrics().sent()
    if (stream.waiting() > this.#options.waitingBytesMax) this.#end(stream, 'slow')
  }

  #end(stream: Stream, reason: Ending): void {
    this.#options.metrics().ended(reason)
    stream.end(reason)
  }
}

/**
 * What may be missing to who has seen this message last; undefined where that is not known. Messages of two nodes come to each in an
 * order of its own, so what another node sent shortly before may not have been seen elsewhere: that is sent, again perhaps.
 */
function missedSince(kept: readonly Kept[], lastEventId: string): readonly Kept[] | undefined {
  const index = kept.findIndex(({ message }) => message.id === lastEventId)
  const seen = kept[index]
  if (seen === undefined) return undefined
  const doubtful = ({ own, at }: Kept) => !(own && seen.own) && seen.at - at < REORDERED_MILLISECONDS
  return [...kept.slice(0, index).filter(doubtful), ...kept.slice(index + 1)]
}
