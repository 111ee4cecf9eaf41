import t from 'tap'
import { type ConsumptionTables, createConsumptionStore, markStale } from '../modules/forecasting/consumption-store.js'
import { type ConsumptionSource, createDerivation } from '../modules/forecasting/derive.js'
import { MODEL_NAMES } from '../modules/forecasting/models/index.js'
import { cover } from '../modules/forecasting/ports.js'
import * as series from '../modules/forecasting/series.js'
import type { ForecastingTables } from '../modules/forecasting/store.js'
import type { Breather } from '../plugins/contracts.js'
import { FORECAST_MODELS } from '../schemas/forecasting.js'
import { day, type Host, onBothDatabases, random, WAIT } from './ai-harness.js'

const idle = { signal: new AbortController().signal, advance: () => {} }

t.test('series', async (t) => {
  const active = (n: number, used: number, emptyAtEnd = false, censored = false) => ({
    day: n,
    used,
    emptyAtEnd,
    censored
  })

  t.test('days without movements are zero, and censored while the stock is nil', async (t) => {
    const { start, values, missing } = series.daily(
      [active(10, 3), active(12, 2, true), active(15, 1), active(17, 9)],
      16
    )
    t.equal(start, 10)
    t.same([...values], [3, 0, 2, 0, 0, 1, 0], 'ends at the day asked for')
    t.same([...missing], [0, 0, 0, 1, 1, 0, 0])
  })

  t.test('an item that stays nil for long is given up, not short', async (t) => {
    const { missing } = series.daily([active(0, 5, true)], 100)
    t.equal(
      missing.reduce((a, b) => a + b),
      series.CENSORED_RUN_DAYS_MAX
    )
    t.equal(missing[series.CENSORED_RUN_DAYS_MAX], 1)
    t.equal(missing[series.CENSORED_RUN_DAYS_MAX + 1], 0)
  })

  t.test('returns are taken off the days before, and the sum stays', async (t) => {
    t.same([...series.carryReturnsBack(Float64Array.of(5, 4, 0, -6, 2))], [3, 0, 0, 0, 2])
    t.same([...series.carryReturnsBack(Float64Array.of(1, -3, 2))], [0, 0, 2], 'what finds no use is dropped')
  })

  t.test('weeks are whole and start on Monday', async (t) => {
    const wednesday = series.dayNumber('2026-01-07')
    const days = { start: wednesday, values: new Float64Array(21).fill(1), missing: new Uint8Array(21) }
    days.missing.fill(1, 5, 9)
    const weeks = series.weekly(days)
    t.equal(series.dayText(weeks.start), '2026-01-12')
    t.same([...weeks.values], [7, 7], 'the days before the first Monday and after the last Sunday are left out')
    t.same([...weeks.missing], [1, 0], 'most of the first week had no stock')
    t.equal(series.dayText(series.mondayOnOrBefore(series.dayNumber('2025-12-31'))), '2025-12-29', 'across a year')
    t.equal(series.mondayOnOrBefore(-3), -3, '1969-12-29 was a Monday')
  })

  t.test('a week is made of its days that are not exceptional', async (t) => {
    const monday = series.dayNumber('2026-01-05')
    // Open Monday to Saturday.
    const used = Array.from({ length: 28 }, (_, n) => active(monday + n, n % 7 === 6 ? 0 : n === 8 ? 1000 : 6))
    const on = (...days: number[]) => days.map((n) => series.dayText(monday + n))
    const of = (closed: string[], exceptional: string[]) =>
      series.demand(used, monday + 27, 'week', closed, exceptional)
    t.same([...of([], on(8)).values], [36, 35, 36, 36], 'six known days make seven')
    t.same([...of(on(9), on(8)).missing], [0, 0, 0, 0])
    t.same([...of([], on(7, 8, 9, 10)).missing], [0, 1, 0, 0], 'three known days make no week')
    t.same([...of([], on(-1, 28)).values], [36, 1030, 36, 36], 'days outside change nothing')
    const { values, missing } = series.demand(used, monday + 27, 'day', [], on(8))
    t.same([missing[8], values[8]], [1, 5], 'sums over items are made of what is usual')
    const week = series.demand(used, monday + 27, 'day', [], on(7, 8, 9, 10, 11, 12, 13))
    t.same([...week.values.slice(7, 14)], Array(7).fill(108 / 21), 'where nothing is known of a week, of all')
  })

  t.test('a fingerprint names data and parameters', async (t) => {
    const one = series.daily([active(10, 3)], 12)
    const other = series.daily([active(10, 3)], 13)
    t.equal(series.fingerprint(one, [1]), series.fingerprint(series.daily([active(10, 3)], 12), [1]))
    t.not(series.fingerprint(one, [1]), series.fingerprint(other, [1]))
    t.not(series.fingerprint(one, [1]), series.fingerprint(one, [2]))
  })

  t.test('cover follows the path of the forecast', async (t) => {
    const point = (date: string, mean: number) => ({ date, mean, lower80: 0, upper80: 0, lower95: 0, upper95: 0 })
    const points = [point('2026-03-02', 1), point('2026-03-03', 9), point('2026-03-04', 2)]
    const first = series.dayNumber('2026-03-02')
    t.equal(cover(points, 1, first, 10), 2, 'two days exactly')
    t.equal(cover(points, 1, first, 5.5), 1.5)
    t.equal(cover(points, 1, first, 0), 0)
    t.equal(cover(points, 1, first, 16), 4, 'beyond the path at its mean of 4')
    t.equal(cover(points, 1, first + 1, 9), 1, 'days that are over use nothing')
    t.equal(cover([point('2026-03-02', 7)], 7, first + 5, 1), 1, 'two days of the week are left: two units')
    t.equal(cover([point('2026-03-02', 0)], 1, first, 3), undefined)
  })

  t.same([...FORECAST_MODELS].sort(), [...MODEL_NAMES].sort(), 'the API names the models of the engine')
})

