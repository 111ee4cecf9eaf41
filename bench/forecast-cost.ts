import { forecast } from '../modules/forecasting/models/index.js'
import { m4Weekly } from './forecast-data.js'
import { progress } from './forecast-scores.js'

/** Milliseconds per series of 104 points with the default pool, and heap growth over many fits. */
export function printCost(folder: string, fits: number): void {
  const series = m4Weekly(folder).cases.map(({ train }) => train.slice(-104))
  const fit = (i: number): void => {
    forecast({ values: series[i % series.length]!.slice(), frequency: 'week', horizon: 13 })
  }
  for (let i = 0; i < 50; i++) fit(i)
  globalThis.gc?.()
  const before = process.memoryUsage().rss
  const started = performance.now()
  const used = process.cpuUsage()
  for (let i = 0; i < fits; i++) {
    fit(i)
    if (i % 50 === 0) progress(`cost: ${i} of ${fits}`)
  }
  const wall = (performance.now() - started) / fits
  const { user, system } = process.cpuUsage(used)
  const each = (user + system) / 1000 / fits
  globalThis.gc?.()
  progress('')
  const growth = (process.memoryUsage().rss - before) / 2 ** 20
  console.log(
    `\ncost: ${each.toFixed(2)} ms of processor (${wall.toFixed(2)} by the clock) a series of 104 points, horizon 13 · goal ≤ 12`
  )
  console.log(`memory: ${growth.toFixed(0)} MB resident more after ${fits} fits`)
}
