import type { Kysely } from 'kysely'
import type { Agent, AuditEntry, Tenant, Tokens, Transaction } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { User, UserCreate } from '../../schemas/identity.js'
import type { OneTimeLink } from '../../schemas/identity-accounts.js'
import { UserNotFound, UsernameTaken } from './errors.js'
import { passwordLink, setupLink } from './links.js'
import { checkPassword } from './password-rules.js'
import { createPasswordHasher, NO_PASSWORD } from './passwords.js'
import { isPasswordAlone, isRequired, removeFactors, type SecondFactorPolicy } from './second-factor.js'
import { type Account, addUser, changeUser, createIdentityStore, type UserChanges } from './store.js'

/** What the operator may do at the console, where no token is asked for. A running server notices at its next request. */

/** The subject of tokens that belong to no user. */
const CONSOLE_SUBJECT = 'cli'
const hasher = createPasswordHasher()
const CONSOLE: Agent = {
  actor: CONSOLE_SUBJECT,
  role: 'admin',
  method: 'console',
  session: null,
  requestId: null,
  traceId: null,
  address: null
}

/** What the operator did that is no part of the tenant's own data. */
export const recordAtConsole = (tenant: Tenant, entry: AuditEntry): Promise<void> =>
  tenant.transact(async (tx) => tx.audit(entry), { agent: CONSOLE })

/** One bearer token, without a user or a database: it works before either exists. */
export function issueToken(
  tokens: Pick<Tokens, 'sign'>,
  { role, tenant, ttlSeconds }: { role: Role; tenant: string; ttlSeconds: number }
): string {
  return tokens.sign({ subject: CONSOLE_SUBJECT, role, tenant, methods: ['console'] }, ttlSeconds)
}

/** @throws ID_PASSWORD_REFUSED, ID_USERNAME_TAKEN */
export async function createUser(
  tenant: Tenant,
  input: UserCreate,
  policy: SecondFactorPolicy = 'required'
): Promise<User> {
  const { username, displayName = username, role, password, mustChangePassword = false } = input
  const isSoleFactor = !isRequired(policy, role)
  if (password !== undefined) checkPassword(password, { username, tenant: tenant.id, isSoleFactor })
  const passwordHash = password === undefined ? NO_PASSWORD : await hasher.hash(password)
  return tenant.transact(
    async (tx) => {
      const user = await addUser(tx, { username, displayName, role, passwordHash, mustChangePassword })
      if (user === undefined) throw new UsernameTaken({ username })
      return user
    },
    { agent: CONSOLE }
  )
}

/** In order of creation. */
export async function listUsers(tenant: Tenant): Promise<User[]> {
  const store = createIdentityStore(tenant.db)
  return store.page(await store.count())
}

/** Ends all of the user's tokens. @throws ID_PASSWORD_REFUSED, ID_USER_NOT_FOUND */
export async function setPassword(
  tenant: Tenant,
  username: string,
  password: string,
  policy: SecondFactorPolicy = 'required'
): Promise<User> {
  const { user } = await accountOf(tenant.db, username)
  const isSoleFactor = await isPasswordAlone(tenant, user, policy)
  checkPassword(password, { username, tenant: tenant.id, isSoleFactor })
  return change(tenant, username, { passwordHash: await hasher.hash(password), mustChangePassword: false })
}

/** For one who has lost them all; ends all of the user's tokens. @throws ID_USER_NOT_FOUND */
export function removeSecondFactor(tenant: Tenant, username: string): Promise<User> {
  return change(tenant, username, { endTokens: true }, removeFactors)
}

/** A link by which the user sets a password, once. @throws ID_USER_NOT_FOUND */
export function linkFor(tenant: Tenant, publicUrl: string, username: string): Promise<OneTimeLink> {
  return tenant.transact(
    async (tx) => passwordLink(tx, tenant, publicUrl, (await accountOf(tx.db, username)).user.id),
    { agent: CONSOLE }
  )
}

/** A link that makes the first user; undefined once there was one. */
export function setupLinkFor(tenant: Tenant, publicUrl: string): Promise<OneTimeLink | undefined> {
  return tenant.transact(
    async (tx) => {
      if (!(await createIdentityStore(tx.db).isEmpty())) return undefined
      tx.audit({ action: 'user.setup-link' })
      return setupLink(tx, tenant, publicUrl)
    },
    { agent: CONSOLE }
  )
}

/** Ends all of the user's tokens. @throws ID_USER_NOT_FOUND */
export const disableUser = (tenant: Tenant, username: string): Promise<User> =>
  change(tenant, username, { disabled: true })

async function accountOf(db: Kysely<unknown>, username: string): Promise<Account> {
  const account = await createIdentityStore(db).byUsername(username)
  if (account === undefined) throw new UserNotFound({ id: username })
  return account
}

function change(
  tenant: Tenant,
  username: string,
  changes: UserChanges,
  alongside?: (tx: Transaction, userId: string) => Promise<void>
): Promise<User> {
  return tenant.transact(
    async (tx) => {
      const { user } = await accountOf(tx.db, username)
      const changed = await changeUser(tx, tenant, user.id, changes)
      if (changed === undefined) throw new UserNotFound({ id: username })
      await alongside?.(tx, user.id)
      return changed.user
    },
    { agent: CONSOLE }
  )
}
