/**
 * Writes dashboards/json from the sources beside it.
 *
 * usage: node scripts/dashboards.mjs
 */
import { writeDashboards } from '../dist/dashboards/write.js'

for (const path of writeDashboards()) process.stdout.write(`wrote ${path}\n`)
