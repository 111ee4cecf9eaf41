/**
 * Writes docs/metrics.md from the registry of the running program, on both databases.
 *
 * usage: node scripts/docs-metrics.mjs
 */
import { provideServices, ServicesError } from './services.mjs'

const say = (line) => process.stdout.write(`${line}\n`)

async function main() {
  const services = await provideServices(say)
  try {
    Object.assign(process.env, services.env)
    const { writeMetricsDocument } = await import('../dist/dashboards/write.js')
    say(`wrote ${await writeMetricsDocument()}`)
  } finally {
    await services.stop()
  }
}

main().catch((error) => {
  process.stderr.write(`${error instanceof ServicesError ? error.message : error.stack}\n`)
  process.exitCode = 1
})
