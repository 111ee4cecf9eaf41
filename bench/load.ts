import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import pg from 'pg'
import { seedCatalogue } from './catalogue.js'
import { fire } from './fire.js'
import {
  type Cleanup,
  median,
  newSecret,
  numbers,
  postgres,
  quantile,
  type Service,
  say,
  startService,
  startTarget,
  type Target,
  table,
  withCleanup
} from './support.js'

const PATH = '/api/inventory?limit=50'
const ENCODINGS = ['identity', 'gzip'] as const
type Encoding = (typeof ENCODINGS)[number]
/** Until the compilers are done: a service that has just begun takes twice the time for an answer. */
const WARM_UP_SECONDS = 8
/** The figures of the system that this replaces: the p95 it reached, and at which rate. */
const P95_GOAL_MS = 87
const RATE_GOAL = 850

interface Contender {
  name: string
  target: Target
  token?: string
}

interface Run {
  rate: number
  p50: number
  p95: number
  p99: number
  cpuMicroseconds: number
}

interface Shot {
  connections: number
  seconds: number
  encoding: Encoding
}

/** `--seconds` of load on each contender in turn, `--rounds` times; medians over the rounds. */
export async function run(args: string[]): Promise<void> {
  const options = numbers(args, { seconds: 5, rounds: 3, connections: 100, items: 500 })
  await withCleanup(async (cleanup) => {
    const secret = newSecret()
    const folder = cleanup.folder()
    const file = join(folder, 'inventory.sqlite')
    const cached = await startService(cleanup, { databaseUrl: `sqlite:${file}`, secret })
    say(`Creating ${options.items} items with stock on SQLite`)
    await seedCatalogue(cached, options.items)
    const uncached = await startService(cleanup, { databaseUrl: `sqlite:${file}`, secret, env: { CACHE: 'off' } })
    const peer = await startTarget(cleanup, {
      file: 'bench/target.js',
      args: ['express', file, secret],
      path: '/health/ready'
    })
    const onPostgres = await postgresContenders(cleanup, secret, options.items)
    for (const encoding of ENCODINGS) {
      const contenders: Contender[] = [
        { name: 'bare Fastify, same bytes from memory (a)', target: await bare(cleanup, folder, cached, encoding) },
        { name: 'this, from cache (b)', target: cached, token: cached.token },
        { name: 'this, CACHE=off, SQLite (c)', target: uncached, token: cached.token },
        { name: 'Express stack, SQLite (d)', target: peer, token: cached.token },
        ...onPostgres
      ]
      const results = await measure(contenders, { ...options, encoding })
      report(contenders, results, encoding, options)
    }
    process.stdout.write(
      `\nThe load generator (autocannon, one process) shares ${process.platform} and its CPUs with the server, so a fast target is\nlimited by the generator too, which favours none but shrinks (a) most; CPU µs is the server's own time per answer.\n`
    )
  })
}

async function postgresContenders(cleanup: Cleanup, secret: string, items: number): Promise<Contender[]> {
  const server = await postgres(cleanup)
  if (server === undefined) return []
  const cached = await startService(cleanup, { databaseUrl: server.url, secret })
  say(`Creating ${items} items with stock on PostgreSQL`)
  await seedCatalogue(cached, items)
  // As autovacuum would soon have done.
  await vacuum(server.url)
  const uncached = await startService(cleanup, { databaseUrl: server.url, secret, env: { CACHE: 'off' } })
  return [
    { name: 'this, from cache, PostgreSQL', target: cached, token: cached.token },
    { name: 'this, CACHE=off, PostgreSQL', target: uncached, token: uncached.token }
  ]
}

async function vacuum(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    await client.query('vacuum analyze')
  } finally {
    await client.end()
  }
}

