import type { Kysely } from 'kysely'

type LinkTables = {
  one_time_links: { token_hash: string; user_id: string | null; expires_at: number }
}

/** Links that count once: one sets a user's password, one without a user makes the first. Kept as hashes. */
export function createLinkStore(database: Kysely<unknown>) {
  const db = database.withTables<LinkTables>()
  return {
    insert: async (tokenHash: string, userId: string | null, expiresAt: number): Promise<void> => {
      await db.deleteFrom('one_time_links').where('expires_at', '<', Date.now()).execute()
      await db
        .insertInto('one_time_links')
        .values({ token_hash: tokenHash, user_id: userId, expires_at: expiresAt })
        .execute()
    },

    /** The user whose password a link sets, as long as it counts. */
    userOf: async (tokenHash: string): Promise<string | undefined> => {
      const row = await db
        .selectFrom('one_time_links')
        .select('user_id')
        .where('token_hash', '=', tokenHash)
        .where('expires_at', '>', Date.now())
        .executeTakeFirst()
      return row?.user_id ?? undefined
    },

    /** False when it was used meanwhile. */
    use: async (tokenHash: string): Promise<boolean> => {
      const { numDeletedRows } = await db
        .deleteFrom('one_time_links')
        .where('token_hash', '=', tokenHash)
        .where('expires_at', '>', Date.now())
        .executeTakeFirst()
      return numDeletedRows === 1n
    },

    isForSetup: async (tokenHash: string): Promise<boolean> => {
      const row = await db
        .selectFrom('one_time_links')
        .select('user_id')
        .where('token_hash', '=', tokenHash)
        .where('user_id', 'is', null)
        .where('expires_at', '>', Date.now())
        .executeTakeFirst()
      return row !== undefined
    },

    /** Whether the link still counts. All links of this kind go, so two of them cannot both make the first user. */
    useForSetup: async (tokenHash: string): Promise<boolean> => {
      const rows = await db
        .deleteFrom('one_time_links')
        .where('user_id', 'is', null)
        .returning(['token_hash', 'expires_at'])
        .execute()
      return rows.some((row) => row.token_hash === tokenHash && row.expires_at > Date.now())
    },

    removeOfUser: async (userId: string): Promise<void> => {
      await db.deleteFrom('one_time_links').where('user_id', '=', userId).execute()
    }
  }
}
