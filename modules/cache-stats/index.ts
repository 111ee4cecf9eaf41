import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import fp from 'fastify-plugin'
import { access, type EnterModule, type ModuleOptions, type Tenant } from '../../plugins/contracts.js'
import { CacheStatistics } from '../../schemas/cache-stats.js'
import { problems } from '../../schemas/common.js'

/** What this module needs of a host's cache. */
export interface CacheStats {
  stats(tenant: string): CacheStatistics
}

/** `GET /cache/stats`: how the caller's tenant is served from the cache. */
const cacheStats: FastifyPluginAsyncTypebox<ModuleOptions> = async (app, options) => {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const caches = app.getDecorator<CacheStats>('caches')
  const schema = {
    summary: 'Hit rate, size and keys of the cache, in all and for each namespace',
    tags: ['cache'],
    response: { 200: CacheStatistics, ...problems }
  }
  app.get('/cache/stats', { schema, config: access('manager') }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    return caches.stats(request.getDecorator<Tenant>('tenant').id)
  })
}

export default fp(cacheStats, {
  name: 'inventory-enterprise/cache-stats',
  fastify: '5.x',
  encapsulate: true,
  decorators: { fastify: ['enterModule', 'caches'], request: ['tenant'] }
})
