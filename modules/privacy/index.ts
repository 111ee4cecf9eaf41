import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import type {
  Answers,
  EnterModule,
  ModuleOptions,
  Periodic,
  PersonalData,
  Tenant,
  Transaction
} from '../../plugins/contracts.js'
import type { Rectification } from '../../schemas/privacy.js'
import { createPrivacyMetrics } from './metrics.js'
import { routes } from './routes.js'

/** Whose data they are; filled from whoever keeps the users. */
export interface Subjects {
  exists(tenant: Tenant, subject: string): Promise<boolean>
  /** Undefined when there is no such user. */
  rectify(
    tx: Transaction,
    subject: string,
    names: Rectification
  ): Promise<{ username: string; displayName: string } | undefined>
}

export interface PrivacyOptions extends ModuleOptions {
  /** What is kept about people, by whom. */
  holders: readonly PersonalData[]
  subjects: Subjects
}

const RETENTION_EVERY_SECONDS = 3_600

/** The rights of people on what is kept about them: access, portability, rectification, erasure; owns no table. */
async function privacy(app: FastifyInstance, options: PrivacyOptions): Promise<void> {
  const { holders, subjects } = options
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const periodic = app.getDecorator<Periodic>('periodic')
  periodic.every(RETENTION_EVERY_SECONDS, 'retention', (tenant) => removeOld(tenant, holders))
  await app.register(routes, {
    answers: app.getDecorator<Answers>('answers'),
    metrics: createPrivacyMetrics(app.getDecorator<Registry>('registry')),
    holders,
    subjects
  })
}

/** Removes what is older than the rules of its holders say. */
export async function removeOld(tenant: Tenant, holders: readonly PersonalData[]): Promise<void> {
  for (const { retention = [] } of holders) for (const rule of retention) await rule.remove?.(tenant)
}

export { registerOf } from './register.js'

export default fp(privacy, {
  name: 'inventory-enterprise/privacy',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'answers', 'registry', 'periodic'],
    request: ['tenant', 'principal']
  }
})
