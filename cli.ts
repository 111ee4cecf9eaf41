#!/usr/bin/env node
import { randomUUID } from 'node:crypto'
import { appendFileSync, createReadStream, existsSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import Fastify, { type FastifyInstance } from 'fastify'
import type { ArchiveService } from './plugins/archive.js'
import { createTokens } from './plugins/auth.js'
import { type Config, ConfigError, loadConfig } from './plugins/config.js'
import { type AuditEntry, Problem, type Tenant } from './plugins/contracts.js'
import type { Tenants } from './plugins/core.js'
import type { MirrorFiles, MirrorOrder, MirrorOutcome } from './plugins/mirror.js'
import { VERSION } from './plugins/version.js'

/** The operator's commands. Exit 0: done, 1: failed, 2: misused. */

// The service takes a second to load, so only the commands that need it do.
const theService = () => import('./server.js')
const identity = () => import('./modules/identity/index.js')

const ROLES = ['viewer', 'staff', 'manager', 'admin'] as const
const POLL_MILLISECONDS = 200

const print = (line: string): void => void process.stdout.write(`${line}\n`)
const note = (line: string): void => void process.stderr.write(`${line}\n`)

/**
 * Quiet unless something is wrong: a command's output is for the person or the program that asked. And without the documents, which
 * only who listens can show.
 */
const quiet = (config: Config): Config => ({
  ...config,
  LOG_LEVEL: process.env.LOG_LEVEL ? config.LOG_LEVEL : 'error',
  DOCS: 'off'
})

/** Runs with the whole service ready but not listening, and closes it. */
async function withService<R>(
  work: (service: FastifyInstance, config: Config) => Promise<R>,
  mode: 'service' | 'worker' = 'service'
): Promise<R> {
  const config = quiet(loadConfig(process.env))
  const { build } = await theService()
  const service = await build(config, mode)
  try {
    await service.ready()
    return await work(service, config)
  } finally {
    await service.close()
  }
}

const tenantsOf = (service: FastifyInstance) => service.getDecorator<Tenants>('tenants')

function tenantName({ TENANCY }: Config, named: string | undefined): string {
  if (named !== undefined) return named
  if (TENANCY === 'multi') throw new InvalidArgumentError('with TENANCY=multi name a tenant: --tenant <name>')
  return 'main'
}

const withTenant = (named: string | undefined, work: (tenant: Tenant, config: Config) => Promise<void>) =>
  withService(async (service, config) => work(await tenantsOf(service).get(tenantName(config, named)), config))

/** In the tenant's audit trail, as done at the console. */
const record = async (tenant: Tenant, entry: AuditEntry) => (await identity()).recordAtConsole(tenant, entry)

async function tokenFor(
  config: Config,
  role: (typeof ROLES)[number],
  tenant: string,
  ttlSeconds: number
): Promise<string> {
  const signer = Fastify()
  const tokens = createTokens(signer, { keys: config.jwtKeys })
  await signer.ready()
  const { issueToken } = await identity()
  return issueToken(tokens, { role, tenant, ttlSeconds })
}

const UNITS: Record<string, number> = { s: 1, m: 60, h: 3600, d: 86_400 }
function parseTtl(text: string): number {
  const [, count, unit = 's'] = /^(\d{1,7})([smhd])?$/.exec(text) ?? []
  const seconds = Number(count) * (UNITS[unit] ?? Number.NaN)
  if (!Number.isInteger(seconds) || seconds < 1 || seconds > 366 * 86_400) {
    throw new InvalidArgumentError('a time from 1s to 366d, such as 30m, 1h or 7d')
  }
  return seconds
}

async function readPassword(): Promise<string> {
  if (process.env.INVENTORY_PASSWORD !== undefined) return process.env.INVENTORY_PASSWORD
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal: false })
  note('Password (one line on standard input):')
  for await (const line of lines) {
    return line
  }
  throw new InvalidArgumentError('give the password as one line on standard input, or in INVENTORY_PASSWORD')
}

interface JobView {
  id: string
  status: string
  progress: { done: number; total: number }
  result?: unknown
  error?: { code: string; message: string }
}

