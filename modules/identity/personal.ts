import type { PersonalData, Tenant, Transaction } from '../../plugins/contracts.js'
import { Login, Me, Session, User, UserCreate, UserPatch } from '../../schemas/identity.js'
import { FirstUser } from '../../schemas/identity-accounts.js'
import { ACCOUNT, SECURITY } from '../../schemas/personal.js'
import { type ApiTokenTables, listApiTokens } from './api-tokens.js'
import { UsernameTaken } from './errors.js'
import type { OidcTables } from './oidc-accounts.js'
import { createPasskeyStore } from './passkey-store.js'
import { removeFactors } from './second-factor.js'
import { createSecondFactorStore } from './second-factor-store.js'
import type { SessionTables } from './session-store.js'
import { changeUser, createIdentityStore, IDENTITY_CACHE, userChange, usernameKey } from './store.js'

type Tables = SessionTables & ApiTokenTables & OidcTables
const tables = ({ db }: Pick<Tenant, 'db'>) => db.withTables<Tables>()
const iso = (at: number) => new Date(at).toISOString()

/** The account itself; its id stays, since ledger and audit trail refer to it. */
async function erase(tx: Transaction, subject: string, tenant: Tenant): Promise<number> {
  const account = await createIdentityStore(tx.db).byId(subject)
  if (account === undefined) return 0
  // Ends every token of the user, as any deletion does.
  if (!account.user.deleted) await changeUser(tx, tenant, subject, { deleted: true, role: 'viewer' })
  await removeFactors(tx, subject)
  const db = tables(tx)
  await db
    .updateTable('users')
    .set({ username: `erased-${subject}`, display_name: 'erased' })
    .where('id', '=', subject)
    .execute()
  let rows = 1
  for (const table of ['sessions', 'api_tokens', 'oidc_identities'] as const) {
    const { numDeletedRows } = await db.deleteFrom(table).where('user_id', '=', subject).executeTakeFirst()
    rows += Number(numDeletedRows)
  }
  tx.invalidate(IDENTITY_CACHE)
  return rows
}

export const personalData: PersonalData = {
  holder: 'identity',
  schemas: { User, UserCreate, UserPatch, FirstUser, Login, Me, Session },
  columns: {
    'users.username': ACCOUNT,
    'users.username_key': ACCOUNT,
    'users.display_name': ACCOUNT,
    'users.password_hash': ACCOUNT,
    'sessions.address': SECURITY,
    'sessions.user_agent': SECURITY,
    'passkeys.name': ACCOUNT,
    'oidc_identities.subject': ACCOUNT
  },
  sections: {
    profile: async function* ({ db }, subject) {
      const account = await createIdentityStore(db).byId(subject)
      if (account !== undefined) yield account.user
    },
    sessions: async function* (tenant, subject) {
      const rows = await tables(tenant).selectFrom('sessions').selectAll().where('user_id', '=', subject).execute()
      for (const row of rows)
        yield {
          createdAt: iso(row.created_at),
          lastSeenAt: iso(row.seen_at),
          expiresAt: iso(row.expires_at),
          endedAt: row.ended_at === null ? null : iso(row.ended_at),
          address: row.address,
          userAgent: row.user_agent
        }
    },
    apiTokens: async function* ({ db }, subject) {
      yield* await listApiTokens(db, subject)
    },
    secondFactors: async function* ({ db }, subject) {
      const { totp, recoveryCodesLeft } = await createSecondFactorStore(db).factors(subject)
      if (totp) yield { kind: 'totp', recoveryCodesLeft }
      for (const { passkey } of await createPasskeyStore(db).ofUser(subject)) yield { kind: 'passkey', ...passkey }
    },
    signInsElsewhere: async function* (tenant, subject) {
      const rows = await tables(tenant)
        .selectFrom('oidc_identities')
        .selectAll()
        .where('user_id', '=', subject)
        .execute()
      for (const row of rows) yield { issuer: row.issuer, subject: row.subject, since: iso(row.created_at) }
    }
  },
  erase,
  // Done by the module itself, hourly.
  retention: [
    { what: 'Sessions, with where they were from', keptFor: 'a day after their end' },
    { what: 'Tokens that were ended', keptFor: 'until they would have expired' }
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
  tx.invalidate(IDENTITY_CACHE)
  return { username: after.username, displayName: after.displayName }
}
