import { createHash, randomUUID, timingSafeEqual } from 'node:crypto'
import { hostname } from 'node:os'
import type { FastifyInstance, FastifyRequest, onRequestHookHandler } from 'fastify'
import fp from 'fastify-plugin'
import { coreMigrations } from '../migrations/core.js'
import { ArchiveService, type ArchiveSettings, releaseCapture } from './archive/index.js'
import { type AuditService, createAudit } from './audit.js'
import { createAuth } from './auth.js'
import { createBreather } from './breath.js'
import { createBroadcast } from './broadcast.js'
import { createCaches } from './cache/index.js'
import type { Member } from './cluster/index.js'
import { createCompute } from './compute/index.js'
import { keptIn } from './config/data-dir.js'
import type { SecretKey } from './config/index.js'
import type { TlsIdentity } from './config/secrets.js'
import type { Archives, Audit, Breather, EnterModule, ModuleOptions, Tenant } from './contracts.js'
import { openDatabaseServer, startFailure } from './database.js'
import type { DatabaseEvents } from './dialects/dialect.js'
import { createEvents } from './events.js'
import { diskCheck, diskGauges, registerHealth } from './health.js'
import { createAnswers, nameAnswers } from './http/answers.js'
import { readJsonOnly } from './http/bodies.js'
import { TenantNotFound, Unauthenticated, useProblems } from './http/errors.js'
import { forgetOldKeys } from './http/idempotency-keys.js'
import { endIdleConnections } from './http/idle-connections.js'
import { registerHttp } from './http/index.js'
import { registerOpenApi } from './http/openapi.js'
import type { RateLimits } from './http/rate-limits.js'
import { serializerCompiler } from './http/serialization.js'
import { createUnderWay, type UnderWay } from './http/under-way.js'
import { createValidatorCompiler, refuseUndeclared } from './http/validation.js'
import { createJobs } from './jobs/index.js'
import { jobRoutes } from './jobs/routes.js'
import { certificateMetrics } from './metrics/certificates.js'
import { databaseStatistics } from './metrics/database-statistics.js'
import { exposition } from './metrics/exposition.js'
import { httpMetrics } from './metrics/http.js'
import { createRegistry, databaseGauges, databaseMetrics, metricsRoute } from './metrics/index.js'
import { processMetrics } from './metrics/process.js'
import { redisMetrics } from './metrics/redis.js'
import { forgetMirrored, MIRROR_TABLES, type Mirror, mirrorCheck, mirrorMetrics } from './mirror/index.js'
import { createPeriodic } from './periodic.js'
import { checkRedis, openRedis } from './redis.js'
import { createSeal } from './seal.js'
import { NO_TELEMETRY, type Telemetry, telemetryMetrics } from './telemetry/index.js'
import { createLogLevels, logLevelRoutes } from './telemetry/log-level.js'
import { traceQueries } from './telemetry/query-spans.js'
import { logRequests } from './telemetry/request-log.js'
import { logSlowQueries } from './telemetry/slow-queries.js'
import { SINGLE_TENANT, Tenants } from './tenants.js'
import { VERSION } from './version.js'

