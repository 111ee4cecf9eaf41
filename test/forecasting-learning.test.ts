/** What became of forecasts: realised accuracy, drift, overrides, feedback. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Registry } from 'prom-client'
import t from 'tap'
import { Check } from 'typebox/value'
import { createDerivation } from '../modules/forecasting/derive.js'
import { dailyDemand, leadTimeDemand } from '../modules/forecasting/index.js'
import { biasAlarm, findDrift, type ScaledError } from '../modules/forecasting/models/drift.js'
import { describe } from '../modules/forecasting/models/explain.js'
import { bottomUp, fitToTotal, type Hierarchy, minTrace, shrinkage } from '../modules/forecasting/models/hierarchy.js'
import { createNightly, NIGHTLY_JOB, SUMS_RUN } from '../modules/forecasting/nightly.js'
import {
  measuresOf,
  naivePath,
  outcomesOf,
  overriddenMean,
  type Served,
  sumOutcomes
} from '../modules/forecasting/outcomes.js'
import { closureCandidates, dayNumber, estimateAt } from '../modules/forecasting/series.js'
import { dailyUseByLocation, items } from '../modules/inventory/index.js'
import type { Tenants } from '../plugins/core.js'
import type { JobService } from '../plugins/jobs/index.js'
import { AccuracyAnswer, Explanation, Forecast, ItemAccuracy } from '../schemas/forecasting.js'
import { Aggregate, ItemLocations } from '../schemas/hierarchy.js'
import { day, type Entry, type Host, onBothDatabases, random, weeklyUse } from './ai-harness.js'
import { buildApp, client, eachDialect } from './helper.js'
import { serviceEnvironment, startService } from './service-process.js'

const WAIT = { prefer: 'wait=60' }
/** Quick to train; which models serve is not what these tests are about. */
const ONE_MODEL = { models: ['stl-damped'] }

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
  const refused = async (body: object, code: string) =>
    t.equal((await call('POST', '/api/ai/forecast/A/overrides', body)).body.code, code)
  await refused({ ...half, quantityPerDay: 3 }, 'FORECAST_OVERRIDE_FIGURE')
  await refused({ ...half, expiresOn: day(154) }, 'FORECAST_RANGE_INVALID')
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
    t.match(french.body.sentence, /^Environ .* par jour, .*le plus le dimanche et le moins le lundi; /)
    t.not(french.headers.etag, english.headers.etag)
    t.equal((await call('GET', '/api/ai/forecast/NOPE/explanation')).status, 404)
  })

  const text = await app.getDecorator<Registry>('registry').metrics()
  t.match(text, /forecast_drift_total\{kind="level-up"\} 1/)
  t.match(text, /forecast_realised_ratio\{measure="wape",window_days="28"\} 0\.\d+/)
  t.match(text, /forecast_drift_waiting 0/)
  t.match(text, /forecast_overrides 0/)
})

onBothDatabases(t, 'the nightly training', async (t, host) => {
  const { ledger, tenant, call, clock, app } = host
  const jobs = app.getDecorator<JobService>('jobs')
  await ledger.post(tenant, [...weeklyUse('A', 60, 9, 1), ...weeklyUse('B', 60, 4, 2), ...weeklyUse('C', 60, 2, 3)])
  await call('POST', '/api/ai/forecast/train', { itemCodes: ['A'], models: ['ses'], horizonDays: 10 }, WAIT)
  await call('POST', '/api/ai/forecast/train', { itemCodes: ['A'], models: ['naive'], frequency: 'week' }, WAIT)
  const derivation = createDerivation(ledger, () => clock.now)
  const node = () =>
    createNightly({
      jobs,
      derivation,
      aggregate: async () => 0,
      hour: 2,
      now: () => clock.now,
      train: async () => {
        throw new Error('the job is the service’s')
      }
    })
  const started = async () =>
    (
      await tenant.db.withTables<{ jobs: { id: string; kind: string } }>().selectFrom('jobs').selectAll().execute()
    ).filter(({ kind }) => kind === NIGHTLY_JOB)
  clock.now = Date.parse(`${day(61)}T01:59:00Z`)
  await node().tick(tenant)
  t.equal((await started()).length, 0, 'not due yet')
  clock.now = Date.parse(`${day(61)}T02:01:00Z`)
  await Promise.all([node().tick(tenant), node().tick(tenant), node().tick(tenant)])
  await node().tick(tenant)
  const [first, ...others] = await started()
  t.same(others, [], 'one node starts it, once a day')
  const end = (id = '') => jobs.wait(tenant, id, 60)
  const { result } = await end(first?.id)
  t.match(
    result,
    { trained: 2, skipped: 2, failed: [] },
    'what was asked for is kept, the rest is trained by the defaults'
  )
  t.equal((await call('GET', '/api/ai/forecast/A')).body.model, 'ses')
  t.equal((await call('GET', '/api/ai/forecast/A')).body.points.length, 10)
  clock.now += 24 * 3_600_000
  await ledger.post(tenant, [{ itemCode: 'C', day: day(61), used: 2 }])
  await node().tick(tenant)
  const second = await end((await started()).find(({ id }) => id !== first?.id)?.id)
  t.match(second, { status: 'succeeded', result: { trained: 3, failed: [] }, progress: { done: 4, total: 4 } })
  t.equal((await call('GET', '/api/ai/forecast/A')).body.points.length, 10, 'as it was asked for')
})

