import { once } from 'node:events'
import { get, type IncomingMessage } from 'node:http'
import { createConnection } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { Hub, type Stream } from '../modules/realtime/hub.js'
import type { Auth } from '../plugins/contracts.js'
import { buildApp, client, DIALECTS } from './helper.js'
import { patience } from './patience.js'
import { freshDatabase, startRedis } from './services.js'

/** Streams as clients hear them: on a socket, on one node and on two. */

interface Heard {
  topic: string
  id?: string
  data: { resumed?: boolean; itemCodes?: string[]; reason?: string }
}
interface Listening {
  readonly heard: Heard[]
  /** How it ended. */
  readonly ended: Promise<string | number>
  close(): void
}

const until = patience({ seconds: 10, pauseMs: 5 })

const tokenOf = (app: FastifyInstance, subject = 'ada', tenant = 'main') =>
  app.getDecorator<Auth>('auth').sign({ subject, role: 'viewer', tenant }, 600)

/** `last`: the last message that was seen. */
type Listen = (app: FastifyInstance, token: string, last?: string) => Promise<Listening>

const byWebSocket: Listen = async (app, token, last) => {
  const query = last === undefined ? '' : `?lastEventId=${last}`
  const socket = new WebSocket(`${app.listeningOrigin.replace('http', 'ws')}/api/realtime${query}`, {
    headers: { authorization: `Bearer ${token}` }
  })
  const heard: Heard[] = []
  socket.on('message', (text: Buffer) => heard.push(JSON.parse(text.toString())))
  const ended = new Promise<number>((resolve) => socket.once('close', (code: number) => resolve(code)))
  await once(socket, 'open')
  return { heard, ended, close: () => socket.close() }
}

