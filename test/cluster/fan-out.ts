import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocket } from 'ws'
import { until } from '../../alerts/run.js'
import { send } from './load.js'

/** What happens at one node is told by all of them, and who follows what is told ends up with what is true. */

const ITEM = 'TOLD'
const ROUNDS = 21
const HEARD_SECONDS = 10
/** As it happens: from the answer to a write until each node has told of it. */
const TOLD_MILLISECONDS = 1_000
const COME_AGAIN_MILLISECONDS = 100

interface Message {
  readonly topic: string
  readonly id?: string
  readonly data: { readonly resumed?: boolean; readonly itemCodes?: readonly string[] }
}

function open(url: string, token: string, last: string | undefined, hear: (message: Message) => void): WebSocket {
  const query = last === undefined ? '' : `?lastEventId=${last}`
  const socket = new WebSocket(`${url.replace('http', 'ws')}/api/realtime${query}`, {
    headers: { authorization: `Bearer ${token}` }
  })
  socket.on('message', (text: Buffer) => hear(JSON.parse(text.toString())))
  // What failed to open, or broke, is closed next.
  socket.on('error', () => {})
  return socket
}

/** Writes at one node after the other, with a stream open at each and one through the balancer. */
export async function checkFanOut(
  nodes: readonly string[],
  balancer: string,
  token: string,
  say: (line: string) => void
): Promise<void> {
  const made = await send(balancer, token, 'POST', '/api/inventory', {
    body: { itemCode: ITEM, name: ITEM, unit: 'each' }
  })
  if (made.status !== 201) throw new Error(`no item: ${made.status} ${made.text}`)
  const streams = [...nodes, balancer].map((url) => {
    const stream = { url, ready: false, resets: 0, ids: new Set<string>() }
    const socket = open(url, token, undefined, ({ topic, id, data }) => {
      if (topic === 'ready') stream.ready = true
      else if (topic === 'reset') stream.resets++
      else if (id !== undefined && data.itemCodes?.includes(ITEM) === true) stream.ids.add(id)
    })
    return Object.assign(stream, { socket })
  })
  const delays: number[] = []
  try {
    await until('streams are open', HEARD_SECONDS, () => streams.every(({ ready }) => ready))
    for (let round = 1; round <= ROUNDS; round++) {
      const written = await send(nodes[round % nodes.length] ?? '', token, 'POST', '/api/movements', {
        body: { type: 'receipt', lines: [{ itemCode: ITEM, quantity: 1, unitCost: 1 }] }
      })
      if (written.status !== 201) throw new Error(`a write was refused: ${written.status} ${written.text}`)
      const writtenAt = performance.now()
      const behind = () => streams.filter(({ ids, resets }) => resets === 0 && ids.size < round)
      while (behind().length > 0) {
        if (performance.now() - writtenAt > HEARD_SECONDS * 1000)
          throw new Error(`write ${round} was not told by ${behind().map(({ url }) => url)}`)
        await sleep(1)
      }
      delays.push(performance.now() - writtenAt)
    }
  } finally {
    for (const { socket } of streams) socket.terminate()
  }
  const resets = streams.reduce((sum, stream) => sum + stream.resets, 0)
  delays.sort((a, b) => a - b)
  const at = (share: number) => delays[Math.min(delays.length - 1, Math.floor(share * delays.length))] ?? Number.NaN
  say(
    `fan-out: ${ROUNDS} writes at one node after the other, heard on WebSockets at ${nodes.length} nodes and through the balancer after ${at(0.5).toFixed(0)} ms (median), ${at(1).toFixed(0)} ms (max); ${resets} times told to load again`
  )
  if (resets === 0 && at(0.5) > TOLD_MILLISECONDS) throw new Error(`that is more than ${TOLD_MILLISECONDS} ms`)
}

/**
 * A page that shows stock: through the balancer it opens a stream, loads what that names, comes again when it ends, and loads
 * everything where it is told that something may be missing. It asks for nothing else.
 */
export class Follower {
  readonly shown = new Map<string, number>()
  /** How often it came again, and how often nothing was missing then. */
  opened = 0
  resumed = 0
  readonly #url: string
  readonly #token: string
  readonly #items: readonly string[]
  readonly #wanted = new Set<string>()
  #last: string | undefined
  #socket: WebSocket | undefined
  #stopped = false
  #loading: Promise<void> = Promise.resolve()

  constructor(url: string, token: string, items: readonly string[]) {
    this.#url = url
    this.#token = token
    this.#items = items
  }

  start(): void {
    this.#open()
    this.#loading = this.#load()
  }

  async stop(): Promise<void> {
    this.#stopped = true
    this.#socket?.terminate()
    await this.#loading
  }

  /** @throws where it does not show this in a while */
  async shows(expected: ReadonlyMap<string, number>): Promise<void> {
    const wrong = () => [...expected].filter(([item, count]) => this.shown.get(item) !== count)
    await until('who follows the stream shows what is there', HEARD_SECONDS, () => wrong().length === 0).catch(
      (error) => {
        const found = wrong().map(([item, count]) => `${item} ${count}, shown ${this.shown.get(item)}`)
        throw new Error(`${error instanceof Error ? error.message : error}: ${found.join('; ')}`)
      }
    )
  }

  #open(): void {
    const socket = open(this.#url, this.#token, this.#last, (message) => this.#hear(message))
    this.#socket = socket
    socket.once('close', () => {
      if (!this.#stopped) setTimeout(() => this.#open(), COME_AGAIN_MILLISECONDS)
    })
  }

  #hear({ topic, id, data }: Message): void {
    if (topic === 'ready') {
      this.opened++
      if (data.resumed === true) this.resumed++
      else this.#want(this.#items)
    } else if (topic === 'reset') this.#want(this.#items)
    else this.#want(data.itemCodes ?? [])
    this.#last = id ?? this.#last
  }

  #want(items: readonly string[]): void {
    for (const item of items) if (this.#items.includes(item)) this.#wanted.add(item)
  }

  /** One after the other, so that an older answer never covers a newer one. */
  async #load(): Promise<void> {
    while (!this.#stopped) {
      const [item] = this.#wanted
      if (item === undefined) {
        await sleep(10)
        continue
      }
      this.#wanted.delete(item)
      const { status, text } = await send(this.#url, this.#token, 'GET', `/api/inventory/${item}`)
      const onHand = /"onHand":(\d+),/.exec(text)?.[1]
      if (status === 200 && onHand !== undefined) this.shown.set(item, Number(onHand))
      else this.#wanted.add(item)
    }
  }
}
