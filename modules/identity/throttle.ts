import { createHash } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { networkOf, type SharedStore } from '../../plugins/contracts.js'
import type { Exhausted } from './metrics.js'

interface Limit {
  readonly name: Exhausted
  /** Attempts at once. */
  readonly burst: number
  /** One more after each. */
  readonly seconds: number
}
/** One user from one address: a few slips, then one try a minute. */
const PAIR: Limit = { name: 'pair', burst: 5, seconds: 60 }
/** One address over all users: spraying one password over many names. */
const ADDRESS: Limit = { name: 'address', burst: 50, seconds: 10 }
/** One user from all addresses: NIST SP 800-63B asks for at most 100 failures in a row. */
const USER: Limit = { name: 'user', burst: 50, seconds: 30 }
/** As a size, for `max` would have room for all of them set aside at the start. */
const KEPT = { maxSize: 20_000, sizeCalculation: () => 1 }
const FAMILIAR_MILLISECONDS = 30 * 86_400_000

interface Bucket {
  left: number
  at: number
}
interface Claimed {
  readonly buckets: LRUCache<string, Bucket>
  readonly key: string
  readonly limit: Limit
}

interface LoginAttempt {
  readonly tenant: string
  /** As it is compared: folded. */
  readonly username: string
  /** Of the peer, or as a trusted proxy tells it. */
  readonly address: string
}

interface ThrottleOptions {
  readonly now?: () => number
  /** Told when the last attempt of a limit is taken, so that the next one waits. */
  readonly exhausted?: (limit: Exhausted) => void
}

export interface LoginThrottle {
  /** Counts an attempt before it is checked, so that many at once count too. 0, or the seconds to wait; a wait counts nothing. */
  take(attempt: LoginAttempt): Promise<number>
  /** Gives back what a right password took. */
  succeeded(attempt: LoginAttempt): Promise<void>
}

/**
 * Token buckets: in this process, and with Redis over all of them, whichever is stricter; so an outage of Redis opens nothing that
 * this process has closed. An address from which a user signed in before is spared the limit over all addresses, so strangers
 * cannot lock that user out.
 */
export function createLoginThrottle(
  shared: SharedStore | null = null,
  { now = Date.now, exhausted = () => {} }: ThrottleOptions = {}
): LoginThrottle {
  const own = createBuckets(now, exhausted)
  return {
    take: async (attempt) => {
      const wait = own.take(attempt)
      if (wait > 0 || shared === null) return wholeSeconds(wait)
      const sharedWait = await takeShared(shared, attempt)
      if (sharedWait > 0) own.giveBack(attempt)
      return wholeSeconds(sharedWait)
    },
    succeeded: async (attempt) => {
      own.succeeded(attempt)
      if (shared !== null) await succeedShared(shared, attempt)
    }
  }
}

// A whole second more for a rounding error would be told to the user.
const wholeSeconds = (wait: number) => (wait > 0 ? Math.max(1, Math.ceil(wait - 0.001)) : 0)

