import { setTimeout as sleep } from 'node:timers/promises'
import { parentPort, workerData } from 'node:worker_threads'
import type { Place, Portability } from '../contracts.js'
import type { Comparison, Following } from './files.js'
import { Link } from './link.js'
import { Superseded } from './side.js'

/** Runs in a thread of its own, so that neither reading nor sending rows holds up a request; it never writes to the original. */

export interface Pair {
  readonly tenant: string
  readonly source: Place
  readonly target: Place
}
export interface FollowerData {
  readonly pairs: readonly Pair[]
  readonly traits: readonly Portability[]
}

export type Order =
  | { readonly id: number; readonly order: 'verify' | 'finish' | 'settled' }
  | { readonly id: number; readonly order: 'add'; readonly pair: Pair }
  | { readonly id: number; readonly order: 'remove'; readonly tenant: string }
export type Verified = Record<string, Comparison>
export type Message =
  | { readonly kind: 'report'; readonly tenants: readonly Following[] }
  | { readonly kind: 'progress'; readonly step: string; readonly done: number; readonly total: number }
  | { readonly kind: 'done'; readonly id: number; readonly verified: Verified }
  | { readonly kind: 'failed'; readonly id: number; readonly error: string }

/** Rows that many writes change are sent once for each round. */
const POLL_MILLISECONDS = 100
/** Rounds between do not wait for the disk of PostgreSQL, which may be the one that SQLite waits for. */
const DURABLE_MILLISECONDS = 5_000
const REPORT_MILLISECONDS = 500
const PAUSE_MAX_MILLISECONDS = 5_000

const port = parentPort
if (port === null) throw new Error('the follower runs in a thread')
const { pairs, traits }: FollowerData = workerData
const say = (message: Message) => port.postMessage(message)
const progress = (step: string, done: number, total: number) => say({ kind: 'progress', step, done, total })

class Tenant {
  readonly #pair: Pair
  readonly #running: Promise<void>
  #link: Link | undefined
  #stopped = false
  #queue: Promise<unknown> = Promise.resolve()
  #verifiedAt: string | undefined
  /** What was noted after it is not forgotten yet. */
  #kept: string | undefined
  #caughtUpAt = Date.now()
  #durableAt = 0
  #pending = 0
  #applied = 0
  #errors = 0
  #error: string | undefined
  #copied: { done: number; total: number } | undefined

  constructor(pair: Pair) {
    this.#pair = pair
    this.#running = this.#follow()
  }

