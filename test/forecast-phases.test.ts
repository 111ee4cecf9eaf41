import t from 'tap'
import { forecast, LEVELS } from '../modules/forecasting/models/index.js'
import { centralIntervals, learnErrors, spread } from '../modules/forecasting/models/intervals.js'
import { phaseNoise } from '../modules/forecasting/models/phases.js'
import { uniform } from './noise.js'

t.test('hours that stray more than others, and whole demand', async (t) => {
  const noise = uniform(11)
  const hours = Float64Array.from({ length: 24 * 30 }, (_, i) => 200 + (i % 24 < 8 ? 4 : 60) * noise())
  const observed = new Uint8Array(hours.length).fill(1)
  const daily = { periods: [24], frequency: 24 }
  const found = phaseNoise(hours, observed, daily)
  t.ok(found![3]! < 0.3 && found![15]! > 1.2, `nights are quieter: ${found}`)
  const unseen = observed.map((_, i) => (i % 24 === 15 ? 0 : 1))
  t.equal(phaseNoise(hours, unseen, daily)![15], 1, 'an hour never seen is as the mean of all')
  t.equal(phaseNoise(hours.subarray(0, 24 * 8 - 1), observed, daily), undefined, 'eight days are not known')
  t.equal(phaseNoise(hours, observed, { periods: [], frequency: 24 }), undefined, 'no season')
  t.equal(phaseNoise(hours, observed, { periods: [7], frequency: 'day' }), undefined, 'days')
  const alike = phaseNoise(Float64Array.from(hours, noise), observed, daily) ?? new Float64Array(24).fill(1)
  t.ok(
    alike.every((one) => Math.abs(one - 1) < 0.1),
    `chance is no reason: ${alike}`
  )
  const counts = Float64Array.from({ length: 24 * 42 }, (_, i) => {
    const mean = 3 + 2.8 * Math.sin((2 * Math.PI * i) / 24)
    return Math.max(0, Math.round(mean + 2 * Math.sqrt(mean) * noise()))
  })
  const { quantiles, cumulativeQuantiles, intervals, members } = forecast({
    values: counts,
    frequency: 24,
    horizon: 24
  })
  t.ok(members.length > 4, 'the season is followed')
  t.ok([...quantiles, ...cumulativeQuantiles].every((row) => row.every(Number.isInteger)))
  const width = (k: number) => intervals[80].upper[k]! - intervals[80].lower[k]!
  t.ok(width(18) < 0.6 * width(6), `${width(18)} at night, ${width(6)} at noon`)
})

t.test('sums of steps that were never measured err in proportion to their length', async (t) => {
  const y = Float64Array.from({ length: 24 }, (_, i) => 100 + (i % 3 === 0 ? 12 : -7) + (i % 5))
  const plan = { origins: Int32Array.of(18, 19, 20), refits: Int32Array.of(0), horizon: 12 }
  const rolled = new Float64Array(36).fill(100)
  const learnt = learnErrors(rolled, y, new Uint8Array(24).fill(1), plan, true)
  const rows = spread(
    Float64Array.from({ length: 12 }, (_, k) => 100 * (k + 1)),
    learnt,
    0,
    24
  )
  const width = (steps: number) => rows[LEVELS.indexOf(0.9)]![steps - 1]! - rows[LEVELS.indexOf(0.1)]![steps - 1]!
  t.ok(width(6) > 0)
  t.ok(
    Math.abs(width(12) / width(6) - 2) < 1e-9,
    `six steps were seen, of twelve: ${width(12) / width(6)} times as wide`
  )
})

t.test('a quarter of the chance on the floor leaves the whole miss to the upper end', async (t) => {
  const upTo = (idle: number) =>
    centralIntervals(
      Array.from(LEVELS, (level) => Float64Array.of(level <= idle ? 0 : 100 * level)),
      0
    )[80]
  t.same([upTo(0.2).lower[0], upTo(0.2).upper[0]], [0, 90], 'less of it may be an error of the forecast')
  t.same([upTo(0.25).lower[0], upTo(0.25).upper[0]], [0, 80])
})
