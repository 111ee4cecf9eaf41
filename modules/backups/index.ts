import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Registry } from 'prom-client'
import { backupsMigrations } from '../../migrations/backups.js'
import type {
  Answers,
  ArchiveProof,
  Archives,
  EnterModule,
  Jobs,
  Migrations,
  ModuleOptions,
  Periodic,
  TenantCopy
} from '../../plugins/contracts.js'
import { createBackupMetrics } from './metrics.js'
import type { Retention } from './retention.js'
import { routes } from './routes.js'
import { createRuns } from './runs.js'
import { createSchedule, DRILL_JOB, FULL_JOB, type ScheduleOptions, VERIFY_JOB } from './schedule.js'

export interface BackupsOptions extends ModuleOptions {
  /** What a restored copy is proved by, such as the ledger's balances. */
  readonly proofs: readonly ((copy: TenantCopy) => Promise<ArchiveProof>)[]
  readonly retention?: Retention
  readonly schedule?: ScheduleOptions
  /** The clock, milliseconds since 1970. */
  readonly now?: () => number
}

const RETENTION: Retention = { increments: 7, daily: 14, weekly: 8, monthly: 12 }
const SCHEDULE: ScheduleOptions = { fullAtMinute: 90, incrementSeconds: 45, drillDays: 7 }
const LOOK_SECONDS = 60

/** Copies of all data outside of the database, made by schedule, checked, and restored for a trial. */
async function backups(app: FastifyInstance, options: BackupsOptions): Promise<void> {
  app.getDecorator<EnterModule>('enterModule')(app, options)
  const tables = ['backup_archives', 'backup_chain', 'backup_turns', 'backup_checks']
  app.getDecorator<Migrations>('migrations').add({
    module: 'backups',
    migrations: backupsMigrations,
    portability: { notCopied: tables }
  })
  const archives = app.getDecorator<Archives | null>('archives')
  const jobs = app.getDecorator<Jobs>('jobs')
  const answers = app.getDecorator<Answers>('answers')
  if (archives !== null) run(app, archives, jobs, options)
  await app.register(routes, { answers, jobs, archives })
}

function run(app: FastifyInstance, archives: Archives, jobs: Jobs, options: BackupsOptions): void {
  const { proofs, retention = RETENTION, schedule = SCHEDULE, now = Date.now } = options
  const { increments, readable } = archives
  const drills = readable && schedule.drillDays > 0
  const metrics = createBackupMetrics(app.getDecorator<Registry>('registry'), { increments, drills })
  const prove = async (copy: TenantCopy) => {
    const found: ArchiveProof[] = []
    for (const proof of proofs) found.push(await proof(copy))
    return found
  }
  const runs = createRuns({ archives, retention, metrics, prove, log: app.log, now })
  const { where } = archives
  jobs.define<unknown>({ kind: FULL_JOB, where, run: ({ tenant, ...rest }) => runs.full(tenant, rest) })
  jobs.define<unknown>({ kind: DRILL_JOB, where, run: ({ tenant, ...rest }) => runs.drill(tenant, rest) })
  jobs.define<{ id: string }>({
    kind: VERIFY_JOB,
    where,
    run: ({ tenant, params, ...rest }) => runs.verify(tenant, params.id, rest)
  })
  const incrementSeconds = increments ? schedule.incrementSeconds : 0
  const look = createSchedule({ archives, jobs, runs, metrics, now, ...schedule, incrementSeconds })
  const seconds = incrementSeconds === 0 ? LOOK_SECONDS : Math.min(LOOK_SECONDS, incrementSeconds)
  app.getDecorator<Periodic>('periodic').every(seconds, 'backups', look)
}

export { backupsMigrations as migrations } from '../../migrations/backups.js'
export { expired, type Retention } from './retention.js'

export default fp(backups, {
  name: 'inventory-enterprise/backups',
  fastify: '5.x',
  encapsulate: true,
  decorators: {
    fastify: ['enterModule', 'answers', 'registry', 'migrations', 'periodic', 'jobs', 'archives'],
    request: ['tenant', 'principal']
  }
})
