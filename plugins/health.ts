import type { FastifyInstance } from 'fastify'
import { type Static, Type } from 'typebox'
import { Closed, problems } from '../schemas/common.js'
import { access } from './contracts.js'

const CheckStatus = Type.Union([Type.Literal('ok'), Type.Literal('degraded'), Type.Literal('down')])
const Check = Closed({ status: CheckStatus, latencyMilliseconds: Type.Number() })
const Health = Closed({
  status: CheckStatus,
  version: Type.String(),
  uptimeSeconds: Type.Number(),
  checks: Type.Record(Type.String(), Check)
})
type Health = Static<typeof Health>

export interface HealthCheck {
  readonly name: string
  /** A part the service can do without makes it `degraded`, never `down`. */
  readonly optional: boolean
  /** Rejects when the part does not work. */
  probe(): Promise<void>
}

/** Many callers share one probe for this long, so that an open route cannot be used to load the database. */
const FRESH_MILLISECONDS = 1_000
const TIMEOUT_MILLISECONDS = 2_000

export function registerHealth(app: FastifyInstance, version: string, checks: readonly HealthCheck[]): void {
  const startedAt = performance.now()
  let last: { at: number; checks: Promise<Health['checks']> } | undefined
  let draining = false
  app.addHook('preClose', async () => {
    draining = true
  })

  const look = () => {
    const now = performance.now()
    if (last === undefined || now - last.at > FRESH_MILLISECONDS) last = { at: now, checks: probeAll(checks) }
    return last.checks
  }
  const report = async (): Promise<Health> => {
    const results = await look()
    const states = Object.values(results).map(({ status }) => status)
    const status = draining || states.includes('down') ? 'down' : states.includes('degraded') ? 'degraded' : 'ok'
    return { status, version, uptimeSeconds: (performance.now() - startedAt) / 1000, checks: results }
  }
  const response = { 200: Health, 503: Health, '4xx': problems['4xx'] }
  const config = access('public')
  const described = (summary: string) => ({ summary, tags: ['health'], security: [], response })

  app.get(
    '/health',
    { config, logLevel: 'warn', schema: described('The state of the service and its parts') },
    async (_request, reply) => {
      const health = await report()
      return reply
        .code(health.status === 'down' ? 503 : 200)
        .header('cache-control', 'no-store')
        .send(health)
    }
  )
  app.get(
    '/health/ready',
    { config, logLevel: 'warn', schema: described('Whether requests should be sent here') },
    async (_request, reply) => {
      const health = await report()
      return reply
        .code(health.status === 'down' ? 503 : 200)
        .header('cache-control', 'no-store')
        .send(health)
    }
  )
  const live = Closed({ status: Type.Literal('ok') })
  app.get(
    '/health/live',
    {
      config,
      logLevel: 'warn',
      schema: {
        summary: 'Whether the process answers',
        tags: ['health'],
        security: [],
        response: { 200: live, ...problems }
      }
    },
    async (_request, reply) => reply.header('cache-control', 'no-store').send({ status: 'ok' as const })
  )
}

async function probeAll(checks: readonly HealthCheck[]): Promise<Health['checks']> {
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

function withTimeout(work: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error('no answer in time')), TIMEOUT_MILLISECONDS)
  })
  return Promise.race([work, late]).finally(() => clearTimeout(timer))
}
