/** Job services over real databases for test/jobs.test.ts; run by itself it is a process to be killed. */
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Registry } from 'prom-client'
import { coreMigrations } from '../migrations/core.js'
import type { Tenant } from '../plugins/contracts.js'
import { openDatabaseServer } from '../plugins/database.js'
import { UNWATCHED } from '../plugins/dialects/dialect.js'
import { TenantNotFound } from '../plugins/http/errors.js'
import { problem } from '../plugins/http/problem.js'
import { createJobs, type JobsOptions } from '../plugins/jobs/index.js'
import { migrate } from '../plugins/migrate/index.js'

const OutOfPaper = problem<{ sheets: number }>('TEST_OUT_OF_PAPER', 409, {
  en: 'Only {sheets} sheets are left.',
  fr: 'Il ne reste que {sheets} feuilles.'
})

/**
 * Short enough for a test, in the same proportions as the real ones; `STALE` only where a test is about it, since a machine that
 * stands still for so long would make a process that lives look dead.
 */
export const STALE = 1_200
export const TIMINGS = {
  heartbeat: 100,
  sweep: 200,
  workerSweep: 100,
  poll: 40,
  progress: 60,
  close: 1_500,
  redisLost: 50
}

export interface TestTenants {
  get(id: string): Promise<Tenant>
  list(): Promise<string[]>
  create(id: string): Promise<Tenant>
  /** While true, transactions fail as they do when the database is away. */
  away: boolean
  close(): Promise<void>
}

export function openTenants(databaseUrl: string): TestTenants {
  const server = openDatabaseServer({ databaseUrl, tenancy: 'multi', poolSize: 4 }, UNWATCHED)
  const opened = new Map<string, Promise<Tenant>>()
  const open = async (id: string): Promise<Tenant> => {
    if (!(await server.tenants()).includes(id)) throw new TenantNotFound({ tenant: id })
    const { dialect, db, transact, migrator } = await server.open(id)
    await migrate(migrator.db, [{ module: 'core', migrations: coreMigrations }], migrator)
    return {
      id,
      dialect,
      db,
      transact: async (work) => {
        if (tenants.away) throw new Error('connect ECONNREFUSED')
        const committed: (() => void)[] = []
        const afterCommit = (run: () => void) => void committed.push(run)
        const done = await transact((tx) =>
          work({ db: tx, publish: async () => {}, invalidate: () => {}, afterCommit, audit: () => {} })
        )
        for (const run of committed) run()
        return done
      },
      cache: { read: () => Promise.reject(new Error('jobs read no cache')) }
    }
  }
  const get = (id: string) => {
    const tenant = opened.get(id) ?? open(id)
    opened.set(id, tenant)
    tenant.catch(() => opened.delete(id))
    return tenant
  }
  const tenants: TestTenants = {
    away: false,
    get,
    list: () => server.tenants(),
    create: async (id) => {
      await server.create(id)
      return get(id)
    },
    close: () => server.close()
  }
  return tenants
}

export interface LogLine {
  level: string
  fields: object
  message: string
}

interface HarnessOptions extends Partial<JobsOptions> {
  /** A job that waits does not end here: whoever kills this process takes as long as it takes. */
  endless?: boolean
}

/** A service with a few kinds of jobs; `ran` lists the ids of the jobs that began here. */
export function openJobs(tenants: TestTenants, { endless = false, ...options }: HarnessOptions = {}) {
  const lines: LogLine[] = []
  const write = (level: string) => (fields: object, message: string) => void lines.push({ level, fields, message })
  const registry = new Registry()
  const jobs = createJobs({
    tenants,
    redisUrl: undefined,
    queueName: 'jobs',
    registry,
    log: { debug: write('debug'), info: write('info'), warn: write('warn'), error: write('error') },
    mode: 'service',
    concurrency: 4,
    node: 'node-a',
    ...options,
    timings: { ...TIMINGS, ...options.timings }
  })
  const ran: string[] = []
  jobs.define<{ a: number; b: number }>({
    kind: 'add',
    run: async ({ id, params, progress }) => {
      ran.push(id)
      progress(1, 2)
      progress(2, 2)
      return { sum: params.a + params.b }
    }
  })
  jobs.define<string>({
    kind: 'fail',
    run: async ({ id, params }) => {
      ran.push(id)
      if (params === 'problem') throw new OutOfPaper({ sheets: 3 })
      if (params === 'error') throw new Error('password=hunter2 at /etc/secret')
      if (params === 'unserialisable') return { n: 1n }
      return undefined
    }
  })
  /** Until it is aborted, or, given a number, for so many milliseconds whatever happens. */
  const wait = async ({
    id,
    params,
    signal,
    progress
  }: Parameters<Parameters<typeof jobs.define<number | null>>[0]['run']>[0]) => {
    ran.push(id)
    progress(ran.length, 100)
    if (params !== null) return sleep(endless ? 600_000 : params, 'slept')
    return sleep(60_000, 'slept', { signal })
  }
  jobs.define<number | null>({ kind: 'wait', run: wait })
  jobs.define<number | null>({ kind: 'wait-here', where: 'local', run: wait })
  jobs.define<number | null>({ kind: 'wait-even-cancelled', runsCancelled: true, run: wait })
  /** Whatever its signal says, until the test ends it. */
  const deaf: { signal: AbortSignal | undefined; end(): void } = { signal: undefined, end: () => {} }
  jobs.define<null>({
    kind: 'deaf',
    run: ({ id, signal }) => {
      ran.push(id)
      deaf.signal = signal
      return new Promise((resolve) => {
        deaf.end = () => resolve('slept')
      })
    }
  })
  return { jobs, ran, lines, registry, deaf }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , databaseUrl = '', redisUrl = '', queueName = '', dataDir] = process.argv
  const { jobs } = openJobs(openTenants(databaseUrl), {
    redisUrl: redisUrl === '' ? undefined : redisUrl,
    queueName,
    dataDir,
    endless: true,
    mode: 'worker'
  })
  await jobs.ready()
  process.stdout.write('ready\n')
}
