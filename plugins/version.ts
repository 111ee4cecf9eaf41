import { readFileSync } from 'node:fs'

/** As package.json says. */
export const VERSION = packageVersion()

function packageVersion(): string {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  return String(version)
}
