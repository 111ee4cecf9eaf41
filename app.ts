import type { FastifyInstance } from 'fastify'
import cacheStats from './modules/cache-stats/index.js'
import identity from './modules/identity/index.js'
import inventory, { stockGauges } from './modules/inventory/index.js'
import type { Config } from './plugins/config.js'
import type { Auth, Tenants } from './plugins/core.js'
import core from './plugins/core.js'

/** The map: the core, then each module in dependency order, and the ports between them. */
export async function app(service: FastifyInstance, config: Config): Promise<void> {
  await service.register(core, {
    databaseUrl: config.DATABASE_URL,
    tenancy: config.TENANCY === 'multi' ? 'multi' : 'single',
    poolSize: config.POSTGRES_POOL_SIZE,
    ...(config.REDIS_URL === undefined ? {} : { redisUrl: config.REDIS_URL }),
    cache: config.CACHE === 'on',
    jwtKeys: config.jwtKeys,
    workerThreads: config.WORKER_THREADS,
    dataDir: config.DATA_DIR,
    service: {
      ...(config.METRICS_TOKEN === undefined ? {} : { metricsToken: config.METRICS_TOKEN }),
      corsOrigins: config.CORS_ORIGINS?.split(',') ?? [],
      requestsPerMinute: config.RATE_LIMIT_PER_MINUTE
    }
  })
  const { authorize } = service.getDecorator<Auth>('auth')
  const tenants = service.getDecorator<Tenants>('tenants')
  const options = { prefix: '/api', authorize }

  await service.register(identity, { ...options })
  await service.register(inventory, { ...options, dataDir: config.DATA_DIR })
  await service.register(cacheStats, { ...options })
  stockGauges(service.getDecorator('registry'), async () =>
    Promise.all((await tenants.list()).map((id) => tenants.get(id)))
  )
}