  /** One thing at a time is done with the link. */
  #alone<R>(work: () => Promise<R>): Promise<R> {
    const result = this.#queue.then(work)
    this.#queue = result.catch(() => {})
    return result
  }

  async #follow(): Promise<void> {
    let pause = POLL_MILLISECONDS
    while (!this.#stopped) {
      try {
        await this.#alone(() => this.#round())
        this.#error = undefined
        pause = POLL_MILLISECONDS
        await sleep(pause)
      } catch (error) {
        await this.#link?.close()
        this.#link = undefined
        if (!(error instanceof Superseded)) this.#errors++
        this.#error = error instanceof Error ? error.message : String(error)
        pause = Math.min(PAUSE_MAX_MILLISECONDS, pause * 2)
        await sleep(pause)
      }
    }
  }

  async #round(): Promise<void> {
    if (this.#stopped) return
    const link = await this.#opened()
    this.#pending = await link.pending()
    if (link.position !== undefined && this.#pending === 0) {
      this.#caughtUpAt = Date.now()
      return
    }
    const startedAt = Date.now()
    if (link.position === undefined) this.#copied = { done: 0, total: 0 }
    const durable = startedAt - this.#durableAt > DURABLE_MILLISECONDS
    if (durable) this.#durableAt = startedAt
    this.#applied += await link.step((step, done, total) => {
      this.#copied = { done, total }
      progress(`${this.#pair.tenant} ${step}`, done, total)
    }, durable)
    this.#copied = undefined
    this.#caughtUpAt = startedAt
    // On SQLite the service's own writer does it, which no other may hold up.
    const forgettable = link.durablePosition
    if (this.#pair.source.dialect === 'postgres' && forgettable !== undefined && durable && !this.#verifiedAt)
      await link.source.prune(forgettable)
  }

  async #opened(): Promise<Link> {
    this.#link ??= await Link.open(this.#pair.source, this.#pair.target, traits)
    return this.#link
  }

  report(): Following {
    const position = this.#kept ?? this.#link?.durablePosition
    const state = this.#error !== undefined ? 'waiting' : this.#copied === undefined ? 'following' : 'copying'
    const behind = this.#pending > 0 || state !== 'following'
    return {
      tenant: this.#pair.tenant,
      state: this.#link === undefined ? 'waiting' : state,
      ...(position === undefined ? {} : { position }),
      pendingChanges: this.#pending,
      lagSeconds: behind ? (Date.now() - this.#caughtUpAt) / 1000 : 0,
      appliedChanges: this.#applied,
      errors: this.#errors,
      ...(this.#error === undefined ? {} : { error: this.#error }),
      ...(this.#copied === undefined ? {} : { copied: this.#copied })
    }
  }

  async verify(): Promise<Comparison> {
    return await new Promise<Comparison>((resolve, reject) => {
      // Following goes on as soon as both states are fixed.
      const fixed = this.#alone(
        () =>
          new Promise<void>((started, failed) => {
            this.#opened()
              .then(async (link) => {
                if (link.position === undefined) await link.step(progress)
                const compared = link.compare(
                  (step, done, total) => progress(`${this.#pair.tenant} ${step}`, done, total),
                  started
                )
                // What was noted from here on is compared again at the end, so it must not be forgotten before.
                this.#verifiedAt = link.position
                this.#kept = link.durablePosition
                resolve(await compared)
              })
              .catch((error: unknown) => {
                failed(error)
                reject(error)
              })
          })
      )
      fixed.catch(() => {})
    })
  }

  async finish(): Promise<Comparison> {
    this.#stopped = true
    await this.#running
    const link = await this.#opened()
    return link.finish(this.#verifiedAt ?? link.position ?? '')
  }

  forgetVerified(): void {
    this.#kept = undefined
    this.#verifiedAt = undefined
  }

  async close(): Promise<void> {
    this.#stopped = true
    await this.#running
    await this.#queue
    await this.#link?.close()
  }
}

const tenants = new Map(pairs.map((pair) => [pair.tenant, new Tenant(pair)]))
const reporting = setInterval(
  () => say({ kind: 'report', tenants: [...tenants.values()].map((tenant) => tenant.report()) }),
  REPORT_MILLISECONDS
)

async function eachTenant(work: (tenant: Tenant) => Promise<Comparison>): Promise<Verified> {
  const verified: Verified = {}
  for (const [name, tenant] of tenants) verified[name] = await work(tenant)
  return verified
}

async function obey(order: Order): Promise<Verified> {
  switch (order.order) {
    case 'verify':
      return eachTenant((tenant) => tenant.verify())
    case 'finish':
      return eachTenant((tenant) => tenant.finish())
    case 'settled':
      for (const tenant of tenants.values()) tenant.forgetVerified()
      return {}
    case 'add':
      tenants.set(order.pair.tenant, new Tenant(order.pair))
      return {}
    case 'remove':
      await tenants.get(order.tenant)?.close()
      tenants.delete(order.tenant)
      return {}
  }
}

port.on('message', (order: Order | 'close') => {
  if (order === 'close') {
    clearInterval(reporting)
    void Promise.allSettled([...tenants.values()].map((tenant) => tenant.close())).then(() => port.close())
    return
  }
  obey(order).then(
    (verified) => say({ kind: 'done', id: order.id, verified }),
    (error: unknown) =>
      say({ kind: 'failed', id: order.id, error: error instanceof Error ? error.message : String(error) })
  )
})