const bySse: Listen = async (app, token, last) => {
  const headers = {
    authorization: `Bearer ${token}`,
    accept: 'text/event-stream',
    ...(last === undefined ? {} : { 'last-event-id': last })
  }
  const request = get(`${app.listeningOrigin}/api/realtime`, { headers })
  const [response]: IncomingMessage[] = await once(request, 'response')
  if (response === undefined) throw new Error('no answer')
  if (response.statusCode !== 200) throw new Error(`answered ${response.statusCode}`)
  const heard: Heard[] = []
  let text = ''
  response.setEncoding('utf8').on('data', (chunk: string) => {
    const events = (text + chunk).split('\n\n')
    text = events.pop() ?? ''
    for (const event of events) {
      const field = (name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(event)?.[1]
      const [topic, data, id] = [field('event'), field('data'), field('id')]
      if (topic === undefined || data === undefined) continue
      heard.push(id === undefined ? { topic, data: JSON.parse(data) } : { ...JSON.parse(data), id })
    }
  })
  // A client that leaves breaks the answer, which is no news to it.
  response.on('error', () => {})
  const ended = new Promise<string>((resolve) =>
    response.once('close', () => resolve(String(heard.at(-1)?.data.reason ?? 'cut')))
  )
  return { heard, ended, close: () => request.destroy() }
}
const TRANSPORTS: [string, Listen, string | number, string | number][] = [
  ['websocket', byWebSocket, 4401, 1001],
  ['sse', bySse, 'unauthorized', 'closing']
]

async function listening(t: Test, ...options: Parameters<typeof buildApp>): Promise<FastifyInstance> {
  const app = await buildApp(...options)
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.equal(app.server.listening, true)
  return app
}
const item = async (app: FastifyInstance, itemCode: string, tenant = 'main') =>
  client(app, 'manager', { tenant }).post('/api/inventory', { itemCode, name: itemCode, unit: 'each' })
const receive = async (app: FastifyInstance, itemCode: string, tenant = 'main') => {
  const body = { type: 'receipt', lines: [{ itemCode, quantity: 1 }] }
  return (await client(app, 'manager', { tenant }).post('/api/movements', body)).status
}
const codes = ({ heard }: Listening) =>
  heard.filter(({ topic }) => topic === 'inventory.stock.moved').flatMap(({ data }) => data.itemCodes ?? [])
const metric = async (app: FastifyInstance, name: string) =>
  Number(
    (await client(app, 'admin').get('/metrics')).text
      .split('\n')
      .find((line) => line.startsWith(`${name} `))
      ?.split(' ')[1]
  )

for (const dialect of DIALECTS) {
  t.test(
    `${dialect}: what is posted is heard, what was missed comes first, and streams end when they should`,
    async (t) => {
      const app = await listening(t, t, { dialect })
      for (const code of ['A', 'B', 'C']) t.equal((await item(app, code)).status, 201)
      for (const [name, listen, unauthorized] of TRANSPORTS) {
        const stream = await listen(app, tokenOf(app))
        await until('ready', () => stream.heard.length > 0)
        t.same(stream.heard[0], { topic: 'ready', data: { resumed: false } }, name)
        t.equal(await receive(app, 'A'), 201)
        await until('A', () => codes(stream).length === 1)
        t.match(stream.heard.at(-1), {
          topic: 'inventory.stock.moved',
          id: /^[0-9a-f-]{36}$/,
          data: { itemCodes: ['A'] }
        })
        const last = stream.heard.at(-1)?.id
        stream.close()
        await stream.ended
        t.equal(await receive(app, 'B'), 201)
        t.equal(await receive(app, 'C'), 201)
        const again = await listen(app, tokenOf(app), last)
        await until('B and C', () => codes(again).length === 2)
        t.same(again.heard[0], { topic: 'ready', data: { resumed: true } })
        t.same(codes(again), ['B', 'C'], 'in their order, and nothing twice')
        again.close()
        await again.ended
        const lost = await listen(app, tokenOf(app), '00000000-0000-7000-8000-000000000000')
        await until('ready', () => lost.heard.length > 0)
        t.same(lost.heard[0], { topic: 'ready', data: { resumed: false } }, 'what is not known is not resumed')

        // Disabled: everything it holds counts no more, at once.
        const admin = client(app, 'admin')
        const made = await admin.post('/api/users', {
          username: `eve-${name}`,
          role: 'viewer',
          displayName: 'Eve',
          password: 'correct horse battery staple'
        })
        t.equal(made.status, 201)
        const locked = await listen(app, tokenOf(app, made.body.id))
        await until('ready', () => locked.heard.length > 0)
        const path = `/api/users/${made.body.id}`
        const { etag = '' } = (await admin.get(path)).headers
        t.equal((await admin.patch(path, { disabled: true }, { 'if-match': etag })).status, 200)
        t.equal(await receive(app, 'A'), 201)
        t.equal(await locked.ended, unauthorized, 'who may not listen any more is sent away')
        t.same(codes(locked), [], 'and hears nothing of it')
        await until('A', () => codes(lost).length === 1)
        lost.close()
        await lost.ended
      }
      // The server hears of the client's farewell in its own time.
      const open = async () =>
        (await metric(app, 'realtime_streams{transport="sse"}')) +
        (await metric(app, 'realtime_streams{transport="websocket"}'))
      await until('the farewells', async () => (await open()) === 0)
      t.equal(await metric(app, 'realtime_streams{transport="sse"}'), 0)
      t.equal(await metric(app, 'realtime_streams{transport="websocket"}'), 0)
      t.equal(
        await metric(app, 'http_requests_in_flight'),
        1,
        'the scrape itself: what became a stream ended as a request'
      )
    }
  )
}

t.test('a tenant hears its own, and who has no right hears nothing', async (t) => {
  const app = await listening(t, t, { dialect: 'sqlite', tenancy: 'multi' })
  const tenants = app.getDecorator<{ create(id: string): Promise<unknown> }>('tenants')
  for (const tenant of ['alpha', 'beta']) {
    await tenants.create(tenant)
    t.equal((await item(app, tenant, tenant)).status, 201)
  }
  const streams = await Promise.all(['alpha', 'beta'].map((tenant) => byWebSocket(app, tokenOf(app, 'ada', tenant))))
  for (const tenant of ['alpha', 'beta']) t.equal(await receive(app, tenant, tenant), 201)
  await until('both', () => streams.every((stream) => codes(stream).length > 0))
  t.same(streams.map(codes), [['alpha'], ['beta']])
  for (const [listen, error] of [
    [byWebSocket, /401/],
    [bySse, /401/]
  ] as const)
    await t.rejects(listen(app, 'nonsense'), error)
  const cookie = { cookie: '__Host-inventory-access=x; inventory-access=x' }
  const foreign = new WebSocket(`${app.listeningOrigin.replace('http', 'ws')}/api/realtime`, {
    headers: { ...cookie, origin: 'https://evil.example' }
  })
  const [refused] = await once(foreign, 'error')
  t.match(String(refused), /40[13]/, 'a page of another site opens no socket by a cookie')
  t.match(await client(app, 'viewer', { tenant: 'alpha' }).get('/api/realtime'), {
    status: 406,
    body: { code: 'REALTIME_NOT_ACCEPTABLE' }
  })
  const talking = await byWebSocket(app, tokenOf(app, 'ada', 'alpha'))
  const socket = new WebSocket(`${app.listeningOrigin.replace('http', 'ws')}/api/realtime`, {
    headers: { authorization: `Bearer ${tokenOf(app, 'ada', 'alpha')}` }
  })
  await once(socket, 'open')
  socket.send('hello')
  t.equal((await once(socket, 'close'))[0], 1003, 'a client only listens')
  talking.close()
  const many = await Promise.all(Array.from({ length: 20 }, () => byWebSocket(app, tokenOf(app, 'greedy', 'alpha'))))
  await t.rejects(bySse(app, tokenOf(app, 'greedy', 'alpha')), /429/, 'one caller takes no more than its share')
  await t.rejects(byWebSocket(app, tokenOf(app, 'greedy', 'alpha')), /429/)
  for (const each of [...many, ...streams]) each.close()

  // A socket that was not made a WebSocket is ended with its answer, on every path.
  for (const [path, status] of [
    ['/api/realtime', 401],
    ['/health', 200],
    ['/nowhere', 404]
  ] as const) {
    const bare = createConnection(Number(new URL(app.listeningOrigin).port), '127.0.0.1')
    let said = ''
    bare.setEncoding('utf8').on('data', (text: string) => {
      said += text
    })
    bare.write(`GET ${path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n`)
    await once(bare, 'close')
    t.match(said, new RegExp(`^HTTP/1.1 ${status} `), path)
  }
})

t.test('two nodes: heard on both, and told when something may have been missed', async (t) => {
  const database = await freshDatabase()
  const redis = await startRedis()
  t.teardown(async () => {
    await redis.stop()
    await database.drop()
  })
  const config = { DATABASE_URL: database.url }
  const nodes = []
  for (const _ of [1, 2]) nodes.push(await listening(t, t, { dialect: 'postgres', redisUrl: redis.url, config }))
  const [one, two] = nodes
  if (one === undefined || two === undefined) throw new Error('two nodes were built')
  for (const code of ['A', 'B']) t.equal((await item(one, code)).status, 201)
  const streams = await Promise.all(
    nodes.flatMap((node) => [byWebSocket(node, tokenOf(node)), bySse(node, tokenOf(node))])
  )
  await until('ready', () => streams.every(({ heard }) => heard.length > 0))
  // Where Redis does not answer at once, as on a busy machine, those who could not be told of a message are told to load again.
  const told = ({ heard }: Listening) => heard.filter(({ topic }) => topic !== 'ready').length
  const missed = ({ heard }: Listening) => heard.filter(({ topic }) => topic === 'reset').length
  const delays: number[] = []
  for (let n = 0; n < 20; n++) {
    const counts = streams.map(told)
    t.equal(await receive(n % 2 === 0 ? one : two, 'A'), 201)
    const acknowledgedAt = performance.now()
    await until(`message ${n}`, () => streams.every((stream, index) => told(stream) > (counts[index] ?? 0)))
    delays.push(performance.now() - acknowledgedAt)
  }
  t.comment(`heard everywhere after ${Math.max(...delays).toFixed(0)} ms at most`)
  for (const stream of streams) {
    const ids = stream.heard.flatMap(({ id }) => id ?? [])
    t.equal(new Set(ids).size, ids.length, 'nothing twice')
    if (missed(stream) === 0) t.equal(ids.length, 20, 'and nothing is missing')
  }
  const elsewhere = await byWebSocket(two, tokenOf(two), streams[0]?.heard.findLast(({ id }) => id !== undefined)?.id)
  await until('ready', () => elsewhere.heard.length > 0)
  if (streams.every((stream) => missed(stream) === 0))
    t.same(elsewhere.heard[0]?.data, { resumed: true }, 'the other node knows where it was')

  await redis.kill()
  t.equal(await receive(one, 'B'), 201)
  await until('on one', () => codes(streams[0] ?? elsewhere).includes('B'))
  await redis.restart()
  await until('reset', () => [...streams, elsewhere].every(({ heard }) => heard.some(({ topic }) => topic === 'reset')))
  // The line of who listens is back; that of who tells them comes back by itself.
  const before = codes(elsewhere).length
  await until('again', async () => {
    t.equal(await receive(one, 'A'), 201)
    await sleep(100)
    return codes(elsewhere).length > before
  })

  const endings = [...streams, elsewhere].map(({ ended }) => ended)
  await Promise.all(nodes.map((node) => node.close()))
  t.same(await Promise.all(endings), [1001, 'closing', 1001, 'closing', 1001], 'a node that closes says so')
})

t.test('a client that does not take what it is sent is let go', async (t) => {
  let [waiting, ended] = [0, '']
  const stream: Stream = {
    transport: 'sse',
    subject: 'deaf',
    allowed: async () => true,
    ready: () => {},
    send: () => {
      waiting += 1_000
    },
    reset: () => {},
    waiting: () => waiting,
    beat: () => false,
    end: (reason) => {
      ended = reason
      leave()
    }
  }
  const counted: string[] = []
  const metrics = { sent: () => {}, ended: (reason: string) => void counted.push(reason), gap: () => {} }
  const hub = new Hub({ metrics: () => metrics, waitingBytesMax: 10_000 })
  const leave = hub.add('main', stream, undefined)
  const message = { id: '00000000-0000-7000-8000-000000000000', topic: 'x', at: '2026-01-01T00:00:00.000Z', data: {} }
  for (let n = 0; n < 10; n++) await hub.publish('main', message, true)
  t.equal(ended, '', 'ten thousand bytes may wait')
  await hub.publish('main', message, true)
  t.equal(ended, 'slow')
  t.equal(hub.size, 0)
  const endings: string[] = []
  hub.add('main', { ...stream, end: (reason) => void endings.push(reason) }, undefined)
  await hub.beat()
  t.same(endings, ['silent'])
  t.same(counted, ['slow', 'silent'])
  hub.close()
})

t.test('messages of two nodes come to each in another order, and none is missed by who changes nodes', async (t) => {
  const metrics = { sent: () => {}, ended: () => {}, gap: () => {} }
  const hub = new Hub({ metrics: () => metrics, waitingBytesMax: 10_000 })
  const heard: string[] = []
  const told: boolean[] = []
  const stream: Stream = {
    transport: 'websocket',
    subject: 'ada',
    allowed: async () => true,
    ready: (resumed) => void told.push(resumed),
    send: ({ id }) => void heard.push(id),
    reset: () => {},
    waiting: () => 0,
    beat: () => true,
    end: () => {}
  }
  hub.add('main', { ...stream, send: () => {} }, undefined)
  const publish = (id: string, own: boolean) =>
    hub.publish('main', { id, topic: 'x', at: '2026-01-01T00:00:00.000Z', data: {} }, own)
  for (const [id, own] of [
    ['mine-1', true],
    ['theirs-1', false],
    ['mine-2', true],
    ['theirs-2', false]
  ] as const)
    await publish(id, own)
  const since = (last: string) => {
    heard.length = 0
    hub.add('main', stream, last)()
    return [...heard]
  }
  t.same(since('mine-1'), ['theirs-1', 'mine-2', 'theirs-2'])
  t.same(since('mine-2'), ['theirs-1', 'theirs-2'], 'who saw the second of ours may not have seen what came between')
  t.same(since('theirs-2'), ['mine-1', 'theirs-1', 'mine-2'], 'nor any of ours')
  t.same(since('nothing'), [])
  t.same(told, [false, true, true, true, false])
  hub.close()
})
