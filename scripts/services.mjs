/**
 * Finds or starts the PostgreSQL and the Redis that the tests run on. In this order: the URL in the environment, a server
 * already running here that accepts us, a binary on this machine, the package manager (as root, on Debian and its like).
 * Whatever happens, the binaries are looked for as well: some tests break servers of their own.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readdirSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir, userInfo } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { Redis } from 'ioredis'
import pg from 'pg'

const POSTGRES_MIN = 14
const REDIS_MIN = 6

export class ServicesError extends Error {}

const asRoot = process.getuid?.() === 0
const pathFolders = () => (process.env.PATH ?? '').split(delimiter).filter(Boolean)
const inFolders = (folders, names) =>
  folders.flatMap((folder) => names.map((name) => join(folder, name))).find(existsSync)

/** Folders of the form prefix + version + suffix, such as /usr/lib/postgresql/15/bin. */
function versionedFolders(parent, suffix) {
  if (!existsSync(parent)) return []
  return readdirSync(parent)
    .map((name) => join(parent, name, suffix))
    .filter(existsSync)
}

const majorOf = (binary) =>
  Number(/(\d+)\.\d+/.exec(spawnSync(binary, ['--version'], { encoding: 'utf8' }).stdout ?? '')?.[1] ?? 0)

/** The newest PostgreSQL on this machine: the folder of `postgres` and `initdb`. */
export function findPostgres() {
  const folders = [
    process.env.TEST_POSTGRES_BIN,
    ...pathFolders(),
    ...versionedFolders('/usr/lib/postgresql', 'bin'),
    ...versionedFolders('/opt/homebrew/opt', 'bin').filter((path) => path.includes('postgresql')),
    ...readdirSync('/usr')
      .filter((name) => name.startsWith('pgsql-'))
      .map((name) => `/usr/${name}/bin`)
  ]
  const real = folders
    .filter((folder) => folder && existsSync(join(folder, 'postgres')))
    .map((folder) => dirname(realpathSync(join(folder, 'postgres'))))
    .filter((folder) => existsSync(join(folder, 'initdb')))
  return [...new Set(real)]
    .map((folder) => ({ folder, major: majorOf(join(folder, 'postgres')) }))
    .filter(({ major }) => major >= POSTGRES_MIN)
    .sort((a, b) => b.major - a.major)[0]?.folder
}

function findRedis() {
  const given = process.env.TEST_REDIS_BINARY
  if (given && existsSync(given)) return given
  return inFolders(
    [...pathFolders(), '/usr/bin', '/usr/local/bin', '/opt/homebrew/bin'],
    ['redis-server', 'valkey-server']
  )
}

/** Runs apt-get quietly; its output is worth reading only when it fails. */
export function install(packages, say) {
  say(`Installing ${packages.join(' and ')} with apt-get`)
  const options = { encoding: 'utf8', env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } }
  const lock = ['-o', 'DPkg::Lock::Timeout=300']
  const steps = [['update'], ['install', '-y', '--no-install-recommends', ...packages]]
  for (const step of steps) {
    const { status, stdout, stderr } = spawnSync('apt-get', [...lock, ...step], options)
    if (status !== 0 && step[0] === 'install') say(`${stdout ?? ''}${stderr ?? ''}`.trimEnd())
  }
}

function findBinaries(say) {
  const missing = []
  if (!findPostgres()) missing.push('postgresql')
  if (!findRedis()) missing.push('redis-server')
  const canInstall = asRoot && inFolders(pathFolders(), ['apt-get']) !== undefined
  if (missing.length > 0 && canInstall) install(missing, say)
  // It shows that others can open a backup. Where it cannot be had, its one test is left out.
  if (!findAge() && canInstall) install(['age'], say)
  return { postgres: findPostgres(), redis: findRedis(), age: findAge() }
}

const findAge = () => inFolders([...pathFolders(), '/usr/bin', '/usr/local/bin', '/opt/homebrew/bin'], ['age'])

/** Throws unless this PostgreSQL lets us do all that the tests do. */
async function checkPostgres(url) {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 3000 })
  client.on('error', () => {})
  try {
    await client.connect()
    const { rows } = await client.query(
      "SELECT current_setting('server_version') AS version, (SELECT count(*)::int FROM pg_available_extensions WHERE name = 'pg_trgm') AS trgm"
    )
    const [{ version, trgm }] = rows
    if (Number.parseInt(version, 10) < POSTGRES_MIN) throw new Error(`version ${version}, ${POSTGRES_MIN} is needed`)
    if (trgm === 0) throw new Error('the extension pg_trgm (package postgresql-contrib) is not installed')
    const name = `inventory_probe_${randomBytes(6).toString('hex')}`
    await client.query(`CREATE DATABASE ${name}`)
    await client.query(`DROP DATABASE ${name}`)
    return version
  } finally {
    await client.end().catch(() => {})
  }
}

/** Throws unless this Redis answers and takes writes. */
async function checkRedis(url, { mustBeEmpty = false } = {}) {
  const options = {
    lazyConnect: true,
    connectTimeout: 2000,
    commandTimeout: 2000,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null
  }
  const client = new Redis(url, options)
  client.on('error', () => {})
  try {
    await client.connect()
    const version = /redis_version:(\S+)/.exec(await client.info('server'))?.[1] ?? '0'
    if (Number.parseInt(version, 10) < REDIS_MIN) throw new Error(`version ${version}, ${REDIS_MIN} is needed`)
    if (mustBeEmpty && (await client.dbsize()) > 0) throw new Error('its database is in use')
    await client.set(`inventory-probe:${process.pid}`, '1', 'PX', 1000)
    return version
  } finally {
    client.disconnect()
  }
}

