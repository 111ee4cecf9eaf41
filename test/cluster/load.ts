import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { Agent, type IncomingMessage, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'

/** Clients that post and read what they posted. Each has a token and an item of its own, so that it knows what must be there. */

export interface Answer {
  /** 0: no answer came. */
  readonly status: number
  readonly text: string
  /** Seconds; NaN where nothing is said. */
  readonly retryAfter: number
}

export const agent = new Agent({ keepAlive: true, maxSockets: 64 })

export async function send(
  url: string,
  token: string,
  method: string,
  path: string,
  { body, key }: { body?: object; key?: string } = {}
): Promise<Answer> {
  const payload = body === undefined ? undefined : JSON.stringify(body)
  const call = request(url + path, {
    method,
    agent,
    headers: {
      authorization: `Bearer ${token}`,
      ...(payload === undefined
        ? {}
        : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) }),
      ...(payload === undefined ? {} : { 'idempotency-key': key ?? randomUUID() })
    }
  })
  try {
    call.end(payload)
    const [response]: IncomingMessage[] = await once(call, 'response')
    const chunks: Buffer[] = []
    for await (const chunk of response ?? []) chunks.push(chunk)
    return {
      status: response?.statusCode ?? 0,
      text: Buffer.concat(chunks).toString(),
      retryAfter: Number(response?.headers['retry-after'] ?? Number.NaN)
    }
  } catch (error) {
    return { status: 0, text: String(error), retryAfter: Number.NaN }
  }
}

export interface Client {
  readonly token: string
  readonly itemCode: string
}

export const receipt = ({ itemCode }: Client) => ({
  type: 'receipt',
  lines: [{ itemCode, quantity: 1, unitCost: 1 }]
})

/** What a phase of the load saw. */
export interface Seen {
  requests: number
  failures: string[]
  /** Reads that lacked what the same client had written before. */
  stale: number
}

const none = (): Seen => ({ requests: 0, failures: [], stale: 0 })

export class Load {
  /** The bytes that each acknowledged write was answered with, by client and key. */
  readonly acknowledged: { client: Client; key: string; text: string }[] = []
  readonly counts = new Map<string, number>()
  readonly #url: string
  #seen = none()
  #running: Promise<unknown> = Promise.resolve()
  #stopped = true

  constructor(url: string) {
    this.#url = url
  }

  /** @param pause between two writes of a client, in ms */
  start(clients: readonly Client[], pause: number): void {
    this.#stopped = false
    this.#running = Promise.all(clients.map((client) => this.#run(client, pause)))
  }

  async stop(): Promise<void> {
    this.#stopped = true
    await this.#running
  }

  /** What was seen since this was last asked. */
  take(): Seen {
    const seen = this.#seen
    this.#seen = none()
    return seen
  }

  async #run(client: Client, pause: number): Promise<void> {
    while (!this.#stopped) {
      const key = randomUUID()
      // As a client does: what was not acknowledged is sent again under the same key, until it is.
      for (let status = 0; status !== 201; ) {
        const answer = await this.#send(client, 'POST', '/api/movements', {
          key,
          body: receipt(client)
        })
        status = answer.status
        if (status === 201) this.acknowledged.push({ client, key, text: answer.text })
        else await sleep(50)
      }
      const count = (this.counts.get(client.itemCode) ?? 0) + 1
      this.counts.set(client.itemCode, count)
      const read = await this.#send(client, 'GET', `/api/inventory/${client.itemCode}`)
      if (read.status === 200 && !read.text.includes(`"onHand":${count},`)) this.#seen.stale++
      if (pause > 0) await sleep(pause)
    }
  }

  async #send(client: Client, method: string, path: string, rest: { body?: object; key?: string } = {}) {
    const answer = await send(this.#url, client.token, method, path, rest)
    this.#seen.requests++
    if (answer.status !== (method === 'GET' ? 200 : 201))
      this.#seen.failures.push(`${method} ${path}: ${answer.status} ${answer.text.slice(0, 200)}`)
    return answer
  }
}
