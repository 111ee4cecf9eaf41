import type { FastifyInstance } from 'fastify'
import anomaly, { anomalyHeadline, personalData as anomalyPersonal } from './modules/anomaly/index.js'
import audit, { personalData as auditPersonal, trailProof } from './modules/audit/index.js'
import backups from './modules/backups/index.js'
import cacheStats from './modules/cache-stats/index.js'
import dashboard from './modules/dashboard/index.js'
import forecasting, {
  consumptionSeries,
  dailyDemand,
  forecastHeadline,
  personalData as forecastingPersonal,
  runOut,
  unusualDays
} from './modules/forecasting/index.js'
import identity, { personalData as identityPersonal, rectifyUser, userExists } from './modules/identity/index.js'
import inventory, {
  availableStock,
  dailyFlow,
  dailyUseByLocation,
  inventoryHeadline,
  personalData as inventoryPersonal,
  items,
  ledgerProof,
  stockGauges
} from './modules/inventory/index.js'
import privacy from './modules/privacy/index.js'
import realtime from './modules/realtime/index.js'
import slo from './modules/slo/index.js'
import webhooks from './modules/webhooks/index.js'
import type { Config } from './plugins/config/index.js'
import type { Auth, Member, Mirror, Telemetry, Tenants } from './plugins/core.js'
import core, { personalData as corePersonal } from './plugins/core.js'

/** What the process that runs the service has beside it. */
export interface Surroundings {
  mirror?: Mirror | undefined
  member?: Member | undefined
  telemetry?: Telemetry | undefined
}

/** The map: the core, then each module in dependency order, and the ports between them. */
export async function app(
  service: FastifyInstance,
  config: Config,
  mode: 'service' | 'worker' = 'service',
  { mirror, member, telemetry }: Surroundings = {}
): Promise<void> {
  await service.register(core, {
    databaseUrl: config.DATABASE_URL,
    tenancy: config.TENANCY === 'multi' ? 'multi' : 'single',
    databaseServers: config.databaseServers,
    databaseReplicaUrl: config.DATABASE_REPLICA_URL,
    poolSize: config.POSTGRES_POOL_SIZE,
    ...(config.postgresTls === undefined ? {} : { postgresTls: config.postgresTls }),
    ...(config.REDIS_URL === undefined ? {} : { redisUrl: config.REDIS_URL }),
    ...(config.redisTls === undefined ? {} : { redisTls: config.redisTls }),
    cache: config.CACHE === 'on',
    jwtKeys: config.jwtKeys,
    secretsKeys: config.secretsKeys,
    secureCookies: config.NODE_ENV === 'production',
    workerThreads: config.WORKER_THREADS,
    dataDir: config.DATA_DIR,
    ...(mirror === undefined ? {} : { mirror }),
    ...(config.backups === undefined
      ? {}
      : { archives: { settings: config.backups.settings, increments: config.backups.incrementSeconds > 0 } }),
    ...(member === undefined ? {} : { member }),
    ...(telemetry === undefined ? {} : { telemetry }),
    slowQueryMilliseconds: config.SLOW_QUERY_MS,
    mode,
    service: {
      ...(config.METRICS_TOKEN === undefined ? {} : { metricsToken: config.METRICS_TOKEN }),
      corsOrigins: config.CORS_ORIGINS?.split(',') ?? [],
      requestsPerMinute: config.RATE_LIMIT_PER_MINUTE,
      rateLimits: config.rateLimits,
      docs: config.DOCS === 'on'
    }
  })
  const { authorize, stillAllowed } = service.getDecorator<Auth>('auth')
  const tenants = service.getDecorator<Tenants>('tenants')
  const options = { prefix: '/api', authorize }
  const all = () => tenants.all()

  const consumption = { items, dailyFlow, dailyUseByLocation }

  await service.register(audit, { ...options, retentionDays: config.AUDIT_RETENTION_DAYS })
  await service.register(identity, {
    ...options,
    secondFactor: config.secondFactor,
    publicUrl: config.publicUrl,
    ...(config.oidc === undefined ? {} : { oidc: config.oidc }),
    accessTokenTtlSeconds: config.ACCESS_TOKEN_TTL_SECONDS,
    sessionIdleSeconds: config.SESSION_IDLE_SECONDS,
    sessionTtlSeconds: config.SESSION_TTL_SECONDS
  })
  await service.register(inventory, { ...options, dailyDemand, dataDir: config.DATA_DIR })
  await service.register(forecasting, {
    ...options,
    consumption,
    tenants: all
  })
  await service.register(anomaly, {
    ...options,
    series: consumptionSeries,
    unusualDays: (tenant) => unusualDays(tenant, consumption),
    tenants: all
  })
  await service.register(dashboard, {
    ...options,
    inventory: inventoryHeadline,
    forecasts: forecastHeadline,
    anomalies: anomalyHeadline,
    runsOutFirst: async (tenant, limit) => runOut(tenant, await availableStock(tenant), limit)
  })
  await service.register(cacheStats, { ...options })
  await service.register(webhooks, {
    ...options,
    ...(telemetry === undefined ? {} : { tracing: telemetry }),
    allowedHosts: config.WEBHOOK_ALLOWED_HOSTS?.split(',').map((each) => each.trim()) ?? [],
    tenants: all
  })
  await service.register(realtime, { ...options, stillAllowed })
  await service.register(backups, {
    ...options,
    proofs: [ledgerProof, trailProof],
    ...(config.backups === undefined ? {} : { schedule: config.backups, retention: config.backups.retention })
  })
  await service.register(privacy, {
    ...options,
    holders: [identityPersonal, auditPersonal, inventoryPersonal, forecastingPersonal, anomalyPersonal, corePersonal],
    subjects: { exists: userExists, rectify: rectifyUser }
  })
  await service.register(slo, {
    ...options,
    ...(member === undefined ? {} : { processes: member }),
    states: [
      {
        name: 'ledger-mismatches',
        unit: 'mismatches',
        gauge: 'inventory_ledger_mismatches',
        atMost: 0,
        provedAt: 'inventory_ledger_last_verified_timestamp_seconds'
      },
      { name: 'forecast-age', unit: 'seconds', gauge: 'forecast_last_success_timestamp_seconds', atMost: 36 * 3_600 },
      { name: 'backup-age', unit: 'seconds', gauge: 'backup_last_success_timestamp_seconds', atMost: 24 * 3_600 }
    ]
  })
  stockGauges(service.getDecorator('registry'), async () =>
    Promise.all((await tenants.list()).map((id) => tenants.get(id)))
  )
}
