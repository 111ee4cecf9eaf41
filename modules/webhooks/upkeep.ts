import type { Seal, Tenant } from '../../plugins/contracts.js'
import type { WebhookMetrics } from './metrics.js'
import { renewSecrets } from './secrets.js'
import { createDeliveryStore, createWebhookStore, NAMESPACE } from './store.js'

const KEPT_MILLISECONDS = 30 * 86_400_000

/** Gives up what is too old, forgets what ended long ago, and renews what is sealed. Harmless when two nodes do it at once. */
export async function tidy(tenant: Tenant, seal: Seal, metrics: WebhookMetrics, now: number): Promise<void> {
  const expired = await tenant.transact(async (tx) => {
    const store = createDeliveryStore(tx.db, tenant.dialect)
    const forgotten = await store.forget(now - KEPT_MILLISECONDS)
    const count = await store.expire(now)
    if (count + forgotten > 0) tx.invalidate(NAMESPACE)
    return count
  })
  metrics.died(expired)
  await renewSecrets(tenant, seal, now)
  await countWaiting(tenant, metrics)
}

export const countWaiting = async (tenant: Tenant, metrics: WebhookMetrics) =>
  metrics.observe(tenant.id, {
    ...(await createWebhookStore(tenant.db).counts()),
    waiting: await createDeliveryStore(tenant.db, tenant.dialect).waiting()
  })
