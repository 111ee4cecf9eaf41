import type { Artifact, Explanation } from '../../schemas/forecasting.js'
import type { Locale } from './realised.js'
import { dayNumber, mondayOnOrBefore, periodDays } from './series.js'

/** A forecast in figures and one sentence, from what its training kept. Pure. */

const WEEKDAYS: Record<Locale, readonly string[]> = {
  en: ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday'],
  fr: ['le lundi', 'le mardi', 'le mercredi', 'le jeudi', 'le vendredi', 'le samedi', 'le dimanche']
}
/** Below these a trend or a season is not worth a word. */
const TREND_PERCENT_MIN = 1
/** A slope over less is chance. */
const TREND_DAYS_MIN = 14
const STRENGTH_STRONG = 0.6
const STRENGTH_MIN = 0.2

const rounded = (value: number, decimals = 4) => Math.round(value * 10 ** decimals) / 10 ** decimals

export interface Version {
  id: string
  version: number
  artifact: Artifact
}

/** Factors from Monday to Sunday; what the series calls phase 0 is the weekday of its first day. */
function weekdayFactors({ structure, frequency, dataFrom }: Artifact): Explanation['seasonality']['weekdays'] {
  const factors = structure?.seasonalFactors
  if (factors?.length !== 7 || frequency !== 'day') return null
  const first = dayNumber(dataFrom)
  const offset = first - mondayOnOrBefore(first)
  return Array.from({ length: 7 }, (_, weekday) => ({
    weekday: weekday + 1,
    factor: rounded(factors[(weekday - offset + 7) % 7] ?? 1)
  }))
}

function changeOf(current: Version, before: Version | undefined): Explanation['change'] {
  if (before === undefined) return null
  const [now, then] = [current.artifact, before.artifact]
  const percent =
    now.meanPerDay === undefined || !then.meanPerDay
      ? null
      : rounded((100 * (now.meanPerDay - then.meanPerDay)) / then.meanPerDay, 2)
  return {
    sinceVersion: before.version,
    modelBefore: then.model,
    meanPerDayBefore: then.meanPerDay ?? null,
    percent,
    wapeBefore: then.accuracy.wape,
    newPeriods: Math.max(0, Math.round((dayNumber(now.dataTo) - dayNumber(then.dataTo)) / periodDays(now.frequency)))
  }
}

/** Figures and sentence of the version that serves, beside the one before it. */
export function explain(
  current: Version,
  before: Version | undefined,
  overridden: boolean,
  locale: Locale
): Explanation {
  const { artifact } = current
  const { structure, accuracy, baseline, frequency } = artifact
  const level = structure?.level ?? artifact.meanPerDay ?? 0
  const isTold = artifact.observations * periodDays(frequency) >= TREND_DAYS_MIN
  const trend = isTold ? (structure?.trend ?? 0) : 0
  const percentPerWeek = level > 0 ? rounded((100 * trend * (7 / periodDays(frequency))) / level, 2) : 0
  const figures = {
    itemCode: artifact.itemCode,
    frequency,
    modelId: current.id,
    version: current.version,
    model: artifact.model,
    members: artifact.members,
    servesBaseline: artifact.servesBaseline,
    overridden,
    level: rounded(level),
    trend: { perPeriod: rounded(trend, 6), percentPerWeek },
    seasonality: {
      period: structure?.period ?? null,
      strength: rounded(structure?.seasonalStrength ?? 0),
      weekdays: weekdayFactors(artifact)
    },
    demand: {
      class: artifact.demandClass,
      averageInterval: structure?.averageInterval == null ? null : rounded(structure.averageInterval),
      sizeVariation: structure?.sizeVariation == null ? null : rounded(structure.sizeVariation)
    },
    factors: artifact.factors ?? [],
    accuracy,
    baseline: { model: baseline.model, wape: baseline.wape, mase: baseline.mase },
    gainPercent:
      accuracy.wape === null || !baseline.wape
        ? null
        : rounded((100 * (baseline.wape - accuracy.wape)) / baseline.wape, 2),
    change: changeOf(current, before)
  }
  return { ...figures, sentence: sentence(figures, artifact, locale) }
}

