import { createHash, createHmac, randomBytes } from 'node:crypto'
import type { Kysely, Selectable } from 'kysely'
import { v7 as uuid } from 'uuid'
import type { Tenant, Transaction } from '../../plugins/contracts.js'
import { endTokens } from './revocations.js'
import { type Account, createIdentityStore, type IdentityTables } from './store.js'

export type SessionTables = IdentityTables & {
  sessions: {
    id: string
    user_id: string
    /** The user's `tokens_valid_from` when it began: a later one has ended it. */
    epoch: number
    /** JSON: how the user proved who it is. */
    methods: string
    authenticated_at: number
    created_at: number
    seen_at: number
    expires_at: number
    ended_at: number | null
    address: string
    user_agent: string
  }
  refresh_tokens: { hash: string; session_id: string; used_at: number | null; seed: string | null }
}

export interface SessionLife {
  /** Without a refresh for so long it ends. */
  readonly idleSeconds: number
  /** So long after its beginning it ends, whatever is done. */
  readonly absoluteSeconds: number
}
/** What opens a session: who proved who it is, how and when. */
export interface Proof {
  readonly account: Account
  /** RFC 8176: pwd, otp, hwk. */
  readonly methods: readonly string[]
  readonly authenticatedAt: number
}
export interface Device {
  readonly address: string
  readonly userAgent: string
}
export interface OpenSession {
  readonly id: string
  readonly account: Account
  readonly methods: readonly string[]
  readonly authenticatedAt: number
  readonly createdAt: number
  readonly seenAt: number
  readonly expiresAt: number
  readonly device: Device
}
export interface OpenedSession {
  readonly session: OpenSession
  readonly refreshToken: string
}

/** Of one user at once; the one that was silent longest makes room. */
const PER_USER_MAX = 50
const PREFIX = 'ir_'
const FORM = /^ir_([a-z][a-z0-9-]{0,39})_[A-Za-z0-9_-]{43}$/
/** A refresh token that was used within this time may be sent again, and is answered with the same successor. */
const REFRESH_GRACE_SECONDS = 10

const hashOf = (token: string) => createHash('sha256').update(token).digest('base64url')
/** What follows a token: told from the token and a random seed, neither of which tells it alone. */
const successorOf = (token: string, seed: string, tenantId: string) =>
  `${PREFIX}${tenantId}_${createHmac('sha256', token).update(seed).digest('base64url')}`

/** The tenant that a refresh token names; undefined when it is none. */
export const tenantOfRefreshToken = (token: string): string | undefined => FORM.exec(token)?.[1]

/** A new session; its refresh token exists nowhere but in the answer. */
export async function openSession(
  tx: Transaction,
  tenant: Tenant,
  { account, methods, authenticatedAt }: Proof,
  device: Device,
  life: SessionLife
): Promise<OpenedSession> {
  const db = tx.db.withTables<SessionTables>()
  const now = Date.now()
  const live = await liveSessions(tx.db, account.user.id, life)
  for (const { id } of live.sort((one, other) => other.seenAt - one.seenAt).slice(PER_USER_MAX - 1)) {
    await endSession(tx, tenant, id, account.user.id)
  }
  const refreshToken = `${PREFIX}${tenant.id}_${randomBytes(32).toString('base64url')}`
  const row = {
    id: uuid(),
    user_id: account.user.id,
    epoch: account.epoch,
    methods: JSON.stringify(methods),
    authenticated_at: authenticatedAt,
    created_at: now,
    seen_at: now,
    expires_at: now + life.absoluteSeconds * 1000,
    ended_at: null,
    address: device.address.slice(0, 64),
    user_agent: device.userAgent.slice(0, 200)
  }
  await db.insertInto('sessions').values(row).execute()
  await addRefreshToken(db, row.id, refreshToken)
  return { session: toSession(row, account), refreshToken }
}

/** Ends a session with its tokens. False when there is no such session of this user, or it has ended before. */
export async function endSession(tx: Transaction, tenant: Tenant, id: string, userId: string): Promise<boolean> {
  const db = tx.db.withTables<SessionTables>()
  const { numUpdatedRows } = await db
    .updateTable('sessions')
    .set({ ended_at: Date.now() })
    .where('id', '=', id)
    .where('user_id', '=', userId)
    .where('ended_at', 'is', null)
    .executeTakeFirst()
  if (numUpdatedRows === 0n) return false
  await endTokens(tx, tenant, { kind: 'session', key: id })
  return true
}

/** Why a refresh token is not taken; `reused`: it was used before, so somebody has a copy and the session has ended. */
export type RefreshRefusal = 'unknown' | 'ended' | 'reused'

/**
 * The next refresh token of a session. The same token twice within `REFRESH_GRACE_SECONDS` (two tabs, a lost answer) gets the same
 * successor, as long as that was not used; later, or after that, the whole session ends.
 */
