/**
 * Brings a clone into a state in which its commands can run: packages installed, native module loadable, TypeScript built.
 * Runs before every npm command; does nothing, in well under 150 ms, when there is nothing to do. Uses Node's own modules
 * only, because it also runs when node_modules is absent. Writes to stderr alone: stdout belongs to the command.
 *
 * usage: node scripts/setup.mjs [--no-build] [--tests]
 *   --no-build  packages only (lint, typecheck)
 *   --tests     the packages of development too, though all is built
 */
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const at = (...parts) => join(root, ...parts)
const say = (line) => process.stderr.write(`${line}\n`)
const read = (path) => (existsSync(path) ? readFileSync(path, 'utf8') : '')

class SetupError extends Error {}

/** Oldest Node that the dependencies accept; package.json `engines` says the same to npm. */
const NODE_MIN = [20, 19]
const BUILD_STAMP = at('dist', '.sources')
const SQLITE_BINARY = at('node_modules', 'better-sqlite3', 'build', 'Release', 'better_sqlite3.node')

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > NODE_MIN[0] || (major === NODE_MIN[0] && minor >= NODE_MIN[1])) return
  throw new SetupError(`Node ${process.versions.node} is too old: Node ${NODE_MIN.join('.')} or later is needed.`)
}

/** Runs a program with its output on stderr; throws `message` when it fails. */
function run(command, args, message, options = {}) {
  const { error, status } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2], ...options })
  if (error || status !== 0) throw new SetupError(message(error))
}

function npm(args, message) {
  const cli = process.env.npm_execpath
  if (cli && /npm-cli\.[cm]?js$/.test(cli)) return run(process.execPath, [cli, ...args], message)
  run('npm', args, message, { shell: process.platform === 'win32' })
}

/**
 * Compares what package-lock.json asks for with what npm noted down in node_modules after its last complete installation.
 * Optional packages are left out: each machine installs only those of its platform.
 */
function missingPackages() {
  const lockText = read(at('package-lock.json'))
  const installedText = read(at('node_modules', '.package-lock.json'))
  if (!lockText) return []
  const wanted = Object.entries(JSON.parse(lockText).packages ?? {})
  const installed = installedText ? (JSON.parse(installedText).packages ?? {}) : {}
  return wanted
    .filter(([path, entry]) => path && !entry.optional && !entry.link && installed[path]?.version !== entry.version)
    .map(([path, entry]) => ({ path, dev: entry.dev === true }))
}

function missingCompilers() {
  const inPath = (name) => (process.env.PATH ?? '').split(delimiter).some((dir) => existsSync(join(dir, name)))
  const tools = { 'a C++ compiler': ['g++', 'c++', 'clang++'], make: ['make', 'gmake'], python3: ['python3', 'python'] }
  return Object.keys(tools).filter((tool) => !tools[tool].some(inPath))
}

function installationFailure() {
  const missing = process.platform === 'win32' ? [] : missingCompilers()
  if (missing.length === 0) return 'The packages could not be installed: see the message above.'
  return [
    `The packages could not be installed, and this machine lacks ${missing.join(', ')}, needed to compile better-sqlite3`,
    'where no prebuilt binary can be fetched. Install a C++ toolchain and try again:',
    '  Debian, Ubuntu: apt-get install -y build-essential python3',
    '  Fedora, RHEL:   dnf install -y gcc-c++ make python3',
    '  Alpine:         apk add build-base python3',
    '  macOS:          xcode-select --install'
  ].join('\n')
}

/** Whether the lock names every optional package: a registry that lacks other platforms' ones makes npm leave them out. */
function lockIsComplete() {
  const { packages } = JSON.parse(read(at('package-lock.json')) || '{"packages":{}}')
  const names = new Set(Object.keys(packages).map((path) => path.slice(path.lastIndexOf('node_modules/') + 13)))
  return Object.values(packages).every(({ optionalDependencies = {} }) =>
    Object.keys(optionalDependencies).every((name) => names.has(name))
  )
}

/** `npm ci` refuses an incomplete lock, `npm install` does not. NODE_ENV=production would drop the compiler, hence --include. */
function installPackages() {
  say('Installing packages (once; a few minutes where better-sqlite3 has to be compiled)')
  const command = lockIsComplete() ? ['ci'] : ['install', '--no-save']
  npm([...command, '--include=dev', '--no-audit', '--no-fund'], installationFailure)
}

