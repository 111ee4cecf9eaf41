import type { FastifyBaseLogger } from 'fastify'
import type { Seal, Tenant, Tracing, Transaction } from '../../plugins/contracts.js'
import { type DisabledReason, WebhookDisabled } from '../../schemas/webhooks.js'
import type { WebhookMetrics } from './metrics.js'
import { FAILURES_BEFORE_PROBING, isBroken, isSpent, retryAfter, retryDelay } from './retry.js'
import { secretsOf } from './secrets.js'
import type { Attempt, Sender } from './sender.js'
import { signedHeaders } from './signature.js'
import { createDeliveryStore, createWebhookStore, NAMESPACE, type StoredDelivery, type StoredWebhook } from './store.js'

/** Longer than any attempt takes: a claim that runs out belonged to a process that died. */
const CLAIM_MILLISECONDS = 60_000
/** Messages to one webhook at once, and webhooks at once; who has had a turn goes to the end of the queue. */
const MESSAGES_PER_TURN = 4
const LANES_MAX = 16
const DRAIN_MILLISECONDS = 5_000
const GONE = 410

interface Dependencies {
  sender: Sender
  seal: Seal
  metrics: WebhookMetrics
  log: FastifyBaseLogger
  now: () => number
  tracing: Tracing
  drainMilliseconds?: number
}

export interface Dispatcher {
  /** Sends what is due, in the background; resolves when it is known what that is. Never rejects. */
  wake(tenant: Tenant): Promise<void>
  /** Takes nothing more, waits for what is being sent, and lets go of what takes too long. */
  close(): Promise<void>
}

interface Lane {
  readonly tenant: Tenant
  readonly webhookId: string
}

/**
 * Sends deliveries, each claimed in the database first, so that no two processes send the same attempt. No transaction is
 * open while something is sent: a process that dies between sending and noting it leaves a claim, and when that runs out
 * the message is sent again under the same id.
 */
