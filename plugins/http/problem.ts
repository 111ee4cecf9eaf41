import type { IncomingHttpHeaders } from 'node:http'

export type Locale = 'en' | 'fr'
/** A part of a text that itself differs by language. */
export type Localised = Readonly<Record<Locale, string>>
export type ProblemParams = Record<string, string | number | boolean | null | readonly unknown[] | Localised>

/** An error with a code, a status and a text in each language. The core alone turns it into an answer. */
export class Problem extends Error {
  readonly code: string
  readonly status: number
  readonly texts: Record<Locale, string>
  /** Fills the text's `{names}` and is answered as further members. */
  readonly params: ProblemParams

  constructor(code: string, status: number, texts: Record<Locale, string>, params: ProblemParams) {
    super(fill(texts.en, params, 'en'))
    this.name = code
    this.code = code
    this.status = status
    this.texts = texts
    this.params = params
  }

  /** What is answered beside the text. */
  members(locale: Locale): Record<string, unknown> {
    return Object.fromEntries(Object.entries(this.params).map(([name, value]) => [name, inLanguage(value, locale)]))
  }

  detail(locale: Locale): string {
    return fill(this.texts[locale], this.params, locale)
  }
}

const fill = (text: string, params: ProblemParams, locale: Locale) =>
  text.replace(/\{(\w+)\}/g, (whole, name: string) => {
    const value = inLanguage(params[name], locale)
    return value === undefined ? whole : String(value)
  })

const inLanguage = (value: ProblemParams[string] | undefined, locale: Locale) =>
  typeof value === 'object' && value !== null && 'en' in value ? value[locale] : value

/** Defines one coded error of a domain: `export const ItemNotFound = problem('INV_ITEM_NOT_FOUND', 404, { en, fr })`. */
export const problem = <P extends ProblemParams>(code: string, status: number, texts: Record<Locale, string>) =>
  Object.assign(
    class extends Problem {
      constructor(params: P) {
        super(code, status, texts, params)
      }
    },
    { code, status, texts }
  )

/** French when the client prefers it to English; English otherwise. */
export function localeOf(request: { headers: IncomingHttpHeaders }): Locale {
  const header = request.headers['accept-language']
  if (header === undefined) return 'en'
  let best: Locale = 'en'
  let bestWeight = 0
  for (const part of header.split(',').slice(0, 20)) {
    const [tag = '', ...params] = part.trim().split(';')
    const language = tag.split('-', 1)[0]?.toLowerCase()
    const quality = params.map((param) => /^\s*q=([\d.]+)$/.exec(param)?.[1]).find((q) => q !== undefined)
    const weight = quality === undefined ? 1 : Number(quality)
    if ((language === 'fr' || language === 'en') && weight > bestWeight) {
      best = language
      bestWeight = weight
    }
  }
  return best
}
