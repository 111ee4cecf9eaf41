import { join } from 'node:path'
import type autocannon from 'autocannon'
import { listening } from '../test/ports.js'
import { movementSender, seedCatalogue } from './catalogue.js'
import { fire } from './fire.js'
import {
  type Cleanup,
  median,
  newSecret,
  numbers,
  quantile,
  random,
  type Service,
  say,
  signToken,
  startTarget,
  table,
  withCleanup
} from './support.js'

const OPENING = 900_000
const WARM_UP_SECONDS = 1.5
const next = random(7)

interface Contender extends Service {
  name: string
  codes: readonly string[]
}
type Load = 'read' | 'write'
interface Phase {
  perSecond: number
  p50: number
  cpuMicroseconds: number
}

/** What traces cost a request over HTTP. All contenders take turns in each round and are compared with the first of the same round. */
export async function run(args: string[]): Promise<void> {
  const defaults = { seconds: 2, rounds: 12, connections: 32, items: 200 }
  const { seconds, rounds, connections, items } = numbers(args, defaults)
  await withCleanup(async (cleanup) => {
    const endpoint = await startDrain(cleanup)
    const traced = { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint }
    const few = { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0.01' }
    const settings: [name: string, env: Record<string, string>][] = [
      ['traces off, the default (control)', {}],
      ['the same once more (noise)', {}],
      ['traces on, 1 in 100 kept', { ...traced, ...few }],
      ['traces on, all kept', traced]
    ]
    say(`Creating ${items} items with stock for each of ${settings.length}`)
    const contenders: Contender[] = []
    for (const [name, env] of settings) contenders.push(await start(cleanup, { name, env, items }))
    const options = { seconds, rounds, connections }
    for (const load of ['read', 'write'] as const)
      report(load, contenders, await measure(contenders, load, options), options)
  })
}

async function start(
  cleanup: Cleanup,
  { name, env, items }: { name: string; env: Record<string, string>; items: number }
): Promise<Contender> {
  const secret = newSecret()
  const databaseUrl = `sqlite:${join(cleanup.folder(), 'inventory.sqlite')}`
  const own = { DATA_DIR: cleanup.folder(), DATABASE_URL: databaseUrl, JWT_SECRET: secret, SECRETS_KEY: newSecret() }
  const target = await startTarget(cleanup, {
    file: 'server.js',
    env: { LOG_LEVEL: 'warn', ...own, ...env },
    path: '/health/ready'
  })
  const service = { ...target, token: await signToken(secret), databaseUrl }
  return { ...service, name, codes: await seedCatalogue(service, items, OPENING) }
}

/** A collector that takes everything and keeps nothing. */
async function startDrain(cleanup: Cleanup): Promise<string> {
  const { url, close } = await listening((request, response) => {
    request.resume().on('end', () => response.writeHead(200).end())
  })
  cleanup.add(close)
  return url
}

interface Options {
  seconds: number
  rounds: number
  connections: number
}

async function measure(contenders: readonly Contender[], load: Load, options: Options): Promise<Phase[][]> {
  const phases: Phase[][] = contenders.map(() => [])
  for (const each of contenders) await shoot(each, load, { ...options, seconds: WARM_UP_SECONDS })
  for (let round = 0; round < options.rounds; round++) {
    say(`${load}: round ${round + 1} of ${options.rounds}`)
    // Nobody is always first, or always after the same one.
    const from = round % contenders.length
    const turned = [...contenders.entries()].slice(from).concat([...contenders.entries()].slice(0, from))
    for (const [n, contender] of round % 2 === 0 ? turned : turned.reverse())
      phases[n]?.push(await shoot(contender, load, options))
  }
  return phases
}

async function shoot(contender: Contender, load: Load, { seconds, connections }: Options): Promise<Phase> {
  const headers = { authorization: `Bearer ${contender.token}` }
  const request: autocannon.Request =
    load === 'read'
      ? { method: 'GET', path: '/api/inventory?limit=50', headers }
      : { method: 'POST', path: '/api/movements', setupRequest: movementSender(contender, contender.codes, next) }
  const fired = await fire(contender, { connections, duration: seconds, requests: [request] })
  return { ...fired, p50: quantile(fired.times, 0.5) }
}

function report(load: Load, contenders: readonly Contender[], phases: readonly Phase[][], options: Options): void {
  const control = phases[0] ?? []
  const rows = contenders.map(({ name }, n) => {
    const own = phases[n] ?? []
    const ratios = own.map(
      ({ cpuMicroseconds }, round) => cpuMicroseconds / (control[round]?.cpuMicroseconds ?? Number.NaN)
    )
    return [
      name,
      median(own.map(({ perSecond }) => perSecond)),
      median(own.map(({ p50 }) => p50)),
      median(own.map(({ cpuMicroseconds }) => cpuMicroseconds)).toFixed(1),
      median(ratios).toFixed(3),
      `${quantile(ratios, 0.25).toFixed(3)}–${quantile(ratios, 0.75).toFixed(3)}`
    ]
  })
  const what = load === 'read' ? 'GET /api/inventory?limit=50 from the cache' : 'POST /api/movements, one line, SQLite'
  process.stdout.write(
    `\n${what}; ${options.connections} connections, ${options.rounds} rounds of ${options.seconds} s\n${table(
      ['', 'a second', 'p50 ms', 'CPU µs', 'CPU : control', '(quartiles)'],
      rows
    )}\n`
  )
}
