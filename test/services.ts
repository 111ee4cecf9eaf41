/**
 * The real PostgreSQL and Redis that the tests run on. `npm test` finds or starts a shared one of each and names them in
 * the environment; a test that has to break a server starts a private one here. Whatever is started here ends, and its
 * folder goes, when the process that asked for it ends, even by SIGKILL.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { chownSync, closeSync, mkdtempSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { freePort } from './ports.js'

const START_TIMEOUT_MS = 30_000

/** A private server on 127.0.0.1. Its port, and so its url, stay the same over `restart`. */
export interface Server {
  readonly url: string
  /** Process id of the running server (for PostgreSQL the postmaster's). */
  readonly pid: number
  /** Ends the server in an orderly way and removes its folder. */
  stop(): Promise<void>
  /** SIGKILL: nothing is flushed, nobody is told. Resolves when the process is gone. */
  kill(): Promise<void>
  /** Starts again after `kill`, on the same folder and port; resolves when it answers. */
  restart(): Promise<void>
  /** Puts a file into the server's folder, readable for it alone. */
  write(name: string, text: string): void
  /** SIGSTOP: the port stays open and answers nothing. */
  freeze(): void
  /** SIGCONT. */
  thaw(): void
}

function required(name: string): string {
  const value = process.env[name]
  if (!value) throw new Error(`${name} is not set: run npm test, which provides the servers`)
  return value
}

/** URL of the shared PostgreSQL, naming a maintenance database; take `freshDatabase` for tables of your own. */
export const postgresUrl = (): string => required('TEST_POSTGRES_URL')

/** URL of the shared Redis. Other test files use it at the same time: prefix keys, do not flush. */
export const redisUrl = (): string => required('TEST_REDIS_URL')

async function administer(sql: string, url = postgresUrl()): Promise<void> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    await client.query(sql)
  } finally {
    await client.end()
  }
}

/**
 * Creates a database with a unique name on the shared PostgreSQL, empty or as `template` is; `drop` removes it though sessions are
 * open.
 */