export interface CoreOptions {
  /** `sqlite:<path>`, `sqlite::memory:` or `postgres://…`. */
  databaseUrl: string
  tenancy?: 'single' | 'multi'
  /** Other PostgreSQL servers by name, where tenants may be placed. */
  databaseServers?: ReadonlyMap<string, string>
  /** A streaming replica of the PostgreSQL of `databaseUrl`, from which reports are read. */
  databaseReplicaUrl?: string | undefined
  poolSize?: number
  /** With it the connections to PostgreSQL are encrypted and its certificate and name verified. */
  postgresTls?: TlsIdentity
  redisUrl?: string
  /** For a `rediss://` URL. */
  redisTls?: TlsIdentity
  cache?: boolean
  /** Turns on token checks: `app.getDecorator('auth').authorize`. */
  jwtKeys?: readonly [SecretKey, ...SecretKey[]]
  /** Turns on `seal`, which keeps stored secrets encrypted: `app.getDecorator('seal')`. */
  secretsKeys?: readonly [SecretKey, ...SecretKey[]]
  /** Cookies are for HTTPS alone, whatever a request looks like; otherwise as it looks. */
  secureCookies?: boolean
  workerThreads?: number
  /** Where files of running work are kept; the system's temporary folder otherwise. */
  dataDir?: string
  /** Where archives of tenants' data go, and whether changes are noted for increments. */
  archives?: { readonly settings: ArchiveSettings; readonly increments: boolean }
  /** The copy on the other database engine, where one may be kept. */
  mirror?: Mirror
  /** The other processes of `CLUSTER_WORKERS`, for one that is among them. */
  member?: Pick<Member, 'gather' | 'provide' | 'share' | 'answer' | 'askEach'>
  /** Traces; whoever opened it closes it, after the app. */
  telemetry?: Telemetry
  /** A query that takes longer counts as slow (250). */
  slowQueryMilliseconds?: number
  /** `worker`: takes jobs from the queue and serves nothing. */
  mode?: 'service' | 'worker'
  /** What the whole service wears. Left out when embedded: headers, limits and documents are the host's own. */
  service?: {
    metricsToken?: string
    corsOrigins: readonly string[]
    requestsPerMinute: number
    rateLimits?: RateLimits
    docs?: boolean
  }
}

/** Known beforehand, so that their metrics start at 0. */
const CACHE_NAMESPACES = ['inventory', 'forecasting', 'anomaly', 'dashboard', 'identity', 'webhooks']

