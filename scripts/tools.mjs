/** Finds the programs that the verifications run beside the service: on PATH, else by the package manager (as root, on Debian and its like). */
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { install, ServicesError } from './services.mjs'

const TOOLS = {
  prometheus: { names: ['prometheus'], debian: 'prometheus' },
  promtool: { names: ['promtool'], debian: 'prometheus' },
  alertmanager: { names: ['alertmanager', 'prometheus-alertmanager'], debian: 'prometheus-alertmanager' },
  amtool: { names: ['amtool'], debian: 'prometheus-alertmanager' },
  haproxy: { names: ['haproxy'], debian: 'haproxy' },
  pgbouncer: { names: ['pgbouncer'], debian: 'pgbouncer' },
  curl: { names: ['curl'], debian: 'curl' },
  ps: { names: ['ps'], debian: 'procps' },
  psql: { names: ['psql'], debian: 'postgresql-client' },
  redis: { names: ['redis-cli', 'valkey-cli'], debian: 'redis-tools' }
}

const folders = () =>
  [...(process.env.PATH ?? '').split(delimiter), '/usr/bin', '/usr/sbin', '/usr/local/bin'].filter(Boolean)
const find = ({ names }) =>
  folders()
    .flatMap((folder) => names.map((name) => join(folder, name)))
    .find(existsSync)

/**
 * @param wanted names of `TOOLS`
 * @returns the path of each
 * @throws {ServicesError} with what to install
 */
export function provideTools(wanted, say) {
  const missing = () => wanted.filter((name) => find(TOOLS[name]) === undefined)
  const packages = () => [...new Set(missing().map((name) => TOOLS[name].debian))]
  if (missing().length > 0 && process.getuid?.() === 0 && existsSync('/usr/bin/apt-get')) install(packages(), say)
  if (missing().length > 0) {
    throw new ServicesError(
      `Not found: ${missing().join(', ')}. Put them on PATH; Debian, Ubuntu: apt-get install -y --no-install-recommends ${packages().join(' ')}`
    )
  }
  return Object.fromEntries(wanted.map((name) => [name, find(TOOLS[name])]))
}
