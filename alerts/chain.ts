import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Type } from 'typebox'
import { Value } from 'typebox/value'
import { parse, stringify } from 'yaml'
import { freePort, listening } from '../test/ports.js'
import { freshDatabase, redisUrl } from '../test/services.js'
import { ROOT, RULES } from './rules.js'
import { until } from './run.js'

/** The real service, Prometheus and Alertmanager with the configuration that is shipped; only addresses are this machine's. */

export interface Tools {
  readonly prometheus: string
  readonly promtool: string
  readonly alertmanager: string
  readonly amtool: string
}

const Notification = Type.Object({
  status: Type.String(),
  alerts: Type.Array(Type.Object({ status: Type.String(), labels: Type.Record(Type.String(), Type.String()) }))
})
export interface Heard {
  readonly receiver: string
  readonly alert: string
  readonly labels: Readonly<Record<string, string>>
  readonly status: string
  readonly at: number
}

const WORKERS = 2
const METRICS_TOKEN = 'scrapes-of-the-verification'
const JWT_SECRET = 'Tq9-vKx2mZp7wLt4yHc8sRd1nJf6bGu3e'
const DEPLOYED = join(ROOT, 'deploy', 'monitoring')

export interface Chain {
  readonly env: Readonly<Record<string, string>>
  readonly heard: readonly Heard[]
  readonly alertmanagerUrl: string
  /** Of a second one, where it is never night; its receivers are called `day-…`. */
  readonly daytimeUrl: string
  /** Stops one of the service's processes where it is, as if it hung. @returns what lets it go on */
  hang(): () => void
  /** How many series a query of Prometheus finds now. */
  found(query: string): Promise<number>
  /** SIGKILL to the service. @returns when, in `performance.now()` */
  kill(): number
  close(): Promise<void>
}

export async function startChain(tools: Tools, folder: string): Promise<Chain> {
  const children: ChildProcess[] = []
  const start = (name: string, command: string, args: string[], env: NodeJS.ProcessEnv = process.env) => {
    const child = spawn(command, args, { cwd: folder, env, stdio: ['ignore', 'pipe', 'pipe'] })
    const log = createWriteStream(join(folder, `${name}.log`))
    child.stdout.pipe(log, { end: false })
    child.stderr.pipe(log, { end: false })
    children.push(child)
    return child
  }
  const ports = Array.from({ length: 4 }, freePort)
  const [servicePort = 0, prometheusPort, alertmanagerPort = 0, daytimePort = 0] = await Promise.all(ports)
  const database = await freshDatabase()
  const receiver = await listen()
  const env = {
    PORT: String(servicePort),
    DATA_DIR: join(folder, 'data'),
    DATABASE_URL: database.url,
    REDIS_URL: redisUrl(),
    JWT_SECRET,
    METRICS_TOKEN,
    NODE_ENV: 'test'
  }
  mkdirSync(env.DATA_DIR, { recursive: true })
  const local = { servicePort, alertmanagerPort, receiver: receiver.url }
  writeConfiguration(folder, local)

  const service = start('service', process.execPath, [join(ROOT, 'dist', 'server.js')], {
    PATH: process.env.PATH,
    ...env,
    CLUSTER_WORKERS: String(WORKERS)
  })
  const storage = `--storage.tsdb.path=${join(folder, 'prometheus')}`
  const web = `--web.listen-address=127.0.0.1:${prometheusPort}`
  start('prometheus', tools.prometheus, [`--config.file=${join(folder, 'prometheus.yml')}`, storage, web])
  const manager = (name: string, port: number) =>
    start(name, tools.alertmanager, [
      `--config.file=${join(folder, `${name}.yml`)}`,
      `--storage.path=${join(folder, name)}`,
      `--web.listen-address=127.0.0.1:${port}`,
      '--cluster.listen-address='
    ])
  manager('alertmanager', alertmanagerPort)
  manager('daytime', daytimePort)
  const daytimeUrl = `http://127.0.0.1:${daytimePort}`
  const serviceUrl = `http://127.0.0.1:${servicePort}`
  const prometheusUrl = `http://127.0.0.1:${prometheusPort}`
  const found = (query: string) => countFound(prometheusUrl, query)
  const log = join(folder, 'service.log')
  const close = async () => {
    for (const child of children) child.kill('SIGKILL')
    receiver.close()
    await database.drop()
  }
  try {
    await until('the service is ready', 60, () => answers(`${serviceUrl}/health/ready`))
    await until('it is day', 60, () => answers(`${daytimeUrl}/-/ready`))
    await until(
      'Prometheus scrapes every process of the service',
      60,
      async () => (await found(`cluster_workers{job="inventory-enterprise",state="scraped"} == ${WORKERS}`)) === 1
    )
  } catch (error) {
    const tail = ['service', 'prometheus', 'alertmanager'].map((name) =>
      readFileSync(join(folder, `${name}.log`), 'utf8').slice(-1500)
    )
    await close()
    throw new Error(`${error instanceof Error ? error.message : error}\n${tail.join('\n')}`)
  }
  return {
    env: {
      ...env,
      INVENTORY_URL: serviceUrl,
      PROMETHEUS_URL: prometheusUrl,
      ALERTMANAGER_URL: `http://127.0.0.1:${alertmanagerPort}`,
      LOG: log
    },
    heard: receiver.heard,
    alertmanagerUrl: `http://127.0.0.1:${alertmanagerPort}`,
    daytimeUrl,
    found,
    hang: () => {
      const pid = Number(/"pid":(\d+),"msg":"a worker serves"/.exec(readFileSync(log, 'utf8'))?.[1])
      process.kill(pid, 'SIGSTOP')
      return () => void process.kill(pid, 'SIGCONT')
    },
    kill: () => {
      service.kill('SIGKILL')
      return performance.now()
    },
    close
  }
}