t.test('each tenant has a night of its own', async (t) => {
  const app = await buildApp(t, { dialect: 'sqlite', tenancy: 'multi' })
  const tenants = app.getDecorator<Tenants>('tenants')
  const jobs = app.getDecorator<JobService>('jobs')
  const nightly = createNightly({
    jobs,
    derivation: createDerivation({ items: async () => [], dailyFlow: async () => [] }, Date.now),
    aggregate: async () => 0,
    hour: 0,
    now: Date.now,
    train: async () => {
      throw new Error('the job is the service’s')
    }
  })
  for (const name of ['one', 'two']) await tenants.create(name)
  for (let round = 0; round < 2; round++) for (const tenant of await tenants.all()) await nightly.tick(tenant)
  for (const tenant of await tenants.all()) {
    const [[, job] = [], ...others] = await jobs.list(tenant, { kind: NIGHTLY_JOB })
    t.same(others, [], `${tenant.id}: one`)
    t.match(await jobs.wait(tenant, job?.id ?? '', 30), { status: 'succeeded', result: { trained: 0, failed: [] } })
  }
})

t.test('training goes on where a killed process stopped', async (t) => {
  const environment = await serviceEnvironment(t)
  let service = await startService(t, environment)
  const call = async (method: string, path: string, body?: string, headers: Record<string, string> = {}) => {
    const answer = await fetch(`${service.url}${path}`, {
      method,
      headers: { authorization: `Bearer ${service.token}`, ...headers },
      ...(body === undefined ? {} : { body })
    })
    const text = await answer.text()
    return JSON.parse(text)
  }
  const csv = { 'content-type': 'text/csv', prefer: 'wait=60' }
  const codes = Array.from({ length: 72 }, (_, i) => `K${i}`)
  await call(
    'POST',
    '/api/import/items',
    `itemCode,name,unit\n${codes.map((code) => `${code},${code},each`).join('\n')}`,
    csv
  )
  const from = Date.now() - 80 * 86_400_000
  const rows = codes.flatMap((code, i) => [
    `${code},receipt,100000,${new Date(from).toISOString()}`,
    ...Array.from({ length: 70 }, (_, n) => {
      const at = new Date(from + (n + 1) * 86_400_000).toISOString()
      return `${code},issue,${1 + ((n * 7 + i) % 13)},${at}`
    })
  ])
  const moved = await call(
    'POST',
    '/api/import/movements',
    `itemCode,type,quantity,occurredAt\n${rows.join('\n')}`,
    csv
  )
  t.equal(moved.status, 'succeeded')
  const json = { 'content-type': 'application/json' }
  const { id } = await call('POST', '/api/ai/forecast/train', '{}', json)
  let done = 0
  while (done < 20) {
    const job = await call('GET', `/api/jobs/${id}`)
    t.not(job.status, 'succeeded', 'still running')
    if (job.status === 'succeeded') return
    done = job.progress.done
    await sleep(5)
  }
  await service.end('SIGKILL')
  service = await startService(t, environment)
  const stored = (await call('GET', '/api/ai/accuracy')).series
  t.ok(stored >= done && stored < codes.length, `${stored} of ${codes.length} were stored when it died`)
  let job = await call('GET', `/api/jobs/${id}`)
  // The new process sees that the old one is dead and does not wait for its heartbeat to be missed.
  for (const deadline = Date.now() + 20_000; job.finishedAt === null && Date.now() < deadline; ) {
    await sleep(50)
    job = await call('GET', `/api/jobs/${id}`)
  }
  t.match(job, { status: 'succeeded', result: { failed: [] } })
  t.equal(job.result.trained + job.result.skipped, codes.length)
  t.ok(job.result.skipped >= done, `${job.result.skipped} were not trained twice`)
  t.equal(await service.end('SIGTERM'), 0)
})

