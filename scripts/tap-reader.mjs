/**
 * Reads what test files print: says one line for each process as it ends, and at the end every failure with its diagnostics.
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

  /** The test files of one process: what it prints goes to `write`; `end` says how it ended and prints its line. */
  function open(paths) {
    const file = paths.map(sourceName).join(', ')
    const parser = new Parser()
    const own = []
    const counts = { passed: 0, skipped: 0, todo: 0 }

    function count(result, names) {
      if (result.skip) counts.skipped += 1
      else if (result.todo) counts.todo += 1
      else if (result.ok) counts.passed += 1
      else own.push({ path: [...names, result.name], diag: result.diag })
    }

    /** Listens to one parser and those below it; `names` are the tests around it, the files first. */
    function listen(to, names) {
      to.on('child', (child) => listen(child, [...names, child.name]))
      to.on('bailout', (reason) => own.push({ path: [...names, `bailed out: ${reason}`] }))
      let before = own.length
      to.on('assert', (result) => {
        // The line that closes a test says something new only where none of its assertions failed.
        if (!result.closingTestPoint || (!result.ok && own.length === before)) count(result, names)
        before = own.length
      })
    }
    listen(parser, [file])

    return {
      write: (text) => void parser.write(text),
      /** `problem` is why the process did not end as it should; `noise` what it wrote on stderr. */
      end({ problem, seconds, noise }) {
        parser.end()
        // A file whose assertions failed ends with 1.
        if (problem !== undefined && (own.length === 0 || problem !== 'ended with status 1'))
          own.push({ path: [file, problem] })
        if (counts.passed + own.length === 0) own.push({ path: [file, 'the file ran no test'] })
        if (own.length > 0 && noise.trim()) own.at(-1).noise = noise
        const verdict = own.length === 0 ? 'ok    ' : 'not ok'
        const passed = String(counts.passed).padStart(6)
        say(`${verdict} ${seconds.toFixed(1).padStart(6)} s ${passed} passed  ${file}`)
        for (const name of Object.keys(totals)) totals[name] += counts[name]
        failures.push(...own)
      }
    }
  }

  return {
    open,
    /** Prints what failed and returns the counts. */
    finish(signal) {
      if (signal) failures.push({ path: [`stopped by ${signal}`] })
      else if (totals.passed + failures.length === 0) failures.push({ path: ['no test ran'] })
      for (const failure of failures) {
        say(`\n${describe(failure)}`)
        if (failure.noise) say(`\n    It wrote on stderr:\n${indent(failure.noise)}`)
      }
      if (failures.length > 0) say('')
      if (totals.skipped + totals.todo > 0) say(`${totals.skipped} skipped, ${totals.todo} to do`)
      return { passed: totals.passed, failed: failures.length }
    }
  }
}
