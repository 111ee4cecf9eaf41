/**
 * Runs the tests under tap on a real PostgreSQL and a real Redis, and ends with the line `N passed, N failed`.
 *
 * usage: node scripts/test.mjs [--coverage] [tap's own options, as --name=value] [files, as test/x.test.ts or just x]
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism, constants, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { reportCoverage } from './coverage.mjs'
import { provideServices, ServicesError } from './services.mjs'
import { createTapReader } from './tap-reader.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const FILE_TIMEOUT_S = 300
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

function allFiles() {
  const folder = join(root, 'dist', 'test')
  const names = existsSync(folder) ? readdirSync(folder, { recursive: true }) : []
  return names
    .filter((name) => name.endsWith('.test.js'))
    .map((name) => join('dist', 'test', name))
    .sort()
}

function parseArguments(argv) {
  const options = argv.filter((word) => word.startsWith('-') && word !== '--coverage')
  const names = argv.filter((word) => !word.startsWith('-'))
  const files = names.length > 0 ? names.map(compiledFile) : allFiles()
  return { coverage: argv.includes('--coverage'), options, files }
}

/** The tests choose their own databases: what the developer's shell names must not be written to. */
function testEnvironment(services, coverageFolder) {
  const env = { ...process.env, ...services, ...(coverageFolder && { NODE_V8_COVERAGE: coverageFolder }) }
  for (const name of ['DATABASE_URL', 'DATA_DIR', 'MIRROR_URL', 'REDIS_URL']) delete env[name]
  return env
}

/** Runs tap; resolves to its exit status and to what the tests wrote on stderr, which is shown only after a failure. */
async function runTap({ options, files, env, reader, onStart }) {
  const jobs = Math.min(availableParallelism(), 4)
  const defaults = [
    '--disable-coverage',
    '--allow-empty-coverage',
    '--reporter=tap',
    `--jobs=${jobs}`,
    `--timeout=${FILE_TIMEOUT_S}`
  ]
  const tap = join(root, 'node_modules', 'tap', 'dist', 'esm', 'run.mjs')
  const child = spawn(process.execPath, [tap, 'run', ...defaults, ...options, ...files], {
    cwd: root,
    env,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe']
  })
  onStart(child)
  let noise = ''
  child.stderr.setEncoding('utf8').on('data', (text) => {
    noise = (noise + text).slice(-STDERR_KEPT_CHARS)
  })
  child.stdout.pipe(reader.parser)
  const [status, signal] = await new Promise((resolve) => child.on('close', (...end) => resolve(end)))
  return { status: signal ? 1 : status, noise }
}

/**
 * On a signal the whole group of tap goes, tests and their servers included, and the run finishes as a failed one.
 * @returns what to call with tap's process, and which signal came
 */
function onSignals() {
  let received
  let tap
  const end = (signal) => {
    try {
      if (tap) process.kill(-tap.pid, signal)
    } catch {
      // It has ended by itself.
    }
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      received = signal
      end('SIGTERM')
      setTimeout(end, 2000, 'SIGKILL').unref()
    })
  }
  const guard = (child) => {
    tap = child
  }
  return { guard, signalled: () => received }
}

async function main() {
  const { coverage, options, files } = parseArguments(process.argv.slice(2))
  const started = performance.now()
  const { guard, signalled } = onSignals()
  const services = await provideServices(say)
  const coverageFolder = coverage ? mkdtempSync(join(tmpdir(), 'inventory-coverage-')) : undefined
  try {
    for (const note of services.notes) say(note)
    const reader = createTapReader(say)
    const env = testEnvironment(services.env, coverageFolder)
    const end = { status: 1, noise: '' }
    if (files.length > 0 && !signalled()) {
      Object.assign(end, await runTap({ options, files, env, reader, onStart: guard }))
    }
    const { passed, failed } = reader.finish({ status: end.status, signal: signalled(), noise: end.noise })
    const uncovered = coverageFolder ? await reportCoverage({ root, rawFolder: coverageFolder, say }) : 0
    const seconds = ((performance.now() - started) / 1000).toFixed(1)
    say(`${files.length} files, ${seconds} s`)
    await services.stop()
    say(`${passed} passed, ${failed} failed`)
    if (signalled()) return 128 + constants.signals[signalled()]
    const clean = end.status === 0 && failed === 0 && passed > 0 && uncovered === 0
    return clean ? 0 : end.status || 1
  } finally {
    await services.stop()
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
