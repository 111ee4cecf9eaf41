import { parentPort, workerData } from 'node:worker_threads'
import type { ArchiveEntry, ArchivePosition, ArchiveRun, MadeArchive, Place, Portability } from '../contracts.js'
import { ArchiveDamaged, ArchiveMissing, type Header } from './format.js'
import { KeyRefused } from './keys.js'
import { type ArchiveSettings, type Loaded, Operations } from './operations.js'

/** Runs in a thread of its own, so that neither reading rows nor encrypting them holds up a request. */

export interface ThreadData {
  readonly settings: ArchiveSettings
  readonly traits: readonly Portability[]
}
export type Order =
  | { readonly op: 'list'; readonly tenant: string }
  | { readonly op: 'remove'; readonly tenant: string; readonly entries: readonly ArchiveEntry[] }
  | { readonly op: 'full'; readonly tenant: string; readonly place: Place; readonly capture: boolean }
  | {
      readonly op: 'increment'
      readonly tenant: string
      readonly place: Place
      readonly previous: string
      readonly since: ArchivePosition
    }
  | { readonly op: 'check'; readonly tenant: string; readonly chain: readonly ArchiveEntry[] }
  | { readonly op: 'describe'; readonly tenant: string; readonly entry: ArchiveEntry }
  | { readonly op: 'load'; readonly tenant: string; readonly chain: readonly ArchiveEntry[]; readonly place: Place }
  | { readonly op: 'prune'; readonly place: Place; readonly position: string }
  | { readonly op: 'release'; readonly place: Place }
export type Result =
  | { readonly op: 'list'; readonly entries: ArchiveEntry[] }
  | { readonly op: 'full'; readonly made: MadeArchive }
  | { readonly op: 'increment'; readonly made: MadeArchive | { nothing: 'unchanged' | 'broken'; at: number } }
  | { readonly op: 'check'; readonly found: { archives: number; rows: number; parts: number } }
  | { readonly op: 'describe'; readonly header: Header }
  | { readonly op: 'load'; readonly loaded: Loaded }
  | { readonly op: 'remove' | 'prune' | 'release' }
/** What went wrong, as it can be sent from a thread. */
export interface Failure {
  readonly kind: 'damaged' | 'missing' | 'key' | 'other'
  readonly message: string
  readonly part?: string
  readonly stack?: string
}
export type Request = { readonly id: number; readonly order: Order } | { readonly cancel: number } | 'close'
export type Message =
  | { readonly id: number; readonly progress: readonly [done: number, total: number] }
  | { readonly id: number; readonly result: Result }
  | { readonly id: number; readonly failure: Failure }

const PROGRESS_MILLISECONDS = 200

const port = parentPort
if (port === null) throw new Error('archives are made in a thread')
const { settings, traits }: ThreadData = workerData
const operations = new Operations(settings, traits)
const running = new Map<number, AbortController>()
const say = (message: Message) => port.postMessage(message)

async function obey(order: Order, run: ArchiveRun): Promise<Result> {
  switch (order.op) {
    case 'list':
      return { op: 'list', entries: await operations.list(order.tenant) }
    case 'full':
      return { op: 'full', made: await operations.full(order.tenant, order.place, order.capture, run) }
    case 'increment': {
      const { tenant, place, previous, since } = order
      return { op: 'increment', made: await operations.increment(tenant, place, previous, since) }
    }
    case 'check':
      return { op: 'check', found: await operations.check(order.tenant, order.chain, run) }
    case 'describe':
      return { op: 'describe', header: await operations.describe(order.tenant, order.entry) }
    case 'load':
      return { op: 'load', loaded: await operations.load(order.tenant, order.chain, order.place, run) }
    case 'remove':
      await operations.remove(order.tenant, order.entries)
      return { op: 'remove' }
    case 'prune':
      await operations.prune(order.place, order.position)
      return { op: 'prune' }
    case 'release':
      await operations.release(order.place)
      return { op: 'release' }
  }
}

function failureOf(error: unknown): Failure {
  const { message, stack } = error instanceof Error ? error : new Error(String(error))
  const kind =
    error instanceof ArchiveDamaged
      ? 'damaged'
      : error instanceof ArchiveMissing
        ? 'missing'
        : error instanceof KeyRefused
          ? 'key'
          : 'other'
  return {
    ...{ kind, message },
    ...(error instanceof ArchiveDamaged ? { part: error.part } : {}),
    ...(stack === undefined ? {} : { stack })
  }
}

/** Progress is for people: a few times a second is enough. */
function throttled(id: number): NonNullable<ArchiveRun['progress']> {
  let saidAt = 0
  return (done, total) => {
    if (Date.now() - saidAt < PROGRESS_MILLISECONDS && done < total) return
    saidAt = Date.now()
    say({ id, progress: [done, total] })
  }
}

port.on('message', (request: Request) => {
  if (request === 'close') {
    for (const controller of running.values()) controller.abort(new Error('the service stops'))
    port.close()
    return
  }
  if ('cancel' in request) {
    running.get(request.cancel)?.abort(new Error('cancelled'))
    return
  }
  const { id, order } = request
  const controller = new AbortController()
  running.set(id, controller)
  obey(order, { signal: controller.signal, progress: throttled(id) })
    .then(
      (result) => say({ id, result }),
      (error: unknown) => say({ id, failure: failureOf(error) })
    )
    .finally(() => running.delete(id))
})