export async function freshDatabase(template?: string): Promise<{ url: string; drop(): Promise<void> }> {
  const name = `inventory_test_${process.pid}_${randomBytes(6).toString('hex')}`
  await administer(`CREATE DATABASE ${name}${template === undefined ? '' : ` TEMPLATE ${template}`}`)
  const url = new URL(postgresUrl())
  url.pathname = `/${name}`
  return { url: url.href, drop: () => administer(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`) }
}

/** What the database is called that those of one run are copied from; `folder` is the run's own. */
export const templateName = (folder: string): string =>
  `inventory_test_${createHash('sha256').update(folder).digest('hex').slice(0, 12)}`

/** For the end of a run on the server at `url`. */
export const dropTemplate = (url: string, folder: string): Promise<void> =>
  administer(`DROP DATABASE IF EXISTS ${templateName(folder)} WITH (FORCE)`, url)

/**
 * A shell in a session of its own. It reads the server's process id, one a line, the last one counting, until its input ends,
 * which happens at the latest when we die; then it ends that process and removes the folder.
 */
const JANITOR = `
alive() { kill -0 "$pid" 2>/dev/null && case $(cat "/proc/$pid/stat" 2>/dev/null) in *') Z '*) false ;; esac; }
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ] && kill "-$2" "$pid" 2>/dev/null; then
  n=0
  while [ $n -lt 50 ] && alive; do n=$((n + 1)); sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null
fi
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
`

interface Owner {
  uid: number
  gid: number
}

interface Recipe {
  binary: string
  args: (folder: string, port: number) => string[]
  url: (port: number) => string
  /** Commands to try, before the first start, until one of them succeeds. */
  prepare?: (folder: string) => [binary: string, args: string[]][]
  /** Rejects while the server does not answer yet. */
  ping: (url: string, port: number) => Promise<void>
  /** Written into the folder before the first start, readable for the server alone. */
  files?: Readonly<Record<string, string>>
  /** Where its folder is made, such as a disk of its own. */
  parent?: string | undefined
  stopSignal: NodeJS.Signals
  /** How the janitor ends it, without the SIG. */
  abandonSignal: string
  owner?: Owner
}

/** Outside a run, as root, the folder goes under /tmp: root's own TMPDIR may be closed to the user that the server runs as. */
function makeFolder(owner: Owner | undefined, parent = process.env.TEST_FOLDER ?? (owner ? '/tmp' : tmpdir())): string {
  const folder = mkdtempSync(join(parent, 'inventory-test-'))
  if (owner) chownSync(folder, owner.uid, owner.gid)
  return folder
}

class PrivateServer implements Server {
  readonly url: string
  readonly #recipe: Recipe
  readonly #port: number
  readonly #folder: string
  readonly #janitor: ChildProcess
  #process: ChildProcess | undefined

  constructor(recipe: Recipe, port: number) {
    this.#recipe = recipe
    this.#port = port
    this.url = recipe.url(port)
    this.#folder = makeFolder(recipe.owner, recipe.parent)
    this.#janitor = spawn('/bin/sh', ['-c', JANITOR, 'janitor', this.#folder, recipe.abandonSignal], {
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
      cwd: '/'
    })
    this.#janitor.unref()
    if (this.#janitor.stdin instanceof Socket) this.#janitor.stdin.unref()
    this.#janitor.stdin?.on('error', () => {})
  }

  get pid(): number {
    const pid = this.#process?.pid
    if (pid === undefined) throw new Error('the server is not running')
    return pid
  }

  async start(): Promise<void> {
    try {
      await this.#prepare(this.#recipe.prepare?.(this.#folder) ?? [])
      for (const [name, text] of Object.entries(this.#recipe.files ?? {})) this.write(name, text)
      await this.restart()
    } catch (error) {
      await this.stop()
      throw error
    }
  }

  async restart(): Promise<void> {
    if (this.#process) throw new Error('the server is running')
    const deadline = Date.now() + START_TIMEOUT_MS
    for (;;) {
      const child = this.#spawn(this.#recipe.binary, this.#recipe.args(this.#folder, this.#port))
      const state = await this.#answers(child, deadline)
      child.unref()
      if (state === 'up') return
      this.#forget()
      // After SIGKILL PostgreSQL refuses to start until the last of its former children has gone.
      if (Date.now() > deadline || state === 'silent') {
        child.kill('SIGKILL')
        throw new Error(`${this.#recipe.binary} did not start:\n${this.#log()}`)
      }
      await sleep(250)
    }
  }

  async stop(): Promise<void> {
    const child = this.#process
    if (child) {
      child.kill('SIGCONT')
      await this.#end(child, this.#recipe.stopSignal)
    }
    if (this.#janitor.exitCode !== null) return
    this.#janitor.ref()
    this.#janitor.stdin?.end()
    await once(this.#janitor, 'exit')
  }

  async kill(): Promise<void> {
    if (this.#process) await this.#end(this.#process, 'SIGKILL')
  }

  freeze(): void {
    process.kill(this.pid, 'SIGSTOP')
  }

  thaw(): void {
    process.kill(this.pid, 'SIGCONT')
  }

  async #prepare(commands: [string, string[]][]): Promise<void> {
    for (const [binary, args] of commands) {
      const child = this.#spawn(binary, args)
      const ended = await once(child, 'exit').catch(() => [-1])
      this.#forget()
      if (ended[0] === 0) return
    }
    if (commands.length > 0) throw new Error(`${commands[0]?.[0]} failed:\n${this.#log()}`)
  }

  write(name: string, text: string): void {
    const { owner } = this.#recipe
    const path = join(this.#folder, name)
    writeFileSync(path, text, { mode: 0o600 })
    if (owner) chownSync(path, owner.uid, owner.gid)
  }

  #spawn(binary: string, args: string[]): ChildProcess {
    const log = openSync(join(this.#folder, 'server.log'), 'a')
    const child = spawn(binary, args, {
      cwd: this.#folder,
      detached: true,
      stdio: ['ignore', log, log],
      ...this.#recipe.owner
    })
    closeSync(log)
    child.on('error', () => {})
    this.#process = child
    this.#janitor.stdin?.write(`${child.pid ?? ''}\n`)
    return child
  }

  async #answers(child: ChildProcess, deadline: number): Promise<'up' | 'ended' | 'silent'> {
    while (Date.now() < deadline) {
      if (child.pid === undefined) return 'silent'
      if (child.exitCode !== null || child.signalCode !== null) return 'ended'
      try {
        await this.#recipe.ping(this.url, this.#port)
        return 'up'
      } catch {
        await sleep(25)
      }
    }
    return 'silent'
  }

  async #end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
    child.ref()
    if (child.exitCode === null && child.signalCode === null) {
      const ended = once(child, 'exit')
      child.kill(signal)
      await ended
    }
    this.#forget()
  }

  #forget(): void {
    this.#process = undefined
    this.#janitor.stdin?.write('\n')
  }

  #log(): string {
    try {
      return readFileSync(join(this.#folder, 'server.log'), 'utf8').slice(-2000)
    } catch {
      return ''
    }
  }
}

async function start(recipe: Recipe): Promise<Server> {
  const server = new PrivateServer(recipe, await freePort())
  await server.start()
  return server
}

async function pingRedis(_url: string, port: number): Promise<void> {
  const socket = connect(port, '127.0.0.1')
  socket.setTimeout(1000, () => socket.destroy(new Error('no answer')))
  try {
    await once(socket, 'connect')
    socket.write('PING\r\n')
    const [answer] = await once(socket, 'data')
    if (!String(answer).startsWith('+PONG')) throw new Error(String(answer))
  } finally {
    socket.destroy()
  }
}

/** Resolves when the port takes a connection: what a server says there may be for those who speak TLS. */
async function pingPort(_url: string, port: number): Promise<void> {
  const socket = connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
  } finally {
    socket.destroy()
  }
}

