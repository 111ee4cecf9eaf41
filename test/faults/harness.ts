import { once } from 'node:events'
import { Agent, type IncomingMessage, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import { ownTime } from '../own-time.js'
import type { Service } from '../service-process.js'

/** Load on the running program, and what must hold of it whatever breaks. */

/** Cycles of killing and the like; more on demand. */
export const CYCLES = Number(process.env.FAULT_CYCLES ?? 1)
/** Set, in seconds: what takes longer runs as well, and each phase of load lasts that long. */
export const LONG = process.env.FAULT_SECONDS !== undefined
export const PHASE_MILLISECONDS = LONG ? Number(process.env.FAULT_SECONDS) * 1000 : 700
export const CLIENTS = 12
/** How many of the acknowledged writes are sent again each time; that all are there the ledger says. */
const REPLAYED = 200

export interface Outcome {
  status: number
  text: string
  /** Without the time in which the service or we could have run and others had the processors. */
  milliseconds: number
  /** The server had closed the kept connection before it saw the request, which any client then sends again. */
  unsent: boolean
}

const agent = new Agent({ keepAlive: true, maxSockets: 64 })
/** For the end of a test file: kept connections would keep the process. */
export const hangUp = (): void => agent.destroy()

/** Status 0: no answer came. */
export async function send(
  service: Service,
  method: string,
  path: string,
  body?: object,
  headers = {}
): Promise<Outcome> {
  const clock = () => ownTime(service.child.pid, process.pid)
  const startedAt = clock()
  const payload = body === undefined ? undefined : JSON.stringify(body)
  const type =
    payload === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) }
  const call = request(`${service.url}${path}`, {
    method,
    agent,
    headers: { authorization: `Bearer ${service.token}`, ...type, ...headers }
  })
  const milliseconds = () => clock() - startedAt
  try {
    call.end(payload)
    const [response]: IncomingMessage[] = await once(call, 'response')
    const chunks: Buffer[] = []
    for await (const chunk of response ?? []) chunks.push(chunk)
    return {
      status: response?.statusCode ?? 0,
      text: Buffer.concat(chunks).toString(),
      milliseconds: milliseconds(),
      unsent: false
    }
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : ''
    const unsent = code === 'ECONNREFUSED' || (call.reusedSocket && (code === 'ECONNRESET' || code === 'EPIPE'))
    return { status: 0, text: String(error), milliseconds: milliseconds(), unsent }
  }
}

const movement = { type: 'receipt', lines: [{ itemCode: 'A', quantity: 1, unitCost: 1 }] }
export const post = (service: Service, key: string) =>
  send(service, 'POST', '/api/movements', movement, { 'idempotency-key': key })

export async function createItem(t: Test, service: Service) {
  const made = await send(service, 'POST', '/api/inventory', { itemCode: 'A', name: 'A', unit: 'each' })
  t.equal(made.status, 201, made.text)
}

/** Clients that post one after the other until told to stop; what was acknowledged is in `acknowledged`, by key. */
export class Load {
  readonly acknowledged = new Map<string, string>()
  readonly unanswered = new Set<string>()
  readonly outcomes: Outcome[] = []
  #running: Promise<unknown> = Promise.resolve()
  #stopped = true
  #next = 0
  /** When each request that is not answered yet was sent. */
  readonly #open = new Map<string, number>()

  constructor(t: Test) {
    t.teardown(() => this.stop())
  }

  start(service: Service, { clients = CLIENTS, pause = 0, untilGone = false } = {}): void {
    this.#stopped = false
    const client = async () => {
      while (!this.#stopped) {
        const key = `key-${this.#next++}`
        this.#open.set(key, performance.now())
        const outcome = await post(service, key)
        this.#open.delete(key)
        this.outcomes.push(outcome)
        if (outcome.status === 201) this.acknowledged.set(key, outcome.text)
        else this.unanswered.add(key)
        if (untilGone && outcome.text.includes('ECONNREFUSED')) return
        if (outcome.status !== 201 || pause > 0) await sleep(Math.max(pause, 20))
      }
    }
    this.#running = Promise.all(Array.from({ length: clients }, client))
  }

  async stop(): Promise<void> {
    this.#stopped = true
    await this.#running
  }

  /** How many requests that were sent before that moment are not answered yet. */
  openSince(moment: number): number {
    return [...this.#open.values()].filter((sentAt) => sentAt < moment).length
  }

  /** One that was sent beside it and not acknowledged. */
  with(key: string): this {
    this.unanswered.add(key)
    return this
  }

  /** Resolves when so many more were acknowledged. */
  async more(count: number, timeout = 40_000): Promise<boolean> {
    const goal = this.acknowledged.size + count
    const deadline = Date.now() + timeout
    while (this.acknowledged.size < goal && Date.now() < deadline) await sleep(10)
    return this.acknowledged.size >= goal
  }
}

/**
 * What was acknowledged is there, once, with the same bytes; what was not can be sent again; every balance is what its moves
 * make it, and the audit trail is whole.
 * @returns what is wrong
 */
export async function findings(service: Service, load: Load): Promise<string[]> {
  const found: string[] = []
  const keys = [...load.acknowledged.keys()].slice(-REPLAYED)
  const replay = async () => {
    for (let key = keys.pop(); key !== undefined; key = keys.pop()) {
      const again = await post(service, key)
      if (again.status !== 201 || again.text !== load.acknowledged.get(key))
        found.push(
          `${key} was acknowledged with ${load.acknowledged.get(key)}, and is now ${again.status} ${again.text}`
        )
    }
  }
  await Promise.all(Array.from({ length: CLIENTS }, replay))
  for (const key of load.unanswered) {
    const again = await post(service, key)
    if (again.status !== 201) found.push(`${key}, which was not answered: ${again.status} ${again.text}`)
    load.acknowledged.set(key, again.text)
  }
  load.unanswered.clear()
  const { size } = load.acknowledged
  const verified = JSON.parse((await send(service, 'GET', '/api/ledger/verify')).text)
  const { ok, transactions, moves, mismatches } = verified
  if (ok !== true || transactions !== size || moves !== size || mismatches.length > 0)
    found.push(`of ${size} transactions the ledger says ${JSON.stringify(verified)}`)
  const { onHand, value } = JSON.parse((await send(service, 'GET', '/api/inventory/A')).text)
  if (onHand !== size || value !== size) found.push(`${size} were received, ${onHand} are there, worth ${value}`)
  const audit = JSON.parse((await send(service, 'GET', '/api/audit/verify')).text)
  if (audit.ok !== true) found.push(`the audit trail: ${JSON.stringify(audit)}`)
  return found
}

export async function checkLedger(t: Test, service: Service, load: Load): Promise<void> {
  const found = await findings(service, load)
  t.same(found.slice(0, 5), [], `${load.acknowledged.size} acknowledged writes hold`)
}

/** Nothing but what a client may be told in such times. */
export function checkAnswers(t: Test, load: Load, allowed: readonly number[]): void {
  const others = load.outcomes.filter(({ status }) => !allowed.includes(status))
  t.same(others.slice(0, 3), [], `none of ${load.outcomes.length} answers was another than ${allowed.join(', ')}`)
}

export async function becomes(service: Service, status: string, timeout = 15_000): Promise<number> {
  const startedAt = performance.now()
  let seen = ''
  while (performance.now() - startedAt < timeout) {
    const { text } = await send(service, 'GET', '/health')
    seen = text
    if (text.includes(`{"status":"${status}"`)) return performance.now() - startedAt
    await sleep(50)
  }
  throw new Error(`health never said ${status}: ${seen}`)
}
