import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { Registry } from 'prom-client'
import type { TrainingBatch, TrainingResult, TrainingSeries } from '../modules/forecasting/worker.js'
import { createCompute } from '../plugins/compute/index.js'
import { retailDaily } from './forecast-data.js'
import { random } from './support.js'

const THREADS = 2
const SERIES_PER_BATCH = 24
const TARGET_SECONDS = 75
const TARGET_MEGABYTES = 600
const WORKER = new URL('../modules/forecasting/worker.js', import.meta.url)
/** 2023-01-02, a Monday, in days since 1970. */
const START = 19_359
const DAYS = 374
const WEEKS = 104

/** Series `i`: an item of Online Retail; beyond the last item again the first, each day times a factor from ½ to 1½. */
function dailyOf(items: Float64Array, i: number): Float64Array {
  const count = items.length / DAYS
  const days = items.slice((i % count) * DAYS, ((i % count) + 1) * DAYS)
  if (i < count) return days
  const next = random(i)
  return days.map((value) => Math.round(value * (0.5 + next())))
}

/** Weeks of two years: the year of the item, and before it the same year backwards. */
function weeklyOf(items: Float64Array, i: number): Float64Array {
  const days = dailyOf(items, i)
  const weeks = new Float64Array(WEEKS)
  for (let day = 0; day < (WEEKS * 7) / 2; day++) {
    weeks[WEEKS / 2 - 1 - Math.floor(day / 7)]! += days[day]!
    weeks[WEEKS / 2 + Math.floor(day / 7)]! += days[day]!
  }
  return weeks
}

type Frequency = TrainingBatch['frequency']

async function train(items: Float64Array, count: number, frequency: Frequency): Promise<string> {
  const registry = new Registry()
  const compute = createCompute({ threads: THREADS, registry })
  /** Of the process with the threads in it. */
  const ofThreads = async (name: string) =>
    (await registry.getSingleMetric(name)?.get())?.values[0]?.value ?? Number.NaN
  const horizon = frequency === 'day' ? 28 : 13
  const started = performance.now()
  const used = process.cpuUsage()
  let at = 0
  let trained = 0
  let megabytes = 0
  const lane = async () => {
    while (at < count) {
      const series: TrainingSeries[] = []
      for (; at < count && series.length < SERIES_PER_BATCH; at++) {
        const values = frequency === 'day' ? dailyOf(items, at) : weeklyOf(items, at)
        series.push({ itemCode: `${at}`, dataHash: '', start: START, values, missing: new Uint8Array(values.length) })
      }
      const batch: TrainingBatch = { series, frequency, horizon, trainedAt: new Date(0).toISOString() }
      const result = await compute.run<TrainingBatch, TrainingResult>(WORKER, batch, {})
      trained += result.trained.length
      const bytes = process.memoryUsage.rss() + (await ofThreads('compute_process_resident_memory_bytes'))
      megabytes = Math.max(megabytes, bytes / 2 ** 20)
    }
  }
  await Promise.all(Array.from({ length: THREADS + 1 }, lane))
  const clock = (performance.now() - started) / 1000
  const { user, system } = process.cpuUsage(used)
  const each = ((user + system) / 1e6 + (await ofThreads('compute_process_cpu_seconds_total'))) / THREADS
  await compute.close()
  const verdict = each < TARGET_SECONDS && megabytes < TARGET_MEGABYTES && trained === count ? 'met' : 'MISSED'
  return (
    `${verdict.padEnd(8)}by ${frequency}, ${frequency === 'day' ? DAYS : WEEKS} points, horizon ${horizon}: ${trained} trained, ` +
    `${each.toFixed(1)} s of each processor (${clock.toFixed(1)} s by the clock), ${megabytes.toFixed(0)} MB resident at most`
  )
}

/**
 * Trains many items in the service's own worker threads: forecasts, intervals, sums, explanation and the texts that are
 * stored; without the database. It runs in a process of its own, whose memory and that of its threads' process are then those of the training alone.
 * On a busy machine the seconds of processor say more than the clock.
 */
export function printVolume(folder: string, count: number): void {
  const scratch = mkdtempSync(join(tmpdir(), 'inventory-bench-'))
  try {
    const items = retailDaily(folder)
    const days = new Float64Array(items.length * DAYS)
    items.forEach((item, i) => void days.set(item.days, i * DAYS))
    writeFileSync(join(scratch, 'days'), days)
    console.log(`\nvolume: ${count} items on ${THREADS} threads · goal < ${TARGET_SECONDS} s, < ${TARGET_MEGABYTES} MB`)
    for (const frequency of ['week', 'day']) {
      const args = [fileURLToPath(import.meta.url), join(scratch, 'days'), String(count), frequency]
      spawnSync(process.execPath, args, { stdio: 'inherit' })
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [file = '', count, frequency] = process.argv.slice(2)
  const bytes = readFileSync(file)
  const items = new Float64Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength))
  console.log(await train(items, Number(count), frequency === 'week' ? 'week' : 'day'))
}