export async function rotate(
  tx: Transaction,
  tenant: Tenant,
  token: string,
  life: SessionLife
): Promise<OpenedSession | RefreshRefusal> {
  const db = tx.db.withTables<SessionTables>()
  const now = Date.now()
  const hash = hashOf(token)
  const found = await db.selectFrom('refresh_tokens').selectAll().where('hash', '=', hash).executeTakeFirst()
  if (found === undefined) return 'unknown'
  const session = await findSession(tx.db, found.session_id)
  if (session === undefined || !isLive(session, now, life)) return 'ended'
  const seed = randomBytes(32).toString('base64url')
  const { numUpdatedRows } = await db
    .updateTable('refresh_tokens')
    .set({ used_at: now, seed })
    .where('hash', '=', hash)
    .where('used_at', 'is', null)
    .executeTakeFirst()
  if (numUpdatedRows === 1n) {
    const refreshToken = successorOf(token, seed, tenant.id)
    await addRefreshToken(db, session.id, refreshToken)
    await db.updateTable('sessions').set({ seen_at: now }).where('id', '=', session.id).execute()
    return { session: { ...session, seenAt: now }, refreshToken }
  }
  const refreshToken = await unusedSuccessor(db, tenant, token, now)
  if (refreshToken !== undefined) return { session, refreshToken }
  await endSession(tx, tenant, session.id, session.account.user.id)
  tx.audit({
    action: 'session.reused',
    outcome: 'failure',
    object: { type: 'session', id: session.id },
    details: { user: session.account.user.id }
  })
  return 'reused'
}

async function unusedSuccessor(db: Db, tenant: Tenant, token: string, now: number): Promise<string | undefined> {
  const row = await db
    .selectFrom('refresh_tokens')
    .selectAll()
    .where('hash', '=', hashOf(token))
    .executeTakeFirstOrThrow()
  if (row.used_at === null || row.seed === null || now - row.used_at > REFRESH_GRACE_SECONDS * 1000) return undefined
  const successor = successorOf(token, row.seed, tenant.id)
  const next = await db
    .selectFrom('refresh_tokens')
    .select('used_at')
    .where('hash', '=', hashOf(successor))
    .executeTakeFirst()
  return next !== undefined && next.used_at === null ? successor : undefined
}

/** The live sessions of a user, the youngest first. */
export async function liveSessions(
  database: Kysely<unknown>,
  userId: string,
  life: SessionLife
): Promise<OpenSession[]> {
  const db = database.withTables<SessionTables>()
  const account = await createIdentityStore(database).byId(userId)
  if (account === undefined) return []
  const rows = await db
    .selectFrom('sessions')
    .selectAll()
    .where('user_id', '=', userId)
    .where('epoch', '=', account.epoch)
    .where('ended_at', 'is', null)
    .orderBy('id', 'desc')
    .execute()
  const now = Date.now()
  return rows.map((row) => toSession(row, account)).filter((session) => isLive(session, now, life))
}

/** Forgets sessions that ended or ran out more than a day ago, with where they were from. */
export async function forgetSessions(tx: Transaction): Promise<void> {
  const before = Date.now() - 86_400_000
  await tx.db
    .withTables<SessionTables>()
    .deleteFrom('sessions')
    .where((eb) => eb.or([eb('expires_at', '<', before), eb('ended_at', '<', before)]))
    .execute()
}

type Db = Kysely<SessionTables>

async function addRefreshToken(db: Db, sessionId: string, token: string): Promise<void> {
  await db
    .insertInto('refresh_tokens')
    .values({ hash: hashOf(token), session_id: sessionId, used_at: null, seed: null })
    .execute()
}

/** Undefined as well when it was ended, or its user's tokens were. */
async function findSession(database: Kysely<unknown>, id: string): Promise<OpenSession | undefined> {
  const row = await database
    .withTables<SessionTables>()
    .selectFrom('sessions')
    .selectAll()
    .where('id', '=', id)
    .where('ended_at', 'is', null)
    .executeTakeFirst()
  const account = row === undefined ? undefined : await createIdentityStore(database).byId(row.user_id)
  if (row === undefined || account === undefined || account.user.disabled || account.epoch !== row.epoch)
    return undefined
  return toSession(row, account)
}

const isLive = ({ seenAt, expiresAt }: OpenSession, now: number, { idleSeconds }: SessionLife) =>
  now < expiresAt && now < seenAt + idleSeconds * 1000

function toSession(row: Selectable<SessionTables['sessions']>, account: Account): OpenSession {
  const methods: unknown = JSON.parse(row.methods)
  return {
    id: row.id,
    account,
    methods: Array.isArray(methods) ? methods.map(String) : [],
    authenticatedAt: row.authenticated_at,
    createdAt: row.created_at,
    seenAt: row.seen_at,
    expiresAt: row.expires_at,
    device: { address: row.address, userAgent: row.user_agent }
  }
}
