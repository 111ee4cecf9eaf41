import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { stringify } from 'yaml'
import { ROOT, RULES } from '../alerts/rules.js'
import { run, until } from '../alerts/run.js'
import { freePort } from '../test/ports.js'
import { freshDatabase, redisUrl } from '../test/services.js'
import { backups } from './families.js'
import { createPrometheus, type Prometheus } from './prometheus.js'

/** The real service, as it is deployed in three ways, and a real Prometheus that scrapes it and records what the alerts record. */

export const METRICS_TOKEN = 'scrapes-of-the-verification'
export const JWT_SECRET = 'Tq9-vKx2mZp7wLt4yHc8sRd1nJf6bGu3e'
/** Shorter than deployed, so that what happens in a minute is a graph. */
export const SCRAPE_SECONDS = 2

export interface Node {
  readonly name: string
  readonly url: string
}

export interface Live {
  /** On SQLite with a mirror; two on one PostgreSQL and one Redis. */
  readonly sqlite: Node
  readonly postgres: Node
  readonly second: Node
  readonly prometheus: Prometheus
  /** Where webhooks may be sent. */
  readonly receiverUrl: string
  close(): Promise<void>
}

export async function startLive(prometheusBinary: string, folder: string): Promise<Live> {
  const children: { name: string; child: ChildProcess }[] = []
  const start = (name: string, command: string, args: string[], env: NodeJS.ProcessEnv) => {
    const child = spawn(command, args, { cwd: folder, env, stdio: ['ignore', 'pipe', 'pipe'] })
    const log = createWriteStream(join(folder, `${name}.log`))
    child.stdout.pipe(log, { end: false })
    child.stderr.pipe(log, { end: false })
    children.push({ name, child })
  }
  // Whatever ends this process ends them too.
  const abandon = () => {
    for (const { child } of children) child.kill('SIGKILL')
  }
  process.once('exit', abandon)
  const [database, mirrored] = await Promise.all([freshDatabase(), freshDatabase()])
  const receiver = await acceptAll()
  const close = async () => {
    process.off('exit', abandon)
    await Promise.all(children.map(({ child }) => ended(child)))
    await receiver.close()
    await Promise.all([database.drop(), mirrored.drop()])
  }
  const service = async (
    name: string,
    own: Record<string, string>
  ): Promise<Node & { env: Record<string, string> }> => {
    const port = await freePort()
    const dataDir = join(folder, name)
    mkdirSync(dataDir)
    const env = {
      ...{ PATH: process.env.PATH ?? '', NODE_ENV: 'test', LOG_LEVEL: 'warn', PORT: String(port), DATA_DIR: dataDir },
      ...{ JWT_SECRET, METRICS_TOKEN, WEBHOOK_ALLOWED_HOSTS: '127.0.0.1', RATE_LIMITS: 'sign-in:60,report:600' },
      ...own
    }
    start(name, process.execPath, [join(ROOT, 'dist', 'server.js')], env)
    const url = `http://127.0.0.1:${port}`
    await until(
      `${name} is ready`,
      60,
      async () => (await fetch(`${url}/health/ready`).catch(() => undefined))?.ok === true
    )
    return { name, url, env }
  }
  try {
    const shared = { DATABASE_URL: database.url, REDIS_URL: redisUrl() }
    const [sqlite, postgres] = await Promise.all([
      service('sqlite', { MIRROR_URL: mirrored.url, ...backups(folder), BACKUP_INCREMENT_SECONDS: '10' }),
      service('postgres-1', shared)
    ])
    // Two processes that send traces: their latencies have exemplars.
    const traced = { OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url, CLUSTER_WORKERS: '2' }
    const second = await service('postgres-2', { ...shared, ...traced })
    const mirror = await run(process.execPath, [join(ROOT, 'dist', 'cli.js'), 'mirror', 'start'], { env: sqlite.env })
    if (mirror.code !== 0) throw new Error(`no mirror: ${mirror.output}`)
    const port = await freePort()
    writeConfiguration(folder, [sqlite, postgres, second])
    const options = [
      `--config.file=${join(folder, 'prometheus.yml')}`,
      `--storage.tsdb.path=${join(folder, 'prometheus')}`,
      `--web.listen-address=127.0.0.1:${port}`,
      '--enable-feature=exemplar-storage,extra-scrape-metrics'
    ]
    start('prometheus', prometheusBinary, options, process.env)
    const prometheus = createPrometheus(`http://127.0.0.1:${port}`)
    await until('Prometheus scrapes all three', 60, async () => {
      const up = await prometheus.query('sum(up{job="inventory-enterprise"})').catch(() => [])
      return up[0]?.values[0] === 3
    })
    return { sqlite, postgres, second, prometheus, receiverUrl: receiver.url, close }
  } catch (error) {
    const tails = children.map(({ name }) => readFileSync(join(folder, `${name}.log`), 'utf8').slice(-1_000))
    await close()
    throw new Error(`${error instanceof Error ? error.message : error}\n${tails.join('\n')}`)
  }
}

function writeConfiguration(folder: string, nodes: readonly Node[]): void {
  const token = join(folder, 'metrics_token')
  writeFileSync(token, METRICS_TOKEN)
  const interval = `${SCRAPE_SECONDS}s`
  const configuration = {
    global: { scrape_interval: interval, scrape_timeout: interval, evaluation_interval: interval },
    rule_files: [join(RULES, '*.yml')],
    scrape_configs: [
      {
        job_name: 'inventory-enterprise',
        authorization: { credentials_file: token },
        static_configs: nodes.map(({ name, url }) => ({
          targets: [url.replace('http://', '')],
          // As a person would call them: ports say nothing.
          labels: { instance: name }
        }))
      }
    ]
  }
  writeFileSync(join(folder, 'prometheus.yml'), stringify(configuration))
}

const ended = (child: ChildProcess) =>
  new Promise<void>((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) return resolve()
    child.once('exit', () => resolve())
    child.kill('SIGKILL')
  })

async function acceptAll() {
  const server = createServer((request, response) => {
    request.resume()
    request.on('end', () => response.end())
  })
  const port = await freePort()
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${port}`,
    close: () => new Promise<void>((resolve) => void server.close(() => resolve()).closeAllConnections())
  }
}
