import { readFileSync } from 'node:fs'
import { Agent } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Job } from '../schemas/common.js'
import { seedCatalogue } from './catalogue.js'
import { ask } from './client.js'
import {
  BenchError,
  type Cleanup,
  newSecret,
  numbers,
  postgres,
  progress,
  random,
  type Service,
  say,
  startService,
  table,
  withCleanup
} from './support.js'

const SAMPLE_MS = 1_000
const DAY_MS = 86_400_000
/** The least of so long a time is taken. */
const WINDOW_SECONDS = 60
/** Left to itself, the collector comes once in one to three minutes at this load, so what it has not come to yet would be compared. */
const COLLECT_EVERY = 20
const COLLECTING_MS = 500
/** Makes the service collect all its garbage at a signal. */
const COLLECTS = new URL('collects.js', import.meta.url).href
const DRIFT_MAX = 0.05
/** 33 MB on SQLite, whose page cache (32 MB) would go on to fill as the load writes. */
const HISTORY = 400_000
const HISTORY_DAYS = 80
/**
 * What a process has to grow to (compiled code, what is known of types, the allocator's arenas, the heap beside its load) it has after some seven
 * minutes of this load, and five that come after are flat.
 */
const WARM_UP_MINUTES = 8
const DRAIN_MAX_MS = 10_000
/** Those of the load are open all the time and take turns: otherwise a late answer would make it open more, which count as the service's. */
const CONNECTIONS = 16
/** What the runtime says of code that loses track of something. */
const LEAKY = /Unhandled|MaxListenersExceeded|Warning: |"level":[56]0/

interface Options {
  minutes: number
  warmup: number
  rate: number
  items: number
  history: number
}
interface Sample {
  seconds: number
  /** Memory of the process's own, in MB: what is mapped from files does not count. */
  anonymous: number
  resident: number
  heap: number
  /** What the collector keeps for the heap, used or not. */
  committed: number
  /** Buffers outside the heap. */
  external: number
  descriptors: number
  handles: number
  timers: number
  connections: number
}
type Figure = Exclude<keyof Sample, 'seconds'>

/**
 * Mixed load for minutes (`--minutes 60`: an hour). After the warm-up the memory must not grow by 5 % over the whole time, by a
 * line through the least of each minute; descriptors, handles, timers and connections must not grow; nothing may
 * be answered wrongly or rejected unseen; and SIGTERM under load must end it within 10 s.
 */
export async function run(args: string[]): Promise<void> {
  const options = numbers(args, { minutes: 5, warmup: WARM_UP_MINUTES, rate: 60, items: 300, history: HISTORY })
  await withCleanup(async (cleanup) => {
    const failures: string[] = []
    const one = async (name: string, databaseUrl: string) => {
      const rows = await soak(cleanup, name, databaseUrl, options, failures)
      process.stdout.write(`\n${table(['', 'at first', 'at last', 'change by regression, %', ''], rows)}\n`)
    }
    const server = await postgres(cleanup)
    // Side by side: what is asked is what stays, and not how fast it is.
    await Promise.all([
      one('SQLite', `sqlite:${join(cleanup.folder(), 'inventory.sqlite')}`),
      ...(server === undefined ? [] : [one('PostgreSQL', server.url)])
    ])
    process.stdout.write(
      [
        `\n${options.minutes} minutes of mixed load at ${options.rate} requests/s on each database, after ${options.warmup} of warm-up.`,
        'Least of each minute; memory in MB. It may grow by 5 % at most, handles not at all.\n'
      ].join('\n')
    )
    if (failures.length > 0) throw new Error(failures.join('\n'))
  })
}

