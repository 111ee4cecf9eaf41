import { type Kysely, type Selectable, sql } from 'kysely'
import { v7 as uuid } from 'uuid'
import type { AuditEntry } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { User } from '../../schemas/identity.js'

export type IdentityTables = {
  users: {
    id: string
    username: string
    username_key: string
    display_name: string
    role: Role
    password_hash: string
    /** Milliseconds; a token signed under an earlier value is refused. 0 until something ends a user's tokens. */
    tokens_valid_from: number
    disabled_at: number | null
    created_at: number
    updated_at: number
  }
  revoked_tokens: { jti: string; subject: string; expires_at: number; revoked_at: number }
}

export interface Account {
  readonly user: User
  readonly passwordHash: string
  readonly epoch: number
}

export interface NewUser {
  readonly username: string
  readonly displayName: string
  readonly role: Role
  readonly passwordHash: string
}

export interface UserChanges {
  readonly displayName?: string
  readonly role?: Role
  readonly disabled?: boolean
  readonly passwordHash?: string
}

/** How user names are compared: whatever their case and width. */
export const usernameKey = (username: string): string => username.normalize('NFKC').toLowerCase()

const toUser = (row: Selectable<IdentityTables['users']>): User => ({
  id: row.id,
  username: row.username,
  displayName: row.display_name,
  role: row.role,
  disabled: row.disabled_at !== null,
  createdAt: new Date(row.created_at).toISOString(),
  updatedAt: new Date(row.updated_at).toISOString()
})
const toAccount = (row: Selectable<IdentityTables['users']>): Account => ({
  user: toUser(row),
  passwordHash: row.password_hash,
  epoch: row.tokens_valid_from
})

/** For the audit trail: who a person is stays with the user, who may be erased. */
export const userChange = (action: 'create' | 'update', before: User | undefined, after: User): AuditEntry => ({
  action: `user.${action}`,
  object: { type: 'user', id: after.id },
  ...(before === undefined ? {} : { before }),
  after,
  personal: ['username', 'displayName']
})

/** A transaction's `db` is a Kysely too: inside one, build a second store on it. */
export function createIdentityStore(database: Kysely<unknown>) {
  const db = database.withTables<IdentityTables>()
  return {
    /** Undefined when the name is taken. */
    insertUser: async ({ username, displayName, role, passwordHash }: NewUser): Promise<User | undefined> => {
      const now = Date.now()
      const row = await db
        .insertInto('users')
        .values({
          id: uuid(),
          username,
          username_key: usernameKey(username),
          display_name: displayName,
          role,
          password_hash: passwordHash,
          tokens_valid_from: 0,
          disabled_at: null,
          created_at: now,
          updated_at: now
        })
        .onConflict((conflict) => conflict.column('username_key').doNothing())
        .returningAll()
        .executeTakeFirst()
      return row === undefined ? undefined : toUser(row)
    },

    byId: async (id: string): Promise<Account | undefined> => {
      const row = await db.selectFrom('users').selectAll().where('id', '=', id).executeTakeFirst()
      return row === undefined ? undefined : toAccount(row)
    },

    byUsername: async (username: string): Promise<Account | undefined> => {
      const key = usernameKey(username)
      const row = await db.selectFrom('users').selectAll().where('username_key', '=', key).executeTakeFirst()
      return row === undefined ? undefined : toAccount(row)
    },

    /** In order of creation: a UUIDv7 sorts by its time. */
    page: async (limit: number, after?: string): Promise<User[]> => {
      const query = db.selectFrom('users').selectAll().orderBy('id').limit(limit)
      const rows = await (after === undefined ? query : query.where('id', '>', after)).execute()
      return rows.map(toUser)
    },

    count: async (): Promise<number> => {
      const { total } = await db
        .selectFrom('users')
        .select(({ fn }) => fn.countAll<number>().as('total'))
        .executeTakeFirstOrThrow()
      return total
    },

    /** Whatever may lower what a token allows ends all tokens signed before. Undefined when there is no such user. */
    updateUser: async (id: string, changes: UserChanges): Promise<Account | undefined> => {
      const now = Date.now()
      const { displayName, role, disabled, passwordHash } = changes
      const endsTokens = role !== undefined || passwordHash !== undefined || disabled === true
      const row = await db
        .updateTable('users')
        .set(({ ref }) => ({
          updated_at: now,
          ...(displayName === undefined ? {} : { display_name: displayName }),
          ...(role === undefined ? {} : { role }),
          ...(passwordHash === undefined ? {} : { password_hash: passwordHash }),
          ...(disabled === undefined ? {} : { disabled_at: disabled ? now : null }),
          // Always later than before, whatever the clock of this machine says.
          ...(endsTokens
            ? {
                tokens_valid_from: sql<number>`case when ${ref('tokens_valid_from')} >= ${now} then ${ref('tokens_valid_from')} + 1 else ${now} end`
              }
            : {})
        }))
        .where('id', '=', id)
        .returningAll()
        .executeTakeFirst()
      return row === undefined ? undefined : toAccount(row)
    },

    /** The same password under a dearer hash: no token ends. Does nothing when the password was changed meanwhile. */
    replaceHash: async (id: string, before: string, passwordHash: string): Promise<void> => {
      await db
        .updateTable('users')
        .set({ password_hash: passwordHash })
        .where('id', '=', id)
        .where('password_hash', '=', before)
        .execute()
    },

    /** Also forgets those that have expired since. */
    revokeToken: async (jti: string, subject: string, expiresAt: number): Promise<void> => {
      const now = Date.now()
      await db.deleteFrom('revoked_tokens').where('expires_at', '<', now).execute()
      await db
        .insertInto('revoked_tokens')
        .values({ jti, subject, expires_at: expiresAt, revoked_at: now })
        .onConflict((conflict) => conflict.column('jti').doNothing())
        .execute()
    },

    /** What refuses tokens and was written at or after `since` (milliseconds; 0 for all). */
    revocations: async (since: number): Promise<Revocations> => {
      const tokens = await db
        .selectFrom('revoked_tokens')
        .select(['jti', 'expires_at as expiresAt'])
        .where('revoked_at', '>=', since)
        .where('expires_at', '>', Date.now())
        .execute()
      const subjects = await db
        .selectFrom('users')
        .select(['id', 'tokens_valid_from as epoch'])
        .where('tokens_valid_from', '>=', Math.max(since, 1))
        .execute()
      return { tokens, subjects }
    }
  }
}
export type IdentityStore = ReturnType<typeof createIdentityStore>

export interface Revocations {
  readonly tokens: readonly { jti: string; expiresAt: number }[]
  readonly subjects: readonly { id: string; epoch: number }[]
}
