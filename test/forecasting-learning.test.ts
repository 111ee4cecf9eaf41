import type { Registry } from 'prom-client'
import t from 'tap'
import { Check } from 'typebox/value'
import { dailyDemand, leadTimeDemand } from '../modules/forecasting/index.js'
import { biasAlarm, findDrift, type ScaledError } from '../modules/forecasting/models/drift.js'
import { describe } from '../modules/forecasting/models/explain.js'
import {
  measuresOf,
  naivePath,
  outcomesOf,
  overriddenMean,
  type Served,
  sumOutcomes
} from '../modules/forecasting/outcomes.js'
import { closureCandidates, dayNumber, estimateAt } from '../modules/forecasting/series.js'
import { AccuracyAnswer, Explanation, Forecast, ItemAccuracy } from '../schemas/forecasting.js'
import { day, ONE_MODEL, onBothDatabases, random, WAIT, weeklyUse } from './ai-harness.js'

/** What became of forecasts: realised accuracy, drift, overrides, feedback. */

t.test('drift', async (t) => {
  const next = random(11)
  const gaussian = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
  /** Mean run length to an alarm of a level, errors shifted by so many standard deviations; growth of errors switched off. */
  const runLength = (shift: number, runs: number) => {
    let sum = 0
    for (let run = 0; run < runs; run++) {
      const errors: ScaledError[] = Array.from({ length: 3000 }, () => ({
        error: gaussian() + shift,
        mae: 50,
        rmse: 1
      }))
      sum += (findDrift(errors)?.at ?? 2999) + 1
    }
    return sum / runs
  }
  // Montgomery, Introduction to Statistical Quality Control, table 9.3: k = 0.5, h = 5, both sides.
  const undisturbed = runLength(0, 250)
  t.ok(Math.abs(undisturbed - 465) < 85, `a false alarm in ${undisturbed.toFixed(0)} periods, 465 in the table`)
  const shifted = runLength(1, 250)
  t.ok(Math.abs(shifted - 10.4) < 0.8, `one standard deviation is found after ${shifted.toFixed(1)}, 10.4 in the table`)
  const of = (errors: number[]) => errors.map((error) => ({ error, mae: 0.8, rmse: 1 }))
  t.equal(findDrift(of([1.5, 1.5, 1.5, 1.5, 1.5, 1.5]))?.kind, 'level-up')
  t.equal(findDrift(of([-2, -2, -2, -2, -2]))?.kind, 'level-down')
  t.same(findDrift(of([3, -3, 3, -3]))?.kind, 'error-growth')
  t.equal(findDrift(of([100, 0.5, -0.5, 0.5, -0.5, 0, 0.3])), undefined, 'one wild day is no drift')
  t.equal(findDrift([{ error: 9, mae: 0, rmse: 0 }]), undefined, 'nothing to compare with')
  const high = Float64Array.from({ length: 28 }, (_, i) => 1 + (i % 3))
  t.equal(biasAlarm(high, 100), 1)
  t.equal(
    biasAlarm(
      high.map((value) => -value),
      100
    ),
    -1
  )
  t.equal(biasAlarm(high, 10_000), 0, 'too small to matter')
  t.equal(biasAlarm(high.subarray(0, 5), 10), 0, 'too few to tell')
  t.equal(
    biasAlarm(
      Float64Array.from({ length: 28 }, (_, i) => (i % 2 === 0 ? 9 : -8)),
      50
    ),
    0,
    'no side'
  )
})

