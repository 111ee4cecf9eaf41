/**
 * Writes the bill of materials (CycloneDX) of everything that package-lock.json pins, and checks that nothing which is shipped
 * is missing from it. Needs no network.
 *
 * usage: node scripts/sbom.mjs [file]
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const read = (name) => JSON.parse(readFileSync(join(root, name), 'utf8'))

// With --omit=dev npm leaves out what production and development share, so development is in it too.
const text = execFileSync('npm', ['sbom', '--sbom-format=cyclonedx', '--package-lock-only'], {
  cwd: root,
  encoding: 'utf8',
  maxBuffer: 256 * 1024 ** 2,
  stdio: ['ignore', 'pipe', 'inherit']
})
const sbom = JSON.parse(text)
// npm takes the folder's name.
sbom.metadata.component.name = read('package.json').name

const known = new Set(sbom.components.map(({ name, version }) => `${name}@${version}`))
const shipped = Object.entries(read('package-lock.json').packages)
  .filter(([path, { dev, devOptional }]) => path !== '' && !dev && !devOptional)
  .map(([path, { name, version }]) => `${name ?? path.split('node_modules/').pop()}@${version}`)
const missing = [...new Set(shipped)].filter((each) => !known.has(each))

const path = resolve(process.argv[2] ?? join(root, 'dist', 'sbom.cdx.json'))
mkdirSync(dirname(path), { recursive: true })
writeFileSync(path, `${JSON.stringify(sbom, null, 2)}\n`)
process.stdout.write(`${path}: ${known.size} packages, ${new Set(shipped).size} of them shipped\n`)
if (missing.length > 0) {
  process.stderr.write(`missing: ${missing.join(', ')}\n`)
  process.exitCode = 1
}
