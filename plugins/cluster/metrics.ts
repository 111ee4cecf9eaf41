import { Counter, Gauge, Registry } from 'prom-client'
import { exposition } from '../metrics/exposition.js'

/** What one process says of itself, in Prometheus' or the OpenMetrics format. */
export type Exposition = (openMetrics: boolean) => Promise<string>

export interface ClusterMetrics {
  exited(): void
  /** From here on none is wanted. */
  ending(): void
  /** The text that Prometheus reads: what each worker says, and what is known of them all. */
  text(parts: ReadonlyMap<number, string>, running: number, openMetrics: boolean): Promise<string>
}

export function createClusterMetrics(wanted: number, registry: Registry = new Registry()): ClusterMetrics {
  const workers = new Gauge({
    name: 'cluster_workers',
    help: 'Processes of CLUSTER_WORKERS: wanted (0 in a drain), running, and those whose metrics are in this scrape.',
    labelNames: ['state'] as const,
    registers: [registry]
  })
  for (const state of ['wanted', 'running', 'scraped'] as const) workers.set({ state }, 0)
  const exits = new Counter({
    name: 'cluster_worker_exits_total',
    help: 'Processes of CLUSTER_WORKERS that ended without being told to, and were replaced.',
    registers: [registry]
  })
  workers.set({ state: 'wanted' }, wanted)
  return {
    exited: () => exits.inc(),
    ending: () => workers.set({ state: 'wanted' }, 0),
    text: async (parts, running, openMetrics) => {
      workers.set({ state: 'running' }, running)
      workers.set({ state: 'scraped' }, parts.size)
      return merged(parts, await exposition(registry, openMetrics), openMetrics)
    }
  }
}

/**
 * One text of many, each series with the worker that it is from. Nothing is added up: what the sum of two gauges means, only who
 * asks can know, as with two nodes.
 */
export function merged(parts: ReadonlyMap<number, string>, common: string, openMetrics: boolean): string {
  const families = new Map<string, { head: Map<string, string>; samples: string[] }>()
  const read = (text: string, label: string) => {
    let samples: string[] = []
    for (const line of text.split('\n')) {
      if (line === '' || line === '# EOF') continue
      const [, kind = '', name = ''] = /^# (\w+) (\S+)/.exec(line) ?? []
      if (kind === '') {
        samples.push(label === '' ? line : labelled(line, label))
        continue
      }
      const family = families.get(name) ?? { head: new Map(), samples: [] }
      families.set(name, family)
      if (!family.head.has(kind)) family.head.set(kind, line)
      samples = family.samples
    }
  }
  read(common, '')
  for (const [worker, text] of parts) read(text, `worker="${worker}"`)
  const lines = [...families.values()].flatMap(({ head, samples }) => [...head.values(), ...samples])
  return `${[...lines, ...(openMetrics ? ['# EOF'] : [])].join('\n')}\n`
}

const labelled = (sample: string, label: string) =>
  sample.replace(/^([\w:]+)(\{\}?)?/, (_all, name: string, open = '') =>
    open === '{' ? `${name}{${label},` : `${name}{${label}}`
  )
