/** Values as a person reads them, as Grafana would write them. */

const rounded = (value: number, decimals?: number): string => {
  if (decimals !== undefined)
    return value.toLocaleString('en', { minimumFractionDigits: decimals, maximumFractionDigits: decimals })
  const size = Math.abs(value)
  return String(
    Number(
      size >= 100
        ? value.toFixed(0)
        : size >= 10
          ? value.toFixed(1)
          : size >= 0.01
            ? value.toFixed(2)
            : value.toPrecision(2)
    )
  )
}

type Step = readonly [from: number, unit: string]
const SCALES: Readonly<Record<string, readonly Step[]>> = {
  short: [
    [1e9, ' bn'],
    [1e6, ' m'],
    [1e3, ' k'],
    [0, '']
  ],
  bytes: [
    [2 ** 30, ' GiB'],
    [2 ** 20, ' MiB'],
    [2 ** 10, ' KiB'],
    [0, ' B']
  ],
  s: [
    [86_400, ' d'],
    [3_600, ' h'],
    [60, ' min'],
    [1, ' s'],
    [1e-3, ' ms'],
    [0, ' µs']
  ]
}
const SUFFIX: Readonly<Record<string, string>> = { ops: ' /s', reqps: ' /s' }

export function format(value: number, unit: string, decimals?: number): string {
  if (!Number.isFinite(value)) return '–'
  if (unit === 'percentunit') return `${rounded(value * 100, decimals)} %`
  if (unit === 'none' || SUFFIX[unit] !== undefined) return `${rounded(value, decimals)}${SUFFIX[unit] ?? ''}`
  if (value === 0) return unit === 's' ? '0 s' : unit === 'bytes' ? '0 B' : '0'
  const size = Math.abs(value)
  const [from, name] = (SCALES[unit] ?? SCALES.short ?? []).find(([least]) => size >= least) ?? [0, '']
  const divisor = unit === 's' && from === 0 ? 1e-6 : from === 0 ? 1 : from
  return `${rounded(value / divisor, divisor === 1 && unit !== 's' ? decimals : undefined)}${name}`
}
