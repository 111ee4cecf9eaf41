import type pg from 'pg'
import type { DatabaseStatistics } from './dialect.js'

interface Row {
  active: number
  idle: number
  in_transaction: number
  lock_waiters: number
  oldest_seconds: number
  connections_max: number
  deadlocks: number
  blocks_memory: number
  blocks_disk: number
  temporary_bytes: number
  checkpoints: number
}

/** Since 17 the checkpointer has a view of its own. */
const CHECKPOINTS = {
  before17: 'select checkpoints_timed + checkpoints_req from pg_stat_bgwriter',
  since17: 'select num_timed + num_requested from pg_stat_checkpointer'
}

const statement = (checkpoints: string) => `
  select a.*, current_setting('max_connections')::int as connections_max,
    d.deadlocks, d.blks_hit as blocks_memory, d.blks_read as blocks_disk, d.temp_bytes as temporary_bytes,
    (${checkpoints}) as checkpoints
  from pg_stat_database as d, (
    select count(*) filter (where state = 'active') as active,
      count(*) filter (where state = 'idle') as idle,
      count(*) filter (where state like 'idle in transaction%') as in_transaction,
      count(*) filter (where wait_event_type = 'Lock') as lock_waiters,
      coalesce(extract(epoch from max(now() - xact_start)), 0)::float8 as oldest_seconds
    from pg_stat_activity where datname = current_database()
  ) as a
  where d.datname = current_database()`

/** One statement over views that PostgreSQL keeps in memory: it costs the same however large the database is. */
export function createStatistics(pool: pg.Pool): () => Promise<DatabaseStatistics> {
  let text: string | undefined
  return async () => {
    text ??= statement((await majorVersion(pool)) >= 17 ? CHECKPOINTS.since17 : CHECKPOINTS.before17)
    const { rows } = await pool.query<Row>(text)
    const [row] = rows
    if (row === undefined) throw new Error('PostgreSQL has no statistics of this database')
    return {
      checkpoints: row.checkpoints,
      server: {
        connections: { active: row.active, idle: row.idle, in_transaction: row.in_transaction },
        connectionsMax: row.connections_max,
        lockWaiters: row.lock_waiters,
        oldestTransactionSeconds: row.oldest_seconds,
        deadlocks: row.deadlocks,
        blocks: { memory: row.blocks_memory, disk: row.blocks_disk },
        temporaryBytes: row.temporary_bytes
      }
    }
  }
}

async function majorVersion(pool: pg.Pool): Promise<number> {
  const { rows } = await pool.query<{ version: number }>(`select current_setting('server_version_num')::int as version`)
  return Math.floor((rows[0]?.version ?? 0) / 10_000)
}
