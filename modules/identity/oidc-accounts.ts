import { createHash } from 'node:crypto'
import { type Agent, shape, type Tenant, type Transaction } from '../../plugins/contracts.js'
import { Name } from '../../schemas/common.js'
import { Username } from '../../schemas/identity.js'
import { OidcRefused } from './errors.js'
import type { Arrival } from './oidc.js'
import { NO_PASSWORD } from './passwords.js'
import { type Account, addUser, changeUser, createIdentityStore } from './store.js'

export type OidcTables = {
  oidc_identities: { issuer: string; subject: string; user_id: string; created_at: number }
}

/**
 * The account of whoever the provider sent: known by issuer and subject and by nothing else, since a name or an address may be
 * given to somebody else; made at the first sign-in, with the role of the groups at every one.
 * @throws OidcRefused without a role, or when the account was disabled here
 */
export async function accountOf(tenant: Tenant, arrival: Arrival, agent: Agent): Promise<Account> {
  const find = async (tx: Transaction): Promise<Account | 'role' | 'disabled'> => {
    const { role } = arrival
    const known = await linked(tx, arrival)
    if (known === undefined) return role === undefined ? 'role' : create(tx, arrival, role)
    const { id, disabled, deleted } = known.user
    if (disabled || deleted) return 'disabled'
    if (role === undefined) {
      await changeUser(tx, tenant, id, { endTokens: true })
      return 'role'
    }
    return role === known.user.role ? known : ((await changeUser(tx, tenant, id, { role })) ?? 'disabled')
  }
  // Refused only after the commit: it may end sessions.
  const found = await tenant.transact(find, { agent })
  if (typeof found === 'string') throw new OidcRefused({ reason: found })
  return found
}

async function linked(tx: Transaction, { issuer, subject }: Arrival): Promise<Account | undefined> {
  const link = await tx.db
    .withTables<OidcTables>()
    .selectFrom('oidc_identities')
    .select('user_id')
    .where('issuer', '=', issuer)
    .where('subject', '=', subject)
    .executeTakeFirst()
  return link === undefined ? undefined : createIdentityStore(tx.db).byId(link.user_id)
}

async function create(
  tx: Transaction,
  { issuer, subject, username, displayName }: Arrival,
  role: NonNullable<Arrival['role']>
): Promise<Account> {
  const hash = createHash('sha256')
    .update(JSON.stringify([issuer, subject]))
    .digest('hex')
  const given = shape(Username)(username) ? username : undefined
  const own = `sso-${hash.slice(0, 24)}`
  // A name that is taken is somebody else's, who must not be taken over by it.
  const names = given === undefined ? [own] : [given, `${given.slice(0, 50)}-${hash.slice(0, 8)}`, own]
  for (const name of names) {
    const shown = shape(Name)(displayName) ? displayName : name
    const user = await addUser(tx, { username: name, displayName: shown, role, passwordHash: NO_PASSWORD })
    if (user === undefined) continue
    await tx.db
      .withTables<OidcTables>()
      .insertInto('oidc_identities')
      .values({ issuer, subject, user_id: user.id, created_at: Date.now() })
      .execute()
    return { user, passwordHash: NO_PASSWORD, epoch: 0 }
  }
  throw new Error('no user name is free for an account of the provider')
}
