import cluster, { type Worker } from 'node:cluster'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { type ClusterMetrics, createClusterMetrics, type Exposition } from './metrics.js'

/**
 * `CLUSTER_WORKERS`: several processes that share one port. The first starts alone, since what stops it would stop each; one
 * that ends is replaced. A process of a cluster is a node like any other, and knows nothing of its neighbours.
 */

/** A start that fails again and again is tried less and less often. */
const RESTART_MILLISECONDS_MIN = 100
const RESTART_MILLISECONDS_MAX = 10_000
/** What ran for so long did not fail at its start. */
const SETTLED_MILLISECONDS = 30_000
/** A worker that does not answer in this time is left out of a scrape, and not waited for again until it has said something. */
const SCRAPE_MILLISECONDS = 1_500
/** Longer than a worker gives itself to close. */
const CLOSE_MILLISECONDS = 15_000
/** Set by `supervise` alone: a host's own cluster speaks another language. */
const MARK = 'INVENTORY_CLUSTER_MEMBER'

type Order =
  | { order: 'listen' | 'drain' | 'close' }
  | { order: 'collect'; id: number; topic: string }
  | { order: 'collected'; id: number; text: string }
  | { order: 'heard'; topic: string; text: string }
type Word =
  | { word: 'joined' }
  | { word: 'ready' }
  | { word: 'gather'; id: number; topic: string }
  | { word: 'told'; id: number; text: string }
  | { word: 'share'; topic: string; text: string }

/** What all processes say on these is one text, made by the first process; on any other topic it is a list. */
const METRICS = 'metrics'
const OPEN_METRICS = 'open-metrics'

/** What one process says when all are asked, or why it says nothing. */
export interface Answer {
  /** As in metrics and logs. */
  readonly worker: number
  /** `silent` is one that hangs, or is stopped; `ended` one whose successor does not serve yet. */
  readonly state: 'answers' | 'silent' | 'starting' | 'ended'
  /** In ms since 1970, of a state in which it does not answer. */
  readonly since?: number
  readonly text: string
}

/** What a process of a cluster has of the others. */
export interface Member {
  /** Only the first that was ever started. */
  readonly isFirst: boolean
  /** The metrics of all, each with the label `worker`. */
  readonly gather: Exposition
  /** How this one tells its own. */
  provide(own: Exposition): void
  /** How this one answers when any asks on a topic; '' is no answer. */
  answer(topic: string, say: () => Promise<string>): void
  /** What all say, this one included, without those that do not answer in time. */
  ask(topic: string): Promise<string[]>
  /** The same by process, with those that do not answer. */
  askEach(topic: string): Promise<Answer[]>
  /** Tells all processes, those that start later too: what is heard last on a topic counts. The caller itself hears nothing. */
  share(topic: string, hear: (text: string) => void): (text: string) => void
  /** Says that it could serve; resolves when it may. */
  admitted(): Promise<void>
  onOrder(order: 'drain' | 'close', run: () => void): void
}

/** Undefined in a process that `supervise` has not started. */
export function joinCluster(): Member | undefined {
  if (!cluster.isWorker || process.env[MARK] === undefined) return undefined
  const answers = new Map<string, () => Promise<string>>()
  let asked = 0
  const waiting = new Map<number, (text: string) => void>()
  const handlers = new Map<string, () => void>()
  const listeners = new Map<string, (text: string) => void>()
  const say = (word: Word) => {
    // Without a channel there is no cluster any more, and Node ends this process.
    if (process.connected) process.send?.(word)
  }
  process.on('message', (message: Order) => {
    if (message.order === 'collect') {
      const told = (text: string) => say({ word: 'told', id: message.id, text })
      const answer = answers.get(message.topic) ?? (async () => '')
      answer().then(told, () => told(''))
    } else if (message.order === 'collected') {
      waiting.get(message.id)?.(message.text)
      waiting.delete(message.id)
    } else if (message.order === 'heard') listeners.get(message.topic)?.(message.text)
    else handlers.get(message.order)?.()
  })
  say({ word: 'joined' })
  const gathered = (topic: string) =>
    new Promise<string>((resolve) => {
      const id = asked++
      waiting.set(id, resolve)
      say({ word: 'gather', id, topic })
    })
  const askEach = async (topic: string): Promise<Answer[]> => JSON.parse(await gathered(topic))
  return {
    isFirst: process.env[MARK] === 'first',
    gather: (openMetrics) => gathered(openMetrics ? OPEN_METRICS : METRICS),
    provide: (exposition) => {
      answers.set(METRICS, () => exposition(false)).set(OPEN_METRICS, () => exposition(true))
    },
    answer: (topic, answer) => void answers.set(topic, answer),
    ask: async (topic) => (await askEach(topic)).flatMap(({ text }) => (text === '' ? [] : [text])),
    askEach,
    share: (topic, hear) => {
      listeners.set(topic, hear)
      return (text) => say({ word: 'share', topic, text })
    },
    admitted: () =>
      new Promise((resolve) => {
        handlers.set('listen', resolve)
        say({ word: 'ready' })
      }),
    onOrder: (order, run) => void handlers.set(order, run)
  }
}