t.test('reconciliation', async (t) => {
  const two: Hierarchy = { members: [[0, 1]], bottoms: 2 }
  const close = (found: Iterable<number>, expected: number[], message: string) =>
    t.ok(
      [...found].every((value, i) => Math.abs(value - (expected[i] ?? Number.NaN)) < 1e-6),
      `${message}: ${[...found].join(', ')}`
    )
  // Ordinary least squares shares the gap of 10 equally (Hyndman et al. 2011); weighted, by variances.
  const equal = { lambda: 1, variances: Float64Array.of(1, 1, 1) }
  close(
    minTrace(two, Float64Array.of(100, 40, 50), [Float64Array.of(1, 1, 1)], equal),
    [290 / 3, 130 / 3, 160 / 3],
    'OLS'
  )
  const weighted = { lambda: 1, variances: Float64Array.of(2, 1, 2) }
  close(minTrace(two, Float64Array.of(100, 40, 50), [Float64Array.of(1, 1, 1)], weighted), [96, 42, 54], 'WLS')

  // Wickramasuriya et al. (2019): S (S' W^-1 S)^-1 S' W^-1 y, written out for three series below two sums.
  const next = random(5)
  const hierarchy: Hierarchy = {
    members: [
      [0, 1, 2],
      [0, 1]
    ],
    bottoms: 3
  }
  const errors = Array.from({ length: 12 }, () => {
    const common = next() - 0.5
    return Float64Array.from({ length: 5 }, (_, i) => (i + 1) * (next() - 0.5) + common)
  })
  const { lambda, variances } = shrinkage(errors)
  t.ok(lambda > 0 && lambda < 1, `lambda ${lambda}`)
  t.ok(Math.abs(lambda - lambdaOfHts(errors)) < 1e-9, 'as the R package hts computes it, pair by pair')
  const covariance = Array.from({ length: 5 }, (_, i) =>
    Array.from({ length: 5 }, (_, j) => {
      const product = errors.reduce((sum, row) => sum + row[i]! * row[j]!, 0) / errors.length
      return i === j ? variances[i]! : (1 - lambda) * product
    })
  )
  const S = [
    [1, 1, 1],
    [1, 1, 0],
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1]
  ]
  const base = Float64Array.of(60, 33, 12, 19, 31)
  const SW = multiply(transpose(S), invert(covariance))
  const G = multiply(invert(multiply(SW, S)), SW)
  const expected = multiply(
    multiply(S, G),
    [...base].map((value) => [value])
  ).map(([value]) => value ?? Number.NaN)
  close(minTrace(hierarchy, base, errors), expected, 'MinT')
  close(bottomUp(hierarchy, Float64Array.of(9, 9, 1, -2, 3)), [4, 1, 1, 0, 3], 'bottom-up, never negative')
  close(fitToTotal(Float64Array.of(10, 20), Float64Array.of(1, 3), 34), [11, 23], 'parts of a total')
  close(fitToTotal(Float64Array.of(1, 20), Float64Array.of(3, 1), 5), [0, 5], 'none below nil')
})

const transpose = (a: number[][]) => (a[0] ?? []).map((_, j) => a.map((row) => row[j]!))
const multiply = (a: number[][], b: number[][]) =>
  a.map((row) => transpose(b).map((column) => row.reduce((sum, value, k) => sum + value * column[k]!, 0)))