const everything = (host: Host) =>
  host.tenant.db
    .withTables<ConsumptionTables>()
    .selectFrom('consumption_data')
    .selectAll()
    .orderBy('item_code')
    .orderBy('day')
    .execute()
const staleCount = async (host: Host) =>
  (await host.tenant.db.withTables<ConsumptionTables>().selectFrom('consumption_stale').selectAll().execute()).length

onBothDatabases(t, 'derivation', async (t, host) => {
  const { ledger, tenant, call, clock } = host
  clock.now = Date.parse(day(12)) + 3_600_000
  await ledger.post(tenant, [
    { itemCode: 'A', day: day(0), received: 10 },
    { itemCode: 'A', day: day(1), used: 4 },
    { itemCode: 'A', day: day(3), used: 6 }, // nil from here
    { itemCode: 'A', day: day(5), received: 5 },
    { itemCode: 'A', day: day(6), used: 3 },
    { itemCode: 'A', day: day(8), used: -1 }, // returned
    { itemCode: 'A', day: day(9), used: 2.5 },
    { itemCode: 'A', day: day(9), used: -2.5 }, // reversed: netted to its day
    { itemCode: 'B', day: day(11), received: 5 },
    { itemCode: 'B', day: day(11), used: 1 },
    { itemCode: 'B', day: day(12), used: 1 } // today is not over
  ])
  const derived = await call('POST', '/api/ai/consumption/derive', {}, WAIT)
  t.equal(derived.status, 200)
  t.equal(derived.body.status, 'succeeded')
  t.match(derived.body.result, { items: 2, failed: [] })
  const named = await call('POST', '/api/ai/consumption/derive', { itemCodes: ['NOPE', 'A'] }, WAIT)
  t.match(named.body.result, { items: 1, failed: [{ itemCode: 'NOPE', reason: 'there is no such item' }] })
  const { body } = await call('GET', '/api/ai/consumption/A')
  t.same(
    body.points.map((point: { quantity: number }) => point.quantity),
    [0, 4, 0, 6, 0, 0, 3, 0, -1, 0, 0, 0],
    'from the first movement to the last day on which anything was used'
  )
  t.same(
    body.points.flatMap((point: { censored: boolean; date: string }) => (point.censored ? [point.date] : [])),
    [day(4)],
    'nil all day; on the day of the receipt there was stock'
  )
  t.equal(body.to, day(11))
  const part = await call('GET', `/api/ai/consumption/A?from=${day(3)}&to=${day(4)}`)
  t.equal(part.body.points.length, 2)
  t.equal((await call('GET', '/api/ai/consumption/A?frequency=week')).body.points.length, 1)
  const unknown = await call('GET', '/api/ai/consumption/NOPE')
  t.equal(unknown.status, 404)
  t.equal(unknown.body.code, 'FORECAST_ITEM_NOT_FOUND')
  const range = await call('GET', `/api/ai/consumption/A?from=${day(4)}&to=${day(3)}`)
  t.equal(range.body.code, 'FORECAST_RANGE_INVALID')

  await ledger.post(tenant, [{ itemCode: 'A', day: day(10), used: 2 }])
  const job = await call('POST', '/api/ai/consumption/derive', { itemCodes: ['A'], from: day(10) }, WAIT)
  t.equal(job.body.result.items, 1)
  t.equal((await call('GET', '/api/ai/consumption/A')).body.points[10].quantity, 2, 'the cached answer was dropped')

  const stored = () => tenant.db.withTables<ForecastingTables>().selectFrom('consumption_data').selectAll()
  const right = await stored().orderBy('item_code').orderBy('day').execute()
  await tenant.transact(async (tx) => {
    const data = tx.db.withTables<ForecastingTables>()
    await data
      .insertInto('consumption_data')
      .values({ ...right[0]!, day: day(2) })
      .execute()
    await data.updateTable('consumption_data').set({ quantity_micros: 7 }).where('item_code', '=', 'B').execute()
    await data.deleteFrom('consumption_data').where('item_code', '=', 'A').where('day', '=', day(6)).execute()
  })
  await call('POST', '/api/ai/consumption/derive', {}, WAIT)
  t.same(
    await stored().orderBy('item_code').orderBy('day').execute(),
    right,
    'what is too much, wrong or missing is mended'
  )
})

