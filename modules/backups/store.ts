import { randomUUID } from 'node:crypto'
import type { Kysely } from 'kysely'
import type { ArchivePosition, MadeArchive } from '../../plugins/contracts.js'
import type { BackupCheck } from '../../schemas/backups.js'

type BackupsTables = {
  backup_archives: {
    id: string
    kind: string
    state_at: number
    rows: number
    counts: string
    parts: number
    sha256: string
    duration_ms: number
  }
  backup_chain: { one: number; last: string; capture: string; position: string; covered_at: number }
  backup_turns: { name: string; until: number }
  backup_checks: {
    id: string
    kind: 'verify' | 'drill'
    at: number
    outcome: 'success' | 'failure'
    archive_id: string | null
    archives: number
    bytes: number
    rows: number
    duration_ms: number
    error: string | null
  }
}
export type ArchiveRow = BackupsTables['backup_archives']
type CheckRow = BackupsTables['backup_checks']
export interface Chain extends ArchivePosition {
  readonly last: string
  readonly coveredAt: number
}
/** What one process does at a time. */
export type Turn = 'full' | 'increment' | 'drill'
/** What others wait for while anybody does it. */
export type SharedTurn = 'full-running' | 'archives-read'

const ERROR_MAX_CHARS = 1_000

/** Bookkeeping of backups, in the database that they are of. */
export function createBackupStore(root: Kysely<unknown>) {
  const db = root.withTables<BackupsTables>()
  return {
    async keepArchive(made: MadeArchive): Promise<void> {
      const { id, kind, stateAt, rows, counts, parts, sha256, seconds } = made
      await db
        .insertInto('backup_archives')
        .values({
          ...{ id, kind, rows, parts, sha256 },
          state_at: stateAt,
          counts: JSON.stringify(counts),
          duration_ms: Math.round(seconds * 1000)
        })
        .execute()
    },
    archives: (ids: readonly string[]): Promise<ArchiveRow[]> =>
      db.selectFrom('backup_archives').selectAll().where('id', 'in', ids).execute(),
    async lastStateAt(kind: 'full' | 'increment'): Promise<number> {
      const row = await db
        .selectFrom('backup_archives')
        .select((of) => of.fn.max('state_at').as('at'))
        .where('kind', '=', kind)
        .executeTakeFirst()
      return row?.at ?? 0
    },
    async forgetArchives(ids: readonly string[]): Promise<void> {
      await db.deleteFrom('backup_archives').where('id', 'in', ids).execute()
    },

    async chain(): Promise<Chain | undefined> {
      const row = await db.selectFrom('backup_chain').selectAll().executeTakeFirst()
      if (row === undefined) return undefined
      const { last, capture, position, covered_at } = row
      return { last, capture, position, coveredAt: covered_at }
    },
    async setChain({ last, capture, position, coveredAt }: Chain): Promise<void> {
      const row = { last, capture, position, covered_at: coveredAt }
      await db
        .insertInto('backup_chain')
        .values({ one: 1, ...row })
        .onConflict((conflict) => conflict.column('one').doUpdateSet(row))
        .execute()
    },
    async covered(at: number): Promise<void> {
      await db.updateTable('backup_chain').set({ covered_at: at }).execute()
    },
    async endChain(): Promise<void> {
      await db.deleteFrom('backup_chain').execute()
    },

    /** True for one of those who ask at once, when nobody's turn is on. */
    async takeTurn(name: Turn, until: number, now: number): Promise<boolean> {
      const { numInsertedOrUpdatedRows = 0n } = await db
        .insertInto('backup_turns')
        .values({ name, until })
        .onConflict((conflict) => conflict.column('name').doUpdateSet({ until }).where('backup_turns.until', '<', now))
        .executeTakeFirst()
      return numInsertedOrUpdatedRows > 0n
    },
    async setTurn(name: Turn | `${SharedTurn} ${string}`, until: number): Promise<void> {
      await db
        .insertInto('backup_turns')
        .values({ name, until })
        .onConflict((conflict) => conflict.column('name').doUpdateSet({ until }))
        .execute()
    },
    async turnUntil(name: Turn): Promise<number> {
      const row = await db.selectFrom('backup_turns').select('until').where('name', '=', name).executeTakeFirst()
      return row?.until ?? 0
    },
    /** Of whoever does it, each in a row of its own, until when at the latest. */
    async sharedUntil(turn: SharedTurn): Promise<number> {
      const row = await db
        .selectFrom('backup_turns')
        .select(({ fn }) => fn.max('until').as('until'))
        // Versions before had one row for all.
        .where((eb) => eb.or([eb('name', '=', turn), eb('name', 'like', `${turn} %`)]))
        .executeTakeFirst()
      return row?.until ?? 0
    },
    async endShared(turn: SharedTurn, job: string, now: number): Promise<void> {
      await db
        .deleteFrom('backup_turns')
        .where((eb) =>
          eb.or([
            eb('name', '=', `${turn} ${job}`),
            // Of those that died.
            eb.and([eb('name', 'like', `${turn} %`), eb('until', '<', now)])
          ])
        )
        .execute()
    },

    async keepCheck(check: Omit<CheckRow, 'id'>): Promise<void> {
      const error = check.error?.slice(0, ERROR_MAX_CHARS) ?? null
      await db
        .insertInto('backup_checks')
        .values({ ...check, error, id: randomUUID() })
        .execute()
    },
    lastDrill: (): Promise<CheckRow | undefined> =>
      db
        .selectFrom('backup_checks')
        .selectAll()
        .where('kind', '=', 'drill')
        .where('outcome', '=', 'success')
        .orderBy('at', 'desc')
        .limit(1)
        .executeTakeFirst(),
    checks(kind: 'verify' | 'drill' | undefined, before: { at: number; id: string } | undefined, limit: number) {
      let query = db.selectFrom('backup_checks').selectAll()
      if (kind !== undefined) query = query.where('kind', '=', kind)
      if (before !== undefined)
        query = query.where((where) =>
          where.or([where('at', '<', before.at), where.and([where('at', '=', before.at), where('id', '<', before.id)])])
        )
      return query.orderBy('at', 'desc').orderBy('id', 'desc').limit(limit).execute()
    },
    async forgetChecks(before: number): Promise<void> {
      await db.deleteFrom('backup_checks').where('at', '<', before).execute()
    }
  }
}

export const checkOf = ({ at, archive_id, duration_ms, ...row }: CheckRow): BackupCheck => ({
  ...row,
  at: new Date(at).toISOString(),
  backupId: archive_id,
  seconds: duration_ms / 1000
})