t.test('outcomes', async (t) => {
  const path = (firstDay: string, level: number, n: number): Served => ({
    firstDay,
    model: 'ses',
    mae: 1,
    rmse: 1,
    scale: 2,
    mean: new Array(n).fill(level),
    lower80: new Array(n).fill(level - 1),
    upper80: new Array(n).fill(level + 1),
    lower95: new Array(n).fill(level - 2),
    upper95: new Array(n).fill(level + 2),
    baseline: new Array(n).fill(0)
  })
  const actual = {
    start: dayNumber('2026-01-01'),
    values: Float64Array.of(9, 9, 10, 12, 14, 7),
    missing: new Uint8Array(6)
  }
  actual.missing[5] = 1
  const found = outcomesOf([path('2026-01-03', 10, 5), path('2026-01-05', 11, 5)], actual, 'day', [
    { id: 'a', from: '2026-01-04', to: '2026-01-09', quantityPerDay: 12, factor: null, dataTo: '2026-01-02' },
    { id: 'late', from: '2026-01-05', to: '2026-01-05', quantityPerDay: 99, factor: null, dataTo: '2026-01-05' }
  ])
  t.same(
    found.map(({ period, lead, mean, modelMean, overridden, counts }) => [
      period,
      lead,
      mean,
      modelMean,
      overridden,
      counts
    ]),
    [
      ['2026-01-03', 1, 10, 10, false, true],
      ['2026-01-04', 2, 12, 10, true, true],
      ['2026-01-05', 1, 12, 11, true, true],
      ['2026-01-06', 2, 12, 11, true, false]
    ],
    'a forecast counts until the next begins; what was said in hindsight does not count'
  )
  // By hand: errors 0, 0, −2 of 36 used; the model's own 2 and 3; naive nil: 10, 12, 14.
  t.same(measuresOf(sumOutcomes(found)), {
    periods: 3,
    wape: 5.5556,
    mase: 0.3333,
    bias: -5.5556,
    coverage80: 0.6667,
    coverage95: 1,
    baselineWape: 100,
    baselineMase: 6,
    overrides: { periods: 2, wape: 7.6923, modelWape: 19.2308, valueAdded: 11.5385 }
  })
  const half = { id: 'h', from: '2026-01-08', to: '2026-01-11', quantityPerDay: null, factor: 0.5, dataTo: '' }
  t.equal(overriddenMean(14, '2026-01-05', 7, [half]), 10, 'four days of the week at half')
  t.equal(overriddenMean(14, '2026-01-12', 7, [half]), undefined)
  t.same(naivePath(Float64Array.of(1, 2, 3, 4, 5, 6), Uint8Array.of(0, 0, 0, 0, 1, 0), 3, 5), [4, 2, 6, 4, 2])
  t.same(naivePath(Float64Array.of(1, 2), Uint8Array.of(1, 1), 1, 1), [0])
})

t.test('unknown days', async (t) => {
  const values = Float64Array.from({ length: 56 }, (_, i) => (i % 7 === 2 ? 14 : 7))
  const missing = new Uint8Array(56)
  missing[30] = 1
  missing[23] = 1
  values[30] = 0
  const days = { start: 0, values, missing }
  t.equal(estimateAt(days, 30, 7), 14, 'as on that weekday before and after')
  t.equal(estimateAt({ start: 0, values: Float64Array.of(4, 0, 6), missing: Uint8Array.of(0, 1, 0) }, 1, 7), 5)
  t.equal(estimateAt({ start: 0, values: new Float64Array(2), missing: Uint8Array.of(1, 1) }, 1, 7), null)
  // Open Monday to Saturday, and closed for a week and on one Tuesday.
  const monday = dayNumber('2026-01-05')
  const closed = new Set([monday + 29, ...[42, 43, 44, 45, 46, 47].map((n) => monday + n)])
  const open = new Set(
    Array.from({ length: 84 }, (_, n) => monday + n).filter((each) => (each - monday) % 7 !== 6 && !closed.has(each))
  )
  t.same(
    closureCandidates(open, monday, monday + 83).map((one) => one.day),
    [...closed].sort((a, b) => a - b),
    'Sundays are no closures'
  )
})

