import type { Tenant, Tokens } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { User, UserCreate } from '../../schemas/identity.js'
import { UserNotFound, UsernameTaken } from './errors.js'
import { checkPassword, createPasswordHasher } from './passwords.js'
import { changeUser, createIdentityStore, IDENTITY_CACHE, type UserChanges } from './store.js'

/** What the operator may do at the console, where no token is asked for. A running server notices at its next request. */

/** The subject of tokens that belong to no user. */
export const CONSOLE_SUBJECT = 'cli'
const hasher = createPasswordHasher()

/** One bearer token, without a user or a database: it works before either exists. */
export function issueToken(
  tokens: Pick<Tokens, 'sign'>,
  { role, tenant, ttlSeconds }: { role: Role; tenant: string; ttlSeconds: number }
): string {
  return tokens.sign({ subject: CONSOLE_SUBJECT, role, tenant, methods: ['console'] }, ttlSeconds)
}

/** @throws ID_PASSWORD_REFUSED, ID_USERNAME_TAKEN */
export async function createUser(tenant: Tenant, input: UserCreate): Promise<User> {
  const { username, displayName = username, role, password } = input
  checkPassword(password, { username })
  const passwordHash = await hasher.hash(password)
  return tenant.transact(async (tx) => {
    const user = await createIdentityStore(tx.db).insertUser({ username, displayName, role, passwordHash })
    if (user === undefined) throw new UsernameTaken({ username })
    tx.invalidate(IDENTITY_CACHE)
    return user
  })
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
    const account = await createIdentityStore(tx.db).byUsername(username)
    const changed = account === undefined ? undefined : await changeUser(tx, tenant, account.user.id, changes)
    if (changed === undefined) throw new UserNotFound({ id: username })
    return changed.user
  })
}
