import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { provideServices, ServicesError } from './services.mjs'
import { provideTools } from './tools.mjs'

const say = (line) => process.stdout.write(`${line}\n`)

/**
 * Runs a proof with the tools that it names, a PostgreSQL, a Redis and a folder that goes afterwards; says that it holds and how long that took,
 * or ends with 1 and why.
 */
export async function prove({ name, tools: names, holds, parent = tmpdir() }, work) {
  const started = performance.now()
  try {
    const tools = provideTools(names, say)
    const services = await provideServices(say)
    const folder = mkdtempSync(join(parent, `inventory-${name}-`))
    try {
      Object.assign(process.env, services.env)
      await work({ tools, folder, say })
      say(`${holds}; ${((performance.now() - started) / 1000).toFixed(0)} s`)
    } finally {
      await services.stop()
      rmSync(folder, { recursive: true, force: true })
    }
  } catch (error) {
    const told = error instanceof ServicesError || error instanceof AggregateError ? error.message : error.stack
    process.stderr.write(`${told}\n`)
    process.exitCode = 1
  }
}