/** Files for the server's folder; `{folder}` in a setting stands for its path. */
interface Furnished {
  settings?: Readonly<Record<string, string>>
  files?: Readonly<Record<string, string>>
}

/** Starts a private Redis that writes nothing to disk. With `tls-port` as its only port it speaks TLS. */
export function startRedis({ settings = {}, files = {} }: Furnished = {}): Promise<Server> {
  const secured = settings['tls-cert-file'] !== undefined
  return start({
    binary: required('TEST_REDIS_BINARY'),
    args: (folder, port) => {
      const ports = secured ? { port: '0', 'tls-port': String(port) } : { port: String(port) }
      const all = { bind: '127.0.0.1', dir: folder, save: '', appendonly: 'no', ...ports, ...settings }
      return Object.entries(all).flatMap(([name, value]) => [`--${name}`, value.replace('{folder}', folder)])
    },
    url: (port) => `${secured ? 'rediss' : 'redis'}://127.0.0.1:${port}`,
    ping: secured ? pingPort : pingRedis,
    files,
    stopSignal: 'SIGTERM',
    abandonSignal: 'KILL'
  })
}

async function pingPostgres(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 2000 })
  client.on('error', () => {})
  try {
    await client.connect()
    await client.query('SELECT 1')
  } finally {
    await client.end().catch(() => {})
  }
}

/** PostgreSQL refuses to run as root. */
function postgresOwner(): Owner | undefined {
  if (process.getuid?.() !== 0) return undefined
  const user = process.env.TEST_POSTGRES_USER ?? 'nobody'
  const id = (flag: string) => Number(execFileSync('id', [flag, user], { encoding: 'utf8' }))
  return { uid: id('-u'), gid: id('-g') }
}

/** Not synced: only the cluster's creation, which a crash would undo as a whole. What the server writes later is. */
function initdb(folder: string): [string, string[]][] {
  const binary = join(required('TEST_POSTGRES_BIN'), 'initdb')
  const args = ['-D', join(folder, 'data'), '-U', 'postgres', '--auth=trust', '-E', 'UTF8', '--no-sync']
  // Not every system knows C.UTF-8 (macOS); there the environment's own locale serves.
  return [
    [binary, [...args, '--locale=C.UTF-8']],
    [binary, args]
  ]
}

/**
 * Starts a private PostgreSQL cluster with the default durability (fsync and synchronous_commit on).
 * @param settings server settings beside the defaults, such as `{ max_connections: '20' }`
 */
export function startPostgres(
  settings: Readonly<Record<string, string>> = {},
  files: Readonly<Record<string, string>> = {},
  parent?: string
): Promise<Server> {
  return postgresFrom(initdb, settings, files, parent)
}

/** Starts a streaming replica of a private PostgreSQL, which takes no writes. */
export function startReplica(of: Server): Promise<Server> {
  const binary = join(required('TEST_POSTGRES_BIN'), 'pg_basebackup')
  const args = ['-d', of.url, '--write-recovery-conf', '--wal-method=stream', '--checkpoint=fast', '--no-sync']
  return postgresFrom((folder) => [[binary, [...args, '-D', join(folder, 'data')]]])
}

function postgresFrom(
  prepare: NonNullable<Recipe['prepare']>,
  settings: Readonly<Record<string, string>> = {},
  files: Readonly<Record<string, string>> = {},
  parent?: string
): Promise<Server> {
  const owner = postgresOwner()
  const all = { listen_addresses: '127.0.0.1', unix_socket_directories: '', max_connections: '200', ...settings }
  return start({
    binary: join(required('TEST_POSTGRES_BIN'), 'postgres'),
    args: (folder, port) => [
      ...['-D', join(folder, 'data'), '-p', String(port)],
      ...Object.entries(all).flatMap(([name, value]) => ['-c', `${name}=${value.replace('{folder}', folder)}`])
    ],
    url: (port) => `postgres://postgres@127.0.0.1:${port}/postgres`,
    prepare,
    ping: pingPostgres,
    files,
    parent,
    stopSignal: 'SIGINT',
    abandonSignal: 'QUIT',
    ...(owner && { owner })
  })
}
