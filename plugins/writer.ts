import type { CompiledQuery, Kysely } from 'kysely'

/** What statements of a transaction are given to. */
export interface Writer {
  /** Stores inside a transaction are built on this; a call on `tenant.db` from here would leave the transaction. */
  readonly db: Kysely<unknown>
  /**
   * Sends a write whose answer nobody needs, and does not wait: it is done before what is asked for after it, and when it fails so does the
   * transaction. Left out on SQLite, where nothing is gained; `send` waits there.
   */
  write?(query: CompiledQuery): void
}

/** Writes without waiting for the answer, where that is possible. */
export const send = async ({ db, write }: Writer, query: CompiledQuery): Promise<void> => {
  if (write === undefined) await db.executeQuery(query)
  else write(query)
}
