import { spawnSync } from 'node:child_process'
import { selectorsOf } from '../alerts/promql.js'
import { recordingsOf, ruleFiles } from '../alerts/rules.js'
import { inParallel } from '../alerts/run.js'
import { drawAll } from './draw.js'
import { DASHBOARDS } from './index.js'
import { filled } from './lint.js'
import { type Live, METRICS_TOKEN, SCRAPE_SECONDS, startLive } from './live.js'
import type { Panel, Query } from './panel.js'
import type { Series } from './prometheus.js'
import { startTraffic } from './traffic.js'

/** Proves the dashboards: see `npm run verify:observability`. Each step says what it saw and throws when it is not so. */

export interface Verification {
  readonly tools: { readonly prometheus: string; readonly promtool: string }
  /** An empty folder. */
  readonly folder: string
  /** How long the service is used before it is looked at. */
  readonly seconds: number
  /** Where pictures of the dashboards go; none are drawn without it. */
  readonly pictures?: string
  say(line: string): void
}

/** What Grafana would choose for this interval of scrapes, and the shown range. */
const RATE_INTERVAL = `${4 * SCRAPE_SECONDS + 2}s`
const PARALLEL = 4
/** What Prometheus tells of its scrapes. */
const OF_PROMETHEUS = ['up', 'scrape_duration_seconds', 'scrape_samples_post_metric_relabeling']

export async function verify(options: Verification): Promise<void> {
  const { tools, folder, seconds, say } = options
  const live = await startLive(tools.prometheus, folder)
  try {
    say('three nodes run: SQLite with a mirror, and two on PostgreSQL and Redis; Prometheus scrapes them')
    const from = Date.now() / 1000
    const traffic = await startTraffic(live, say)
    const left = seconds - (Date.now() / 1000 - from)
    if (left > 0) await new Promise((resolve) => setTimeout(resolve, left * 1000))
    const now = Date.now() / 1000
    const known = await declared(live, tools.promtool, say)
    const context = { live, known, from, now }
    await checkPanels(context, say)
    await mutate(context, say)
    await checkExemplars(context, say)
    if (options.pictures !== undefined)
      say(await drawAll(live.prometheus, { from: now - seconds, to: now }, RATE_INTERVAL, options.pictures))
    await traffic.stop()
  } finally {
    await live.close()
  }
}

