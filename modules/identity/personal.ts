import { randomBytes } from 'node:crypto'
import type { PersonalData, Tenant, Transaction } from '../../plugins/contracts.js'
import { Login, Me, User, UserCreate, UserPatch } from '../../schemas/identity.js'
import { ACCOUNT } from '../../schemas/personal.js'
import { UsernameTaken } from './errors.js'
import { createIdentityStore, type IdentityTables, userChange, usernameKey } from './store.js'

const NAMESPACE = 'identity'
const tables = ({ db }: Pick<Tenant, 'db'>) => db.withTables<IdentityTables>()
const base64 = (bytes: number) => randomBytes(bytes).toString('base64').replace(/=+$/, '')
/** Well-formed, and the hash of nothing anybody knows. */
const unmatched = () => `$argon2id$v=19$m=19456,t=2,p=1$${base64(16)}$${base64(32)}`

/** The account itself; its id stays, since ledger and audit trail refer to it. */
async function erase(tx: Transaction, subject: string): Promise<number> {
  const store = createIdentityStore(tx.db)
  // Disabling ends every token of the user.
  const account = await store.updateUser(subject, { disabled: true, passwordHash: unmatched(), role: 'viewer' })
  if (account === undefined) return 0
  const name = `erased-${subject}`
  await tables(tx)
    .updateTable('users')
    .set({ username: name, username_key: name, display_name: 'erased' })
    .where('id', '=', subject)
    .execute()
  const { numDeletedRows } = await tables(tx)
    .deleteFrom('revoked_tokens')
    .where('subject', '=', subject)
    .where('expires_at', '<', Date.now())
    .executeTakeFirst()
  tx.invalidate(NAMESPACE)
  return 1 + Number(numDeletedRows)
}

export const personalData: PersonalData = {
  holder: 'identity',
  schemas: { User, UserCreate, UserPatch, Login, Me },
  columns: {
    'users.username': ACCOUNT,
    'users.username_key': ACCOUNT,
    'users.display_name': ACCOUNT,
    'users.password_hash': ACCOUNT,
    'revoked_tokens.subject': ACCOUNT
  },
  sections: {
    profile: async function* ({ db }, subject) {
      const account = await createIdentityStore(db).byId(subject)
      if (account !== undefined) yield account.user
    },
    endedTokens: async function* (tenant, subject) {
      const rows = await tables(tenant)
        .selectFrom('revoked_tokens')
        .selectAll()
        .where('subject', '=', subject)
        .execute()
      for (const { revoked_at, expires_at } of rows)
        yield { endedAt: new Date(revoked_at).toISOString(), expiresAt: new Date(expires_at).toISOString() }
    }
  },
  erase,
  retention: [
    {
      what: 'Tokens that were ended',
      keptFor: 'until they would have expired',
      remove: ({ transact }) =>
        transact((tx) => tables(tx).deleteFrom('revoked_tokens').where('expires_at', '<', Date.now()).execute())
    }
  ]
}

export const userExists = async ({ db }: Tenant, subject: string): Promise<boolean> =>
  (await createIdentityStore(db).byId(subject)) !== undefined

/** Corrects what is kept of a user's name. Undefined when there is no such user. @throws ID_USERNAME_TAKEN */
export async function rectifyUser(
  tx: Transaction,
  subject: string,
  { username, displayName }: { username?: string; displayName?: string }
): Promise<{ username: string; displayName: string } | undefined> {
  const store = createIdentityStore(tx.db)
  const before = (await store.byId(subject))?.user
  if (before === undefined) return undefined
  const key = username === undefined ? undefined : usernameKey(username)
  const owner = username === undefined ? undefined : await store.byUsername(username)
  if (username !== undefined && owner !== undefined && owner.user.id !== subject) throw new UsernameTaken({ username })
  await tables(tx)
    .updateTable('users')
    .set({
      updated_at: Date.now(),
      ...(username === undefined || key === undefined ? {} : { username, username_key: key }),
      ...(displayName === undefined ? {} : { display_name: displayName })
    })
    .where('id', '=', subject)
    .execute()
  const after = (await store.byId(subject))?.user
  if (after === undefined) return undefined
  tx.audit(userChange('update', before, after))
  tx.invalidate(NAMESPACE)
  return { username: after.username, displayName: after.displayName }
}