/** Loading the binary is the only sure sign that it was compiled, and for this Node. */
function sqliteLoads() {
  try {
    createRequire(import.meta.url)(SQLITE_BINARY)
    return true
  } catch {
    return false
  }
}

function rebuildSqlite() {
  say(`Compiling better-sqlite3 for Node ${process.versions.node}`)
  npm(['rebuild', '--ignore-scripts=false', 'better-sqlite3'], installationFailure)
  if (!sqliteLoads()) throw new SetupError(installationFailure())
}

function* filesBelow(directory) {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name)
    if (entry.isDirectory()) yield* filesBelow(path)
    else yield path
  }
}

/** Every input of the compiler, as tsconfig.json lists it, by content: a clone, a copy or a container changes the times. */
function sourcesSignature() {
  const config = at('tsconfig.json')
  if (!existsSync(config)) return undefined
  const folders = JSON.parse(readFileSync(config, 'utf8')).include.filter((entry) => !entry.includes('*'))
  const top = readdirSync(root)
    .filter((name) => name.endsWith('.ts'))
    .map((name) => at(name))
  const below = folders
    .map((folder) => at(folder))
    .filter(existsSync)
    .flatMap((folder) => [...filesBelow(folder)])
  const sources = [...top, ...below.filter((path) => path.endsWith('.ts')), config, at('package-lock.json')].sort()
  const hash = createHash('sha256')
  for (const path of sources.filter(existsSync)) hash.update(path.slice(root.length)).update(readFileSync(path))
  return hash.digest('hex')
}

/** The compiler never deletes: without this a renamed test would go on running under its old name. */
function removeOrphans() {
  for (const path of filesBelow(at('dist'))) {
    const source = path.replace(/\.(js|js\.map|d\.ts)$/, '.ts')
    if (source !== path && !existsSync(at(source.slice(at('dist').length + 1)))) rmSync(path)
  }
}

function build(signature) {
  say('Building')
  const compiler = at('node_modules', 'typescript', 'bin', 'tsc')
  // A build that fails has written some files: what was there before is not built any more.
  rmSync(BUILD_STAMP, { force: true })
  run(process.execPath, [compiler, '-p', 'tsconfig.json'], () => 'The build failed: see the errors above.')
  removeOrphans()
  writeFileSync(BUILD_STAMP, signature)
}

/** One setup at a time per clone: two `npm ci` in one folder destroy each other's work. */
async function withLock(work) {
  const path = at('.setup.lock')
  for (let told = false; ; ) {
    try {
      writeFileSync(path, String(process.pid), { flag: 'wx' })
      break
    } catch {
      if (!holderLives(path)) rmSync(path, { force: true })
      else if (!told) say('Waiting for another setup of this folder to finish')
      told = true
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
  }
  try {
    return work()
  } finally {
    rmSync(path, { force: true })
  }
}

function holderLives(path) {
  try {
    process.kill(Number(readFileSync(path, 'utf8')) || 0, 0)
    return true
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/** What is still to be done, in order; empty on every run but the first after a change. */
function pendingWork({ tests, noBuild }) {
  const signature = noBuild ? undefined : sourcesSignature()
  const toBuild = signature !== undefined && (read(BUILD_STAMP) !== signature || !existsSync(at('dist')))
  const missing = missingPackages()
  const withDev = toBuild || tests || noBuild
  const pending = []
  if (missing.some(({ dev }) => withDev || !dev)) pending.push(installPackages)
  if (pending.length > 0 || !sqliteLoads()) pending.push(() => sqliteLoads() || rebuildSqlite())
  if (toBuild) pending.push(() => build(signature))
  return pending
}

const options = { tests: process.argv.includes('--tests'), noBuild: process.argv.includes('--no-build') }
try {
  checkNode()
  if (pendingWork(options).length > 0) {
    // Looked at again under the lock: another process may have done the work meanwhile.
    await withLock(() => {
      for (const step of pendingWork(options)) step()
    })
  }
} catch (error) {
  if (!(error instanceof SetupError)) throw error
  say(error.message)
  process.exit(1)
}
