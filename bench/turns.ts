import type { FastifyInstance } from 'fastify'
import { loadConfig } from '../plugins/config/index.js'
import type { Auth } from '../plugins/contracts.js'
import { build } from '../server.js'
import { BenchError, Cleanup, newSecret, random } from './support.js'
import { buildUntraced } from './untraced.js'

/**
 * A process that `bench/telemetry.ts` starts: the service with its hooks, and twice without them, in turns of a millisecond or so in
 * an order that is drawn, so that whatever else the machine does meets all three. No socket: what is compared is a smaller request
 * than a real one, so a ratio is an upper bound.
 */

const CONTENDERS = ['without', 'again', 'by'] as const
export type Turn = Readonly<Record<(typeof CONTENDERS)[number], number>>
export const LOADS = {
  read: { batch: 10, what: 'GET /api/inventory?limit=50 from the cache' },
  write: { batch: 16, what: 'POST /api/movements, one line, SQLite' }
} as const
export type Load = keyof typeof LOADS
/** CPU time of one request, in µs, for each turn, whose requests are sent at once: on SQLite they share a commit, as under load. */
export type Turns = Record<Load, Turn[]>

const WARM_UP_TURNS = 60
const ITEM = { itemCode: 'ITEM', name: 'Item', unit: 'each' }
const RECEIPT = { type: 'receipt', lines: [{ itemCode: ITEM.itemCode, quantity: 1 }] }

if (import.meta.filename === process.argv[1]) {
  const [seed, read, write] = process.argv.slice(2).map(Number)
  const cleanup = new Cleanup()
  try {
    process.stdout.write(
      JSON.stringify(await measure(cleanup, random(seed ?? 1), { read: read ?? 1, write: write ?? 1 }))
    )
  } finally {
    await cleanup.run()
  }
}

async function measure(cleanup: Cleanup, next: () => number, turns: Record<Load, number>): Promise<Turns> {
  const config = () =>
    loadConfig({ DATA_DIR: cleanup.folder(), JWT_SECRET: newSecret(), SECRETS_KEY: newSecret(), LOG_LEVEL: 'warn' })
  const contenders = new Map<(typeof CONTENDERS)[number], Record<Load, () => Promise<void>>>()
  // Who starts first is drawn too: what runs first shapes what the compiler makes of the code that they share.
  for (const name of shuffled(next)) {
    const service = await (name === 'by' ? build(config()) : buildUntraced(config()))
    cleanup.add(() => service.close())
    contenders.set(name, await senders(service))
  }
  const found: Turns = { read: [], write: [] }
  for (const load of ['read', 'write'] as const) {
    const { batch } = LOADS[load]
    for (let n = -Math.min(WARM_UP_TURNS, turns[load]); n < turns[load]; n++) {
      const turn = { without: Number.NaN, again: Number.NaN, by: Number.NaN }
      for (const name of shuffled(next)) {
        const send = contenders.get(name)?.[load] ?? (async () => {})
        // User and system together: the kernel knows their sum exactly, and how much is which by samples.
        const before = process.cpuUsage()
        await Promise.all(Array.from({ length: batch }, send))
        const { user, system } = process.cpuUsage(before)
        turn[name] = (user + system) / batch
      }
      if (n >= 0) found[load].push(turn)
    }
  }
  return found
}

function shuffled(next: () => number) {
  const drawn = CONTENDERS.map((name) => ({ name, place: next() })).sort((a, b) => a.place - b.place)
  return drawn.map(({ name }) => name)
}

async function senders(service: FastifyInstance): Promise<Record<Load, () => Promise<void>>> {
  await service.ready()
  const token = service.getDecorator<Auth>('auth').sign({ subject: 'cli', role: 'admin', tenant: 'main' }, 86_400)
  const authorization = `Bearer ${token}`
  let key = 0
  const post = async (url: string, payload: object) => {
    const headers = { authorization, 'idempotency-key': `turn-${key++}` }
    const { statusCode, body } = await service.inject({ method: 'POST', url, headers, payload })
    if (statusCode !== 201) throw new BenchError(`${url}: ${statusCode} ${body}`)
  }
  await post('/api/inventory', ITEM)
  return {
    read: async () => {
      const { statusCode } = await service.inject({ url: '/api/inventory?limit=50', headers: { authorization } })
      if (statusCode !== 200) throw new BenchError(`the list: ${statusCode}`)
    },
    write: () => post('/api/movements', RECEIPT)
  }
}
