/** What is known beforehand: the calendar, figures, and how they reach models, explanations and anomalies. */
import t from 'tap'
import { Check } from 'typebox/value'
import { createCalendar, easter, firstGap, occurrences, yearlyDay } from '../modules/forecasting/calendar.js'
import { columnOf } from '../modules/forecasting/known.js'
import { Factors } from '../modules/forecasting/models/factors.js'
import { forecast, loadModels } from '../modules/forecasting/models/index.js'
import { NIGHTLY_JOB } from '../modules/forecasting/nightly.js'
import { dayNumber, dayText } from '../modules/forecasting/series.js'
import type { JobService } from '../plugins/jobs/index.js'
import { Event, type FactorEffect, Regressor } from '../schemas/calendar.js'
import { Explanation, Forecast } from '../schemas/forecasting.js'
import { day, type Host, nightlyOf, onBothDatabases, random, weeklyUse } from './ai-harness.js'

const WAIT = { prefer: 'wait=60' }
const QUICK = { models: ['stl-damped'] }

t.test('rules', async (t) => {
  // US Naval Observatory; 22 March and 25 April are the earliest and the latest there are.
  for (const date of ['1818-03-22', '2024-03-31', '2025-04-20', '2026-04-05', '2027-03-28', '2038-04-25'])
    t.equal(dayText(easter(Number(date.slice(0, 4)))), date)
  const on = (rule: Parameters<typeof yearlyDay>[0], year: number) => {
    const found = yearlyDay(rule, year)
    return found === undefined ? undefined : dayText(found)
  }
  t.equal(on({ month: 11, weekday: 4, nth: 4 }, 2026), '2026-11-26', 'Thanksgiving')
  t.equal(on({ month: 5, weekday: 1, nth: -1 }, 2026), '2026-05-25', 'the last Monday of May')
  t.equal(on({ month: 12, weekday: 7, nth: 1 }, 2024), '2024-12-01')
  t.equal(on({ month: 2, weekday: 1, nth: 5 }, 2026), undefined, 'there is no fifth Monday')
  t.equal(on({ month: 2, day: 29 }, 2026), undefined)
  t.equal(on({ month: 2, day: 29 }, 2028), '2028-02-29')
  t.equal(on({ easterOffsetDays: 1 }, 2026), '2026-04-06')
  const within = (from: string, to: string, event: Parameters<typeof occurrences>[0]) =>
    occurrences(event, dayNumber(from), dayNumber(to)).map(dayText)
  t.same(within('2025-12-25', '2027-12-24', { dates: null, yearly: { month: 12, day: 25 } }), [
    '2025-12-25',
    '2026-12-25'
  ])
  t.same(within('2026-01-02', '2026-01-09', { dates: ['2026-01-09', '2026-01-01'], yearly: null }), ['2026-01-09'])
})

