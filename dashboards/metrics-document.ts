import { type Family, familiesOf, type Running, registryOf } from './families.js'

/** `docs/metrics.md`, written by the program that it describes. */

/** Labels whose values come with the code that uses them, with what happens, or with the version of Node. */
const OPEN: Readonly<Record<string, string>> = {
  route: 'template of the route',
  code: 'status',
  migration: 'name',
  version: 'of the program',
  space: 'of the heap',
  type: 'of resource',
  task: 'name of the job or of the upkeep'
}
const VALUES_SHOWN = 12
/** Of what Node.js tells by itself the values differ from one version to the next. */
const FOREIGN = /^(nodejs|process)_/

const UNITS: [RegExp, string][] = [
  [/_timestamp_seconds$/, 'Unix time, s'],
  [/_seconds(_total)?$/, 's'],
  [/_bytes(_total)?$/, 'B'],
  [/_ratio$/, '0–1'],
  [/_info$/, '1']
]
const unitOf = (name: string): string => UNITS.find(([pattern]) => pattern.test(name))?.[1] ?? 'count'

const labelsOf = ({ name, labels }: Family): string => {
  const shown = [...labels].map(([label, values]) => {
    const told = label === 'type' && !FOREIGN.test(name) ? undefined : OPEN[label]
    if (told !== undefined) return `\`${label}\` (${told})`
    if (values.length === 0 || FOREIGN.test(name)) return `\`${label}\``
    const listed = values.slice(0, VALUES_SHOWN).join(', ')
    return `\`${label}\` (${listed}${values.length > VALUES_SHOWN ? `, … ${values.length} in all` : ''})`
  })
  return shown.join('; ')
}

const HEAD = `# Metrics

Every metric that the program has, written by \`npm run docs:metrics\` from the registry of a running one; \`test/dashboards.test.ts\` fails
when this page is not what it would write. How they fit with dashboards and alerts: [observability.md](observability.md).

Label values are known beforehand and start at 0, where no word in brackets says otherwise. A histogram has series \`…_bucket\`, \`…_sum\` and
\`…_count\`. “on” says where a metric exists: on SQLite or PostgreSQL alone, or everywhere; those of \`redis_\` and \`mirror_\` need a Redis or a mirror.
`

export async function metricsDocument({ sqlite, postgres }: Running): Promise<string> {
  const onSqlite = await familiesOf(registryOf(sqlite))
  const onPostgres = await familiesOf(registryOf(postgres))
  const has = (families: readonly Family[], name: string) => families.some((each) => each.name === name)
  const all = [...onPostgres, ...onSqlite.filter(({ name }) => !has(onPostgres, name))]
  const groups = new Map<string, Family[]>()
  for (const family of all.sort((one, other) => (one.name < other.name ? -1 : 1))) {
    const prefix = family.name.split('_')[0] ?? ''
    groups.set(prefix, [...(groups.get(prefix) ?? []), family])
  }
  const whereOf = ({ name }: Family) => {
    const both = /^(redis|mirror)_/.test(name) || (has(onSqlite, name) && has(onPostgres, name))
    return both ? '' : has(onSqlite, name) ? 'SQLite' : 'PostgreSQL'
  }
  const row = (family: Family) => {
    // Values of both engines: `dialect` has one on each.
    const twin = onSqlite.find(({ name }) => name === family.name)
    const labels = new Map(
      [...family.labels].map(([label, values]) => [
        label,
        [...new Set([...values, ...(twin?.labels.get(label) ?? [])])].sort()
      ])
    )
    const cells = [
      `\`${family.name}\``,
      family.type,
      unitOf(family.name),
      labelsOf({ ...family, labels }),
      whereOf(family)
    ]
    return `| ${[...cells, family.help].join(' | ')} |`
  }
  const sections = [...groups].map(([prefix, families]) =>
    [
      `## ${prefix}`,
      '',
      '| metric | type | unit | labels | on | what it says |',
      '| --- | --- | --- | --- | --- | --- |',
      ...families.map(row),
      ''
    ].join('\n')
  )
  return `${HEAD}\n${all.length} metrics.\n\n${sections.join('\n')}`
}
