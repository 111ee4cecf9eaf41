import type { Kysely, Selectable } from 'kysely'
import { v7 as uuid } from 'uuid'
import type { Passkey } from '../../schemas/identity-accounts.js'

type PasskeyTables = {
  passkeys: {
    id: string
    user_id: string
    /** As the browser tells it, base64url. */
    credential_id: string
    /** COSE, base64url. */
    public_key: string
    counter: number
    /** JSON list of what the browser said how the authenticator is reached. */
    transports: string
    name: string
    is_backed_up: number
    created_at: number
    last_used_at: number | null
  }
  used_challenges: { challenge_hash: string; expires_at: number }
}

export interface NewPasskey {
  readonly userId: string
  readonly credentialId: string
  readonly publicKey: Uint8Array
  readonly counter: number
  readonly transports: readonly string[]
  readonly name: string
  readonly isBackedUp: boolean
}
export interface StoredPasskey {
  readonly id: string
  readonly userId: string
  readonly credentialId: string
  readonly publicKey: Uint8Array<ArrayBuffer>
  readonly counter: number
  readonly transports: string[]
}

const toPasskey = (row: Selectable<PasskeyTables['passkeys']>): Passkey => ({
  id: row.id,
  name: row.name,
  backedUp: row.is_backed_up === 1,
  createdAt: new Date(row.created_at).toISOString(),
  lastUsedAt: row.last_used_at === null ? null : new Date(row.last_used_at).toISOString()
})

const transportsOf = (text: string): string[] => {
  const list: unknown = JSON.parse(text)
  return Array.isArray(list) ? list.map(String) : []
}

const toStored = (row: Selectable<PasskeyTables['passkeys']>): StoredPasskey => ({
  id: row.id,
  userId: row.user_id,
  credentialId: row.credential_id,
  publicKey: Uint8Array.from(Buffer.from(row.public_key, 'base64url')),
  counter: row.counter,
  transports: transportsOf(row.transports)
})

/** Passkeys by user; the store may stand in a transaction. */
export function createPasskeyStore(database: Kysely<unknown>) {
  const db = database.withTables<PasskeyTables>()
  return {
    /** Undefined when this credential is registered already, here or for another user. */
    insert: async ({ userId, credentialId, publicKey, ...rest }: NewPasskey): Promise<Passkey | undefined> => {
      const row = await db
        .insertInto('passkeys')
        .values({
          id: uuid(),
          user_id: userId,
          credential_id: credentialId,
          public_key: Buffer.from(publicKey).toString('base64url'),
          counter: rest.counter,
          transports: JSON.stringify(rest.transports),
          name: rest.name,
          is_backed_up: rest.isBackedUp ? 1 : 0,
          created_at: Date.now(),
          last_used_at: null
        })
        .onConflict((conflict) => conflict.column('credential_id').doNothing())
        .returningAll()
        .executeTakeFirst()
      return row === undefined ? undefined : toPasskey(row)
    },

    ofUser: async (userId: string): Promise<{ passkey: Passkey; stored: StoredPasskey }[]> => {
      const rows = await db.selectFrom('passkeys').selectAll().where('user_id', '=', userId).orderBy('id').execute()
      return rows.map((row) => ({ passkey: toPasskey(row), stored: toStored(row) }))
    },

    byCredential: async (credentialId: string): Promise<StoredPasskey | undefined> => {
      const row = await db
        .selectFrom('passkeys')
        .selectAll()
        .where('credential_id', '=', credentialId)
        .executeTakeFirst()
      return row === undefined ? undefined : toStored(row)
    },

    rename: async (userId: string, id: string, name: string): Promise<Passkey | undefined> => {
      const row = await db
        .updateTable('passkeys')
        .set({ name })
        .where('id', '=', id)
        .where('user_id', '=', userId)
        .returningAll()
        .executeTakeFirst()
      return row === undefined ? undefined : toPasskey(row)
    },

    remove: async (userId: string, id: string): Promise<boolean> => {
      const { numDeletedRows } = await db
        .deleteFrom('passkeys')
        .where('id', '=', id)
        .where('user_id', '=', userId)
        .executeTakeFirst()
      return numDeletedRows === 1n
    },

    removeAll: async (userId: string): Promise<void> => {
      await db.deleteFrom('passkeys').where('user_id', '=', userId).execute()
    },

    /** False when the counter does not rise: the authenticator was copied. One that does not count stays at 0. */
    use: async (id: string, counter: number, isBackedUp: boolean): Promise<boolean> => {
      const { numUpdatedRows } = await db
        .updateTable('passkeys')
        .set({ counter, is_backed_up: isBackedUp ? 1 : 0, last_used_at: Date.now() })
        .where('id', '=', id)
        .where((e) => (counter === 0 ? e('counter', '=', 0) : e('counter', '<', counter)))
        .executeTakeFirst()
      return numUpdatedRows === 1n
    },

    /** False when it was used before, however many ask at the same time. Forgets those that have expired since. */
    useChallenge: async (hash: string, expiresAt: number): Promise<boolean> => {
      await db.deleteFrom('used_challenges').where('expires_at', '<', Date.now()).execute()
      const { numInsertedOrUpdatedRows } = await db
        .insertInto('used_challenges')
        .values({ challenge_hash: hash, expires_at: expiresAt })
        .onConflict((conflict) => conflict.column('challenge_hash').doNothing())
        .executeTakeFirst()
      return numInsertedOrUpdatedRows === 1n
    }
  }
}