/** Provides what the domains rely on (`plugins/contracts.ts`): one call, and each domain can be registered beside it. */
async function core(app: FastifyInstance, options: CoreOptions): Promise<void> {
  const { tenancy = 'single', service, redisUrl, redisTls } = options
  const { telemetry = NO_TELEMETRY, slowQueryMilliseconds = 250 } = options
  const registry = createRegistry(VERSION)
  telemetryMetrics(registry, telemetry)
  certificateMetrics(registry, { postgres: options.postgresTls, redis: redisTls })
  telemetry.watch(app)
  const started = service === undefined ? () => {} : await processMetrics(app, registry)
  if (service !== undefined) {
    logRequests(app)
    httpMetrics(app, registry, telemetry.on)
  }
  options.member?.provide((openMetrics) => exposition(registry, openMetrics))

  const dialect = options.databaseUrl.startsWith('sqlite:') ? 'sqlite' : 'postgresql'
  const slow = { seconds: slowQueryMilliseconds / 1000, log: app.log, tracing: telemetry, dialect }
  const observed = (events: DatabaseEvents) => logSlowQueries(traceQueries(events, telemetry, dialect), slow)
  const server = openDatabaseServer(
    {
      databaseUrl: options.databaseUrl,
      servers: options.databaseServers,
      replicaUrl: options.databaseReplicaUrl,
      tenancy,
      poolSize: options.poolSize ?? 10,
      tls: options.postgresTls
    },
    observed(databaseMetrics(registry, dialect, slowQueryMilliseconds / 1000))
  )
  const deployment = deploymentOf(options.databaseUrl)
  const redis =
    redisUrl === undefined
      ? null
      : await openRedis({ url: redisUrl, tls: redisTls, log: app.log, prefix: `${deployment}:` })
  if (redis !== null) redisMetrics(registry, redis)
  const levels = createLogLevels(app.log, redis, options.member)
  const caches = createCaches({
    redis,
    enabled: options.cache ?? true,
    registry,
    namespaces: CACHE_NAMESPACES
  })
  const events = createEvents({ log: app.log, registry, tracing: telemetry })
  const audit = createAudit()
  const notice = (text: string) => app.log.warn(text)
  const tenants = new Tenants({ server, tenancy, caches, events, audit, tracing: telemetry, notice })
  tenants.addMigrations({
    module: 'core',
    migrations: coreMigrations,
    portability: { notCopied: MIRROR_TABLES }
  })
  options.mirror?.attach(tenants.migrations(), app.log)
  databaseGauges(registry, server, tenants)
  const whereabouts = {
    databaseUrl: options.databaseUrl,
    tenancy,
    tls: options.postgresTls,
    urlOf: (tenant: string) => options.databaseServers?.get(server.homeOf?.(tenant) ?? '') ?? options.databaseUrl
  }
  const archives =
    options.archives === undefined
      ? null
      : new ArchiveService({ ...options.archives, database: whereabouts, migrations: () => tenants.migrations() })
  databaseStatistics(registry, server, tenants)
  const periodic = createPeriodic(() => tenants.all(), app.log, registry)
  // What a crash left in the outbox is delivered too.
  periodic.every(10, 'outbox', events.sweep)
  periodic.every(30, 'outbox count', events.count)
  periodic.every(3_600, 'idempotency keys', forgetOldKeys)
  // Not at once: a command at the console knows of no backups, and must not end those of the service.
  if (archives?.increments !== true && options.mode !== 'worker')
    periodic.every(3_600, 'changes noted for backups', (tenant) =>
      releaseCapture(tenant, whereabouts, tenants.migrations())
    )
  const { mirror } = options
  if (mirror !== undefined) {
    mirrorMetrics(registry, mirror)
    periodic.every(5, 'mirror', (tenant) => forgetMirrored(mirror, tenant))
  }

  const compute = createCompute({ threads: options.workerThreads ?? 1, registry, tracing: telemetry })
  const jobs = createJobs({
    tenants,
    redisUrl,
    redisTls,
    queueName: `${deployment}-jobs`,
    registry,
    log: app.log,
    tracing: telemetry,
    mode: options.mode ?? 'service',
    node: nodeIdentity(options.dataDir),
    dataDir: options.dataDir
  })

  app.decorateRequest('tenant', null)
  app.decorateRequest('principal', null)
  const enterTenant = (id: string) => tenants.opened(id) ?? tenants.get(id)
  const auth =
    options.jwtKeys === undefined
      ? undefined
      : createAuth(app, {
          keys: options.jwtKeys,
          secureCookies: options.secureCookies ?? false,
          registry,
          enterTenant
        })
  const answers = createAnswers({
    registry,
    waitForJob: jobs.wait,
    locationOf: (id) => (jobs.path === undefined ? undefined : `${jobs.path}/${id}`)
  })

  app.decorate('database', server)
  app.decorate('tenants', tenants)
  app.decorate('redis', redis?.client ?? null)
  app.decorate('sharedStore', redis)
  app.decorate('broadcast', createBroadcast(redis))
  app.decorate('registry', registry)
  app.decorate('caches', caches)
  app.decorate('events', events)
  app.decorate('periodic', periodic)
  app.decorate('compute', compute)
  app.decorate('jobs', jobs)
  app.decorate<Archives | null>('archives', archives)
  app.decorate('answers', answers)
  app.decorate<Audit>('audit', audit)
  app.decorate('migrations', { add: tenants.addMigrations.bind(tenants) })
  const underWay = createUnderWay()
  app.decorate('enterModule', moduleEntrance({ tenancy, tenants, audit, underWay }))
  app.decorate<Breather>('breather', createBreather(underWay))
  if (auth !== undefined) app.decorate('auth', auth)
  if (options.secretsKeys !== undefined) app.decorate('seal', createSeal(options.secretsKeys))

  if (service !== undefined) {
    await registerHttp(app, { rateLimits: {}, ...service, version: VERSION, redis, registry })
    await registerOpenApi(app, VERSION, service.docs ?? true)
    const health = registerHealth(app, { version: VERSION, registry, processes: options.member })
    health.add({ name: 'database', optional: false, probe: () => server.ping() })
    const { takesWrites } = server
    if (takesWrites !== undefined) health.add({ name: 'writes', optional: true, probe: takesWrites })
    if (redis !== null) health.add({ name: 'cache', optional: true, probe: () => redis.probe() })
    if (mirror !== undefined) health.add(mirrorCheck(mirror))
    if (options.dataDir !== undefined) {
      health.add(diskCheck(options.dataDir))
      diskGauges(registry, options.dataDir)
    }
    app.decorate('health', health)
    metricsRoute(
      app,
      registry,
      options.member?.gather,
      scrapeAllowed(service.metricsToken),
      () => new Unauthenticated({ reason: 'METRICS_TOKEN' })
    )
    if (auth !== undefined) {
      const { authorize } = auth
      await app.register(jobRoutes, { prefix: '/api/jobs', authorize })
      await app.register(logLevelRoutes, { prefix: '/api/log-level', authorize, levels, tenancy })
    }
  }

  app.addHook('onReady', async () => {
    if (redisUrl !== undefined) await checkRedis(redisUrl, redisTls)
    await tenants.ready().catch((error) => {
      throw startFailure(error)
    })
    await jobs.ready()
    periodic.start()
    started()
  })
  // Before requests are waited for: one of them may be waiting for a job.
  app.addHook('preClose', () => jobs.close())
  let stopLooking: (() => void) | undefined
  app.addHook('preClose', async () => {
    stopLooking = endIdleConnections(app.server)
  })
  app.addHook('onClose', async () => {
    stopLooking?.()
    await underWay.ended()
    // Together: upkeep may be waiting for events to be delivered.
    await Promise.all([periodic.close(), events.close()])
    await archives?.close()
    await compute.close()
    await caches.close()
    levels.close()
    await redis?.close()
    await server.close()
  })
}

