import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import type autocannon from 'autocannon'
import Fastify from 'fastify'
import { createTokens } from '../plugins/auth.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Tenants } from '../plugins/core.js'
import { build } from '../server.js'
import { fire } from './fire.js'
import type { Scrapes } from './scraper.js'
import {
  BenchError,
  median,
  newSecret,
  numbers,
  postgres,
  quantile,
  type Service,
  say,
  startService,
  table,
  withCleanup
} from './support.js'

const GOAL_MS = 50
const GOAL_SERIES = 6_000

type Row = (string | number)[]

/** `GET /metrics` of a process with many tenants, idle and while as many requests are served as it can, beside the cheapest route. */
export async function run(args: string[]): Promise<void> {
  const options = numbers(args, { tenants: 100, items: 50, seconds: 10, connections: 50 })
  await withCleanup(async (cleanup) => {
    const rows: Row[] = []
    const secret = newSecret()
    const tenants = Array.from({ length: options.tenants }, (_, n) => `tenant-${n}`)
    const urls = new Map([['SQLite', `sqlite:${join(cleanup.folder(), 'inventory.sqlite')}`]])
    const server = await postgres(cleanup, { max_connections: '100' })
    if (server !== undefined) urls.set('PostgreSQL', server.url)
    for (const [name, databaseUrl] of urls) {
      const env = { TENANCY: 'multi', RATE_LIMIT_PER_MINUTE: '0' }
      await seed(
        { ...env, DATABASE_URL: databaseUrl, JWT_SECRET: secret, DATA_DIR: cleanup.folder() },
        tenants,
        options.items
      )
      const service = await startService(cleanup, { databaseUrl, secret, env })
      rows.push(...(await measure(name, service, await tokensOf(secret, tenants), options)))
    }
    process.stdout.write(
      [
        `\n${options.tenants} tenants of ${options.items} items; goal: a scrape in less than ${GOAL_MS} ms at full load, at most ${GOAL_SERIES} series`,
        table(
          [
            '',
            'scrapes',
            'p50 ms',
            'p95 ms',
            'max ms',
            '/health/live p50',
            'p95',
            'CPU of one, ms',
            'requests/s',
            'series',
            ''
          ],
          rows
        ),
        ''
      ].join('\n')
    )
  })
}

async function seed(env: Record<string, string>, tenants: readonly string[], items: number): Promise<void> {
  say(`making ${tenants.length} tenants`)
  const app = await build(loadConfig({ NODE_ENV: 'test', LOG_LEVEL: 'warn', SECRETS_KEY: newSecret(), ...env }))
  await app.ready()
  for (const tenant of tenants) {
    await app.getDecorator<Tenants>('tenants').create(tenant)
    const headers = { authorization: `Bearer ${(await tokensOf(env.JWT_SECRET ?? '', [tenant]))[0]}` }
    const rows = Array.from({ length: items }, (_, n) => `ITEM-${n},Item ${n},each`)
    const answer = await app.inject({
      method: 'POST',
      url: '/api/import/items',
      headers: { ...headers, 'content-type': 'text/csv', prefer: 'wait=60' },
      payload: `itemCode,name,unit\n${rows.join('\n')}\n`
    })
    if (answer.statusCode !== 200) throw new BenchError(`import: ${answer.statusCode} ${answer.body.slice(0, 300)}`)
  }
  await app.close()
}

async function tokensOf(secret: string, tenants: readonly string[]): Promise<string[]> {
  const app = Fastify()
  const tokens = createTokens(app, { keys: [{ id: 'default', secret }] })
  await app.ready()
  return tenants.map((tenant) => tokens.sign({ subject: 'bench', role: 'admin', tenant }, 86_400))
}

async function measure(
  name: string,
  service: Service,
  tokens: readonly string[],
  { seconds, connections }: { seconds: number; connections: number }
): Promise<Row[]> {
  const rows: Row[] = []
  const during = async (phase: string, load: () => Promise<number>) => {
    say(`${name}: ${phase}`)
    const scraper = new Worker(new URL('./scraper.js', import.meta.url), { workerData: service.url })
    const told = new Promise<Scrapes>((resolve, reject) => scraper.once('message', resolve).once('error', reject))
    const cpuBefore = service.cpuMilliseconds()
    const rate = await load()
    scraper.postMessage('over')
    const { scrapes, controls, text } = await told
    const cpu = (service.cpuMilliseconds() - cpuBefore) / scrapes.length
    const series = text.split('\n').filter((line) => line !== '' && !line.startsWith('#')).length
    const p95 = quantile(scrapes, 0.95)
    rows.push([
      `${name}, ${phase}`,
      scrapes.length,
      median(scrapes),
      p95,
      Math.max(...scrapes),
      median(controls),
      quantile(controls, 0.95),
      rate === 0 ? cpu : Number.NaN,
      rate === 0 ? '' : rate,
      series,
      p95 < GOAL_MS && series <= GOAL_SERIES ? '' : 'MISSED'
    ])
  }
  await during('idle', async () => {
    await sleep(seconds * 1000)
    return 0
  })
  await during('full load', async () => {
    let next = 0
    // Lists of items, of one tenant after the other.
    const setupRequest = (one: autocannon.Request) => ({
      ...one,
      headers: { authorization: `Bearer ${tokens[next++ % tokens.length]}` }
    })
    const requests = [{ method: 'GET' as const, path: '/api/inventory?limit=50', setupRequest }]
    return (await fire(service, { connections, duration: seconds, requests })).perSecond
  })
  return rows
}