onBothDatabases(t, 'closures', async (t, host) => {
  const { ledger, tenant, call, clock } = host
  clock.now = Date.parse(day(70))
  const codes = Array.from({ length: 9 }, (_, i) => `C${i}`)
  await ledger.post(
    tenant,
    codes.flatMap((code, i) => weeklyUse(code, 70, 20, i).filter((one) => one.day !== day(37)))
  )
  await call('POST', '/api/ai/forecast/train', { models: ['naive'] }, WAIT)
  const { points } = (await call('GET', '/api/ai/consumption/C1')).body
  const one = points.find(({ date }: { date: string }) => date === day(37))
  t.match(one, { quantity: 0, censored: false, closed: true })
  t.ok(one.estimatedDemand > 12 && one.estimatedDemand < 22, `${one.estimatedDemand}`)
  t.equal(points.filter(({ closed }: { closed: boolean }) => closed).length, 1)
  t.equal((await call('GET', '/api/ai/forecast/C1')).body.censored, 1, 'learnt as unknown, not as no demand')
  await ledger.post(tenant, [{ itemCode: 'C2', day: day(37), used: 1 }])
  await call('POST', '/api/ai/forecast/train', { models: ['naive'] }, WAIT)
  const again = (await call('GET', '/api/ai/consumption/C1')).body.points
  t.equal(again.find(({ date }: { date: string }) => date === day(37)).closed, false, 'something was used: it was open')
})

onBothDatabases(t, 'exceptional days of weeks', async (t, host) => {
  const { ledger, tenant, call, clock } = host
  clock.now = Date.parse(day(84))
  const use = (itemCode: string, usedOn: (n: number) => number) => [
    { itemCode, day: day(0), received: 1_000_000 },
    ...Array.from({ length: 84 }, (_, n) => ({ itemCode, day: day(n), used: usedOn(n) }))
  ]
  await ledger.post(tenant, [...use('ONE', (n) => (n === 80 ? 500 : 5)), ...use('WEEK', (n) => (n >= 77 ? 100 : 5))])
  const weeks = { models: ['naive'], frequency: 'week' }
  const week = async (code: string) => (await call('GET', `/api/ai/forecast/${code}?frequency=week`)).body
  await call('POST', '/api/ai/forecast/train', weeks, WAIT)
  t.equal((await week('ONE')).points[0].mean, 530)
  const exceptional = { subject: 'actual', verdict: 'exceptional' }
  await call('POST', '/api/ai/feedback', { ...exceptional, itemCode: 'ONE', date: day(80) })
  await call('POST', '/api/ai/feedback', { ...exceptional, itemCode: 'WEEK', date: day(81), frequency: 'week' })
  t.equal((await call('POST', '/api/ai/forecast/train', weeks, WAIT)).body.result.trained, 2)
  t.equal((await week('ONE')).points[0].mean, 35, 'six known days make seven')
  t.match(await week('WEEK'), { censored: 1, points: [{ mean: 35 }] }, 'nothing is known of the week')
  await call('POST', '/api/ai/forecast/train', { models: ['naive'] }, WAIT)
  const daily = (await call('GET', '/api/ai/forecast/WEEK?frequency=day')).body
  t.match(daily, { censored: 7, points: [{ mean: 5 }] }, 'nor of any of its days')
  await call('POST', '/api/ai/forecast/aggregate/train', undefined, WAIT)
  const { backTest } = (await call('GET', '/api/ai/forecast/aggregate?level=total')).body
  t.equal(backTest.bottomUpWape, 0, 'sums are made without them')
  const right = { itemCode: 'WEEK', subject: 'actual', verdict: 'right', date: day(77), frequency: 'week' }
  await call('POST', '/api/ai/feedback', right)
  await call('POST', '/api/ai/forecast/train', weeks, WAIT)
  t.match(await week('WEEK'), { censored: 0, points: [{ mean: 700 }] }, 'what was said last counts')
})