t.test('what touches a series', async (t) => {
  const [start, end, until] = [dayNumber('2026-01-01'), dayNumber('2026-03-31'), dayNumber('2026-04-28')]
  const entry = { kind: 'event' as const, yearly: null, daysBefore: 0, daysAfter: 0, category: null, itemCode: null }
  const calendar = createCalendar(
    [
      {
        ...entry,
        id: 'a',
        name: 'Fair',
        dates: ['2026-02-10', '2026-02-11', '2026-04-03'],
        daysBefore: 2,
        daysAfter: 1
      },
      { ...entry, id: 'b', name: 'New', dates: ['2026-04-09'], category: 'Dry' },
      { ...entry, id: 'c', name: 'Works', kind: 'closure', dates: ['2026-03-02', '2026-04-20'], itemCode: 'X' }
    ],
    [
      {
        id: 'd',
        name: 'guests',
        category: null,
        itemCode: null,
        values: new Map([
          [end - 40, 5],
          [end - 39, 7]
        ])
      }
    ],
    start,
    until
  )
  const known = calendar.of({ itemCode: 'X', category: 'Dry' }, start, end, until)
  t.same(
    known.factors.map(({ part, days }) => [part, days.map(dayText)]),
    [
      ['day', ['2026-02-10', '2026-02-11', '2026-04-03']],
      ['before', ['2026-02-08', '2026-02-09', '2026-04-01', '2026-04-02']],
      ['after', ['2026-02-12', '2026-04-04']]
    ]
  )
  t.same(known.closed.map(dayText), ['2026-03-02', '2026-04-20'])
  t.same(
    known.unused.map(({ name, used, reason, dates }) => [name, used, reason, dates]),
    [
      ['New', false, 'not-seen', ['2026-04-09']],
      ['Works', true, null, ['2026-04-20']],
      ['guests', false, 'incomplete: 2026-02-21', []]
    ]
  )
  const other = calendar.of({ itemCode: 'Y', category: 'Fresh' }, start, end, until)
  t.same([other.factors.length, other.closed, other.unused.map(({ name }) => name)], [3, [], ['guests']])
  t.equal(
    firstGap(
      new Map([
        [1, 0],
        [2, 0]
      ]),
      1,
      2
    ),
    undefined
  )
  const [fair] = known.factors
  const weeks = fair && columnOf(fair, { start: dayNumber('2026-02-02'), periods: 3, horizon: 1, stepDays: 7 })
  t.same([...(weeks?.values ?? [])], [0, 2 / 7, 0, 0], 'a share of the week')
})

t.test('effects', async (t) => {
  const [n, horizon, at] = [210, 28, 220]
  const next = random(3)
  const event = new Float64Array(n + horizon)
  const guests = Float64Array.from(event, (_, i) => 100 + 30 * Math.sin(i / 9) + 20 * next())
  for (const i of [20, 51, 82, 113, 144, 175, at]) event[i] = 1
  const clean = Float64Array.from(event, (_, i) => 20 * (1 + ((i % 7) - 3) / 6) * (1 + 0.01 * (guests[i]! - 100)))
  const truth = clean.map((value, i) => value * (event[i] === 1 ? 3 : 1))
  const values = truth.slice(0, n).map((value) => Math.round(value * (0.9 + 0.2 * next())))
  const factors = [
    { values: event, event: true },
    { values: guests, event: false }
  ]
  const learnt = new Factors(factors, 7).effects(values)
  t.ok(Math.abs(learnt.perUnit[0]! - 2) < 0.4, `an event triples: ${learnt.perUnit[0]}`)
  t.ok(Math.abs(learnt.perUnit[1]! - 0.01) < 0.002, `a guest is one per cent: ${learnt.perUnit[1]}`)
  t.same([...new Factors(factors, 7).effects(values.slice(0, 20)).occurrences], [0, 20], 'before it was ever seen')

  await loadModels(['prophet', 'arima'])
  const input = { values, frequency: 'day', horizon, startDate: '2025-01-06' } as const
  const wape = (mean: Float64Array) => {
    const actual = truth.subarray(n)
    return mean.reduce((sum, value, k) => sum + Math.abs(value - actual[k]!), 0) / actual.reduce((a, b) => a + b)
  }
  for (const models of [undefined, ['prophet'], ['arima'], ['ar']] as const) {
    const named = models === undefined ? {} : { models }
    const known = forecast({ ...input, ...named, factors })
    const blind = forecast({ ...input, ...named })
    const name = models?.[0] ?? 'the default'
    t.equal(known.factors?.applied, true, name)
    t.ok(wape(known.mean) < 0.7 * wape(blind.mean), `${name}: ${wape(known.mean)} knowing, ${wape(blind.mean)} not`)
    t.ok(known.mean[at - n]! > 1.6 * clean[at]!, `${name} expects the event: ${known.mean[at - n]} of ${truth[at]}`)
  }
  // A figure that has nothing to do with demand must not spoil it.
  const noise = [{ values: guests.map(() => next()), event: false }]
  const [idle, plain] = [forecast({ ...input, factors: noise }), forecast(input)]
  t.ok(wape(idle.mean) < 1.1 * wape(plain.mean), `${wape(idle.mean)} beside ${wape(plain.mean)}`)
  t.throws(() => forecast({ ...input, factors: [{ values: event.subarray(1), event: true }] }), {
    code: 'FORECAST_FACTOR_INVALID'
  })
})