async function firstAccepting(urls, check) {
  for (const url of urls) {
    try {
      return { url, version: await check(url) }
    } catch {
      // Not ours to use: the next one, or a server of our own.
    }
  }
  return undefined
}

function localPostgresUrls() {
  const host = `${process.env.PGHOST?.startsWith('/') ? '127.0.0.1' : (process.env.PGHOST ?? '127.0.0.1')}:${process.env.PGPORT ?? 5432}`
  const users = [process.env.PGUSER, 'postgres', userInfo().username].filter(Boolean)
  return [...new Set(users)].map((user) => `postgres://${encodeURIComponent(user)}@${host}/postgres`)
}

function advice(name, packages) {
  return [
    `No ${name} to test on. Install one, or name a running one in TEST_${name === 'Redis' ? 'REDIS' : 'POSTGRES'}_URL:`,
    `  Debian, Ubuntu: apt-get install -y --no-install-recommends ${packages.debian}`,
    `  Fedora, RHEL:   dnf install -y ${packages.fedora}`,
    `  Alpine:         apk add ${packages.alpine}`,
    `  macOS:          brew install ${packages.brew}`
  ].join('\n')
}

/** One service by the four ways; `start` is tried when a binary is there. */
async function provide({ name, given, check, running, binary, start, packages }) {
  if (given) {
    const version = await check(given).catch((error) => {
      throw new ServicesError(`The ${name} named in the environment cannot be used: ${error.message || error.code}`)
    })
    return { url: given, note: `${name} ${version}, named in the environment` }
  }
  const found = await running()
  if (found) return { url: found.url, note: `${name} ${found.version}, already running at ${new URL(found.url).host}` }
  if (!binary) throw new ServicesError(advice(name, packages))
  const server = await start().catch((error) => {
    throw new ServicesError(`${name} does not start from ${binary}:\n${error.message}`)
  })
  const version = await check(server.url).catch(async (error) => {
    await server.stop()
    throw new ServicesError(`The ${name} of ${binary} cannot be used: ${error.message}`)
  })
  return { url: server.url, note: `${name} ${version}, started from ${binary}`, server }
}

/** An unprivileged account for PostgreSQL, which refuses to run as root. */
export function serverUser() {
  return ['postgres', 'nobody'].find((user) => {
    try {
      return execFileSync('id', ['-u', user], { stdio: 'pipe' })
    } catch {
      return false
    }
  })
}

/**
 * @param say prints one line of progress
 * @returns the environment for the tests, one line about each service, and `stop`, which ends what was started
 * @throws {ServicesError} with what to install, when there is no way to a service
 */
export async function provideServices(say) {
  const binaries = findBinaries(say)
  const env = {
    ...(binaries.postgres && { TEST_POSTGRES_BIN: binaries.postgres }),
    ...(binaries.redis && { TEST_REDIS_BINARY: binaries.redis }),
    ...(binaries.age && { TEST_AGE_BINARY: binaries.age }),
    ...(asRoot && { TEST_POSTGRES_USER: process.env.TEST_POSTGRES_USER ?? serverUser() })
  }
  Object.assign(process.env, env)
  // Compiled from test/services.ts: the tests' private servers and these are started by the same code.
  const { dropTemplate, startPostgres, startRedis } = await import('../dist/test/services.js')
  const results = await Promise.allSettled([
    provide({
      name: 'PostgreSQL',
      given: process.env.TEST_POSTGRES_URL,
      check: checkPostgres,
      running: () => firstAccepting(localPostgresUrls(), checkPostgres),
      binary: binaries.postgres,
      // It is never the one that is killed: what a crash of it leaves is tested on servers of their own, which do wait for the disk.
      start: () => startPostgres({ fsync: 'off', full_page_writes: 'off' }),
      packages: {
        debian: 'postgresql',
        fedora: 'postgresql-server postgresql-contrib',
        alpine: 'postgresql postgresql-contrib',
        brew: 'postgresql@17'
      }
    }),
    provide({
      name: 'Redis',
      given: process.env.TEST_REDIS_URL,
      check: checkRedis,
      // The last database, and only if empty: the server may be someone's own.
      running: () => firstAccepting(['redis://127.0.0.1:6379/15'], (url) => checkRedis(url, { mustBeEmpty: true })),
      binary: binaries.redis,
      start: startRedis,
      packages: { debian: 'redis-server', fedora: 'redis', alpine: 'redis', brew: 'redis' }
    })
  ])
  const templates = mkdtempSync(join(tmpdir(), 'inventory-templates-'))
  const stop = async () => {
    rmSync(templates, { recursive: true, force: true })
    const [postgres] = results
    // It would outlive us only on a server that does.
    if (postgres.value && !postgres.value.server) await dropTemplate(postgres.value.url, templates)
    await Promise.all(results.map(({ value }) => value?.server?.stop()))
  }
  const failures = results.filter(({ status }) => status === 'rejected').map(({ reason }) => reason)
  if (failures.length > 0) {
    await stop()
    const unexpected = failures.find((reason) => !(reason instanceof ServicesError))
    throw unexpected ?? new ServicesError(failures.map(({ message }) => message).join('\n'))
  }
  const [postgres, redis] = results.map(({ value }) => value)
  Object.assign(env, { TEST_POSTGRES_URL: postgres.url, TEST_REDIS_URL: redis.url, TEST_TEMPLATES: templates })
  return { env, notes: [postgres.note, redis.note], stop }
}
