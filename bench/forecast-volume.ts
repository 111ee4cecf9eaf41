import type { TrainingBatch, TrainingResult, TrainingSeries } from '../modules/forecasting/worker.js'
import { createCompute } from '../plugins/compute.js'
import { retailDaily } from './forecast-data.js'
import { random } from './support.js'

const THREADS = 2
const SERIES_PER_BATCH = 24
const TARGET_SECONDS = 75
const TARGET_MEGABYTES = 600
const WORKER = new URL('../modules/forecasting/worker.js', import.meta.url)

/** Day 0 of the series, in days since 1970: 2023-01-02, a Monday. */
const START = 19_359

/**
 * As many series as asked for: the items of Online Retail, then the same again with each day's demand
 * multiplied by a random factor between a half and one and a half.
 */
function makeSeries(items: readonly { id: string; days: Float64Array }[], count: number): TrainingSeries[] {
  const next = random(7)
  return Array.from({ length: count }, (_, i) => {
    const { id, days } = items[i % items.length]!
    const round = Math.floor(i / items.length)
    const values = round === 0 ? days.slice() : days.map((value) => Math.round(value * (0.5 + next())))
    return { itemCode: `${id}-${round}`, dataHash: '', start: START, values, missing: new Uint8Array(values.length) }
  })
}

/** Sums of seven days, the same year twice: 104 weeks. */
function weeksOf({ itemCode, dataHash, start, values }: TrainingSeries): TrainingSeries {
  const weeks = new Float64Array(104)
  for (let day = 0; day < 52 * 7; day++) {
    weeks[Math.floor(day / 7)]! += values[day]!
    weeks[52 + Math.floor(day / 7)]! += values[363 - day]!
  }
  return { itemCode, dataHash, start, values: weeks, missing: new Uint8Array(104) }
}

async function train(series: readonly TrainingSeries[], frequency: 'day' | 'week', horizon: number) {
  const compute = createCompute({ threads: THREADS })
  const batches: TrainingBatch[] = []
  for (let i = 0; i < series.length; i += SERIES_PER_BATCH) {
    const trainedAt = new Date(0).toISOString()
    batches.push({ series: series.slice(i, i + SERIES_PER_BATCH), frequency, horizon, trainedAt })
  }
  const started = performance.now()
  const used = process.cpuUsage()
  let peak = 0
  const watch = setInterval(() => {
    peak = Math.max(peak, process.memoryUsage().rss)
  }, 250)
  let trained = 0
  let failed = 0
  const lane = async () => {
    for (let batch = batches.pop(); batch !== undefined; batch = batches.pop()) {
      const result = await compute.run<TrainingBatch, TrainingResult>(WORKER, batch, {})
      trained += result.trained.length
      failed += result.failed.length
    }
  }
  try {
    await Promise.all(Array.from({ length: THREADS + 1 }, lane))
  } finally {
    clearInterval(watch)
    await compute.close()
  }
  const { user, system } = process.cpuUsage(used)
  const wall = (performance.now() - started) / 1000
  return { trained, failed, wall, cpu: (user + system) / 1e6, megabytes: peak / 2 ** 20 }
}

/**
 * Trains many items in the service's own worker threads, daily and weekly: forecasts, intervals, sums, explanation and the
 * texts that are stored; without the database. On a busy machine processor seconds over two cores say more than the clock.
 */
export async function printVolume(folder: string, count: number): Promise<void> {
  const daily = makeSeries(retailDaily(folder), count)
  console.log(`\nvolume: ${count} items on ${THREADS} threads · goal < ${TARGET_SECONDS} s, < ${TARGET_MEGABYTES} MB`)
  for (const [frequency, horizon, series] of [
    ['week', 13, daily.map(weeksOf)],
    ['day', 28, daily]
  ] as const) {
    const { trained, failed, wall, cpu, megabytes } = await train(series, frequency, horizon)
    const half = cpu / THREADS
    const verdict = half < TARGET_SECONDS && megabytes < TARGET_MEGABYTES ? 'met' : 'MISSED'
    const length = series[0]!.values.length
    console.log(
      `${verdict.padEnd(8)}${frequency}, ${length} points, horizon ${horizon}: ${cpu.toFixed(0)} s of processor, over two cores ${half.toFixed(1)} s; ` +
        `${wall.toFixed(1)} s by the clock; ${megabytes.toFixed(0)} MB resident at most; ${trained} trained, ${failed} failed`
    )
  }
}
