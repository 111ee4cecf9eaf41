import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { hosts } from './embed-hosts.js'
import { spawnNode } from './service-process.js'
import { freshDatabase } from './services.js'

/** The package as a stranger's application gets it: packed, unpacked, type-checked, and each module run in a host of its own. */

const root = fileURLToPath(new URL('../..', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'inventory-embed-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
const modules = join(folder, 'node_modules')

function link(name: string): void {
  mkdirSync(dirname(join(modules, name)), { recursive: true })
  symlinkSync(join(root, 'node_modules', name), join(modules, name))
}

/**
 * What `npm install <tarball>` does, but without asking a registry: the tarball is unpacked, and exactly the dependencies
 * that its package.json names are linked beside it, so that one it forgets to name is missing here too.
 */
function install(): string[] {
  // The scripts would build again what is built.
  execFileSync('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder], {
    cwd: root,
    stdio: 'pipe'
  })
  const tarball = readdirSync(folder).find((name) => name.endsWith('.tgz')) ?? ''
  const home = join(modules, 'inventory-enterprise')
  mkdirSync(home, { recursive: true })
  execFileSync('tar', ['-xzf', join(folder, tarball), '-C', home, '--strip-components=1'])
  const { dependencies }: { dependencies: Record<string, string> } = JSON.parse(
    readFileSync(join(home, 'package.json'), 'utf8')
  )
  // The host's own: the compiler's types for Node.
  for (const name of [...Object.keys(dependencies), '@types/node', '@types/better-sqlite3']) link(name)
  return readdirSync(home, { recursive: true }).map(String)
}

/** Each host in turn; the next begins when nothing is left open, so that one which does not end by itself is the last. */
const RUNNER = `
const runs = JSON.parse(process.argv[2])
let running
process.on('beforeExit', () => {
  if (running?.done === false) process.exit(13)
  if (running) console.log('"ended"')
  running = runs.shift()
  if (running === undefined) return
  running.done = false
  for (const stream of ['log', 'error']) console[stream]('=== ' + running.name)
  process.argv.splice(2, process.argv.length, ...running.urls)
  // What is done without a turn of the loop would not be followed by another beforeExit.
  setImmediate(() => import('./' + running.name + '.js').then(() => { running.done = true }))
})
`
interface Ran {
  /** Whether it came to its end, and left nothing open. */
  ended: boolean
  noise: string
  answers: ReturnType<typeof JSON.parse>[]
}

/** What stands behind each line of the runner. */
function partsOf(text: string): ReadonlyMap<string, string> {
  const [, ...parts] = text.split(/^=== (.*)\n/m)
  return new Map(parts.flatMap((name, at) => (at % 2 === 0 ? [[name, parts[at + 1] ?? '']] : [])))
}

/** Runs all hosts in one process, since each costs a second and more to start. What is to do without the core goes before it. */
async function runHosts(): Promise<ReadonlyMap<string, Ran>> {
  const drops: (() => Promise<void>)[] = []
  const names = ['bare', ...Object.keys(hosts).filter((name) => name !== 'bare')]
  const urlsOf = async (name: string) => {
    if (name === 'bare' || name === 'refused') return []
    const database = await freshDatabase()
    drops.push(database.drop)
    return name === 'two' ? [database.url] : ['sqlite::memory:', database.url]
  }
  const runs: { name: string; urls: string[] }[] = []
  for (const name of names) runs.push({ name, urls: await urlsOf(name) })
  writeFileSync(join(folder, 'dist', 'runner.js'), RUNNER)
  const child = spawnNode([join(folder, 'dist', 'runner.js'), JSON.stringify(runs)], { cwd: folder })
  const timer = setTimeout(() => child.kill('SIGKILL'), 60_000)
  let [output, noise] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text
    timer.refresh()
  })
  child.stderr.setEncoding('utf8').on('data', (text) => {
    noise += text
  })
  await once(child, 'close')
  clearTimeout(timer)
  for (const drop of drops) await drop()
  const [said, complained] = [partsOf(output), partsOf(noise)]
  const ranOf = (name: string): Ran => {
    const lines = (said.get(name) ?? '').split('\n').filter((line) => line !== '')
    const answers = lines.map((line): ReturnType<typeof JSON.parse> => JSON.parse(line))
    return { ended: answers.at(-1) === 'ended', noise: complained.get(name) ?? 'it was not run', answers }
  }
  return new Map(names.map((name) => [name, ranOf(name)]))
}

let hostsRun: Promise<ReadonlyMap<string, Ran>> | undefined
async function ranOf(name: string): Promise<Ran> {
  hostsRun ??= runHosts()
  const ran = (await hostsRun).get(name)
  if (ran === undefined) throw new Error(`no host ${name}`)
  return ran
}

t.test('the tarball holds what its exports name, and nothing of the workshop', async (t) => {
  const files = install()
  const { exports }: { exports: Record<string, { types: string; default: string } | string> } = JSON.parse(
    readFileSync(join(modules, 'inventory-enterprise', 'package.json'), 'utf8')
  )
  for (const [name, target] of Object.entries(exports)) {
    const paths = typeof target === 'string' ? [target] : [target.types, target.default]
    for (const path of paths) t.ok(existsSync(join(modules, 'inventory-enterprise', path)), `${name}: ${path}`)
  }
  t.same(
    files.filter((file) => /(^|\/)(test|bench|node_modules)\/|(?<!\.d)\.ts$|\.env$|\.sqlite|jwt-secret/.test(file)),
    []
  )
})

