import type { Registry } from 'prom-client'
import t from 'tap'
import { Check } from 'typebox/value'
import { detect } from '../modules/anomaly/detectors.js'
import { explain } from '../modules/anomaly/explain.js'
import { Detected } from '../schemas/anomaly.js'
import { DashboardStats } from '../schemas/dashboard.js'
import { day, onBothDatabases, random, weeklyUse } from './ai-harness.js'

const WAIT = { prefer: 'wait=60' }
const nowhere = (values: Float64Array) => new Uint8Array(values.length)

/** Poisson counts by inversion (Devroye 1986). */
function poisson(next: () => number, mean: number): number {
  let k = 0
  let p = Math.exp(-mean)
  for (let u = next(); u > p; k++) {
    u -= p
    p *= mean / (k + 1)
  }
  return k
}
const week = (next: () => number, length: number, level: number) =>
  Float64Array.from({ length }, (_, i) => poisson(next, level * [0.4, 0.9, 1, 1, 1.1, 1.6, 1][i % 7]!))
const sparse = (next: () => number, length: number) =>
  Float64Array.from({ length }, () => (next() < 0.15 ? 1 + poisson(next, 1.5) : 0))

t.test('detectors', async (t) => {
  t.test('±3σ: by hand', async (t) => {
    // Mean 10, deviation 2 over the days before: bounds 4 and 16.
    const values = Float64Array.from({ length: 31 }, (_, i) => (i === 30 ? 17 : 10 + (i % 2 === 0 ? 2 : -2)))
    const [found, ...others] = detect(values, nowhere(values), 'sigma')
    t.equal(others.length, 0)
    t.same(found, {
      index: 30,
      kind: 'spike',
      detector: 'zscore',
      severity: 'low',
      observed: 17,
      expected: 10,
      lower: 4,
      upper: 16,
      score: 3.5
    })
    values[30] = 3
    t.match(detect(values, nowhere(values), 'sigma')[0], { kind: 'drop', score: 3.5 })
    values[30] = 16
    t.equal(detect(values, nowhere(values), 'sigma').length, 0, 'on the bound is still usual')
  })

  t.test('the negative binomial tail agrees with the exact distribution', async (t) => {
    // Mean 0.4 on 100 of 0 and 2: the variance (0.64) gives size 0.4²/0.24 = 2/3, and P(X ≥ 5) = 1 − Σ pmf(0…4).
    const values = Float64Array.from({ length: 92 }, (_, i) => (i === 91 ? 9 : i % 5 === 0 ? 2 : 0))
    const history = values.subarray(0, 91)
    const mean = history.reduce((a, b) => a + b) / 91
    const variance = history.reduce((a, b) => a + (b - mean) ** 2, 0) / 91
    const size = mean ** 2 / (variance - mean)
    const gamma = (k: number) => Array.from({ length: k }, (_, i) => (size + i) / (i + 1)).reduce((a, b) => a * b, 1)
    const pmf = (k: number) => gamma(k) * (size / (size + mean)) ** size * (mean / (size + mean)) ** k
    const tail = (k: number) => 1 - Array.from({ length: k }, (_, i) => pmf(i)).reduce((a, b) => a + b, 0)
    const [found] = detect(values, nowhere(values))
    t.equal(found?.detector, 'count-tail')
    t.ok(Math.abs((found?.score ?? 0) + Math.log10(tail(9))) < 1e-6)
    t.ok(tail((found?.upper ?? 0) + 1) < 1e-3 && tail(found?.upper ?? 0) >= 1e-3, 'the bound is the 99.9 % quantile')
  })

  t.test('planted spikes are found, and alarms are few without', async (t) => {
    const next = random(11)
    const rate = (make: () => Float64Array, method: 'auto' | 'sigma') => {
      let alarms = 0
      let days = 0
      for (let i = 0; i < 60; i++) {
        const values = make()
        alarms += detect(values, nowhere(values), method).length
        days += values.length - 14
      }
      return alarms / days
    }
    const recall = (make: () => Float64Array, factor: number) => {
      let found = 0
      for (let i = 0; i < 60; i++) {
        const values = make()
        const at = 150 + (i % 40)
        const planted = Math.max(...values) * factor
        values[at] = planted
        if (detect(values, nowhere(values)).some(({ index, kind }) => index === at && kind === 'spike')) found++
      }
      return found / 60
    }
    const dense = () => week(next, 200, 20)
    const rare = () => sparse(next, 200)
    const rates = {
      dense: rate(dense, 'auto'),
      denseSigma: rate(dense, 'sigma'),
      sparse: rate(rare, 'auto'),
      sparseSigma: rate(rare, 'sigma')
    }
    t.comment(rates)
    t.ok(rates.dense < 0.01, 'under 1 % of days with a week in the demand')
    t.ok(rates.sparse < 0.005, 'under 0.5 % of days of sparse demand')
    t.ok(rates.sparse < rates.sparseSigma / 2, '±3σ raises at least twice as many on sparse demand')
    t.ok(recall(dense, 3) > 0.95)
    t.ok(recall(rare, 3) > 0.9)
  })

  t.test('what says nothing raises nothing', async (t) => {
    for (const method of ['auto', 'sigma'] as const) {
      for (const values of [
        new Float64Array(0),
        new Float64Array(3).fill(5),
        new Float64Array(300),
        new Float64Array(300).fill(7)
      ]) {
        t.same(detect(values, nowhere(values), method), [], `${method}, ${values.length} days`)
      }
    }
    const values = new Float64Array(100).fill(10)
    values.fill(0, 50, 60)
    t.same(detect(values, nowhere(values).fill(1, 50, 60)), [], 'days without stock are no drop')
    t.equal(detect(values, nowhere(values))[0]?.kind, 'drop', 'with stock they are')
    t.equal(detect(values, nowhere(values), 'auto', 60).length, 0, 'from a day on')
    const ending = Float64Array.from({ length: 300 }, (_, i) => (i < 200 ? 3 + (i % 5) : 0))
    for (const { expected, lower, upper, score } of detect(ending, nowhere(ending))) {
      t.ok([expected, lower, upper, score].every(Number.isFinite), 'a demand that ends leaves finite figures')
    }
    const large = Float64Array.from({ length: 120 }, (_, i) => (i % 3 === 0 ? 900_000 : 0))
    t.ok(
      detect(large, nowhere(large)).every(({ score }) => Number.isFinite(score)),
      'huge counts stay finite'
    )
  })

  t.test('in words', async (t) => {
    const found = {
      kind: 'spike',
      detector: 'count-tail',
      observed: 1200.5,
      expected: 3,
      lower: 0,
      upper: 12,
      score: 4
    } as const
    t.equal(
      explain(found, 'en'),
      '1,200.5 used where 3 was expected and 12 would still be usual: as much or more happens by chance once in 10,000 days.'
    )
    t.match(
      explain({ ...found, detector: 'zscore', kind: 'drop' }, 'fr'),
      /^seulement 1.200,5 consommés pour 3 attendus.*écarts types/
    )
  })
})

