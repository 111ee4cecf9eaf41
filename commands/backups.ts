import { type Command, InvalidArgumentError, Option } from 'commander'
import type { ArchiveService } from '../plugins/archive/index.js'
import { type Config, ConfigError, loadConfig } from '../plugins/config/index.js'
import {
  follow,
  type JobView,
  jsonOption,
  quietConfig,
  record,
  tenantName,
  tenantOption,
  tenantsOf,
  theService,
  tokenFor,
  withService,
  withTenant
} from './service.js'
import { fail, type Terminal } from './terminal.js'

interface BackupOptions {
  tenant?: string
  json?: boolean
}
type RestoreOptions = BackupOptions & { at?: number; backup?: string }

/** Has the service do it here, as a job, and follows it. */
const backupJob = (
  terminal: Terminal,
  path: string,
  { tenant, json }: BackupOptions,
  told: (result: Record<string, unknown>) => string
) =>
  withService(terminal, async (service, config) => {
    if (config.backups === undefined)
      throw new ConfigError('BACKUP_URL is not set; it may be a folder, or s3://bucket/prefix')
    const authorization = `Bearer ${await tokenFor(config, 'admin', tenantName(config, tenant), 86_400)}`
    const answer = await service.inject({ method: 'POST', url: path, headers: { authorization } })
    if (answer.statusCode >= 400) fail(answer.json())
    const job = await follow(terminal, service, authorization, answer.json<JobView>())
    terminal.print(json ? JSON.stringify(job.result) : told(Object(job.result)))
  })

/** Without the service: it works when there is no database any more. */
async function withArchives(
  { env }: Terminal,
  work: (archives: ArchiveService, config: Config) => Promise<void>
): Promise<void> {
  const config = loadConfig(env)
  const archives = (await import('../plugins/archive/index.js')).archivesOf(config)
  try {
    await work(archives, config)
  } finally {
    await archives.close()
  }
}

const list = (terminal: Terminal, { tenant, json }: BackupOptions) =>
  withArchives(terminal, async (archives, config) => {
    const entries = (await archives.list(tenantName(config, tenant))).map(({ stateAt, ...entry }) => ({
      ...entry,
      stateAt: new Date(stateAt).toISOString()
    }))
    const lines = entries.map(({ stateAt, id, kind, bytes }) => `${stateAt}\t${id}\t${kind}\t${bytes}`)
    terminal.print(json ? JSON.stringify(entries) : lines.join('\n') || 'no backups')
  })

const verify = (terminal: Terminal, id: string | undefined, { tenant: named, json }: BackupOptions) =>
  withArchives(terminal, async (archives, config) => {
    const tenant = tenantName(config, named)
    const wanted = id ?? (await archives.list(tenant)).at(-1)?.id
    if (wanted === undefined) fail({ detail: 'there are no backups' })
    const found = await archives.check(tenant, wanted, { progress: (done, total) => terminal.bar(done, total) })
    terminal.endBar()
    terminal.print(
      json
        ? JSON.stringify({ backupId: wanted, ...found })
        : `${wanted}: ${found.rows} rows in ${found.parts} parts of ${found.archives} backups, all as they were written`
    )
  })

function parseMoment(text: string): number {
  const at = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)$/.test(text) ? Date.parse(text) : Number.NaN
  if (Number.isNaN(at)) throw new InvalidArgumentError('a moment with its offset, such as 2026-11-26T13:45:00Z')
  return at
}

function parseBackupId(text: string): string {
  if (!/^[0-9a-f]{12}$/.test(text))
    throw new InvalidArgumentError('an id of 12 digits as `inventory backup list` prints it')
  return text
}

async function restore(terminal: Terminal, { tenant: named, at, backup, json }: RestoreOptions): Promise<void> {
  const { restoreTenant } = await import('../plugins/archive/index.js')
  const { primaryOf } = await import('../plugins/mirror/index.js')
  const config = primaryOf(quietConfig(terminal))
  const tenant = tenantName(config, named)
  const { ledgerProof } = await import('../modules/inventory/index.js')
  const { trailProof } = await import('../modules/audit/index.js')
  // What the program's tables are is known to a service, and one on a database in memory touches nothing.
  const { build } = await theService()
  const { REDIS_URL: _none, ...alone } = config
  const service = await build({
    ...alone,
    DATABASE_URL: 'sqlite::memory:',
    TENANCY: 'single',
    databaseServers: new Map(),
    backups: undefined
  })
  await service.ready()
  const sets = tenantsOf(service).migrations()
  const restored = await restoreTenant(
    config,
    {
      ...{ tenant, sets },
      wanted: backup === undefined ? { at: at ?? Date.now() } : { id: backup },
      prove: async (copy) => [await ledgerProof(copy), await trailProof(copy)]
    },
    { progress: (done, total) => terminal.bar(done, total) }
  ).finally(() => service.close())
  terminal.endBar()
  const { id, stateAt, archives, bytes, rows, seconds, kept, proofs } = restored
  // The first start on it, and the entry in its own trail.
  await withTenant(terminal, named, (entered) =>
    record(entered, { action: 'backup.restore', object: { type: 'backup', id }, details: { rows, archives, seconds } })
  )
  const state = new Date(stateAt).toISOString()
  if (json) {
    const answer = { tenant, backupId: id, stateAt: state, archives, bytes, rows, seconds, kept, proofs }
    return terminal.print(JSON.stringify(answer))
  }
  terminal.print(`${tenant} is as it was at ${state}: ${rows} rows from ${archives} backups in ${seconds.toFixed(1)} s`)
  for (const { name, checked } of proofs) terminal.print(`${name}: ${checked} checked, all agree`)
  if (kept !== null) terminal.print(`what was there is kept as ${kept}`)
}

export function addBackups(cli: Command, terminal: Terminal): void {
  const group = cli
    .command('backup')
    .description('make a full backup of a tenant (BACKUP_URL)')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action((options: BackupOptions) =>
      backupJob(
        terminal,
        '/api/backups',
        options,
        ({ backupId, rows, bytes }) => `${backupId}: ${rows} rows, ${bytes} bytes`
      )
    )
  group
    .command('list')
    .description('the backups there are; it needs no database')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action((_options: object, command: Command) => list(terminal, command.optsWithGlobals()))
  group
    .command('verify')
    .description('read every part of a backup, and of those that it goes on from; it needs no database')
    .argument('[id]', 'the last one when left out', parseBackupId)
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action((id: string | undefined, _options: object, command: Command) =>
      verify(terminal, id, command.optsWithGlobals())
    )
  group
    .command('drill')
    .description('restore the last backup for a trial, beside the database, and say how long it took')
    .action((_options: object, command: Command) =>
      backupJob(
        terminal,
        '/api/backups/drill',
        command.optsWithGlobals(),
        ({ backupId, rows, seconds }) =>
          `${backupId}: ${rows} rows restored and proved in ${Number(seconds).toFixed(1)} s`
      )
    )
  cli
    .command('restore')
    .description(
      'put a backup in the place of a tenant’s database, SQLite or PostgreSQL, once it is proved; no service may run'
    )
    .option('--at <moment>', 'the last state that was backed up by then', parseMoment)
    .addOption(new Option('--backup <id>', 'the state of this backup').argParser(parseBackupId).conflicts('at'))
    .requiredOption('--yes', 'say that you mean it')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action((options: RestoreOptions) => restore(terminal, options))
}