t.test('hosts in TypeScript type-check against it', async (t) => {
  mkdirSync(join(folder, 'src'))
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  for (const [name, source] of Object.entries(hosts)) writeFileSync(join(folder, 'src', `${name}.ts`), source)
  // As strict as a compiler gets, but for the declaration files of other libraries, some of which fail by themselves.
  const compilerOptions = {
    target: 'ES2023',
    module: 'NodeNext',
    strict: true,
    exactOptionalPropertyTypes: false,
    skipLibCheck: false,
    types: ['node'],
    rootDir: 'src',
    outDir: 'dist'
  }
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, include: ['src'] }))
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc')
  const child = spawnNode([tsc, '-p', 'tsconfig.json'], { cwd: folder })
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (text) => {
    said += text
  })
  const [code] = await once(child, 'close')
  t.equal(said, '')
  t.equal(code, 0)
})

t.test('each module alone in a bare Fastify app, on both databases', async (t) => {
  const expected: Record<string, object> = {
    inventory: [
      { status: 201, body: { itemCode: 'A', onHand: 0 } },
      { status: 201, body: { lines: [{ itemCode: 'A', quantity: 7 }] } },
      { status: 200, body: { onHand: 7, value: 14, unitCost: 2 } },
      { status: 200, body: { ok: true, transactions: 1, moves: 1 } },
      { status: 400, body: { code: 'REQUEST_INVALID', errors: [{ path: 'body/colour' }] } }
    ],
    forecasting: [
      { status: 200, body: { status: 'succeeded' } },
      { status: 200, body: { itemCode: 'A', frequency: 'day', points: [{ mean: Number }] } }
    ],
    jobs: [
      { status: 202, location: null, same: false },
      { status: 202, location: /^\/x\/jobs\/[0-9a-f-]{36}$/, same: true }
    ],
    anomaly: [
      { status: 200, body: { data: [{ itemCode: 'A', observed: 500 }] } },
      { status: 200, body: { data: [{ itemCode: 'A', observed: 500 }] } }
    ],
    'cache-stats': [{ status: 200, body: { backend: 'memory', hits: 0, misses: 0, keys: 0 } }],
    slo: [
      { status: 200, body: { requests: [{ status: 'unknown' }], states: [{ name: 'temperature', status: 'unknown' }] } }
    ],
    dashboard: [{ status: 200, body: { items: 3, stockValue: 12.5, runsOutFirst: [{ itemCode: 'A' }] } }],
    audit: [
      { status: 200, body: { data: [{ action: 'door.open', actor: 'system', object: { type: 'door', id: '7' } }] } },
      { status: 200, body: { ok: true, entries: 1, batches: 1 } }
    ],
    privacy: [
      { status: 200, body: { activities: [{ activity: 'visits', fields: ['Guest.name'] }] } },
      { status: 200, body: { tenant: 'main', data: { visits: [{ day: '2026-01-05' }] } } },
      { status: 200, body: { erased: { guests: 1 } } }
    ],
    identity: [
      { status: 200, body: { tokenType: 'Bearer', user: { username: 'ada' } } },
      { status: 401, body: { code: String } }
    ],
    realtime: [{ status: 406, body: { code: 'REALTIME_NOT_ACCEPTABLE' } }],
    webhooks: [
      { status: 201, body: { active: true, secret: /^whsec_/ } },
      { status: 422, body: { code: 'WEBHOOK_TARGET_REFUSED', reason: 'address' } }
    ]
  }
  for (const [name, answers] of Object.entries(expected)) {
    const { ended, noise, answers: found } = await ranOf(name)
    t.ok(ended, `${name} ends by itself ${noise}`)
    t.equal(noise, '', `${name} is silent`)
    t.match(found[0], answers, `${name} on SQLite`)
    t.match(found[1], answers, `${name} on PostgreSQL`)
  }
})

t.test('two apps in one process, and a host that keeps its own ways', async (t) => {
  const { ended, noise, answers } = await ranOf('two')
  t.ok(ended, noise)
  const [found] = answers
  t.same(found.codes, [['ONE'], ['TWO']], 'each has data of its own')
  t.ok(found.registries, 'and a registry of its own')
  t.equal(found.global, 0, 'the process-wide registry stays empty')
  t.same(found.one, found.bare, 'the host’s routes, validator, error handler, 404 and headers are as without us')
  t.match(found.bare, [
    { statusCode: 200, body: '{"got":{"n":5}}' },
    { statusCode: 418, body: /mine/ },
    { statusCode: 418, body: /on purpose/ },
    { statusCode: 404, body: /nothing here/ }
  ])
  t.match(found.problem, /^application\/problem\+json/, 'while the module answers problems')
})

t.test('what is missing stops the start, with its name', async (t) => {
  const { ended, noise, answers } = await ranOf('refused')
  t.ok(ended, noise)
  t.match(answers[0], {
    'no authorize': /the option `authorize` is required/,
    'authorize is no function': /the option `authorize` is required/,
    'no core: inventory': /decorator.*missing.*enterModule|enterModule/i,
    'no core: cache-stats': /enterModule/,
    'no core: anomaly': /enterModule/,
    'no core: forecasting': /enterModule/,
    'no keys: identity': /auth/,
    'no database': /DATABASE_URL .* may be/
  })
})

t.test('without the core: a host supplies the decorators and migrates the tables itself', async (t) => {
  const { ended, noise, answers } = await ranOf('bare')
  t.ok(ended, noise)
  const [found] = answers
  t.ok(found.applied[0].length > 0, 'migrations were applied')
  t.same(found.applied[1], [], 'once')
  t.match(found.stats, { backend: 'memory', hitRate: 0.5 })
  t.match(found.detected.data, [{ itemCode: 'A', observed: 500 }])
  t.match(found.listed.data, [{ itemCode: 'A', observed: 500 }])
})
