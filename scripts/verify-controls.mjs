/**
 * Proves that the security tests miss what they test: takes each control of test/security/controls.txt out of a copy of the compiled
 * program, one at a time, and demands that the named test fails, and passes with the control in its place.
 *
 * Begins each day further on, at CONTROLS_SEED, and stops after CONTROLS_SECONDS: within a few days every control has had its turn.
 *
 * usage: node scripts/verify-controls.mjs [--all] [requirements or test files, as V7.4.1 or security/http]
 *   --all   every control, however long it takes: some eight minutes on two CPUs
 */
import { spawn } from 'node:child_process'
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Parser } from 'tap-parser'
import { readControls, without } from '../dist/test/security/controls.js'
import { provideServices, ServicesError } from './services.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const TEST_TIMEOUT_S = 60
const STDERR_KEPT_CHARS = 2_000
const DAY_MS = 86_400_000
const SECONDS = 150
/** So many controls further on each day; fewer than a day's time is enough for. */
const CONTROLS_A_DAY = 25
const say = (line) => process.stdout.write(`${line}\n`)
const compiledName = (file) => (file.endsWith('.ts') ? join('dist', file.replace(/\.ts$/, '.js')) : file)

/**
 * A clone that shares everything but what is changed: the compiled program and the scripts, and the folder in which tests have their
 * files: two clones that run the same test at once would remove each other's.
 */
function copyOf(folder) {
  mkdirSync(folder)
  for (const name of readdirSync(root)) {
    if (name === 'dist' || name === 'scripts') cpSync(join(root, name), join(folder, name), { recursive: true })
    else if (name !== '.git' && name !== '.tap') symlinkSync(join(root, name), join(folder, name))
  }
  return folder
}

const literally = (name) => `/${name.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')}/`

/** Calls `failed` as soon as an assertion below the test at `path` fails, and `passed` for each that does not. */
function follow(path, { failed, passed }) {
  const parser = new Parser()
  const listen = (to, names) => {
    to.on('child', (child) => listen(child, [...names, child.name]))
    to.on('assert', ({ ok, skip, closingTestPoint, name }) => {
      const at = closingTestPoint ? [...names, name] : names
      if (!path.every((part, depth) => at[depth]?.includes(part))) return
      if (!ok) failed()
      else if (!skip && !closingTestPoint) passed()
    })
  }
  listen(parser, [])
  return parser
}

const running = new Set()

/** Runs one test in `folder` until it fails or ends. @returns 'failed', 'passed', or why it can be called neither */
async function runTest(folder, { suite, path, chosen }, env) {
  const file = join('dist', 'test', `${suite}.test.js`)
  const child = spawn(process.execPath, [file], {
    cwd: folder,
    env: { ...env, TAP_GREP: path.slice(0, chosen).map(literally).join('\n') },
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe']
  })
  const end = (signal) => {
    try {
      process.kill(-child.pid, signal)
    } catch {
      // It has ended by itself.
    }
  }
  running.add(end)
  let verdict
  let passed = 0
  let noise = ''
  let tap = ''
  const parser = follow(path, {
    failed: () => {
      verdict ??= 'failed'
      end('SIGTERM')
      setTimeout(end, 1_000, 'SIGKILL').unref()
    },
    passed: () => passed++
  })
  child.stdout.setEncoding('utf8').on('data', (text) => {
    tap = (tap + text).slice(-STDERR_KEPT_CHARS)
    parser.write(text)
  })
  child.stderr.setEncoding('utf8').on('data', (text) => {
    noise = (noise + text).slice(-STDERR_KEPT_CHARS)
  })
  const timeout = setTimeout(() => {
    verdict ??= `took longer than ${TEST_TIMEOUT_S} s`
    end('SIGKILL')
  }, TEST_TIMEOUT_S * 1000)
  const [status] = await new Promise((resolve) => child.on('close', (...ended) => resolve(ended)))
  clearTimeout(timeout)
  // What it started is in its group, and would go on.
  end('SIGKILL')
  running.delete(end)
  parser.end()
  if (verdict !== undefined) return verdict
  if (passed === 0)
    return `ended with status ${status} before any assertion of the test: ${noise.trim().split('\n').at(-1) ?? ''}\n${tap}`
  return status === 0 ? 'passed' : `ended with status ${status}, the test itself not having failed`
}