type Figures = Omit<Explanation, 'sentence'>

const WORDS = {
  en: {
    level: (value: string, unit: string) => `About ${value} a ${unit}`,
    units: { day: 'day', week: 'week' },
    steady: 'steady',
    rising: (percent: string) => `rising by ${percent} % a week`,
    falling: (percent: string) => `falling by ${percent} % a week`,
    season: (strong: boolean) => (strong ? 'with a strong pattern' : 'with a weak pattern'),
    days: (most: string, least: string) => `, most on ${most} and least on ${least}`,
    between: '; ',
    sparse: { day: (n: string) => `, used once in ${n} days`, week: (n: string) => `, used once in ${n} weeks` },
    baseline: (model: string) => `nothing beat ${model}, which therefore serves`,
    untried: {
      'too-short': (model: string) => `the history is too short to compare models, so ${model} serves`,
      'not-applicable': (model: string) => `the model asked for does not apply to this history, so ${model} serves`,
      constant: (model: string) => `use was the same every time, so ${model} serves`,
      'all-zero': (model: string) => `nothing was used, so ${model} serves`,
      'all-missing': (model: string) => `it is not known what was used, so ${model} serves`
    },
    usual: 'what is usual serves, as nothing did better',
    serves: (model: string, count: number) => (count > 1 ? `${count} models are weighed together` : `${model} serves`),
    error: (wape: string) => `, with errors of ${wape} % of what is used`,
    gain: (percent: string, baseline: string) => `, ${percent} % less than ${baseline}`,
    closed: (days: number) => `closed on ${days} of the days to come`,
    event: (name: string, percent: string) => `${name} changes use by ${percent} %`,
    change: (percent: string) => `the forecast changed by ${percent} % since the version before`,
    leftOut: (days: string) => `${days} is so far beyond all others that it is left out as a slip`,
    overridden: 'a person’s figure is served for some days'
  },
  fr: {
    level: (value: string, unit: string) => `Environ ${value} par ${unit}`,
    units: { day: 'jour', week: 'semaine' },
    steady: 'stable',
    rising: (percent: string) => `en hausse de ${percent} % par semaine`,
    falling: (percent: string) => `en baisse de ${percent} % par semaine`,
    season: (strong: boolean) => (strong ? 'avec un rythme marqué' : 'avec un rythme faible'),
    days: (most: string, least: string) => `, le plus ${most} et le moins ${least}`,
    between: '\u202f; ',
    sparse: {
      day: (n: string) => `, utilisé une fois tous les ${n} jours`,
      week: (n: string) => `, utilisé une fois toutes les ${n} semaines`
    },
    baseline: (model: string) => `rien n’a fait mieux que ${model}, qui sert donc`,
    untried: {
      'too-short': (model: string) => `l’historique est trop court pour comparer des modèles, ${model} sert donc`,
      'not-applicable': (model: string) => `le modèle demandé ne s’applique pas à cet historique, ${model} sert donc`,
      constant: (model: string) => `la consommation a toujours été la même, ${model} sert donc`,
      'all-zero': (model: string) => `rien n’a été consommé, ${model} sert donc`,
      'all-missing': (model: string) => `on ne sait pas ce qui a été consommé, ${model} sert donc`
    },
    usual: 'l’habituel sert, car rien n’a fait mieux',
    serves: (model: string, count: number) => (count > 1 ? `${count} modèles sont combinés` : `${model} sert`),
    error: (wape: string) => `, avec des erreurs de ${wape} % de la consommation`,
    gain: (percent: string, baseline: string) => `, soit ${percent} % de moins que ${baseline}`,
    closed: (days: number) => `fermé ${days} des jours à venir`,
    event: (name: string, percent: string) => `${name} change la consommation de ${percent} %`,
    change: (percent: string) => `la prévision a changé de ${percent} % depuis la version précédente`,
    leftOut: (days: string) => `${days} dépasse tant les autres que c’est écarté comme une erreur de saisie`,
    overridden: 'le chiffre d’une personne est servi pour certains jours'
  }
} as const