/** Follows a job with a bar on standard error until it ends. */
async function follow(service: FastifyInstance, authorization: string, job: JobView): Promise<JobView> {
  for (let view = job; ; ) {
    bar(view.progress.done, view.progress.total)
    if (view.status !== 'queued' && view.status !== 'running') {
      if (process.stderr.isTTY) note('')
      return view
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS))
    view = (await service.inject({ url: `/api/jobs/${job.id}`, headers: { authorization } })).json<JobView>()
  }
}

interface TransferOptions {
  tenant?: string
  map?: string
  type?: string
  dryRun?: boolean
  format?: string
}

async function importFile(kind: string, file: string, { tenant, map, type, dryRun }: TransferOptions): Promise<void> {
  if (!existsSync(file)) throw new InvalidArgumentError(`there is no file ${file}`)
  await withService(async (service, config) => {
    const authorization = `Bearer ${await tokenFor(config, 'admin', tenantName(config, tenant), 86_400)}`
    const query: Record<string, string> = {}
    if (map !== undefined) query.map = map
    if (type !== undefined) query.type = type
    if (dryRun === true) query.dryRun = 'true'
    const answer = await service.inject({
      method: 'POST',
      url: `/api/import/${encodeURIComponent(kind)}`,
      query,
      headers: {
        authorization,
        'accept-language': consoleLanguage(),
        'content-type': /\.(nd)?jsonl?(\.gz)?$/.test(file) ? 'application/x-ndjson' : 'text/csv'
      },
      payload: createReadStream(file)
    })
    if (answer.statusCode >= 400) fail(answer.json())
    if (answer.statusCode === 200) return print(JSON.stringify(answer.json(), null, 2))
    const job = await follow(service, authorization, answer.json<JobView>())
    if (job.status !== 'succeeded') fail({ detail: job.error?.message ?? `the job is ${job.status}` })
    print(JSON.stringify(job.result, null, 2))
  })
}

/** Of the terminal, as POSIX has it: `fr_FR.UTF-8` is French. */
const consoleLanguage = () =>
  (process.env.LC_ALL || process.env.LC_MESSAGES || process.env.LANG || 'en').split(/[_.@]/, 1)[0] ?? 'en'

/** Ends the command with what the service answered. */
function fail({ detail, errors = [] }: { detail: string; errors?: { path: string; message: string }[] }): never {
  throw new CommandFailed([detail, ...errors.map(({ path, message }) => `  ${path}: ${message}`)].join('\n'))
}
class CommandFailed extends Error {}

async function exportFile(kind: string, { tenant, format = 'csv' }: TransferOptions): Promise<void> {
  await withService(async (service, config) => {
    const authorization = `Bearer ${await tokenFor(config, 'admin', tenantName(config, tenant), 3600)}`
    const answer = await service.inject({
      url: `/api/export/${encodeURIComponent(kind)}`,
      query: { format },
      headers: { authorization },
      payloadAsStream: true
    })
    if (answer.statusCode >= 400) fail({ detail: `the service answered ${answer.statusCode}` })
    for await (const chunk of answer.stream()) process.stdout.write(chunk)
  })
}

