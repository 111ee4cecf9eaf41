import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { ConfigError, loadConfig } from '../plugins/config/index.js'
import { Problem } from '../plugins/contracts.js'
import { VERSION } from '../plugins/version.js'
import { addBackups } from './backups.js'
import { addMirror } from './mirror.js'
import {
  jsonOption,
  ROLES,
  type Role,
  record,
  tenantName,
  tenantOption,
  tenantsOf,
  theService,
  tokenFor,
  withService,
  withTenant
} from './service.js'
import { addTenants } from './tenants.js'
import { CommandFailed, fail, type Surroundings, Terminal } from './terminal.js'
import { addTransfer } from './transfer.js'
import { addUsers } from './users.js'

/**
 * Runs one of the operator's commands.
 * @param args as typed, without the name of the program
 * @returns its exit code. 0: done, 1: failed, 2: misused
 */
export async function inventory(args: readonly string[], surroundings: Surroundings): Promise<number> {
  const terminal = new Terminal(surroundings)
  try {
    await program(terminal).parseAsync(args, { from: 'user' })
    return 0
  } catch (error) {
    if (error instanceof CommanderError) {
      // commander has written its own message, except for what our actions threw.
      if (error instanceof InvalidArgumentError) terminal.note(`error: ${error.message}`)
      return error.exitCode === 0 ? 0 : 2
    }
    if (error instanceof ConfigError) {
      terminal.note(error.message)
      return 2
    }
    terminal.note(
      error instanceof Problem || error instanceof CommandFailed
        ? `error: ${error.message}`
        : error instanceof Error
          ? (error.stack ?? error.message)
          : String(error)
    )
    return 1
  }
}

function program(terminal: Terminal): Command {
  const cli = new Command('inventory').description("Inventory Enterprise: the operator's commands").version(VERSION)
  cli.exitOverride().configureHelp({ showGlobalOptions: true })
  cli.configureOutput({
    writeOut: (text) => void terminal.stdout.write(text),
    writeErr: (text) => void terminal.stderr.write(text)
  })
  addServing(cli, terminal)
  addToken(cli, terminal)
  addUsers(cli, terminal)
  addTenants(cli, terminal)
  addMirror(cli, terminal)
  addBackups(cli, terminal)
  addVerify(cli, terminal)
  addTransfer(cli, terminal)
  return cli
}

function addServing(cli: Command, terminal: Terminal): void {
  cli
    .command('serve')
    .description('run the service')
    .action(async () => (await theService()).serve(loadConfig(terminal.env)))
  cli
    .command('demo')
    .description('load the bundled data, forecast, and serve')
    .option('--no-serve', 'end after the report instead of serving')
    .action(async ({ serve: keepServing }: { serve: boolean }) => {
      const { runDemo } = await import('../demo/demo.js')
      await runDemo(terminal.env, keepServing)
    })
  cli
    .command('worker')
    .description('take background work from the queue and serve nothing')
    .action(() =>
      withService(
        terminal,
        async () => {
          const stopped = new Promise<void>((resolve) => {
            for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve())
          })
          // Not before: who has read it may send the signal at once.
          terminal.note('worker: waiting for work; stop it with Ctrl-C or SIGTERM')
          await stopped
        },
        'worker'
      )
    )
  cli
    .command('migrate')
    .description('bring the database of every tenant up to date')
    .addOption(jsonOption())
    .action(({ json }: { json?: boolean }) =>
      withService(terminal, async (service) => {
        const tenants = await tenantsOf(service).list()
        terminal.print(json ? JSON.stringify({ tenants }) : `up to date: ${tenants.join(', ') || 'no tenant yet'}`)
      })
    )
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

function addToken(cli: Command, terminal: Terminal): void {
  cli
    .command('token')
    .description('print one bearer token and nothing else; it works before any user exists')
    .addOption(new Option('--role <role>', 'what it may do').choices([...ROLES]).makeOptionMandatory())
    .addOption(tenantOption())
    .option('--ttl <time>', 'how long it counts, such as 30m, 1h, 7d', parseTtl, 3600)
    .action(async ({ role, tenant, ttl }: { role: Role; tenant?: string; ttl: number }) => {
      const details = { role, ttlSeconds: ttl }
      await withTenant(terminal, tenant, (entered) => record(entered, { action: 'token.print', details }))
      const config = loadConfig(terminal.env)
      terminal.print(await tokenFor(config, role, tenantName(config, tenant), ttl))
    })
}

function addVerify(cli: Command, terminal: Terminal): void {
  cli
    .command('verify')
    .description('recompute every balance from the ledger, and the chain of the audit trail, and compare')
    .addOption(tenantOption())
    .addOption(jsonOption())
    .action(({ tenant: named, json }: { tenant?: string; json?: boolean }) =>
      withTenant(terminal, named, async (tenant) => {
        const { verifyLedger } = await import('../modules/inventory/index.js')
        const { verifyTrail } = await import('../modules/audit/index.js')
        const [ledger, trail] = [await verifyLedger(tenant), await verifyTrail(tenant)]
        const lines = [
          `${ledger.transactions} transactions, ${ledger.moves} moves: ${ledger.ok ? 'every balance agrees' : 'MISMATCHES'}`,
          `${trail.entries} audit entries, ${trail.batches} batches: ${trail.ok ? 'the chain holds' : 'MISMATCHES'}`
        ]
        terminal.print(json ? JSON.stringify({ ...ledger, ok: ledger.ok && trail.ok, audit: trail }) : lines.join('\n'))
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
}
