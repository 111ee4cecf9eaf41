import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Resvg } from '@resvg/resvg-js'
import { inParallel } from '../alerts/run.js'
import { type Box, chart, legendOf } from './chart.js'
import { DASHBOARDS } from './index.js'
import { layoutOf, type Place } from './layout.js'
import { filled } from './lint.js'
import type { Dashboard, Level, Panel } from './panel.js'
import { png } from './png.js'
import type { Prometheus, Series } from './prometheus.js'
import { COLOURS, escaped, fit, INK, text } from './svg.js'
import { format } from './units.js'

/** Pictures of the dashboards, drawn from what a Prometheus answers, where there is no Grafana to look at them. */

const WIDTH = 1_440
const MARGIN = 12
const HEAD = 54
const UNIT_HEIGHT = 30
const GAP = 8
const POINTS = 120

export interface Shown {
  readonly from: number
  readonly to: number
}
/** What a panel's queries answered; the names of the series by their legends. */
interface Data {
  readonly name: string
  readonly series: Series
}

/** Draws each dashboard into a file of the folder. @returns what was drawn */
export async function drawAll(
  prometheus: Prometheus,
  shown: Shown,
  rateInterval: string,
  folder: string
): Promise<string> {
  mkdirSync(folder, { recursive: true })
  const files = await inParallel(DASHBOARDS, 1, async (dashboard) => {
    const svg = await draw(dashboard, prometheus, shown, rateInterval)
    const picture = png(new Resvg(svg, { font: { loadSystemFonts: true, defaultFontFamily: 'DejaVu Sans' } }).render())
    const name = `dashboard-${dashboard.uid.replace(/^inventory-/, '')}.png`
    writeFileSync(join(folder, name), picture)
    return `${name} (${Math.round(picture.length / 1024)} KiB)`
  })
  return `pictures: ${files.join(', ')}`
}

async function draw(dashboard: Dashboard, prometheus: Prometheus, shown: Shown, rateInterval: string): Promise<string> {
  const rows = layoutOf(dashboard)
  const parts: string[] = []
  for (const { title, place, panels } of rows) {
    const { x, y } = boxOf(place)
    parts.push(text(title[0], { x: x + 4, y: y + 21, size: 14, colour: INK.strong, bold: true }))
    const drawn = await inParallel(panels, 4, async ({ panel, place: own }) => {
      const data = await ask(panel, prometheus, shown, rateInterval)
      return frame(panel, boxOf(own), data, shown)
    })
    parts.push(...drawn)
  }
  const last = rows.flatMap(({ panels }) => panels).reduce((most, { place }) => Math.max(most, place.y + place.h), 0)
  const height = HEAD + last * UNIT_HEIGHT + MARGIN
  const clock = (at: number) => new Date(at * 1000).toISOString().slice(11, 16)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" font-family="DejaVu Sans, Liberation Sans, sans-serif">`,
    `<rect width="100%" height="100%" fill="${INK.page}"/>`,
    text(dashboard.title[0], { x: MARGIN + 4, y: 34, size: 20, colour: INK.strong, bold: true }),
    text(`${clock(shown.from)} – ${clock(shown.to)} UTC`, {
      x: WIDTH - MARGIN - 4,
      y: 34,
      size: 12,
      colour: INK.faint,
      anchor: 'end'
    }),
    ...parts,
    '</svg>'
  ].join('\n')
}

const boxOf = ({ x, y, w, h }: Place): Box => {
  const column = (WIDTH - 2 * MARGIN) / 24
  return { x: MARGIN + x * column, y: HEAD + y * UNIT_HEIGHT, width: w * column - GAP, height: h * UNIT_HEIGHT - GAP }
}

async function ask(panel: Panel, prometheus: Prometheus, { from, to }: Shown, rate: string): Promise<Data[]> {
  const range = `${Math.ceil(to - from)}s`
  const answers = await Promise.all(
    panel.queries.map(async ({ expr, legend }) => {
      const query = filled(expr, { rate, range })
      const step = Math.max(2, Math.round((to - from) / POINTS))
      const found =
        panel.kind === 'timeseries' ? await prometheus.range(query, from, to, step) : await prometheus.query(query)
      return found.map((series) => ({ name: legendOf(legend, series.labels), series }))
    })
  )
  const all = answers.flat()
  // What stands in for nothing has no labels; beside something else it says nothing.
  const named = all.filter(({ name }) => name !== '')
  return named.length > 0
    ? named
    : all.map((each) => ({ ...each, name: panel.kind === 'timeseries' ? panel.title[0] : each.name }))
}

function frame(panel: Panel, box: Box, data: readonly Data[], shown: Shown): string {
  const { x, y, width, height } = box
  const inner = { x: x + 10, y: y + 30, width: width - 20, height: height - 36 }
  return [
    `<rect x="${x}" y="${y}" width="${width}" height="${height}" rx="3" fill="${INK.panel}" stroke="${INK.line}"/>`,
    text(fit(panel.title[0], width - 20, 12), { x: x + 10, y: y + 20, size: 12, colour: INK.text, bold: true }),
    painters[panel.kind](panel, inner, data, shown)
  ].join('')
}

type Painter = (panel: Panel, box: Box, data: readonly Data[], shown: Shown) => string
const painters: Readonly<Record<Panel['kind'], Painter>> = {
  timeseries: (panel, box, data, shown) =>
    chart({
      box,
      data,
      shown,
      unit: panel.unit,
      stacked: panel.stacked === true,
      levels: panel.levels ?? [],
      max: panel.max
    }),
  stat,
  gauge,
  bars,
  table
}

