import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import Fastify from 'fastify'
import type { Test } from 'tap'
import { createTokens } from '../plugins/auth.js'
import type { Role } from '../schemas/common.js'
import { freePort } from './ports.js'

/** The program itself in a process of its own, for what `app.inject` cannot show: signals, exit codes, what is written. */

export const SERVER = fileURLToPath(new URL('../server.js', import.meta.url))
const SECRET = 'Wq7-mX2zKp9vLt4yHc8sRd1nJf6bGu3e'
const START_TIMEOUT_MS = 30_000

/** A folder that goes when the test ends. */
export function temporaryFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'inventory-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Only what is named here: the developer's own variables must not leak into a test. */
const environment = (env: Record<string, string>) => {
  const { PATH = '', NODE_V8_COVERAGE } = process.env
  return { PATH, ...(NODE_V8_COVERAGE === undefined ? {} : { NODE_V8_COVERAGE }), ...env }
}

/** Starts Node as a user does: the test runner would load its hooks into every child, which double the time of the start. */
export const spawnNode = (args: readonly string[], options: { cwd?: string; env?: Record<string, string> } = {}) =>
  spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    ...options,
    env: environment(options.env ?? {})
  })

interface Run {
  child: ChildProcess
  output(): string
}

function run(env: Record<string, string>, program = SERVER): Run {
  const child = spawnNode([program], { env })
  let text = ''
  const keep = (chunk: Buffer) => {
    text += chunk.toString()
  }
  child.stdout.on('data', keep)
  child.stderr.on('data', keep)
  return { child, output: () => text }
}

/** Whether anybody listens on a port of this machine. */
const listens = (port: number) =>
  new Promise<boolean>((resolve) => {
    const socket = connect(port, '127.0.0.1')
    const answer = (found: boolean) => {
      socket.destroy()
      resolve(found)
    }
    socket.once('connect', () => answer(true)).once('error', () => answer(false))
  })

/** Runs the server to its end, for one that is not expected to start. */
export async function runToEnd(env: Record<string, string>): Promise<{ code: number | null; output: string }> {
  const { child, output } = run(env)
  const timer = setTimeout(() => child.kill('SIGKILL'), START_TIMEOUT_MS)
  const [code] = await once(child, 'close')
  clearTimeout(timer)
  return { code, output: output() }
}

export interface Service {
  readonly url: string
  readonly token: string
  readonly output: () => string
  readonly child: ChildProcess
  /** Sends the signal and resolves to the exit code (null after SIGKILL). */
  end(signal: NodeJS.Signals): Promise<number | null>
}

/**
 * Starts the server and resolves when it is ready. The same `env` starts it again on the same port and data.
 * @param program another one than the server, which serves as it does
 */
export async function startService(t: Test, env: Record<string, string>, program?: string): Promise<Service> {
  const secret = env.JWT_SECRET ?? SECRET
  const { child, output } = run({ ...env, JWT_SECRET: secret }, program)
  const ended = once(child, 'close')
  t.teardown(() => void child.kill('SIGKILL'))
  const url = `http://127.0.0.1:${env.PORT}`
  const deadline = Date.now() + START_TIMEOUT_MS
  for (;;) {
    // A request that fails costs ten times what it does to see that nobody listens, and most of the start nobody does.
    const ready = (await listens(Number(env.PORT)))
      ? await fetch(`${url}/health/ready`).catch(() => undefined)
      : undefined
    if (ready?.status === 200) break
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`the server did not start:\n${output()}`)
    await sleep(20)
  }
  return {
    url,
    token: await signToken('admin', secret),
    output,
    child,
    end: async (signal) => {
      child.kill(signal)
      const [code] = await ended
      return code
    }
  }
}

/** The environment of a service on a free port and in a folder of its own. */
export const serviceEnvironment = async (t: Test, env: Record<string, string> = {}) => ({
  PORT: String(await freePort()),
  DATA_DIR: temporaryFolder(t),
  ...env
})

export async function signToken(role: Role, secret = SECRET, ttlSeconds = 86_400): Promise<string> {
  const app = Fastify()
  const tokens = createTokens(app, { keys: [{ id: 'default', secret }] })
  await app.ready()
  return tokens.sign({ subject: 'test', role, tenant: 'main' }, ttlSeconds)
}