function program(): Command {
  const cli = new Command('inventory').description("Inventory Enterprise: the operator's commands").version(VERSION)
  cli.exitOverride().configureHelp({ showGlobalOptions: true })
  const tenantOption = () => new Option('--tenant <name>', 'which tenant (TENANCY=multi)')
  const jsonOption = () => new Option('--json', 'print JSON')

  cli
    .command('serve')
    .description('run the service')
    .action(async () => (await theService()).serve(loadConfig(process.env)))
  cli
    .command('demo')
    .description('load the bundled data, forecast, and serve')
    .option('--no-serve', 'end after the report instead of serving')
    .action(async ({ serve: keepServing }: { serve: boolean }) => {
      const { runDemo } = await import('./demo/demo.js')
      await runDemo(process.env, keepServing)
    })
  cli
    .command('worker')
    .description('take background work from the queue and serve nothing')
    .action(() =>
      withService(async () => {
        note('worker: waiting for work; stop it with Ctrl-C or SIGTERM')
        await new Promise<void>((resolve) => {
          for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve())
        })
      }, 'worker')
    )
  cli
    .command('migrate')
    .description('bring the database of every tenant up to date')
    .addOption(jsonOption())
    .action(({ json }: { json?: boolean }) =>
      withService(async (service) => {
        const tenants = await tenantsOf(service).list()
        print(json ? JSON.stringify({ tenants }) : `up to date: ${tenants.join(', ') || 'no tenant yet'}`)
      })
    )
  cli
    .command('token')
    .description('print one bearer token and nothing else; it works before any user exists')
    .addOption(new Option('--role <role>', 'what it may do').choices([...ROLES]).makeOptionMandatory())
    .addOption(tenantOption())
    .option('--ttl <time>', 'how long it counts, such as 30m, 1h, 7d', parseTtl, 3600)
    .action(async ({ role, tenant, ttl }: { role: (typeof ROLES)[number]; tenant?: string; ttl: number }) => {
      await withTenant(tenant, (entered) =>
        record(entered, { action: 'token.print', details: { role, ttlSeconds: ttl } })
      )
      const config = loadConfig(process.env)
      print(await tokenFor(config, role, tenantName(config, tenant), ttl))
    })
  addUsers(cli, tenantOption, jsonOption)
  addTenants(cli, jsonOption)
  addMirror(cli, jsonOption)
  addBackups(cli, { tenantOption, jsonOption })
  cli
    .command('verify')
    .description('recompute every balance from the ledger, and the chain of the audit trail, and compare')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action(({ tenant: named, json }: { tenant?: string; json?: boolean }) =>
      withTenant(named, async (tenant) => {
        const { verifyLedger } = await import('./modules/inventory/index.js')
        const { verifyTrail } = await import('./modules/audit/index.js')
        const [ledger, trail] = [await verifyLedger(tenant), await verifyTrail(tenant)]
        const lines = [
          `${ledger.transactions} transactions, ${ledger.moves} moves: ${ledger.ok ? 'every balance agrees' : 'MISMATCHES'}`,
          `${trail.entries} audit entries, ${trail.batches} batches: ${trail.ok ? 'the chain holds' : 'MISMATCHES'}`
        ]
        print(json ? JSON.stringify({ ...ledger, ok: ledger.ok && trail.ok, audit: trail }) : lines.join('\n'))
        const found = [
          ...ledger.mismatches.map(
            ({ itemCode, what, stored, recomputed }) => `${itemCode}: ${what} is ${stored}, the moves say ${recomputed}`
          ),
          ...trail.mismatches.map(
            ({ batch, entry, what, detail }) =>
              `audit${batch === null ? '' : ` batch ${batch}`}${entry === null ? '' : ` entry ${entry}`}: ${what}, ${detail}`
          )
        ]
        if (found.length > 0) fail({ detail: found.join('\n') })
      })
    )
  cli
    .command('import')
    .description('import a CSV or NDJSON file (plain or gzip)')
    .argument('<kind>', 'items or movements')
    .argument('<file>')
    .option('--map <pairs>', 'field:Header pairs, such as itemCode:StockCode,quantity:Quantity')
    .option('--type <type>', 'the type of every movement row that has none')
    .option('--dry-run', 'say what would happen, store nothing')
    .addOption(tenantOption())
    .action(importFile)
  cli
    .command('export')
    .description('print items, movements or stock')
    .argument('<kind>', 'items, movements or stock')
    .addOption(new Option('--format <format>').choices(['csv', 'ndjson']).default('csv'))
    .addOption(tenantOption())
    .action(exportFile)
  return cli
}

/** A bar on standard error, for people. */
function bar(done: number, total: number): void {
  if (!process.stderr.isTTY || total === 0) return
  const filled = Math.round((Math.min(done, total) / total) * 30)
  process.stderr.write(`\r[${'#'.repeat(filled).padEnd(30, '.')}] ${done}/${total} `)
}

interface BackupOptions {
  tenant?: string
  json?: boolean
}

