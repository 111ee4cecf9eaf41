import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { type Service, serviceEnvironment, startService } from '../service-process.js'
import { freshDatabase, redisUrl } from '../services.js'
import {
  becomes,
  CYCLES,
  checkAnswers,
  checkLedger,
  createItem,
  hangUp,
  LONG,
  Load,
  PHASE_MILLISECONDS,
  post,
  send
} from './harness.js'
import { Line } from './line.js'

/** A slow, silent or cut line to PostgreSQL and to Redis. */

t.teardown(hangUp)
/** Silence that is noticed, a new connection that is not answered, and some for a machine that others load. */
const SILENCE_LIMIT_MS = 12_000

const onHand = async (service: Service): Promise<number> =>
  JSON.parse((await send(service, 'GET', '/api/inventory/A')).text).onHand

t.test('PostgreSQL behind a bad line', async (t) => {
  const database = await freshDatabase()
  t.teardown(() => database.drop())
  const line = await Line.to(t, database.url)
  const service = await startService(t, await serviceEnvironment(t, { DATABASE_URL: line.url(database.url) }))
  await createItem(t, service)
  const load = new Load(t)

  await t.test('slow', async (t) => {
    line.slow(20)
    load.start(service)
    t.ok(await load.more(LONG ? 30 : 15), 'writes go on')
    await load.stop()
    line.slow(0)
    checkAnswers(t, load, [201])
    await checkLedger(t, service, load)
  })

  await t.test(`a commit whose answer is lost, ${CYCLES} times: the same key tells what it did`, async (t) => {
    for (let cycle = 0; cycle < CYCLES; cycle++) {
      const before = await onHand(service)
      line.loseAnswerTo('commit')
      const key = `lost-${cycle}`
      const first = await post(service, key)
      // Others commit as well; whoever it met, is told that it is not known.
      if (first.status === 201) load.acknowledged.set(key, first.text)
      else t.match(first, { status: 503, text: /"code":"DATABASE_UNAVAILABLE"/ })
      const again = await post(service, key)
      t.equal(again.status, 201, again.text)
      t.equal((await post(service, key)).text, again.text, 'the same bytes')
      t.equal(await onHand(service), before + 1, 'what was read before is not answered again')
      load.acknowledged.set(key, again.text)
    }
    await checkLedger(t, service, load)
  })

  await t.test(`cut in the middle of transactions, ${CYCLES} times`, async (t) => {
    for (let cycle = 0; cycle < CYCLES; cycle++) {
      load.start(service)
      t.ok(await load.more(20), 'writes are acknowledged')
      line.cut()
      await load.stop()
    }
    line.refuse(true)
    t.equal((await post(service, 'refused')).status, 503)
    line.refuse(false)
    checkAnswers(t, load, [201, 503])
    await checkLedger(t, service, load.with('refused'))
  })

  await t.test('open and silent', async (t) => {
    load.start(service)
    t.ok(await load.more(20))
    line.silence(true)
    const startedAt = performance.now()
    const seconds = () => ((performance.now() - startedAt) / 1000).toFixed(1)
    t.not(load.openSince(startedAt), 0, 'some are in the middle of a transaction')
    const refused = await post(service, 'silent')
    t.equal(refused.status, 503, refused.text)
    t.ok(refused.milliseconds < SILENCE_LIMIT_MS, `one that comes is refused after ${seconds()} s`)
    while (load.openSince(startedAt) > 0 && performance.now() - startedAt < SILENCE_LIMIT_MS) await sleep(20)
    t.equal(load.openSince(startedAt), 0, `those that were there are told after ${seconds()} s`)
    await becomes(service, 'down')
    if (LONG) await sleep(PHASE_MILLISECONDS)
    line.silence(false)
    t.ok(await load.more(20), 'it goes on by itself')
    await load.stop()
    await becomes(service, 'ok')
    checkAnswers(t, load, [201, 503])
    await checkLedger(t, service, load.with('silent'))
  })
  t.equal(await service.end('SIGTERM'), 0)
})

t.test('Redis behind a bad line: answers go on', async (t) => {
  const line = await Line.to(t, redisUrl())
  const service = await startService(t, await serviceEnvironment(t, { REDIS_URL: line.url(redisUrl()) }))
  await createItem(t, service)
  await becomes(service, 'ok')
  const load = new Load(t)
  for (const [name, on, off] of [
    ['slow', () => line.slow(40), () => line.slow(0)],
    ['cut', () => line.cut(), () => {}],
    ['refused', () => line.refuse(true), () => line.refuse(false)],
    ['silent', () => line.silence(true), () => line.silence(false)]
  ] as const) {
    load.start(service, { clients: 2, pause: 5 })
    on()
    const until = performance.now() + PHASE_MILLISECONDS
    while (performance.now() < until)
      t.equal((await send(service, 'GET', '/api/inventory?limit=5')).status, 200, `${name}: a read is answered`)
    await load.stop()
    off()
    await becomes(service, 'ok', 30_000)
  }
  checkAnswers(t, load, [201])
  await checkLedger(t, service, load)
  t.equal(await service.end('SIGTERM'), 0)
})
