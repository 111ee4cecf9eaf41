import type { StatsFs } from 'node:fs'
import { statfs } from 'node:fs/promises'
import type { FastifyInstance, FastifyReply } from 'fastify'
import { Gauge, type Registry } from 'prom-client'
import { type Static, Type } from 'typebox'
import { Closed, problems } from '../schemas/common.js'
import { CheckStatus, type Processes, ServingState, WorkerHealth, workersHealth } from './cluster/worker-health.js'
import { access, type Health, type HealthCheck } from './contracts.js'
import { kept, PROBED, WATCHED } from './metrics/kept-figures.js'

const Check = Closed({ status: CheckStatus, latencyMilliseconds: Type.Number() })
const Report = Closed({
  status: CheckStatus,
  state: ServingState,
  version: Type.String(),
  uptimeSeconds: Type.Number(),
  checks: Type.Record(Type.String(), Check),
  workers: Type.Optional(
    Type.Array(WorkerHealth, {
      description:
        'With CLUSTER_WORKERS, every process of the node, while the rest is of the one that answers: another that is not well makes this `degraded`. Empty when they could not be asked'
    })
  )
})
type Report = Static<typeof Report>
type Checks = Report['checks']

/** Many callers share one probe for this long, so that an open route cannot be used to load the database. */
const FRESH_MILLISECONDS = 1_000
const TIMEOUT_MILLISECONDS = 2_000

interface HealthOptions {
  readonly version: string
  readonly registry: Registry
  /** The processes of the node, this one among them; left out when it is alone. */
  readonly processes?: Processes | undefined
}

/**
 * `/health` says how the service and its parts are, `/health/ready` whether requests should be sent here, `/health/live` whether
 * the process answers at all. Part of a service only; embedded, health is the host's own.
 */
export function registerHealth(app: FastifyInstance, { version, registry, processes }: HealthOptions): Health {
  const startedAt = performance.now()
  const checks: HealthCheck[] = []
  const look = shared(() => probeAll(checks))
  const seen = kept(look, PROBED)
  let since = Date.now()
  let draining = false
  const drain = () => {
    if (!draining) since = Date.now()
    draining = true
  }
  app.addHook('preClose', async () => drain())
  const serving = (found: Checks | undefined) =>
    ({ status: draining ? 'down' : worst(found), state: draining ? 'draining' : 'ready' }) as const

  // By what was found last: a probe that hangs must not make this process look as if it did.
  const ask = processes && workersHealth(processes, async () => ({ ...serving(await seen()), since }))
  const workers = ask && shared(() => withTimeout(ask()).catch(() => []))
  const report = async (workersOf?: () => Promise<WorkerHealth[] | undefined>): Promise<Report> => {
    const [found, others] = await Promise.all([look(), workersOf?.()])
    const { status, state } = serving(found)
    return {
      status: status === 'ok' && !allWell(others) ? 'degraded' : status,
      state,
      version,
      uptimeSeconds: (performance.now() - startedAt) / 1000,
      checks: found,
      ...(others === undefined ? {} : { workers: others })
    }
  }
  // A balancer does not wait for a process that it did not ask.
  const workersSeen = workers && kept(workers, PROBED)
  healthRoutes(app, { health: () => report(workers), ready: () => report(workersSeen) })
  healthGauges(registry, kept(look, WATCHED), () => !draining)
  return { add: (check) => void checks.push(check), drain }
}

/** While nothing is known yet, not well. */
function worst(found: Checks | undefined): Report['status'] {
  const statuses = found === undefined ? ['degraded'] : Object.values(found).map(({ status }) => status)
  return statuses.includes('down') ? 'down' : statuses.includes('degraded') ? 'degraded' : 'ok'
}

/** None at all could be asked: that is not well. */
const allWell = (workers: readonly WorkerHealth[] | undefined) =>
  workers === undefined || (workers.length > 0 && workers.every(({ status }) => status === 'ok'))

