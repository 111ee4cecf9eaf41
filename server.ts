import net from 'node:net'
import type { Writable } from 'node:stream'
import { setFlagsFromString } from 'node:v8'
import Fastify, { type FastifyBaseLogger, type FastifyInstance } from 'fastify'
import { pino } from 'pino'
import type { Surroundings } from './app.js'
import { joinCluster, type Member, supervise } from './plugins/cluster/index.js'
import { type Config, ConfigError, loadConfig } from './plugins/config/index.js'
import type { Health, Tenants } from './plugins/core.js'
import { serverOptions } from './plugins/http/server-options.js'
import { Front, type Mirror, openMirror, primaryOf } from './plugins/mirror/index.js'
import { answerWhileStarting } from './plugins/starting.js'
import { openTelemetry } from './plugins/telemetry/index.js'

// V8 lets the heap grow to four times what lives in it before it clears up: 150 MB more of memory, and no less time, in a
// large import. Half as much again is enough here.
const HEAP_GROWTH_PERCENT = 50
const CLOSE_MILLISECONDS = 10_000

/** The whole service, not yet listening. */
export async function build(
  given: Config,
  mode: 'service' | 'worker' = 'service',
  { logTo, ...surroundings }: Surroundings & { logTo?: Writable } = {}
): Promise<FastifyInstance> {
  const config = primaryOf(given)
  const telemetry = await openTelemetry(config.telemetry)
  // Not at the top: who only watches over processes that serve needs none of it.
  const { app } = await import('./app.js')
  const service = Fastify(
    serverOptions({
      logLevel: config.LOG_LEVEL,
      tracing: telemetry,
      ...(config.TRUST_PROXY === undefined ? {} : { trustProxy: config.TRUST_PROXY }),
      ...(logTo === undefined ? {} : { logTo })
    })
  )
  // Hooks that close run in the opposite order: it sends what the others still did.
  service.addHook('onClose', () => telemetry.close())
  await app(service, config, mode, { ...surroundings, telemetry })
  return service
}

/**
 * Listens, and closes gracefully on SIGTERM or SIGINT: it says that it is not ready, goes on for `DRAIN_SECONDS`, then answers
 * what is under way.
 */
export async function listen(service: Listening, config: Config, member?: Member): Promise<void> {
  for (const order of ['drain', 'close'] as const) member?.onOrder(order, () => process.exit(0))
  await open(service, config, member)
  let state: 'open' | 'draining' | 'closing' = 'open'
  let waiting: NodeJS.Timeout | undefined
  const failed = (error: unknown) => {
    service.log.error({ err: error }, 'closing failed')
    process.exit(1)
  }
  const close = () => {
    if (state === 'closing') return
    state = 'closing'
    clearTimeout(waiting)
    service.log.info('closing')
    // What does not end in time is ended: the ledger is safe, since nothing was acknowledged.
    setTimeout(() => failed(new Error('not closed in time')), CLOSE_MILLISECONDS).unref()
    service.close().then(() => process.exit(0), failed)
  }
  const drain = (signal: string) => {
    if (state !== 'open') return
    state = 'draining'
    service.log.info({ signal, seconds: config.DRAIN_SECONDS }, 'draining: not ready any more, and still answering')
    service.drain()
    waiting = setTimeout(close, config.DRAIN_SECONDS * 1000)
  }
  if (member === undefined) {
    // Who sends a second signal does not want to wait.
    const heard = (signal: string) => (state === 'open' ? drain(signal) : close())
    process.on('SIGTERM', heard).on('SIGINT', heard)
    return
  }
  // A terminal sends its signal to every process, and the one that watches over us tells us as well.
  process.on('SIGTERM', drain).on('SIGINT', () => {})
  member.onOrder('drain', () => drain('SIGTERM'))
  member.onOrder('close', close)
}

