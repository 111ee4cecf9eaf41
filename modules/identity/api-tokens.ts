import { createHash, randomBytes } from 'node:crypto'
import type { Kysely, Selectable } from 'kysely'
import { LRUCache } from 'lru-cache'
import { v7 as uuid } from 'uuid'
import type { OpaqueTokens, RevocationCheck, Tenant, TokenClaims, Transaction } from '../../plugins/contracts.js'
import type { Role } from '../../schemas/common.js'
import type { ApiToken } from '../../schemas/identity.js'
import { TooManyTokens } from './errors.js'
import { endTokens } from './revocations.js'
import type { SecondFactor } from './sign-in.js'
import { type Account, createIdentityStore } from './store.js'

/** Tokens for programs: made by a user, for part of what that user may, until a day that is known. */

export type ApiTokenTables = {
  api_tokens: {
    id: string
    user_id: string
    /** The user's `tokens_valid_from` when it was made: a later one has ended it. */
    epoch: number
    name: string
    hash: string
    /** Its last characters, to tell it from others. */
    hint: string
    role: Role
    /** JSON. */
    scopes: string
    created_at: number
    expires_at: number
    used_at: number | null
  }
}
type Row = Selectable<ApiTokenTables['api_tokens']>

interface NewApiToken {
  readonly name: string
  readonly role: Role
  readonly scopes: readonly string[]
  readonly expiresInDays: number
}

const PREFIX = 'ie_'
const FORM = /^ie_([a-z][a-z0-9-]{0,39})_[A-Za-z0-9_-]{43}$/
const DAY_MILLISECONDS = 86_400_000
/** How exactly the last use is known, so that reading does not become writing. */
const USE_MILLISECONDS = 60_000
const PER_USER_MAX = 50
const RANKED: readonly Role[] = ['viewer', 'staff', 'manager', 'admin']

export const isAbove = (role: Role, other: Role): boolean => RANKED.indexOf(role) > RANKED.indexOf(other)
const hashOf = (token: string) => createHash('sha256').update(token).digest('base64url')
const stringsOf = (json: string): string[] => {
  const value: unknown = JSON.parse(json)
  return Array.isArray(value) ? value.map(String) : []
}

const toApiToken = (row: Row): ApiToken => ({
  id: row.id,
  name: row.name,
  hint: `${PREFIX}…${row.hint}`,
  role: row.role,
  scopes: stringsOf(row.scopes),
  createdAt: new Date(row.created_at).toISOString(),
  expiresAt: new Date(row.expires_at).toISOString(),
  lastUsedAt: row.used_at === null ? null : new Date(row.used_at).toISOString()
})

/** The token itself is told this once. @throws TooManyTokens */
export async function createApiToken(
  tx: Transaction,
  tenant: Tenant,
  { user, epoch }: Account,
  { name, role, scopes, expiresInDays }: NewApiToken
): Promise<ApiToken & { token: string }> {
  const db = tx.db.withTables<ApiTokenTables>()
  if ((await listApiTokens(tx.db, user.id)).length >= PER_USER_MAX) throw new TooManyTokens({ maximum: PER_USER_MAX })
  const now = Date.now()
  const token = `${PREFIX}${tenant.id}_${randomBytes(32).toString('base64url')}`
  const row: Row = {
    id: uuid(),
    user_id: user.id,
    epoch,
    name,
    hash: hashOf(token),
    hint: token.slice(-4),
    role,
    scopes: JSON.stringify(scopes),
    created_at: now,
    expires_at: now + expiresInDays * DAY_MILLISECONDS,
    used_at: null
  }
  await db.insertInto('api_tokens').values(row).execute()
  return { ...toApiToken(row), token }
}

