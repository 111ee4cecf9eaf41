import { PanelBuilder as BarGauge } from '@grafana/grafana-foundation-sdk/bargauge'
import * as common from '@grafana/grafana-foundation-sdk/common'
import {
  BigValueGraphMode,
  GraphDrawStyle,
  GraphGradientMode,
  LegendDisplayMode,
  LegendPlacement,
  StackingMode,
  VisibilityMode,
  VizOrientation
} from '@grafana/grafana-foundation-sdk/common'
import * as sdk from '@grafana/grafana-foundation-sdk/dashboard'
import { PanelBuilder as Gauge } from '@grafana/grafana-foundation-sdk/gauge'
import { DataqueryBuilder, PromQueryFormat } from '@grafana/grafana-foundation-sdk/prometheus'
import { PanelBuilder as Stat } from '@grafana/grafana-foundation-sdk/stat'
import { PanelBuilder as Table } from '@grafana/grafana-foundation-sdk/table'
import { PanelBuilder as TimeSeries } from '@grafana/grafana-foundation-sdk/timeseries'
import { layoutOf } from './layout.js'
import type { Dashboard, Kind, Panel, Text } from './panel.js'

/** Grafana's JSON of a dashboard, by Grafana's own types of it. */

export const LOCALES = ['en', 'fr'] as const
export type Locale = (typeof LOCALES)[number]

const SOURCE = { type: 'prometheus', uid: `\${datasource}` }
const LABELS = {
  source: { en: 'Data source', fr: 'Source de données' },
  runbook: { en: 'Runbook', fr: 'Procédure' },
  others: { en: 'Dashboards', fr: 'Tableaux de bord' }
} as const
export const uidOf = ({ uid }: Dashboard, locale: Locale): string => (locale === 'en' ? uid : `${uid}-${locale}`)

export function grafanaDashboard(dashboard: Dashboard, locale: Locale): sdk.Dashboard {
  const text = ([en, fr]: Text) => (locale === 'en' ? en : fr)
  const builder = new sdk.DashboardBuilder(text(dashboard.title))
    .uid(uidOf(dashboard, locale))
    .description(text(dashboard.about))
    .tags(['inventory-enterprise', locale])
    .readonly()
    .refresh('30s')
    .time({ from: 'now-3h', to: 'now' })
    .timezone('browser')
    .tooltip(sdk.DashboardCursorSync.Crosshair)
    .link(
      new sdk.DashboardLinkBuilder(LABELS.others[locale])
        .type(sdk.DashboardLinkType.Dashboards)
        .tags(['inventory-enterprise', locale])
        .asDropdown(true)
        .keepTime(true)
        .includeVars(true)
    )
  for (const variable of variables(locale)) builder.withVariable(variable)
  let id = 0
  for (const { title, place, panels } of layoutOf(dashboard)) {
    builder.withRow(new sdk.RowBuilder(text(title)).id(++id).gridPos(place))
    for (const { panel, place } of panels) builder.withPanel(build(panel, text, locale).id(++id).gridPos(place))
  }
  return builder.build()
}

function variables(locale: Locale) {
  const query = (name: string, label: string, text: string) =>
    new sdk.QueryVariableBuilder(name)
      .label(label)
      .datasource(SOURCE)
      .query(text)
      .refresh(sdk.VariableRefresh.OnTimeRangeChanged)
      .sort(sdk.VariableSort.AlphabeticalAsc)
      .multi(true)
      .includeAll(true)
      .allValue('.+')
      .current({ text: 'All', value: '$__all', selected: true })
  return [
    new sdk.DatasourceVariableBuilder('datasource').label(LABELS.source[locale]).type('prometheus'),
    query('job', 'Job', 'label_values(app_build_info, job)'),
    query('instance', 'Instance', 'label_values(app_build_info{job=~"$job"}, instance)'),
    // Where the runbooks are: the address of your copy, as in deploy/monitoring/prometheus.yml.
    new sdk.TextBoxVariableBuilder('repository')
      .label('Repository')
      .defaultValue('https://git.example.org/inventory-enterprise/blob/main')
      .hide(sdk.VariableHide.HideVariable)
  ]
}

type Builder = TimeSeries | Stat | Gauge | BarGauge | Table

function build(panel: Panel, text: (of: Text) => string, locale: Locale): Builder {
  const { title, about, unit, levels = [[0, 'green']], runbooks = [], words, decimals, max } = panel
  const builder = makers[panel.kind](panel)
    .title(text(title))
    .description(text(about))
    .datasource(SOURCE)
    .unit(unit)
    .thresholds(
      new sdk.ThresholdsConfigBuilder()
        .mode(sdk.ThresholdsMode.Absolute)
        .steps(levels.map(([value, color], n) => ({ value: n === 0 ? null : value, color })))
    )
    .links(
      runbooks.map((name) =>
        new sdk.DashboardLinkBuilder(`${LABELS.runbook[locale]}: ${name}`)
          .type(sdk.DashboardLinkType.Link)
          .url(`\${repository}/docs/runbooks/${name}.md`)
          .targetBlank(true)
      )
    )
  if (decimals !== undefined) builder.decimals(decimals)
  if (max !== undefined) builder.min(0).max(max)
  if (words !== undefined) {
    const options = Object.fromEntries(words.map((word, value) => [String(value), { text: text(word), index: value }]))
    builder.mappings([{ type: sdk.MappingType.ValueToText, options }])
  }
  panel.queries.forEach(({ expr, legend }, n) => {
    const target = new DataqueryBuilder()
      .expr(expr)
      .legendFormat(legend)
      .refId(String.fromCharCode(65 + n))
      .datasource(SOURCE)
    if (panel.kind === 'timeseries') target.range().exemplar(expr.includes('http_request_duration_seconds_bucket'))
    else target.instant()
    builder.withTarget(panel.kind === 'table' ? target.format(PromQueryFormat.Table) : target)
  })
  return builder
}

const lastValue = () => new common.ReduceDataOptionsBuilder().calcs(['lastNotNull']).values(false)

const makers: Readonly<Record<Kind, (panel: Panel) => Builder>> = {
  timeseries: ({ stacked = false, levels }) => {
    const builder = new TimeSeries()
      .drawStyle(GraphDrawStyle.Line)
      .lineWidth(1)
      .fillOpacity(stacked ? 25 : 8)
      .gradientMode(GraphGradientMode.None)
      .showPoints(VisibilityMode.Never)
      .axisSoftMin(0)
      .legend(
        new common.VizLegendOptionsBuilder()
          .showLegend(true)
          .displayMode(LegendDisplayMode.List)
          .placement(LegendPlacement.Bottom)
          .calcs([])
      )
      .tooltip(
        new common.VizTooltipOptionsBuilder().mode(common.TooltipDisplayMode.Multi).sort(common.SortOrder.Descending)
      )
    if (stacked) builder.stacking(new common.StackingConfigBuilder().mode(StackingMode.Normal).group('A'))
    if (levels !== undefined)
      builder.thresholdsStyle(
        new common.GraphThresholdsStyleConfigBuilder().mode(common.GraphThresholdsStyleMode.Dashed)
      )
    return builder
  },
  stat: () => new Stat().graphMode(BigValueGraphMode.None).reduceOptions(lastValue()),
  gauge: () => new Gauge().reduceOptions(lastValue()),
  bars: () => new BarGauge().orientation(VizOrientation.Horizontal).reduceOptions(lastValue()),
  table: () => new Table()
}
