import { randomUUID } from 'node:crypto'
import type { Broadcast } from './contracts.js'
import type { RedisLink } from './redis.js'

interface Listener {
  heard(text: string, own: boolean): void
  onGap?: (() => void) | undefined
}

/** Told apart by its first character, so that a text goes out as it is. */
const TEXT = 't'
const GAP = 'g'
const ID_LENGTH = 36

/**
 * Tells all processes of a deployment. In this one without Redis, and at once in any case; over Redis to the others, each of which is
 * told when it may have missed something: when its subscription begins again, and when a message of ours could not be sent.
 */
export function createBroadcast(redis: RedisLink | null): Broadcast {
  const self = randomUUID()
  const listeners = new Map<string, Listener>()
  /** Channels whose others were not told of something. */
  const owed = new Set<string>()
  const channelOf = (name: string) => `${redis?.prefix}broadcast:${name}`

  const tellOthers = (name: string, kind: typeof TEXT | typeof GAP, text: string) => {
    if (redis === null) return
    const sent = redis.call((client) => client.publish(channelOf(name), `${kind}${self}${text}`))
    void sent.then((receivers) => {
      if (receivers === undefined) owed.add(name)
    })
  }
  redis?.onReady(() => {
    for (const name of owed) {
      owed.delete(name)
      tellOthers(name, GAP, '')
    }
  })

  return {
    send: (name, text) => {
      listeners.get(name)?.heard(text, true)
      tellOthers(name, TEXT, text)
    },
    listen: (name, heard, onGap) => {
      if (listeners.has(name)) throw new Error(`${name} is listened to already`)
      const listener = { heard, onGap }
      listeners.set(name, listener)
      redis?.subscribe(
        channelOf(name),
        (message) => {
          if (message.slice(1, 1 + ID_LENGTH) === self) return
          if (message[0] === GAP) listener.onGap?.()
          else listener.heard(message.slice(1 + ID_LENGTH), false)
        },
        onGap
      )
    }
  }
}
