import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Chain, startChain, type Tools } from './chain.js'
import { writeMutants } from './mutants.js'
import { deployedAlerts, FOLLOWS, journeys, proveRouting, ROUTING } from './routing.js'
import { ROOT, ruleFiles, testFiles } from './rules.js'
import { inParallel, run, until } from './run.js'
import { blocksOf, runbookNames } from './runbooks.js'

/** Proves the alerts: see `npm run verify:alerts`. Each step says what it saw and throws when it is not so. */

export interface Verification {
  readonly tools: Tools
  /** An empty folder. */
  readonly folder: string
  readonly mutate: boolean
  say(line: string): void
}

const DEPLOYED = join(ROOT, 'deploy', 'monitoring')
const PAGED_SECONDS_MAX = 90
/** Two scrapes may be left open by the one that hangs, each for as long as Prometheus waits. */
const SILENT_SECONDS_MAX = 60
const COMMAND_SECONDS_MAX = 60
const PROCESSES = 2

export async function verify(options: Verification): Promise<void> {
  await checkFiles(options)
  // The chain mostly waits, so the tests of the rules run beside it.
  const both = await Promise.allSettled([proveChain(options), proveRules(options)])
  const failures = both.flatMap((each) => (each.status === 'rejected' ? [each.reason] : []))
  if (failures.length > 0) throw new AggregateError(failures, failures.map((each) => each.message).join('\n'))
}

const rulePaths = () => [...ruleFiles().keys()]

async function must(tool: string, args: readonly string[]): Promise<string> {
  const { code, output } = await run(tool, args)
  if (code !== 0) throw new Error(`${tool} ${args.join(' ')}\n${output}`)
  return output
}

async function checkFiles({ tools, say }: Verification): Promise<void> {
  await must(tools.promtool, ['check', 'rules', ...rulePaths()])
  await must(tools.promtool, ['check', 'config', '--syntax-only', join(DEPLOYED, 'prometheus.yml')])
  await must(tools.amtool, ['check-config', ROUTING])
  const all = journeys()
  await inParallel(all, PROCESSES, ({ labels, receivers }) => {
    const args = ['config', 'routes', 'test', `--config.file=${ROUTING}`, `--verify.receivers=${receivers}`]
    return must(tools.amtool, [...args, ...Object.entries(labels).map(([name, value]) => `${name}=${value}`)])
  })
  const alerts = deployedAlerts().length
  say(
    `rules: ${alerts} alerts in ${rulePaths().length} groups; each leads where it should, ${all.length} routes in all`
  )
}

async function proveRules({ tools, folder, mutate, say }: Verification): Promise<void> {
  const started = performance.now()
  const files = [...testFiles().keys()]
  await inParallel(files, PROCESSES, (file) => must(tools.promtool, ['test', 'rules', file]))
  const tests = [...testFiles().values()].reduce((sum, { tests }) => sum + tests.length, 0)
  say(`tests: ${tests} tests of the rules pass, in ${seconds(started)} s`)
  if (!mutate) return
  const mutants = writeMutants(join(folder, 'mutants'))
  const batches = Array.from({ length: Math.ceil(mutants.length / 20) }, (_, n) => mutants.slice(n * 20, n * 20 + 20))
  const passed = new Set<string>()
  await inParallel(batches, PROCESSES, async (batch) => {
    // What fails is told on the other stream, at any moment.
    const { stdout } = await run(tools.promtool, ['test', 'rules', ...batch.map(({ path }) => path)])
    for (const [, path = ''] of stdout.matchAll(/Unit Testing: {2}(\S+)\n\s+SUCCESS/g)) passed.add(path)
  })
  const wrong = mutants.filter(({ path, passes }) => passed.has(path) !== passes)
  if (wrong.length > 0) {
    const told = wrong.map(({ alert, what, passes }) => `${alert}, ${what}: ${passes ? 'fails' : 'no test fails'}`)
    throw new Error(told.join('\n'))
  }
  const changed = mutants.filter(({ passes }) => !passes).length
  say(`mutants: ${changed} changed rules, a test fails for each; in ${seconds(started)} s with the tests`)
}

