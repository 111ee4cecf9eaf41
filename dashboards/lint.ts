import { type Static, Type } from 'typebox'
import { groupingsOf, rangesOf, selectorsOf } from '../alerts/promql.js'

/**
 * The rules of Grafana's dashboard-linter (https://github.com/grafana/dashboard-linter/tree/main/docs/rules), by their names, and a few of
 * our own (`own-…`). They read the JSON that Grafana will.
 */

const Source = Type.Object({ type: Type.Optional(Type.String()), uid: Type.Optional(Type.String()) })
const Variable = Type.Object({
  name: Type.String(),
  type: Type.String(),
  label: Type.Optional(Type.String()),
  query: Type.Optional(Type.String()),
  datasource: Type.Optional(Source),
  refresh: Type.Optional(Type.Number()),
  multi: Type.Optional(Type.Boolean()),
  includeAll: Type.Optional(Type.Boolean()),
  allValue: Type.Optional(Type.String())
})
const Target = Type.Object({
  refId: Type.String(),
  expr: Type.String(),
  legendFormat: Type.Optional(Type.String()),
  datasource: Type.Optional(Source)
})
const PanelJson = Type.Object({
  id: Type.Number(),
  type: Type.String(),
  title: Type.Optional(Type.String()),
  description: Type.Optional(Type.String()),
  datasource: Type.Optional(Source),
  gridPos: Type.Object({ x: Type.Number(), y: Type.Number(), w: Type.Number(), h: Type.Number() }),
  targets: Type.Optional(Type.Array(Target)),
  links: Type.Optional(Type.Array(Type.Object({ url: Type.Optional(Type.String()) }))),
  fieldConfig: Type.Optional(Type.Object({ defaults: Type.Object({ unit: Type.Optional(Type.String()) }) }))
})
export const DashboardJson = Type.Object({
  uid: Type.String(),
  title: Type.String(),
  description: Type.Optional(Type.String()),
  editable: Type.Boolean(),
  templating: Type.Object({ list: Type.Array(Variable) }),
  panels: Type.Array(PanelJson)
})
export type DashboardJson = Static<typeof DashboardJson>
type PanelJson = Static<typeof PanelJson>
type Target = Static<typeof Target>
type Rule = (dashboard: DashboardJson) => string[]

/** What stands in for Grafana's variables while a query is parsed, and can be told from what was written. */
const RATE_INTERVAL = '61s'
const RANGE = '3601s'
export const filled = (expr: string, { rate = RATE_INTERVAL, range = RANGE } = {}): string =>
  expr
    .replaceAll('$__rate_interval', rate)
    .replaceAll('$__range', range)
    .replaceAll('$job', '.+')
    .replaceAll('$instance', '.+')

/** Recorded series are over all instances; they have a job alone. */
const isRecorded = (metric: string) => metric.includes(':')
const UNITS = new Set(['short', 'none', 's', 'bytes', 'ops', 'reqps', 'percentunit'])
const RATES = new Set(['rate', 'irate'])
const COUNTER_FUNCTIONS = new Set(['rate', 'irate', 'increase'])

export const panelsOf = ({ panels }: DashboardJson): PanelJson[] => panels.filter(({ type }) => type !== 'row')
const eachPanel =
  (check: (panel: PanelJson) => boolean): Rule =>
  (dashboard) =>
    panelsOf(dashboard)
      .filter((panel) => !check(panel))
      .map(({ id, title }) => `panel ${id} ${title}`)
const eachTarget =
  (check: (target: Target) => boolean): Rule =>
  (dashboard) =>
    panelsOf(dashboard).flatMap(({ title, targets = [] }) =>
      targets.filter((target) => !check(target)).map(({ refId, expr }) => `${title} ${refId}: ${expr}`)
    )
const variable =
  (name: string, check: (found: Static<typeof Variable>) => boolean): Rule =>
  ({ templating }) => {
    const found = templating.list.find((each) => each.name === name)
    return found !== undefined && check(found) ? [] : [`variable ${name}`]
  }
