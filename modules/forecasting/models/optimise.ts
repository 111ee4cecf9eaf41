/**
 * Smallest value of a unimodal function on [low, high]: a coarse grid, then golden section around its best point.
 * @returns the position of the minimum
 */
export function minimiseLine(f: (x: number) => number, low: number, high: number, grid = 10, iterations = 16): number {
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
  const x = (a + b) / 2
  return f(x) <= bestValue ? x : best
}