async function proveChain(options: Verification): Promise<void> {
  const { tools, folder, say } = options
  const started = performance.now()
  const chain = await startChain(tools, folder)
  try {
    say(`chain: the service, Prometheus and Alertmanager run after ${seconds(started)} s`)
    await Promise.all([proveRouting(chain), runCommands(options, chain)])
    say(
      `routing: what follows from ${FOLLOWS.length} causes is held back, and told without them; the data team sleeps at night, and hears it by day; the dead man is heard`
    )
    await proveSilence(chain, say)
    const killedAt = chain.kill()
    const paged = () =>
      chain.heard.find(
        ({ receiver, alert, labels }) =>
          receiver === 'pager' && alert === 'ServiceDown' && labels.job === 'inventory-enterprise'
      )
    await until('the pager hears that the service is down', PAGED_SECONDS_MAX, () => paged() !== undefined)
    const after = ((paged()?.at ?? Number.NaN) - killedAt) / 1000
    say(`end to end: the service was killed; the pager heard ServiceDown ${after.toFixed(1)} s later`)
    if (!(after > 0 && after <= PAGED_SECONDS_MAX))
      throw new Error(`that is not within ${PAGED_SECONDS_MAX} s of the kill`)
  } finally {
    await chain.close()
  }
}

/** A process that hangs is told of by the others, in a way that the rule sees; and no longer when it goes on. */
async function proveSilence(chain: Chain, say: Verification['say']): Promise<void> {
  const rule = deployedAlerts().find(({ alert }) => alert === 'WorkerSilent')
  if (rule === undefined) throw new Error('there is no alert WorkerSilent')
  const holds = async () => (await chain.found(rule.expr)) > 0
  if (await holds()) throw new Error('WorkerSilent holds while every process answers')
  const started = performance.now()
  const goOn = chain.hang()
  try {
    await until('a process that hangs is missed', SILENT_SECONDS_MAX, holds)
  } finally {
    goOn()
  }
  const missed = seconds(started)
  await until('it answers again', SILENT_SECONDS_MAX, async () => !(await holds()))
  say(`a process of two was stopped: WorkerSilent held ${missed} s later, and no longer when it went on`)
}

/** Runs every command of the runbooks, as the operator would: a shell, the variables of docs/runbooks/README.md. */
async function runCommands({ tools, folder, say }: Verification, chain: Chain): Promise<void> {
  const bin = join(folder, 'bin')
  mkdirSync(bin)
  const script = (name: string, text: string) => {
    writeFileSync(join(bin, name), `#!/bin/sh\n${text}\n`)
    chmodSync(join(bin, name), 0o755)
  }
  script('inventory', `exec "${process.execPath}" "${join(ROOT, 'dist', 'cli.js')}" "$@"`)
  for (const name of ['promtool', 'amtool'] as const) script(name, `exec "${tools[name]}" "$@"`)
  const env = { ...chain.env, PATH: `${bin}:${process.env.PATH}`, HOME: folder }
  const token = await run('inventory', ['token', '--role', 'admin'], { env })
  if (token.code !== 0) throw new Error(`no token: ${token.output}`)
  const blocks = ['README', ...runbookNames()].flatMap(blocksOf)
  const toRun = new Map(blocks.filter(({ notRun }) => notRun === undefined).map((block) => [block.command, block]))
  const failures = await inParallel([...toRun.values()], PROCESSES, async ({ runbook, line, command }) => {
    const shell = ['-k', '5', String(COMMAND_SECONDS_MAX), 'bash', '-euo', 'pipefail', '-c', command]
    const { code, output } = await run('timeout', shell, { env: { ...env, TOKEN: token.output.trim() }, cwd: folder })
    return code === 0 ? '' : `docs/runbooks/${runbook}.md:${line} exits with ${code}\n${command}${output.slice(-800)}`
  })
  const failed = failures.filter((each) => each !== '')
  if (failed.length > 0) throw new Error(failed.join('\n'))
  const marked = blocks.filter(({ notRun }) => notRun !== undefined).length
  say(`runbooks: ${runbookNames().length}; ${toRun.size} different commands run, ${marked} are marked as not run`)
}

const seconds = (since: number) => ((performance.now() - since) / 1000).toFixed(0)
