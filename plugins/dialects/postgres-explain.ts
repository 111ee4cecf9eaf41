import pg from 'pg'
import type { Explain } from './dialect.js'

const TIMEOUT_MS = 2_000

/**
 * On a connection of its own, which ends with it: the pool may be what is slow. The plan is the generic one, made for unknown
 * values, so it shows `$1` and never what somebody asked for; for the same reason it need not be the plan that was slow.
 */
export const explainAt =
  (connection: pg.ClientConfig): Explain =>
  async ({ sql, parameters }) => {
    const client = new pg.Client({ ...connection, statement_timeout: TIMEOUT_MS, query_timeout: TIMEOUT_MS })
    // A connection that breaks says so twice; the second time nobody else would listen.
    client.on('error', () => {})
    await client.connect()
    try {
      await client.query('set default_transaction_read_only = on; set plan_cache_mode = force_generic_plan')
      await client.query(`prepare slow as ${sql}`)
      const values = parameters.length === 0 ? '' : `(${parameters.map(() => 'null').join(', ')})`
      const { rows } = await client.query<{ 'QUERY PLAN': string }>(`explain execute slow${values}`)
      return rows.map((row) => row['QUERY PLAN'])
    } finally {
      await client.end()
    }
  }
