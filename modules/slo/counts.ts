import type { Registry } from 'prom-client'
import { type Counts, LONG, NOT_COUNTED, OBJECTIVES } from './objectives.js'

const counted = new RegExp(`^(?!(?:${NOT_COUNTED})$)`)
const timed = new RegExp(`^(?!(?:${NOT_COUNTED}|${LONG})$)`)

/** What the counters of this process say now. */
export async function countRequests(registry: Registry): Promise<Counts> {
  const requests = await valuesOf(registry, 'http_requests_total')
  const durations = await valuesOf(registry, 'http_request_duration_seconds')
  const of = requests.filter(({ labels }) => counted.test(String(labels.route)))
  const availability = {
    all: sum(of),
    bad: sum(of.filter(({ labels }) => String(labels.code).startsWith('5')))
  }
  const times = durations.filter(({ labels }) => timed.test(String(labels.route)))
  const answered = sum(times.filter(({ metricName }) => metricName?.endsWith('_count')))
  const latency = (seconds: number | undefined) => {
    const within = times.filter(({ metricName, labels }) => metricName?.endsWith('_bucket') && labels.le === seconds)
    return { all: answered, bad: answered - sum(within) }
  }
  const [, slow, typical] = OBJECTIVES
  return { availability, latency: latency(slow?.seconds), 'typical-latency': latency(typical?.seconds) }
}

/** The largest value of a gauge; undefined when it is not there, or was never set. */
export async function largest(registry: Registry, name: string): Promise<number | undefined> {
  const values = (await valuesOf(registry, name)).map(({ value }) => value)
  return values.length === 0 ? undefined : Math.max(...values)
}

interface Value {
  readonly metricName?: string
  readonly labels: Readonly<Record<string, string | number | undefined>>
  readonly value: number
}

const valuesOf = async (registry: Registry, name: string): Promise<readonly Value[]> =>
  (await registry.getSingleMetric(name)?.get())?.values ?? []

const sum = (values: readonly Value[]) => values.reduce((total, { value }) => total + value, 0)
