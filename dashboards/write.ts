import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { ROOT } from '../alerts/rules.js'
import { withServices } from './families.js'
import { grafanaDashboard, LOCALES, uidOf } from './grafana.js'
import { DASHBOARDS } from './index.js'
import { metricsDocument } from './metrics-document.js'

/** Writes what is made of the sources: see `npm run docs:metrics` and `npm run dashboards`. */

export async function writeMetricsDocument(): Promise<string> {
  const path = join(ROOT, 'docs', 'metrics.md')
  writeFileSync(path, await withServices(metricsDocument))
  return path
}

export const JSON_FOLDER = join(ROOT, 'dashboards', 'json')

/** The text of each file, by its path below `dashboards/json`. */
export const dashboardFiles = (): Map<string, string> =>
  new Map(
    DASHBOARDS.flatMap((dashboard) =>
      LOCALES.map((locale) => [
        join(locale, `${uidOf(dashboard, locale)}.json`),
        `${JSON.stringify(grafanaDashboard(dashboard, locale), null, 2)}\n`
      ])
    )
  )

export function writeDashboards(): string[] {
  rmSync(JSON_FOLDER, { recursive: true, force: true })
  return [...dashboardFiles()].map(([name, text]) => {
    const path = join(JSON_FOLDER, name)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, text)
    return path
  })
}
