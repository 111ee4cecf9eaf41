import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { initSync, Prophet } from '@bsull/augurs/prophet'
import { optimizer } from '@bsull/augurs-prophet-wasmstan'
import { varying } from './factors.js'
import type { Fit, FitContext } from './types.js'

const DAY_SECONDS = 86_400
let ready = false

/** The package fetches its module by URL, which Node refuses for files: the bytes are handed over instead. */
function initialise(): void {
  if (ready) return
  const path = createRequire(import.meta.url).resolve('@bsull/augurs/prophet')
  initSync({ module: readFileSync(path.replace(/\.js$/, '_bg.wasm')) })
  ready = true
}

/** Epoch seconds of period `index` counted from the first training value. */
function timestamp(index: number, { frequency, startDate, offset }: FitContext): number {
  const first = Date.parse(`${startDate ?? '2020-01-06'}T00:00:00Z`) / 1000
  const position = index + offset
  if (frequency === 'day') return first + position * DAY_SECONDS
  if (frequency === 'week') return first + position * 7 * DAY_SECONDS
  if (frequency === 'month') {
    const date = new Date(first * 1000)
    return Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + position, 1) / 1000
  }
  return first + position * (frequency === 24 || frequency === 168 ? 3600 : DAY_SECONDS)
}

/** Fits on the prefix and forecasts from its end; false where the library fails. */
function fitAndPredict(prefix: Float64Array, context: FitContext, out: Float64Array): boolean {
  let model: Prophet | undefined
  try {
    model = new Prophet({ optimizer, uncertaintySamples: 0 })
    const ds = Array.from(prefix, (_, i) => timestamp(i, context))
    const { length } = prefix
    // Its holidays are regressors of the same prior scale; days and figures known beforehand go in alike.
    const columns = (context.factors ? varying(context.factors, 0, length) : []).map(
      (values, j) => [`factor${j}`, values] as const
    )
    for (const [name] of columns) model.addRegressor(name, { mode: 'multiplicative', priorScale: 10 })
    const known = (from: number, to: number) =>
      columns.length === 0
        ? {}
        : { x: new Map(columns.map(([name, values]) => [name, Array.from(values.subarray(from, to))])) }
    model.fit({ ds, y: Array.from(prefix), ...known(0, length) })
    const future = Array.from(out, (_, k) => timestamp(length + k, context))
    const { point } = model.predict({ ds: future, ...known(length, length + out.length) }).yhat
    if (!point.every(Number.isFinite)) return false
    out.set(point)
    return true
  } catch {
    return false
  } finally {
    model?.free()
  }
}

/** Prophet with its own defaults: piecewise linear trend, Fourier seasons by the calendar. Estimation by Stan in
 * WebAssembly. Source: Taylor & Letham (2018), The American Statistician 72. */
export const fitProphet: Fit = (y, context) => {
  // the library traps on two points and on a constant series
  if (y.length < 4 || y.every((value) => value === y[0])) return undefined
  initialise()
  return {
    forecast(prefix, out) {
      const constant = prefix.every((value) => value === prefix[0])
      if (constant || prefix.length < 3 || !fitAndPredict(prefix, context, out)) {
        out.fill(prefix[prefix.length - 1] ?? 0)
      }
    }
  }
}
