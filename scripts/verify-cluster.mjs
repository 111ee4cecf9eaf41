/**
 * Proves that many nodes are one service: three nodes and two workers behind HAProxy on a real PostgreSQL and Redis, under load,
 * while nodes are killed at random, restarted one after the other, and spoken to through PgBouncer. About two minutes;
 * CLUSTER_SECONDS=600 kills for longer, CLUSTER_SEED=<n> kills in the order that a run has printed.
 *
 * usage: node scripts/verify-cluster.mjs
 */
import { chmodSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { prove } from './proof.mjs'

// PostgreSQL and Redis are there for their binaries: what is killed here is a server of its own.
const tools = ['haproxy', 'pgbouncer']
const parent = process.getuid?.() === 0 ? '/tmp' : tmpdir()
await prove({ name: 'cluster', tools, holds: 'many nodes are one service', parent }, async ({ tools, folder, say }) => {
  // PgBouncer, which does not run as root, reads its configuration there.
  chmodSync(folder, 0o711)
  const seed = Number(process.env.CLUSTER_SEED ?? Math.floor(Math.random() * 1e9))
  say(`CLUSTER_SEED=${seed}`)
  const { verify } = await import('../dist/test/cluster/verify.js')
  await verify({ ...tools, folder, seed, seconds: Number(process.env.CLUSTER_SECONDS ?? 15), say })
})