onBothDatabases(t, 'findings', async (t, host) => {
  const { ledger, tenant, call, app, stock } = host
  const entries = [...weeklyUse('A', 200, 20, 1), ...weeklyUse('B', 200, 30, 2), ...weeklyUse('C', 200, 10, 3)]
  entries.push({ itemCode: 'A', day: day(180), used: 400 }, { itemCode: 'B', day: day(150), used: 500 })
  await ledger.post(tenant, entries)
  await call('POST', '/api/ai/forecast/train', { models: ['ses'] }, WAIT)

  const first = await call('POST', '/api/ai/consumption/detect-anomalies', {})
  t.equal(first.status, 200)
  t.ok(Check(Detected, first.body))
  t.equal(first.body.items, 3)
  t.equal(first.body.stored, first.body.found)
  const spike = first.body.data.find(
    (each: { itemCode: string; date: string }) => each.itemCode === 'A' && each.date === day(180)
  )
  t.match(spike, { kind: 'spike', severity: 'high', status: 'open' })
  t.ok(spike.observed > 400 && spike.observed > spike.upper && spike.upper > spike.expected)
  t.match(spike.explanation, /was expected/)

  const again = await call('POST', '/api/ai/consumption/detect-anomalies', {}, { 'idempotency-key': 'again' })
  t.equal(again.body.stored, 0, 'stored once')
  t.same(
    again.body.data.map((each: { id: string }) => each.id),
    first.body.data.map((each: { id: string }) => each.id)
  )
  const replay = await call('POST', '/api/ai/consumption/detect-anomalies', {}, { 'idempotency-key': 'again' })
  t.same(replay.body, again.body)
  const sigma = await call('POST', '/api/ai/consumption/detect-anomalies', {
    itemCodes: ['A'],
    method: 'sigma',
    from: day(170),
    to: day(190)
  })
  t.ok(
    sigma.body.data.some((each: { date: string }) => each.date === day(180)),
    '±3σ finds it too'
  )
  t.equal(sigma.body.items, 1)

  t.test('the list', async (t) => {
    const { body } = await call('GET', '/api/anomalies?severity=high')
    t.same(
      body.data.slice(0, 2).map((each: { date: string }) => each.date),
      [day(180), day(150)],
      'newest first'
    )
    const page = await call('GET', '/api/anomalies?severity=high&limit=1')
    const next = await call('GET', `/api/anomalies?severity=high&limit=1&cursor=${page.body.page.nextCursor}`)
    t.equal(next.body.data[0].date, day(150))
    const other = await call('GET', `/api/anomalies?limit=1&cursor=${page.body.page.nextCursor}`)
    t.equal(other.body.code, 'CURSOR_INVALID', 'a cursor belongs to its filter')
    t.equal(
      (await call('GET', `/api/anomalies?itemCode=B&kind=spike&status=open&from=${day(150)}&to=${day(150)}`)).body.data
        .length,
      1
    )
    t.equal((await call('GET', `/api/anomalies?from=${day(2)}&to=${day(1)}`)).body.code, 'ANOMALY_RANGE_INVALID')
    const french = await call('GET', '/api/anomalies?itemCode=A&severity=high', undefined, {
      'accept-language': 'fr-CH, en'
    })
    t.match(french.body.data[0].explanation, /attendus/)
    t.match(french.headers, { 'content-language': 'fr', vary: /accept-language/ }, 'a cache keeps the languages apart')
  })

  t.test('handling', async (t) => {
    const acknowledged = await call('POST', `/api/anomalies/${spike.id}/acknowledge`, { note: 'asking the kitchen' })
    t.match(acknowledged.body, { status: 'acknowledged', note: 'asking the kitchen', handledBy: 'tester' })
    const twice = await call('POST', `/api/anomalies/${spike.id}/acknowledge`, {})
    t.equal(twice.status, 409)
    t.match(twice.body, { code: 'ANOMALY_STATE_CONFLICT', current: 'acknowledged' })
    const resolved = await call('POST', `/api/anomalies/${spike.id}/resolve`, { verdict: 'confirmed' })
    t.match(resolved.body, { status: 'resolved', verdict: 'confirmed', note: 'asking the kitchen' }, 'the note stays')
    t.equal((await call('POST', `/api/anomalies/${spike.id}/resolve`, { verdict: 'dismissed' })).status, 409)
    t.equal(
      (await call('POST', '/api/anomalies/00000000-0000-7000-8000-000000000000/acknowledge', {})).body.code,
      'ANOMALY_NOT_FOUND'
    )
    t.equal((await call('POST', `/api/anomalies/${spike.id}/resolve`, {})).status, 400)
    const after = await call('POST', '/api/ai/consumption/detect-anomalies', { itemCodes: ['A'] })
    t.equal(after.body.stored, 0)
    t.equal(
      after.body.data.find((each: { id: string }) => each.id === spike.id).status,
      'resolved',
      'what is handled stays so'
    )
  })

  t.test('the dashboard', async (t) => {
    stock.push({ itemCode: 'A', available: 0 }, { itemCode: 'B', available: 1_000_000_000 })
    const { body } = await call('GET', '/api/dashboard/stats')
    t.ok(Check(DashboardStats, body))
    t.match(body, { items: 3, stockValue: 12.5, lowStock: 1, outOfStock: 0, movementsToday: 4 })
    t.same(
      body.runsOutFirst,
      [{ itemCode: 'A', available: 0, daysOfCover: 0, date: day(200) }],
      'what lasts for ages runs out at no date'
    )
    t.equal(body.forecasts.series, 3)
    t.same(
      body.forecasts.byModel.map((each: { model: string }) => each.model),
      ['ses']
    )
    const open = first.body.found - 1
    t.equal(body.anomalies.open, open)
    t.equal(
      (await call('GET', '/api/dashboard/stats', undefined, { 'x-role': 'viewer' })).body.stockValue,
      null,
      'cost is for managers'
    )
    const last = body.anomalies.latest[0]
    await call('POST', `/api/anomalies/${last.id}/resolve`, { verdict: 'dismissed' })
    host.inventory.items = 4
    await tenant.transact(async (tx) => tx.invalidate('inventory'))
    const changed = await call('GET', '/api/dashboard/stats')
    t.equal(changed.body.anomalies.open, open - 1, 'a change shows at once')
    t.equal(changed.body.items, 4)
    const same = await app.inject({
      url: '/api/dashboard/stats',
      headers: { 'if-none-match': String(changed.headers.etag) }
    })
    t.equal(same.statusCode, 304)
  })

  t.test('figures for Prometheus', async (t) => {
    const text = await app.getDecorator<Registry>('registry').metrics()
    t.match(text, /anomaly_detections_total\{detector="seasonal",severity="high"\} [1-9]/)
    t.match(text, /anomaly_detections_total\{detector="zscore",severity="high"\} 0/)
    t.match(text, /anomaly_feedback_total\{verdict="confirmed"\} 1/)
    t.match(text, /anomaly_open\{severity="high"\} \d+/)
    t.match(text, /anomaly_scan_duration_seconds_count [1-9]/)
  })
})