/** @returns what is wrong with the proof of this control, or undefined */
async function prove(folder, control, { env, baselines }) {
  const name = [control.suite, ...control.path].join(' > ')
  const saved = new Map()
  const restore = () => saved.forEach((text, path) => void writeFileSync(path, text))
  try {
    for (const removal of control.removals) {
      const path = join(folder, compiledName(removal.file))
      const text = readFileSync(path, 'utf8')
      if (!saved.has(path)) saved.set(path, text)
      writeFileSync(path, without(text, removal))
    }
    const mutated = await runTest(folder, control, env)
    if (mutated === 'passed') return 'SURVIVED: nothing misses it'
    if (mutated !== 'failed') return mutated
  } catch (error) {
    return error.message
  } finally {
    restore()
  }
  // That it fails proves something only where it passes otherwise; asked once for each test.
  if (!baselines.has(name)) baselines.set(name, runTest(folder, control, env))
  const before = await baselines.get(name)
  return before === 'passed' ? undefined : `with the control in its place the test does not pass: ${before}`
}

/** The controls in the order of today, and for how long they are tried. */
function choose(controls, argv) {
  const words = argv.filter((word) => !word.startsWith('-'))
  const unknown = argv.find((word) => word.startsWith('-') && word !== '--all')
  if (unknown) throw new ServicesError(`no option ${unknown}; there is --all`)
  const limit = (otherwise) => Number(process.env.CONTROLS_SECONDS ?? otherwise)
  if (words.length > 0 || argv.includes('--all')) {
    const chosen = controls.filter(({ id, suite }) => words.length === 0 || words.includes(id) || words.includes(suite))
    if (chosen.length === 0) throw new ServicesError(`no control of ${words.join(', ')}`)
    return { chosen, seconds: limit(Number.POSITIVE_INFINITY) }
  }
  const seed = Number(process.env.CONTROLS_SEED ?? Math.floor(Date.now() / DAY_MS))
  const from = (seed * CONTROLS_A_DAY) % controls.length
  const seconds = limit(SECONDS)
  say(`CONTROLS_SEED=${seed}: from control ${from + 1} of ${controls.length} on, for ${seconds} s`)
  return { chosen: [...controls.slice(from), ...controls.slice(0, from)], seconds }
}

async function main() {
  const started = performance.now()
  const secondsSince = () => (performance.now() - started) / 1000
  const { chosen, seconds } = choose(readControls(root), process.argv.slice(2))
  const services = await provideServices(say)
  const scratch = mkdtempSync(join(tmpdir(), 'inventory-controls-'))
  // A test that is ended leaves its folders, and they go with ours. PostgreSQL, which is not run as root, has to get there.
  const folders = join(scratch, 'tmp')
  mkdirSync(folders)
  for (const path of [scratch, folders]) chmodSync(path, 0o711)
  const env = { ...process.env, ...services.env, TAP_TIMEOUT: String(TEST_TIMEOUT_S), TMPDIR: folders }
  // Databases are not copied: what one program without a control made, another would be tested on.
  for (const name of ['DATABASE_URL', 'DATA_DIR', 'MIRROR_URL', 'REDIS_URL', 'TEST_TEMPLATES']) delete env[name]
  const waiting = [...chosen]
  const baselines = new Map()
  const problems = []
  let done = 0
  let stopped = false
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      stopped = true
      for (const end of running) end('SIGKILL')
    })
  }
  const work = async (n) => {
    const folder = copyOf(join(scratch, String(n)))
    while (waiting.length > 0 && secondsSince() < seconds && !stopped) {
      const control = waiting.shift()
      const problem = await prove(folder, control, { env, baselines })
      if (stopped) return
      const name = `${control.id}  ${control.suite} > ${control.path.at(-1)}`
      if (problem !== undefined)
        problems.push(
          `${name}\n    ${control.removals.map(({ file, find }) => `${file}: ${find}`).join('\n    ')}\n    ${problem}`
        )
      say(
        `${problem === undefined ? 'missed' : 'NOT   '} ${String(++done).padStart(3)}/${chosen.length} ${secondsSince().toFixed(0).padStart(4)} s  ${name}`
      )
    }
  }
  try {
    await Promise.all(Array.from({ length: Math.min(availableParallelism(), 4) }, (_, n) => work(n)))
  } finally {
    await services.stop()
    rmSync(scratch, { recursive: true, force: true })
  }
  for (const problem of problems) say(`\nnot proven: ${problem}`)
  if (waiting.length > 0) say(`\n${waiting.length} controls were left for another day; --all tries them too`)
  say(
    `${done - problems.length} of ${done} controls are missed by their test when they are gone; ${secondsSince().toFixed(0)} s`
  )
  return problems.length === 0 && done > 0 && !stopped ? 0 : 1
}

try {
  process.exitCode = await main()
} catch (error) {
  if (!(error instanceof ServicesError)) throw error
  process.stderr.write(`${error.message}\n`)
  process.exitCode = 1
}