onBothDatabases(t, 'days that are gone', async (t, host) => {
  const { ledger, tenant, call, clock } = host
  const weeks = { models: ['naive'], frequency: 'week' }
  const train = async () => {
    for (const asked of [{ models: ['naive'] }, weeks]) await call('POST', '/api/ai/forecast/train', asked, WAIT)
  }
  const realised = async (frequency: string) => {
    const { to, periods } = (await call('GET', `/api/ai/accuracy?window=28&frequency=${frequency}`)).body.realised
    const { history } = (await call('GET', `/api/ai/forecast/A/accuracy?frequency=${frequency}`)).body
    return [to, periods, history.length]
  }
  const all = weeklyUse('A', 112, 20, 1)
  const late = all.filter((one) => one.day >= day(98))
  await ledger.post(
    tenant,
    all.filter((one) => one.day < day(98))
  )
  clock.now = Date.parse(day(98))
  await train()
  clock.now = Date.parse(day(112))
  await ledger.post(tenant, late)
  await train()
  t.same(await realised('day'), [day(111), 14, 14])
  t.same(await realised('week'), [day(105), 2, 2])
  clock.now = Date.parse(day(105))
  await train()
  clock.now = Date.parse(day(112))
  t.same(await realised('day'), [day(111), 14, 14], 'a clock that was wrong costs nothing')

  await ledger.post(
    tenant,
    late.map((one) => ({ ...one, used: -(one.used ?? 0) }))
  )
  await train()
  t.same(await realised('day'), [null, 0, 0])
  t.same(await realised('week'), [null, 0, 0])
  await train()
  await ledger.post(tenant, late)
  await train()
  t.same(await realised('day'), [day(111), 14, 14], 'measured again when they are back')
  t.same(await realised('week'), [day(105), 2, 2])
})

t.test('what a series is made of', async (t) => {
  const known = new Uint8Array(84)
  const seasonal = Float64Array.from({ length: 84 }, (_, i) => 10 + 0.1 * i + (i % 7 === 5 ? 7 : 0))
  const found = describe(seasonal, known, 7)
  t.ok(Math.abs(found.trend - 0.1) < 1e-9, 'the season is no trend')
  t.ok(Math.abs(found.seasonalStrength - 1) < 1e-9, 'trend and season explain all of it')
  t.equal(found.seasonalFactors?.indexOf(Math.max(...(found.seasonalFactors ?? []))), 5)
  // Syntetos, Boylan & Croston (2005): the mean interval of 0 0 6 0 3 0 0 3 is 8 / 3; sizes 6 3 3 have CV² = 2 / 16.
  const sparse = describe(Float64Array.of(0, 0, 6, 0, 3, 0, 0, 3), new Uint8Array(8), undefined)
  t.match(sparse, { averageInterval: 8 / 3, sizeVariation: 0.125, seasonalFactors: null, seasonalStrength: 0 })
  t.match(describe(new Float64Array(3), new Uint8Array(3).fill(1), undefined), {
    level: 0,
    trend: 0,
    averageInterval: null
  })
})

