import { type Kysely, type Selectable, sql } from 'kysely'
import { v7 as uuid } from 'uuid'
import { isPostgres } from '../../migrations/columns.js'
import type { AuditEntry, Tenant, Transaction } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { User } from '../../schemas/identity.js'
import { createLinkStore } from './link-store.js'
import { NO_PASSWORD } from './passwords.js'
import { endTokens } from './revocations.js'

/** The namespace of cached answers about users. */
export const IDENTITY_CACHE = 'identity'

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
    must_change_password: number
    deleted_at: number | null
    created_at: number
    updated_at: number
  }
}

export interface Account {
  readonly user: User
  readonly passwordHash: string
  readonly epoch: number
}

interface NewUser {
  readonly username: string
  readonly displayName: string
  readonly role: Role
  readonly passwordHash: string
  readonly mustChangePassword?: boolean
}

export interface UserChanges {
  readonly displayName?: string
  readonly role?: Role
  readonly disabled?: boolean
  readonly passwordHash?: string
  readonly mustChangePassword?: boolean
  /** For good: the row stays for the history, the name may be given to somebody else. */
  readonly deleted?: true
  /** For what else ends them, such as another second factor. */
  readonly endTokens?: true
}

/** Whatever may lower what a token allows, or shows that somebody else had it, ends all that were signed before. */
const endsTokens = (changes: UserChanges): boolean => {
  const { role, passwordHash, disabled, deleted = false, mustChangePassword, endTokens } = changes
  const lowers = disabled === true || mustChangePassword === true || endTokens === true
  return lowers || deleted || role !== undefined || passwordHash !== undefined
}

/** Undefined when the name is taken. */
export async function addUser(tx: Transaction, user: NewUser): Promise<User | undefined> {
  const added = await createIdentityStore(tx.db).insertUser(user)
  if (added === undefined) return undefined
  tx.audit(userChange('create', undefined, added))
  tx.invalidate(IDENTITY_CACHE)
  return added
}

/** Changes a user, and ends tokens and links with the same transaction. Undefined when there is no such user. */
export async function changeUser(
  tx: Transaction,
  tenant: Tenant,
  id: string,
  changes: UserChanges
): Promise<Account | undefined> {
  const store = createIdentityStore(tx.db)
  const before = await store.byId(id)
  const changed = await store.updateUser(id, changes)
  if (changed === undefined) return undefined
  const { passwordHash, endTokens: ends, ...fields } = changes
  if (Object.keys(fields).length > 0) tx.audit(userChange('update', before?.user, changed.user))
  if (passwordHash !== undefined) tx.audit({ action: 'user.password', object: { type: 'user', id } })
  if (ends === true) tx.audit({ action: 'user.tokens.end', object: { type: 'user', id } })
  if (endsTokens(changes)) {
    await endTokens(tx, tenant, { kind: 'subject', key: id, epoch: changed.epoch })
    await createLinkStore(tx.db).removeOfUser(id)
  }
  tx.invalidate(IDENTITY_CACHE)
  return changed
}

/** How user names are compared: whatever their case and width. */
export const usernameKey = (username: string): string => username.normalize('NFKC').toLowerCase()

const toUser = (row: Selectable<IdentityTables['users']>): User => ({
  id: row.id,
  username: row.username,
  displayName: row.display_name,
  role: row.role,
  disabled: row.disabled_at !== null,
  deleted: row.deleted_at !== null,
  mustChangePassword: row.must_change_password === 1,
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
    /** Only `addUser` calls this. Undefined when the name is taken. */
    insertUser: async ({
      username,
      displayName,
      role,
      passwordHash,
      mustChangePassword = false
    }: NewUser): Promise<User | undefined> => {
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
          must_change_password: mustChangePassword ? 1 : 0,
          deleted_at: null,
          created_at: now,
          updated_at: now
        })
        .onConflict((conflict) => conflict.column('username_key').doNothing())
        .returningAll()
        .executeTakeFirst()
      return row === undefined ? undefined : toUser(row)
    },

    /** @param lock until the transaction ends, so that two changes of one version cannot both find it */
    byId: async (id: string, lock = false): Promise<Account | undefined> => {
      const query = db.selectFrom('users').selectAll().where('id', '=', id)
      const row = await (lock && isPostgres(database) ? query.forUpdate() : query).executeTakeFirst()
      return row === undefined ? undefined : toAccount(row)
    },

    byUsername: async (username: string): Promise<Account | undefined> => {
      const key = usernameKey(username)
      const row = await db.selectFrom('users').selectAll().where('username_key', '=', key).executeTakeFirst()
      return row === undefined ? undefined : toAccount(row)
    },

    /** In order of creation: a UUIDv7 sorts by its time. */
    page: async (limit: number, after?: string): Promise<User[]> => {
      const query = db.selectFrom('users').selectAll().where('deleted_at', 'is', null).orderBy('id').limit(limit)
      const rows = await (after === undefined ? query : query.where('id', '>', after)).execute()
      return rows.map(toUser)
    },

    /** Whether nobody was ever made here. */
    isEmpty: async (): Promise<boolean> =>
      (await db.selectFrom('users').select('id').limit(1).executeTakeFirst()) === undefined,

    count: async (): Promise<number> => {
      const { total } = await db
        .selectFrom('users')
        .where('deleted_at', 'is', null)
        .select(({ fn }) => fn.countAll<number>().as('total'))
        .executeTakeFirstOrThrow()
      return total
    },

    /** Only `changeUser` calls this: the epoch alone is not heard of elsewhere. Undefined when there is no such user. */
    updateUser: async (id: string, changes: UserChanges): Promise<Account | undefined> => {
      const now = Date.now()
      const { displayName, role, disabled, passwordHash, mustChangePassword, deleted } = changes
      const row = await db
        .updateTable('users')
        .set(({ ref }) => ({
          updated_at: now,
          ...(displayName === undefined ? {} : { display_name: displayName }),
          ...(role === undefined ? {} : { role }),
          ...(passwordHash === undefined ? {} : { password_hash: passwordHash }),
          ...(disabled === undefined ? {} : { disabled_at: disabled ? now : null }),
          ...(mustChangePassword === undefined ? {} : { must_change_password: mustChangePassword ? 1 : 0 }),
          ...(deleted === undefined
            ? {}
            : // No name is spelled like this key.
              { deleted_at: now, disabled_at: now, username_key: ` deleted ${id}`, password_hash: NO_PASSWORD }),
          // Always later than before, whatever the clock of this machine says.
          ...(endsTokens(changes)
            ? {
                tokens_valid_from: sql<number>`case when ${ref('tokens_valid_from')} >= ${now} then ${ref('tokens_valid_from')} + 1 else ${now} end`
              }
            : {})
        }))
        .where('id', '=', id)
        .where('deleted_at', 'is', null)
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
    }
  }
}
