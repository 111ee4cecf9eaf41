import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Static, type TSchema, Type } from 'typebox'
import { Value } from 'typebox/value'
import { parse } from 'yaml'

/** The rules and their tests, as the files in `alerts/` say them. */

export const ROOT = join(import.meta.dirname, '..', '..')
export const RULES = join(ROOT, 'alerts')

const Alert = Type.Object({
  alert: Type.String(),
  expr: Type.String(),
  for: Type.Optional(Type.String()),
  labels: Type.Record(Type.String(), Type.String()),
  annotations: Type.Record(Type.String(), Type.String())
})
const Recording = Type.Object({ record: Type.String(), expr: Type.String() })
const Group = Type.Object({ name: Type.String(), rules: Type.Array(Type.Union([Alert, Recording])) })
const RuleFile = Type.Object({ groups: Type.Array(Group) })
const TestCase = Type.Object({
  name: Type.String(),
  interval: Type.String(),
  input_series: Type.Array(Type.Object({ series: Type.String(), values: Type.String() })),
  promql_expr_test: Type.Array(
    Type.Object({ expr: Type.String(), eval_time: Type.String(), exp_samples: Type.Array(Type.Unknown()) })
  )
})
const TestFile = Type.Object({
  rule_files: Type.Array(Type.String()),
  evaluation_interval: Type.String(),
  group_eval_order: Type.Optional(Type.Array(Type.String())),
  tests: Type.Array(TestCase)
})
export type Alert = Static<typeof Alert>
export type RuleFile = Static<typeof RuleFile>
export type TestFile = Static<typeof TestFile>

/** @throws when the file is not of the schema */
export const readYaml = <S extends TSchema>(path: string, schema: S): Static<S> =>
  Value.Parse(schema, parse(readFileSync(path, 'utf8')))

const yamlIn = (folder: string) =>
  readdirSync(folder)
    .filter((name) => name.endsWith('.yml'))
    .map((name) => join(folder, name))

export const ruleFiles = (): Map<string, RuleFile> =>
  new Map(yamlIn(RULES).map((path) => [path, readYaml(path, RuleFile)]))
export const testFiles = (): Map<string, TestFile> =>
  new Map(yamlIn(join(RULES, 'tests')).map((path) => [path, readYaml(path, TestFile)]))

const rulesOf = (file: RuleFile) => file.groups.flatMap(({ rules }) => rules)
export const alertsOf = (file: RuleFile): Alert[] => rulesOf(file).filter((rule) => 'alert' in rule)
export const recordingsOf = (file: RuleFile) => rulesOf(file).filter((rule) => 'record' in rule)
