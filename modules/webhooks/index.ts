import { createHash } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { webhooksMigrations } from '../../migrations/webhooks.js'
import {
  type Answers,
  type EnterModule,
  type Events,
  forEachOf,
  type Migrations,
  type ModuleOptions,
  NO_TRACING,
  type OutboxEvent,
  type Periodic,
  type Seal,
  type Tenant,
  type Tracing
} from '../../plugins/contracts.js'
import { PUBLIC_TOPICS } from '../../schemas/webhooks.js'
import { createDispatcher, type Dispatcher } from './dispatcher.js'
import { createWebhookMetrics } from './metrics.js'
import { deliveryRoutes, webhookRoutes } from './routes.js'
import { createSender, type Resolve } from './sender.js'
import { createDeliveryStore, createWebhookStore, type Message, NAMESPACE } from './store.js'
import { createTargetPolicy } from './targets.js'
import { countWaiting, tidy } from './upkeep.js'

export interface WebhooksOptions extends ModuleOptions {
  /** Names, addresses and ranges that may be private, and be spoken to over http. */
  allowedHosts?: readonly string[]
  /** The addresses of a name; DNS otherwise. What it answers is checked all the same. */
  resolve?: Resolve
  /** The clock, milliseconds since 1970. */
  now?: () => number
  /** How often what is due is looked for, beside what this process queues itself. */
  pollSeconds?: number
  /** The most that one attempt may take. */
  timeoutMilliseconds?: number
  /** How long a closing process waits for attempts that are under way. */
  drainMilliseconds?: number
  /** Whose messages are sent and counted from the start; without it, each tenant's once its turn of upkeep comes. */
  tenants?: () => Promise<readonly Tenant[]>
  /** So that a message is part of the trace of what it tells of. */
  tracing?: Tracing
}

const POLL_SECONDS = 5
const UPKEEP_SECONDS = 60

/** Tells other programs what happened: signed messages to the URLs that an administrator names. */
async function webhooks(app: FastifyInstance, options: WebhooksOptions): Promise<void> {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  app.getDecorator<Migrations>('migrations').add({ module: 'webhooks', migrations: webhooksMigrations })
  const { allowedHosts = [], now = Date.now, pollSeconds = POLL_SECONDS, tenants, tracing = NO_TRACING } = options
  const policy = createTargetPolicy(allowedHosts)
  const seal = app.getDecorator<Seal>('seal')
  const metrics = createWebhookMetrics(app.getDecorator<Registry>('registry'))
  const { resolve, timeoutMilliseconds, drainMilliseconds } = options
  const sender = createSender({
    policy,
    ...(resolve === undefined ? {} : { resolve }),
    ...(timeoutMilliseconds === undefined ? {} : { timeoutMilliseconds })
  })
  const dispatcher = createDispatcher({
    ...{ sender, seal, metrics, log: app.log, now, tracing },
    ...(drainMilliseconds === undefined ? {} : { drainMilliseconds })
  })
  const events = app.getDecorator<Events>('events')
  for (const topic of PUBLIC_TOPICS) {
    const handle = (event: OutboxEvent, tenant: Tenant) => fanOut(event, tenant, { dispatcher, tracing, now })
    const handleAll = async (all: readonly OutboxEvent[], { db }: Tenant) =>
      (await createWebhookStore(db).subscribers(topic)).length === 0 ? [] : all
    events.subscribe({ topic, name: 'webhooks', handle, handleAll })
  }
  const periodic = app.getDecorator<Periodic>('periodic')
  periodic.every(pollSeconds, 'webhooks', (tenant) => dispatcher.wake(tenant))
  periodic.every(UPKEEP_SECONDS, 'webhook upkeep', (tenant) => tidy(tenant, seal, metrics, now()))
  if (tenants !== undefined) {
    app.addHook('onReady', async () => {
      await forEachOf(await tenants(), async (tenant) => {
        await countWaiting(tenant, metrics)
        await dispatcher.wake(tenant)
      })
    })
  }
  app.addHook('onClose', () => dispatcher.close())

  const context = { answers: app.getDecorator<Answers>('answers'), seal, policy, dispatcher, now }
  await app.register(webhookRoutes, context)
  await app.register(deliveryRoutes, context)
}

interface FanOut {
  dispatcher: Dispatcher
  tracing: Tracing
  now: () => number
}

/** One delivery for each webhook that wants the event. Safe to repeat: the id says which event it is. */
async function fanOut(event: OutboxEvent, tenant: Tenant, { dispatcher, tracing, now }: FanOut): Promise<void> {
  const { topic } = event
  if ((await createWebhookStore(tenant.db).subscribers(topic)).length === 0) return
  const message = messageOf(event, tracing.carrier())
  await tenant.transact(async (tx) => {
    // Asked again: one that is gone by now must not fail the others.
    const ids = await createWebhookStore(tx.db).subscribers(topic)
    if (ids.length === 0) return
    await createDeliveryStore(tx.db, tenant.dialect).enqueue(ids, message, now())
    tx.invalidate(NAMESPACE)
    tx.afterCommit(() => void dispatcher.wake(tenant))
  })
}

function messageOf({ id, topic, payload, createdAt }: OutboxEvent, trace: string | null): Message {
  const body = JSON.stringify({ type: topic, timestamp: new Date(createdAt).toISOString(), data: payload })
  // The row's id alone may come again: see `OutboxEvent`.
  const digest = createHash('sha256').update(`${id} ${body}`).digest('base64url')
  return { id: `msg_${digest.slice(0, 32)}`, topic, body, trace }
}

export { webhooksMigrations as migrations } from '../../migrations/webhooks.js'
export type { Resolve } from './sender.js'
export default fp(webhooks, {
  name: 'inventory-enterprise/webhooks',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'answers', 'registry', 'migrations', 'events', 'periodic', 'seal'],
    request: ['tenant', 'principal']
  }
})