/** Has the service do it here, as a job, and follows it. */
const backupJob = (path: string, { tenant, json }: BackupOptions, told: (result: Record<string, unknown>) => string) =>
  withService(async (service, config) => {
    if (config.backups === undefined)
      throw new ConfigError('BACKUP_URL is not set; it may be a folder, or s3://bucket/prefix')
    const authorization = `Bearer ${await tokenFor(config, 'admin', tenantName(config, tenant), 86_400)}`
    const answer = await service.inject({ method: 'POST', url: path, headers: { authorization } })
    if (answer.statusCode >= 400) fail(answer.json())
    const job = await follow(service, authorization, answer.json<JobView>())
    if (job.status !== 'succeeded') fail({ detail: job.error?.message ?? `the job is ${job.status}` })
    print(json ? JSON.stringify(job.result) : told(Object(job.result)))
  })

/** Without the service: it works when there is no database any more. */
async function withArchives(work: (archives: ArchiveService, config: Config) => Promise<void>): Promise<void> {
  const config = loadConfig(process.env)
  const archives = (await import('./plugins/archive.js')).archivesOf(config)
  try {
    await work(archives, config)
  } finally {
    await archives.close()
  }
}

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

async function restore({
  tenant: named,
  at,
  backup,
  json
}: BackupOptions & { at?: number; backup?: string }): Promise<void> {
  const { restoreTenant } = await import('./plugins/archive.js')
  const { primaryOf } = await import('./plugins/mirror.js')
  const config = primaryOf(quiet(loadConfig(process.env)))
  const tenant = tenantName(config, named)
  const { ledgerProof } = await import('./modules/inventory/index.js')
  const { trailProof } = await import('./modules/audit/index.js')
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
    { progress: bar }
  ).finally(() => service.close())
  if (process.stderr.isTTY) note('')
  const { id, stateAt, archives, bytes, rows, seconds, kept, proofs } = restored
  // The first start on it, and the entry in its own trail.
  await withTenant(named, (entered) =>
    record(entered, { action: 'backup.restore', object: { type: 'backup', id }, details: { rows, archives, seconds } })
  )
  const state = new Date(stateAt).toISOString()
  if (json)
    return print(JSON.stringify({ tenant, backupId: id, stateAt: state, archives, bytes, rows, seconds, kept, proofs }))
  print(`${tenant} is as it was at ${state}: ${rows} rows from ${archives} backups in ${seconds.toFixed(1)} s`)
  for (const { name, checked } of proofs) print(`${name}: ${checked} checked, all agree`)
  if (kept !== null) print(`what was there is kept as ${kept}`)
}