const chosen =
  (label: string) =>
  ({ type, datasource, multi, includeAll, allValue, label: own }: Static<typeof Variable>) =>
    type === 'query' &&
    own === label &&
    datasource?.uid === '$' + '{datasource}' &&
    multi === true &&
    includeAll === true &&
    allValue === '.+'

const parses = (expr: string): boolean => {
  try {
    return selectorsOf(filled(expr)).length > 0
  } catch {
    return false
  }
}
const matches = (label: string, exempt: (metric: string) => boolean) =>
  eachTarget(({ expr }) =>
    selectorsOf(filled(expr)).every(
      ({ metric, matchers }) =>
        exempt(metric) || matchers.some((each) => each.label === label && each.operator === '=~' && each.value === '.+')
    )
  )

export const RULES: Readonly<Record<string, Rule>> = {
  'template-datasource-rule': variable(
    'datasource',
    ({ type, query }) => type === 'datasource' && query === 'prometheus'
  ),
  'template-job-rule': variable('job', chosen('Job')),
  'template-instance-rule': variable('instance', chosen('Instance')),
  'template-label-promql-rule': ({ templating }) =>
    templating.list
      .filter(({ type }) => type === 'query')
      .filter(({ query = '' }) => {
        const [, selector] = /^label_values\((.+), \w+\)$/.exec(query) ?? []
        return selector === undefined || !parses(selector)
      })
      .map(({ name }) => `variable ${name}`),
  'template-on-time-change-reload-rule': ({ templating }) =>
    templating.list
      .filter(({ type, refresh }) => type === 'query' && refresh !== 2)
      .map(({ name }) => `variable ${name}`),
  'panel-datasource-rule': eachPanel(({ datasource, targets = [] }) =>
    [datasource, ...targets.map((each) => each.datasource)].every((each) => each?.uid === '$' + '{datasource}')
  ),
  'panel-title-description-rule': eachPanel(({ title = '', description = '' }) => title !== '' && description !== ''),
  'panel-units-rule': eachPanel(({ fieldConfig }) => UNITS.has(fieldConfig?.defaults.unit ?? '')),
  'panel-no-targets-rule': eachPanel(({ targets = [] }) => targets.length > 0),
  'target-promql-rule': eachTarget(({ expr }) => parses(expr)),
  'target-rate-interval-rule': eachTarget(({ expr }) =>
    rangesOf(filled(expr)).every((each) => !RATES.has(each.function) || each.range === RATE_INTERVAL)
  ),
  'target-job-rule': matches('job', () => false),
  'target-instance-rule': matches('instance', isRecorded),
  'target-counter-agg-rule': eachTarget(({ expr }) => {
    const query = filled(expr)
    const counters = selectorsOf(query).filter(({ metric }) => metric.endsWith('_total'))
    const read = rangesOf(query).filter(
      (each) => each.metric.endsWith('_total') && COUNTER_FUNCTIONS.has(each.function)
    )
    return counters.length === read.length
  }),
  'uneditable-dashboard-rule': ({ editable, title }) => (editable ? [title] : []),
  'own-legend-rule': eachTarget(({ expr, legendFormat = '' }) => {
    const grouped = new Set(groupingsOf(filled(expr)))
    return [...legendFormat.matchAll(/\{\{(\w+)\}\}/g)].every(([, label = '']) => grouped.has(label))
  }),
  'own-unique-rule': ({ panels }) => {
    const seen = new Set<string | number>()
    return panels.flatMap(({ id, title = '', type }) => {
      const names = type === 'row' ? [id] : [id, title]
      const twice = names.filter((each) => seen.has(each))
      for (const each of names) seen.add(each)
      return twice.map((each) => `${each} is there twice`)
    })
  },
  'own-layout-rule': ({ panels }) =>
    panels.flatMap(({ title, gridPos: one }, n) => {
      const over = panels
        .slice(n + 1)
        .filter(
          ({ gridPos: other }) =>
            one.x < other.x + other.w && other.x < one.x + one.w && one.y < other.y + other.h && other.y < one.y + one.h
        )
      return [
        ...(one.x + one.w > 24 ? [`${title} is wider than the screen`] : []),
        ...over.map((each) => `${title} lies over ${each.title}`)
      ]
    })
}
