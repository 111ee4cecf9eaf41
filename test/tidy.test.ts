import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

/** The house rules that a compiler does not know: who may import whom, and that nothing lies about unused. */

const root = fileURLToPath(new URL('../..', import.meta.url))

/** Everything that belongs to the project, committed or about to be. */
const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
  cwd: root,
  encoding: 'utf8'
})
  .split('\n')
  .filter((path) => path !== '' && existsSync(join(root, path)))
const sources = files.filter((path) => path.endsWith('.ts') && !path.endsWith('.d.ts'))
const textOf = (path: string) => readFileSync(join(root, path), 'utf8')

interface Import {
  /** A path of this project, or the name of a library. */
  target: string
  ours: boolean
  typeOnly: boolean
}

/** Static and dynamic imports, re-exports, and files that are named by URL, such as a worker's. */
function importsOf(path: string): Import[] {
  const text = textOf(path)
  const found: { specifier: string; typeOnly: boolean }[] = []
  for (const [, specifier = ''] of text.matchAll(/^import '([^']+)'/gm)) found.push({ specifier, typeOnly: false })
  for (const [, kind = '', clause = '', specifier = ''] of text.matchAll(
    /^(import|export)\s+([\w$\s{},*]+?)\s+from\s+'([^']+)'/gm
  )) {
    const names = /\{([^}]*)\}/.exec(clause)?.[1]
    const eachIsType =
      names !== undefined &&
      clause.trim().startsWith('{') &&
      names.split(',').every((name) => name.trim() === '' || name.trim().startsWith('type '))
    found.push({ specifier, typeOnly: clause.startsWith('type ') || (kind === 'import' && eachIsType) })
  }
  for (const [, specifier = ''] of text.matchAll(/\bimport\(\s*'([^']+)'\s*\)/g))
    found.push({ specifier, typeOnly: false })
  for (const [, specifier = ''] of text.matchAll(/new URL\('(\.[^']+\.js)', import\.meta\.url\)/g)) {
    found.push({ specifier, typeOnly: false })
  }
  return found.map(({ specifier, typeOnly }) => {
    const ours = specifier.startsWith('.')
    const target = ours ? normalize(join(dirname(path), specifier)).replace(/\.js$/, '.ts') : specifier
    return { target, ours, typeOnly }
  })
}

const graph = new Map(sources.map((path) => [path, importsOf(path)]))
const importing = (pattern: RegExp) => [...graph].filter(([path]) => pattern.test(path))

/** Every import of the files that match, unless `allowed` lets it be. */
function forbidden(pattern: RegExp, allowed: (target: Import, path: string) => boolean): string[] {
  return importing(pattern).flatMap(([path, imports]) =>
    imports.filter((each) => !allowed(each, path)).map(({ target }) => `${path} imports ${target}`)
  )
}

t.test('the reader of imports sees what there is', async (t) => {
  t.ok(graph.get('app.ts')?.some(({ target }) => target === 'modules/inventory/index.ts'))
  t.ok(graph.get('plugins/core.ts')?.some(({ target, typeOnly }) => target === 'plugins/contracts.ts' && typeOnly))
  t.ok(graph.get('modules/inventory/index.ts')?.some(({ target, ours }) => target === 'fastify-plugin' && !ours))
  for (const [path, imports] of graph) {
    for (const { target, ours } of imports) {
      if (ours && !target.endsWith('.json')) t.ok(existsSync(join(root, target)), `${path} imports ${target}`)
    }
  }
})

