import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, closeSync, mkdirSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT } from '../../alerts/rules.js'
import { until } from '../../alerts/run.js'
import { freePort } from '../ports.js'

/** The programs of a cluster on this machine, each with a folder and a log of its own. */

const START_SECONDS = 120

/** Only what is named: the developer's own variables must not leak in. */
interface Program {
  readonly name: string
  readonly command: string
  readonly args: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly owner?: { uid: number; gid: number } | undefined
}

export class Process {
  readonly folder: string
  readonly #program: Program
  #child: ChildProcess | undefined

  constructor(folder: string, program: Program) {
    this.folder = join(folder, program.name)
    this.#program = program
    mkdirSync(this.folder, { recursive: true })
    if (program.owner !== undefined) chownSync(this.folder, program.owner.uid, program.owner.gid)
  }

  get name(): string {
    return this.#program.name
  }

  start(): void {
    const log = openSync(join(this.folder, 'log'), 'a')
    const { command, args, env, owner } = this.#program
    this.#child = spawn(command, args, {
      cwd: this.folder,
      env: { PATH: process.env.PATH ?? '', ...env },
      stdio: ['ignore', log, log],
      ...owner
    })
    closeSync(log)
  }

  /** Resolves to the exit code, null after SIGKILL. */
  async end(signal: NodeJS.Signals): Promise<number | null> {
    const child = this.#child
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return child?.exitCode ?? null
    const exit = once(child, 'exit')
    child.kill(signal)
    const [code] = await exit
    return code
  }

  log(): string {
    return readFileSync(join(this.folder, 'log'), 'utf8')
  }
}

/** A service on a port of its own; that, and its data folder, stay the same from one start to the next. */
export class Node extends Process {
  readonly url: string
  constructor(folder: string, name: string, port: number, env: Readonly<Record<string, string>>) {
    super(folder, {
      name,
      command: process.execPath,
      args: [join(ROOT, 'dist', 'server.js')],
      env: { ...env, PORT: String(port), DATA_DIR: join(folder, name, 'data') }
    })
    this.url = `http://127.0.0.1:${port}`
  }

  async ready(): Promise<void> {
    try {
      await until(`${this.name} is ready`, START_SECONDS, () => answers(`${this.url}/health/ready`))
    } catch (error) {
      throw new Error(`${error instanceof Error ? error.message : error}\n${this.log().slice(-3000)}`)
    }
  }
}

export class WorkerProcess extends Process {
  constructor(folder: string, name: string, env: Readonly<Record<string, string>>) {
    super(folder, {
      name,
      command: process.execPath,
      args: [join(ROOT, 'dist', 'cli.js'), 'worker'],
      env: { ...env, DATA_DIR: join(folder, name, 'data') }
    })
  }

  waits(): Promise<void> {
    return until(`${this.name} waits for work`, START_SECONDS, () => this.log().includes('waiting for work'))
  }
}

/** Names under which a program claims jobs: it holds a lock on a file of that name. */
export const ownersOf = ({ folder }: Process): string[] =>
  readdirSync(join(folder, 'data', 'processes')).map((name) => name.replace(/\.lock$/, ''))

/** The configuration that is shipped; only addresses are this machine's. */
export async function startBalancer(haproxy: string, folder: string, nodes: readonly Node[]) {
  const port = await freePort()
  const addresses = nodes.map(({ url }) => new URL(url).host)
  const shipped = readFileSync(join(ROOT, 'deploy', 'haproxy.cfg'), 'utf8')
  const path = join(folder, 'haproxy.cfg')
  writeFileSync(
    path,
    shipped
      .replace('bind :8080', `bind 127.0.0.1:${port}`)
      .replace(
        /^( +server node(\d)) \S+$/gm,
        (_all, server: string, n: string) => `${server} ${addresses[Number(n) - 1]}`
      )
  )
  const balancer = new Process(folder, { name: 'haproxy', command: haproxy, args: ['-f', path], env: {} })
  balancer.start()
  const url = `http://127.0.0.1:${port}`
  await until('the balancer answers', START_SECONDS, () => answers(`${url}/health/ready`))
  return { url, balancer }
}

/** Waits until nothing that was said to one client is remembered for the next: `transaction` is the mode that breaks sessions. */
export async function startPooler(pgbouncer: string, folder: string, databaseUrl: string, owner: Program['owner']) {
  const port = await freePort()
  const { hostname, port: postgresPort, pathname, username } = new URL(databaseUrl)
  const path = join(folder, 'pgbouncer.ini')
  writeFileSync(
    path,
    `[databases]
* = host=${hostname} port=${postgresPort} user=${username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 500
`
  )
  const pooler = new Process(folder, { name: 'pgbouncer', command: pgbouncer, args: [path], env: {}, owner })
  pooler.start()
  return { pooler, url: `postgres://${username}@127.0.0.1:${port}${pathname}` }
}

const answers = async (url: string) => (await fetch(url).catch(() => undefined))?.ok === true
