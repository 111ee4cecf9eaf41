import type { Detector, Kind } from './detectors.js'

export type Locale = 'en' | 'fr'

interface Explained {
  kind: Kind
  detector: Detector
  observed: number
  expected: number
  lower: number
  upper: number
  score: number
}

/** The locale of an `Accept-Language` header: French when it comes first, English otherwise. */
export const localeOf = (header: string | undefined): Locale => (/^\s*fr\b/i.test(header ?? '') ? 'fr' : 'en')

const TEXTS = {
  en: {
    spike: (o: string, e: string, bound: string) =>
      `${o} used where ${e} was expected and ${bound} would still be usual`,
    drop: (o: string, e: string, bound: string) =>
      `only ${o} used where ${e} was expected and ${bound} would still be usual`,
    sigmas: (s: string) => `${s} standard deviations from the days before`,
    weekday: (s: string) => `${s} standard deviations from the same weekday of the 13 weeks before`,
    chance: (s: string) => `as much or more happens by chance once in ${s} days`
  },
  fr: {
    spike: (o: string, e: string, bound: string) =>
      `${o} consommés pour ${e} attendus ; ${bound} serait encore habituel`,
    drop: (o: string, e: string, bound: string) =>
      `seulement ${o} consommés pour ${e} attendus ; ${bound} serait encore habituel`,
    sigmas: (s: string) => `à ${s} écarts types des jours précédents`,
    weekday: (s: string) => `à ${s} écarts types du même jour des 13 semaines précédentes`,
    chance: (s: string) => `autant ou plus n’arrive par hasard qu’un jour sur ${s}`
  }
} as const

/** Says in words what was seen, what was expected, and how unusual that is. */
export function explain(found: Explained, locale: Locale): string {
  const texts = TEXTS[locale]
  const number = (value: number, digits = 1) => value.toLocaleString(locale, { maximumFractionDigits: digits })
  const bound = found.kind === 'spike' ? found.upper : found.lower
  const what = texts[found.kind](number(found.observed), number(found.expected), number(bound))
  const how =
    found.detector === 'count-tail'
      ? texts.chance(number(10 ** Math.min(found.score, 9), 0))
      : found.detector === 'seasonal'
        ? texts.weekday(number(found.score))
        : texts.sigmas(number(found.score))
  return `${what}: ${how}.`
}