async function soak(cleanup: Cleanup, name: string, databaseUrl: string, options: Options, failures: string[]) {
  let said = ''
  const service = await startService(cleanup, {
    databaseUrl,
    secret: newSecret(),
    // So few that all are open when the warm-up is over: how many are is up to what else the machine does.
    env: { RATE_LIMITS: 'none', POSTGRES_POOL_SIZE: '4', NODE_OPTIONS: `--expose-gc --import=${COLLECTS}` },
    heard: (text) => {
      said = (said + text).slice(-100_000)
    }
  })
  say(`${name}: ${options.items} items`)
  const codes = await seedCatalogue(service, options.items, 1_000_000)
  const load = new Load(service, codes, options.rate)
  say(`${name}: ${options.history} movements`)
  // A database that is larger than the caches, so that they are full when the warm-up is over.
  await load.history(options.history)
  const show = progress(name, Math.round((options.minutes + options.warmup) * 60))
  const samples: Sample[] = []
  let ticks = 0
  const startedAt = performance.now()
  const elapsed = () => (performance.now() - startedAt) / 1000
  await load.start()
  while (elapsed() < (options.minutes + options.warmup) * 60) {
    await sleep(SAMPLE_MS)
    show(Math.floor(elapsed()))
    if (++ticks % COLLECT_EVERY === 0) {
      process.kill(service.pid, 'SIGUSR2')
      await sleep(COLLECTING_MS)
    }
    const sample = await sampled(service, elapsed())
    if (elapsed() > options.warmup * 60) samples.push(sample)
  }
  load.ends()
  const drained = await service.end('SIGTERM')
  await load.stop()
  const rows = judged(name, samples, failures)
  const drain = drained.milliseconds / 1000
  rows.push([
    `${name}, SIGTERM under load: seconds to the end`,
    '',
    drain,
    '',
    drain * 1000 < DRAIN_MAX_MS ? '' : 'MISSED'
  ])
  rows.push([`${name}, requests answered`, '', load.answered, '', ''])
  if (drained.code !== 0 || drain * 1000 > DRAIN_MAX_MS)
    failures.push(`${name}: it ended with ${drained.code} after ${drain} s`)
  if (load.failures.length > 0)
    failures.push(`${name}: ${load.failures.length} requests failed, first ${load.failures[0]}`)
  const leaks = said.split('\n').filter((line) => LEAKY.test(line))
  if (leaks.length > 0) failures.push(`${name}: the process said ${leaks[0]}`)
  return rows
}

async function sampled({ url, pid }: Service, seconds: number): Promise<Sample> {
  const text = await (await fetch(`${url}/metrics`)).text()
  const sum = (pattern: RegExp) => [...text.matchAll(pattern)].reduce((total, [, value]) => total + Number(value), 0)
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const kilobytes = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(status)?.[1] ?? Number.NaN)
  return {
    seconds,
    anonymous: kilobytes('RssAnon') / 1024,
    resident: kilobytes('VmRSS') / 1024,
    heap: sum(/^nodejs_heap_size_used_bytes(?:\{[^}]*\})? (\S+)/gm) / 2 ** 20,
    committed: sum(/^nodejs_heap_size_total_bytes(?:\{[^}]*\})? (\S+)/gm) / 2 ** 20,
    external: sum(/^nodejs_external_memory_bytes(?:\{[^}]*\})? (\S+)/gm) / 2 ** 20,
    descriptors: sum(/^process_open_fds(?:\{[^}]*\})? (\S+)/gm),
    handles: sum(/^nodejs_active_handles\{[^}]*\} (\S+)/gm),
    timers: sum(/^nodejs_active_resources\{[^}]*type="Timeout"[^}]*\} (\S+)/gm),
    connections: sum(/^db_pool_connections\{[^}]*\} (\S+)/gm)
  }
}

const FIGURES: readonly { figure: Figure; title: string; bounded: 'by 5 %' | 'by 3' | 'no' }[] = [
  { figure: 'anonymous', title: 'memory of its own', bounded: 'by 5 %' },
  { figure: 'heap', title: 'heap', bounded: 'by 5 %' },
  { figure: 'committed', title: 'heap, with what is free in it', bounded: 'no' },
  { figure: 'external', title: 'buffers outside the heap', bounded: 'by 5 %' },
  { figure: 'resident', title: 'resident', bounded: 'no' },
  { figure: 'descriptors', title: 'descriptors', bounded: 'by 3' },
  { figure: 'handles', title: 'handles', bounded: 'by 3' },
  { figure: 'timers', title: 'timers', bounded: 'by 3' },
  { figure: 'connections', title: 'database connections', bounded: 'by 3' }
]

