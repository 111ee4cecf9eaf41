/**
 * Proves the dashboards: three real nodes on both databases with something to do, a real Prometheus that scrapes them, and every query of
 * every panel has finite data with the labels that its legend names; a metric that is called otherwise is noticed. About two minutes.
 *
 * usage: node scripts/verify-observability.mjs [--seconds N] [--pictures]
 *   --seconds   how long the nodes are used before they are looked at; default 60
 *   --pictures  draws each dashboard to docs/img
 */
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { prove } from './proof.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const { values } = parseArgs({
  options: { seconds: { type: 'string', default: '60' }, pictures: { type: 'boolean', default: false } }
})
const tools = ['prometheus', 'promtool']
await prove({ name: 'dashboards', tools, holds: 'the dashboards hold' }, async (given) => {
  const { verify } = await import('../dist/dashboards/verify.js')
  const pictures = values.pictures ? { pictures: join(root, 'docs', 'img') } : {}
  await verify({ ...given, seconds: Number(values.seconds), ...pictures })
})
