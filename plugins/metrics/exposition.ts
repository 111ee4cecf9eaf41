import { type Metric, type OpenMetricsContentType, Registry } from 'prom-client'

/** A registry, whatever its format: that is not asked here. */
type Told = Pick<Registry, 'getMetricsAsArray' | 'getSingleMetric'>

/**
 * The metrics of a registry as Prometheus reads them. prom-client's own writer takes three times the time, once for each series looks again for
 * what has to be escaped, and keeps the format with the registry: told in the other one, a counter would lose the end of its name for good.
 */
export async function exposition(registry: Told, openMetrics: boolean): Promise<string> {
  const metrics = registry.getMetricsAsArray().flatMap(({ name }) => registry.getSingleMetric(name) ?? [])
  const families = await Promise.all(metrics.map((metric) => metric.get()))
  const text = families.map((family) => written(family, openMetrics)).join('')
  return openMetrics ? `${text}# EOF\n` : text
}

export const expositionType = (openMetrics: boolean): string =>
  openMetrics ? Registry.OPENMETRICS_CONTENT_TYPE : Registry.PROMETHEUS_CONTENT_TYPE

type Family = Awaited<ReturnType<Metric['get']>>

function written({ name, help, type, values }: Family, openMetrics: boolean): string {
  const counter = openMetrics && String(type) === 'counter'
  const family = counter ? name.replace(/_total$/, '') : name
  let text = `# HELP ${family} ${help.replace(/\\/g, '\\\\').replace(/\n/g, '\\n')}\n# TYPE ${family} ${type}\n`
  for (const value of values) {
    const own = 'metricName' in value ? value.metricName : undefined
    text += `${counter ? `${family}_total` : (own ?? name)}${labelled(value.labels)} ${number(value.value)}`
    if (openMetrics && 'exemplar' in value && isExemplar(value.exemplar)) {
      const { labelSet, value: observed, timestamp } = value.exemplar
      text += ` # ${labelled(labelSet) || '{}'} ${number(observed)} ${timestamp}`
    }
    text += '\n'
  }
  return text
}

/** As prom-client keeps it, and does not declare. */
interface Exemplar {
  readonly labelSet: Labels
  readonly value: number
  readonly timestamp: number
}
const isExemplar = (value: unknown): value is Exemplar => typeof value === 'object' && value !== null

type Labels = Readonly<Partial<Record<string, string | number>>>

function labelled(labels: Labels): string {
  let text = ''
  for (const name in labels) text += `${text === '' ? '{' : ','}${name}="${escaped(labels[name] ?? '')}"`
  return text === '' ? '' : `${text}}`
}

const SPECIAL = /[\\\n"]/
const escaped = (value: string | number): string | number =>
  typeof value === 'string' && SPECIAL.test(value)
    ? value.replace(/\\/g, '\\\\').replace(/\n/g, '\\n').replace(/"/g, '\\"')
    : value

const number = (value: number): string =>
  Number.isFinite(value) || Number.isNaN(value) ? `${value}` : value > 0 ? '+Inf' : '-Inf'

/** What takes exemplars has to be registered with one of these, to begin with. */
export function openRegistry(): Registry<OpenMetricsContentType> {
  const open = new Registry<OpenMetricsContentType>()
  open.setContentType(Registry.OPENMETRICS_CONTENT_TYPE)
  return open
}
