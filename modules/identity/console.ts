import type { Agent, Tenant, Tokens } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { User, UserCreate } from '../../schemas/identity.js'
import { UserNotFound, UsernameTaken } from './errors.js'
import { checkPassword, createPasswordHasher } from './passwords.js'
import { createIdentityStore, type UserChanges, userChange } from './store.js'

/** What the operator may do at the console, where no token is asked for. A running server notices within a second. */

/** The subject of tokens that belong to no user. */
export const CONSOLE_SUBJECT = 'cli'
const NAMESPACE = 'identity'
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

/** That a token was printed; what it is stays with whoever printed it. */
export const recordToken = (tenant: Tenant, role: Role, ttlSeconds: number): Promise<void> =>
  tenant.transact(async (tx) => tx.audit({ action: 'token.print', details: { role, ttlSeconds } }), CONSOLE)

/** One bearer token, without a user or a database: it works before either exists. */
export function issueToken(
  tokens: Pick<Tokens, 'sign'>,
  { role, tenant, ttlSeconds }: { role: Role; tenant: string; ttlSeconds: number }
): string {
  return tokens.sign({ subject: CONSOLE_SUBJECT, role, tenant }, ttlSeconds)
}

/** @throws ID_PASSWORD_REFUSED, ID_USERNAME_TAKEN */
export async function createUser(tenant: Tenant, input: UserCreate): Promise<User> {
  const { username, displayName = username, role, password } = input
  checkPassword(password, { username })
  const passwordHash = await hasher.hash(password)
  return tenant.transact(async (tx) => {
    const user = await createIdentityStore(tx.db).insertUser({ username, displayName, role, passwordHash })
    if (user === undefined) throw new UsernameTaken({ username })
    tx.audit(userChange('create', undefined, user))
    tx.invalidate(NAMESPACE)
    return user
  }, CONSOLE)
}

/** In order of creation. */
export async function listUsers(tenant: Tenant): Promise<User[]> {
  const store = createIdentityStore(tenant.db)
  return store.page(await store.count())
}

/** Ends all of the user's tokens. @throws ID_PASSWORD_REFUSED, ID_USER_NOT_FOUND */
export async function setPassword(tenant: Tenant, username: string, password: string): Promise<User> {
  checkPassword(password, { username })
  return change(tenant, username, { passwordHash: await hasher.hash(password) })
}

/** Ends all of the user's tokens. @throws ID_USER_NOT_FOUND */
export const disableUser = (tenant: Tenant, username: string): Promise<User> =>
  change(tenant, username, { disabled: true })

function change(tenant: Tenant, username: string, changes: UserChanges): Promise<User> {
  return tenant.transact(async (tx) => {
    const store = createIdentityStore(tx.db)
    const account = await store.byUsername(username)
    const changed = account === undefined ? undefined : await store.updateUser(account.user.id, changes)
    if (account === undefined || changed === undefined) throw new UserNotFound({ id: username })
    tx.audit(userChange('update', account.user, changed.user))
    if (changes.passwordHash !== undefined)
      tx.audit({ action: 'user.password', object: { type: 'user', id: changed.user.id } })
    tx.invalidate(NAMESPACE)
    return changed.user
  }, CONSOLE)
}
