/**
 * Runs the tests on a real PostgreSQL and a real Redis, and ends with the line `N passed, N failed`. Each file is a program that
 * prints TAP, run by Node itself: tap's own runner would cost half a second of CPU more for each.
 *
 * usage: node scripts/test.mjs [--coverage] [--jobs=N] [files, as test/x.test.ts or just x]
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism, constants, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { reportCoverage } from './coverage.mjs'
import { provideServices, ServicesError } from './services.mjs'
import { createTapReader } from './tap-reader.mjs'
import { makeTestFolder } from './test-folder.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const TIMEOUT_S = 300
// Two more than there are processors: files wait for servers, disks and clocks. On two of them 277 s, with one less 332.
const JOBS = Math.min(availableParallelism() + 2, 6)
/**
 * Files that share a process, since each costs two seconds of CPU to start, and those that have one of their own, because they
 * measure it or change it. What takes longest starts first: whatever began last would otherwise run alone at the end. Any file
 * that is not named has a process of its own, after these.
 */
const PROCESSES = [
  ['faults/service'],
  ['backups', 'backups-kept'],
  ['mirror'],
  ['cli'],
  [
    ...['ledger', 'ledger-history', 'inventory', 'inventory-stock', 'inventory-lists', 'portable'],
    ...['app', 'answers']
  ],
  [
    ...['security/sessions', 'security/sessions-nodes', 'security/tokens', 'security/accounts', 'security/passkeys'],
    ...['security/second-factor', 'security/second-factor-codes', 'security/oidc', 'security/oidc-tokens'],
    ...['identity', 'identity-tokens', 'identity-limits']
  ],
  [
    ...['security/input', 'security/access', 'security/http', 'security/fuzz', 'security/documents'],
    ...['audit', 'audit-proof', 'audit-secrets', 'privacy']
  ],
  ['imports', 'imports-refused', 'tenancy'],
  [
    ...[
      'forecast-choice',
      'forecast-models',
      'forecast-phases',
      'forecast-seasons',
      'forecast-references',
      'forecasting',
      'forecasting-series',
      'forecasting-calendar'
    ],
    ...['anomaly']
  ],
  ['nodes'],
  [
    ...['archives', 'webhooks', 'webhook-targets', 'realtime', 'dashboards', 'alerts', 'errors', 'metrics'],
    ...['tidy', 'sqlite-log', 'services']
  ],
  ['forecasting-learning', 'forecasting-nightly', 'forecasting-sums'],
  ['upgrades/upgrades', 'upgrades/online'],
  ['telemetry', 'telemetry-logs'],
  ['embed'],
  ['faults/network'],
  ['caches', 'caches-redis', 'replicas'],
  ['health'],
  ['jobs', 'jobs-http', 'compute', 'security/transport'],
  ['breath']
]
const STDERR_KEPT_CHARS = 20_000
const say = (line) => process.stdout.write(`${line}\n`)

class UsageError extends Error {}

