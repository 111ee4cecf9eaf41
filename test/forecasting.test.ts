import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Registry } from 'prom-client'
import t from 'tap'
import { Check } from 'typebox/value'
import { createDerivation } from '../modules/forecasting/derive.js'
import { dailyDemand, forecastHeadline, leadTimeDemand, runOut } from '../modules/forecasting/index.js'
import { createForecastMetrics } from '../modules/forecasting/metrics.js'
import type { ForecastingTables } from '../modules/forecasting/store.js'
import { createTraining } from '../modules/forecasting/train.js'
import train, { type TrainingBatch } from '../modules/forecasting/worker.js'
import type { Breather, Compute } from '../plugins/contracts.js'
import { Forecast, ModelDetail } from '../schemas/forecasting.js'
import { day, onBothDatabases, WAIT, weeklyUse } from './ai-harness.js'

t.test('the worker keeps a bad series to itself', async (t) => {
  const good = Float64Array.from({ length: 60 }, (_, i) => 10 + (i % 7))
  const bad = good.map((value, i) => (i === 30 ? Number.NaN : value))
  const of = (itemCode: string, values: Float64Array) => ({
    itemCode,
    dataHash: itemCode,
    start: 20_000,
    values,
    missing: new Uint8Array(values.length)
  })
  const result = await train({
    series: [of('A', good), of('BAD', bad), of('C', good)],
    frequency: 'day',
    horizon: 14,
    trainedAt: '2026-01-01T00:00:00.000Z'
  })
  t.same(
    result.trained.map(({ itemCode }) => itemCode),
    ['A', 'C']
  )
  t.same(
    result.failed.map(({ itemCode }) => itemCode),
    ['BAD']
  )
  t.match(result.failed[0]?.reason, /NaN/)
})

