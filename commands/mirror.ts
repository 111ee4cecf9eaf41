import { randomUUID } from 'node:crypto'
import type { Command } from 'commander'
import { loadConfig } from '../plugins/config/index.js'
import type { MirrorFiles, MirrorOrder, MirrorOutcome } from '../plugins/mirror/index.js'
import { jsonOption, POLL_MILLISECONDS, quietConfig, theService } from './service.js'
import { fail, type Terminal } from './terminal.js'

const ALIVE_MILLISECONDS = 5_000

/** Has the service do it, where one runs; else it is done here. */
async function orderMirror(terminal: Terminal, order: MirrorOrder): Promise<MirrorOutcome> {
  const config = quietConfig(terminal)
  const { mirrorFiles, openMirror } = await import('../plugins/mirror/index.js')
  const files = mirrorFiles(config)
  const mirror = openMirror(config)
  if (files === undefined || mirror === undefined) fail({ detail: 'MIRROR_URL is not set: it names the copy' })
  const command = { id: randomUUID(), order }
  const report = files.report()
  if (report === undefined || Date.now() - report.at > ALIVE_MILLISECONDS) {
    terminal.note('No service runs on this database: it is done here.')
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
    return await outcomeOf(terminal, files, command.id)
  } finally {
    await mirror.close()
  }
}

async function outcomeOf(terminal: Terminal, files: MirrorFiles, id: string): Promise<MirrorOutcome> {
  let heard = Date.now()
  for (let shown = ''; ; ) {
    const { outcome, at = 0 } = files.report() ?? {}
    heard = Math.max(heard, at)
    if (outcome?.id === id) {
      if (outcome.status !== 'running') return outcome
      const { step, done = 0, total = 0 } = outcome
      const line = step === undefined ? '' : `${step}: ${done} of ${total} rows`
      if (line !== shown && line !== '') terminal.note(line)
      shown = line
    }
    if (Date.now() - heard > 6 * ALIVE_MILLISECONDS) fail({ detail: 'the service does not answer' })
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS))
  }
}

async function status(terminal: Terminal, { json }: { json?: boolean }): Promise<void> {
  const { mirrorFiles } = await import('../plugins/mirror/index.js')
  const files = mirrorFiles(loadConfig(terminal.env))
  if (files === undefined) fail({ detail: 'only a SQLite file can have a mirror' })
  const [state, report] = [files.state(), files.report()]
  const alive = report !== undefined && Date.now() - report.at < ALIVE_MILLISECONDS
  const { error, tenants = [], verified } = report ?? {}
  if (json) return terminal.print(JSON.stringify({ ...state, alive, error, tenants, verified }))
  const service = alive ? 'running' : 'not running'
  terminal.print(`mirror ${state.on ? 'on' : 'off'}, primary ${state.primary}, service ${service}`)
  if (error !== undefined) terminal.print(`nothing can be followed: ${error}`)
  for (const { tenant, state: doing, pendingChanges, lagSeconds, error: problem } of tenants) {
    const behind = `${pendingChanges} changes and ${lagSeconds.toFixed(1)} s behind`
    terminal.print(`${tenant}: ${doing}, ${behind}${problem === undefined ? '' : `, ${problem}`}`)
  }
}

export function addMirror(cli: Command, terminal: Terminal): void {
  const group = cli.command('mirror').description('a copy on PostgreSQL that follows the SQLite database (MIRROR_URL)')
  const order = (name: MirrorOrder, description: string, told: (outcome: MirrorOutcome) => string) =>
    group
      .command(name)
      .description(description)
      .addOption(jsonOption())
      .action(async ({ json }: { json?: boolean }) => {
        const outcome = await orderMirror(terminal, name)
        if (json) terminal.print(JSON.stringify(outcome))
        else if (outcome.status === 'done') terminal.print(told(outcome))
        const differing = Object.values(outcome.verified ?? {}).flatMap(({ differences }) => differences)
        for (const { table, key, what } of differing) terminal.note(`${table} ${JSON.stringify(key)}: ${what}`)
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
    .action((options: { json?: boolean }) => status(terminal, options))
}