interface ClusterOptions {
  readonly workers: number
  readonly drainSeconds: number
  readonly log: Pick<FastifyBaseLogger, 'info' | 'warn'>
  /** Answers on the port until the first worker does; resolves to what ends that. */
  starting(): Promise<(() => Promise<void>) | undefined>
}

/** Runs the workers until a signal ends them, or the first does not start. @returns the exit code */
export async function supervise(options: ClusterOptions): Promise<number> {
  const supervisor = new Supervisor(options)
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => supervisor.end(signal))
  return supervisor.run()
}

class Supervisor {
  readonly #options: ClusterOptions
  readonly #scrapes: Scrapes
  /** By the number that a worker has in metrics and logs; who replaces it has the same. */
  readonly #running = new Map<number, Worker>()
  /** Those that do not serve, by number. */
  readonly #missing = new Map<number, Missing>()
  readonly #failures = new Map<number, number>()
  /** What was shared last, by topic. */
  readonly #shared = new Map<string, string>()
  readonly #ended: Promise<void>
  #allLeft = () => {}
  #ending: 'drain' | 'close' | undefined

  constructor(options: ClusterOptions) {
    this.#options = options
    this.#ended = new Promise((resolve) => {
      this.#allLeft = resolve
    })
    this.#scrapes = new Scrapes(options, this.#running, this.#missing)
  }

  async run(): Promise<number> {
    const { workers, starting } = this.#options
    const done = await starting()
    const first = this.#fork(1, 'first')
    const failed = exitOf(first)
    const early = await Promise.race([said(first, 'ready'), failed])
    await done?.()
    if (early !== undefined) return early
    this.#admitted(1, first)
    const refused = await Promise.race([once(first, 'listening').then(() => undefined), failed])
    if (refused !== undefined) return refused
    this.#serves(1, first)
    this.#watch(1, first)
    for (let n = 2; n <= workers; n++) this.#admit(n)
    await this.#ended
    return 0
  }

  /** By message and not by signal: a terminal, or systemd, tells every process, and told twice is at once. */
  end(signal: NodeJS.Signals): void {
    const { log, drainSeconds } = this.#options
    const order = this.#ending === undefined ? 'drain' : 'close'
    this.#ending = order
    this.#scrapes.ending()
    log.info({ signal, workers: this.#running.size }, `every worker is told to ${order}`)
    for (const worker of this.#running.values()) tell(worker, order)
    this.#left()
    const kill = () => {
      for (const worker of this.#running.values()) worker.process.kill('SIGKILL')
    }
    setTimeout(kill, (order === 'drain' ? drainSeconds * 1000 : 0) + CLOSE_MILLISECONDS).unref()
  }

  #fork(n: number, mark: 'first' | 'later'): Worker {
    const worker = cluster.fork({ [MARK]: mark })
    this.#running.set(n, worker)
    if (!this.#missing.has(n)) this.#missing.set(n, { state: 'starting', since: Date.now() })
    this.#scrapes.hear(n, worker)
    worker.on('message', (message: Word) => {
      if (message.word === 'share') this.#share(worker, message.topic, message.text)
    })
    // One that ends while it is spoken to says so by its exit.
    worker.on('error', () => {})
    worker.once('exit', () => {
      if (this.#running.get(n) === worker) this.#running.delete(n)
      if (!this.#missing.has(n)) this.#missing.set(n, { state: 'ended', since: Date.now() })
      this.#left()
    })
    return worker
  }

  #share(from: Worker, topic: string, text: string): void {
    this.#shared.set(topic, text)
    for (const worker of this.#running.values()) if (worker !== from) give(worker, { order: 'heard', topic, text })
  }

  #admit(n: number): void {
    const worker = this.#fork(n, 'later')
    this.#watch(n, worker)
    void said(worker, 'ready').then(() => {
      for (const [topic, text] of this.#shared) give(worker, { order: 'heard', topic, text })
      this.#admitted(n, worker)
      this.#serves(n, worker)
    })
  }

  #admitted(n: number, worker: Worker): void {
    this.#missing.delete(n)
    tell(worker, this.#ending ?? 'listen')
  }

  #serves(n: number, worker: Worker): void {
    this.#options.log.info({ worker: n, pid: worker.process.pid }, 'a worker serves')
  }

  #watch(n: number, worker: Worker): void {
    const startedAt = performance.now()
    worker.once('exit', (code, signal) => {
      if (this.#ending !== undefined) return
      const failures = performance.now() - startedAt > SETTLED_MILLISECONDS ? 0 : (this.#failures.get(n) ?? 0) + 1
      this.#failures.set(n, failures)
      this.#scrapes.exited()
      this.#options.log.warn({ worker: n, pid: worker.process.pid, code, signal }, 'a worker ended and is replaced')
      const milliseconds = Math.min(RESTART_MILLISECONDS_MIN * 2 ** failures, RESTART_MILLISECONDS_MAX)
      void sleep(milliseconds).then(() => {
        if (this.#ending === undefined) this.#admit(n)
      })
    })
  }

  #left(): void {
    if (this.#ending !== undefined && this.#running.size === 0) this.#allLeft()
  }
}

type Missing = Readonly<{ state: 'starting' | 'ended'; since: number }>

/** Collects what all workers say for the one that asks. */
class Scrapes {
  readonly #options: ClusterOptions
  readonly #metrics: ClusterMetrics
  readonly #running: ReadonlyMap<number, Worker>
  readonly #missing: ReadonlyMap<number, Missing>
  /** Since when they owe an answer. */
  readonly #silent = new Map<Worker, number>()
  /** Those that have said a word: Node drops what a process is told before it has begun to listen. */
  readonly #listening = new WeakSet<Worker>()
  readonly #waiting = new Map<number, (worker: Worker, text: string) => void>()
  #asked = 0

  constructor(options: ClusterOptions, running: ReadonlyMap<number, Worker>, missing: ReadonlyMap<number, Missing>) {
    this.#options = options
    this.#metrics = createClusterMetrics(options.workers)
    this.#running = running
    this.#missing = missing
  }

  exited(): void {
    this.#metrics.exited()
  }

  ending(): void {
    this.#metrics.ending()
  }

  hear(n: number, worker: Worker): void {
    worker.on('message', (message: Word) => {
      this.#listening.add(worker)
      if (this.#silent.delete(worker))
        this.#options.log.info({ worker: n, pid: worker.process.pid }, 'a worker answers again')
      if (message.word === 'told') this.#waiting.get(message.id)?.(worker, message.text)
      if (message.word === 'gather') void this.#gather(worker, message.id, message.topic)
    })
    worker.once('exit', () => {
      this.#silent.delete(worker)
      for (const told of this.#waiting.values()) told(worker, '')
    })
  }

  async #gather(asker: Worker, askedAs: number, topic: string): Promise<void> {
    const id = this.#asked++
    const askedAt = Date.now()
    // One that owes an answer is not asked again: it says so itself when it can.
    const asked = [...this.#running].filter(
      ([, worker]) => worker.isConnected() && this.#listening.has(worker) && !this.#silent.has(worker)
    )
    const awaited = new Map(asked.map(([n, worker]) => [worker, n]))
    const parts = new Map<number, string>()
    const all = new Promise<void>((resolve) => {
      this.#waiting.set(id, (worker, text) => {
        const n = awaited.get(worker)
        if (n !== undefined && text !== '') parts.set(n, text)
        awaited.delete(worker)
        if (awaited.size === 0) resolve()
      })
    })
    for (const worker of awaited.keys()) give(worker, { order: 'collect', id, topic })
    await Promise.race([all, sleep(SCRAPE_MILLISECONDS)])
    this.#waiting.delete(id)
    for (const [worker, n] of awaited) this.#owes(n, worker, askedAt)
    const text =
      topic === METRICS || topic === OPEN_METRICS
        ? await this.#metrics.text(sorted(parts), this.#running.size, topic === OPEN_METRICS)
        : JSON.stringify(this.#answers(parts))
    give(asker, { order: 'collected', id: askedAs, text })
  }

  #owes(n: number, worker: Worker, since: number): void {
    if (this.#silent.has(worker)) return
    this.#silent.set(worker, since)
    if (!this.#missing.has(n))
      this.#options.log.warn({ worker: n, pid: worker.process.pid }, 'a worker does not answer')
  }

  #answers(parts: ReadonlyMap<number, string>): Answer[] {
    return Array.from({ length: this.#options.workers }, (_, index) => {
      const worker = index + 1
      const text = parts.get(worker) ?? ''
      const running = this.#running.get(worker)
      const silentSince = running && this.#silent.get(running)
      const missing = this.#missing.get(worker)
      if (missing !== undefined) return { worker, ...missing, text }
      return silentSince === undefined
        ? { worker, state: 'answers', text }
        : { worker, state: 'silent', since: silentSince, text }
    })
  }
}

const sorted = (parts: ReadonlyMap<number, string>) => new Map([...parts].sort(([a], [b]) => a - b))

function give(worker: Worker, order: Order): void {
  // What cannot be told to one that just ended is told by its exit.
  if (worker.isConnected()) worker.send(order, () => {})
}
const tell = (worker: Worker, order: 'listen' | 'drain' | 'close') => give(worker, { order })

const said = (worker: Worker, word: Word['word']) =>
  new Promise<undefined>((resolve) => {
    worker.on('message', (message: Word) => {
      if (message.word === word) resolve(undefined)
    })
  })
const exitOf = (worker: Worker) =>
  new Promise<number>((resolve) => void worker.once('exit', (code) => resolve(code ?? 1)))