onBothDatabases(t, 'what was served is measured once days are over', async (t, host) => {
  const { ledger, tenant, call, clock, app } = host
  clock.now = Date.parse(day(150))
  await ledger.post(tenant, [...weeklyUse('A', 150, 20, 1), ...weeklyUse('B', 150, 20, 2)])
  await call('POST', '/api/ai/forecast/train', ONE_MODEL, WAIT)
  const none = await call('GET', '/api/ai/accuracy?window=7')
  t.equal(none.body.realised.periods, 0, 'nothing is over yet')
  t.equal(none.body.realised.wape, null)
  t.equal((await call('GET', '/api/ai/accuracy?window=8')).status, 400)
  const served: Forecast = (await call('GET', '/api/ai/forecast/A')).body

  const half = { factor: 0.5, from: day(155), expiresOn: day(158), reason: 'The kitchen is painted' }
  const key = { 'idempotency-key': 'override-1' }
  const made = await call('POST', '/api/ai/forecast/A/overrides', half, key)
  t.equal(made.status, 201)
  t.match(made.body, { itemCode: 'A', frequency: 'day', factor: 0.5, createdBy: 'tester', cancelledAt: null })
  t.same((await call('POST', '/api/ai/forecast/A/overrides', half, key)).body, made.body, 'once')
  const under: Forecast = (await call('GET', '/api/ai/forecast/A')).body
  t.ok(Check(Forecast, under))
  const at = (forecast: Forecast, n: number) => forecast.points[n - 150] ?? forecast.points[0]!
  t.equal(at(under, 156).modelMean, at(served, 156).mean)
  t.ok(Math.abs(at(under, 156).mean - at(served, 156).mean / 2) < 1e-5)
  t.ok(Math.abs(at(under, 156).upper95 - at(served, 156).upper95 / 2) < 1e-5, 'intervals in proportion')
  t.same(at(under, 159), at(served, 159), 'not after it expires')
  const sum = under.points.reduce((total, { mean }) => total + mean, 0)
  t.ok(
    Math.abs(((await dailyDemand(tenant, ['A'])).get('A') ?? 0) - sum / 28) < 1e-6,
    'what stock is planned by follows'
  )
  const median = (await leadTimeDemand(tenant, ['A'])).get('A')
  t.ok(median?.quantiles.every((row) => row.every((value, k) => k === 0 || value >= row[k - 1]!)))

  const other = { quantityPerDay: 3, expiresOn: day(170), reason: 'x' }
  const second = await call('POST', '/api/ai/forecast/A/overrides', other)
  t.equal(at((await call('GET', '/api/ai/forecast/A')).body, 156).mean, 3, 'the last one made is in force')
  const url = `/api/ai/forecast/A/overrides/${second.body.id}`
  const one = await call('GET', url)
  t.equal((await call('DELETE', url, undefined, { 'if-match': '"other"' })).status, 412)
  t.equal((await call('DELETE', url, undefined, { 'if-match': String(one.headers.etag) })).status, 200)
  t.equal((await call('DELETE', url)).body.code, 'FORECAST_OVERRIDE_OVER')
  t.same((await call('GET', '/api/ai/forecast/A')).body, under, 'the one before serves again')
  t.equal((await call('GET', '/api/ai/forecast/A/overrides?limit=1')).body.data[0].id, second.body.id)
  const most = await call('POST', '/api/ai/forecast/A/overrides', { ...other, quantityPerDay: 1e9 })
  const { points } = (await call('GET', '/api/ai/forecast/A')).body
  t.equal(points[0].mean, 1e9)
  const sums = (await leadTimeDemand(tenant, ['A'])).get('A')?.quantiles ?? []
  const figures = [...points.flatMap(({ date: _, ...rest }: { date: string }) => Object.values(rest)), ...sums.flat()]
  const within = (value: number) => Math.abs(value) <= 1e9 && Number(value.toFixed(6)) === value
  t.same(
    figures.filter((value) => !within(value)),
    [],
    'numbers of the contract, however much a person says'
  )
  t.equal((await call('DELETE', `/api/ai/forecast/A/overrides/${most.body.id}`)).status, 200)
  const refused = async (body: object, code: string) =>
    t.equal((await call('POST', '/api/ai/forecast/A/overrides', body)).body.code, code)
  await refused({ ...half, factor: 1000.5 }, 'REQUEST_INVALID')
  await refused({ ...half, quantityPerDay: 3 }, 'FORECAST_OVERRIDE_FIGURE')
  for (const quantityPerDay of [0.12345678901, 1e-300]) await refused({ ...other, quantityPerDay }, 'REQUEST_INVALID')
  await refused({ ...half, expiresOn: day(154) }, 'FORECAST_RANGE_INVALID')
  await refused({ ...half, from: day(140), expiresOn: day(149) }, 'FORECAST_RANGE_INVALID')
  await refused({ ...half, reason: ' ' }, 'REQUEST_INVALID')
  t.equal((await call('GET', `${url.slice(0, -4)}ffff`)).body.code, 'FORECAST_OVERRIDE_NOT_FOUND')
  t.equal((await call('POST', '/api/ai/forecast/NOPE/overrides', half)).body.code, 'FORECAST_ITEM_NOT_FOUND')

  // Two weeks later: A went on, though little on the days of the override; B doubled.
  clock.now = Date.parse(day(164))
  const use = (itemCode: string, seed: number) =>
    weeklyUse(itemCode, 164, 20, seed).filter((one) => one.day >= day(150))
  await ledger.post(tenant, [
    ...use('A', 1).map((one) => ({
      ...one,
      used: (one.used ?? 0) * (day(155) <= one.day && one.day <= day(158) ? 0.5 : 1)
    })),
    ...use('B', 2).map((one) => ({ ...one, used: (one.used ?? 0) * 2 }))
  ])
  const before: Forecast = (await call('GET', '/api/ai/forecast/A')).body
  const run = await call('POST', '/api/ai/forecast/train', ONE_MODEL, WAIT)
  t.equal(run.body.status, 'succeeded')
  const item: ItemAccuracy = (await call('GET', '/api/ai/forecast/A/accuracy')).body
  t.ok(Check(ItemAccuracy, item))
  t.equal(item.history.length, 14)
  const actual = new Map(
    ledger.entries.filter(({ itemCode }) => itemCode === 'A').map((one) => [one.day, one.used ?? 0])
  )
  let errors = 0
  let total = 0
  for (let n = 157; n < 164; n++) {
    errors += Math.abs(at(before, n).mean - (actual.get(day(n)) ?? 0))
    total += actual.get(day(n)) ?? 0
  }
  const week = item.windows.find(({ windowDays }) => windowDays === 7)
  t.ok(week?.wape != null && Math.abs(week.wape - (100 * errors) / total) < 1e-3, `WAPE ${week?.wape} as by hand`)
  t.equal(week?.from, day(157))
  const fortnight = item.windows.find(({ windowDays }) => windowDays === 28)
  t.equal(fortnight?.overrides.periods, 4)
  t.ok((fortnight?.overrides.valueAdded ?? 0) > 20, `the override was right: ${fortnight?.overrides.valueAdded} points`)
  t.ok((fortnight?.wape ?? 99) < (fortnight?.baselineWape ?? 0), 'better than seasonal naive')

  const all = (await call('GET', '/api/ai/accuracy?window=28')).body
  t.ok(Check(AccuracyAnswer, all))
  t.equal(all.realised.periods, 28, 'two items, fourteen days')
  t.ok(all.realised.bias < -10, 'B was forecast too low')
  t.equal(
    all.realised.byModel.reduce((sum: number, row: { periods: number }) => sum + row.periods, 0),
    28
  )
  const history = (await call('GET', '/api/ai/accuracy/history')).body
  t.equal(
    history.data.reduce((sum: number, row: { periods: number }) => sum + row.periods, 0),
    28
  )

  const drift = (await call('GET', '/api/ai/drift', undefined, { 'accept-language': 'fr' })).body
  t.match(drift.data, [{ itemCode: 'B', kind: 'level-up', reason: /consommation dépasse/ }])
  t.ok(drift.data[0].detectedOn >= day(151) && drift.data[0].detectedOn <= day(156), drift.data[0].detectedOn)
  t.ok(drift.data[0].retrainedAt, 'it was trained again')
  t.same((await call('GET', '/api/ai/drift?waiting=true')).body.data, [])

  await t.test('what is recorded late counts; a day said to be exceptional does not', async (t) => {
    await ledger.post(tenant, [{ itemCode: 'A', day: day(160), used: 50 }])
    await call('POST', '/api/ai/forecast/train', ONE_MODEL, WAIT)
    const late: ItemAccuracy = (await call('GET', '/api/ai/forecast/A/accuracy')).body
    const corrected = late.history.find(({ date }) => date === day(160))
    t.equal(corrected?.actual, (actual.get(day(160)) ?? 0) + 50)
    t.equal(corrected?.mean, at(before, 160).mean, 'the forecast stays as it was served')
    const party = { itemCode: 'A', date: day(160), subject: 'actual', verdict: 'exceptional', comment: 'A wedding' }
    const said = await call('POST', '/api/ai/feedback', party, { 'idempotency-key': 'feedback-1' })
    t.equal(said.status, 201)
    t.match(said.body, { itemCode: 'A', date: day(160), verdict: 'exceptional', createdBy: 'tester' })
    t.same((await call('POST', '/api/ai/feedback', party, { 'idempotency-key': 'feedback-1' })).body, said.body)
    t.same((await call('GET', '/api/ai/feedback?itemCode=A')).body.data, [said.body])
    const wrong = await call('POST', '/api/ai/feedback', { ...party, subject: 'forecast' })
    t.equal(wrong.body.code, 'FORECAST_FEEDBACK_RULE')
    t.equal((await call('POST', '/api/ai/feedback', { ...party, itemCode: 'NOPE' })).status, 404)
    const again = await call('POST', '/api/ai/forecast/train', ONE_MODEL, WAIT)
    t.equal(again.body.result.trained, 1, 'it is learnt without that day')
    const left: ItemAccuracy = (await call('GET', '/api/ai/forecast/A/accuracy')).body
    t.equal(left.history.find(({ date }) => date === day(160))?.counts, false)
    t.equal(left.windows.find(({ windowDays }) => windowDays === 7)?.periods, 6)
    t.equal((await call('GET', '/api/ai/accuracy?window=28')).body.realised.periods, 27)

    const counts = async () => {
      await call('POST', '/api/ai/forecast/train', ONE_MODEL, WAIT)
      const { history }: ItemAccuracy = (await call('GET', '/api/ai/forecast/A/accuracy')).body
      return history.find(({ date }) => date === day(160))?.counts
    }
    await call('POST', '/api/ai/feedback', { ...party, verdict: 'right', comment: 'Weddings are usual' })
    t.equal(await counts(), true, 'what was said last counts')
    await call('POST', '/api/ai/feedback', party)
    t.equal(await counts(), false)
  })

  await t.test('why a forecast is what it is', async (t) => {
    const english = await call('GET', '/api/ai/forecast/A/explanation')
    t.ok(Check(Explanation, english.body))
    const { body } = english
    const factors: number[] = body.seasonality.weekdays.map(({ factor }: { factor: number }) => factor)
    // The generator uses level × (1 + weekday / 6) with weekday −3 … 3 from Monday on.
    for (const [i, factor] of factors.entries())
      t.ok(Math.abs(factor - (1 + (i - 3) / 6)) < 0.12, `weekday ${i + 1}: ${factor}`)
    t.ok(body.seasonality.strength > 0.7)
    t.match(body.sentence, /^About [\d.]+ a day, .*with a strong pattern, most on Sunday and least on Monday; /)
    t.match(body.change, { sinceVersion: body.version - 1, newPeriods: 0 })
    t.same(body.members, (await call('GET', '/api/ai/forecast/A')).body.members)
    const french = await call('GET', '/api/ai/forecast/A/explanation', undefined, { 'accept-language': 'fr-CA, en' })
    t.match(french.body.sentence, /^Environ .* par jour, .*le plus le dimanche et le moins le lundi\u202f; /)
    t.not(french.headers.etag, english.headers.etag)
    t.equal((await call('GET', '/api/ai/forecast/NOPE/explanation')).status, 404)
  })

  const text = await app.getDecorator<Registry>('registry').metrics()
  t.match(text, /forecast_drift_total\{kind="level-up"\} 1/)
  t.match(text, /forecast_realised_ratio\{measure="wape",window_days="28"\} 0\.\d+/)
  t.match(text, /forecast_drift_waiting 0/)
  t.match(text, /forecast_overrides 0/)
})