/** Gauss and Jordan, without pivoting: enough for positive definite matrices. */
function invert(a: number[][]): number[][] {
  const n = a.length
  const rows = a.map((row, i) => [...row, ...row.map((_, j) => (i === j ? 1 : 0))])
  for (let i = 0; i < n; i++) {
    const pivot = rows[i]![i]!
    rows[i] = rows[i]!.map((value) => value / pivot)
    for (let k = 0; k < n; k++) {
      const factor = rows[k]![i]!
      if (k !== i) rows[k] = rows[k]!.map((value, j) => value - factor * rows[i]![j]!)
    }
  }
  return rows.map((row) => row.slice(n))
}
/** `shrink.estim` of the R package hts, line by line: sum(v) / sum(d) over all pairs. */
function lambdaOfHts(errors: Float64Array[]): number {
  const n = errors.length
  const p = errors[0]?.length ?? 0
  const scale = Array.from({ length: p }, (_, i) => Math.sqrt(errors.reduce((sum, row) => sum + row[i]! ** 2, 0) / n))
  const x = errors.map((row) => [...row].map((value, i) => value / scale[i]!))
  const sum = (of: (row: number[]) => number) => x.reduce((all, row) => all + of(row), 0)
  let v = 0
  let d = 0
  for (let i = 0; i < p; i++) {
    for (let j = 0; j < p; j++) {
      if (i === j) continue
      const cross = sum((row) => row[i]! * row[j]!)
      v += (sum((row) => row[i]! ** 2 * row[j]! ** 2) - cross ** 2 / n) / (n * (n - 1))
      d += (cross / n) ** 2
    }
  }
  return Math.max(0, Math.min(1, v / d))
}

/** Splits the use of an item at random between it and another: each is a guess, their sum is not. */
function substitutes(entries: Entry[], other: string): Entry[] {
  const next = random(17)
  let share = 0.5
  return entries.flatMap(({ used, ...entry }) => {
    if (used === undefined) return [entry, { ...entry, itemCode: other }]
    share = Math.min(0.9, Math.max(0.1, share + (next() - 0.5) * 0.8))
    const own = Math.round(used * share)
    return [
      { ...entry, used: own },
      { ...entry, itemCode: other, used: used - own }
    ]
  })
}

/** What the service asks itself for every half minute. */
async function requested({ app, tenant, ledger, clock }: Host): Promise<void> {
  const nightly = createNightly({
    jobs: app.getDecorator<JobService>('jobs'),
    derivation: createDerivation(ledger, () => clock.now),
    aggregate: async () => 0,
    hour: 2,
    now: () => clock.now,
    train: async () => {
      throw new Error('the job is the service’s')
    }
  })
  await nightly.startRequested(tenant)
}

