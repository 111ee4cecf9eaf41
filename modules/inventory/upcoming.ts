import { type Kysely, sql } from 'kysely'
import type { InventoryTables } from './tables.js'

const DAY_MILLISECONDS = 86_400_000
const WINDOWS = { expired: -1, '7d': 7, '30d': 30, '90d': 90 } as const
type Expiring = Record<keyof typeof WINDOWS, number>

/** What stock is about to be lost or freed: lots by when they expire, and open reservations. Both read by an index. */
export async function upcoming(root: Kysely<unknown>, now: number) {
  const day = (days: number) => new Date(now + days * DAY_MILLISECONDS).toISOString().slice(0, 10)
  const { rows } = await sql<{ expires_on: string; lots: number }>`
    select l.expires_on, count(*) as lots from ${sql.table('lots')} as l
    where l.expires_on <= ${day(WINDOWS['90d'])} and exists (
      select 1 from ${sql.table('stock_accounts')} as a
      join ${sql.table('stock_balances')} as b on b.account_id = a.id
      where a.item_id = l.item_id and a.lot_id = l.id and b.on_hand > 0
    ) group by l.expires_on`.execute(root)
  const today = day(0)
  const expiring: Expiring = { expired: 0, '7d': 0, '30d': 0, '90d': 0 }
  for (const { expires_on: date, lots } of rows) {
    if (date < today) expiring.expired += Number(lots)
    else
      for (const window of ['7d', '30d', '90d'] as const)
        if (date <= day(WINDOWS[window])) expiring[window] += Number(lots)
  }
  const { open, overdue } = await root
    .withTables<InventoryTables>()
    .selectFrom('reservations')
    .select(({ fn }) => [
      fn.countAll<number>().as('open'),
      fn.countAll<number>().filterWhere('expires_at', '<', now).as('overdue')
    ])
    .where('status', '=', 'pending')
    .executeTakeFirstOrThrow()
  return { expiring, reservations: { open: Number(open), overdue: Number(overdue) } }
}
