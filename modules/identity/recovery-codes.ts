import { createHash, randomBytes } from 'node:crypto'

const RECOVERY_CODES = 10
const CHARACTERS = 24
const GROUP = 6
/** Crockford's base 32: no letter that is taken for another or for a digit. */
const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz'

/** 120 random bits each, so that a fast hash is enough to keep them by (ASVS 5.0, V6.5.2: at least 112). */
export function makeRecoveryCodes(): string[] {
  return Array.from({ length: RECOVERY_CODES }, () => {
    // 32 divides 256, so each character is as likely as any other.
    const text = Array.from(randomBytes(CHARACTERS), (byte) => ALPHABET[byte % ALPHABET.length]).join('')
    return text.match(new RegExp(`.{${GROUP}}`, 'g'))?.join('-') ?? text
  })
}

/** However it was typed: case, spaces and dashes do not matter, and O is 0, I and L are 1. */
export function hashRecoveryCode(code: string): string {
  const plain = code.toLowerCase().replace(/[\s-]/g, '').replaceAll('o', '0').replace(/[il]/g, '1')
  return createHash('sha256').update(plain).digest('base64url')
}