onBothDatabases(t, 'training', async (t, host) => {
  const { ledger, tenant, call, app } = host
  await ledger.post(tenant, [
    ...weeklyUse('A', 200, 20, 1),
    ...weeklyUse('B', 200, 5, 2),
    ...weeklyUse('C/é 1', 200, 1, 3),
    { itemCode: 'IDLE', day: day(3), received: 7 }
  ])
  const first = await call('POST', '/api/ai/forecast/train', { all: true }, WAIT)
  t.equal(first.status, 200)
  const { result } = first.body
  t.equal(result.trained, 3)
  t.equal(result.skipped, 0)
  t.same(result.failed, [])
  t.equal(result.dataTo, day(199))
  t.equal(
    Object.values<number>(result.models).reduce((a, b) => a + b),
    3
  )
  t.ok(result.wape > 0 && result.wape < 60, `WAPE ${result.wape} %`)
  t.same(first.body.progress, { done: 3, total: 3 })

  t.test('an answer of the contract', async (t) => {
    const { status, body, headers } = await call('GET', '/api/ai/forecast/A')
    t.equal(status, 200)
    t.ok(Check(Forecast, body))
    t.equal(body.points.length, 28)
    t.equal(body.points[0].date, day(200), 'the first day after the data')
    for (const point of body.points) {
      t.ok(
        0 <= point.lower95 &&
          point.lower95 <= point.lower80 &&
          point.lower80 <= point.upper80 &&
          point.upper80 <= point.upper95,
        'bounds in order'
      )
    }
    t.ok(body.accuracy.wape > 0 && body.accuracy.coverage > 0.5)
    t.equal(body.dataFrom, day(0))
    t.equal(body.dataTo, day(199))
    const again = await app.inject({ url: '/api/ai/forecast/A', headers: { 'if-none-match': String(headers.etag) } })
    t.equal(again.statusCode, 304)
    t.equal((await call('GET', `/api/ai/forecast/${encodeURIComponent('C/é 1')}`)).body.itemCode, 'C/é 1')
  })

  t.test('what is not there says why', async (t) => {
    const unknown = await call('GET', '/api/ai/forecast/NOPE')
    t.equal(unknown.status, 404)
    t.equal(unknown.body.code, 'FORECAST_ITEM_NOT_FOUND')
    const untrained = await call('GET', '/api/ai/forecast/IDLE')
    t.equal(untrained.status, 404)
    t.equal(untrained.body.code, 'FORECAST_NOT_TRAINED')
    t.equal((await call('GET', '/api/ai/forecast/A?frequency=week')).body.code, 'FORECAST_NOT_TRAINED')
    const model = await call('GET', '/api/ai/models/00000000-0000-7000-8000-000000000000')
    t.equal(model.body.code, 'FORECAST_MODEL_NOT_FOUND')
    const both = await call('POST', '/api/ai/forecast/train', { all: true, top: 3 })
    t.equal(both.status, 400)
    t.equal(both.body.code, 'FORECAST_SCOPE_AMBIGUOUS')
    t.equal((await call('POST', '/api/ai/forecast/train', { models: ['magic'] })).status, 400)
    t.equal((await call('POST', '/api/ai/consumption/derive')).status, 202, 'no body asks for everything')
    t.equal((await call('GET', '/api/ai/models/list?cursor=eA')).status, 400)
  })

  t.test('a read is one look-up by key, also while training runs', async (t) => {
    const registry = app.getDecorator<Registry>('registry')
    const selects = async () => {
      const text = await registry.getSingleMetricAsString('db_query_duration_seconds')
      return Number(/_count\{[^}]*operation="select"[^}]*\} (\d+)/.exec(text)?.[1] ?? Number.NaN)
    }
    const drop = () => tenant.transact(async (tx) => tx.invalidate('forecasting'))
    // The least of several: upkeep may ask the database something at the same time.
    const least = async (prepare: () => Promise<void>) => {
      const counts: number[] = []
      for (let i = 0; i < 5; i++) {
        await prepare()
        const before = await selects()
        await app.inject('/api/ai/forecast/A')
        counts.push((await selects()) - before)
      }
      return Math.min(...counts)
    }
    t.equal(await least(drop), 1, 'past the cache, one statement')
    t.equal(await least(async () => {}), 0, 'from the cache, none')
    if (tenant.dialect === 'sqlite') {
      const forecasts = tenant.db.withTables<ForecastingTables>().selectFrom('ai_forecasts').select('answer')
      const plan = await forecasts
        .where('item_code', '=', 'A')
        .orderBy('frequency')
        .limit(1)
        .explain(undefined, sql`query plan`)
      t.match(
        JSON.stringify(plan),
        /USING INDEX sqlite_autoindex_ai_forecasts_1 \(item_code=\?\)/,
        'by its primary key'
      )
    }

    // Both requests of a pair meet the same machine, so their ratio says what the machine's speed does not.
    const { modelId } = (await call('GET', '/api/ai/forecast/A')).body
    const timed = async (url: string) => {
      await drop()
      const startedAt = performance.now()
      await app.inject(url)
      return performance.now() - startedAt
    }
    const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN
    const training = call('POST', '/api/ai/forecast/train', { horizonDays: 30 }, WAIT)
    const [reads, references]: [number[], number[]] = [[], []]
    for (let i = 0; i < 60; i++) {
      references.push(await timed(`/api/ai/models/${modelId}`))
      reads.push(await timed('/api/ai/forecast/A'))
    }
    await training
    const ratio = median(reads) / median(references)
    t.ok(ratio < 3, `${ratio.toFixed(2)} times a look-up of one row while training`)
  })

  t.test('what has not changed is not trained again; what has gets a new version', async (t) => {
    const base = { horizonDays: 28 }
    await call('POST', '/api/ai/forecast/train', base, WAIT)
    const again = await call('POST', '/api/ai/forecast/train', base, WAIT)
    t.equal(again.body.result.trained, 0)
    t.equal(again.body.result.skipped, 3)
    await ledger.post(tenant, [{ itemCode: 'B', day: day(150), used: 3 }])
    const changed = await call('POST', '/api/ai/forecast/train', base, WAIT)
    t.equal(changed.body.result.trained, 1, 'the change was noted by its event')
    t.equal(changed.body.result.skipped, 2)
    const { body } = await call('GET', '/api/ai/models/list?itemCode=B')
    const [newest, before] = body.data
    t.equal(newest.status, 'active')
    t.equal(before.status, 'archived')
    t.equal(newest.version, before.version + 1)
    const detail = await call('GET', `/api/ai/models/${newest.id}`)
    t.ok(Check(ModelDetail, detail.body))
    const weight = detail.body.members.reduce((sum: number, member: { weight: number }) => sum + member.weight, 0)
    t.ok(Math.abs(weight - 1) < 1e-3, 'weights sum to 1')
    t.equal((await call('GET', '/api/ai/forecast/B')).body.modelId, newest.id)
    for (let i = 0; i < 6; i++)
      await call('POST', '/api/ai/forecast/train', { itemCodes: ['B'], horizonDays: 3 + i }, WAIT)
    t.equal((await call('GET', '/api/ai/models/list?itemCode=B')).body.data.length, 5, 'old versions are removed')
    const page = await call('GET', '/api/ai/models/list?itemCode=B&limit=3')
    const rest = await call('GET', `/api/ai/models/list?itemCode=B&limit=3&cursor=${page.body.page.nextCursor}`)
    t.equal(rest.body.data.length, 2)
    t.equal(rest.body.page.nextCursor, null)
    await call('POST', '/api/ai/forecast/train', base, WAIT)
  })

  t.test('named items, the most used, weeks, a named model', async (t) => {
    const named = await call('POST', '/api/ai/forecast/train', { itemCodes: ['NOPE', 'IDLE', 'A'] }, WAIT)
    t.same(named.body.result.failed, [
      { itemCode: 'NOPE', reason: 'there is no such item' },
      { itemCode: 'IDLE', reason: 'nothing of it was ever used' }
    ])
    t.equal(named.body.result.skipped, 1)
    const top = await call(
      'POST',
      '/api/ai/forecast/train',
      { top: 1, models: ['ses'], frequency: 'week', horizonDays: 28 },
      WAIT
    )
    t.same(top.body.result.models, { ses: 1 })
    t.equal(top.body.result.horizonDays, 28)
    const { body } = await call('GET', '/api/ai/forecast/A?frequency=week')
    t.equal(body.model, 'ses')
    t.equal(body.points.length, 4)
    t.equal(new Date(body.points[0].date).getUTCDay(), 1, 'weeks start on Monday')
    t.ok(body.points[0].date <= day(200) && body.points[0].date > day(193), 'the first week that is not whole')
    t.equal((await call('GET', '/api/ai/forecast/A')).body.frequency, 'day', 'daily is the default where there is one')
  })

  t.test('what other domains read', async (t) => {
    const { body } = await call('GET', '/api/ai/forecast/A')
    const mean = body.points.reduce((sum: number, point: { mean: number }) => sum + point.mean, 0) / body.points.length
    const demand = await dailyDemand(tenant, ['A', 'IDLE'])
    t.ok(Math.abs((demand.get('A') ?? 0) - mean) < 1e-4)
    t.equal(demand.has('IDLE'), false)
    const distribution = (await leadTimeDemand(tenant, ['A'])).get('A')
    t.equal(distribution?.stepDays, 1)
    const median = distribution?.quantiles[distribution.levels.indexOf(0.5)]
    t.ok(median !== undefined && median.length === 28 && median[27]! > 10 * median[0]!, 'sums grow')
    const stock = [
      { itemCode: 'A', available: mean * 20 },
      { itemCode: 'B', available: 0 },
      { itemCode: 'IDLE', available: 1 }
    ]
    const [b, a, ...others] = await runOut(tenant, stock, 5, Date.parse(day(200)))
    t.equal(others.length, 0, 'what is not used never runs out')
    t.same(b, { itemCode: 'B', available: 0, daysOfCover: 0, date: day(200) })
    t.ok(a !== undefined && a.itemCode === 'A' && Math.abs(a.daysOfCover - 20) < 3, `${a?.daysOfCover} days`)
    const lasting = async (available: number) => {
      const found = await runOut(tenant, [{ itemCode: 'A', available }, ...stock.slice(1)], 5, Date.parse(day(200)))
      return found.find(({ itemCode }) => itemCode === 'A')
    }
    t.match(await lasting(mean * 3_600), { date: /^203\d-\d\d-\d\d$/ })
    for (const days of [3_700, 3_500_000, 50_000_000]) t.equal(await lasting(mean * days), undefined, `${days} days`)
    const headline = await forecastHeadline(tenant)
    t.equal(headline.series, 4)
    const { realised: _, ...summary } = (await call('GET', '/api/ai/accuracy')).body
    t.same(headline, { ...summary, lastTrainedAt: headline.lastTrainedAt })
    const weekly = (await call('GET', '/api/ai/accuracy?frequency=week')).body
    const [only] = summary.byModel.filter(({ frequency }: { frequency: string }) => frequency === 'week')
    t.match(weekly, { series: 1, wape: only.wape, byModel: [only] }, 'one weekly series is trained')
    t.equal(weekly.byModel.length, 1)
    t.equal((await call('GET', '/api/ai/accuracy?frequency=day')).body.series, 3)
  })

  t.test('an item that is no more is not trained', async (t) => {
    const kept = [...ledger.entries]
    // What is on record of its use stays.
    ledger.entries.splice(0, kept.length, ...kept.filter(({ itemCode }) => itemCode !== 'A'))
    const counts = async (scope: object) => {
      const { body } = await call('POST', '/api/ai/forecast/train', { ...scope, models: ['naive'] }, WAIT)
      return body.result.trained + body.result.skipped
    }
    t.equal(await counts({ all: true }), 2, 'of all')
    t.equal(await counts({ top: 2 }), 2, 'the two that are used most of those there are')
    t.equal(await counts({ top: 1, horizonDays: 7 }), 1)
    t.equal((await call('GET', '/api/ai/forecast/B')).body.points.length, 7)
    t.equal((await call('GET', '/api/ai/models/list?itemCode=A&model=naive')).body.data.length, 0)
    ledger.entries.splice(0, ledger.entries.length, ...kept)
  })

  t.test('figures for Prometheus', async (t) => {
    const text = await app.getDecorator<Registry>('registry').metrics()
    t.match(text, /forecast_runs_total\{model="ses",outcome="success"\} 1/)
    t.match(text, /forecast_runs_total\{model="prophet",outcome="failure"\} 0/)
    t.match(text, /forecast_series\{model="ses"\} 1/)
    t.match(text, /forecast_wape_ratio\{model="\w+(-\w+)*"\} 0\.\d+/)
    t.match(text, /forecast_last_success_timestamp_seconds \d+/)
  })
})

