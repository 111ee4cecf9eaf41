/**
 * Proves that many nodes are one service: three nodes and two workers behind HAProxy on a real PostgreSQL and Redis, under load,
 * while nodes are killed at random, restarted one after the other, and spoken to through PgBouncer. About two minutes;
 * CLUSTER_SECONDS=600 kills for longer, CLUSTER_SEED=<n> kills in the order that a run has printed.
 *
 * usage: node scripts/verify-cluster.mjs
 */
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { provideServices, ServicesError } from './services.mjs'
import { provideTools } from './tools.mjs'

const say = (line) => process.stdout.write(`${line}\n`)

async function main() {
  const started = performance.now()
  const tools = provideTools(['haproxy', 'pgbouncer'], say)
  // For its binaries: what is killed here is a server of its own.
  const services = await provideServices(say)
  const folder = mkdtempSync(join(process.getuid?.() === 0 ? '/tmp' : tmpdir(), 'inventory-cluster-'))
  // PgBouncer, which does not run as root, reads its configuration there.
  chmodSync(folder, 0o711)
  const seed = Number(process.env.CLUSTER_SEED ?? Math.floor(Math.random() * 1e9))
  say(`CLUSTER_SEED=${seed}`)
  try {
    Object.assign(process.env, services.env)
    const { verify } = await import('../dist/test/cluster/verify.js')
    await verify({ ...tools, folder, seed, seconds: Number(process.env.CLUSTER_SECONDS ?? 15), say })
    say(`many nodes are one service; ${((performance.now() - started) / 1000).toFixed(0)} s`)
  } finally {
    await services.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

main().catch((error) => {
  process.stderr.write(`${error instanceof ServicesError ? error.message : error.stack}\n`)
  process.exitCode = 1
})