/** The service until it is told to end: one process, a cluster of them, or one beside a copy in PostgreSQL. */
export async function serve(config: Config): Promise<void> {
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH_PERCENT}`)
  const member = joinCluster()
  if (config.CLUSTER_WORKERS > 1 && member === undefined) process.exit(await watchOver(config))
  const mirror = openMirror(config)
  const service =
    mirror === undefined ? await build(config, 'service', { member }) : await serveMirrored(config, mirror)
  if (mirror === undefined) await listen(listening(service), config, member)
  if (config.TENANCY !== 'single' || member?.isFirst === false) return
  // The service is up all the same, and the console can print another: `inventory users link`.
  await greet(service, config).catch((error) => service.log.warn({ err: error }, 'no link to make the first user'))
}

/** Runs `CLUSTER_WORKERS` processes like this one and serves nothing itself. */
function watchOver(config: Config): Promise<number> {
  const { PORT: port, HOST: host } = config
  const log = pino({ level: config.LOG_LEVEL })
  if (config.REDIS_URL === undefined)
    log.warn('CLUSTER_WORKERS without REDIS_URL: each process has caches and rate limits of its own')
  return supervise({
    workers: config.CLUSTER_WORKERS,
    drainSeconds: config.DRAIN_SECONDS,
    log,
    starting: async () => {
      if (port === 0) return undefined
      return answerWhileStarting(port, host).catch((error) => {
        throw listenFailure(error, config)
      })
    }
  })
}

/** What answers on the port. */
interface Listening {
  readonly log: FastifyBaseLogger
  ready(): PromiseLike<unknown>
  listen(at: { port: number; host: string }): Promise<unknown>
  /** Says that it is not ready any more. */
  drain(): void
  close(): PromiseLike<void>
}
export const listening = (service: FastifyInstance): Listening => ({
  log: service.log,
  ready: () => service.ready(),
  listen: (at) => service.listen(at),
  drain: () => service.getDecorator<Health>('health').drain(),
  close: async () => {
    // At once, while clients still keep their connections: told to let go of them they come anew, and whoever was not read yet when
    // the door closes is cut off.
    net.Server.prototype.close.call(service.server)
    await service.close()
  }
})

/** With a mirror the service may be exchanged for one on the other database while the port stays open. */
async function serveMirrored(config: Config, mirror: Mirror): Promise<FastifyInstance> {
  await mirror.settle()
  let service = await build(config, 'service', { mirror })
  const front = new Front(serverOptions({ logLevel: config.LOG_LEVEL }).clientErrorHandler)
  const door = {
    hold: async () => {
      await front.hold()
      await service.close()
    },
    release: async () => {
      service = await build(config, 'service', { mirror })
      await service.ready()
      front.release(service)
    }
  }
  await listen(
    {
      log: service.log,
      ready: () => service.ready(),
      listen: async ({ port, host }) => {
        front.release(service)
        await front.listen(port, host)
        mirror.run(door)
      },
      drain: () => service.getDecorator<Health>('health').drain(),
      close: async () => {
        await front.close()
        await mirror.close()
        await service.close()
      }
    },
    config
  )
  return service
}

/** There is no default account: whoever reads what the service prints at its start makes the first one. */
async function greet(service: FastifyInstance, { publicUrl: configured, PORT }: Config): Promise<void> {
  const { setupLinkFor } = await import('./modules/identity/index.js')
  const address = service.server.address()
  const opened = PORT === 0 && address !== null && typeof address === 'object' ? address.port : PORT
  const publicUrl = configured.replace(/:0$/, `:${opened}`)
  const link = await setupLinkFor(await service.getDecorator<Tenants>('tenants').get('main'), publicUrl)
  if (link === undefined) return
  // Not to the log, which is kept and shipped: it is a secret for a day.
  process.stderr.write(`No user exists yet. This link makes the first administrator, once, until ${link.expiresAt}:
  ${link.url}
or: POST /api/auth/setup { "token": "<what follows token= in the link>", "username": "…", "password": "…" }
`)
}

async function open(service: Listening, config: Config, member?: Member): Promise<void> {
  const { PORT: port, HOST: host } = config
  try {
    // In a cluster somebody else answers until the first is ready, and then those that are.
    const done = port === 0 || member !== undefined ? undefined : await answerWhileStarting(port, host)
    try {
      await service.ready()
      await member?.admitted()
    } finally {
      await done?.()
    }
    await service.listen({ port, host })
  } catch (error) {
    await service.close()
    throw listenFailure(error, config)
  }
}

/** What the operator is told when the port or the address cannot be had. */
function listenFailure(error: unknown, { PORT: port, HOST: host }: Config): unknown {
  const code = error instanceof Error && 'code' in error ? error.code : undefined
  if (code === 'EADDRINUSE' || code === 'EACCES')
    return new ConfigError(`PORT is ${port}, which cannot be opened (${code}); it may be another port`)
  if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND' || code === 'EAI_AGAIN')
    return new ConfigError(`HOST is "${host}", which is not an address of this machine (${code}); it may be 127.0.0.1`)
  return error
}

/** Runs a command; a bad configuration ends it with one line and 2, anything else that fails with 1. */
export async function main(run: (config: Config) => Promise<unknown>): Promise<void> {
  try {
    await run(loadConfig(process.env))
  } catch (error) {
    process.stderr.write(
      `${error instanceof ConfigError ? error.message : error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`
    )
    process.exit(error instanceof ConfigError ? 2 : 1)
  }
}

if (import.meta.filename === process.argv[1]) await main(serve)
