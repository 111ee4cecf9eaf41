import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import type { Registry } from 'prom-client'
import { createClusterMetrics } from '../plugins/cluster/metrics.js'
import { loadConfig } from '../plugins/config/index.js'
import { mirrorMetrics } from '../plugins/mirror/index.js'
import { build } from '../server.js'
import { freshDatabase, redisUrl } from '../test/services.js'

/** The metrics of the running program, as it declares them: no list of them is kept anywhere. */

export interface Family {
  readonly name: string
  readonly type: 'counter' | 'gauge' | 'histogram' | 'summary'
  readonly help: string
  /** The values that each label has before anything happened. */
  readonly labels: ReadonlyMap<string, readonly string[]>
  readonly series: number
}

export const registryOf = (app: FastifyInstance): Registry => app.getDecorator<Registry>('registry')

const TYPES = ['counter', 'gauge', 'histogram', 'summary'] as const

/** Sorted by name. */
export async function familiesOf(registry: Registry): Promise<Family[]> {
  const families = await Promise.all(
    registry.getMetricsAsArray().map(async ({ name }): Promise<Family> => {
      const metric = registry.getSingleMetric(name)
      if (metric === undefined) throw new Error(`${name} is not registered`)
      const { values, help, type: given } = await metric.get()
      const type = TYPES.find((each) => each === String(given))
      if (type === undefined) throw new Error(`${name} is of the type ${given}`)
      const labels = new Map(labelNamesOf(metric).map((label) => [label, new Set<string>()]))
      for (const { labels: pairs } of values) {
        for (const [label, value] of Object.entries(pairs)) {
          if (label === 'le' || label === 'quantile') continue
          labels.set(label, (labels.get(label) ?? new Set()).add(String(value)))
        }
      }
      const sorted = [...labels].map(([label, found]) => [label, [...found].sort()] as const)
      return { name, type, help, labels: new Map(sorted), series: values.length }
    })
  )
  return families.sort((one, other) => (one.name < other.name ? -1 : 1))
}

/** Those declared, whether or not a series has them yet. */
function labelNamesOf(metric: object): string[] {
  return 'labelNames' in metric && Array.isArray(metric.labelNames) ? metric.labelNames.map(String) : []
}

export interface Running {
  readonly sqlite: FastifyInstance
  readonly postgres: FastifyInstance
}

/** Backups are there by choice too. The key is anybody's. */
export const backups = (folder: string) => ({
  BACKUP_URL: join(folder, 'backups'),
  BACKUP_IDENTITY: 'AGE-SECRET-KEY-16SF8ZWNK2EKS4VC66T7FRLP2CE36D40LKFVVRWVTA6FH23N94NWS72QDVG'
})

/** The service on SQLite, and on PostgreSQL with Redis and a mirror, as they are before the first request. */
export async function withServices<R>(
  work: (running: Running) => Promise<R>,
  config: Record<string, string> = {}
): Promise<R> {
  const folder = mkdtempSync(join(tmpdir(), 'inventory-metrics-'))
  const database = await freshDatabase()
  const start = async (name: string, own: Record<string, string>) => {
    const app = await build(
      loadConfig({
        NODE_ENV: 'test',
        LOG_LEVEL: 'silent',
        DATA_DIR: join(folder, name),
        ...backups(folder),
        ...config,
        ...own
      })
    )
    await app.ready()
    return app
  }
  const sqlite = await start('sqlite', {})
  const postgres = await start('postgres', { DATABASE_URL: database.url, REDIS_URL: redisUrl() })
  // A mirror is there by choice; its metrics are the same whether it has anything to do or not.
  mirrorMetrics(registryOf(postgres), {
    status: () => ({ on: false, tenants: [], errors: 0, error: undefined, verified: undefined })
  })
  // These are kept by the process that watches over the others.
  createClusterMetrics(2, registryOf(postgres))
  try {
    return await work({ sqlite, postgres })
  } finally {
    await Promise.all([sqlite.close(), postgres.close()])
    await database.drop()
    rmSync(folder, { recursive: true, force: true })
  }
}
