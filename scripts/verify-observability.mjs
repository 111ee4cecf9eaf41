/**
 * Proves the dashboards: three real nodes on both databases with something to do, a real Prometheus that scrapes them, and every query of
 * every panel has finite data with the labels that its legend names; a metric that is called otherwise is noticed. About two minutes.
 *
 * usage: node scripts/verify-observability.mjs [--seconds N] [--pictures]
 *   --seconds   how long the nodes are used before they are looked at; default 60
 *   --pictures  draws each dashboard to docs/img
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { provideServices, ServicesError } from './services.mjs'
import { provideTools } from './tools.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const say = (line) => process.stdout.write(`${line}\n`)

async function main() {
  const started = performance.now()
  const { values } = parseArgs({
    options: { seconds: { type: 'string', default: '60' }, pictures: { type: 'boolean', default: false } }
  })
  const tools = provideTools(['prometheus', 'promtool'], say)
  const services = await provideServices(say)
  const folder = mkdtempSync(join(tmpdir(), 'inventory-dashboards-'))
  try {
    Object.assign(process.env, services.env)
    const { verify } = await import('../dist/dashboards/verify.js')
    const pictures = values.pictures ? { pictures: join(root, 'docs', 'img') } : {}
    await verify({ tools, folder, seconds: Number(values.seconds), say, ...pictures })
    say(`the dashboards hold; ${((performance.now() - started) / 1000).toFixed(0)} s`)
  } finally {
    await services.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

main().catch((error) => {
  process.stderr.write(`${error instanceof ServicesError ? error.message : error.stack}\n`)
  process.exitCode = 1
})
