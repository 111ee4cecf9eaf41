import {
  prepared,
  type RevocationCheck,
  type Tenant,
  type TokenClaims,
  type Transaction
} from '../../plugins/contracts.js'
import { RevocationsUnavailable } from './errors.js'

/**
 * Which tokens no longer count. The truth is a log in each tenant's database: whatever ends tokens adds a line to it in its own
 * transaction. Before a token is accepted, this process has read the log up to a moment after the request came in, so it does not
 * matter which process wrote it, and no cache can be behind. When the database cannot tell, nobody gets in (503).
 */

/** No token of a session lives longer than this; the line of its end is needed no longer either. */
export const TOKEN_LIFE_SECONDS_MAX = 86_400
const DATABASE_TIMEOUT_MILLISECONDS = 2_000
const PRUNE_EVERY_MILLISECONDS = 60_000

type TokenEndsTables = {
  token_ends_counter: { id: number; version: number }
  token_ends: {
    version: number
    kind: 'subject' | 'session' | 'token'
    key: string
    epoch: number
    expires_at: number
  }
}
/** All tokens of a subject that were signed under an epoch below; those of one session; one alone. */
type TokenEnd =
  | { readonly kind: 'subject'; readonly key: string; readonly epoch: number }
  | { readonly kind: 'session'; readonly key: string }
  | { readonly kind: 'token'; readonly key: string; readonly expiresAt: number }

interface Known {
  /** Ended sessions and tokens, with the time after which nothing can depend on them. */
  readonly ended: Map<string, number>
  /** The earliest epoch that counts, for each subject whose tokens were ended. */
  readonly epochs: Map<string, number>
  /** Up to which line the log was read. */
  version: number
  /** The database's own count of foreign commits before that; undefined until it was read once. */
  foreign: number | undefined
  /** A read that has not begun: whoever comes meanwhile may wait for it too. */
  coming: Promise<void> | undefined
  running: Promise<void>
  prunedAt: number
}

// By the open tenant: one that is dropped and made again starts anew.
const tenants = new WeakMap<Tenant, Known>()

function of(tenant: Tenant): Known {
  const found = tenants.get(tenant)
  if (found !== undefined) return found
  const fresh: Known = {
    ended: new Map(),
    epochs: new Map(),
    version: 0,
    foreign: undefined,
    coming: undefined,
    running: Promise.resolve(),
    prunedAt: 0
  }
  tenants.set(tenant, fresh)
  return fresh
}

/** Waits for the database only where another process may have written to it since it was read. */
export const isRevoked: RevocationCheck = (claims, tenant) => {
  const known = of(tenant)
  if (refuses(known, claims)) return true
  if (known.foreign !== undefined && known.foreign === foreignVersion(tenant)) return false
  return read(known, tenant).then(() => refuses(known, claims))
}

/** Undefined as well when the database is closed: then the read that follows fails, and says so. */
function foreignVersion(tenant: Tenant): number | undefined {
  try {
    return tenant.foreignVersion?.()
  } catch {
    return undefined
  }
}

/** Ends tokens with the transaction: here at its commit, elsewhere before the next request is let in. */
export async function endTokens(tx: Transaction, tenant: Tenant, end: TokenEnd): Promise<void> {
  const db = tx.db.withTables<TokenEndsTables>()
  const line = {
    kind: end.kind,
    key: end.key,
    epoch: end.kind === 'subject' ? end.epoch : 0,
    expires_at: expiryOf(end)
  }
  // The counter's row is locked until the commit, so lines become visible in the order of their versions.
  const { version } = await db
    .updateTable('token_ends_counter')
    .set(({ eb, ref }) => ({ version: eb(ref('version'), '+', 1) }))
    .where('id', '=', 1)
    .returning('version')
    .executeTakeFirstOrThrow()
  if (end.kind === 'subject')
    await db.deleteFrom('token_ends').where('kind', '=', 'subject').where('key', '=', end.key).execute()
  await db
    .insertInto('token_ends')
    .values({ version, ...line })
    .execute()
  tx.afterCommit(() => note(of(tenant), line))
}

/** A host may sign tokens of any length under an epoch, so that of a subject is kept for good: one line for each. */
function expiryOf(end: TokenEnd): number {
  if (end.kind === 'subject') return Number.MAX_SAFE_INTEGER
  return end.kind === 'token' ? end.expiresAt : Date.now() + TOKEN_LIFE_SECONDS_MAX * 1000
}

/** Forgets what no token can depend on any more. */
export async function forgetTokenEnds(tx: Transaction): Promise<void> {
  await tx.db.withTables<TokenEndsTables>().deleteFrom('token_ends').where('expires_at', '<', Date.now()).execute()
}

const refuses = ({ ended, epochs }: Known, { jti, sid, sub, epoch = 0 }: TokenClaims): boolean => {
  if (ended.has(jti) || (sid !== undefined && ended.has(sid))) return true
  const from = epochs.get(sub)
  return from !== undefined && epoch < from
}

function note({ ended, epochs }: Known, line: Omit<TokenEndsTables['token_ends'], 'version'>): void {
  if (line.kind !== 'subject') ended.set(line.key, line.expires_at)
  else if (line.epoch > (epochs.get(line.key) ?? 0)) epochs.set(line.key, line.epoch)
}

/** A read that begins after now. All requests of a moment share one, so that a busy server asks no more often than an idle one. */
function read(known: Known, tenant: Tenant): Promise<void> {
  known.coming ??= known.running.then(nextTurn).then(() => {
    known.coming = undefined
    const running = inTime(load(known, tenant))
    known.running = running.catch(() => {})
    return running
  })
  return known.coming
}

/** After the sockets of this turn were read: what arrived together is answered by one read. */
const nextTurn = () => new Promise<void>((resolve) => void setImmediate(resolve))

const readEnds = prepared<{ after: number }, TokenEndsTables['token_ends']>((db, slot) =>
  db
    .withTables<TokenEndsTables>()
    .selectFrom('token_ends')
    .select(['version', 'kind', 'key', 'epoch', 'expires_at'])
    .where('version', '>', slot('after'))
    .orderBy('version')
)

async function load(known: Known, tenant: Tenant): Promise<void> {
  const foreign = foreignVersion(tenant)
  const db = tenant.gate ?? tenant.db
  const { rows } = await db.executeQuery(readEnds(db, { after: known.version }))
  for (const line of rows) note(known, line)
  const last = rows.at(-1)
  if (last !== undefined && last.version > known.version) known.version = last.version
  known.foreign = foreign
  prune(known)
}

function prune(known: Known): void {
  const now = Date.now()
  if (now - known.prunedAt < PRUNE_EVERY_MILLISECONDS) return
  known.prunedAt = now
  for (const [key, expiresAt] of known.ended) if (expiresAt < now) known.ended.delete(key)
}

async function inTime(reading: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    const refuse = () => reject(new Error('the database did not answer in time'))
    // Where this process itself was held up, the answer may lie in the socket, which is read before an immediate and after a timer.
    timer = setTimeout(() => setImmediate(refuse), DATABASE_TIMEOUT_MILLISECONDS)
  })
  try {
    await Promise.race([reading, late])
  } catch {
    throw new RevocationsUnavailable({ retryAfterSeconds: 2 })
  } finally {
    clearTimeout(timer)
  }
}