function patternOf(
  { frequency, seasonality, demand }: Figures,
  locale: Locale,
  format: (value: number) => string
): string {
  const words = WORDS[locale]
  const { strength, weekdays } = seasonality
  let text = ''
  if (strength >= STRENGTH_MIN) {
    text += ` ${words.season(strength >= STRENGTH_STRONG)}`
    const ordered = [...(weekdays ?? [])].sort((a, b) => b.factor - a.factor)
    const [most, least] = [ordered[0], ordered.at(-1)]
    if (most !== undefined && least !== undefined) {
      const name = ({ weekday }: { weekday: number }) => WEEKDAYS[locale][weekday - 1] ?? ''
      text += words.days(name(most), name(least))
    }
  }
  const sparse = demand.class === 'intermittent' || demand.class === 'lumpy'
  return sparse && demand.averageInterval !== null
    ? text + words.sparse[frequency](format(demand.averageInterval))
    : text
}

const signed = (percent: number, format: (value: number) => string) => `${percent > 0 ? '+' : ''}${format(percent)}`

/** What is known of the days to come: closed days, and of what happens the strongest effect. */
function known(factors: Figures['factors'], locale: Locale, format: (value: number) => string): string[] {
  const words = WORDS[locale]
  const ahead = factors.filter(({ used, dates }) => used && dates.length > 0)
  const closed = new Set(ahead.flatMap(({ part, dates }) => (part === 'closure' ? dates : []))).size
  const [strongest] = ahead
    .filter(({ effectPercent }) => effectPercent !== null)
    .sort((a, b) => Math.abs(b.effectPercent ?? 0) - Math.abs(a.effectPercent ?? 0))
  const parts = closed > 0 ? [words.closed(closed)] : []
  if (strongest?.effectPercent != null) parts.push(words.event(strongest.name, signed(strongest.effectPercent, format)))
  return parts
}

/** Of what serves and why; where no model was worth trying nothing was beaten either. */
function whatServes({ servesBaseline, model, members }: Figures, reason: string, locale: Locale): string {
  const words = WORDS[locale]
  if (reason === 'usual-value') return words.usual
  if (!servesBaseline) return words.serves(model, members.length)
  const [, untried] = Object.entries(words.untried).find(([name]) => name === reason) ?? []
  return (untried ?? words.baseline)(model)
}

function sentence(figures: Figures, { reason, leftOut = [] }: Artifact, locale: Locale): string {
  const words = WORDS[locale]
  const numbers = new Intl.NumberFormat(locale, { maximumSignificantDigits: 3 })
  const format = (value: number) => numbers.format(value)
  const { percentPerWeek } = figures.trend
  const trend =
    Math.abs(percentPerWeek) < TREND_PERCENT_MIN
      ? words.steady
      : (percentPerWeek > 0 ? words.rising : words.falling)(format(Math.abs(percentPerWeek)))
  let second = whatServes(figures, reason, locale)
  if (figures.accuracy.wape !== null) second += words.error(format(figures.accuracy.wape))
  if (!figures.servesBaseline && figures.gainPercent !== null && figures.gainPercent > 0) {
    second += words.gain(format(figures.gainPercent), figures.baseline.model)
  }
  const parts = [
    `${words.level(format(figures.level), words.units[figures.frequency])}, ${trend}${patternOf(figures, locale, format)}`,
    second
  ]
  parts.push(...known(figures.factors, locale, format))
  if (leftOut.length > 0) parts.push(words.leftOut(leftOut.join(', ')))
  const percent = figures.change?.percent
  if (percent != null && Math.abs(percent) >= TREND_PERCENT_MIN) parts.push(words.change(signed(percent, format)))
  if (figures.overridden) parts.push(words.overridden)
  return `${parts.join(words.between)}.`
}
