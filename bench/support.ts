import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import Fastify from 'fastify'
import { createTokens } from '../plugins/auth.js'
import { freePort } from '../test/ports.js'
import { startPostgres } from '../test/services.js'

/** What is said to the user in one line, without a stack. */
export class BenchError extends Error {}

/** Numeric options with their defaults, `--name value`. @throws BenchError for another name or not a positive number */
export function numbers<Name extends string>(args: readonly string[], defaults: Record<Name, number>) {
  const names = Object.keys(defaults)
  const options = Object.fromEntries(names.map((name) => [name, { type: 'string' as const }]))
  const given = parse(() => parseArgs({ args: [...args], options, allowPositionals: false }).values)
  const values = { ...defaults }
  for (const name of names) {
    const text = given[name]
    if (text === undefined) continue
    const value = Number(text)
    if (!(value > 0)) throw new BenchError(`--${name} is ${JSON.stringify(text)}; it may be a positive number`)
    Object.assign(values, { [name]: value })
  }
  return values
}

function parse<R>(read: () => R): R {
  try {
    return read()
  } catch (error) {
    throw new BenchError(error instanceof Error ? error.message : String(error))
  }
}

/** What has to be undone, in reverse order, when a bench ends in whatever way. */
export class Cleanup {
  readonly #steps: (() => unknown)[] = []
  add(step: () => unknown): void {
    this.#steps.push(step)
  }
  /** A folder that goes when the bench ends. */
  folder(): string {
    const path = mkdtempSync(join(tmpdir(), 'inventory-bench-'))
    this.add(() => rmSync(path, { recursive: true, force: true }))
    return path
  }
  async run(): Promise<void> {
    for (const step of this.#steps.splice(0).reverse()) {
      try {
        await step()
      } catch (error) {
        // An interrupted server may fail to close; what follows, such as its folder, must go all the same.
        say(`cleaning up: ${error instanceof Error ? error.message : String(error)}`)
      }
    }
  }
}

/** Runs the bench and cleans up after it, also when it is interrupted. */
export async function withCleanup(work: (cleanup: Cleanup) => Promise<void>): Promise<void> {
  const cleanup = new Cleanup()
  const interrupted = () => void cleanup.run().finally(() => process.exit(130))
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted)
  try {
    await work(cleanup)
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted)
    await cleanup.run()
  }
}

/** One server in a process of its own. */
export interface Target {
  readonly url: string
  readonly pid: number
  /** Sends the signal; resolves when the process has ended, to its exit code and how long that took. */
  end(signal: NodeJS.Signals): Promise<{ code: number | null; milliseconds: number }>
  /** CPU time used so far, in ms; NaN where the system does not tell. */
  cpuMilliseconds(): number
}

const dist = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url))
const START_TIMEOUT_MS = 90_000
const CLOCK_TICK_MS = 10

interface TargetOptions {
  file: string
  args?: string[]
  env?: Record<string, string>
  path: string
  /** Is told what the process says, which goes to stderr otherwise. */
  heard?: ((text: string) => void) | undefined
}

