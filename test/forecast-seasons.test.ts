import t from 'tap'
import { fitMedian } from '../modules/forecasting/models/baseline.js'
import { forecast } from '../modules/forecasting/models/index.js'
import { prepare } from '../modules/forecasting/models/prepare.js'
import { isSeasonal } from '../modules/forecasting/models/series.js'
import { uniform } from './noise.js'

t.test('the day and the week of hourly data', async (t) => {
  const noise = uniform(3)
  let level = 0
  const hours = Float64Array.from({ length: 24 * 42 + 48 }, (_, i) => {
    level = 0.9 * level + 8 * noise()
    const weekend = Math.floor(i / 24) % 7 >= 5 ? 0.5 : 1
    return 100 + level + weekend * 40 * Math.sin((2 * Math.PI * (i % 24)) / 24)
  })
  const known = hours.slice(0, -48)
  const { mean, seasonalPeriods, servesBaseline } = forecast({ values: known, frequency: 24, horizon: 48 })
  t.same(seasonalPeriods, [24, 168])
  const error = (ahead: (k: number) => number) =>
    mean.reduce((sum, _, k) => sum + Math.abs(ahead(k) - hours[known.length + k]!), 0)
  t.ok(error((k) => mean[k]!) < 0.85 * error((k) => hours[known.length + k - 168]!), 'clearly better than last week')
  t.notOk(servesBaseline)
})

t.test('the week does not hide the year', async (t) => {
  const noise = uniform(4)
  const year = Float64Array.from({ length: 365 }, () => 60 * noise())
  const days = Float64Array.from({ length: 3 * 365 }, (_, i) => {
    return (i % 7 >= 5 ? 30 : 100) + year[i % 365]! + 10 * noise()
  })
  t.notOk(isSeasonal(days, 365), 'a year ago was another day of the week')
  const seasonsOf = (values: Float64Array) => {
    const input = { values, frequency: 'day', horizon: 28 } as const
    return prepare(input, [7, 365]).context.periods
  }
  t.same(seasonsOf(days), [7, 365])
  t.same(seasonsOf(Float64Array.from({ length: 3 * 365 }, (_, i) => (i % 7 >= 5 ? 30 : 100) + 10 * noise())), [7])
  const hours = Float64Array.from(
    { length: 24 * 40 },
    (_, i) => 100 + 40 * Math.sin((2 * Math.PI * i) / 24) + 5 * noise()
  )
  t.ok(isSeasonal(hours, 168), 'seven days are one season of the day after another')
  t.same(prepare({ values: hours, frequency: 24, horizon: 24 }, [24, 168]).context.periods, [24])
})

t.test('the median is of weeks where three years are not known', async (t) => {
  const noise = uniform(5)
  const days = Float64Array.from(
    { length: 3 * 365 },
    (_, i) => 200 + 120 * Math.sin((2 * Math.PI * i) / 365) + 9 * noise() + (i % 7)
  )
  const context = { periods: [7, 365], candidates: [7, 365], horizon: 14, offset: 0, frequency: 'day' as const }
  const out = new Float64Array(14)
  fitMedian(days.subarray(0, 800), context)!.forecast(days.subarray(0, 800), out)
  t.same([...out.subarray(7)], [...out.subarray(0, 7)], 'a week, again and again')
  t.equal(fitMedian(days.subarray(0, 20), context), undefined, 'nor are three weeks')
})

t.test('two large demands a week apart are no season', async (t) => {
  const seldom = new Float64Array(250)
  for (let i = 0; i < 40; i += 5) seldom[i] = 1 + (i % 3)
  seldom[236] = 2
  seldom[237] = 6
  seldom[244] = 24
  t.ok(isSeasonal(seldom, 7), 'though their product is')
  const rare = forecast({ values: seldom, frequency: 'day', horizon: 28 })
  t.same(rare.seasonalPeriods, [])
  t.ok(Math.max(...rare.mean) < 3, `24 in one day are not forecast again: ${rare.mean.slice(0, 7)}`)
  const fridays = Float64Array.from({ length: 250 }, (_, i) => (i % 7 === 4 ? 1 + (i % 3) : 0))
  t.same(prepare({ values: fridays, frequency: 'day', horizon: 28 }, [7, 365]).context.periods, [7])
})

t.test('half hours are seen for eight weeks', async (t) => {
  const seen = (length: number, frequency: number, candidates: number[]) =>
    prepare({ values: Float64Array.from({ length }, (_, i) => 1 + (i % 5)), frequency, horizon: 48 }, candidates).y
      .length
  t.equal(seen(9000, 48, [48, 336]), 8 * 336 + 48)
  t.equal(seen(9000, 24, [24, 168]), 8 * 168 + 48)
  t.equal(seen(90_000, 1440, [1440]), 6000)
  t.equal(seen(9000, 12, [12]), 300)
})
