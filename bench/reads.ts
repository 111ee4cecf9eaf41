import { Agent } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Job } from '../schemas/common.js'
import { ask } from './client.js'
import {
  BenchError,
  type Cleanup,
  newSecret,
  numbers,
  postgres,
  quantile,
  random,
  type Service,
  say,
  startService,
  table,
  withCleanup
} from './support.js'

const DAY_MS = 86_400_000
const GOAL_P95_MS = 5
const PAUSE_MS = 4
const WARM_UP_MS = 5_000

interface Options {
  items: number
  days: number
  seconds: number
}
type Row = (string | number)[]

/** `GET /api/ai/forecast/:itemCode` past every cache, while nothing else runs and while the data are derived and trained. */
export async function run(args: string[]): Promise<void> {
  const options = numbers(args, { items: 400, days: 200, seconds: 5 })
  await withCleanup(async (cleanup) => {
    const sqlite = `sqlite:${join(cleanup.folder(), 'inventory.sqlite')}`
    const rows = await measure(cleanup, 'SQLite', sqlite, options)
    const server = await postgres(cleanup)
    if (server !== undefined) rows.push(...(await measure(cleanup, 'PostgreSQL', server.url, options)))
    process.stdout.write(
      [
        `\nOne reader, CACHE=off, ${options.items} items of ${options.days} days; goal: p95 below ${GOAL_P95_MS} ms, also while training runs`,
        table(['', 'reads', 'p50 ms', 'p95 ms', 'p99 ms', 'max ms', 'event loop held at most, ms', ''], rows),
        'The last figure but one is the longest delay of the server’s own event loop in that time (nodejs_eventloop_lag_max_seconds).\n'
      ].join('\n')
    )
  })
}

async function measure(cleanup: Cleanup, name: string, databaseUrl: string, options: Options): Promise<Row[]> {
  const service = await startService(cleanup, { databaseUrl, secret: newSecret(), env: { CACHE: 'off' } })
  say(`${name}: importing ${options.items} items of ${options.days} days`)
  const codes = await seed(service, options)
  await finished(service, await start(service, '/api/ai/forecast/train', { models: ['naive'] }))
  const rows: Row[] = []
  const during = async (phase: string, until: Promise<unknown>) => {
    say(`${name}: ${phase}`)
    await eventLoopHeld(service)
    const samples = await readUntil(service, codes, until)
    const held = await eventLoopHeld(service)
    const p95 = quantile(samples, 0.95)
    const verdict = p95 < GOAL_P95_MS ? '' : 'MISSED'
    rows.push([
      `${name}, ${phase}`,
      samples.length,
      quantile(samples, 0.5),
      p95,
      quantile(samples, 0.99),
      Math.max(...samples),
      held,
      verdict
    ])
  }
  const job = async (path: string, body: object) => finished(service, await start(service, path, body))
  // A reader that is new spends more on its own compiling than what it measures takes.
  await readUntil(service, codes, sleep(WARM_UP_MS))
  await during('idle', sleep(options.seconds * 1000))
  await during('deriving', job('/api/ai/consumption/derive', {}))
  await during('training all, for the first time', job('/api/ai/forecast/train', {}))
  // By other models, so that all have to be trained again.
  await job('/api/ai/forecast/train', { models: ['naive'] })
  await during('training all again', job('/api/ai/forecast/train', {}))
  await during('training categories and total', job('/api/ai/forecast/aggregate/train', {}))
  await during('idle again', sleep(options.seconds * 1000))
  return rows
}

async function readUntil(service: Service, codes: readonly string[], until: Promise<unknown>): Promise<number[]> {
  let over = false
  const ended = until.finally(() => {
    over = true
  })
  const next = random(5)
  const samples: number[] = []
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  const headers = { authorization: `Bearer ${service.token}` }
  while (!over) {
    const code = codes[Math.floor(next() * codes.length)] ?? ''
    const startedAt = performance.now()
    const { status } = await ask(agent, `${service.url}/api/ai/forecast/${code}`, { headers })
    samples.push(performance.now() - startedAt)
    if (status !== 200) throw new BenchError(`GET forecast of ${code}: ${status}`)
    await sleep(PAUSE_MS)
  }
  await ended
  agent.destroy()
  return samples
}

/** The longest delay since it was last asked for, in ms. */
async function eventLoopHeld({ url }: Service): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text()
  return 1000 * Number(/^nodejs_eventloop_lag_max_seconds(?:\{[^}]*\})? (\S+)/m.exec(text)?.[1] ?? Number.NaN)
}

async function call(service: Service, method: string, path: string, body?: string, headers = {}) {
  const answer = await fetch(service.url + path, {
    method,
    headers: { authorization: `Bearer ${service.token}`, ...headers },
    ...(body === undefined ? {} : { body })
  })
  const text = await answer.text()
  if (!answer.ok) throw new BenchError(`${method} ${path}: ${answer.status} ${text.slice(0, 300)}`)
  return JSON.parse(text)
}
/** The service tells when the job has ended: to ask for it again and again would hold up the reader, whose thread this is. */
const start = (service: Service, path: string, body: object): Promise<Job> =>
  call(service, 'POST', path, JSON.stringify(body), { 'content-type': 'application/json', prefer: 'wait=60' })

async function finished(service: Service, begun: Job): Promise<void> {
  let job = begun
  while (job.finishedAt === null) {
    await sleep(1000)
    job = await call(service, 'GET', `/api/jobs/${job.id}`)
  }
  if (job.status !== 'succeeded') throw new BenchError(`${job.kind}: ${job.status} ${job.error?.message ?? ''}`)
}

async function seed(service: Service, { items, days }: Options): Promise<string[]> {
  const codes = Array.from({ length: items }, (_, n) => `ITEM-${String(n).padStart(5, '0')}`)
  const csv = { 'content-type': 'text/csv', prefer: 'wait=600' }
  const names = codes.map((code, n) => `${code},Item ${code},each,Category ${n % 7}`)
  await finished(
    service,
    await call(service, 'POST', '/api/import/items', `itemCode,name,unit,category\n${names.join('\n')}\n`, csv)
  )
  const first = Date.now() - (days + 1) * DAY_MS
  const next = random(1)
  const rows = codes.map((code) => `${code},receipt,1000000,${new Date(first).toISOString()}`)
  for (let day = 1; day <= days; day++) {
    const at = new Date(first + day * DAY_MS).toISOString()
    for (const [n, code] of codes.entries()) {
      const quantity = Math.round((2 + (n % 23)) * (1 + ((day % 7) - 3) / 6) * (0.5 + next()))
      if (quantity > 0) rows.push(`${code},issue,${quantity},${at}`)
    }
  }
  await finished(
    service,
    await call(service, 'POST', '/api/import/movements', `itemCode,type,quantity,occurredAt\n${rows.join('\n')}\n`, csv)
  )
  return codes
}
