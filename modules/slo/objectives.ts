/**
 * What the service promises, and how fast it may use up what it may miss. `alerts/slo.yml` says the same to Prometheus; a test
 * holds the two together.
 */

/** Probes, scrapes, documents and paths that do not exist: nobody's work. By route template, as Prometheus matches (whole). */
export const NOT_COUNTED = '/health.*|/metrics|/docs.*|/openapi.json|unmatched'
/** What takes long by its nature counts for availability, not for latency. */
export const LONG = '.*/(import|imports|export|verify|train|derive|detect-anomalies|erase|replay|test|realtime)(/.*)?'

export const PERIOD_DAYS = 30

export interface Objective {
  readonly name: 'availability' | 'latency' | 'typical-latency'
  /** Recorded by Prometheus under this name and the window. */
  readonly record: string
  /** The share of requests that may miss it. */
  readonly allowed: number
  /** Seconds within which a request is good; availability has none. */
  readonly seconds?: number
}

export const OBJECTIVES: readonly Objective[] = [
  { name: 'availability', record: 'inventory:http_error:ratio_rate', allowed: 0.0005 },
  { name: 'latency', record: 'inventory:http_slow:ratio_rate', allowed: 0.01, seconds: 0.25 },
  { name: 'typical-latency', record: 'inventory:http_over_87ms:ratio_rate', allowed: 0.05, seconds: 0.087 }
]

export const WINDOWS = {
  '5m': 300,
  '30m': 1_800,
  '1h': 3_600,
  '2h': 7_200,
  '6h': 21_600,
  '1d': 86_400,
  '3d': 259_200,
  '30d': 2_592_000
} as const
export type Window = keyof typeof WINDOWS
export const WINDOW_NAMES = Object.keys(WINDOWS).filter((name): name is Window => name in WINDOWS)

interface Burn {
  readonly objective: Objective['name']
  readonly alert: string
  readonly short: Window
  readonly long: Window
  /** How many times as fast as it may. */
  readonly factor: number
}

const burn = (objective: Objective['name'], alert: string, short: Window, long: Window, factor: number): Burn => ({
  objective,
  alert,
  short,
  long,
  factor
})

/** Both windows: the long one shows that it matters, the short one that it goes on (Google's SRE workbook, chapter 5). */
export const BURNS: readonly Burn[] = [
  burn('availability', 'HttpErrorBudgetBurnPageFast', '5m', '1h', 14.4),
  burn('availability', 'HttpErrorBudgetBurnPageSlow', '30m', '6h', 6),
  burn('availability', 'HttpErrorBudgetBurnTicketFast', '2h', '1d', 3),
  burn('availability', 'HttpErrorBudgetBurnTicketSlow', '6h', '3d', 1),
  burn('latency', 'HttpLatencyBudgetBurnPageFast', '5m', '1h', 14.4),
  burn('latency', 'HttpLatencyBudgetBurnPageSlow', '30m', '6h', 6),
  burn('latency', 'HttpLatencyBudgetBurnTicketFast', '2h', '1d', 3),
  burn('latency', 'HttpLatencyBudgetBurnTicketSlow', '6h', '3d', 1),
  burn('typical-latency', 'HttpTypicalLatencyBudgetBurn', '6h', '3d', 1)
]

/** Requests, and those of them that missed an objective. */
export interface Count {
  readonly all: number
  readonly bad: number
}
/** Of a process, so far. */
export type Counts = Readonly<Record<Objective['name'], Count>>

/** The requests between two counts. */
export const increase = (now: Counts, before: Counts | undefined, name: Objective['name']): Count => ({
  all: now[name].all - (before?.[name].all ?? 0),
  bad: now[name].bad - (before?.[name].bad ?? 0)
})

/** The share of some requests that missed it; null when there was none. */
export const badShare = ({ all, bad }: Count): number | null => (all <= 0 ? null : bad / all)

/** Alerts that these shares would raise, were they Prometheus'. A share that is not known raises none. */
export const burning = (name: Objective['name'], allowed: number, share: (window: Window) => number | null): string[] =>
  BURNS.filter(({ objective, short, long, factor }) => {
    const over = (window: Window) => (share(window) ?? 0) > factor * allowed
    return objective === name && over(short) && over(long)
  }).map(({ alert }) => alert)
