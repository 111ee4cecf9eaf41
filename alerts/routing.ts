import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Static, Type } from 'typebox'
import { type Chain, post } from './chain.js'
import { type Alert, alertsOf, ROOT, readYaml, ruleFiles } from './rules.js'
import { until } from './run.js'

/** Who hears what: that every alert leads where it should, and what is held back. */

const DEPLOYED = join(ROOT, 'deploy', 'monitoring')
export const ROUTING = join(DEPLOYED, 'alertmanager.yml')
/** Longer than a group waits for what belongs to it. */
const HEARD_SECONDS = 75

const Routing = Type.Object({
  receivers: Type.Array(Type.Object({ name: Type.String() })),
  inhibit_rules: Type.Array(
    Type.Object({
      source_matchers: Type.Array(Type.String()),
      target_matchers: Type.Array(Type.String()),
      equal: Type.Array(Type.String())
    })
  ),
  time_intervals: Type.Array(
    Type.Object({
      name: Type.String(),
      time_intervals: Type.Array(
        Type.Object({ times: Type.Array(Type.Object({ start_time: Type.String(), end_time: Type.String() })) })
      )
    })
  )
})
export const routing = (): Static<typeof Routing> => readYaml(ROUTING, Routing)

export const deployedAlerts = (): Alert[] => [...ruleFiles().values()].flatMap(alertsOf)

interface Route {
  readonly labels: Readonly<Record<string, string>>
  /** In order, as amtool says them. */
  readonly receivers: string
}

/** What `routes.txt` says: labels, and who hears of an alert that has them. */
export function routes(): Route[] {
  const text = readFileSync(join(DEPLOYED, 'routes.txt'), 'utf8')
  return text.split('\n').flatMap((line) => {
    const [, labels, receivers] = /^([^#].*) -> (.+)$/.exec(line) ?? []
    if (labels === undefined || receivers === undefined) return []
    const pairs = labels.split(' ').map((pair): [string, string] => {
      const [name = '', value = ''] = pair.split('=')
      return [name, value]
    })
    return [{ labels: Object.fromEntries(pairs), receivers }]
  })
}

/** Every row of the table, and every alert with the receivers of its row: what amtool is asked. */
export function journeys(): Route[] {
  const rows = routes()
  const alerts = deployedAlerts().map(({ alert, labels }) => {
    const row = rows.find(({ labels: { severity, team } }) => severity === labels.severity && team === labels.team)
    if (row === undefined) throw new Error(`routes.txt has no row for ${alert}: ${labels.severity}, ${labels.team}`)
    return { labels: { alertname: alert, ...labels }, receivers: row.receivers }
  })
  return [...rows, ...alerts]
}

/** A cause and what follows from it, one pair for each rule of inhibition, in the order of the file. */
export const FOLLOWS = [
  ['ServiceDown', 'QueryLatencyHigh'],
  ['ServiceAbsent', 'EventLoopLagHigh'],
  ['DatabaseDown', 'QueryLatencyHigh'],
  ['HttpErrorBudgetBurnPageFast', 'HttpErrorBudgetBurnTicketFast'],
  ['HttpLatencyBudgetBurnPageFast', 'HttpTypicalLatencyBudgetBurn'],
  ['CacheBackendDown', 'CacheFallbacksHigh'],
  ['DiskAlmostFull', 'DiskWillFill']
] as const

/** As it is fired: alerts of jobs of our own, so that those of the real one do not mix with them. */
function fired(alert: string, job: string): Record<string, string> {
  const labels = deployedAlerts().find((each) => each.alert === alert)?.labels
  if (labels === undefined) throw new Error(`there is no alert ${alert}`)
  return { ...labels, alertname: alert, job, instance: 'a', volume: 'data' }
}

type Told = readonly [receiver: string, alert: string, job?: string]

/** What is told to whom, and what is not, where it is night all day; and at the same time where it never is. */
export async function proveRouting({ heard, alertmanagerUrl, daytimeUrl }: Chain): Promise<void> {
  const { inhibit_rules: rules } = routing()
  if (rules.length !== FOLLOWS.length)
    throw new Error(`${rules.length} rules of inhibition, ${FOLLOWS.length} are tried`)
  const has = (receiver: string, alert: string, job?: string) =>
    heard.some((each) => each.receiver === receiver && each.alert === alert && each.labels.job === job)
  const toldTo = ([receiver, alert, job]: Told) =>
    until(`${receiver} hears ${alert} of ${job}`, HEARD_SECONDS, () => has(receiver, alert, job))
  const pairs = FOLLOWS.flatMap(([cause, effect], n) => [fired(cause, `both-${n}`), fired(effect, `both-${n}`)])
  const alone = FOLLOWS.map(([, effect], n) => fired(effect, `alone-${n}`))
  const others = ['RefreshTokenReuse', 'ForecastStale'].map((alert) => fired(alert, 'routing'))
  await Promise.all([
    post(alertmanagerUrl, [...pairs, ...alone, ...others]),
    post(daytimeUrl, [fired('ForecastStale', 'routing')])
  ])
  const expected: Told[] = [
    ['pager', 'DatabaseDown', 'both-2'],
    ['security-pager', 'RefreshTokenReuse', 'routing'],
    ['pager', 'RefreshTokenReuse', 'routing'],
    ['deadman', 'Watchdog'],
    // They wait as long as those that are held back would: when they have come, those are not coming.
    ...FOLLOWS.map(([, effect], n) => ['chat', effect, `alone-${n}`] as const),
    ['day-data-chat', 'ForecastStale', 'routing']
  ]
  await Promise.all(expected.map(toldTo))
  const told = FOLLOWS.filter(([, effect], n) => has('chat', effect, `both-${n}`))
  if (told.length > 0) throw new Error(told.map(([cause, effect]) => `${effect} was told beside ${cause}`).join('\n'))
  if (has('data-chat', 'ForecastStale', 'routing')) throw new Error('ForecastStale was told at night')
}