/** dist/test/x.test.js, relative to the root, for test/x.test.ts, dist/test/x.test.js or x. */
function compiledFile(name) {
  const bare = name
    .replace(/^\.\//, '')
    .replace(/^dist\//, '')
    .replace(/\.ts$/, '.js')
  const file = ['.test.js', '', '.js'].flatMap((end) => [`dist/${bare}${end}`, `dist/test/${bare}${end}`])
  const found = file.find((path) => path.endsWith('.js') && existsSync(join(root, path)))
  if (!found) throw new UsageError(`no test file ${name}`)
  return found
}

const compiled = (name) => join('dist', 'test', `${name}.test.js`)

/** What one process each runs, the longest first. */
function allFiles() {
  const folder = join(root, 'dist', 'test')
  const names = existsSync(folder) ? readdirSync(folder, { recursive: true }) : []
  const files = names.filter((name) => name.endsWith('.test.js')).map((name) => join('dist', 'test', name))
  const first = PROCESSES.map((group) => group.map(compiled))
  const gone = first.flat().filter((file) => !files.includes(file))
  if (gone.length > 0) throw new UsageError(`named in scripts/test.mjs and not there: ${gone.join(', ')}`)
  const others = files.filter((file) => !first.flat().includes(file)).sort()
  return [...first, ...others.map((file) => [file])]
}

function parseArguments(argv) {
  const known = /^--(coverage|jobs=\d{1,2})$/
  const unknown = argv.find((word) => word.startsWith('-') && !known.test(word))
  if (unknown) throw new UsageError(`no option ${unknown}; there are --coverage and --jobs=N`)
  const names = argv.filter((word) => !word.startsWith('-'))
  const runs = names.length > 0 ? names.map((name) => [compiledFile(name)]) : allFiles()
  const jobs = Number(argv.find((word) => word.startsWith('--jobs='))?.slice('--jobs='.length) || JOBS)
  return { coverage: argv.includes('--coverage'), jobs, runs }
}

/** The tests choose their own databases: what the developer's shell names must not be written to. */
function testEnvironment(services, coverageFolder) {
  const env = {
    ...process.env,
    ...services,
    // A test of tap may take as long as its file.
    TAP_TIMEOUT: String(TIMEOUT_S),
    ...(coverageFolder && { NODE_V8_COVERAGE: coverageFolder })
  }
  for (const name of ['DATABASE_URL', 'DATA_DIR', 'MIRROR_URL', 'REDIS_URL']) delete env[name]
  return env
}

/** Runs the files of one process; it leads a group, so that what it started goes with it. */
async function run(files, { env, reader, running }) {
  const startedAt = performance.now()
  const program = files.length === 1 ? files : [join('scripts', 'test-files.mjs'), ...files]
  const flags = ['--enable-source-maps', `--import=${pathToFileURL(join(root, 'scripts', 'test-start.mjs')).href}`]
  const child = spawn(process.execPath, [...flags, ...program], {
    cwd: root,
    env,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe']
  })
  running.add(child)
  const report = reader.open(files)
  let noise = ''
  child.stdout.setEncoding('utf8').on('data', report.write)
  child.stderr.setEncoding('utf8').on('data', (text) => {
    noise = (noise + text).slice(-STDERR_KEPT_CHARS)
  })
  let late = false
  const timeout = setTimeout(() => {
    late = true
    endGroup(child, 'SIGTERM')
    setTimeout(endGroup, 2000, child, 'SIGKILL').unref()
  }, TIMEOUT_S * 1000)
  const [status, signal] = await new Promise((resolve) => child.on('close', (...end) => resolve(end)))
  clearTimeout(timeout)
  running.delete(child)
  const ended = signal ? `ended by ${signal}` : status === 0 ? undefined : `ended with status ${status}`
  const problem = late ? `took longer than ${TIMEOUT_S} s` : ended
  report.end({ problem, seconds: (performance.now() - startedAt) / 1000, noise })
}

/** Some processes at a time, until all are done or `stopped` says so. */
async function runAll({ runs, jobs, stopped, ...how }) {
  const waiting = [...runs]
  const runNext = async () => {
    while (waiting.length > 0 && !stopped()) await run(waiting.shift(), how)
  }
  await Promise.all(Array.from({ length: jobs }, runNext))
}

function endGroup(child, signal) {
  try {
    process.kill(-child.pid, signal)
  } catch {
    // It has ended by itself.
  }
}

/**
 * On a signal the groups of all files that run go, tests and their servers included, and the run finishes as a failed one.
 * @returns which signal came
 */
function onSignals(running) {
  let received
  const endAll = (signal) => running.forEach((child) => void endGroup(child, signal))
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      received = signal
      endAll('SIGTERM')
      setTimeout(endAll, 2000, 'SIGKILL').unref()
    })
  }
  return () => received
}

async function main() {
  const { coverage, jobs, runs } = parseArguments(process.argv.slice(2))
  const started = performance.now()
  const running = new Set()
  const signalled = onSignals(running)
  // Some gigabytes, so not in memory.
  const coverageFolder = coverage ? mkdtempSync(join(tmpdir(), 'inventory-coverage-')) : undefined
  const folder = makeTestFolder()
  Object.assign(process.env, { TEST_FOLDER: folder, TMPDIR: folder })
  let services
  try {
    services = await provideServices(say)
    for (const note of services.notes) say(note)
    const reader = createTapReader(say)
    const env = testEnvironment(services.env, coverageFolder)
    await runAll({ runs, jobs, env, reader, running, stopped: signalled })
    const { passed, failed } = reader.finish(signalled())
    const uncovered = coverageFolder ? await reportCoverage({ root, rawFolder: coverageFolder, say }) : 0
    const seconds = ((performance.now() - started) / 1000).toFixed(1)
    say(`${runs.flat().length} files, ${seconds} s`)
    await services.stop()
    say(`${passed} passed, ${failed} failed`)
    if (signalled()) return 128 + constants.signals[signalled()]
    return failed === 0 && passed > 0 && uncovered === 0 ? 0 : 1
  } finally {
    await services?.stop()
    rmSync(folder, { recursive: true, force: true })
    if (coverageFolder) rmSync(coverageFolder, { recursive: true, force: true })
  }
}

try {
  process.exitCode = await main()
} catch (error) {
  if (!(error instanceof ServicesError || error instanceof UsageError)) throw error
  process.stderr.write(`${error.message}\n`)
  process.exitCode = 1
}