const answers = async (url: string) => (await fetch(url).catch(() => undefined))?.ok === true

const Found = Type.Object({ data: Type.Object({ result: Type.Array(Type.Unknown()) }) })

async function countFound(prometheusUrl: string, query: string): Promise<number> {
  const answer = await fetch(`${prometheusUrl}/api/v1/query?${new URLSearchParams({ query })}`).catch(() => undefined)
  const body: unknown = answer?.ok === true ? JSON.parse(await answer.text()) : undefined
  return Value.Check(Found, body) ? body.data.result.length : 0
}

interface Local {
  servicePort: number
  alertmanagerPort: number
  receiver: string
}

const Scraped = Type.Object({ job_name: Type.String() })
const PrometheusFile = Type.Object({
  global: Type.Unknown(),
  alerting: Type.Record(Type.String(), Type.Unknown()),
  scrape_configs: Type.Array(Scraped)
})
const AlertmanagerFile = Type.Object({
  global: Type.Record(Type.String(), Type.Unknown()),
  receivers: Type.Array(Type.Object({ name: Type.String() })),
  time_intervals: Type.Array(Type.Object({ name: Type.String() }))
})

/** The shipped files with the addresses of this machine, each receiver a path of our own, and a night that lasts all day, or never comes. */
function writeConfiguration(folder: string, { servicePort, alertmanagerPort, receiver }: Local): void {
  const shipped = (name: string): unknown => parse(readFileSync(join(DEPLOYED, name), 'utf8'))
  const prometheus = Value.Parse(PrometheusFile, shipped('prometheus.yml'))
  const at = (port: number) => [{ targets: [`127.0.0.1:${port}`] }]
  writeFileSync(join(folder, 'metrics_token'), METRICS_TOKEN)
  const scrapes = prometheus.scrape_configs
    .filter(({ job_name }) => job_name === 'inventory-enterprise')
    .map((each) => ({
      ...each,
      authorization: { credentials_file: join(folder, 'metrics_token') },
      static_configs: at(servicePort)
    }))
  writeFileSync(
    join(folder, 'prometheus.yml'),
    stringify({
      ...prometheus,
      rule_files: [join(RULES, '*.yml')],
      alerting: { ...prometheus.alerting, alertmanagers: [{ static_configs: at(alertmanagerPort) }] },
      scrape_configs: scrapes
    })
  )
  const alertmanager = Value.Parse(AlertmanagerFile, shipped('alertmanager.yml'))
  const manage = (name: string, prefix: string, night: unknown) =>
    writeFileSync(
      join(folder, `${name}.yml`),
      stringify({
        ...alertmanager,
        time_intervals: alertmanager.time_intervals.map(({ name }) => ({ name, time_intervals: [night] })),
        receivers: alertmanager.receivers.map(({ name }) => ({
          name,
          webhook_configs: [{ url: `${receiver}/${prefix}${name}`, send_resolved: true }]
        }))
      })
    )
  manage('alertmanager', '', { times: [{ start_time: '00:00', end_time: '24:00' }] })
  manage('daytime', 'day-', { years: ['1970'] })
}

/** Stands for everybody who is told. */
async function listen() {
  const heard: Heard[] = []
  const { url, close } = await listening((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      const { alerts } = Value.Parse(Notification, JSON.parse(Buffer.concat(chunks).toString()))
      const receiver = request.url?.slice(1) ?? ''
      for (const { labels, status } of alerts) {
        heard.push({ receiver, alert: labels.alertname ?? '', labels, status, at: performance.now() })
      }
      response.end()
    })
  })
  return { heard, url, close }
}

/** Tells Alertmanager of alerts as Prometheus would. */
export async function post(alertmanagerUrl: string, labels: readonly Record<string, string>[]): Promise<void> {
  const answer = await fetch(`${alertmanagerUrl}/api/v2/alerts`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(labels.map((each) => ({ labels: each })))
  })
  if (!answer.ok) throw new Error(`Alertmanager answers ${answer.status}: ${await answer.text()}`)
}
