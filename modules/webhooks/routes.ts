import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest, onSendAsyncHookHandler } from 'fastify'
import { v7 as uuid } from 'uuid'
import {
  type Answers,
  type AuditEntry,
  access,
  decodeCursor,
  encodeCursor,
  pageOf,
  type Seal,
  shape,
  type Tenant,
  type Transaction
} from '../../plugins/contracts.js'
import { problems } from '../../schemas/common.js'
import {
  Delivery,
  DeliveryDetail,
  DeliveryList,
  DeliveryParams,
  DeliveryQuery,
  NewWebhook,
  Replayed,
  RotateSecret,
  Webhook,
  WebhookList,
  WebhookParams,
  WebhookPatch,
  WebhookPing,
  WebhookQuery,
  WebhookWithSecret
} from '../../schemas/webhooks.js'
import type { Dispatcher } from './dispatcher.js'
import {
  DeliveryNotFound,
  DeliveryPending,
  WebhookInactive,
  WebhookLimitReached,
  WebhookNotFound,
  WebhookTargetRefused
} from './errors.js'
import { openSecret, sealSecret } from './secrets.js'
import { newSecret } from './signature.js'
import {
  createDeliveryStore,
  createWebhookStore,
  NAMESPACE,
  type StoredWebhook,
  toDelivery,
  toWebhook
} from './store.js'
import type { TargetPolicy } from './targets.js'

export interface RouteContext {
  readonly answers: Answers
  readonly seal: Seal
  readonly policy: TargetPolicy
  readonly dispatcher: Dispatcher
  readonly now: () => number
}

const WEBHOOKS_MAX = 100
const OVERLAP_SECONDS = 86_400
const tags = ['webhooks']
const config = access('admin')
const tenantOf = (request: FastifyRequest) => request.getDecorator<Tenant>('tenant')

/** For the audit trail: of the URL its host alone, since some receivers put a secret into the rest. */
const shown = (webhook: StoredWebhook) => ({ ...toWebhook(webhook), url: new URL(webhook.url).host })
const changed = (action: string, before: StoredWebhook | null, after: StoredWebhook | null): AuditEntry => ({
  action: `webhook.${action}`,
  object: { type: 'webhook', id: after?.id ?? before?.id ?? '' },
  before: before === null ? null : shown(before),
  after: after === null ? null : shown(after)
})

async function existing(tx: Pick<Transaction, 'db'>, id: string): Promise<StoredWebhook> {
  const webhook = await createWebhookStore(tx.db).find(id)
  if (webhook === undefined) throw new WebhookNotFound({ id })
  return webhook
}

function requireActive({ id, disabled_reason: reason }: StoredWebhook): void {
  if (reason !== null) throw new WebhookInactive({ id })
}

/** No body asks for the defaults, as an empty one does. */
const bodyOptional = async (request: FastifyRequest) => {
  request.body ??= {}
}

/**
 * The answer is kept for a repetition under the same Idempotency-Key, and no secret is kept in the clear. So the route
 * answers it sealed, and it is opened on the way out, here and nowhere else.
 */
const unseal =
  (seal: Seal): onSendAsyncHookHandler =>
  async (_request, reply, payload) => {
    if (reply.statusCode >= 300 || typeof payload !== 'string') return payload
    const answer: unknown = JSON.parse(payload)
    if (!shape(WebhookWithSecret)(answer)) throw new Error('an answer that should hold a sealed secret does not')
    return JSON.stringify({ ...answer, secret: openSecret(seal, answer.id, answer.secret) })
  }

