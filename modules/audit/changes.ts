/** Pure: what an entry keeps of an object before and after. */

/** Whatever a field so named holds is never kept. */
const SECRET =
  /pass(?:word|phrase|wd|code)|secret|token|(?:^|[a-z_])hash|seed|salt|credential|authorization|cookie|(?:api|private|signing|secret)_?key|recovery|otp|jwt|pin$/i
const CONCEALED = '[concealed]'
/** In characters of JSON: an entry is a note of what changed, not a copy of it. */
const VALUE_MAX = 1_000
const FIELDS_MAX = 60
/** Differs with every change and tells nothing. */
const UNTOLD = new Set(['updatedAt'])

export type Changes = Record<string, { from: unknown; to: unknown }>

/** The fields that differ; null when none does. Fields of `personal` are named without what they hold. */
export function changesOf(
  before: object | null | undefined,
  after: object | null | undefined,
  personal: readonly string[] = []
): Changes | null {
  const [from, to] = [fieldsOf(before), fieldsOf(after)]
  const names = [...new Set([...from.keys(), ...to.keys()])].filter((name) => !UNTOLD.has(name))
  const changes: Changes = {}
  let count = 0
  for (const name of names) {
    const [old, fresh] = [from.get(name), to.get(name)]
    if (JSON.stringify(old ?? null) === JSON.stringify(fresh ?? null) || ++count > FIELDS_MAX) continue
    const hidden = personal.includes(name)
    changes[name] = { from: kept(name, old, hidden), to: kept(name, fresh, hidden) }
  }
  return count === 0 ? null : changes
}

const fieldsOf = (object: object | null | undefined): Map<string, unknown> => new Map(Object.entries(object ?? {}))

function kept(name: string, value: unknown, hidden: boolean): unknown {
  if (value === undefined || value === null) return null
  if (hidden || SECRET.test(name)) return CONCEALED
  const json = JSON.stringify(value, concealing)
  if (json === undefined) return null
  return json.length > VALUE_MAX ? `[${json.length} characters]` : JSON.parse(json)
}

/** As JSON, with what is named like a secret concealed at every depth. */
export const concealed = (value: object): string => JSON.stringify(value, concealing)

const concealing = (name: string, value: unknown): unknown =>
  SECRET.test(name) && value !== null && value !== undefined ? CONCEALED : value

const PLAIN = /^[\x20-\x7e]*$/
/** One line of bounded length that both databases hold alike. */
export function clean(text: string, length: number): string {
  if (text.length <= length && PLAIN.test(text)) return text
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it takes out
  const line = text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, '�')
  return Buffer.from(line.slice(0, length)).toString()
}