/** Starts `dist/<file>` with PORT set and waits until `path` answers 200. */
export async function startTarget(
  cleanup: Cleanup,
  { file, args = [], env = {}, path, heard }: TargetOptions
): Promise<Target> {
  const port = await freePort()
  const child = spawn(process.execPath, [dist(file), ...args], {
    env: { PATH: process.env.PATH ?? '', NODE_ENV: 'production', ...env, PORT: String(port), HOST: '127.0.0.1' },
    stdio: heard === undefined ? ['ignore', 2, 'inherit'] : ['ignore', 'pipe', 'pipe']
  })
  for (const stream of [child.stdout, child.stderr]) stream?.setEncoding('utf8').on('data', heard ?? (() => {}))
  cleanup.add(() => end(child))
  const url = `http://127.0.0.1:${port}`
  const deadline = Date.now() + START_TIMEOUT_MS
  for (;;) {
    const answer = await fetch(url + path).catch(() => undefined)
    await answer?.arrayBuffer()
    if (answer?.status === 200) break
    if (child.exitCode !== null || Date.now() > deadline) throw new BenchError(`${file} did not start`)
    await sleep(50)
  }
  return {
    url,
    pid: child.pid ?? 0,
    cpuMilliseconds: () => cpuMilliseconds(child.pid),
    end: async (signal) => {
      const startedAt = performance.now()
      const ended = once(child, 'exit')
      child.kill(signal)
      const [code] = await ended
      return { code, milliseconds: performance.now() - startedAt }
    }
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill('SIGTERM')
  const late = setTimeout(() => child.kill('SIGKILL'), 10_000)
  await ended
  clearTimeout(late)
}

/** utime + stime of `/proc/<pid>/stat`, which counts in ticks of 1/100 s. */
function cpuMilliseconds(pid: number | undefined): number {
  try {
    const stat = readFileSync(`/proc/${pid ?? 0}/stat`, 'utf8')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return (Number(fields[11]) + Number(fields[12])) * CLOCK_TICK_MS
  } catch {
    return Number.NaN
  }
}

export interface Service extends Target {
  readonly token: string
  readonly databaseUrl: string
}

export const newSecret = (): string => randomBytes(48).toString('base64url')

/** A token for a server that was given this `JWT_SECRET`. */
export async function signToken(secret: string, role: 'admin' | 'viewer' = 'admin'): Promise<string> {
  const app = Fastify()
  const tokens = createTokens(app, { keys: [{ id: 'default', secret }] })
  await app.ready()
  return tokens.sign({ subject: 'cli', role, tenant: 'main' }, 86_400)
}

/** The whole service as `npm start` runs it. */
export async function startService(
  cleanup: Cleanup,
  {
    databaseUrl,
    secret,
    env = {},
    heard
  }: { databaseUrl: string; secret: string; env?: Record<string, string>; heard?: (text: string) => void }
): Promise<Service> {
  const target = await startTarget(cleanup, {
    file: 'server.js',
    heard,
    env: {
      DATA_DIR: cleanup.folder(),
      DATABASE_URL: databaseUrl,
      JWT_SECRET: secret,
      SECRETS_KEY: newSecret(),
      LOG_LEVEL: 'warn',
      ...env
    },
    path: '/health/ready'
  })
  return { ...target, token: await signToken(secret), databaseUrl }
}

/**
 * The server named in `BENCH_POSTGRES_URL` (an empty database), or a private one from the machine's binaries with default
 * durability; undefined, after saying so, where there is neither.
 */
export async function postgres(
  cleanup: Cleanup,
  settings: Record<string, string> = {}
): Promise<{ url: string } | undefined> {
  const given = process.env.BENCH_POSTGRES_URL
  if (given) return { url: given }
  const services: { findPostgres(): string | undefined; serverUser(): string | undefined } = await import(
    new URL('../../scripts/services.mjs', import.meta.url).href
  )
  const folder = services.findPostgres()
  if (folder === undefined) {
    say('PostgreSQL is left out: no server binaries here and BENCH_POSTGRES_URL is not set.')
    return undefined
  }
  process.env.TEST_POSTGRES_BIN = folder
  const user = services.serverUser()
  if (user !== undefined) process.env.TEST_POSTGRES_USER ??= user
  const server = await startPostgres(settings)
  cleanup.add(() => server.stop())
  return server
}

export const say = (line: string): void => void process.stderr.write(`${line}\n`)

/** One line of progress that overwrites itself on a terminal. */
export function progress(label: string, total: number): (done: number) => void {
  const tty = process.stderr.isTTY
  let shown = -1
  return (done) => {
    const percent = Math.floor((done / total) * (tty ? 100 : 4)) * (tty ? 1 : 25)
    if (percent === shown) return
    shown = percent
    process.stderr.write(`${tty ? '\r' : ''}${label} ${percent} %${tty && done < total ? '' : '\n'}`)
  }
}

/** The value below which a share of the samples lies (nearest rank). */
export function quantile(samples: ArrayLike<number>, share: number): number {
  const sorted = Float64Array.from(samples).sort()
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))] ?? Number.NaN
}
export const median = (samples: ArrayLike<number>): number => quantile(samples, 0.5)

const shown = (value: number | string) =>
  typeof value === 'string'
    ? value
    : Number.isNaN(value)
      ? '–'
      : value >= 100
        ? Math.round(value).toLocaleString('en')
        : value.toFixed(value >= 10 ? 1 : 2)

/** Aligned columns, numbers to the right. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const cells = rows.map((row) => row.map(shown))
  const widths = head.map((title, i) => Math.max(title.length, ...cells.map((row) => row[i]?.length ?? 0)))
  const line = (row: readonly string[], pad: (i: number) => boolean) =>
    row
      .map((cell, i) => (pad(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd()
  const right = (i: number) => rows.some((row) => typeof row[i] === 'number')
  return [
    line(head, right),
    widths.map((width) => '-'.repeat(width)).join('  '),
    ...cells.map((row) => line(row, right))
  ].join('\n')
}

/** Repeatable numbers in [0, 1) (mulberry32). */
export function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
