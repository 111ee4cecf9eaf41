import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { generateX25519Identity } from 'age-encryption'
import Sqlite from 'better-sqlite3'
import { post, seedCatalogue } from './catalogue.js'
import {
  BenchError,
  type Cleanup,
  newSecret,
  numbers,
  postgres,
  progress,
  random,
  say,
  startService,
  table,
  withCleanup
} from './support.js'

const CLI = fileURLToPath(new URL('../cli.js', import.meta.url))
const LINES = 1_000
/** What is posted through the service; the rest are copies of it. */
const POSTED_SHARE = 1 / 40
const OPENING = 20_000
const SAMPLE_MS = 20
const PEAK_MEGABYTES = 300
const RESTORE_SECONDS = 300

interface Ran {
  seconds: number
  /** The most memory that the process had, and of that what is its own: the rest is mapped from files. */
  peakMegabytes: number
  ownMegabytes: number
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
    await seed(cleanup, env, secret, { moves: Math.ceil(moves * POSTED_SHARE), items })
    const posted = countPosted(path)
    const rows = []
    let times = 1
    for (const size of [moves / 4, moves]) {
      const wanted = Math.ceil(size / posted.moves)
      grow(path, posted, times, wanted)
      times = wanted
      rows.push(...(await measure(env, times * posted.moves, path, server?.url)))
    }
    const goal = `backup < ${PEAK_MEGABYTES} MB, restore of 1 GB < ${RESTORE_SECONDS} s`
    process.stdout.write(
      [
        `\nBackups of a database with ${items} items, by the console: start, encryption and proofs are counted`,
        table(
          ['moves', '', 'rows', 'database MB', 'backup MB', 's', 's for 1 GB', 'peak RSS MB', 'own MB', goal],
          rows
        ),
        'MB are of 10^6 bytes, of the SQLite file. “own” is what is not mapped from files. “start alone” is a command that opens the service and does nothing: what every other one has too.\nWith a passphrase instead of a key 128 MB are needed once, before the first row.\n'
      ].join('\n')
    )
  })
}

async function measure(env: Record<string, string>, moves: number, path: string, postgresUrl: string | undefined) {
  say(`measuring at ${moves} moves`)
  const size = statSync(path).size / 1e6
  const ran: [what: string, Ran][] = []
  const measured = async (what: string, more: Record<string, string>, args: string[]) => {
    ran.push([what, await command({ ...env, ...more }, [...args, '--json'])])
    say(`${what}: ${ran.at(-1)?.[1].seconds.toFixed(0)} s, ${ran.at(-1)?.[1].peakMegabytes.toFixed(0)} MB`)
  }
  await measured('start alone', {}, ['users', 'list'])
  await measured('backup of SQLite', {}, ['backup'])
  const archive = newestMegabytes(env.BACKUP_URL ?? '')
  await measured('verify', {}, ['backup', 'verify'])
  const restored = `${path}.restored`
  await measured('restore to SQLite', { DATABASE_URL: `sqlite:${restored}` }, ['restore', '--yes'])
  // The next size takes its room.
  for (const suffix of ['', '-wal', '-shm']) rmSync(restored + suffix, { force: true })
  if (postgresUrl !== undefined) {
    const onPostgres = { DATABASE_URL: postgresUrl }
    await measured('restore to PostgreSQL', onPostgres, ['restore', '--yes'])
    await measured('backup of PostgreSQL', { ...onPostgres, BACKUP_URL: join(env.DATA_DIR ?? '', 'second') }, [
      'backup'
    ])
  }
  const start = ran[0]?.[1].seconds ?? 0
  return ran.map(([what, { seconds, peakMegabytes, ownMegabytes, told }]) => {
    const forOneGigabyte = what === 'start alone' ? Number.NaN : start + ((seconds - start) / size) * 1000
    const met = what.startsWith('restore') ? forOneGigabyte < RESTORE_SECONDS : peakMegabytes < PEAK_MEGABYTES
    return [
      moves.toLocaleString('en'),
      what,
      Number(told.rows ?? Number.NaN),
      size,
      archive,
      seconds,
      forOneGigabyte,
      peakMegabytes,
      ownMegabytes,
      met ? 'met' : 'MISSED'
    ]
  })
}

function newestMegabytes(store: string): number {
  const folder = join(store, 'tenants', 'main')
  return statSync(join(folder, readdirSync(folder).sort().at(-1) ?? '')).size / 1e6
}

