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

    /** The user of a link that still counts; it counts no more. */
    useForUser: async (tokenHash: string): Promise<string | undefined> => {
      const row = await db
        .deleteFrom('one_time_links')
        .where('token_hash', '=', tokenHash)
        .where('user_id', 'is not', null)
        .where('expires_at', '>', Date.now())
        .returning('user_id')
        .executeTakeFirst()
      return row?.user_id ?? undefined
    },

    /** Whether the link still counts; none of the links that make a first user counts after it, so two cannot both win. */
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