function addBackups(
  cli: Command,
  { tenantOption, jsonOption }: { tenantOption: () => Option; jsonOption: () => Option }
): void {
  const group = cli
    .command('backup')
    .description('make a full backup of a tenant (BACKUP_URL)')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action((options: BackupOptions) =>
      backupJob('/api/backups', options, ({ backupId, rows, bytes }) => `${backupId}: ${rows} rows, ${bytes} bytes`)
    )
  group
    .command('list')
    .description('the backups there are; it needs no database')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action((_options: object, command: Command) =>
      withArchives(async (archives, config) => {
        const { tenant, json }: BackupOptions = command.optsWithGlobals()
        const entries = (await archives.list(tenantName(config, tenant))).map(({ stateAt, ...entry }) => ({
          ...entry,
          stateAt: new Date(stateAt).toISOString()
        }))
        const lines = entries.map(({ stateAt, id, kind, bytes }) => `${stateAt}\t${id}\t${kind}\t${bytes}`)
        print(json ? JSON.stringify(entries) : lines.join('\n') || 'no backups')
      })
    )
  group
    .command('verify')
    .description('read every part of a backup, and of those that it goes on from; it needs no database')
    .argument('[id]', 'the last one when left out', parseBackupId)
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action((id: string | undefined, _options: object, command: Command) =>
      withArchives(async (archives, config) => {
        const { tenant: named, json }: BackupOptions = command.optsWithGlobals()
        const tenant = tenantName(config, named)
        const wanted = id ?? (await archives.list(tenant)).at(-1)?.id
        if (wanted === undefined) fail({ detail: 'there are no backups' })
        const found = await archives.check(tenant, wanted, { progress: bar })
        if (process.stderr.isTTY) note('')
        print(
          json
            ? JSON.stringify({ backupId: wanted, ...found })
            : `${wanted}: ${found.rows} rows in ${found.parts} parts of ${found.archives} backups, all as they were written`
        )
      })
    )
  group
    .command('drill')
    .description('restore the last backup for a trial, beside the database, and say how long it took')
    .action((_options: object, command: Command) =>
      backupJob(
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
    .action(restore)
}

function addUsers(cli: Command, tenantOption: () => Option, jsonOption: () => Option): void {
  const users = cli.command('users').description('users of a tenant')
  users
    .command('create')
    .description('create a user; the password is read from standard input or INVENTORY_PASSWORD')
    .argument('<username>')
    .addOption(new Option('--role <role>').choices([...ROLES]).default('staff'))
    .option('--name <name>', 'display name')
    .addOption(tenantOption())
    .action(
      async (
        username: string,
        { role, name, tenant: named }: { role: (typeof ROLES)[number]; name?: string; tenant?: string }
      ) => {
        const password = await readPassword()
        await withTenant(named, async (tenant, { secondFactor }) => {
          const input = { username, role, password, ...(name === undefined ? {} : { displayName: name }) }
          const user = await (await identity()).createUser(tenant, input, secondFactor)
          print(`${user.username} (${user.role})`)
        })
      }
    )
  users
    .command('list')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action(({ tenant: named, json }: { tenant?: string; json?: boolean }) =>
      withTenant(named, async (tenant) => {
        const all = await (await identity()).listUsers(tenant)
        print(
          json
            ? JSON.stringify(all)
            : all
                .map(({ username, role, disabled }) => `${username}\t${role}${disabled ? '\tdisabled' : ''}`)
                .join('\n') || 'no users'
        )
      })
    )
  users
    .command('password')
    .description('set a password; it ends all sessions of the user')
    .argument('<username>')
    .addOption(tenantOption())
    .action(async (username: string, { tenant: named }: { tenant?: string }) => {
      const password = await readPassword()
      await withTenant(named, async (tenant, { secondFactor }) => {
        const user = await (await identity()).setPassword(tenant, username, password, secondFactor)
        print(`password of ${user.username} changed`)
      })
    })
  users
    .command('disable')
    .argument('<username>')
    .addOption(tenantOption())
    .action((username: string, { tenant: named }: { tenant?: string }) =>
      withTenant(named, async (tenant) =>
        print(`${(await (await identity()).disableUser(tenant, username)).username} disabled`)
      )
    )
  users
    .command('link')
    .description('print a link by which the user sets a password, once; without a name, one that makes the first user')
    .argument('[username]')
    .addOption(tenantOption())
    .action((username: string | undefined, { tenant: named }: { tenant?: string }) =>
      withTenant(named, async (tenant, { publicUrl }) => {
        const { linkFor, setupLinkFor } = await identity()
        const link =
          username === undefined ? await setupLinkFor(tenant, publicUrl) : await linkFor(tenant, publicUrl, username)
        if (link === undefined) fail({ detail: 'there is a user; name the one whom the link is for' })
        print(link.url)
      })
    )
  users
    .command('reset-second-factor')
    .description('take the second factors of a user away who has lost them; it ends all sessions of the user')
    .argument('<username>')
    .addOption(tenantOption())
    .action((username: string, { tenant: named }: { tenant?: string }) =>
      withTenant(named, async (tenant) =>
        print(`${(await (await identity()).removeSecondFactor(tenant, username)).username} has no second factor`)
      )
    )
}

const ALIVE_MILLISECONDS = 5_000

/** Has the service do it, where one runs; else it is done here. */
async function orderMirror(order: MirrorOrder): Promise<MirrorOutcome> {
  const config = quiet(loadConfig(process.env))
  const { mirrorFiles, openMirror } = await import('./plugins/mirror.js')
  const files = mirrorFiles(config)
  const mirror = openMirror(config)
  if (files === undefined || mirror === undefined) fail({ detail: 'MIRROR_URL is not set: it names the copy' })
  const command = { id: randomUUID(), order }
  const report = files.report()
  if (report === undefined || Date.now() - report.at > ALIVE_MILLISECONDS) {
    note('No service runs on this database: it is done here.')
    await mirror.settle()
    // The service is built for what it knows of its tables, and to have them migrated.
    const { build } = await theService()
    const service = await build(config, 'service', { mirror })
    await service.ready()
    await service.close()
    mirror.run()
    files.setCommand(command)
  } else files.setCommand(command)
  try {
    return await outcomeOf(files, command.id)
  } finally {
    await mirror.close()
  }
}

async function outcomeOf(files: MirrorFiles, id: string): Promise<MirrorOutcome> {
  let heard = Date.now()
  for (let shown = ''; ; ) {
    const { outcome, at = 0 } = files.report() ?? {}
    heard = Math.max(heard, at)
    if (outcome?.id === id) {
      if (outcome.status !== 'running') return outcome
      const { step, done = 0, total = 0 } = outcome
      const line = step === undefined ? '' : `${step}: ${done} of ${total} rows`
      if (line !== shown && line !== '') note(line)
      shown = line
    }
    if (Date.now() - heard > 6 * ALIVE_MILLISECONDS) fail({ detail: 'the service does not answer' })
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS))
  }
}

