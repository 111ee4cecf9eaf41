import { randomBytes } from 'node:crypto'
import { hash, hashRaw, parseOptions, verify } from '@node-rs/argon2'
import { COMMON_PASSWORDS } from './common-passwords.js'
import { HashingBusy, PasswordRefused } from './errors.js'

/** NIST SP 800-63B Rev. 4, 3.1.1.2: length and a list of known passwords; no rule of composition, no truncation. */
const LENGTH_MIN = 8
const LENGTH_MAX = 256
/** OWASP Password Storage Cheat Sheet: argon2id (the library's default) with 19 MiB, two passes, one lane. */
const COST = { memoryCost: 19_456, timeCost: 2, parallelism: 1 } as const
/** Each takes 19 MiB and a thread of the pool that file access shares, so a flood of sign-ins waits in line. */
const CONCURRENT_MAX = 2
const WAITING_MAX = 100

/** The same text however it was typed: composed and decomposed accents are one password. */
const normalize = (password: string): string => password.normalize('NFC')
const fold = (text: string): string => text.normalize('NFKC').toLowerCase()

/** @throws PasswordRefused that names the reason: `too-short`, `too-long`, `not-text`, `common` or `user-name` */
export function checkPassword(password: string, { username }: { username: string }): void {
  const reason = refusal(normalize(password), username)
  if (reason !== undefined) throw new PasswordRefused({ reason, minimumLength: LENGTH_MIN, maximumLength: LENGTH_MAX })
}

function refusal(password: string, username: string): string | undefined {
  const length = [...password].length
  if (length < LENGTH_MIN) return 'too-short'
  if (length > LENGTH_MAX) return 'too-long'
  // Half a character is replaced when it becomes bytes, so that unlike passwords would be alike.
  if (/\p{Surrogate}/u.test(password)) return 'not-text'
  const folded = fold(password)
  if (COMMON_PASSWORDS.has(folded) || new Set(folded).size === 1) return 'common'
  return folded === fold(username) ? 'user-name' : undefined
}

export interface PasswordHasher {
  /** An argon2id hash in the PHC format. @throws HashingBusy */
  hash(password: string): Promise<string>
  /** Takes as long for a user that does not exist (`stored` undefined) as for a wrong password. @throws HashingBusy */
  verify(stored: string | undefined, password: string): Promise<boolean>
  /** Whether `stored` was made with a lower cost than today's. */
  isOutdated(stored: string): boolean
  /** The same text for the same password and salt, as dear to guess from as a hash. @throws HashingBusy */
  fingerprint(password: string, salt: Uint8Array): Promise<string>
}

/** @param observe is told the seconds that each call took, waiting included */
export function createPasswordHasher(observe: (seconds: number) => void = () => {}): PasswordHasher {
  const inTurn = queue(observe)
  let dummy: Promise<string> | undefined
  return {
    hash: (password) => inTurn(() => hash(normalize(password), COST)),
    verify: (stored, password) =>
      inTurn(async () => {
        dummy ??= hash(randomBytes(32), COST)
        const matches = await verify(stored ?? (await dummy), normalize(password))
        return matches && stored !== undefined
      }),
    isOutdated: (stored) => {
      const { memoryCost, timeCost } = parseOptions(stored)
      return memoryCost < COST.memoryCost || timeCost < COST.timeCost
    },
    fingerprint: async (password, salt) =>
      (await inTurn(() => hashRaw(normalize(password), { ...COST, salt }))).toString('base64url')
  }
}

function queue(observe: (seconds: number) => void) {
  const waiting: (() => void)[] = []
  let running = 0
  return async <R>(work: () => Promise<R>): Promise<R> => {
    const startedAt = performance.now()
    if (running >= CONCURRENT_MAX) {
      if (waiting.length >= WAITING_MAX) throw new HashingBusy({ retryAfterSeconds: 2 })
      await new Promise<void>((resolve) => waiting.push(resolve))
    } else running++
    try {
      return await work()
    } finally {
      // The place goes to the next in line; nobody else can take it in between.
      const next = waiting.shift()
      if (next === undefined) running--
      else next()
      observe((performance.now() - startedAt) / 1000)
    }
  }
}
