import t from 'tap'
import { Check } from 'typebox/value'
import { bottomUp, fitToTotal, type Hierarchy, minTrace, shrinkage } from '../modules/forecasting/models/hierarchy.js'
import { SUMS_RUN } from '../modules/forecasting/nightly.js'
import { dailyUseByLocation, items } from '../modules/inventory/index.js'
import type { Tenants } from '../plugins/core.js'
import type { JobService } from '../plugins/jobs/index.js'
import { Forecast } from '../schemas/forecasting.js'
import { Aggregate, ItemLocations } from '../schemas/hierarchy.js'
import {
  day,
  type Entry,
  type Host,
  nightlyOf,
  ONE_MODEL,
  onBothDatabases,
  random,
  WAIT,
  weeklyUse
} from './ai-harness.js'
import { buildApp, client, eachDialect } from './helper.js'

/** Forecasts of what items add up to: the arithmetic of reconciliation, against R, and what the service makes of it. */

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

function transpose(a: number[][]): number[][] {
  return (a[0] ?? []).map((_, j) => a.map((row) => row[j]!))
}
function multiply(a: number[][], b: number[][]): number[][] {
  return a.map((row) => transpose(b).map((column) => row.reduce((sum, value, k) => sum + value * column[k]!, 0)))
}
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
async function requested(host: Host): Promise<void> {
  await nightlyOf(host).startRequested(host.tenant)
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
  const { progress } = job.body
  t.ok(progress.done >= 12 && progress.done === progress.total, `${progress.done} of ${progress.total} series`)
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

onBothDatabases(t, 'sums of items that are forecast for fewer days', async (t, host) => {
  const { ledger, call, clock } = host
  clock.now = Date.parse(day(120))
  const itemCodes = ['Dry:flour', 'Dry:rice', 'Fresh:milk', 'Fresh:oat', 'loose']
  await ledger.post(
    host.tenant,
    itemCodes.flatMap((code, i) => weeklyUse(code, 120, 10 + 5 * i, i))
  )
  await call('POST', '/api/ai/forecast/train', { ...ONE_MODEL, top: 50, horizonDays: 15 }, WAIT)
  await call('POST', '/api/ai/forecast/aggregate/train', undefined, WAIT)
  const get = async (url: string): Promise<Pick<Forecast, 'points'>> => (await call('GET', url)).body
  const coherent = async (what: string) => {
    const all = await Promise.all(itemCodes.map((code) => get(`/api/ai/forecast/${encodeURIComponent(code)}`)))
    for (const category of ['Dry', 'Fresh', '']) {
      const parts = all.filter((_, i) => (itemCodes[i]?.includes(':') ? itemCodes[i]?.split(':')[0] : '') === category)
      const { points } = await get(`/api/ai/forecast/aggregate?level=category&key=${category}`)
      t.equal(points.length, 28)
      t.ok(
        points.every(({ mean }) => mean > 1),
        'where items serve nothing any more, what the sum’s own model says of them'
      )
      for (const k of [0, 7, 14]) {
        const sum = parts.reduce((whole, part) => whole + (part.points[k]?.mean ?? Number.NaN), 0)
        t.ok(Math.abs(sum - (points[k]?.mean ?? 0)) < 1e-4, `${what}: items of "${category}" on day ${k}`)
      }
    }
    return all
  }
  t.equal((await coherent('trained'))[0]?.points.length, 15)
  await call('POST', '/api/ai/forecast/Dry%3Arice/overrides', { factor: 3, expiresOn: day(130), reason: 'A feast' })
  await requested(host)
  const jobs = host.app.getDecorator<JobService>('jobs')
  const [job] = await jobs.list(host.tenant, { kind: SUMS_RUN })
  t.match(await jobs.wait(host.tenant, job?.[1].id ?? '', 60), { status: 'succeeded' })
  await coherent('an override')
})

await eachDialect(t, async (t, dialect) => {
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
