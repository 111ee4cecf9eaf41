import type { Seal, Tenant } from '../../plugins/contracts.js'
import { createWebhookStore, NAMESPACE, type StoredSecrets } from './store.js'

const contextOf = (webhookId: string) => `webhook ${webhookId}`

export const sealSecret = (seal: Seal, webhookId: string, secret: string): string =>
  seal.seal(secret, contextOf(webhookId))
export const openSecret = (seal: Seal, webhookId: string, sealed: string): string =>
  seal.open(sealed, contextOf(webhookId)).toString()

/** Those that sign: the present one, and the one before it until its time is over. */
export function secretsOf(seal: Seal, webhook: { id: string } & StoredSecrets, now: number): string[] {
  const { id, secret, previous_secret: previous, previous_until: until } = webhook
  const sealed = previous !== null && until !== null && now < until ? [secret, previous] : [secret]
  return sealed.map((each) => openSecret(seal, id, each))
}

/** Forgets previous secrets whose time is over, and seals anew what was sealed under an older key. */
export async function renewSecrets(tenant: Tenant, seal: Seal, now: number): Promise<void> {
  for (const { id, secret, previous_secret, previous_until } of await createWebhookStore(tenant.db).secrets()) {
    const over = previous_secret !== null && previous_until !== null && previous_until <= now
    const renewed = (sealed: string) => sealSecret(seal, id, openSecret(seal, id, sealed))
    const previous = over ? null : previous_secret
    const outdated = [secret, previous].some((sealed) => sealed !== null && seal.isOutdated(sealed))
    if (!over && !outdated) continue
    await tenant.transact((tx) => {
      if (over) tx.invalidate(NAMESPACE)
      return createWebhookStore(tx.db).replaceSecrets(id, secret, {
        secret: renewed(secret),
        previous_secret: previous === null ? null : renewed(previous),
        previous_until: previous === null ? null : previous_until
      })
    })
  }
}
