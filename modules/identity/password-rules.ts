import { COMMON_PASSWORDS } from './common-passwords.js'
import { PasswordRefused } from './errors.js'

/**
 * NIST SP 800-63B Rev. 4, 3.1.1.2: length and a list of known passwords; no rule of composition, no truncation. Fifteen
 * characters where the password is all that is asked for, eight where a second factor is asked for too.
 */
const SOLE_LENGTH_MIN = 15
const LENGTH_MIN = 8
const BYTES_MAX = 1024
/** Part of every name list that is tried first against a service. */
const PRODUCT_WORDS = ['inventory', 'enterprise']
const CONTEXT_WORD_MIN = 3
/** A unit this short says nothing, however often it is repeated. */
const UNIT_MIN = 4
const ROWS = ['1234567890', 'abcdefghijklmnopqrstuvwxyz', 'qwertyuiopasdfghjklzxcvbnm', 'azertyuiopqsdfghjklmwxcvbn']

interface PasswordContext {
  readonly username: string
  readonly tenant: string
  /** Whether nothing but the password is asked for at a sign-in. */
  readonly isSoleFactor: boolean
}

/** The same text however it was typed: composed and decomposed accents are one password. */
export const normalizePassword = (password: string): string => password.normalize('NFC')
const fold = (text: string): string => text.normalize('NFKC').toLowerCase()

/** @throws PasswordRefused that names the reason: `too-short`, `too-long`, `not-text`, `common` or `context` */
export function checkPassword(password: string, context: PasswordContext): void {
  const minimumLength = context.isSoleFactor ? SOLE_LENGTH_MIN : LENGTH_MIN
  const reason = refusal(normalizePassword(password), minimumLength, context)
  if (reason !== undefined) throw new PasswordRefused({ reason, minimumLength, maximumBytes: BYTES_MAX })
}

/** Whether a password that was right when it was set is too short for what it has to do alone today. */
export const isTooShortAlone = (password: string): boolean => [...normalizePassword(password)].length < SOLE_LENGTH_MIN

function refusal(password: string, minimumLength: number, context: PasswordContext): string | undefined {
  if ([...password].length < minimumLength) return 'too-short'
  if (Buffer.byteLength(password) > BYTES_MAX) return 'too-long'
  // Half a character is replaced when it becomes bytes, so that unlike passwords would be alike.
  if (/\p{Surrogate}/u.test(password)) return 'not-text'
  const folded = fold(password)
  if (isCommon(folded)) return 'common'
  const rest = [context.username, context.tenant, ...PRODUCT_WORDS]
    .map(fold)
    .filter((word) => word.length >= CONTEXT_WORD_MIN)
    .sort((a, b) => b.length - a.length)
    .reduce((text, word) => text.replaceAll(word, ''), folded)
  return rest === folded || [...rest].length >= LENGTH_MIN ? undefined : 'context'
}

/** In the list, or made of one of its words, of one short unit repeated, or of a row of keys. */
function isCommon(folded: string): boolean {
  const unit = repeatedUnit(folded)
  // What is put around a word to reach a length: digits and signs.
  const core = unit.replace(/^[^\p{L}]+|[^\p{L}]+$/gu, '')
  if ([...unit].length < UNIT_MIN || [folded, unit, core].some((each) => COMMON_PASSWORDS.has(each))) return true
  return ROWS.some((row) => {
    const run = row.repeat(Math.ceil(folded.length / row.length) + 1)
    return run.includes(folded) || run.includes([...folded].reverse().join(''))
  })
}

/** The shortest text that the whole is a repetition of; the whole where there is none. */
function repeatedUnit(text: string): string {
  const period = (text + text).indexOf(text, 1)
  return text.slice(0, period)
}
