export type ProblemParams = Record<string, string | number | boolean | null | readonly unknown[]>
export type Locale = 'en' | 'fr'

/** An error with a code, a status and a text in each language. The core alone turns it into an answer. */
export class Problem extends Error {
  readonly code: string
  readonly status: number
  readonly texts: Record<Locale, string>
  /** Fills the text's `{names}` and is answered as further members. */
  readonly params: ProblemParams

  constructor(code: string, status: number, texts: Record<Locale, string>, params: ProblemParams) {
    super(fill(texts.en, params))
    this.name = code
    this.code = code
    this.status = status
    this.texts = texts
    this.params = params
  }

  detail(locale: Locale): string {
    return fill(this.texts[locale], this.params)
  }
}

const fill = (text: string, params: ProblemParams) =>
  text.replace(/\{(\w+)\}/g, (whole, name: string) => (params[name] === undefined ? whole : String(params[name])))

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
