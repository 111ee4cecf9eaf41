/** Colours and text of the pictures. */

export const INK = {
  page: '#111217',
  panel: '#181b1f',
  line: '#2c3036',
  track: '#23262c',
  faint: '#8e9097',
  text: '#ccccdc',
  strong: '#f2f2f5'
} as const
export const COLOURS = { green: '#73bf69', orange: '#ff9830', red: '#f2495c', blue: '#5794f2' } as const
export const LINES = [
  '#73bf69',
  '#5794f2',
  '#f2cc0c',
  '#ff9830',
  '#f2495c',
  '#b877d9',
  '#8ab8ff',
  '#c0d8ff',
  '#ffa6b0',
  '#96d98d',
  '#fade2a',
  '#ca95e5'
] as const

interface TextOptions {
  readonly x: number
  readonly y: number
  readonly size: number
  readonly colour: string
  readonly anchor?: 'middle' | 'end'
  readonly bold?: boolean
}

export const escaped = (content: string): string =>
  content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

export function text(content: string, { x, y, size, colour, anchor, bold = false }: TextOptions): string {
  const more = `${anchor === undefined ? '' : ` text-anchor="${anchor}"`}${bold ? ' font-weight="bold"' : ''}`
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" font-size="${size.toFixed(1)}" fill="${colour}"${more}>${escaped(content)}</text>`
}

/** About as wide as DejaVu Sans. */
export const widthOf = (content: string, size: number): number => content.length * size * 0.6

/** Cut where it would be too wide. */
export function fit(content: string, width: number, size: number): string {
  if (widthOf(content, size) <= width) return content
  return `${content.slice(0, Math.max(1, Math.floor(width / (size * 0.6)) - 1))}…`
}