/** The series that the nodes declare: by name, whether or not there is one yet. */
async function declared(live: Live, promtool: string, say: Verification['say']): Promise<Set<string>> {
  const names = new Set([
    ...OF_PROMETHEUS,
    ...[...ruleFiles().values()].flatMap(recordingsOf).map(({ record }) => record)
  ])
  let most = 0
  for (const { name, url } of [live.sqlite, live.postgres, live.second]) {
    const answer = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${METRICS_TOKEN}` } })
    const text = await answer.text()
    const { status, stdout, stderr } = spawnSync(promtool, ['check', 'metrics'], { input: text, encoding: 'utf8' })
    if (status !== 0) throw new Error(`promtool check metrics, ${name}:\n${stdout}${stderr}`)
    for (const [, metric = '', type] of text.matchAll(/^# TYPE (\S+) (\S+)$/gm)) {
      for (const end of type === 'histogram' ? ['_bucket', '_sum', '_count'] : ['']) names.add(metric + end)
    }
    most = Math.max(most, text.split('\n').filter((line) => line !== '' && !line.startsWith('#')).length)
  }
  say(`metrics: promtool finds nothing to complain of on any node; ${most} series at most`)
  return names
}

interface Context {
  readonly live: Live
  readonly known: ReadonlySet<string>
  readonly from: number
  readonly now: number
}

const rangeOf = ({ from, now }: Context) => `${Math.ceil(now - from)}s`
export const asked = (expr: string, range: string): string => filled(expr, { rate: RATE_INTERVAL, range })

const unknownIn = ({ known }: Pick<Context, 'known'>, expr: string): string[] =>
  selectorsOf(filled(expr))
    .map(({ metric }) => metric)
    .filter((metric) => !known.has(metric))

/** What is wrong with a query of a panel; empty when nothing is. */
async function defectOf(context: Context, { kind }: Panel, { expr, legend }: Query): Promise<string> {
  const unknown = unknownIn(context, expr)
  if (unknown.length > 0) return `there is no ${unknown.join(', ')}`
  const { prometheus } = context.live
  const query = asked(expr, rangeOf(context))
  const overTime = kind === 'timeseries'
  const found = overTime
    ? await prometheus.range(query, context.from, context.now, SCRAPE_SECONDS)
    : await prometheus.query(query)
  if (found.length === 0) return 'there is nothing to see'
  const values = found.flatMap((series) => series.values)
  if (values.some((value) => value === Number.POSITIVE_INFINITY || value === Number.NEGATIVE_INFINITY))
    return 'infinite'
  // A quantile of nothing is no number: over time there are such moments, but not only such.
  if (overTime ? values.every(Number.isNaN) : values.some(Number.isNaN)) return 'not a number'
  const labels = [...legend.matchAll(/\{\{(\w+)\}\}/g)].map(([, label = '']) => label)
  // What stands in for nothing, by `or vector(0)`, has no labels.
  const named = (series: Series) =>
    Object.keys(series.labels).length === 0 || labels.every((label) => label in series.labels)
  return found.every(named) && (labels.length === 0 || found.length > 0) ? '' : `a series lacks a label of ${legend}`
}

async function checkPanels(context: Context, say: Verification['say']): Promise<void> {
  const all = DASHBOARDS.flatMap(({ uid, rows }) =>
    rows.flatMap(({ panels }) => panels.flatMap((panel) => panel.queries.map((query) => ({ uid, panel, query }))))
  )
  const defects = await inParallel(all, PARALLEL, async ({ uid, panel, query }) => {
    const defect = await defectOf(context, panel, query)
    return defect === '' ? '' : `${uid}, ${panel.title[0]}: ${defect}\n  ${query.expr}`
  })
  const wrong = defects.filter((each) => each !== '')
  if (wrong.length > 0) throw new Error(`${wrong.length} of ${all.length} queries\n${wrong.join('\n')}`)
  const panels = DASHBOARDS.reduce(
    (sum, { rows }) => sum + rows.reduce((total, row) => total + row.panels.length, 0),
    0
  )
  say(
    `dashboards: ${all.length} queries of ${panels} panels on ${DASHBOARDS.length} dashboards have finite data, and the labels that they name`
  )
}

/** A point of a latency panel leads to its trace by the label that Grafana's data source is told of. */
async function checkExemplars({ live, from, now }: Context, say: Verification['say']): Promise<void> {
  const found = await live.prometheus.exemplars('http_request_duration_seconds_bucket', from, now)
  const traces = found.filter(({ trace_id: id = '' }) => /^[0-9a-f]{32}$/.test(id))
  if (traces.length === 0) throw new Error(`no exemplar of a latency names its trace; there are ${found.length}`)
  say(`exemplars: ${traces.length} latencies lead to their traces`)
}

/** A metric that is called otherwise is noticed, whichever it is: even where a query answers 0 in place of nothing. */
async function mutate(context: Context, say: Verification['say']): Promise<void> {
  const all = DASHBOARDS.flatMap(({ rows }) =>
    rows.flatMap(({ panels }) => panels.flatMap((panel) => panel.queries.map((query) => ({ panel, query }))))
  )
  const mutants = new Map<string, { panel: Panel; query: Query }>()
  for (const { panel, query } of all) {
    for (const { metric } of selectorsOf(filled(query.expr))) {
      const expr = query.expr.replaceAll(new RegExp(`\\b${metric}(?=\\{)`, 'g'), `${metric}_otherwise`)
      if (expr !== query.expr) mutants.set(metric, { panel, query: { ...query, expr } })
    }
  }
  const metrics = new Set(all.flatMap(({ query }) => selectorsOf(filled(query.expr)).map(({ metric }) => metric)))
  const missed = await inParallel([...metrics], PARALLEL, async (metric) => {
    const mutant = mutants.get(metric)
    return mutant === undefined || (await defectOf(context, mutant.panel, mutant.query)) === '' ? metric : ''
  })
  const found = missed.filter((each) => each !== '')
  if (found.length > 0) throw new Error(`nobody notices that these are called otherwise: ${found.join(', ')}`)
  say(`mutants: each of the ${metrics.size} metrics, called otherwise in a query that names it, fails the proof`)
}