const factorsOf = ({ factors = [] }: { factors?: FactorEffect[] }, name: string) =>
  factors.filter((each) => each.name === name)
const pointOf = ({ points }: Forecast, n: number) => points.find(({ date }) => date === day(n))?.mean ?? Number.NaN

async function retrained(host: Host) {
  const { app, tenant } = host
  const jobs = app.getDecorator<JobService>('jobs')
  const nightly = nightlyOf(host)
  await Promise.all([nightly.startRequested(tenant), nightly.startRequested(tenant)])
  const started = (await jobs.list(tenant, { kind: NIGHTLY_JOB })).map(([, job]) => job)
  return { count: started.length, last: started[0] && (await jobs.wait(tenant, started[0].id, 60)) }
}

onBothDatabases(t, 'the calendar over HTTP', async (t, host) => {
  const { ledger, tenant, call, clock } = host
  const fair = [40, 75, 110, 145, 180]
  const use = (code: string, seed: number) =>
    weeklyUse(code, 200, 20, seed).map((one) =>
      fair.map(day).includes(one.day) ? { ...one, used: (one.used ?? 0) * 3 } : one
    )
  await ledger.post(tenant, [...use('Dry:A', 1), ...weeklyUse('B', 200, 20, 2)])
  await call('POST', '/api/ai/forecast/train', QUICK, WAIT)
  const blind: Forecast = (await call('GET', '/api/ai/forecast/Dry:A')).body
  t.equal(blind.factors, undefined)
  const anomalies = async () => {
    const { body } = await call('POST', '/api/ai/consumption/detect-anomalies', { itemCodes: ['Dry:A'] })
    return body.data.filter((one: { date: string }) => fair.map(day).includes(one.date)).length
  }

  const event = { name: 'Fair', dates: [...fair, 205].map(day), category: 'Dry' }
  const key = { 'idempotency-key': 'fair' }
  const made = await call('POST', '/api/ai/events', event, key)
  t.equal(made.status, 201)
  t.ok(Check(Event, made.body))
  t.match(made.body, { kind: 'event', daysBefore: 0, upcoming: [day(205)], createdBy: 'tester' })
  t.same((await call('POST', '/api/ai/events', event, key)).body, made.body, 'once')
  t.equal(await anomalies(), 0, 'what was known beforehand is no anomaly')

  const first = await retrained(host)
  t.match(
    [first.count, first.last],
    [1, { status: 'succeeded', result: { trained: 1, skipped: 1 } }],
    'what it touches'
  )
  t.equal((await retrained(host)).count, 1, 'asked for once, started once')
  const under: Forecast = (await call('GET', '/api/ai/forecast/Dry:A')).body
  t.ok(Check(Forecast, under))
  const ratio = pointOf(under, 205) / pointOf(under, 212)
  t.ok(ratio > 2 && ratio < 4, `the fair to come: ${ratio} times a week later`)
  t.ok(pointOf(blind, 205) / pointOf(blind, 212) < 1.5)
  const [effect] = factorsOf(under, 'Fair')
  t.match(effect, { part: 'day', used: true, reason: null, occurrences: 5, dates: [day(205)] })
  t.ok(effect?.effectPercent != null && Math.abs(effect.effectPercent - 200) < 60, `${effect?.effectPercent} %`)
  t.equal((await call('GET', '/api/ai/forecast/B')).body.factors, undefined, 'another category')
  for (const [language, text] of [
    ['en', /Fair changes use by \+[\d.]+ %/],
    ['fr', /Fair change la consommation de \+[\d.,]+ %/]
  ] as const) {
    const { body } = await call('GET', '/api/ai/forecast/Dry:A/explanation', undefined, { 'accept-language': language })
    t.ok(Check(Explanation, body))
    t.match(body.sentence, text)
    t.equal(factorsOf(body, 'Fair')[0]?.effectPercent, effect?.effectPercent)
  }

  const closure = { name: 'Inventory', kind: 'closure', yearly: { month: 7, day: Number(day(207).slice(8)) } }
  t.equal(day(207).slice(5, 7), '07')
  const closed = await call('POST', '/api/ai/events', { ...closure, itemCode: 'B' })
  t.equal(closed.status, 201)
  t.match((await retrained(host)).last, { result: { trained: 1, skipped: 1 } })
  const shut: Forecast = (await call('GET', '/api/ai/forecast/B')).body
  t.equal(pointOf(shut, 207), 0, 'nothing is used on a day that is closed')
  t.ok(pointOf(shut, 206) > 5)
  t.match((await call('GET', '/api/ai/forecast/B/explanation')).body.sentence, /closed on 1 of the days to come/)

  const pinned = await call('POST', '/api/ai/forecast/train', { itemCodes: ['B'], models: ['prophet'] }, WAIT)
  t.same(pinned.body.result.models, { prophet: 1 })
  t.match((await call('GET', '/api/ai/forecast/B')).body, {
    model: 'prophet',
    members: [{ model: 'prophet', weight: 1 }],
    reason: 'named'
  })

  const url = `/api/ai/events/${made.body.id}`
  const { headers } = await call('GET', url)
  const put = (body: object, extra = {}) => call('PUT', url, body, extra)
  t.equal((await put({ ...event, dates: [day(30)] }, { 'if-match': '"other"' })).status, 412)
  t.equal((await put({ ...event, dates: fair.map(day) }, { 'if-match': String(headers.etag) })).status, 200)
  t.match((await retrained(host)).last, { result: { trained: 1 } })
  const after: Forecast = (await call('GET', '/api/ai/forecast/Dry:A')).body
  t.ok(pointOf(after, 205) / pointOf(after, 212) < 1.5, 'no fair any more')
  const page = await call('GET', '/api/ai/events?limit=1')
  t.equal(page.body.data[0].id, closed.body.id, 'newest first')
  t.equal((await call('GET', `/api/ai/events?cursor=${page.body.page.nextCursor}`)).body.data[0].id, made.body.id)
  t.equal((await call('DELETE', url)).status, 200)
  t.equal((await call('GET', url)).body.code, 'FORECAST_EVENT_NOT_FOUND')
  t.ok((await anomalies()) >= fair.length - 1, 'nothing explains them any more')

  const refused = async (body: object, code: string) =>
    t.equal((await call('POST', '/api/ai/events', body)).body.code, code, JSON.stringify(body))
  await refused({ name: 'x' }, 'FORECAST_EVENT_DATES')
  await refused({ name: 'x', dates: [day(1)], yearly: { month: 1, day: 1 } }, 'FORECAST_EVENT_DATES')
  await refused({ name: 'x', yearly: { month: 2, day: 30 } }, 'FORECAST_EVENT_NEVER')
  await refused({ name: 'x', yearly: { month: 2, day: 29 }, itemCode: 'NOPE' }, 'FORECAST_ITEM_NOT_FOUND')
  await refused({ name: 'x', dates: ['2026-02-30'] }, 'REQUEST_INVALID')
  t.equal(clock.now, Date.parse(day(200)))
})

