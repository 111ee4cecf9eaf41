import { isIPv6 } from 'node:net'
import { LRUCache } from 'lru-cache'

interface Limit {
  /** Attempts at once. */
  readonly burst: number
  /** One more after each. */
  readonly seconds: number
}
/** One user from one address: a few slips, then one try a minute. */
const PAIR: Limit = { burst: 5, seconds: 60 }
/** One address over all users: spraying one password over many names. */
const ADDRESS: Limit = { burst: 50, seconds: 10 }
/** One user from all addresses: NIST SP 800-63B asks for at most 100 failures in a row. */
const USER: Limit = { burst: 50, seconds: 30 }
const KEPT_MAX = 20_000
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

export interface LoginAttempt {
  readonly tenant: string
  /** As it is compared: folded. */
  readonly username: string
  /** Of the peer, or as a trusted proxy tells it. */
  readonly address: string
}

export interface LoginThrottle {
  /** Counts an attempt before it is checked, so that many at once count too. 0, or the seconds to wait; a wait counts nothing. */
  take(attempt: LoginAttempt): number
  /** Gives back what a right password took. */
  succeeded(attempt: LoginAttempt): void
}

/**
 * Token buckets, in this process. An address from which a user signed in before is spared the limit over all addresses, so
 * strangers cannot lock that user out.
 */
export function createLoginThrottle(now: () => number = Date.now): LoginThrottle {
  const buckets = () => new LRUCache<string, Bucket>({ max: KEPT_MAX })
  const pairs = buckets()
  const addresses = buckets()
  const users = buckets()
  const familiar = new LRUCache<string, number>({ max: KEPT_MAX })

  const claimsOf = ({ tenant, username, address }: LoginAttempt): Claimed[] => {
    const network = networkOf(address)
    const user = `${tenant} ${username}`
    const pair = `${user} ${network}`
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
    take: (attempt) => {
      const claims = claimsOf(attempt).map((claim) => ({ ...claim, left: level(claim) }))
      const wait = Math.max(...claims.map(({ left, limit }) => (left >= 1 ? 0 : (1 - left) * limit.seconds)))
      // A whole second more for a rounding error would be told to the user.
      if (wait > 0) return Math.max(1, Math.ceil(wait - 0.001))
      for (const { buckets, key, left } of claims) buckets.set(key, { left: left - 1, at: now() })
      return 0
    },
    succeeded: (attempt) => {
      for (const claim of claimsOf(attempt)) {
        if (claim.buckets === addresses) addresses.set(claim.key, { left: level(claim) + 1, at: now() })
        else claim.buckets.delete(claim.key)
      }
      familiar.set(`${attempt.tenant} ${attempt.username} ${networkOf(attempt.address)}`, now())
    }
  }
}

/** One household has 2⁶⁴ IPv6 addresses: the first four groups count as one. */
export function networkOf(address: string): string {
  const [plain = ''] = address.toLowerCase().split('%', 1)
  if (!isIPv6(plain)) return plain
  const mapped = /^(?:0*:)*:?ffff:(\d+\.\d+\.\d+\.\d+)$/.exec(plain)?.[1]
  if (mapped !== undefined) return mapped
  const [head = '', tail] = plain.split('::')
  const front = head === '' ? [] : head.split(':')
  const back = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = tail === undefined ? 0 : 8 - front.length - back.length
  const groups = [...front, ...Array<string>(Math.max(0, zeros)).fill('0'), ...back]
  return `${groups
    .slice(0, 4)
    .map((group) => group.replace(/^0+(?=.)/, ''))
    .join(':')}::/64`
}
