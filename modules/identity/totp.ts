import { createHmac, timingSafeEqual } from 'node:crypto'

/** Time-based one-time passwords (RFC 6238) of six digits with HMAC-SHA-1, which is what authenticator apps speak. */

const STEP_SECONDS = 30
const DIGITS = 6
/** RFC 4226, 4: the seed is as long as the hash. */
export const SEED_BYTES = 20
/** One step before and one after: a code counts for 30 s, and for 30 s more where the clocks differ (RFC 6238, 5.2). */
const SKEW_STEPS = 1

/** HOTP of a counter (RFC 4226, 5.3); the counter is the step of TOTP. */
export function codeAt(seed: Uint8Array, step: number, digits: number = DIGITS): string {
  const counter = Buffer.alloc(8)
  counter.writeBigUInt64BE(BigInt(step))
  const digest = createHmac('sha1', seed).update(counter).digest()
  const offset = digest.readUInt8(digest.length - 1) & 0xf
  const value = (digest.readUInt32BE(offset) & 0x7fffffff) % 10 ** digits
  return String(value).padStart(digits, '0')
}

export const stepAt = (atMilliseconds: number): number => Math.floor(atMilliseconds / 1000 / STEP_SECONDS)

/** The step whose code this is, within the skew; undefined for a wrong code. Each step is compared, whichever matches. */
export function matchingStep(seed: Uint8Array, code: string, atMilliseconds: number): number | undefined {
  const given = Buffer.from(code)
  const now = stepAt(atMilliseconds)
  let matching: number | undefined
  for (let step = now - SKEW_STEPS; step <= now + SKEW_STEPS; step++) {
    const expected = Buffer.from(codeAt(seed, step))
    if (given.length === expected.length && timingSafeEqual(given, expected)) matching ??= step
  }
  return matching
}

const BASE32 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'

/** RFC 4648 without padding: how a seed is typed into an app. */
export function base32(bytes: Uint8Array): string {
  let text = ''
  let bits = 0
  let value = 0
  for (const byte of bytes) {
    value = ((value << 8) | byte) & 0xffff
    bits += 8
    while (bits >= 5) {
      bits -= 5
      text += BASE32[(value >>> bits) & 31]
    }
  }
  return bits === 0 ? text : text + BASE32[(value << (5 - bits)) & 31]
}

/** What an app reads from a QR code (Key Uri Format of Google Authenticator). */
export function otpauthUri(seed: Uint8Array, issuer: string, account: string): string {
  const label = `${encodeURIComponent(issuer)}:${encodeURIComponent(account)}`
  const parameters = `secret=${base32(seed)}&issuer=${encodeURIComponent(issuer)}`
  return `otpauth://totp/${label}?${parameters}&algorithm=SHA1&digits=${DIGITS}&period=${STEP_SECONDS}`
}