onBothDatabases(t, 'what is derived step by step equals what is derived at once', async (t, host) => {
  const { ledger, tenant } = host
  const derivation = createDerivation(ledger, () => host.clock.now, host.app.getDecorator<Breather>('breather'))
  const next = random(7)
  const codes = Array.from({ length: 30 }, (_, i) => `I${String(i).padStart(2, '0')}`)
  for (let round = 0; round < 12; round++) {
    const entries = Array.from({ length: 40 }, () => {
      const itemCode = codes[Math.floor(next() * codes.length)] ?? ''
      const at = Math.floor(next() * 60)
      const amount = Math.ceil(next() * 5)
      const kind = next()
      return {
        itemCode,
        day: day(at),
        ...(kind < 0.6 ? { used: amount } : kind < 0.7 ? { used: -1 } : { received: amount })
      }
    })
    await ledger.post(tenant, entries)
    t.equal(await derivation.catchUp(tenant, idle.signal), true)
    await derivation.deriveStale(tenant, undefined, idle)
    const stepwise = await everything(host)
    await derivation.deriveAgain(tenant, {}, idle)
    t.same(stepwise, await everything(host), `round ${round}`)
    t.equal(await staleCount(host), 0)
  }
  const reads = ledger.reads
  await derivation.deriveStale(tenant, undefined, idle)
  t.equal(ledger.reads, reads, 'nothing changed, nothing is read')
})

onBothDatabases(t, 'what changes before the day that is derived from stays noted', async (t, host) => {
  const { ledger, tenant } = host
  const breather = host.app.getDecorator<Breather>('breather')
  const now = () => host.clock.now
  const codes = Array.from({ length: 20 }, (_, i) => `I${String(i).padStart(2, '0')}`)
  const last = codes.at(-1) ?? ''
  await ledger.post(
    tenant,
    codes.map((itemCode) => ({ itemCode, day: day(30), used: 2 }))
  )
  const derivation = createDerivation(ledger, now, breather)
  await derivation.catchUp(tenant, idle.signal)
  await derivation.deriveStale(tenant, undefined, idle)
  let posted = false
  const source: ConsumptionSource = {
    items: (...asked) => ledger.items(...asked),
    dailyFlow: async (of, query) => {
      const flows = await ledger.dailyFlow(of, query)
      if (!posted) {
        posted = true
        t.notOk(query.itemCodes?.includes(last), 'a later step reads it')
        await ledger.post(tenant, [{ itemCode: last, day: day(5), used: 7 }])
        await derivation.catchUp(tenant, idle.signal)
      }
      return flows
    }
  }
  await createDerivation(source, now, breather).deriveAgain(tenant, { from: day(20) }, idle)
  t.equal(await staleCount(host), 1)
  await derivation.deriveStale(tenant, undefined, idle)
  const stepwise = await everything(host)
  await derivation.deriveAgain(tenant, {}, idle)
  t.same(stepwise, await everything(host))
})

onBothDatabases(t, 'the earliest change of many named items comes first', async (t, host) => {
  const { tenant } = host
  const codes = Array.from({ length: 1200 }, (_, i) => `N${String(i).padStart(4, '0')}`)
  const marks = new Map(codes.map((code, i) => [code, day(i % 2 === 0 ? 40 : (i * 7) % 30)]))
  await tenant.transact(({ db }) => markStale(db, marks))
  const days = (await createConsumptionStore(tenant.db).stale(codes)).map(({ from_day }) => from_day)
  t.same(days, [...marks.values()].sort())
})