onBothDatabases(t, 'figures over HTTP', async (t, host) => {
  const { ledger, tenant, call } = host
  const next = random(9)
  const guests = Array.from({ length: 240 }, () => Math.round(60 + 80 * next()))
  await ledger.post(tenant, [
    { itemCode: 'A', day: day(0), received: 1_000_000 },
    ...guests.slice(1, 200).map((value, i) => ({ itemCode: 'A', day: day(i + 1), used: Math.round(value / 4) }))
  ])
  await call('POST', '/api/ai/consumption/derive', {}, WAIT)
  const { status, body } = await call('POST', '/api/ai/regressors', { name: 'guests', description: 'Booked' })
  t.equal(status, 201)
  t.ok(Check(Regressor, body))
  t.equal((await call('POST', '/api/ai/regressors', { name: 'guests' })).body.code, 'FORECAST_REGRESSOR_EXISTS')
  const url = `/api/ai/regressors/${body.id}`
  const values = (from: number, to: number) =>
    guests.slice(from, to).map((value, i) => ({ date: day(from + i), value }))
  const past = await call('PUT', `${url}/values`, { values: [...values(0, 200), { date: day(0), value: 1 }] })
  t.match(past.body, { from: day(0), to: day(199), missing: 0 })
  const named = { ...QUICK, regressors: ['guests'] }
  const refused = await call('POST', '/api/ai/forecast/train', named)
  t.match(refused, {
    status: 422,
    body: { code: 'FORECAST_REGRESSOR_INCOMPLETE', regressor: 'guests', missingDay: day(200), neededTo: day(227) }
  })
  const unknown = await call('POST', '/api/ai/forecast/train', { regressors: ['moon'] })
  t.equal(unknown.body.code, 'FORECAST_REGRESSOR_NOT_FOUND')
  const without = await call('POST', '/api/ai/forecast/train', QUICK, WAIT)
  t.match(without.body.result, {
    trained: 1,
    unusedRegressors: [{ name: 'guests', reason: `incomplete: ${day(200)}` }]
  })
  const blind: Forecast = (await call('GET', '/api/ai/forecast/A')).body
  t.match(factorsOf(blind, 'guests'), [{ used: false, reason: `incomplete: ${day(200)}` }])

  t.match((await call('PUT', `${url}/values`, { values: values(200, 228) })).body, { to: day(227), missing: 0 })
  t.match(
    (await retrained(host)).last,
    { result: { trained: 1, skipped: 0 } },
    'values that are new ask for a training'
  )
  const knowing: Forecast = (await call('GET', '/api/ai/forecast/A')).body
  t.match(factorsOf(knowing, 'guests'), [{ part: 'figure', used: true, reason: null }])
  const error = (found: Forecast) =>
    found.points.reduce((sum, { mean }, k) => sum + Math.abs(mean - (guests[200 + k] ?? 0) / 4), 0) / 28
  t.ok(error(knowing) < 0.4 * error(blind), `${error(knowing)} knowing the guests, ${error(blind)} not`)
  t.equal((await call('POST', '/api/ai/forecast/train', named, WAIT)).body.result.skipped, 1, 'as it was trained')
  const none = await call('POST', '/api/ai/forecast/train', { ...QUICK, regressors: [] }, WAIT)
  t.equal(none.body.result.trained, 1)
  t.equal((await call('GET', '/api/ai/forecast/A')).body.factors, undefined, 'none was wanted')

  const list = await call('GET', `${url}/values?limit=2&from=${day(198)}`)
  t.same(list.body.data, values(198, 200))
  const rest = await call('GET', `${url}/values?limit=100&from=${day(198)}&cursor=${list.body.page.nextCursor}`)
  t.same(rest.body.data, values(200, 228))
  const [purpose] = JSON.parse(Buffer.from(list.body.page.nextCursor, 'base64url').toString())
  for (const at of ['soon', '2026-13-01', '+010000-01']) {
    const forged = Buffer.from(JSON.stringify([purpose, at])).toString('base64url')
    const refused = await call('GET', `${url}/values?limit=2&from=${day(198)}&cursor=${forged}`)
    t.match(refused, { status: 400, body: { code: 'CURSOR_INVALID' } }, at)
  }
  t.same((await call('GET', '/api/ai/regressors')).body.data, [(await call('GET', url)).body])
  t.equal((await call('DELETE', url)).status, 200)
  t.equal((await call('GET', url)).body.code, 'FORECAST_REGRESSOR_NOT_FOUND')
})