function judged(name: string, samples: readonly Sample[], failures: string[]): (string | number)[][] {
  return FIGURES.map(({ figure, title, bounded }) => {
    const [begun, ended] = [samples[0]?.seconds ?? 0, samples.at(-1)?.seconds ?? 0]
    // The last sample comes a moment before its minute is over.
    const windows = Math.round((ended - begun) / WINDOW_SECONDS)
    const points = Array.from({ length: windows }, (_, n): [number, number] => {
      const from = begun + n * WINDOW_SECONDS
      const window = samples.filter(({ seconds }) => seconds >= from && seconds < from + WINDOW_SECONDS)
      return [from + WINDOW_SECONDS / 2, Math.min(...window.map((sample) => sample[figure]))]
    })
    if (points.length < 3) throw new BenchError('--minutes may be 3 or more: the least of each minute is compared')
    const { first, last } = line(points, [begun, ended])
    const drift = first === 0 ? 0 : (last - first) / first
    const missed = bounded === 'by 5 %' ? drift > DRIFT_MAX : bounded === 'by 3' && last - first > 3
    if (missed) failures.push(`${name}: ${title} grew from ${first.toFixed(1)} to ${last.toFixed(1)}`)
    return [`${name}, ${title}`, first, last, drift * 100, missed ? 'MISSED' : '']
  })
}

/** Least squares: where the line is at the beginning and at the end. */
function line(points: readonly [number, number][], [from, to]: [number, number]): { first: number; last: number } {
  const mean = (of: (point: [number, number]) => number) =>
    points.reduce((sum, point) => sum + of(point), 0) / points.length
  const [x, y] = [mean((point) => point[0]), mean((point) => point[1])]
  const slope = mean((point) => (point[0] - x) * (point[1] - y)) / mean((point) => (point[0] - x) ** 2)
  const at = (seconds: number) => y + slope * (seconds - x)
  return { first: at(from), last: at(to) }
}