t.test('who may import whom', async (t) => {
  const core = ({ target, ours }: Import) =>
    !ours || /^(plugins\/|schemas\/(common|decimal|personal)\.ts|migrations\/core\.ts)/.test(target)
  t.same(forbidden(/^plugins\//, core), [], 'the core imports no module')

  const schema = ({ target, ours }: Import) => (ours ? target.startsWith('schemas/') : target === 'typebox')
  t.same(forbidden(/^schemas\//, schema), [], 'schemas import TypeBox and each other')

  const migration = ({ target, ours, typeOnly }: Import) =>
    ours
      ? target === 'migrations/columns.ts' || (typeOnly && target === 'plugins/migrate/index.ts')
      : target === 'kysely'
  t.same(forbidden(/^migrations\//, migration), [], 'migrations import the column types')

  const module = ({ target, ours }: Import, path: string) => {
    const name = path.split('/')[1] ?? ''
    return (
      !ours ||
      target.startsWith(`modules/${name}/`) ||
      target.startsWith('schemas/') ||
      target === `migrations/${name}.ts` ||
      target === 'migrations/columns.ts' ||
      target === 'plugins/contracts.ts'
    )
  }
  t.same(
    forbidden(/^modules\//, module),
    [],
    'modules import schemas, their own migration and the contracts; no other module'
  )

  const map = ({ target, ours }: Import) =>
    !ours || /^(modules\/[\w-]+\/index|plugins\/(core|config\/index|contracts))\.ts$/.test(target)
  t.same(forbidden(/^app\.ts$/, map), [], 'the map imports the core and the modules by their front doors')
  const entry = ({ target, ours }: Import) =>
    !ours ||
    /^(app|server|commands\/\w+|demo\/\w+|modules\/[\w-]+\/index|plugins\/([\w-]+(\/index)?|http\/(errors|server-options))|schemas\/[\w-]+)\.ts$/.test(
      target
    )
  t.same(
    forbidden(/^((server|cli)\.ts$|commands\/)/, entry),
    [],
    'the programs import the map, and modules by their front doors'
  )

  const quick = ({ target }: Import) => !/^typebox\/(value|compile)$/.test(target)
  t.same(
    forbidden(/^(\w+\.ts$|(commands|demo|plugins|modules|schemas|migrations)\/)/, quick),
    [],
    'no start reads the checkers of typebox; plugins/http/validation.ts has one'
  )
})

/** Arithmetic and texts: no database, no HTTP, no clock of their own. */
const PURE = [
  /^modules\/forecasting\/models\//,
  /^modules\/forecasting\/series\.ts$/,
  /^modules\/anomaly\/(detectors|explain)\.ts$/,
  /^modules\/inventory\/search-text\.ts$/,
  /^modules\/webhooks\/(retry|signature)\.ts$/,
  /^schemas\/decimal\.ts$/
]
const NUMERIC = /^(node:crypto|arima|@bsull\/augurs[\w-]*(\/\w+)?)$/
/** `path library`, each for a reason. */
const IMPURE: Record<string, string> = {
  'modules/forecasting/models/prophet.ts node:fs': 'reads the WebAssembly of its numeric library',
  'modules/forecasting/models/prophet.ts node:module': 'finds it'
}
t.test('pure files import nothing but types and numeric code', async (t) => {
  for (const pattern of PURE) {
    t.ok(importing(pattern).length > 0, `${pattern} names a file`)
    const pure = ({ target, ours, typeOnly }: Import, path: string) =>
      typeOnly ||
      NUMERIC.test(target) ||
      IMPURE[`${path} ${target}`] !== undefined ||
      (ours && (target === 'schemas/decimal.ts' || PURE.some((each) => each.test(target))))
    t.same(forbidden(pattern, pure), [], String(pattern))
    for (const [path] of importing(pattern)) t.notMatch(textOf(path), /Date\.now\(\)|Math\.random\(\)|process\./, path)
  }
})

t.test('no file is dead', async (t) => {
  const { exports, bin, scripts }: { exports: Record<string, unknown>; bin: object; scripts: object } = JSON.parse(
    textOf('package.json')
  )
  const named = JSON.stringify([exports, bin, scripts])
  const entries = sources.filter(
    (path) =>
      named.includes(`dist/${path.replace(/\.ts$/, '.js')}`) || /^(test|bench|dashboards|alerts|scripts)\//.test(path)
  )
  const alive = new Set(entries)
  for (const path of alive) {
    for (const { target, ours } of graph.get(path) ?? []) if (ours && graph.has(target)) alive.add(target)
  }
  t.same(
    sources.filter((path) => !alive.has(path)),
    [],
    'each is reached from an export, a program or a test'
  )
  const tests = sources.filter((path) => /^test\//.test(path) && !path.endsWith('.test.ts'))
  for (const path of tests) {
    t.ok(
      [...graph.values()].flat().some(({ target }) => target === path),
      `${path} is used by a test`
    )
  }
  const programs = `${named}${files
    .filter((path) => /^(\.github|\.ci)\//.test(path))
    .map(textOf)
    .join('')}`
  const scripted = files.filter((path) => /^scripts\/.*\.mjs$/.test(path))
  for (const path of scripted) {
    const used =
      programs.includes(path) ||
      files.some(
        (other) =>
          other !== path && /\.(mjs|ts|md)$/.test(other) && textOf(other).includes(path.replace('scripts/', ''))
      )
    t.ok(used, `${path} is used`)
  }
})

t.test('the map of the rooms names each', async (t) => {
  const map = textOf('docs/architecture.md')
  const rooms = sources.flatMap((path) => /^(?:(?:plugins|modules)\/[\w-]+|[\w-]+)(?=\/)/.exec(path) ?? [])
  t.ok(rooms.includes('plugins/telemetry') && rooms.includes('bench'))
  t.same(
    [...new Set(rooms)].filter((room) => !map.includes(`\`${room}`)),
    []
  )
})

const LINES_MAX = 450
/** Longer for a reason. */
const LONG: Record<string, string> = {}
t.test('size and names', async (t) => {
  const judged = sources.filter((path) => /^(plugins|modules|schemas|migrations|commands|test)\//.test(path))
  const long = judged.filter((path) => textOf(path).split('\n').length > LINES_MAX)
  t.same(
    long.filter((path) => LONG[path] === undefined),
    [],
    `no file is over ${LINES_MAX} lines`
  )
  t.same(
    Object.keys(LONG).filter((path) => !long.includes(path)),
    [],
    'and each exception is still one'
  )
  const kebab = /^(?:[a-z0-9]+(?:-[a-z0-9]+)*\/)*[a-z0-9]+(?:-[a-z0-9]+)*(?:\.test)?\.(ts|mjs)$/
  t.same(
    files.filter((path) => /\.(ts|mjs)$/.test(path) && !kebab.test(path)),
    [],
    'file names are kebab-case'
  )
})

t.test('no escape from the type checker, no leftovers', async (t) => {
  const hits = (pattern: RegExp, paths = sources) =>
    paths.flatMap((path) =>
      textOf(path)
        .split('\n')
        .map((line, n) => ({ line, at: `${path}:${n + 1}` }))
        .filter(({ line }) => pattern.test(line))
        .map(({ line, at }) => `${at} ${line.trim()}`)
    )
  // Written so that this file does not find itself.
  const others = sources.filter((path) => path !== 'test/tidy.test.ts')
  t.same(
    hits(
      /(?::|<|\bas)\s*any\b(?!\s*\w)|\bany\[\]/,
      others.filter((path) => path !== 'test/embed-hosts.ts')
    ),
    [],
    'no any'
  )
  t.same(hits(/@ts-(ignore|nocheck)|as unknown as/, others), [], 'no silenced error')
  // The sources of strangers in the embedding test have to be wrong on purpose.
  t.same(
    hits(
      /@ts-expect-error/,
      others.filter((path) => path !== 'test/embed-hosts.ts')
    ),
    []
  )
  t.same(hits(/\b(TODO|FIXME|XXX|HACK)\b/, others), [], 'nothing is left for later')
  t.same(
    hits(
      /\bconsole\.(log|debug)\(/,
      others.filter((path) => /^(plugins|modules|schemas|migrations|app|server)/.test(path))
    ),
    [],
    'the service logs through its logger'
  )
})
