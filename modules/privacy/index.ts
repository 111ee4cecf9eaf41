import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import type { Answers, EnterModule, ModuleOptions, PersonalData, Tenant, Transaction } from '../../plugins/contracts.js'
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

/** The rights of people on what is kept about them: access, portability, rectification, erasure; owns no table. */
async function privacy(app: FastifyInstance, options: PrivacyOptions): Promise<void> {
  const { holders, subjects } = options
  app.getDecorator<EnterModule>('enterModule')(app, options)
  await app.register(routes, {
    answers: app.getDecorator<Answers>('answers'),
    metrics: createPrivacyMetrics(app.getDecorator<Registry>('registry')),
    holders,
    subjects
  })
}

export { registerOf } from './register.js'

export default fp(privacy, {
  name: 'inventory-enterprise/privacy',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'answers', 'registry'],
    request: ['tenant', 'principal']
  }
})
