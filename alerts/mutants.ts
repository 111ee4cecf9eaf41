import { mkdirSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { stringify } from 'yaml'
import { mutantsOf, selectorsOf } from './promql.js'
import { type Alert, alertsOf, type RuleFile, recordingsOf, ruleFiles, type TestFile, testFiles } from './rules.js'

interface Written {
  readonly path: string
  readonly alert: string
  readonly what: string
  /** The rule as it is must pass; a changed one must not. */
  readonly passes: boolean
}

/**
 * Writes each alert alone, with the tests of its own, once as it is and once for each way to break it. One process of promtool
 * judges hundreds of them, since each holds no more than it needs.
 */
export function writeMutants(folder: string): Written[] {
  mkdirSync(folder, { recursive: true })
  const written: Written[] = []
  const tests = [...testFiles().values()]
  for (const [path, file] of ruleFiles()) {
    for (const alert of alertsOf(file)) {
      const own = tests.flatMap((each) => ownTests(each, path, alert.alert))
      const variants = [{ what: 'as it is', query: alert.expr, passes: true }].concat(
        mutantsOf(alert.expr).map((mutant) => ({ ...mutant, passes: false }))
      )
      for (const [n, { what, query, passes }] of variants.entries()) {
        const name = `${alert.alert}-${n}`
        writeFileSync(join(folder, `${name}.rules.yml`), stringify(alone(file, alert, query)))
        for (const test of own) {
          const testPath = join(folder, `${name}.test.yml`)
          writeFileSync(testPath, stringify({ ...test, rule_files: [`${name}.rules.yml`] }))
          written.push({ path: testPath, alert: alert.alert, what, passes })
        }
      }
    }
  }
  return written
}

function ownTests(file: TestFile, rules: string, alert: string): TestFile[] {
  if (!file.rule_files.includes(`../${basename(rules)}`)) return []
  const tests = file.tests.filter(({ name }) => name.split(' ', 1)[0] === alert)
  return tests.length === 0 ? [] : [{ ...file, tests }]
}

/** The alert with another expression, and the recording rules that it reads. */
function alone(file: RuleFile, alert: Alert, expr: string): RuleFile {
  const read = new Set(selectorsOf(alert.expr).map(({ metric }) => metric))
  const recorded = recordingsOf(file).filter(({ record }) => read.has(record))
  return {
    groups: [
      ...(recorded.length === 0 ? [] : [{ name: 'inventory-slo-recording', rules: recorded }]),
      { name: recorded.length === 0 ? 'alone' : 'inventory-slo', rules: [{ ...alert, expr }] }
    ]
  }
}
