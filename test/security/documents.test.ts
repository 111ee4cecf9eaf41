import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { temporaryFolder } from '../service-process.js'
import { readControls, without } from './controls.js'

/** docs/security.md and the names of the tests, held together; and what is shipped, listed. */

const root = join(import.meta.dirname, '..', '..', '..')
const read = (path: string) => readFileSync(join(root, path), 'utf8')

const rows = [...read('docs/security.md').matchAll(/^\| (V[\d.]+|Art\.\d+) +\| (.+?) +\| (.+?) +\|/gm)].map(
  ([, id = '', , tests = '']) => ({
    id,
    tests: tests.split('; ').map((each) => {
      const [, file = each.trim(), , quoted] = /^(\S+)( "(.+)")?$/.exec(each.trim()) ?? []
      return { file: `test/${file}.test.ts`, quoted }
    })
  })
)

/** What a test is called: the text that follows `test(`. */
const namesIn = (file: string) =>
  [...read(file).matchAll(/\btest\(\s*(['"`])([^\n]+?)\1,/g)].map(([, , name = '']) => name)
/** The requirements that a name begins with: `V9.1.1-3, V9.2.1 …` */
const idsOf = (name: string): readonly string[] =>
  /^((?:V\d+(?:\.\d+)+(?:-\d+)?[,:]? )+)/.exec(`${name} `)?.[1]?.match(/V[\d.]+\d/g) ?? []

t.test('each row of docs/security.md has its test', async (t) => {
  t.ok(rows.length > 50, `${rows.length} rows`)
  t.equal(new Set(rows.map(({ id }) => id)).size, rows.length, 'a requirement has one row')
  for (const { id, tests } of rows) {
    for (const { file, quoted } of tests) {
      if (!existsSync(join(root, file))) t.fail(`${id}: there is no ${file}`)
      else if (quoted === undefined)
        t.ok(
          namesIn(file).some((name) => idsOf(name).includes(id)),
          `${id}: a test of ${file} is named so`
        )
      else
        t.ok(
          namesIn(file).some((name) => name.includes(quoted)),
          `${id}: ${file} has "${quoted}"`
        )
    }
  }
})

t.test('each test that names a requirement is in its row', async (t) => {
  const files = readdirSync(join(root, 'test'), { recursive: true })
    .map((name) => `test/${String(name)}`)
    .filter((name) => name.endsWith('.test.ts'))
  const listed = new Set(rows.flatMap(({ id, tests }) => tests.map(({ file }) => `${id} ${file}`)))
  // Sections and their details are told by the first row of each: V6.2.9 is with V6.2.1.
  const known = (id: string, file: string) =>
    [...listed].some((row) => row.endsWith(` ${file}`) && sameSection(row, id))
  for (const file of files) {
    for (const name of namesIn(file)) {
      for (const id of idsOf(name))
        t.ok(listed.has(`${id} ${file}`) || known(id, file), `${file}: ${name.slice(0, 60)} is in the row of ${id}`)
    }
  }
})

const sameSection = (row: string, id: string) =>
  row.split(' ')[0]?.split('.').slice(0, 2).join('.') === id.split('.').slice(0, 2).join('.')

t.test('each row has a control whose removal its test is shown to notice, and that is there', async (t) => {
  const controls = readControls(root)
  for (const { id } of rows)
    t.ok(
      controls.some((control) => control.id === id),
      `${id} is in test/security/controls.txt`
    )
  for (const { id, suite, path, removals } of controls) {
    const name = path.at(-1) ?? ''
    const row = rows.find((each) => each.id === id)
    const file = `test/${suite}.test.ts`
    t.ok(id === 'Peers' || row?.tests.some((each) => each.file === file), `${id}: ${suite} is in its row`)
    t.ok(existsSync(join(root, file)) && namesIn(file).some((each) => each.includes(name)), `${file} has "${name}"`)
    const texts = new Map<string, string>()
    for (const removal of removals) {
      const from = removal.file.replace(/^(.+)\.ts$/, 'dist/$1.js')
      const text = texts.get(from) ?? read(from)
      t.doesNotThrow(() => texts.set(from, without(text, removal)), `${id}: ${removal.find} is in ${from}, once`)
    }
    t.ok(removals.length > 0, `${id}: ${name}`)
  }
})

t.test('V15.1.2 the bill of materials lists everything that is shipped', async (t) => {
  const path = join(temporaryFolder(t), 'sbom.json')
  execFileSync(process.execPath, [join(root, 'scripts', 'sbom.mjs'), path], { cwd: root, stdio: 'pipe' })
  const {
    bomFormat,
    components
  }: { bomFormat: string; components: { name: string; version: string; purl: string }[] } = JSON.parse(
    readFileSync(path, 'utf8')
  )
  t.equal(bomFormat, 'CycloneDX')
  const { dependencies }: { dependencies: Record<string, string> } = JSON.parse(read('package.json'))
  for (const [name, version] of Object.entries(dependencies)) {
    const found = components.find((each) => each.name === name && each.version === version)
    t.ok(found?.purl.startsWith('pkg:npm/'), `${name} ${version}`)
  }
  t.ok(components.length > Object.keys(dependencies).length * 2, 'and what they bring along')
})
