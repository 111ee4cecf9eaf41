import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT } from '../alerts/rules.js'
import { withServices } from './families.js'
import { metricsDocument } from './metrics-document.js'

/** Writes what is made of the sources: see `npm run docs:metrics`. */
export async function writeMetricsDocument(): Promise<string> {
  const path = join(ROOT, 'docs', 'metrics.md')
  writeFileSync(path, await withServices(metricsDocument))
  return path
}