function addMirror(cli: Command, jsonOption: () => Option): void {
  const group = cli.command('mirror').description('a copy on PostgreSQL that follows the SQLite database (MIRROR_URL)')
  const order = (name: MirrorOrder, description: string, told: (outcome: MirrorOutcome) => string) =>
    group
      .command(name)
      .description(description)
      .addOption(jsonOption())
      .action(async ({ json }: { json?: boolean }) => {
        const outcome = await orderMirror(name)
        if (json) print(JSON.stringify(outcome))
        else if (outcome.status === 'done') print(told(outcome))
        const differing = Object.values(outcome.verified ?? {}).flatMap(({ differences }) => differences)
        for (const { table, key, what } of differing) note(`${table} ${JSON.stringify(key)}: ${what}`)
        if (outcome.status === 'failed') fail({ detail: outcome.error ?? 'failed' })
        if (differing.length > 0) fail({ detail: 'the copy differs from its original' })
      })
  order('start', 'copy every tenant, then follow each change', () => 'the copy is complete and follows')
  order('verify', 'compare every row of both', ({ verified = {} }) =>
    Object.entries(verified)
      .map(
        ([tenant, { tables, rows, differing, hash }]) =>
          `${tenant}: ${rows} rows of ${tables} tables, ${differing} differ, ${hash}`
      )
      .join('\n')
  )
  order(
    'switch',
    'verify, then let the copy take over; once more for the way back',
    ({ pausedMilliseconds = 0 }) =>
      `the copy has taken over; requests waited ${(pausedMilliseconds / 1000).toFixed(1)} s`
  )
  order('stop', 'follow no more; the copy is left as it is', () => 'the mirror is off')
  group
    .command('status')
    .description('which database counts, and how far the copy is behind')
    .addOption(jsonOption())
    .action(async ({ json }: { json?: boolean }) => {
      const { mirrorFiles } = await import('./plugins/mirror.js')
      const files = mirrorFiles(loadConfig(process.env))
      if (files === undefined) fail({ detail: 'only a SQLite file can have a mirror' })
      const [state, report] = [files.state(), files.report()]
      const alive = report !== undefined && Date.now() - report.at < ALIVE_MILLISECONDS
      if (json)
        return print(
          JSON.stringify({
            ...state,
            alive,
            error: report?.error,
            tenants: report?.tenants ?? [],
            verified: report?.verified
          })
        )
      print(`mirror ${state.on ? 'on' : 'off'}, primary ${state.primary}, service ${alive ? 'running' : 'not running'}`)
      if (report?.error !== undefined) print(`nothing can be followed: ${report.error}`)
      for (const { tenant, state: doing, pendingChanges, lagSeconds, error } of report?.tenants ?? [])
        print(
          `${tenant}: ${doing}, ${pendingChanges} changes and ${lagSeconds.toFixed(1)} s behind${error === undefined ? '' : `, ${error}`}`
        )
    })
}