/** One request after the other at a fixed rate, of every kind that a day has, each with its share. */
class Load {
  readonly failures: string[] = []
  answered = 0
  readonly #service: Service
  readonly #codes: readonly string[]
  readonly #rate: number
  readonly #next = random(11)
  readonly #open = new Set<Promise<void>>()
  readonly #agent = new Agent({
    keepAlive: true,
    maxSockets: CONNECTIONS,
    maxFreeSockets: CONNECTIONS,
    scheduling: 'fifo'
  })
  #stopped = false
  #ending = false
  #running: Promise<void> = Promise.resolve()
  #n = 0

  constructor(service: Service, codes: readonly string[], rate: number) {
    this.#service = service
    this.#codes = codes
    this.#rate = rate
  }

  async start(): Promise<void> {
    await Promise.all(Array.from({ length: CONNECTIONS }, () => this.#call('GET', '/api/dashboard/stats')))
    this.#running = this.#run()
  }

  /** From here on it may be refused: the service is told to end. What was begun is to be answered all the same. */
  ends(): void {
    this.#ending = true
  }

  async stop(): Promise<void> {
    this.#stopped = true
    await this.#running
    await Promise.all(this.#open)
    this.#agent.destroy()
  }

  async #run(): Promise<void> {
    const startedAt = performance.now()
    for (let sent = 0; !this.#stopped; sent++) {
      const due = startedAt + (sent * 1000) / this.#rate
      if (due > performance.now()) await sleep(due - performance.now())
      // One that cannot keep up is not given more: this is about what stays, not about how much it can do.
      while (this.#open.size > 50) await sleep(5)
      const one = this.#one(sent).finally(() => this.#open.delete(one))
      this.#open.add(one)
    }
  }

  #code(): string {
    return this.#codes[Math.floor(this.#next() * this.#codes.length)] ?? ''
  }

  async #one(sent: number): Promise<void> {
    // Every two minutes what takes long: use is derived, models are trained.
    if (sent % (this.#rate * 120) === this.#rate * 30) await this.#job('/api/ai/consumption/derive', {})
    if (sent % (this.#rate * 120) === this.#rate * 40)
      await this.#job('/api/ai/forecast/train', { itemCodes: [this.#code(), this.#code()] })
    if (sent % (this.#rate * 60) === this.#rate * 20) await this.#import()
    const share = this.#next()
    const itemCode = this.#code()
    if (share < 0.25) await this.#call('GET', '/api/inventory?limit=50')
    else if (share < 0.4) await this.#call('GET', `/api/inventory/${itemCode}`)
    else if (share < 0.5) await this.#call('GET', `/api/inventory?q=${encodeURIComponent(itemCode.slice(0, 5))}`)
    else if (share < 0.55) await this.#call('GET', '/api/movements?limit=50')
    else if (share < 0.6) await this.#call('GET', '/api/dashboard/stats')
    else if (share < 0.65) await this.#reserve(itemCode)
    else if (share < 0.7)
      await this.#call('PATCH', `/api/inventory/${itemCode}`, { reorderPoint: Math.floor(share * 1000) })
    else if (share < 0.72) await this.#call('GET', '/api/audit?limit=20')
    else {
      const type = share < 0.85 ? 'receipt' : 'issue'
      await this.#call('POST', '/api/movements', { type, lines: [{ itemCode, quantity: 1 }] })
    }
  }

  async #reserve(itemCode: string): Promise<void> {
    const made = await this.#call('POST', '/api/reservations', { itemCode, quantity: 1 })
    if (made !== undefined) await this.#call('POST', `/api/reservations/${JSON.parse(made).id}/void`, {})
  }

  async #job(path: string, body: object): Promise<void> {
    const made = await this.#call('POST', path, body)
    if (made === undefined) return
    const { id }: Job = JSON.parse(made)
    for (let tries = 0; tries < 300 && !this.#stopped; tries++) {
      const job: Job = JSON.parse((await this.#call('GET', `/api/jobs/${id}`)) ?? '{"finishedAt":"?"}')
      if (job.finishedAt !== null) return
      await sleep(200)
    }
  }

  /** Use of some months, so that there is something to train on. */
  async history(rows: number): Promise<void> {
    const midnight = Math.floor(Date.now() / DAY_MS) * DAY_MS
    for (let day = HISTORY_DAYS; day > 0; day--)
      await this.#import(Math.ceil(rows / HISTORY_DAYS), 'issue', new Date(midnight - day * DAY_MS))
    await this.#call('GET', '/api/ledger/verify')
  }

  async #import(length = 200, type = 'receipt', at = new Date()): Promise<void> {
    const rows = Array.from({ length }, () => `${this.#code()},${type},1,${at.toISOString()}`)
    await this.#call('POST', '/api/import/movements', `itemCode,type,quantity,occurredAt\n${rows.join('\n')}\n`, {
      'content-type': 'text/csv',
      prefer: 'wait=60'
    })
  }

  /** Undefined when it failed, which is noted. */
  async #call(method: string, path: string, body?: object | string, headers: Record<string, string> = {}) {
    const write: Record<string, string> =
      method === 'GET' ? {} : { 'content-type': 'application/json', 'idempotency-key': `soak-${this.#n++}` }
    try {
      const { status, text } = await ask(this.#agent, this.#service.url + path, {
        method,
        headers: { authorization: `Bearer ${this.#service.token}`, ...write, ...headers },
        body: body === undefined || typeof body === 'string' ? body : JSON.stringify(body)
      })
      this.answered++
      if (status >= 200 && status < 300) return text
      if (!this.#ending || status !== 503) this.failures.push(`${method} ${path}: ${status} ${text.slice(0, 200)}`)
    } catch (error) {
      if (!this.#ending) this.failures.push(`${method} ${path}: ${String(error)}`)
      this.#stopped ||= this.#ending
    }
    return undefined
  }
}