/** Where messages go, and what about. */
export const webhookRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, seal, policy, dispatcher, now } = context

  function checkTarget(url: string): string {
    const reason = policy.refusalOf(url)
    if (reason !== undefined) throw new WebhookTargetRefused({ reason })
    return new URL(url).href
  }

  app.get(
    '/webhooks',
    {
      config,
      schema: {
        tags,
        summary: 'Webhooks, oldest first',
        querystring: WebhookQuery,
        response: { 200: WebhookList, ...problems }
      }
    },
    async (request, reply) => {
      const { limit = 50, cursor } = request.query
      const [after] = decodeCursor('webhooks', cursor, ['string']) ?? []
      return answers.read(request, reply, NAMESPACE, `list ${limit} ${after ?? ''}`, async () => {
        const store = createWebhookStore(tenantOf(request).db)
        const rows = await store.page(limit + 1, after === undefined ? undefined : String(after))
        return pageOf(rows, limit, ({ id }) => encodeCursor('webhooks', [id]), toWebhook)
      })
    }
  )

  app.post(
    '/webhooks',
    {
      config,
      onSend: unseal(seal),
      schema: {
        tags,
        summary: 'Create a webhook; the answer alone shows its secret',
        body: NewWebhook,
        response: { 201: WebhookWithSecret, ...problems }
      }
    },
    async (request, reply) => {
      const { topics, description = null, active = true } = request.body
      const url = checkTarget(request.body.url)
      const secret = newSecret()
      return answers.write(request, reply, 201, async (tx) => {
        const store = createWebhookStore(tx.db)
        if ((await store.count()) >= WEBHOOKS_MAX) throw new WebhookLimitReached({ maximum: WEBHOOKS_MAX })
        const id = uuid()
        const at = now()
        const sealed = sealSecret(seal, id, secret)
        const webhook = await store.insert({
          id,
          url,
          topics: JSON.stringify(topics),
          description,
          secret: sealed,
          previous_secret: null,
          previous_until: null,
          disabled_reason: active ? null : 'manual',
          failures: 0,
          failing_since: null,
          created_at: at,
          updated_at: at
        })
        tx.audit(changed('create', null, webhook))
        tx.invalidate(NAMESPACE)
        reply.header('location', `${app.prefix}/webhooks/${id}`)
        return { ...toWebhook(webhook), secret: sealed }
      })
    }
  )

  app.get(
    '/webhooks/:id',
    {
      config,
      schema: { tags, summary: 'Read a webhook', params: WebhookParams, response: { 200: Webhook, ...problems } }
    },
    async (request, reply) => {
      const { id } = request.params
      return answers.read(request, reply, NAMESPACE, `one ${id}`, async () =>
        toWebhook(await existing(tenantOf(request), id))
      )
    }
  )

  app.patch(
    '/webhooks/:id',
    {
      config,
      schema: {
        tags,
        summary: 'Change a webhook, or put it in or out of service',
        params: WebhookParams,
        body: WebhookPatch,
        response: { 200: Webhook, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { topics, description, active } = request.body
      const url = request.body.url === undefined ? undefined : checkTarget(request.body.url)
      const tenant = tenantOf(request)
      return answers.write(request, reply, 200, async (tx) => {
        const before = await existing(tx, id)
        answers.requireMatch(request, reply, toWebhook(before))
        const after = await createWebhookStore(tx.db).update(id, {
          updated_at: now(),
          ...(url === undefined ? {} : { url }),
          ...(topics === undefined ? {} : { topics: JSON.stringify(topics) }),
          ...(description === undefined ? {} : { description }),
          ...(active === true ? { disabled_reason: null, failures: 0, failing_since: null } : {}),
          ...(active === false ? { disabled_reason: before.disabled_reason ?? 'manual' } : {})
        })
        if (after === undefined) throw new WebhookNotFound({ id })
        tx.audit(changed('update', before, after))
        tx.invalidate(NAMESPACE)
        tx.afterCommit(() => void dispatcher.wake(tenant))
        return toWebhook(after)
      })
    }
  )

  app.delete(
    '/webhooks/:id',
    {
      config,
      schema: {
        tags,
        summary: 'Delete a webhook with its deliveries; answers it as it was',
        params: WebhookParams,
        response: { 200: Webhook, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      return answers.write(request, reply, 200, async (tx) => {
        const stored = await existing(tx, id)
        const webhook = toWebhook(stored)
        answers.requireMatch(request, reply, webhook)
        await createWebhookStore(tx.db).remove(id)
        tx.audit(changed('delete', stored, null))
        tx.invalidate(NAMESPACE)
        return webhook
      })
    }
  )

  app.post(
    '/webhooks/:id/rotate-secret',
    {
      config,
      preValidation: bodyOptional,
      onSend: unseal(seal),
      schema: {
        tags,
        summary: 'Replace the secret; the previous one signs as well for a while',
        params: WebhookParams,
        body: RotateSecret,
        response: { 200: WebhookWithSecret, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { overlapSeconds = OVERLAP_SECONDS } = request.body
      const secret = newSecret()
      return answers.write(request, reply, 200, async (tx) => {
        const before = await existing(tx, id)
        const at = now()
        const sealed = sealSecret(seal, id, secret)
        const after = await createWebhookStore(tx.db).update(id, {
          secret: sealed,
          previous_secret: overlapSeconds === 0 ? null : before.secret,
          previous_until: overlapSeconds === 0 ? null : at + overlapSeconds * 1000,
          updated_at: at
        })
        if (after === undefined) throw new WebhookNotFound({ id })
        tx.audit(changed('rotate-secret', before, after))
        tx.invalidate(NAMESPACE)
        return { ...toWebhook(after), secret: sealed }
      })
    }
  )
}

/** What was sent, what was given up, and sending it again. */
export const deliveryRoutes: FastifyPluginAsyncTypebox<RouteContext> = async (app, context) => {
  const { answers, dispatcher, now } = context

  app.post(
    '/webhooks/:id/test',
    {
      config,
      schema: {
        tags,
        summary: `Send a message of the type ${WebhookPing.topic}`,
        params: WebhookParams,
        response: { 201: Delivery, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const tenant = tenantOf(request)
      return answers.write(request, reply, 201, async (tx) => {
        requireActive(await existing(tx, id))
        const { topic } = WebhookPing
        const at = now()
        const body = JSON.stringify({
          type: topic,
          timestamp: new Date(at).toISOString(),
          data: { webhookId: id }
        })
        const message = { id: `msg_${uuid()}`, topic, body }
        const [delivery] = await createDeliveryStore(tx.db, tenant.dialect).enqueue([id], message, at)
        if (delivery === undefined) throw new Error('a ping was not stored')
        tx.invalidate(NAMESPACE)
        tx.afterCommit(() => void dispatcher.wake(tenant))
        reply.header('location', `${app.prefix}/webhooks/${id}/deliveries/${delivery.id}`)
        return toDelivery(delivery)
      })
    }
  )

  app.get(
    '/webhooks/:id/deliveries',
    {
      config,
      schema: {
        tags,
        summary: 'Deliveries, newest first; `status=dead` lists those given up',
        params: WebhookParams,
        querystring: DeliveryQuery,
        response: { 200: DeliveryList, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { limit = 50, cursor, status } = request.query
      const purpose = `deliveries ${id} ${status ?? ''}`
      const [last] = decodeCursor(purpose, cursor, ['string']) ?? []
      const before = last === undefined ? undefined : String(last)
      return answers.read(request, reply, NAMESPACE, `${purpose} ${limit} ${before ?? ''}`, async () => {
        const tenant = tenantOf(request)
        await existing(tenant, id)
        const rows = await createDeliveryStore(tenant.db, tenant.dialect).list(id, { status, before, limit: limit + 1 })
        return pageOf(rows, limit, (row) => encodeCursor(purpose, [row.id]), toDelivery)
      })
    }
  )

  app.get(
    '/webhooks/:id/deliveries/:deliveryId',
    {
      config,
      schema: {
        tags,
        summary: 'One delivery with its body and the log of its attempts',
        params: DeliveryParams,
        response: { 200: DeliveryDetail, ...problems }
      }
    },
    async (request, reply) => {
      const { id, deliveryId } = request.params
      return answers.read(request, reply, NAMESPACE, `delivery ${id} ${deliveryId}`, async () => {
        const tenant = tenantOf(request)
        await existing(tenant, id)
        const store = createDeliveryStore(tenant.db, tenant.dialect)
        const row = await store.find(id, deliveryId)
        if (row === undefined) throw new DeliveryNotFound({ id: deliveryId })
        return { ...toDelivery(row), body: row.body, log: await store.logOf(deliveryId) }
      })
    }
  )

  app.post(
    '/webhooks/:id/deliveries/:deliveryId/replay',
    {
      config,
      schema: {
        tags,
        summary: 'Send an ended delivery again, under the same `webhook-id`',
        params: DeliveryParams,
        response: { 200: Delivery, ...problems }
      }
    },
    async (request, reply) => {
      const { id, deliveryId } = request.params
      const tenant = tenantOf(request)
      return answers.write(request, reply, 200, async (tx) => {
        requireActive(await existing(tx, id))
        const store = createDeliveryStore(tx.db, tenant.dialect)
        const replayed = await store.replay(id, deliveryId, now())
        if (replayed === undefined) {
          if ((await store.find(id, deliveryId)) === undefined) throw new DeliveryNotFound({ id: deliveryId })
          throw new DeliveryPending({ id: deliveryId })
        }
        tx.invalidate(NAMESPACE)
        tx.afterCommit(() => void dispatcher.wake(tenant))
        return toDelivery(replayed)
      })
    }
  )

  app.post(
    '/webhooks/:id/replay',
    {
      config,
      schema: {
        tags,
        summary: 'Send everything again that was given up',
        params: WebhookParams,
        response: { 200: Replayed, ...problems }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const tenant = tenantOf(request)
      return answers.write(request, reply, 200, async (tx) => {
        requireActive(await existing(tx, id))
        const replayed = await createDeliveryStore(tx.db, tenant.dialect).replayDead(id, now())
        tx.invalidate(NAMESPACE)
        tx.afterCommit(() => void dispatcher.wake(tenant))
        return { replayed }
      })
    }
  )
}