function healthRoutes(app: FastifyInstance, reports: Record<'health' | 'ready', () => Promise<Report>>): void {
  const answer = (report: () => Promise<Report>) => async (_request: unknown, reply: FastifyReply) => {
    const health = await report()
    if (health.status === 'down') reply.header('retry-after', '5')
    return reply
      .code(health.status === 'down' ? 503 : 200)
      .header('cache-control', 'no-store')
      .send(health)
  }
  const described = (summary: string, response: object) => ({
    config: access('public'),
    logLevel: 'warn' as const,
    schema: { summary, tags: ['health'], security: [], response }
  })
  const reported = { 200: Report, 503: Report, '4xx': problems['4xx'] }
  app.get('/health', described('The state of the service and its parts', reported), answer(reports.health))
  app.get('/health/ready', described('Whether requests should be sent here', reported), answer(reports.ready))
  const live = Closed({ status: Type.Literal('ok') })
  app.get(
    '/health/live',
    described('Whether the process answers', { 200: live, ...problems }),
    async (_request, reply) => reply.header('cache-control', 'no-store').send({ status: 'ok' as const })
  )
}

function healthGauges(registry: Registry, seen: () => Promise<Checks | undefined>, ready: () => boolean): void {
  new Gauge({
    name: 'app_ready',
    help: '1 when this health check passes; lifecycle is 0 while the process drains.',
    labelNames: ['check'],
    registers: [registry],
    async collect() {
      this.set({ check: 'lifecycle' }, ready() ? 1 : 0)
      for (const [check, { status }] of Object.entries((await seen()) ?? {}))
        this.set({ check }, status === 'ok' ? 1 : 0)
    }
  })
  new Gauge({
    name: 'app_health_check_duration_seconds',
    help: 'How long the last probe of this health check took.',
    labelNames: ['check'],
    registers: [registry],
    async collect() {
      for (const [check, { latencyMilliseconds }] of Object.entries((await seen()) ?? {}))
        this.set({ check }, latencyMilliseconds / 1000)
    }
  })
}

/** Below this share of the volume, or this much when that is less, the rest is kept for what is under way. */
const FREE_SHARE_MIN = 0.05
const FREE_BYTES_MIN = 1024 ** 3

/** Warns before the disk is full: writes are refused then, reads go on. */
export const diskCheck = (folder: string): HealthCheck => ({
  name: 'disk',
  optional: true,
  probe: async () => {
    const { bavail, blocks, bsize } = await statfs(folder)
    const least = Math.min(blocks * bsize * FREE_SHARE_MIN, FREE_BYTES_MIN)
    if (bavail * bsize < least) throw new Error('little space is left')
  }
})

/** How full the volume of this folder is, found behind a scrape. */
export function diskGauges(registry: Registry, folder: string): void {
  const found = kept(() => statfs(folder))
  const gauge = (name: string, help: string, blocksOf: (volume: StatsFs) => number) =>
    new Gauge({
      name,
      help,
      labelNames: ['volume'],
      registers: [registry],
      async collect() {
        const volume = await found()
        if (volume !== undefined) this.set({ volume: 'data' }, blocksOf(volume) * volume.bsize)
      }
    })
  gauge('app_disk_free_bytes', 'Free space where data lies.', ({ bavail }) => bavail)
  gauge('app_disk_size_bytes', 'Size of the volume where data lies.', ({ blocks }) => blocks)
}

/** One call of `work` for all who ask while it runs, and for a while after it ended. */
function shared<T>(work: () => Promise<T>): () => Promise<T> {
  let last: { result: Promise<T>; endedAt: number } | undefined
  return () => {
    if (last !== undefined && performance.now() - last.endedAt < FRESH_MILLISECONDS) return last.result
    const mine = { result: work(), endedAt: Number.POSITIVE_INFINITY }
    last = mine
    const ended = () => {
      mine.endedAt = performance.now()
    }
    mine.result.then(ended, ended)
    return mine.result
  }
}

async function probeAll(checks: readonly HealthCheck[]): Promise<Checks> {
  const entries = checks.map(async ({ name, optional, probe }) => {
    const startedAt = performance.now()
    const works = await withTimeout(probe()).then(
      () => true,
      () => false
    )
    const status = works ? 'ok' : optional ? 'degraded' : 'down'
    return [name, { status, latencyMilliseconds: performance.now() - startedAt }] as const
  })
  return Object.fromEntries(await Promise.all(entries))
}

function withTimeout<T>(work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error('no answer in time')), TIMEOUT_MILLISECONDS)
  })
  return Promise.race([work, late]).finally(() => clearTimeout(timer))
}