async function bare(cleanup: Cleanup, folder: string, service: Service, encoding: Encoding): Promise<Target> {
  // fetch undoes the encoding, so the file is made of what autocannon's own client would see.
  const { request } = await import('node:http')
  const body = await new Promise<Buffer>((resolve, reject) => {
    request(service.url + PATH, { headers: headersOf(service.token, encoding) }, (answer) => {
      const parts: Buffer[] = []
      answer.on('data', (part: Buffer) => parts.push(part))
      answer.on('end', () => resolve(Buffer.concat(parts)))
    })
      .on('error', reject)
      .end()
  })
  const file = join(folder, `page.${encoding}`)
  writeFileSync(file, body)
  say(`The page: ${body.length.toLocaleString('en')} bytes (${encoding})`)
  return startTarget(cleanup, {
    file: 'bench/target.js',
    args: ['bytes', file, ...(encoding === 'identity' ? [] : [encoding])],
    path: '/health/ready'
  })
}

const headersOf = (token: string | undefined, encoding: Encoding) => ({
  'accept-encoding': encoding,
  ...(token === undefined ? {} : { authorization: `Bearer ${token}` })
})

/** A B C … A B C …, so that whatever else the machine does meets all alike. */
async function measure(contenders: readonly Contender[], options: Shot & { rounds: number }): Promise<Run[][]> {
  const runs: Run[][] = contenders.map(() => [])
  for (const contender of contenders) await shoot(contender, { ...options, seconds: WARM_UP_SECONDS })
  for (let round = 0; round < options.rounds; round++) {
    say(`${options.encoding}: round ${round + 1} of ${options.rounds}`)
    for (const [i, contender] of contenders.entries()) runs[i]?.push(await shoot(contender, options))
  }
  return runs
}

async function shoot({ target, token }: Contender, { connections, seconds, encoding }: Shot): Promise<Run> {
  const url = target.url + PATH
  const fired = await fire(target, { url, connections, duration: seconds, headers: headersOf(token, encoding) })
  const { perSecond: rate, cpuMicroseconds, times } = fired
  const of = (share: number) => quantile(times, share)
  return { rate, p50: of(0.5), p95: of(0.95), p99: of(0.99), cpuMicroseconds }
}

function report(
  contenders: readonly Contender[],
  results: readonly Run[][],
  encoding: Encoding,
  options: object
): void {
  const middle = (i: number, pick: (run: Run) => number) => median((results[i] ?? []).map(pick))
  // The ratio within each round, then the median of those: the machine's mood is the same for both.
  const ratio = (i: number, j: number) =>
    median((results[i] ?? []).map((run, round) => run.rate / (results[j]?.[round]?.rate ?? Number.NaN)))
  const rows = contenders.map(({ name }, i) => [
    name,
    middle(i, ({ rate }) => rate),
    ratio(i, 0),
    ratio(i, 3),
    middle(i, ({ p50 }) => p50),
    middle(i, ({ p95 }) => p95),
    middle(i, ({ p99 }) => p99),
    middle(i, ({ cpuMicroseconds }) => cpuMicroseconds)
  ])
  const goal = (text: string, met: boolean) => `  ${met ? 'met   ' : 'MISSED'}  ${text}`
  const [b, c] = [ratio(1, 0), ratio(2, 3)]
  const p95 = middle(1, (run) => run.p95)
  process.stdout.write(
    [
      `\nGET ${PATH}, ${encoding}, ${Object.entries(options)
        .map(([key, value]) => `${key} ${value}`)
        .join(', ')}, medians\n`,
      table(['', 'req/s', '× (a)', '× (d)', 'p50 ms', 'p95 ms', 'p99 ms', 'CPU µs'], rows),
      goal(`(b) ≥ 0.6 × (a): ${b.toFixed(2)}`, b >= 0.6),
      goal(`(c) ≥ 3 × (d): ${c.toFixed(2)}`, c >= 3),
      goal(
        `p95 < ${P95_GOAL_MS} ms at ≥ ${RATE_GOAL} req/s: ${p95.toFixed(1)} ms`,
        p95 < P95_GOAL_MS && middle(1, ({ rate }) => rate) >= RATE_GOAL
      ),
      ''
    ].join('\n')
  )
}
