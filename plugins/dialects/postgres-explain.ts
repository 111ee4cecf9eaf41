import pg from 'pg'
import type { Explain } from './dialect.js'

const TIMEOUT_MS = 2_000

/**
 * On a connection of its own, which ends with it: the pool may be what is slow. The plan is the generic one, made for unknown
 * values, so it shows `$1` and never what somebody asked for; for the same reason it need not be the plan that was slow.
 *
 * All of it is one transaction that leaves nothing behind, since behind a pooler the server's connection is somebody else's next.
 */
export const explainAt =
  (connection: pg.ClientConfig): Explain =>
  async ({ sql, parameters }) => {
    const client = new pg.Client({ ...connection, query_timeout: TIMEOUT_MS })
    // A connection that breaks says so twice; the second time nobody else would listen.
    client.on('error', () => {})
    await client.connect()
    try {
      await client.query(`begin read only; set local statement_timeout = ${TIMEOUT_MS};
        set local plan_cache_mode = force_generic_plan`)
      await client.query(`prepare inventory_slow as ${sql}`)
      await client.query('savepoint prepared')
      try {
        const values = parameters.length === 0 ? '' : `(${parameters.map(() => 'null').join(', ')})`
        const { rows } = await client.query<{ 'QUERY PLAN': string }>(`explain execute inventory_slow${values}`)
        return rows.map((row) => row['QUERY PLAN'])
      } finally {
        // A prepared statement outlives its transaction.
        await client.query('rollback to prepared; deallocate inventory_slow')
      }
    } finally {
      await client.query('rollback').catch(() => {})
      await client.end()
    }
  }
