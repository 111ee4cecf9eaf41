import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import fp from 'fastify-plugin'
import { Type } from 'typebox'
import { Closed, Job, JobStatus, List, PageQuery, problems, Uuid } from '../../schemas/common.js'
import { agentOf } from '../audit.js'
import { access, type EnterModule, type ModuleOptions, type Tenant } from '../contracts.js'
import { decodeCursor, encodeCursor } from '../cursor.js'
import type { JobFilter, JobPosition, JobService } from './index.js'

const Params = Closed({ id: Uuid })
const Query = Closed({
  ...PageQuery,
  status: Type.Optional(JobStatus),
  kind: Type.Optional(Type.String({ minLength: 1, maxLength: 100 }))
})
const tags = ['jobs']

/** What background work is doing: `/api/jobs` in the service. Starting it belongs to the route of each domain. */
export const jobRoutes: FastifyPluginAsyncTypebox<ModuleOptions> = async (app, options) => {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const jobs = app.getDecorator<JobService>('jobs')
  jobs.path = app.prefix

  const list = {
    tags,
    summary: 'Lists jobs, newest first',
    querystring: Query,
    response: { 200: List(Job), ...problems }
  }
  app.get('/', { schema: list, config: access('staff') }, async (request, reply) => {
    const { limit = 50, cursor, ...filter } = request.query
    const rows = await jobs.list(request.getDecorator<Tenant>('tenant'), filter, limit + 1, positionOf(cursor, filter))
    const page = rows.slice(0, limit)
    const last = page.at(-1)
    const nextCursor = rows.length > limit && last !== undefined ? cursorOf(last[0], filter) : null
    reply.header('cache-control', 'no-store')
    return { data: page.map(([, job]) => job), page: { limit, nextCursor } }
  })

  const one = { tags, summary: 'Shows a job', params: Params, response: { 200: Job, ...problems } }
  app.get('/:id', { schema: one, config: access('staff') }, async (request, reply) => {
    reply.header('cache-control', 'no-store')
    return jobs.get(request.getDecorator<Tenant>('tenant'), request.params.id)
  })

  const cancel = {
    tags,
    summary: 'Cancels a job',
    description:
      'A queued job ends at once, or as soon as it has cleaned up; a running one is asked to stop and ends soon after. Repeating it changes nothing.',
    params: Params,
    response: { 202: Job, ...problems }
  }
  app.delete('/:id', { schema: cancel, config: access('manager') }, async (request, reply) => {
    const tenant = request.getDecorator<Tenant>('tenant')
    const job = await jobs.cancel(tenant, request.params.id)
    await tenant.transact(
      async (tx) => tx.audit({ action: `${job.kind}.cancel`, object: { type: 'job', id: job.id } }),
      { agent: agentOf(request) }
    )
    return reply.code(202).header('cache-control', 'no-store').send(job)
  })
}

/** For a host: the jobs of the core that it has registered, at `/jobs` below `prefix`. */
const jobs: FastifyPluginAsyncTypebox<ModuleOptions> = async (app, { authorize }) => {
  await app.register(jobRoutes, { prefix: '/jobs', authorize })
}

export default fp(jobs, {
  name: 'inventory-enterprise/jobs',
  fastify: '5.x',
  encapsulate: true,
  decorators: { fastify: ['enterModule', 'jobs'], request: ['tenant'] }
})

/** A cursor is bound to the filter as well. */
const purposeOf = ({ status, kind }: JobFilter) => `jobs ${JSON.stringify([status, kind])}`

const cursorOf = ({ createdAt, id }: JobPosition, filter: JobFilter): string =>
  encodeCursor(purposeOf(filter), [createdAt, id])

/** @throws CURSOR_INVALID for a cursor of another list or filter */
function positionOf(cursor: string | undefined, filter: JobFilter): JobPosition | undefined {
  const [createdAt, id] = decodeCursor(purposeOf(filter), cursor, ['number', 'string']) ?? []
  return createdAt === undefined || id === undefined ? undefined : { createdAt: Number(createdAt), id: String(id) }
}
