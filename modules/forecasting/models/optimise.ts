/**
 * Smallest value of a unimodal function on [low, high]: a coarse grid, golden section around its best point, then two
 * parabolas through three points, which give six digits where the section alone would give three.
 * @returns the position of the minimum
 */
export function minimiseLine(f: (x: number) => number, low: number, high: number, grid = 10, iterations = 8): number {
  let best = low
  let bestValue = Number.POSITIVE_INFINITY
  const step = (high - low) / grid
  for (let i = 0; i <= grid; i++) {
    const x = low + i * step
    const value = f(x)
    if (value < bestValue) {
      bestValue = value
      best = x
    }
  }
  const ratio = 0.6180339887498949
  let a = Math.max(low, best - step)
  let b = Math.min(high, best + step)
  let c = b - ratio * (b - a)
  let d = a + ratio * (b - a)
  let fc = f(c)
  let fd = f(d)
  for (let i = 0; i < iterations; i++) {
    if (fc < fd) {
      b = d
      d = c
      fd = fc
      c = b - ratio * (b - a)
      fc = f(c)
    } else {
      a = c
      c = d
      fc = fd
      d = a + ratio * (b - a)
      fd = f(d)
    }
  }
  let x = fc < fd ? c : d
  let fx = Math.min(fc, fd)
  if (fx > bestValue) {
    x = best
    fx = bestValue
  }
  for (const h of [(b - a) / 4, (b - a) / 64]) {
    const left = f(x - h)
    const right = f(x + h)
    const bend = left - 2 * fx + right
    const vertex = Math.min(high, Math.max(low, bend > 0 ? x + (h / 2) * ((left - right) / bend) : x))
    const value = f(vertex)
    if (value > fx) continue
    x = vertex
    fx = value
  }
  return x
}

/** Bounds per parameter; candidates are moved onto them. */
export interface Box {
  low: readonly number[]
  high: readonly number[]
}

/** Puts the positions of the smallest, the largest and the second largest value into `order`. */
function rank(values: Float64Array, order: Int32Array): void {
  let best = 0
  let worst = 0
  let next = -1
  for (let p = 1; p < values.length; p++) {
    if (values[p]! < values[best]!) best = p
    if (values[p]! > values[worst]!) worst = p
  }
  for (let p = 0; p < values.length; p++) if (p !== worst && (next < 0 || values[p]! > values[next]!)) next = p
  order[0] = best
  order[1] = worst
  order[2] = next
}

/** Points of the first simplex: the start and one step of a quarter of the box along each axis. */
function firstSimplex(start: readonly number[], box: Box): Float64Array[] {
  const points: Float64Array[] = []
  for (let p = 0; p <= start.length; p++) {
    const x = new Float64Array(start)
    if (p > 0) {
      const step = 0.25 * (box.high[p - 1]! - box.low[p - 1]!)
      x[p - 1]! += x[p - 1]! + step > box.high[p - 1]! ? -step : step
    }
    points.push(clip(x, box))
  }
  return points
}

/** Moves `x` onto the box, in place. */
function clip(x: Float64Array, box: Box): Float64Array {
  for (let i = 0; i < x.length; i++) x[i] = Math.min(box.high[i]!, Math.max(box.low[i]!, x[i]!))
  return x
}

/**
 * Downhill simplex inside a box. Source: Nelder & Mead (1965), with the usual coefficients 1, 2, ½, ½.
 * @param f receives a parameter vector it must not keep
 * @returns the best vector seen
 */
export function minimise(
  f: (x: Float64Array) => number,
  start: readonly number[],
  box: Box,
  evaluations = 60,
  tolerance = 1e-3
): Float64Array {
  const d = start.length
  const points = firstSimplex(start, box)
  const values = new Float64Array(d + 1)
  for (let p = 0; p <= d; p++) values[p] = f(points[p]!)
  const order = new Int32Array(3)
  const centre = new Float64Array(d)
  const trial = new Float64Array(d)
  const second = new Float64Array(d)
  const towards = (target: Float64Array, from: Float64Array, factor: number): number => {
    for (let i = 0; i < d; i++) target[i] = centre[i]! + factor * (from[i]! - centre[i]!)
    return f(clip(target, box))
  }
  for (let used = d + 1; used < evaluations; ) {
    rank(values, order)
    const best = order[0]!
    const worst = order[1]!
    const next = order[2]!
    if (values[worst]! - values[best]! <= tolerance * Math.abs(values[best]!) + 1e-300) break
    centre.fill(0)
    for (let p = 0; p <= d; p++) if (p !== worst) for (let i = 0; i < d; i++) centre[i]! += points[p]![i]! / d
    const reflected = towards(trial, points[worst]!, -1)
    used++
    if (reflected < values[best]!) {
      const expanded = towards(second, points[worst]!, -2)
      used++
      points[worst]!.set(expanded < reflected ? second : trial)
      values[worst] = Math.min(expanded, reflected)
    } else if (reflected < values[next]!) {
      points[worst]!.set(trial)
      values[worst] = reflected
    } else {
      const inside = reflected >= values[worst]!
      const contracted = towards(second, inside ? points[worst]! : trial, 0.5)
      used++
      if (contracted < Math.min(reflected, values[worst]!)) {
        points[worst]!.set(second)
        values[worst] = contracted
      } else {
        for (let p = 0; p <= d; p++) {
          if (p === best) continue
          for (let i = 0; i < d; i++) points[p]![i] = (points[p]![i]! + points[best]![i]!) / 2
          values[p] = f(points[p]!)
          used++
        }
      }
    }
  }
  rank(values, order)
  return points[order[0]!]!
}