onBothDatabases(t, 'a run outlives what goes wrong in it', async (t, host) => {
  const { ledger, tenant } = host
  const codes = Array.from({ length: 60 }, (_, i) => `I${String(i).padStart(2, '0')}`)
  await ledger.post(
    tenant,
    codes.flatMap((code, i) => weeklyUse(code, 40, 4, i))
  )
  let batches = 0
  let hanging: string | undefined
  const registry = new Registry()
  const metrics = createForecastMetrics(registry)
  const controller = new AbortController()
  const compute = (poison: string, abortAt?: number): Compute => ({
    run: async <Input, Output>(_file: URL, input: Input, options?: { signal?: AbortSignal }) => {
      const batch = input as TrainingBatch
      if (++batches === abortAt) controller.abort(new Error('cancelled'))
      await sleep(1)
      // Aborting ends the thread, and the task is rejected.
      if (hanging !== undefined && batch.series.some(({ itemCode }) => itemCode === hanging)) {
        await sleep(60_000, undefined, { signal: options?.signal })
      }
      if (batch.series.some(({ itemCode }) => itemCode === poison)) throw new Error('the thread died')
      return train(batch) as Output
    }
  })
  const breather = host.app.getDecorator<Breather>('breather')
  const run = (using: Compute) =>
    createTraining({
      source: ledger,
      derivation: createDerivation(ledger, () => host.clock.now, breather),
      compute: using,
      metrics,
      seriesTimeoutMilliseconds: 150,
      now: () => host.clock.now,
      breather,
      observe: async () => {}
    })({
      id: 'x',
      tenant,
      params: { models: ['naive'] },
      signal: controller.signal,
      cancelled: () => true,
      progress: () => {}
    })
  const report = await run(compute('I07'))
  t.equal(report.trained, 59)
  t.same(report.failed, [{ itemCode: 'I07', reason: 'the thread died' }])
  const rest = await run(compute('none'))
  t.equal(rest.skipped, 59, 'what was done is not done again')
  t.equal(rest.trained, 1)
  await ledger.post(
    tenant,
    codes.map((itemCode) => ({ itemCode, day: day(39), used: 1 }))
  )
  hanging = 'I11'
  const slow = await run(compute('none'))
  t.match(
    slow,
    { trained: 59, failed: [{ itemCode: 'I11', reason: 'took longer than 0.15 s' }] },
    'only the slow one is lost'
  )
  t.match(await registry.getSingleMetricAsString('forecast_runs_total'), /model="none",outcome="timeout"\} 1/)
  hanging = undefined
  await ledger.post(
    tenant,
    codes.map((itemCode) => ({ itemCode, day: day(39), used: 2 }))
  )
  batches = 0
  await t.rejects(run(compute('none', 2)), { message: 'cancelled' })
  t.equal(batches <= 4, true, 'a cancelled run stops')
})
