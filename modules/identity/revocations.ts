import type { RevocationCheck, Tenant, TokenClaims } from '../../plugins/contracts.js'
import { RevocationsUnavailable } from './errors.js'
import { createIdentityStore, type Revocations } from './store.js'

/** From this age on the database is asked again behind the requests; from the second on they wait for its answer. */
const REFRESH_AFTER_MILLISECONDS = 400
const STALE_AFTER_MILLISECONDS = 1_000
const DATABASE_TIMEOUT_MILLISECONDS = 2_000
/** Read again each time: a slow transaction commits late, and the clocks of two nodes differ. */
const OVERLAP_MILLISECONDS = 300_000
const PRUNE_EVERY_MILLISECONDS = 60_000

interface Known {
  /** Refused tokens, with the time after which they are refused anyway. */
  readonly tokens: Map<string, number>
  /** The earliest epoch that counts, for each subject whose tokens were ended. */
  readonly epochs: Map<string, number>
  /** Monotonic; when the last answer of the database was asked for. */
  asOf: number
  /** Wall clock of the same moment. */
  since: number
  prunedAt: number
  loading: Promise<void> | undefined
}

export interface RevocationList {
  readonly isRevoked: RevocationCheck
  /** What this process has just committed counts here at once. */
  tokenRevoked(tenant: Tenant, jti: string, expiresAt: number): void
  tokensEnded(tenant: Tenant, subject: string, epoch: number): void
}

/**
 * The truth is in each tenant's database. What this process knows of it was asked for at most a second ago, or the request
 * waits for the answer; so it does not matter which process wrote it. When the database cannot tell, nobody gets in (503).
 */
export function createRevocationList(): RevocationList {
  // By the open tenant: one that is dropped and made again starts anew.
  const tenants = new WeakMap<Tenant, Known>()
  const of = (tenant: Tenant): Known => {
    const found = tenants.get(tenant)
    if (found !== undefined) return found
    const asOf = Number.NEGATIVE_INFINITY
    const fresh = { tokens: new Map(), epochs: new Map(), asOf, since: 0, prunedAt: 0, loading: undefined }
    tenants.set(tenant, fresh)
    return fresh
  }
  return {
    isRevoked: (claims, tenant) => {
      const known = of(tenant)
      if (refuses(known, claims)) return true
      const age = performance.now() - known.asOf
      if (age < REFRESH_AFTER_MILLISECONDS) return false
      const loading = refresh(known, tenant)
      return age < STALE_AFTER_MILLISECONDS ? false : inTime(loading).then(() => refuses(known, claims))
    },
    tokenRevoked: (tenant, jti, expiresAt) => void of(tenant).tokens.set(jti, expiresAt),
    tokensEnded: (tenant, subject, epoch) => raise(of(tenant), subject, epoch)
  }
}

const refuses = ({ tokens, epochs }: Known, { jti, sub, epoch = 0 }: TokenClaims): boolean => {
  if (tokens.has(jti)) return true
  const from = epochs.get(sub)
  return from !== undefined && epoch < from
}

function raise({ epochs }: Known, subject: string, epoch: number): void {
  if (epoch > (epochs.get(subject) ?? 0)) epochs.set(subject, epoch)
}

function refresh(known: Known, tenant: Tenant): Promise<void> {
  if (known.loading !== undefined) return known.loading
  const loading = load(known, tenant).finally(() => {
    known.loading = undefined
  })
  // Where nobody waits for it, a failure shows as age.
  loading.catch(() => {})
  known.loading = loading
  return loading
}

async function load(known: Known, tenant: Tenant): Promise<void> {
  const asOf = performance.now()
  const now = Date.now()
  const since = known.since === 0 ? 0 : known.since - OVERLAP_MILLISECONDS
  const { tokens, subjects }: Revocations = await createIdentityStore(tenant.db).revocations(since)
  for (const { jti, expiresAt } of tokens) known.tokens.set(jti, expiresAt)
  for (const { id, epoch } of subjects) raise(known, id, epoch)
  known.asOf = asOf
  known.since = now
  if (now - known.prunedAt < PRUNE_EVERY_MILLISECONDS) return
  known.prunedAt = now
  for (const [jti, expiresAt] of known.tokens) if (expiresAt < now) known.tokens.delete(jti)
}

async function inTime(loading: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error('the database did not answer in time')), DATABASE_TIMEOUT_MILLISECONDS)
  })
  try {
    await Promise.race([loading, late])
  } catch {
    throw new RevocationsUnavailable({ retryAfterSeconds: 2 })
  } finally {
    clearTimeout(timer)
  }
}