interface Entrance {
  tenancy: 'single' | 'multi'
  tenants: Tenants
  audit: AuditService
  underWay: UnderWay
}

/** What every module does first; see `EnterModule`. */
function moduleEntrance({ tenancy, tenants, audit, underWay }: Entrance): EnterModule {
  const validatorCompiler = createValidatorCompiler()
  const enterSingleTenant: onRequestHookHandler = (request, _reply, done) => {
    const tenant = tenants.opened(SINGLE_TENANT)
    if (tenant !== undefined) request.setDecorator<Tenant>('tenant', tenant)
    done(tenant === undefined ? new TenantNotFound({ tenant: SINGLE_TENANT }) : undefined)
  }
  return (app: FastifyInstance, { authorize }: ModuleOptions) => {
    if (typeof authorize !== 'function') {
      throw new TypeError(
        'the option `authorize` is required: an onRequest hook that decides who may call these routes'
      )
    }
    app.setValidatorCompiler(validatorCompiler)
    app.setSerializerCompiler(serializerCompiler)
    app.addHook('onRoute', refuseUndeclared)
    useProblems(app, audit.denied)
    readJsonOnly(app)
    nameAnswers(app)
    underWay.watch(app)
    if (tenancy === 'single') app.addHook('onRequest', enterSingleTenant)
    app.addHook('onRequest', authorize)
  }
}

/** Names the files of this node: an id kept beside them, since a container has another host name at every start. */
function nodeIdentity(dataDir: string | undefined): string {
  if (dataDir === undefined) return `${hostname()}:${process.pid}`
  return keptIn(dataDir, 'node-id', randomUUID)
}

/** Names what is shared on Redis: the processes of one database share it, those of another do not. The URL may hold a password. */
const deploymentOf = (databaseUrl: string) => {
  const identity = databaseUrl.startsWith('sqlite:') ? `${hostname()} ${databaseUrl}` : databaseUrl
  return `inventory-${createHash('sha256').update(identity).digest('hex').slice(0, 16)}`
}

function scrapeAllowed(token: string | undefined): (request: FastifyRequest) => boolean {
  if (token === undefined) return () => true
  const expected = createHash('sha256').update(`Bearer ${token}`).digest()
  return ({ headers }) =>
    timingSafeEqual(
      createHash('sha256')
        .update(headers.authorization ?? '')
        .digest(),
      expected
    )
}

export type * from './contracts.js'
export { access, Problem, problem } from './contracts.js'
export { personalData } from './http/kept-answers.js'
export { openTelemetry } from './telemetry/index.js'
export type { Member, Mirror, Telemetry, Tenants }

export default fp(core, { name: 'inventory-enterprise/core', fastify: '5.x' })