/**
 * A tenant's trail goes with it. What stays beside the databases is that it went, when, and the hash that its trail ended with: by that
 * a copy of the trail, exported or in a backup, is known to be whole.
 */
async function lastWord(tenants: Tenants, id: string, dataDir: string): Promise<void> {
  const { sealTrail, verifyTrail } = await import('./modules/audit/index.js')
  const tenant = await tenants.get(id)
  await record(tenant, { action: 'tenant.drop', object: { type: 'tenant', id } })
  await sealTrail(tenant)
  const { ok, entries, head } = await verifyTrail(tenant)
  const line = {
    at: new Date().toISOString(),
    action: 'tenant.drop',
    tenant: id,
    actor: 'cli',
    trail: { ok, entries, head }
  }
  appendFileSync(join(dataDir, 'dropped-tenants.ndjson'), `${JSON.stringify(line)}\n`, { mode: 0o600 })
}

function addTenants(cli: Command, jsonOption: () => Option): void {
  const group = cli.command('tenants').description('tenants (TENANCY=multi)')
  const multi = (work: (tenants: Tenants, config: Config) => Promise<void>) =>
    withService(async (service, config) => {
      if (config.TENANCY !== 'multi') throw new InvalidArgumentError('there is one tenant; set TENANCY=multi')
      await work(tenantsOf(service), config)
    })
  group
    .command('create')
    .argument('<name>', 'a lower-case letter, then letters, digits and dashes; 40 at most')
    .action((name: string) =>
      multi(async (tenants) => {
        const tenant = await tenants.create(name)
        await record(tenant, { action: 'tenant.create', object: { type: 'tenant', id: tenant.id } })
        print(`${tenant.id} created`)
      })
    )
  group
    .command('list')
    .addOption(jsonOption())
    .action(({ json }: { json?: boolean }) =>
      multi(async (tenants) => {
        const all = await tenants.list()
        print(json ? JSON.stringify(all) : all.join('\n') || 'no tenants')
      })
    )
  group
    .command('move')
    .description('take a tenant to another PostgreSQL server (DATABASE_SERVERS) while it is in use')
    .argument('<name>')
    .requiredOption('--to <server>', 'a name of DATABASE_SERVERS, or home')
    .addOption(jsonOption())
    .action((tenant: string, { to, json }: { to: string; json?: boolean }) =>
      withService(async (service, config) => {
        const { moveTenantOf } = await import('./plugins/mirror.js')
        if (!(await tenantsOf(service).list()).includes(tenant)) fail({ detail: `there is no tenant ${tenant}` })
        const moved = await moveTenantOf(config, tenantsOf(service).migrations(), tenant, to)
        const { rows, tables, hash } = moved.verified
        const object = { type: 'tenant', id: tenant }
        await record(await tenantsOf(service).get(tenant), { action: 'tenant.move', object, details: { to, rows } })
        const waited = (moved.pausedMilliseconds / 1000).toFixed(1)
        print(
          json
            ? JSON.stringify(moved)
            : `${tenant} is on ${to}: ${rows} rows of ${tables} tables compared, ${hash}; no writes for ${waited} s`
        )
      })
    )
  group
    .command('drop')
    .description('delete a tenant with all its data')
    .argument('<name>')
    .requiredOption('--yes', 'say that you mean it')
    .action((name: string) =>
      multi(async (tenants, { DATA_DIR }) => {
        await lastWord(tenants, name, DATA_DIR)
        await tenants.drop(name)
        print(`${name} dropped`)
      })
    )
}

try {
  await program().parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    // commander has written its own message, except for what our actions threw.
    if (error instanceof InvalidArgumentError) note(`error: ${error.message}`)
    process.exitCode = error.exitCode === 0 ? 0 : 2
  } else if (error instanceof ConfigError) {
    note(error.message)
    process.exitCode = 2
  } else {
    note(
      error instanceof Problem || error instanceof CommandFailed
        ? `error: ${error.message}`
        : error instanceof Error
          ? (error.stack ?? error.message)
          : String(error)
    )
    process.exitCode = 1
  }
}