const colourOf = (levels: readonly Level[] = [], value: number): string =>
  COLOURS[[...levels].reverse().find(([from], n, all) => value >= from || n === all.length - 1)?.[1] ?? 'green']
const lastOf = ({ values }: Series) => values.at(-1) ?? Number.NaN
const told = ({ unit, decimals, words: [zero, one] = [] }: Panel, value: number) => {
  const word = one === undefined ? (value === 0 ? zero : undefined) : value >= 1 ? one : zero
  return word?.[0] ?? format(value, unit, decimals)
}

function stat(panel: Panel, { x, y, width, height }: Box, data: readonly Data[]): string {
  const columns = Math.max(1, data.length)
  const each = width / columns
  const longest = Math.max(...data.map(({ series }) => told(panel, lastOf(series)).length))
  const size = Math.min(columns === 1 ? 34 : 22, (each - 6) / (0.66 * longest))
  return data
    .map(({ name, series }, n) => {
      const value = lastOf(series)
      const middle = x + each * (n + 0.5)
      const label =
        columns === 1
          ? ''
          : text(fit(name, each - 4, 10), {
              x: middle,
              y: y + height - 4,
              size: 10,
              colour: INK.faint,
              anchor: 'middle'
            })
      const at = {
        x: middle,
        y: y + height / 2 + size / 3 - (columns === 1 ? 0 : 6),
        size,
        colour: colourOf(panel.levels, value),
        anchor: 'middle' as const,
        bold: true
      }
      return text(told(panel, value), at) + label
    })
    .join('')
}

function gauge(panel: Panel, { x, y, width, height }: Box, data: readonly Data[]): string {
  const value = data[0] === undefined ? 0 : lastOf(data[0].series)
  const radius = Math.min(width / 2, height - 6) * 0.92
  const centre = { x: x + width / 2, y: y + height - 4 }
  const share = Math.max(0, Math.min(1, value / (panel.max ?? 1)))
  const point = (part: number, r: number) => {
    const angle = Math.PI * (1 - part)
    return `${(centre.x + r * Math.cos(angle)).toFixed(1)} ${(centre.y - r * Math.sin(angle)).toFixed(1)}`
  }
  const arc = (to: number, colour: string) =>
    `<path d="M ${point(0, radius)} A ${radius} ${radius} 0 0 1 ${point(to, radius)}" fill="none" stroke="${colour}" stroke-width="${Math.max(12, radius * 0.14).toFixed(1)}"/>`
  const size = 20
  return [
    arc(1, INK.line),
    share > 0.005 ? arc(share, colourOf(panel.levels, value)) : '',
    text(told(panel, value), {
      x: centre.x,
      y: centre.y - 6,
      size,
      colour: colourOf(panel.levels, value),
      anchor: 'middle',
      bold: true
    })
  ].join('')
}

const BARS_SHOWN = 10
function bars(panel: Panel, { x, y, width, height }: Box, data: readonly Data[]): string {
  const found = [...data]
    .filter(({ series }) => Number.isFinite(lastOf(series)))
    .sort((one, other) => lastOf(other.series) - lastOf(one.series))
    .slice(0, BARS_SHOWN)
  const each = Math.min(40, height / Math.max(1, found.length))
  const labels = Math.min(width * 0.45, Math.max(...found.map(({ name }) => name.length)) * 6.4 + 10)
  const room = width - labels - 70
  const most = panel.max ?? Math.max(...found.map(({ series }) => Math.abs(lastOf(series))), 1e-9)
  return found
    .map(({ name, series }, n) => {
      const value = lastOf(series)
      const top = y + n * each
      const long = Math.max(2, (room * Math.min(Math.abs(value), most)) / most)
      const thick = Math.min(24, each - 5)
      const middle = top + thick / 2 + 4
      return [
        text(fit(name, labels - 6, 10.5), { x, y: middle, size: 10.5, colour: INK.text }),
        `<rect x="${x + labels}" y="${top}" width="${room}" height="${thick}" fill="${INK.track}"/>`,
        `<rect x="${x + labels}" y="${top}" width="${long.toFixed(1)}" height="${thick}" fill="${colourOf(panel.levels, value)}"/>`,
        text(told(panel, value), { x: x + width, y: middle, size: 10.5, colour: INK.text, anchor: 'end' })
      ].join('')
    })
    .join('')
}

const LINE = 22
function table(panel: Panel, { x, y, width, height }: Box, data: readonly Data[]): string {
  const names = [...new Set(data.flatMap(({ series }) => Object.keys(series.labels)))]
  const head = [...names, 'value']
  const column = width / head.length
  const shown = data.slice(0, Math.floor(height / LINE) - 1)
  const cell = (content: string, n: number, line: number, colour: string, bold = false) =>
    text(fit(content, column - 8, 10.5), { x: x + n * column, y: y + 12 + line * LINE, size: 10.5, colour, bold })
  const lines = shown.map(({ series }, n) => {
    const value = lastOf(series)
    const cells = names.map((name, at) => cell(series.labels[name] ?? '', at, n + 1, INK.text))
    const rule = `<line x1="${x}" x2="${x + width}" y1="${y + 18 + n * LINE}" y2="${y + 18 + n * LINE}" stroke="${INK.line}"/>`
    return (
      rule +
      cells.join('') +
      cell(
        told(panel, value),
        names.length,
        n + 1,
        panel.levels === undefined ? INK.text : colourOf(panel.levels, value)
      )
    )
  })
  return head.map((name, n) => cell(escaped(name), n, 0, INK.faint, true)).join('') + lines.join('')
}
