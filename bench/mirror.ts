import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { MirrorFiles, type MirrorOrder } from '../plugins/mirror/index.js'
import { MIRROR_TABLES } from '../plugins/mirror/side.js'
import { sqliteSide } from '../plugins/mirror/sqlite-side.js'
import { movementSender, seedCatalogue } from './catalogue.js'
import { fire } from './fire.js'
import {
  BenchError,
  median,
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

const OPENING = 900_000
const next = random(5)

interface Phase {
  perSecond: number
  mean: number
  p50: number
  cpuMicroseconds: number
}

/** What a mirror costs a write: phases with it and without it take turns in one run, and neighbours are compared. */
export async function run(args: string[]): Promise<void> {
  const { seconds, pairs, items, clients, rate } = numbers(args, {
    seconds: 1,
    pairs: 20,
    items: 200,
    clients: 16,
    rate: 400
  })
  await withCleanup(async (cleanup) => {
    const server = await postgres(cleanup)
    if (server === undefined) throw new BenchError('this bench needs PostgreSQL')
    const path = join(cleanup.folder(), 'inventory.sqlite')
    const service = await startService(cleanup, {
      databaseUrl: `sqlite:${path}`,
      secret: newSecret(),
      env: { MIRROR_URL: server.url }
    })
    const codes = await seedCatalogue(service, items, OPENING)
    const load = (rate?: number) => post(service, codes, { connections: clients, duration: seconds, rate })
    await load()
    const rows = []

    say('noting changes, with nobody who reads them')
    const side = sqliteSide(path, [{ notCopied: MIRROR_TABLES }])
    cleanup.add(() => side.close())
    rows.push(
      row(
        'changes are noted',
        await paired(
          pairs,
          () => load(),
          async (on) => {
            if (on) await side.capture()
            else await side.release()
          }
        )
      )
    )
    say('the whole mirror, PostgreSQL on the same machine')
    const files = new MirrorFiles(path)
    const turn = (on: boolean) => order(files, on ? 'start' : 'stop')
    const few = Math.ceil(pairs / 2)
    rows.push(row(`and copied, at ${rate} writes a second`, await paired(few, () => load(rate), turn)))
    rows.push(row('and copied, at the limit of this machine', await paired(few, () => load(), turn)))
    process.stdout.write(
      [
        `\nPostings over HTTP with an Idempotency-Key, ${clients} clients, SQLite; phases of ${seconds} s without and with take turns`,
        table(
          ['', 'pairs', 'without /s', 'with /s', 'time of a write', '(quartiles)', 'p50', 'CPU of the service'],
          rows
        ),
        'Ratios are with : without, the median of neighbouring phases; the time of a write is the mean. At the limit PostgreSQL, the mirror’s thread and\nthe clients take the same cores from the service; the CPU of the whole mirror counts its own thread too.\n'
      ].join('\n')
    )
  })
}

type Pairs = { without: Phase; with: Phase }[]

async function paired(count: number, load: () => Promise<Phase>, turn: (on: boolean) => Promise<void>): Promise<Pairs> {
  const found: Pairs = []
  for (let n = 0; n < count; n++) {
    const phases: { on?: Phase; off?: Phase } = {}
    for (const which of n % 2 === 0 ? (['off', 'on'] as const) : (['on', 'off'] as const)) {
      await turn(which === 'on')
      phases[which] = await load()
    }
    if (phases.on !== undefined && phases.off !== undefined) found.push({ without: phases.off, with: phases.on })
    await turn(false)
  }
  return found
}

function row(name: string, pairs: Pairs): (string | number)[] {
  const ratios = (of: (phase: Phase) => number) => pairs.map((pair) => of(pair.with) / of(pair.without))
  const times = ratios(({ mean }) => mean)
  return [
    name,
    String(pairs.length),
    median(pairs.map(({ without }) => without.perSecond)),
    median(pairs.map((pair) => pair.with.perSecond)),
    median(times).toFixed(3),
    `${quantile(times, 0.25).toFixed(3)}–${quantile(times, 0.75).toFixed(3)}`,
    median(ratios(({ p50 }) => p50)).toFixed(3),
    median(ratios(({ cpuMicroseconds }) => cpuMicroseconds)).toFixed(3)
  ]
}

async function post(
  service: Service,
  codes: readonly string[],
  { connections, duration, rate }: { connections: number; duration: number; rate?: number | undefined }
): Promise<Phase> {
  const sender = { method: 'POST' as const, path: '/api/movements', setupRequest: movementSender(service, codes, next) }
  const { perSecond, times, cpuMicroseconds } = await fire(service, {
    connections,
    duration,
    ...(rate === undefined ? {} : { overallRate: rate }),
    requests: [sender]
  })
  const mean = times.reduce((sum, time) => sum + time, 0) / times.length
  return { perSecond, mean, p50: quantile(times, 0.5), cpuMicroseconds }
}

async function order(files: MirrorFiles, what: MirrorOrder): Promise<void> {
  const id = randomUUID()
  files.setCommand({ id, order: what })
  for (;;) {
    const outcome = files.report()?.outcome
    if (outcome?.id === id && outcome.status === 'failed') throw new BenchError(outcome.error ?? 'the mirror failed')
    if (outcome?.id === id && outcome.status === 'done') return
    await sleep(50)
  }
}
