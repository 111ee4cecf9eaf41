import type { Dashboard, Kind, Panel, Text } from './panel.js'

/** Where panels are: in 24ths of the width, and in Grafana's units of height. */

export interface Place {
  readonly x: number
  readonly y: number
  readonly w: number
  readonly h: number
}
interface PlacedRow {
  readonly title: Text
  readonly place: Place
  readonly panels: readonly { readonly panel: Panel; readonly place: Place }[]
}

const WIDTH = 24
const SIZE: Readonly<Record<Kind, { width: number; height: number }>> = {
  timeseries: { width: 8, height: 8 },
  bars: { width: 8, height: 8 },
  table: { width: 12, height: 8 },
  stat: { width: 4, height: 4 },
  gauge: { width: 4, height: 4 }
}

/** From left to right, and on below: each line of panels as high as its highest. */
export function layoutOf({ rows }: Dashboard): PlacedRow[] {
  let y = 0
  return rows.map(({ title, panels }) => {
    const place = { x: 0, y, w: WIDTH, h: 1 }
    let at = { x: 0, y: y + 1, high: 0 }
    const placed = panels.map((panel) => {
      const { width, height: h } = SIZE[panel.kind]
      const w = panel.width ?? width
      if (at.x + w > WIDTH) at = { x: 0, y: at.y + at.high, high: 0 }
      const own = { x: at.x, y: at.y, w, h }
      at = { x: at.x + w, y: at.y, high: Math.max(at.high, h) }
      return { panel, place: own }
    })
    y = at.y + at.high
    // What stands side by side is equally high.
    const high = (line: number) =>
      Math.max(...placed.filter((each) => each.place.y === line).map((each) => each.place.h))
    const panelsOf = placed.map(({ panel, place: own }) => ({ panel, place: { ...own, h: high(own.y) } }))
    return { title, place, panels: panelsOf }
  })
}
