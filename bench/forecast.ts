import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { loadModels, MODEL_NAMES, type ModelName } from '../modules/forecasting/models/index.js'
import { printCost } from './forecast-cost.js'
import { carParts, type Dataset, m3Monthly, m4Weekly, retailDailyTop, retailWeekly } from './forecast-data.js'
import { rForecasts } from './forecast-r.js'
import { evaluate, progress, type Scores } from './forecast-scores.js'
import { printSelections } from './forecast-selection.js'
import { printCoverage, printTable, type Row } from './forecast-table.js'
import { printVolume } from './forecast-volume.js'
import { naive2, product } from './forecast-yardsticks.js'

/** All of a small set; of a large one every n-th series, so that at least `count` stay. */
const sampled = (set: Dataset, count: number): Dataset => {
  const step = set.cases.length > 3 * count ? Math.floor(set.cases.length / count) : 1
  return { ...set, cases: set.cases.filter((_, i) => i % step === 0) }
}

function compareWithR(set: Dataset, count: number): void {
  const sample = sampled(set, count)
  progress(`${set.name}: R on ${sample.cases.length}`)
  const peers = rForecasts(sample)
  if (peers.length === 0) {
    console.log('R rows left out: Rscript with the package forecast is not here')
    return
  }
  const position = new Map(sample.cases.map(({ train }, i) => [train.join(), i]))
  const own = evaluate(sample, 'product', product())
  const rows: Row[] = [
    { label: 'naive2', scores: evaluate(sample, 'naive2', naive2) },
    { label: 'product', scores: own }
  ]
  for (const peer of peers) {
    const scores = evaluate(sample, peer.label, (train) => ({ mean: peer.rows[position.get(train.join())!]! }))
    rows.push({ label: peer.label, scores: { ...scores, milliseconds: peer.milliseconds } })
  }
  const every = sample.cases.length === set.cases.length
  const part = every ? 'all series' : `every ${Math.round(set.cases.length / sample.cases.length)}th series`
  printTable({ ...sample, name: `${set.name}, ${part}, also by R` }, rows, '')
  const theirs = rows.filter(({ label }) => label.startsWith('R '))
  for (const [name, of] of [
    ['MASE', (s: Scores) => s.mase],
    ['RMSSE', (s: Scores) => s.rmsse],
    ['sum WAPE', (s: Scores) => s.sumWape]
  ] as const) {
    const ahead = theirs.filter(({ scores }) => of(own) < of(scores)).map(({ label }) => label)
    console.log(`${name}: ahead of ${ahead.length > 0 ? ahead.join(', ') : 'none'}`)
  }
  const together = peers.at(-1)!.milliseconds
  console.log(`${(together / own.milliseconds).toFixed(0)} × as fast as ets + auto.arima + thetaf · goal ≥ 20 ×`)
}

const SETS: Record<string, { load: (folder: string) => Dataset; goals: string; rows: readonly ModelName[] }> = {
  m4: { load: m4Weekly, goals: 'OWA ≤ 0.71, MASE ≤ 2.03', rows: ['naive'] },
  m3: { load: m3Monthly, goals: 'OWA ≤ 0.80', rows: ['naive'] },
  retail: { load: retailWeekly, goals: 'WAPE ≤ 54.5, sum WAPE ≤ 40.5, MASE ≤ 1.77', rows: ['naive'] },
  daily: {
    load: retailDailyTop,
    goals: 'ahead of naive, ARIMA and Prophet',
    rows: ['naive', 'seasonal-naive', 'arima', 'prophet']
  },
  carparts: { load: carParts, goals: 'pinball ≤ 0.355', rows: ['tsb', 'naive'] }
}

/**
 * Prints accuracy, interval coverage and cost on the public sets in the folder BENCH_DATA: fixed splits, the defaults of
 * the product, no tuning per set. Options: `--sets m4,daily,selection,cost,volume`, `--r 200` (of sets more than three times
 * as large, about so many series are also given to R, of others all; 0 = none), `--models ses,tsb` (further rows),
 * `--fits 200` (for the cost), `--items 10000` (for the volume).
 */
export async function run(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      sets: { type: 'string', default: [...Object.keys(SETS), 'selection', 'cost', 'volume'].join() },
      models: { type: 'string', default: '' },
      r: { type: 'string', default: '200' },
      fits: { type: 'string', default: '200' },
      items: { type: 'string', default: '10000' }
    }
  })
  const folder = process.env.BENCH_DATA
  if (!folder) throw new Error('BENCH_DATA is not set: it names the folder with the benchmark data')
  const extra = MODEL_NAMES.filter((name) => values.models.split(',').includes(name))
  for (const key of values.sets.split(',')) {
    if (key === 'cost') {
      printCost(folder, Number(values.fits))
      continue
    }
    if (key === 'volume') {
      printVolume(folder, Number(values.items))
      continue
    }
    if (key === 'selection') {
      printSelections(Object.values(SETS).map(({ load }) => load(folder)))
      continue
    }
    const entry = SETS[key]
    if (!entry)
      throw new Error(`no set named ${key}; there are ${Object.keys(SETS).join(', ')}, selection, cost, volume`)
    const set = entry.load(folder)
    const names = [...entry.rows, ...extra]
    await loadModels(names)
    const rows: Row[] = [
      { label: 'naive2', scores: evaluate(set, 'naive2', naive2) },
      { label: 'product', scores: evaluate(set, 'product', product()) }
    ]
    for (const name of names) rows.push({ label: name, scores: evaluate(set, name, product([name])) })
    printTable(set, rows, entry.goals)
    printCoverage(rows[1]!.scores)
    if (Number(values.r) > 0) compareWithR(set, Number(values.r))
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) await run(process.argv.slice(2))
