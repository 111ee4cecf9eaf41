/**
 * Line coverage per TypeScript source, from V8's own counters. These, not tap's, because they also count worker threads and
 * the servers that tests start as processes; c8 merges them and follows the source maps.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { Report } from 'c8'

const LINES_MIN_PERCENT = 90

/** What must be covered, as compiled. */
const INCLUDED = ['dist/{plugins,modules,schemas,migrations,commands}/**/*.js', 'dist/{app,server,cli}.js']

/** Sources that need not reach the minimum, each with the reason. They are still listed. */
const EXEMPT = {}

/** A source of types alone compiles to nothing that could run. */
function hasCode(root, path) {
  const compiled = readFileSync(join(root, 'dist', relative(root, path).replace(/\.ts$/, '.js')), 'utf8')
  return (
    compiled
      .replace(/^\/\/# .*$/gm, '')
      .replaceAll('export {};', '')
      .trim() !== ''
  )
}

function lineCoverage(fileCoverage) {
  const lines = Object.values(fileCoverage.getLineCoverage())
  const covered = lines.filter((hits) => hits > 0).length
  return { lines: lines.length, covered, percent: lines.length === 0 ? 100 : (100 * covered) / lines.length }
}

/** Uncovered lines as ranges, such as 10-14, 20. */
function uncoveredRanges(fileCoverage) {
  const ranges = []
  for (const line of fileCoverage.getUncoveredLines().map(Number)) {
    const last = ranges.at(-1)
    if (last && line === last[1] + 1) last[1] = line
    else ranges.push([line, line])
  }
  return ranges.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(', ')
}

/**
 * Prints the table.
 * @returns how many sources lie under the minimum without an exemption
 */
export async function reportCoverage({ root, rawFolder, say }) {
  const report = new Report({
    tempDirectory: rawFolder,
    include: INCLUDED,
    exclude: [],
    extension: ['.js'],
    src: [root],
    all: true,
    excludeNodeModules: true,
    resolve: ''
  })
  const map = await report.getCoverageMapFromAllCoverageFiles()
  const rows = map
    .files()
    .filter((path) => path.endsWith('.ts') && existsSync(path) && hasCode(root, path))
    .map((path) => {
      const coverage = map.fileCoverageFor(path)
      return { file: relative(root, path), ...lineCoverage(coverage), missing: uncoveredRanges(coverage) }
    })
    .sort((a, b) => a.file.localeCompare(b.file, 'en'))
  const width = Math.max(20, ...rows.map(({ file }) => file.length))
  say(`\n${'file'.padEnd(width)}  lines     %  not covered`)
  let below = 0
  for (const { file, lines, percent, missing } of rows) {
    const low = percent < LINES_MIN_PERCENT && !EXEMPT[file]
    if (low) below += 1
    const note = EXEMPT[file] ? `${missing}  (exempt: ${EXEMPT[file]})` : missing
    say(
      `${file.padEnd(width)} ${String(lines).padStart(6)} ${percent.toFixed(1).padStart(5)}${low ? '!' : ' '} ${note}`
    )
  }
  const lines = rows.reduce((sum, row) => sum + row.lines, 0)
  const covered = rows.reduce((sum, row) => sum + row.covered, 0)
  const total = lines === 0 ? 100 : (100 * covered) / lines
  say(`${'all'.padEnd(width)} ${String(lines).padStart(6)} ${total.toFixed(1).padStart(5)}`)
  if (below > 0) say(`${below} files under ${LINES_MIN_PERCENT} % of lines`)
  if (rows.length === 0) say(`nothing to measure: no ${join('dist', 'plugins')}`)
  return rows.length === 0 ? 1 : below
}