onBothDatabases(t, 'forecasts of sums', async (t, host) => {
  const { ledger, call, clock } = host
  clock.now = Date.parse(day(120))
  const use = (code: string, level: number, seed: number, location: string) =>
    weeklyUse(code, 120, level, seed).map((one) => ({ ...one, location }))
  await ledger.post(host.tenant, [
    ...use('Dry:flour', 30, 1, 'north'),
    ...use('Dry:rice', 12, 2, 'south'),
    ...substitutes(use('Fresh:milk', 20, 3, 'north'), 'Fresh:oat'),
    ...use('loose', 4, 4, 'south'),
    ...use('Dry:flour', 6, 5, 'south')
  ])
  t.equal((await call('GET', '/api/ai/forecast/aggregate?level=total')).body.code, 'FORECAST_AGGREGATE_NOT_FOUND')
  await call('POST', '/api/ai/forecast/train', ONE_MODEL, WAIT)
  const job = await call('POST', '/api/ai/forecast/aggregate/train', undefined, WAIT)
  t.match(job.body, { status: 'succeeded', result: { aggregates: 12 } }, 'by day and by week')
  const get = async (query: string): Promise<Aggregate> => {
    const { body } = await call('GET', `/api/ai/forecast/aggregate?${query}`)
    t.ok(Check(Aggregate, body), query)
    return body
  }
  const total = await get('level=total')
  const categories = await Promise.all(['Dry', 'Fresh', ''].map((key) => get(`level=category&key=${key}`)))
  const locations = await Promise.all(['north', 'south'].map((key) => get(`level=location&key=${key}`)))
  t.equal(total.points[0]?.date, day(120))
  t.equal(total.points.length, 28)
  t.ok(total.backTest.mintWape !== null && total.backTest.bottomUpWape !== null, 'both were judged')
  t.equal(total.method, (total.backTest.mintWape ?? 0) < (total.backTest.bottomUpWape ?? 0) ? 'mint' : 'bottom-up')
  const sum = (all: readonly (number | undefined)[]) => all.reduce<number>((a, b) => a + (b ?? Number.NaN), 0)
  for (const k of [0, 13, 27]) {
    const mean = total.points[k]?.mean ?? Number.NaN
    const agrees = (parts: (number | undefined)[], what: string) =>
      t.ok(Math.abs(sum(parts) - mean) < 1e-4, `${what} add up to the total on day ${k}`)
    agrees(
      categories.map(({ points }) => points[k]?.mean),
      'categories'
    )
    agrees(
      categories.flatMap(({ children }) => children.map(({ means }) => means[k])),
      'items'
    )
    agrees(
      locations.map(({ points }) => points[k]?.mean),
      'locations'
    )
    agrees(
      total.children.map(({ means }) => means[k]),
      'children'
    )
  }
  t.same(categories[0]?.children.map(({ key }) => key).sort(), ['Dry:flour', 'Dry:rice'])
  const week = sum(total.points.slice(0, 7).map(({ mean }) => mean))
  t.ok(Math.abs(week - 7 * 72) < 35, `${week.toFixed(0)} a week where 504 are used`)
  for (const { mean, lower80, upper80 } of total.points) t.ok(lower80 <= mean && mean <= upper80)

  const itemCodes = ['Dry:flour', 'Dry:rice', 'Fresh:milk', 'Fresh:oat', 'loose']
  const forecastOf = async (code: string, query = ''): Promise<Forecast> => {
    const { body } = await call('GET', `/api/ai/forecast/${encodeURIComponent(code)}${query}`)
    t.ok(Check(Forecast, body), code)
    return body
  }
  /** What items serve adds up to the sums, whichever method serves. */
  const coherent = async (what: string) => {
    const [served, sums] = await Promise.all([
      Promise.all(itemCodes.map((code) => forecastOf(code))),
      get('level=total')
    ])
    const gaps = sums.points.map(({ mean }, k) => Math.abs(mean - sum(served.map(({ points }) => points[k]?.mean))))
    t.ok(Math.max(...gaps) < 1e-5, `${what}: the gap is ${Math.max(...gaps)}`)
    return served
  }
  const served = await coherent('trained')
  t.equal(total.method, 'mint', 'what one takes from the other is no news to their sum')
  t.ok(
    served.some(({ points }) => points.some(({ baseMean }) => baseMean !== undefined)),
    'items serve what was reconciled'
  )
  const job2 = { ...ONE_MODEL, itemCodes: ['Dry:rice'], horizonDays: 35 }
  await call('POST', '/api/ai/forecast/train', job2, WAIT)
  const [, rice] = await coherent('one item trained again')
  t.equal(rice?.points[0]?.baseMean, undefined, 'its own figure until the next night')
  await call('POST', '/api/ai/forecast/Dry%3Arice/overrides', { factor: 3, expiresOn: day(130), reason: 'A feast' })
  const jobs = host.app.getDecorator<JobService>('jobs')
  await requested(host)
  const [sumsJob] = await jobs.list(host.tenant, { kind: SUMS_RUN })
  t.match(await jobs.wait(host.tenant, sumsJob?.[1].id ?? '', 60), { status: 'succeeded' })
  await coherent('an override')
  t.ok((await get('level=category&key=Dry')).points[0]!.mean > (categories[0]?.points[0]?.mean ?? 0) + 10)
  await call('POST', '/api/ai/forecast/aggregate/train', undefined, WAIT)
  const under = await coherent('reconciled under an override')
  t.ok(under[1]?.points[0]?.modelMean !== undefined, 'what a person said stands')

  const { body: places } = await call('GET', '/api/ai/forecast/Dry%3Aflour/locations')
  t.ok(Check(ItemLocations, places))
  t.same(
    places.locations.map(({ location }: { location: string }) => location),
    ['north', 'south']
  )
  const flour = await forecastOf('Dry:flour')
  for (const [k, { mean }] of flour.points.entries()) {
    const parts: Forecast['points'] = places.locations.map((place: Forecast) => place.points[k])
    t.ok(Math.abs(sum(parts.map((part) => part.mean)) - mean) < 1e-5, `places add up on day ${k}`)
    for (const part of parts)
      t.ok(part.lower95 <= part.lower80 && part.lower80 <= part.mean && part.mean <= part.upper80)
  }
  const shareOfNorth = places.locations[0].points[3].mean / (flour.points[3]?.mean ?? 0)
  t.ok(Math.abs(shareOfNorth - 30 / 36) < 0.1, `${shareOfNorth} of the flour is used in the north`)
  t.ok(places.locations[0].accuracy.coverage > 0.5, 'intervals were back-tested')
  t.same((await call('GET', '/api/ai/forecast/Dry%3Arice/locations')).body.locations, [], 'used at one place only')
  t.equal((await call('GET', '/api/ai/forecast/NOPE/locations')).body.code, 'FORECAST_ITEM_NOT_FOUND')

  const weeks = await get('level=total&frequency=week')
  t.equal(weeks.points.length, 13)
  t.equal(new Date(weeks.points[0]?.date ?? 0).getUTCDay(), 1, 'weeks start on Monday')
  t.ok(Math.abs((weeks.points[1]?.mean ?? 0) - 7 * 72) < 50, `${weeks.points[1]?.mean} a week`)
  const weekly = await Promise.all(['Dry', 'Fresh', ''].map((key) => get(`level=category&frequency=week&key=${key}`)))
  t.ok(Math.abs(sum(weekly.map(({ points }) => points[5]?.mean)) - (weeks.points[5]?.mean ?? 0)) < 1e-5)
  t.equal((await call('GET', '/api/ai/forecast/aggregate?level=planet')).status, 400)
})