function createBuckets(now: () => number, exhausted: (limit: Exhausted) => void) {
  const buckets = () => new LRUCache<string, Bucket>(KEPT)
  const pairs = buckets()
  const addresses = buckets()
  const users = buckets()
  const familiar = new LRUCache<string, number>(KEPT)

  const claimsOf = (attempt: LoginAttempt): Claimed[] => {
    const { pair, user, network } = namesOf(attempt)
    const claims = [
      { buckets: pairs, key: pair, limit: PAIR },
      { buckets: addresses, key: network, limit: ADDRESS }
    ]
    const known = now() - (familiar.get(pair) ?? Number.NEGATIVE_INFINITY) < FAMILIAR_MILLISECONDS
    return known ? claims : [...claims, { buckets: users, key: user, limit: USER }]
  }
  const level = ({ buckets, key, limit }: Claimed): number => {
    const bucket = buckets.get(key)
    if (bucket === undefined) return limit.burst
    return Math.min(limit.burst, bucket.left + Math.max(0, now() - bucket.at) / 1000 / limit.seconds)
  }

  return {
    /** 0, or the seconds to wait. */
    take: (attempt: LoginAttempt): number => {
      const claims = claimsOf(attempt).map((claim) => ({ ...claim, left: level(claim) }))
      const wait = Math.max(...claims.map(({ left, limit }) => (left >= 1 ? 0 : (1 - left) * limit.seconds)))
      if (wait > 0) return wait
      for (const { buckets, key, left, limit } of claims) {
        buckets.set(key, { left: left - 1, at: now() })
        if (left < 2) exhausted(limit.name)
      }
      return 0
    },
    giveBack: (attempt: LoginAttempt): void => {
      for (const claim of claimsOf(attempt)) claim.buckets.set(claim.key, { left: level(claim) + 1, at: now() })
    },
    succeeded: (attempt: LoginAttempt): void => {
      for (const claim of claimsOf(attempt)) {
        if (claim.buckets === addresses) addresses.set(claim.key, { left: level(claim) + 1, at: now() })
        else claim.buckets.delete(claim.key)
      }
      familiar.set(namesOf(attempt).pair, now())
    }
  }
}

function namesOf({ tenant, username, address }: LoginAttempt): { pair: string; user: string; network: string } {
  const network = networkOf(address)
  const user = `${tenant} ${username}`
  return { pair: `${user} ${network}`, user, network }
}

/** `KEYS`: pair, address, user, familiar; `ARGV`: burst and seconds of the first three. The clock is Redis's own. */
const TAKE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claims = redis.call('EXISTS', KEYS[4]) == 1 and 2 or 3
local left, wait = {}, 0
for i = 1, claims do
  local burst, seconds = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local bucket = redis.call('HMGET', KEYS[i], 'left', 'at')
  left[i] = burst
  if bucket[1] then left[i] = math.min(burst, bucket[1] + math.max(0, now - bucket[2]) / 1000 / seconds) end
  if left[i] < 1 then wait = math.max(wait, (1 - left[i]) * seconds) end
end
if wait > 0 then return tostring(wait) end
for i = 1, claims do
  redis.call('HSET', KEYS[i], 'left', left[i] - 1, 'at', now)
  redis.call('PEXPIRE', KEYS[i], ARGV[2 * i - 1] * ARGV[2 * i] * 1000)
end
return '0'`

const SUCCEED = `
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HINCRBYFLOAT', KEYS[2], 'left', 1) end
redis.call('DEL', KEYS[1])
if redis.call('EXISTS', KEYS[4]) == 0 then redis.call('DEL', KEYS[3]) end
redis.call('SET', KEYS[4], '1', 'PX', ARGV[1])`

/** Names of users and addresses are nobody's business who reads Redis. */
function sharedKeys(prefix: string, attempt: LoginAttempt): [string, string, string, string] {
  const { pair, user, network } = namesOf(attempt)
  const key = (kind: string, name: string) =>
    `${prefix}login:${kind}:${createHash('sha256').update(name).digest('base64url').slice(0, 22)}`
  return [key('pair', pair), key('address', network), key('user', user), key('familiar', pair)]
}

/** 0 too when Redis does not answer. */
async function takeShared(shared: SharedStore, attempt: LoginAttempt): Promise<number> {
  const limits = [PAIR, ADDRESS, USER].flatMap(({ burst, seconds }) => [burst, seconds])
  return Number(
    (await shared.call((redis) => redis.eval(TAKE, 4, ...sharedKeys(shared.prefix, attempt), ...limits))) ?? 0
  )
}

async function succeedShared(shared: SharedStore, attempt: LoginAttempt): Promise<void> {
  await shared.call((redis) => redis.eval(SUCCEED, 4, ...sharedKeys(shared.prefix, attempt), FAMILIAR_MILLISECONDS))
}
