import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { NO_TRACING } from '../plugins/telemetry/tracing.js'
import { BenchError, median, numbers, progress, quantile, random, table } from './support.js'
import { LOADS, type Load, type Turn, type Turns } from './turns.js'

/** What logs and traces may cost a request while traces are off. */
const ALLOWED = 1.02
const RESAMPLES = 1_000
const SEAM_CALLS = 2_000_000

/**
 * What the hooks of the log and of traces cost while traces are off. Each process has three services of its own, so that where the memory of
 * one happens to lie is drawn anew; the interval is of processes drawn again, and in each of turns.
 */
export async function run(args: string[]): Promise<void> {
  const { processes, reads, writes } = numbers(args, { processes: 10, reads: 1_000, writes: 400 })
  const found: Turns[] = []
  const shown = progress('Turns in processes of their own', processes)
  for (let seed = 1; seed <= processes; seed++) {
    found.push(await inProcess(seed, reads, writes))
    shown(seed)
  }
  const seams = await seamNanoseconds()
  for (const load of ['read', 'write'] as const) {
    const turns = found.map((each) => each[load])
    report(load, turns, load === 'write' ? seams : 0)
  }
}

/** In one after the other: two at once would be each other's noise. */
async function inProcess(...args: number[]): Promise<Turns> {
  const file = fileURLToPath(new URL('./turns.js', import.meta.url))
  const child = spawn(process.execPath, [file, ...args.map(String)], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [said, [code]] = await Promise.all([text(child.stdout), once(child, 'exit')])
  if (code !== 0) throw new BenchError(`turns.js ended with ${code}`)
  return JSON.parse(said)
}

function report(load: Load, processes: readonly Turn[][], seamsNanoseconds: number): void {
  const all = processes.flat()
  const control = median(all.map(({ without }) => without))
  // What no contender can be without is added, by what it takes of one request.
  const seams = seamsNanoseconds / 1000 / control
  const noise = interval(processes, ({ without, again }) => [again / without])
  // Beside each and not beside their mean: of times with a long tail, the mean of two is mostly longer than one.
  const cost = interval(processes, ({ without, again, by }) => [by / without + seams, by / again + seams])
  const row = (name: string, of: (turn: Turn) => number, { middle, low, high }: Interval) => [
    name,
    median(all.map(of)).toFixed(1),
    percent(middle),
    `${percent(low)} to ${percent(high)}`
  ]
  const rows = [
    ['without the hooks (control)', control.toFixed(1), '', ''],
    row('the same once more (noise)', ({ again }) => again, noise),
    row('as it is, traces off', ({ by }) => by, cost)
  ]
  const { batch, what } = LOADS[load]
  const added = seamsNanoseconds > 0 ? `; ${seamsNanoseconds.toFixed(0)} ns of seams are added` : ''
  const verdict = cost.high < ALLOWED ? 'met' : cost.low > ALLOWED ? 'NOT met' : 'not shown: the interval is too wide'
  process.stdout.write(
    `\n${what}, without a socket; ${processes.length} processes, ${all.length} turns of ${batch}${added}\n${table(
      ['', 'CPU µs', 'dearer by', '95 % interval'],
      rows
    )}\nless than ${percent(ALLOWED)} dearer: ${verdict}\n`
  )
}

interface Interval {
  readonly middle: number
  readonly low: number
  readonly high: number
}

/** Of the median of all turns: by processes drawn with replacement, and in each of its turns (Efron and Tibshirani 1993, ch. 8 and 13). */
function interval(processes: readonly Turn[][], ratiosOf: (turn: Turn) => number[]): Interval {
  const next = random(1)
  const one = <T>(of: readonly T[]): T[] => {
    const n = Math.floor(next() * of.length)
    return of.slice(n, n + 1)
  }
  const ratios = processes.map((turns) => turns.map(ratiosOf))
  const medians = Array.from({ length: RESAMPLES }, () =>
    median(ratios.flatMap(() => one(ratios).flatMap((turns) => turns.flatMap(() => one(turns).flat()))))
  )
  return { middle: median(ratios.flat(2)), low: quantile(medians, 0.025), high: quantile(medians, 0.975) }
}

const percent = (ratio: number) => `${((ratio - 1) * 100).toFixed(2)} %`

/** Once each what a write calls although traces are off: its transaction, what it publishes, and a dozen queries. */
async function seamNanoseconds(): Promise<number> {
  const options = { attributes: { 'db.system.name': 'sqlite' } }
  const nothing = Promise.resolve()
  const work = () => nothing
  let slow = 0
  const startedAt = performance.now()
  for (let n = 0; n < SEAM_CALLS; n++) {
    void NO_TRACING.span('transaction', options, work)
    void NO_TRACING.bind(work)()
    if (NO_TRACING.carrier() !== null) slow++
    for (let query = 0; query < 12; query++) if (query / 1000 > 0.25) slow++
  }
  if (slow > 0) throw new BenchError('nothing is traced here')
  return ((performance.now() - startedAt) * 1e6) / SEAM_CALLS
}
