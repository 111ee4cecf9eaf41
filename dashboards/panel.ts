/** What a panel is, before it becomes Grafana's JSON (`grafana.ts`) or a picture (`draw.ts`). */

/** English, French. */
export type Text = readonly [en: string, fr: string]

export interface Query {
  /** PromQL; `$F` stands for the selectors of the chosen job and instances. */
  readonly expr: string
  /** Grafana's: `{{label}}` is the value of a label. */
  readonly legend: string
}

export type Kind = 'timeseries' | 'stat' | 'gauge' | 'bars' | 'table'
/** From this value on the colour; the first holds from the beginning. */
export type Level = readonly [from: number, colour: 'green' | 'orange' | 'red' | 'blue']

export interface Panel {
  readonly kind: Kind
  readonly title: Text
  /** What it shows and how to read it. */
  readonly about: Text
  /** Grafana's name of the unit. */
  readonly unit: string
  readonly queries: readonly Query[]
  readonly levels?: readonly Level[]
  /** Alerts whose runbooks say what to do when it looks bad. */
  readonly runbooks?: readonly string[]
  readonly stacked?: boolean
  readonly max?: number
  readonly decimals?: number
  /** In 24ths of the screen. */
  readonly width?: number
  /** What 0 and 1 mean; one word alone where 0 is none at all, and anything else an amount. */
  readonly words?: readonly Text[]
}

export interface Row {
  readonly title: Text
  readonly panels: readonly Panel[]
}

export interface Dashboard {
  readonly uid: string
  readonly title: Text
  readonly about: Text
  readonly rows: readonly Row[]
}

export const F = 'job=~"$job",instance=~"$instance"'
export const query = (expr: string, legend = ''): Query => ({ expr: expr.replaceAll('$F', F), legend })

type Options = Pick<Panel, 'levels' | 'runbooks' | 'stacked' | 'max' | 'decimals' | 'width' | 'words'>
type Queries = Query | readonly Query[]

const panel =
  (kind: Kind) =>
  (title: Text, about: Text, unit: string, queries: Queries, options: Options = {}): Panel => ({
    kind,
    title,
    about,
    unit,
    queries: 'expr' in queries ? [queries] : queries,
    ...options
  })

export const timeseries = panel('timeseries')
export const stat = panel('stat')
export const gauge = panel('gauge')
export const bars = panel('bars')
export const table = panel('table')

/** Green at 0, red from 1 on. */
export const MUST_BE_ZERO: readonly Level[] = [
  [0, 'green'],
  [1, 'red']
]
/** Red below 1. */
export const MUST_BE_ONE: readonly Level[] = [
  [0, 'red'],
  [1, 'green']
]
export const rising = (warn: number, bad: number): readonly Level[] => [
  [0, 'green'],
  [warn, 'orange'],
  [bad, 'red']
]
export const falling = (bad: number, warn: number): readonly Level[] => [
  [0, 'red'],
  [bad, 'orange'],
  [warn, 'green']
]
export const NEUTRAL: readonly Level[] = [[0, 'blue']]

/** By how much a counter grows a second, summed by labels. */
export const rateOf = (metric: string, by: string, more = ''): string =>
  `sum by (${by}) (rate(${metric}{$F${more}}[$__rate_interval]))`
export const totalRateOf = (metric: string, more = ''): string => `sum(rate(${metric}{$F${more}}[$__rate_interval]))`

/** 0 where there is nothing to be a share of. */
export const share = (part: string, whole: string): string => `${part} / (${whole} > 0) or on() vector(0)`

export const quantiles = (metric: string, more = ''): Query[] =>
  [0.5, 0.95, 0.99].map((each) => query(quantile(each, metric, '', more), `p${each * 100}`))
export const quantile = (q: number, metric: string, by = '', more = ''): string =>
  `histogram_quantile(${q}, sum by (le${by === '' ? '' : `, ${by}`}) (rate(${metric}_bucket{$F${more}}[$__rate_interval])))`
