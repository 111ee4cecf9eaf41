/**
 * Reads tap's stream: prints one line per test file as it ends, and at the end every failure with its diagnostics.
 * What is counted is the single assertion, and beside it whatever went wrong without one (a crash, a time-out).
 */
import { inspect } from 'node:util'
import { Parser } from 'tap-parser'

const sourceName = (name) => name.replace(/^dist\//, '').replace(/\.js$/, '.ts')
const indent = (text) => String(text).trimEnd().replace(/^/gm, '    ')
/** tap's own bookkeeping, of no use to a reader. */
const QUIET_FIELDS = new Set([
  'at',
  'stack',
  'source',
  'diff',
  'compare',
  'externalID',
  'jobs',
  'type',
  'tapError',
  'test',
  'command',
  'args',
  'cwd',
  'file'
])

/** Where, what was expected and what was found; the pieces that tap lays out over lines stay as they are. */
function describe({ path, diag }) {
  const lines = [`not ok  ${path.filter(Boolean).join(' > ')}`]
  if (!diag) return lines.join('\n')
  const { at, stack, source, diff } = diag
  if (at?.fileName) lines.push(indent(`at ${at.fileName}:${at.lineNumber}:${at.columnNumber ?? 1}`))
  if (source) lines.push(indent(source))
  if (diff) lines.push(indent(diff))
  const rest = Object.fromEntries(Object.entries(diag).filter(([name]) => !QUIET_FIELDS.has(name)))
  if (diff) for (const name of ['found', 'wanted']) delete rest[name]
  if (Object.keys(rest).length > 0) lines.push(indent(inspect(rest, { depth: 6, breakLength: 110 })))
  if (stack) lines.push(indent(stack))
  return lines.join('\n')
}

export function createTapReader(say) {
  const failures = []
  const totals = { passed: 0, skipped: 0, todo: 0 }

  function count(result, path) {
    if (result.skip) totals.skipped += 1
    else if (result.todo) totals.todo += 1
    else if (result.ok) totals.passed += 1
    else failures.push({ path: [...path, result.name], diag: result.diag })
  }

  /** Listens to one parser and those below it; `path` names the tests around it, the file first. */
  function listen(parser, path) {
    parser.on('child', (child) => listen(child, path.length === 0 ? [sourceName(child.name)] : [...path, child.name]))
    parser.on('bailout', (reason) => {
      if (path.length > 0) failures.push({ path: [...path, `bailed out: ${reason}`] })
    })
    let failuresBefore = failures.length
    let passedBefore = totals.passed
    parser.on('assert', (result) => {
      const failuresBelow = failures.length - failuresBefore
      if (path.length === 0) endOfFile(result, { failuresBelow, passedBelow: totals.passed - passedBefore })
      else if (!result.closingTestPoint) count(result, path)
      else if (!result.ok && failuresBelow === 0) count(result, path)
      failuresBefore = failures.length
      passedBefore = totals.passed
    })
  }

  function endOfFile(result, { failuresBelow, passedBelow }) {
    const file = sourceName(result.name)
    if (!result.ok && failuresBelow === 0)
      failures.push({ path: [file, 'the file failed as a whole'], diag: result.diag })
    if (result.ok && passedBelow + failuresBelow === 0) failures.push({ path: [file, 'the file ran no test'] })
    const good = result.ok && failuresBelow === 0 && passedBelow > 0
    const seconds = ((result.time ?? 0) / 1000).toFixed(1)
    say(`${good ? 'ok    ' : 'not ok'} ${seconds.padStart(6)} s ${String(passedBelow).padStart(6)} passed  ${file}`)
  }

  const parser = new Parser()
  listen(parser, [])

  return {
    parser,
    /** Prints what failed and returns the counts. A run that tap itself calls failed is never counted as clean. */
    finish({ status, signal, noise }) {
      if (signal) failures.push({ path: [`stopped by ${signal}`] })
      else if (status !== 0 && failures.length === 0) failures.push({ path: [`tap ended with status ${status}`] })
      else if (totals.passed + failures.length === 0) failures.push({ path: ['no test ran'] })
      if (failures.length > 0 && noise.trim()) say(`\nThe tests wrote on stderr:\n${indent(noise)}`)
      for (const failure of failures) say(`\n${describe(failure)}`)
      if (failures.length > 0) say('')
      if (totals.skipped + totals.todo > 0) say(`${totals.skipped} skipped, ${totals.todo} to do`)
      return { passed: totals.passed, failed: failures.length }
    }
  }
}
