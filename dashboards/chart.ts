import * as echarts from 'echarts'
import type { Level } from './panel.js'
import type { Series } from './prometheus.js'
import { COLOURS, fit, INK, LINES, text, widthOf } from './svg.js'
import { format } from './units.js'

/** Lines over time, by ECharts on the server. */

export interface Box {
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

interface Chart {
  readonly box: Box
  readonly data: readonly { readonly name: string; readonly series: Series }[]
  readonly shown: { readonly from: number; readonly to: number }
  readonly unit: string
  readonly stacked: boolean
  readonly levels: readonly Level[]
  readonly max: number | undefined
}

/** Grafana's `{{label}}`. */
export const legendOf = (legend: string, labels: Readonly<Record<string, string>>): string =>
  legend.replace(/\{\{(\w+)\}\}/g, (_all, label: string) => labels[label] ?? '').trim()

const LEGEND_LINE = 16
const SHOWN_MAX = 12

export function chart({ box, data, shown, unit, stacked, levels, max }: Chart): string {
  // Those that never are anything say nothing beside those that are.
  const most = ({ series }: (typeof data)[number]) => Math.max(...series.values.filter(Number.isFinite), 0)
  const drawn = [...data].sort((one, other) => most(other) - most(one)).slice(0, SHOWN_MAX)
  const names = legend(
    drawn.map(({ name }) => name),
    box
  )
  const height = box.height - names.lines * LEGEND_LINE - 4
  const instance = echarts.init(null, null, { renderer: 'svg', ssr: true, width: box.width, height })
  const highest = Math.max(...drawn.map(most), 0)
  const times = [...new Set(drawn.flatMap(({ series }) => [...series.times]))].sort((one, other) => one - other)
  instance.setOption({
    animation: false,
    color: [...LINES],
    grid: { left: 58, right: 24, top: 8, bottom: 20 },
    textStyle: { fontFamily: 'DejaVu Sans, Liberation Sans, sans-serif' },
    xAxis: {
      type: 'time',
      min: shown.from * 1000,
      max: shown.to * 1000,
      splitNumber: Math.max(1, Math.floor(box.width / 130)),
      axisLine: { lineStyle: { color: INK.line } },
      axisTick: { show: false },
      axisLabel: { color: INK.faint, fontSize: 10, hideOverlap: true, formatter: clock(shown) },
      splitLine: { show: false }
    },
    yAxis: {
      type: 'value',
      min: 0,
      ...scaleOf(unit, max, highestOf(drawn, times, stacked)),
      axisLabel: { color: INK.faint, fontSize: 10, formatter: (value: number) => format(value, unit) },
      splitLine: { lineStyle: { color: INK.line } }
    },
    series: drawn.map(({ name, series }, n) => ({
      type: 'line',
      name,
      showSymbol: false,
      lineStyle: { width: 1.3 },
      areaStyle: { opacity: stacked ? 0.3 : drawn.length === 1 ? 0.15 : 0.04 },
      ...(stacked ? { stack: 'all' } : {}),
      data: aligned(series, times, stacked),
      ...(n === 0 ? { markLine: marks(levels, highest) } : {})
    }))
  })
  const svg = instance.renderToSVGString().replace(/^<svg /, `<svg x="${box.x}" y="${box.y}" `)
  instance.dispose()
  return svg + names.at(box.y + height + 12)
}

/** Stacks are made place by place, so each series has all the times: 0 where it was not there yet. */
function aligned(
  { times: own, values }: Series,
  times: readonly number[],
  stacked: boolean
): [number, number | null][] {
  const known = new Map(own.map((time, at) => [time, values[at] ?? Number.NaN]))
  return times.map((time) => {
    const value = known.get(time)
    return [time * 1000, value !== undefined && Number.isFinite(value) ? value : stacked ? 0 : null]
  })
}

function highestOf(drawn: Chart['data'], times: readonly number[], stacked: boolean): number {
  const columns = drawn.map(({ series }) => aligned(series, times, stacked).map(([, value]) => value ?? 0))
  const at = times.map((_time, n) => columns.map((column) => column[n] ?? 0))
  return Math.max(
    0,
    ...at.map((values) => (stacked ? values.reduce((sum, each) => sum + each, 0) : Math.max(0, ...values)))
  )
}

/** Three or four lines at round figures; bytes are round in another way. */
function scaleOf(unit: string, max: number | undefined, highest: number): { max: number; interval: number } {
  const most = max ?? (highest === 0 ? 1 : highest * 1.05)
  if (max !== undefined || highest === 0) return { max: most, interval: most / 2 }
  const base =
    unit === 'bytes' ? 1024 ** Math.floor(Math.log(most) / Math.log(1024)) : 10 ** Math.floor(Math.log10(most))
  const steps =
    unit === 'bytes'
      ? [1, 2, 5, 10, 20, 50, 100, 200, 500].map((each) => each * base)
      : [0.2, 0.5, 1, 2, 5].map((each) => each * base)
  const interval = steps.find((step) => most / step <= 4) ?? most
  return { max: Math.ceil(most / interval) * interval, interval }
}

/** Thresholds that are near what is shown. */
const marks = (levels: readonly Level[], highest: number) => ({
  silent: true,
  symbol: 'none',
  label: { show: false },
  data: levels
    .slice(1)
    .filter(([from]) => from <= highest * 1.1)
    .map(([from, colour]) => ({
      yAxis: from,
      lineStyle: { color: COLOURS[colour], type: 'dashed' as const, width: 1 }
    }))
})

const clock =
  ({ from, to }: { from: number; to: number }) =>
  (at: number) =>
    new Date(at).toISOString().slice(11, to - from < 300 ? 19 : 16)

const SIZE = 10
function legend(names: readonly string[], box: Box) {
  const entries: { name: string; x: number; line: number; colour: string }[] = []
  let x = 0
  let line = 0
  for (const [n, name] of names.entries()) {
    const shown = fit(name, box.width - 20, SIZE)
    const wide = widthOf(shown, SIZE) + 26
    if (x > 0 && x + wide > box.width) {
      x = 0
      line++
    }
    entries.push({ name: shown, x, line, colour: LINES[n % LINES.length] ?? INK.text })
    x += wide
  }
  const lines = Math.min(2, line + 1)
  return {
    lines,
    at: (y: number) =>
      entries
        .filter((entry) => entry.line < lines)
        .map(({ name, x: from, line: at, colour }) => {
          const top = y + at * LEGEND_LINE
          const mark = `<rect x="${box.x + from}" y="${top - 4}" width="12" height="3" fill="${colour}"/>`
          return mark + text(name, { x: box.x + from + 16, y: top, size: SIZE, colour: INK.text })
        })
        .join('')
  }
}
