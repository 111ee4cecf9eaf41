import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { generateX25519Identity } from 'age-encryption'
import { post, seedCatalogue } from './catalogue.js'
import {
  BenchError,
  type Cleanup,
  newSecret,
  numbers,
  postgres,
  progress,
  random,
  type Service,
  say,
  startService,
  table,
  withCleanup
} from './support.js'

const CLI = fileURLToPath(new URL('../cli.js', import.meta.url))
const LINES = 1_000
const SAMPLE_MS = 20

interface Ran {
  seconds: number
  peakMegabytes: number
  told: Record<string, unknown>
}

/** Full backups, their reading and their restoring, at two sizes: time, throughput, and the most memory that the process had. */
export async function run(args: string[]): Promise<void> {
  const { moves, items } = numbers(args, { moves: 1_000_000, items: 500 })
  await withCleanup(async (cleanup) => {
    const server = await postgres(cleanup)
    const folder = cleanup.folder()
    const secret = newSecret()
    const path = join(folder, 'inventory.sqlite')
    const env = {
      ...{ PATH: process.env.PATH ?? '', NODE_ENV: 'production', DATA_DIR: folder, DATABASE_URL: `sqlite:${path}` },
      ...{ JWT_SECRET: secret, SECRETS_KEY: newSecret(), BACKUP_URL: join(folder, 'store') },
      ...{ BACKUP_IDENTITY: await generateX25519Identity(), BACKUP_INCREMENT_SECONDS: '0', BACKUP_DRILL_DAYS: '0' }
    }
    const rows = []
    let done = 0
    for (const size of [moves / 4, moves]) {
      await seed(cleanup, env, secret, { from: done, to: size, items })
      done = size
      rows.push(...(await measure(env, size, path, server?.url)))
    }
    process.stdout.write(
      [
        `\nBackups of a SQLite database with ${items} items, by the console: start, encryption and proofs are counted`,
        table(['moves', '', 'rows', 'database MB', 'backup MB', 's', 'MB/s of database', 'peak RSS MB'], rows),
        'MB are of 10^6 bytes. “start alone” is a command that opens the service and does nothing: what every other one has too.\nWith a passphrase instead of a key 128 MB are needed once, before the first row.\n'
      ].join('\n')
    )
  })
}

async function measure(env: Record<string, string>, moves: number, path: string, postgresUrl: string | undefined) {
  say(`measuring at ${moves} moves`)
  const megabytes = (bytes: number) => bytes / 1e6
  const idle = await command(env, ['users', 'list', '--json'])
  const backup = await command(env, ['backup', '--json'])
  const size = megabytes(statSync(path).size)
  const folder = join(env.BACKUP_URL ?? '', 'tenants', 'main')
  const archive = megabytes(statSync(join(folder, readdirSync(folder).sort().at(-1) ?? '')).size)
  const verify = await command(env, ['backup', 'verify', '--json'])
  const restores: [string, Ran][] = [
    [
      'restore to SQLite',
      await command({ ...env, DATABASE_URL: `sqlite:${path}.restored` }, ['restore', '--yes', '--json'])
    ]
  ]
  if (postgresUrl !== undefined)
    restores.push([
      'restore to PostgreSQL',
      await command({ ...env, DATABASE_URL: postgresUrl }, ['restore', '--yes', '--json'])
    ])
  const all: [string, Ran][] = [['start alone', idle], ['backup', backup], ['verify', verify], ...restores]
  return all.map(([name, { seconds, peakMegabytes, told }]) => [
    moves.toLocaleString('en'),
    name,
    Number(told.rows ?? Number.NaN),
    size,
    archive,
    seconds,
    name === 'start alone' ? Number.NaN : size / seconds,
    peakMegabytes
  ])
}

/** Runs `inventory …` and watches its memory. */
async function command(env: Record<string, string>, args: string[]): Promise<Ran> {
  const startedAt = performance.now()
  const child = spawn(process.execPath, [CLI, ...args], { env, stdio: ['ignore', 'pipe', 'inherit'] })
  let [text, peakMegabytes] = ['', 0]
  child.stdout.on('data', (chunk: Buffer) => {
    text += chunk.toString()
  })
  const watch = setInterval(() => {
    peakMegabytes = Math.max(peakMegabytes, highWater(child.pid))
  }, SAMPLE_MS)
  const [code] = await once(child, 'close')
  clearInterval(watch)
  if (code !== 0) throw new BenchError(`inventory ${args.join(' ')} ended with ${code}`)
  const told: unknown = JSON.parse(text)
  return { seconds: (performance.now() - startedAt) / 1000, peakMegabytes, told: Object(told) }
}

/** The most memory that a process has had so far, in MB; 0 where the system does not tell. */
function highWater(pid: number | undefined): number {
  try {
    const status = readFileSync(`/proc/${pid ?? 0}/status`, 'utf8')
    return (Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024) / 1e6
  } catch {
    return 0
  }
}

interface Seed {
  from: number
  to: number
  items: number
}

/** Receipts and issues over HTTP, a thousand lines at a time; the service ends, so that the console is alone. */
async function seed(
  cleanup: Cleanup,
  env: Record<string, string>,
  secret: string,
  { from, to, items }: Seed
): Promise<void> {
  const { BACKUP_URL: _none, ...without } = env
  const service = await startService(cleanup, { databaseUrl: env.DATABASE_URL ?? '', secret, env: without })
  const codes = from === 0 ? await seedCatalogue(service, items, 900_000) : await codesOf(service)
  const next = random(from + 1)
  const advance = progress('moves', to - from)
  for (let n = from; n < to; n += LINES) {
    const lines = Array.from({ length: Math.min(LINES, to - n) }, () => ({
      itemCode: codes[Math.floor(next() * codes.length)],
      quantity: Math.ceil(next() * 9)
    }))
    await post(service, '/api/movements', { type: next() < 0.5 ? 'issue' : 'receipt', reference: `bench ${n}`, lines })
    advance(n - from + lines.length)
  }
  await service.end('SIGTERM')
}

async function codesOf(service: Service): Promise<string[]> {
  const answer = await fetch(`${service.url}/api/inventory?limit=500`, {
    headers: { authorization: `Bearer ${service.token}` }
  })
  const { data }: { data: { itemCode: string }[] } = JSON.parse(await answer.text())
  return data.map(({ itemCode }) => itemCode)
}