export function createDispatcher(dependencies: Dependencies): Dispatcher {
  const { sender, seal, metrics, log, now, tracing, drainMilliseconds = DRAIN_MILLISECONDS } = dependencies
  const queue = new Map<string, Lane>()
  const running = new Map<string, Promise<void>>()
  const looking = new Set<Promise<void>>()
  const stop = new AbortController()
  let closed = false

  async function look(tenant: Tenant): Promise<void> {
    for (const webhookId of await createDeliveryStore(tenant.db, tenant.dialect).due(now())) {
      queue.set(`${tenant.id} ${webhookId}`, { tenant, webhookId })
    }
    pump()
  }

  function pump(): void {
    for (const [key, lane] of queue) {
      if (closed || running.size >= LANES_MAX) return
      // It stays in the queue: what came meanwhile is looked for when its turn ends.
      if (running.has(key)) continue
      queue.delete(key)
      const turn = take(lane)
        .then((more) => void (more && queue.set(key, lane)))
        .catch((error) => log.error({ err: error, ...idsOf(lane) }, 'webhook deliveries could not be handled'))
        .finally(() => {
          running.delete(key)
          pump()
        })
      running.set(key, turn)
    }
  }

  async function take({ tenant, webhookId }: Lane): Promise<boolean> {
    const claimed = await tenant.transact(async ({ db }) => {
      const webhook = await createWebhookStore(db).find(webhookId)
      if (webhook === undefined || webhook.disabled_reason !== null) return undefined
      const limit = webhook.failures < FAILURES_BEFORE_PROBING ? MESSAGES_PER_TURN : 1
      const store = createDeliveryStore(db, tenant.dialect)
      return { webhook, deliveries: await store.claim(webhookId, limit, now(), now() + CLAIM_MILLISECONDS) }
    })
    if (claimed === undefined) return false
    const { webhook, deliveries } = claimed
    await Promise.all(deliveries.map((delivery) => deliver(tenant, webhook, delivery)))
    return deliveries.length > 0
  }

  async function deliver(tenant: Tenant, webhook: StoredWebhook, delivery: StoredDelivery): Promise<void> {
    const at = now()
    const { message_id: id, body } = delivery
    const headers = {
      'content-type': 'application/json',
      'user-agent': 'inventory-enterprise-webhooks/1',
      ...signedHeaders(secretsOf(seal, webhook, at), id, Math.floor(at / 1000), body)
    }
    let attempt: Attempt
    try {
      const attributes = { 'inventory.webhook': webhook.id, 'inventory.tenant': tenant.id }
      const span = { kind: 'producer', parent: delivery.trace, attributes } as const
      attempt = await tracing.span(`webhook ${delivery.topic}`, span, () => {
        const trace = tracing.carrier()
        const all = trace === null ? headers : { ...headers, traceparent: trace }
        return sender.send(webhook.url, all, body, stop.signal)
      })
    } catch {
      // Given up at the end of this process; whether it arrived is not known, so another will send it again.
      const released = { status: 'pending', dueAt: now(), finishedAt: null, attempts: delivery.attempts - 1 } as const
      await tenant.transact(({ db }) => createDeliveryStore(db, tenant.dialect).settle(delivery, released))
      return
    }
    metrics.attempted(attempt.outcome, attempt.durationMilliseconds / 1000)
    await tenant.transact((tx) => conclude(tx, tenant, delivery, attempt, at))
  }

  async function conclude(
    tx: Transaction,
    tenant: Tenant,
    delivery: StoredDelivery,
    attempt: Attempt,
    at: number
  ): Promise<void> {
    const { id, attempts, expires_at: expiresAt } = delivery
    const store = createDeliveryStore(tx.db, tenant.dialect)
    const ended = now()
    const success = attempt.outcome === 'success'
    const dueAt = ended + retryDelay(attempts, Math.random(), retryAfter(attempt.retryAfter, ended))
    const spent = !success && isSpent(attempts, dueAt, expiresAt)
    const settled = await store.settle(
      delivery,
      success || spent
        ? { status: success ? 'delivered' : 'dead', dueAt: null, finishedAt: ended }
        : { status: 'pending', dueAt, finishedAt: null }
    )
    if (!settled) return
    const { outcome, httpStatus, detail, durationMilliseconds } = attempt
    await store.log({
      delivery_id: id,
      at,
      outcome,
      http_status: httpStatus,
      detail,
      duration_ms: durationMilliseconds
    })
    tx.invalidate(NAMESPACE)
    if (spent) tx.afterCommit(() => metrics.died(1))
    if (success) await createWebhookStore(tx.db).succeeded(delivery.webhook_id)
    else await judge(tx, delivery.webhook_id, httpStatus, ended)
  }

  /** Counts a failure, and takes the webhook out of service when it is one too many, or its receiver says that it is gone. */
  async function judge(tx: Transaction, webhookId: string, httpStatus: number | null, at: number): Promise<void> {
    const store = createWebhookStore(tx.db)
    const webhook = await store.failed(webhookId, at)
    if (webhook === undefined || webhook.disabled_reason !== null) return
    const { failures, failing_since: since } = webhook
    const broken = isBroken(failures, since ?? at, at)
    if (httpStatus !== GONE && !broken) return
    const reason: DisabledReason = httpStatus === GONE ? 'gone' : 'failing'
    await store.update(webhookId, { disabled_reason: reason, updated_at: at })
    tx.audit({ action: 'webhook.disable', object: { type: 'webhook', id: webhookId }, details: { reason, failures } })
    await tx.publish(WebhookDisabled.topic, { webhookId, reason, failures })
    tx.afterCommit(() => {
      metrics.disabled(reason)
      log.warn({ webhook: webhookId, reason, failures }, 'webhook disabled')
    })
  }

  return {
    wake: async (tenant) => {
      if (closed) return
      // Not part of what wakes it: it sends what others queued, too.
      const search = tracing
        .detached(() => look(tenant))
        .catch((error) => log.error({ err: error, tenant: tenant.id }, 'webhook deliveries could not be read'))
        .finally(() => looking.delete(search))
      looking.add(search)
      await search
    },
    close: async () => {
      closed = true
      const timer = setTimeout(() => stop.abort(new Error('closing')), drainMilliseconds)
      await Promise.all([...looking, ...running.values()])
      clearTimeout(timer)
    }
  }
}

const idsOf = ({ tenant, webhookId }: Lane) => ({ tenant: tenant.id, webhook: webhookId })
