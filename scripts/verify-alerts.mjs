/**
 * Proves the alerts. The rules and the configuration are valid; every alert fires on a bad series and stays quiet on a good one;
 * a rule that is changed is noticed by a test; every route leads where it should; every command of the runbooks runs; and when
 * the real service is killed, the pager hears of it within 90 s. About two minutes.
 *
 * usage: node scripts/verify-alerts.mjs [--no-mutate]
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { provideServices, ServicesError } from './services.mjs'
import { provideTools } from './tools.mjs'

const say = (line) => process.stdout.write(`${line}\n`)

async function main() {
  const started = performance.now()
  const tools = provideTools(['prometheus', 'promtool', 'alertmanager', 'amtool', 'curl', 'psql', 'redis'], say)
  const services = await provideServices(say)
  const folder = mkdtempSync(join(tmpdir(), 'inventory-alerts-'))
  try {
    Object.assign(process.env, services.env)
    const { verify } = await import('../dist/alerts/verify.js')
    await verify({ tools, folder, mutate: !process.argv.includes('--no-mutate'), say })
    say(`the alerts hold; ${((performance.now() - started) / 1000).toFixed(0)} s`)
  } finally {
    await services.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

main().catch((error) => {
  process.stderr.write(
    `${error instanceof ServicesError || error instanceof AggregateError ? error.message : error.stack}\n`
  )
  process.exitCode = 1
})