/** Those of a user that count, the youngest first. */
export async function listApiTokens(database: Kysely<unknown>, userId: string): Promise<ApiToken[]> {
  const account = await createIdentityStore(database).byId(userId)
  if (account === undefined || account.user.disabled) return []
  const rows = await database
    .withTables<ApiTokenTables>()
    .selectFrom('api_tokens')
    .selectAll()
    .where('user_id', '=', userId)
    .where('epoch', '=', account.epoch)
    .where('expires_at', '>', Date.now())
    .orderBy('id', 'desc')
    .execute()
  return rows.map(toApiToken)
}

/** False when there is none of this id, or it is another user's than `owner`. */
export async function deleteApiToken(tx: Transaction, tenant: Tenant, id: string, owner?: string): Promise<boolean> {
  const query = tx.db.withTables<ApiTokenTables>().deleteFrom('api_tokens').where('id', '=', id)
  const row = await (owner === undefined ? query : query.where('user_id', '=', owner))
    .returning('expires_at')
    .executeTakeFirst()
  if (row === undefined) return false
  await endTokens(tx, tenant, { kind: 'token', key: id, expiresAt: row.expires_at })
  return true
}

/** Those that have expired: they are refused by their own date, so nothing remembers them. */
export async function forgetApiTokens(tx: Transaction): Promise<void> {
  const db = tx.db.withTables<ApiTokenTables>()
  await db.deleteFrom('api_tokens').where('expires_at', '<', Date.now()).execute()
}

/** What the core asks of a token that begins with `ie_`. */
export function apiTokens(secondFactor: SecondFactor): OpaqueTokens {
  return {
    prefix: PREFIX,
    tenantOf: (token) => FORM.exec(token)?.[1],
    find: async (token, tenant) => {
      const row = await tenant.db
        .withTables<ApiTokenTables>()
        .selectFrom('api_tokens')
        .selectAll()
        .where('hash', '=', hashOf(token))
        .executeTakeFirst()
      const account = row === undefined ? undefined : await createIdentityStore(tenant.db).byId(row.user_id)
      if (row === undefined || account === undefined) return undefined
      const { user, epoch } = account
      if (user.disabled || epoch !== row.epoch) return undefined
      // The token stands for a sign-in, so its owner needs what a sign-in needs.
      if (secondFactor.required(user.role) && (await secondFactor.methods(tenant, user.id)).length === 0)
        return undefined
      return { claims: claimsOf(row, account, tenant), scopes: stringsOf(row.scopes) }
    }
  }
}

function claimsOf(row: Row, { user, epoch }: Account, tenant: Tenant): TokenClaims {
  return {
    iss: 'api-token',
    aud: 'api-token',
    sub: user.id,
    role: isAbove(row.role, user.role) ? user.role : row.role,
    tenant: tenant.id,
    jti: row.id,
    iat: Math.floor(row.created_at / 1000),
    exp: Math.floor(row.expires_at / 1000),
    epoch,
    amr: ['api']
  }
}

export const isApiToken = ({ amr }: TokenClaims): boolean => amr?.[0] === 'api'

/** Notes that a token was used, at most once a minute, behind the request. */
export function noteUses(check: RevocationCheck): RevocationCheck {
  const noted = new LRUCache<string, number>({ max: 5_000 })
  const note = (claims: TokenClaims, tenant: Tenant) => {
    const now = Date.now()
    if (now - (noted.get(claims.jti) ?? 0) < USE_MILLISECONDS) return
    noted.set(claims.jti, now)
    tenant
      .transact(({ db }) =>
        db
          .withTables<ApiTokenTables>()
          .updateTable('api_tokens')
          .set({ used_at: now })
          .where('id', '=', claims.jti)
          .where((eb) => eb.or([eb('used_at', 'is', null), eb('used_at', '<=', now - USE_MILLISECONDS)]))
          .execute()
      )
      // Of no weight beside the request; the next use tells it again.
      .catch(() => noted.delete(claims.jti))
  }
  return (claims, tenant) => {
    const revoked = check(claims, tenant)
    if (!isApiToken(claims)) return revoked
    return Promise.resolve(revoked).then((ended) => {
      if (!ended) note(claims, tenant)
      return ended
    })
  }
}
