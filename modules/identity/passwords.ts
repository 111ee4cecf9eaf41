import { randomBytes } from 'node:crypto'
import { hash, hashRaw, parseOptions, verify } from '@node-rs/argon2'
import { atMost } from '../../plugins/contracts.js'
import { HashingBusy } from './errors.js'
import { normalizePassword } from './password-rules.js'

/** OWASP Password Storage Cheat Sheet: argon2id (the library's default) with 19 MiB, two passes, one lane. */
const COST = { memoryCost: 19_456, timeCost: 2, parallelism: 1 } as const
/** Each takes 19 MiB and a thread of the pool that file access shares, so a flood of sign-ins waits in line. */
const CONCURRENT_MAX = 2
const WAITING_MAX = 100
/** Stands where a hash would for an account that has no password yet; no password matches it. */
export const NO_PASSWORD = '!'

export interface PasswordHasher {
  /** An argon2id hash in the PHC format. @throws HashingBusy */
  hash(password: string): Promise<string>
  /** Takes as long without a password to match (`stored` undefined or `NO_PASSWORD`) as for a wrong one. @throws HashingBusy */
  verify(stored: string | undefined, password: string): Promise<boolean>
  /** Whether `stored` was made with a lower cost than today's. */
  isOutdated(stored: string): boolean
  /** The same text for the same password and salt, as dear to guess from as a hash. @throws HashingBusy */
  fingerprint(password: string, salt: Uint8Array): Promise<string>
}

/** @param observe is told the seconds that each call took, waiting included */
export function createPasswordHasher(observe: (seconds: number) => void = () => {}): PasswordHasher {
  const turn = atMost(CONCURRENT_MAX, { max: WAITING_MAX, refuse: () => new HashingBusy({ retryAfterSeconds: 2 }) })
  const inTurn = <R>(work: () => Promise<R>): Promise<R> => {
    const askedAt = performance.now()
    return turn(() => work().finally(() => observe((performance.now() - askedAt) / 1000)))
  }
  let dummy: Promise<string> | undefined
  return {
    hash: (password) => inTurn(() => hash(normalizePassword(password), COST)),
    verify: (stored, password) =>
      inTurn(async () => {
        const isSet = stored !== undefined && stored !== NO_PASSWORD
        dummy ??= hash(randomBytes(32), COST)
        return (await verify(isSet ? stored : await dummy, normalizePassword(password))) && isSet
      }),
    isOutdated: (stored) => {
      const { memoryCost, timeCost } = parseOptions(stored)
      return memoryCost < COST.memoryCost || timeCost < COST.timeCost
    },
    fingerprint: async (password, salt) =>
      (await inTurn(() => hashRaw(normalizePassword(password), { ...COST, salt }))).toString('base64url')
  }
}