eachDialect(t, async (t, dialect) => {
  const app = await buildApp(t, { dialect })
  const manager = client(app, 'manager')
  const [tenant] = await app.getDecorator<Tenants>('tenants').all()
  if (tenant === undefined) throw new Error('no tenant')
  await manager.post('/api/inventory/categories', { name: 'Dry' })
  const [one, other] = ['PORT-A', 'PORT-B']
  await manager.post('/api/inventory', { itemCode: one, name: one, unit: 'each', category: 'Dry' })
  await manager.post('/api/inventory', { itemCode: other, name: other, unit: 'each' })
  await manager.post('/api/locations', { location: 'bar', name: 'Bar' })
  const move = (type: string, hour: number, lines: object[]) =>
    manager.post('/api/movements', { type, occurredAt: `2026-03-0${hour < 24 ? 2 : 3}T${hour % 24}:00:00Z`, lines })
  const at = (itemCode: string, quantity: number, location: string) => ({ itemCode, quantity, location })
  await move('receipt', 10, [at(one, 50, 'main'), at(one, 50, 'bar'), at(other, 50, 'bar')])
  await move('issue', 11, [at(one, 5, 'main'), at(one, 3, 'bar'), at(other, 4, 'bar')])
  await move('return', 12, [at(one, 1, 'bar')])
  await move('waste', 13, [at(one, 9, 'main')])
  const wrong = await move('issue', 34, [at(one, 7, 'main')])
  t.equal((await manager.post(`/api/movements/${wrong.body.id}/reverse`, {})).status, 201)
  await move('issue', 35, [at(other, 2, 'bar')])
  const used = await dailyUseByLocation(tenant, { itemCodes: [one, other], fromDay: '2026-03-01', toDay: '2026-03-03' })
  t.same(
    used.filter(({ usedMicros }) => usedMicros !== 0).map((row) => [row.location, row.day, row.usedMicros / 1e6]),
    [
      ['bar', '2026-03-02', 6],
      ['bar', '2026-03-03', 2],
      ['main', '2026-03-02', 5]
    ],
    'issues less returns per location, reversals on their day, no waste'
  )
  t.same(await dailyUseByLocation(tenant, { itemCodes: [] }), [])
  const found = await items(tenant, { itemCodes: [one, other], limit: 9 })
  t.same(
    found.map(({ itemCode, category }) => [itemCode, category]),
    [
      [one, 'Dry'],
      [other, null]
    ]
  )
})