/** Runs `inventory …` and watches its memory. */
async function command(env: Record<string, string>, args: string[]): Promise<Ran> {
  const startedAt = performance.now()
  const child = spawn(process.execPath, [CLI, ...args], { env, stdio: ['ignore', 'pipe', 'inherit'] })
  let [text, peakMegabytes, ownMegabytes] = ['', 0, 0]
  child.stdout.on('data', (chunk: Buffer) => {
    text += chunk.toString()
  })
  const watch = setInterval(() => {
    peakMegabytes = Math.max(peakMegabytes, memoryOf(child.pid, 'VmHWM'))
    ownMegabytes = Math.max(ownMegabytes, memoryOf(child.pid, 'RssAnon'))
  }, SAMPLE_MS)
  const [code] = await once(child, 'close')
  clearInterval(watch)
  if (code !== 0) throw new BenchError(`inventory ${args.join(' ')} ended with ${code}`)
  const told: unknown = JSON.parse(text)
  return { seconds: (performance.now() - startedAt) / 1000, peakMegabytes, ownMegabytes, told: Object(told) }
}

/** In MB; 0 where the system does not tell. `VmHWM` is the most so far. */
function memoryOf(pid: number | undefined, field: 'VmHWM' | 'RssAnon'): number {
  try {
    const status = readFileSync(`/proc/${pid ?? 0}/status`, 'utf8')
    return (Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1] ?? 0) * 1024) / 1e6
  } catch {
    return 0
  }
}

interface Seed {
  moves: number
  items: number
}

/** Receipts and issues over HTTP, a thousand lines at a time; the service ends, so that the console is alone. */
async function seed(
  cleanup: Cleanup,
  env: Record<string, string>,
  secret: string,
  { moves, items }: Seed
): Promise<void> {
  const { BACKUP_URL: _none, ...without } = env
  const service = await startService(cleanup, { databaseUrl: env.DATABASE_URL ?? '', secret, env: without })
  const codes = await seedCatalogue(service, items, OPENING)
  const next = random(1)
  const advance = progress('moves', moves)
  for (let n = 0; n < moves; n += LINES) {
    const lines = Array.from({ length: Math.min(LINES, moves - n) }, () => ({
      itemCode: codes[Math.floor(next() * codes.length)],
      quantity: Math.ceil(next() * 9)
    }))
    await post(service, '/api/movements', { type: next() < 0.5 ? 'issue' : 'receipt', reference: `bench ${n}`, lines })
    advance(n + lines.length)
  }
  await service.end('SIGTERM')
}

interface Posted {
  /** The last transaction. */
  readonly last: number
  readonly moves: number
}

function countPosted(path: string): Posted {
  const db = new Sqlite(path, { readonly: true })
  const count = (query: string) => Number(db.prepare(query).pluck().get())
  try {
    return {
      last: count('select max(seq) from stock_transactions'),
      moves: count('select count(*) from stock_moves')
    }
  } finally {
    db.close()
  }
}

const hex = (bytes: number) => `lower(hex(randomblob(${bytes})))`
/** What is another in a copy. */
const COPIED = {
  stock_transactions: {
    seq: 'seq + @shift',
    id: [hex(4), hex(2), `'7' || substr(${hex(2)}, 2)`, `'8' || substr(${hex(2)}, 2)`, hex(6)].join(" || '-' || ")
  },
  stock_moves: { transaction_seq: 'transaction_seq + @shift' }
}

/**
 * Posts all that was posted through the service so many times in all, past the service: balances and values are then as many times
 * what they were, which every restore recomputes from the moves.
 */
function grow(path: string, { last }: Posted, from: number, to: number): void {
  const db = new Sqlite(path)
  const copy = (table: string, changed: Readonly<Record<string, string>>) => {
    const names = db.prepare('select name from pragma_table_info(?)').pluck().all(table).map(String)
    const [key] = Object.keys(changed)
    return db.prepare(
      `insert into ${table} (${names}) select ${names.map((name) => changed[name] ?? name)} from ${table} where ${key} <= @last`
    )
  }
  try {
    db.pragma('synchronous = OFF')
    db.pragma('cache_size = -1000000')
    const copies = Object.entries(COPIED).map(([table, changed]) => copy(table, changed))
    const advance = progress('copied', to - from)
    for (let n = from; n < to; n++) {
      db.transaction(() => {
        for (const statement of copies) statement.run({ shift: n * last, last })
      })()
      advance(n - from + 1)
    }
    db.exec(`update stock_balances set on_hand = on_hand / ${from} * ${to};
      update item_totals set on_hand = on_hand / ${from} * ${to}, value = value / ${from} * ${to}`)
    db.pragma('wal_checkpoint(TRUNCATE)')
  } finally {
    db.close()
  }
}
