import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { parse } from 'csv-parse/sync'
import type { Frequency } from '../modules/forecasting/models/index.js'

/** One forecast to make: what may be known, and what came. */
export interface Case {
  id: string
  train: Float64Array
  test: Float64Array
  /** YYYY-MM-DD of the first training value, when the calendar is known */
  startDate?: string
}

export interface Dataset {
  name: string
  frequency: Frequency
  horizon: number
  /** period of the naive errors that scale MASE, by the convention of the set */
  scalePeriod: number
  cases: Case[]
}

/** Reads a gzipped file of BENCH_DATA. @throws Error naming what is missing */
function read(folder: string, file: string): string {
  const path = join(folder, file)
  if (!existsSync(path)) throw new Error(`${path} is missing: BENCH_DATA must hold ${file}`)
  return gunzipSync(readFileSync(path)).toString('utf8')
}

const numbers = (cells: readonly string[]): Float64Array =>
  Float64Array.from(cells.filter((cell) => cell !== '' && cell !== 'NA').map(Number))

const lines = (text: string): string[][] =>
  text
    .trim()
    .split(/\r?\n/)
    .map((line) => line.split(',').map((cell) => cell.replaceAll('"', '')))

/** M4 competition, weekly: 359 series, horizon 13, MASE scaled by the plain naive (official frequency 1). */
export function m4Weekly(folder: string): Dataset {
  const train = lines(read(folder, 'm4_weekly_train.csv.gz')).slice(1)
  const rows = lines(read(folder, 'm4_weekly_test.csv.gz')).slice(1)
  const test = new Map(rows.map(([id, ...cells]) => [id, numbers(cells)]))
  const cases = train.map(([id, ...cells]) => ({
    id: id!,
    train: numbers(cells),
    test: test.get(id) ?? new Float64Array()
  }))
  return { name: 'M4 weekly', frequency: 'week', horizon: 13, scalePeriod: 1, cases }
}

/** M3 competition, monthly: 1,428 series, horizon 18. */
export function m3Monthly(folder: string): Dataset {
  const cases = lines(read(folder, 'm3_monthly.csv.gz')).map(([id, , n, horizon, ...cells]) => {
    const values = numbers(cells)
    return { id: id!, train: values.slice(0, Number(n)), test: values.slice(Number(n), Number(n) + Number(horizon)) }
  })
  return { name: 'M3 monthly', frequency: 'month', horizon: 18, scalePeriod: 12, cases }
}

/** Car parts, monthly: the complete series of 51 months, the last 6 held out. */
export function carParts(folder: string): Dataset {
  const cases = lines(read(folder, 'carparts.csv.gz'))
    .map(([id, ...cells]) => ({ id: id!, values: numbers(cells) }))
    .filter(({ values }) => values.length === 51)
    .map(({ id, values }) => ({ id, train: values.slice(0, 45), test: values.slice(45) }))
  return { name: 'car parts', frequency: 'month', horizon: 6, scalePeriod: 1, cases }
}

const DAY_MS = 86_400_000
const RETAIL_START = Date.UTC(2010, 11, 1)
const RETAIL_DAYS = 374

/** Quantity sold per day and item of Online Retail (lines with positive quantity and price), best sellers first. */
export function retailDaily(folder: string): { id: string; days: Float64Array }[] {
  const items = new Map<string, { id: string; days: Float64Array; total: number }>()
  const rows: string[][] = parse(read(folder, 'online_retail.csv.gz'), { from_line: 2, relax_quotes: true })
  for (const [, code, , quantity, date, price] of rows) {
    const sold = Number(quantity)
    if (!(sold > 0 && Number(price) > 0)) continue
    const day = Math.floor((Date.parse(`${date!.slice(0, 10)}T00:00:00Z`) - RETAIL_START) / DAY_MS)
    let item = items.get(code!)
    if (!item) {
      item = { id: code!, days: new Float64Array(RETAIL_DAYS), total: 0 }
      items.set(code!, item)
    }
    item.days[day]! += sold
    item.total += sold
  }
  return [...items.values()].sort((a, b) => b.total - a.total || (a.id < b.id ? -1 : 1))
}

/** Online Retail by week (from Sunday 2010-12-05): the 200 best sellers at origins 40, 44 and 48, horizon 4. */
export function retailWeekly(folder: string): Dataset {
  const cases: Case[] = []
  for (const { id, days } of retailDaily(folder).slice(0, 200)) {
    const weeks = new Float64Array(52)
    for (let day = 4; day < 4 + 52 * 7; day++) weeks[Math.floor((day - 4) / 7)]! += days[day]!
    for (const origin of [40, 44, 48]) {
      cases.push({ id, train: weeks.slice(0, origin), test: weeks.slice(origin, origin + 4), startDate: '2010-12-05' })
    }
  }
  return { name: 'Online Retail weekly', frequency: 'week', horizon: 4, scalePeriod: 1, cases }
}

/** Online Retail by day: the 50 best sellers at the last two origins, horizon 28. */
export function retailDailyTop(folder: string): Dataset {
  const cases: Case[] = []
  for (const { id, days } of retailDaily(folder).slice(0, 50)) {
    for (const origin of [RETAIL_DAYS - 56, RETAIL_DAYS - 28]) {
      cases.push({ id, train: days.slice(0, origin), test: days.slice(origin, origin + 28), startDate: '2010-12-01' })
    }
  }
  return { name: 'Online Retail daily', frequency: 'day', horizon: 28, scalePeriod: 7, cases }
}
