import { createHash, randomBytes } from 'node:crypto'
import type { Tenant, Transaction } from '../../plugins/contracts.js'
import type { OneTimeLink } from '../../schemas/identity-accounts.js'
import { createLinkStore } from './link-store.js'

const PREFIX = 'il_'
const FORM = /^il_([a-z][a-z0-9-]{0,39})_[A-Za-z0-9_-]{43}$/
const PASSWORD_HOURS = 24
const SETUP_HOURS = 24

export const hashOfLink = (token: string) => createHash('sha256').update(token).digest('base64url')
/** The tenant that a link's token names; undefined when it is none. */
export const tenantOfLink = (token: string): string | undefined => FORM.exec(token)?.[1]

/** The token is in the fragment, which no browser sends to a server or tells another page. */
async function makeLink(
  tx: Transaction,
  tenant: Tenant,
  page: string,
  userId: string | null,
  hours: number
): Promise<OneTimeLink> {
  const token = `${PREFIX}${tenant.id}_${randomBytes(32).toString('base64url')}`
  const expiresAt = Date.now() + hours * 3_600_000
  await createLinkStore(tx.db).insert(hashOfLink(token), userId, expiresAt)
  return { url: `${page}#token=${token}`, expiresAt: new Date(expiresAt).toISOString() }
}

/** By it a user sets a password, whether the first or another; earlier links of the user count no more. */
export async function passwordLink(
  tx: Transaction,
  tenant: Tenant,
  publicUrl: string,
  userId: string
): Promise<OneTimeLink> {
  await createLinkStore(tx.db).removeOfUser(userId)
  tx.audit({ action: 'user.link', object: { type: 'user', id: userId } })
  return makeLink(tx, tenant, `${publicUrl}/accept`, userId, PASSWORD_HOURS)
}

/** By it the first user is made, who is an administrator. */
export const setupLink = (tx: Transaction, tenant: Tenant, publicUrl: string): Promise<OneTimeLink> =>
  makeLink(tx, tenant, `${publicUrl}/setup`, null, SETUP_HOURS)
