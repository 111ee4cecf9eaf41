import type { Tenant } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { ApiTokenTables } from './api-tokens.js'
import type { SessionLife, SessionTables } from './session-store.js'

/** What identity shows Prometheus of one tenant. */
export interface Census {
  readonly users: Partial<Record<Role, number>>
  readonly sessions: number
  readonly apiTokens: number
  /** Users who may change much, and prove who they are by a password alone. */
  readonly privilegedWithoutFactor: number
}

const PRIVILEGED: readonly Role[] = ['manager', 'admin']

/** A few counts over small tables. */
export async function takeCensus(tenant: Tenant, life: SessionLife): Promise<Census> {
  type Tables = SessionTables &
    ApiTokenTables & { totp_factors: { user_id: string; seed: string | null } } & {
      passkeys: { user_id: string }
    }
  const db = tenant.db.withTables<Tables>()
  const now = Date.now()
  const active = db.selectFrom('users').where('disabled_at', 'is', null).where('deleted_at', 'is', null)
  const users = await active
    .select(({ fn }) => ['role', fn.countAll<number>().as('count')])
    .groupBy('role')
    .execute()
  const { without } = await active
    .select(({ fn }) => fn.countAll<number>().as('without'))
    .where('role', 'in', PRIVILEGED)
    .where(
      'id',
      'not in',
      db
        .selectFrom('totp_factors')
        .select('user_id')
        .where('seed', 'is not', null)
        .union(db.selectFrom('passkeys').select('user_id'))
    )
    .executeTakeFirstOrThrow()
  const { sessions } = await db
    .selectFrom('sessions as s')
    .innerJoin('users as u', 'u.id', 's.user_id')
    .select(({ fn }) => fn.countAll<number>().as('sessions'))
    .whereRef('s.epoch', '=', 'u.tokens_valid_from')
    .where('s.ended_at', 'is', null)
    .where('s.expires_at', '>', now)
    .where('s.seen_at', '>', now - life.idleSeconds * 1000)
    .executeTakeFirstOrThrow()
  const { tokens } = await db
    .selectFrom('api_tokens as t')
    .innerJoin('users as u', 'u.id', 't.user_id')
    .select(({ fn }) => fn.countAll<number>().as('tokens'))
    .whereRef('t.epoch', '=', 'u.tokens_valid_from')
    .where('t.expires_at', '>', now)
    .executeTakeFirstOrThrow()
  return {
    users: Object.fromEntries(users.map(({ role, count }) => [role, Number(count)])),
    sessions: Number(sessions),
    apiTokens: Number(tokens),
    privilegedWithoutFactor: Number(without)
  }
}
