import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { until } from '../../alerts/run.js'
import { send } from './load.js'
import { ownersOf, type Process } from './processes.js'
import type { Cluster } from './verify.js'

const SERIES = 16
const DAYS = 90
const TRAINED_SECONDS = 120
/** Light ones: a series may take 20 s, and here everything shares two cores. */
const MODELS = ['seasonal-naive', 'mapa-dotm']
const SCHEDULED_SECONDS = 45
const LOOKED_MILLISECONDS = 8_000

const codeOf = (n: number) => `TRAIN-${n}`

/** What was used of some items on each day of four months. */
async function postHistory({ url, admin }: Cluster): Promise<void> {
  const rows = ['itemCode,type,quantity,occurredAt,unitCost']
  const today = Math.floor(Date.now() / 86_400_000)
  for (let n = 0; n < SERIES; n++) {
    const made = await send(url, admin, 'POST', '/api/inventory', {
      body: { itemCode: codeOf(n), name: codeOf(n), unit: 'each' }
    })
    if (made.status !== 201) throw new Error(`no item: ${made.text}`)
    const at = (day: number) => new Date((today - day) * 86_400_000 + 43_200_000).toISOString()
    rows.push(`${codeOf(n)},receipt,100000,${at(DAYS + 1)},1`)
    for (let day = DAYS; day > 0; day--)
      rows.push(`${codeOf(n)},issue,${20 + ((day * (n + 3)) % 7) * 3 + (day % 7)},${at(day)},`)
  }
  const answer = await fetch(`${url}/api/import/movements`, {
    method: 'POST',
    headers: { authorization: `Bearer ${admin}`, 'content-type': 'text/csv', prefer: 'wait=30' },
    body: `${rows.join('\n')}\n`
  })
  if (answer.status !== 200) throw new Error(`no history: ${answer.status} ${await answer.text()}`)
}

export interface Training {
  /** Where each ran, as far as it was seen. */
  readonly ranOn: ReadonlyMap<string, ReadonlySet<string>>
  /** One of these that has a job in hand now. */
  atWork(wanted: readonly Process[]): Promise<Process>
  ended(): Promise<void>
}

/** Starts one training for each series, and watches who takes which. */
export async function startTraining(cluster: Cluster): Promise<Training> {
  await postHistory(cluster)
  for (let n = 0; n < SERIES; n++) {
    const answer = await send(cluster.url, cluster.admin, 'POST', '/api/ai/forecast/train', {
      body: { itemCodes: [codeOf(n)], models: MODELS }
    })
    if (answer.status !== 202) throw new Error(`no training: ${answer.status} ${answer.text}`)
  }
  const ranOn = new Map<string, Set<string>>()
  const all = [...cluster.nodes, ...cluster.workers, cluster.spare]
  /** Names are kept, since a process has another one when it was started again. */
  const names = new Map<string, Process>()
  const running = async () => {
    for (const process of all) for (const owner of ownersOf(process)) names.set(owner, process)
    const { rows } = await cluster.database.query<{ id: string; owner: string }>(
      `select id, split_part(claim, '.', 1) as owner from tenant_main.jobs
       where kind = 'forecasting.train' and status = 'running' and claim is not null`
    )
    for (const { id, owner } of rows) {
      const process = names.get(owner)
      if (process !== undefined) ranOn.set(process.name, (ranOn.get(process.name) ?? new Set()).add(id))
    }
    return rows.flatMap(({ owner }) => names.get(owner) ?? [])
  }
  return {
    ranOn,
    atWork: async (wanted) => {
      for (const deadline = performance.now() + 30_000; performance.now() < deadline; ) {
        const found = (await running()).find((process) => wanted.includes(process))
        if (found !== undefined) return found
      }
      throw new Error(`none of ${wanted.map(({ name }) => name)} takes a training`)
    },
    ended: () =>
      until('every training has ended', TRAINED_SECONDS, async () => {
        await running()
        const { rows } = await cluster.database.query<{ left: string }>(
          `select count(*) as left from tenant_main.jobs where kind = 'forecasting.train' and finished_at is null`
        )
        return rows[0]?.left === '0'
      })
  }
}

/**
 * Each series was stored once, however often its training had to begin; on a starved machine one may take longer than it
 * may, and then its job says so and stores nothing.
 */
export async function checkTrained(database: pg.Client): Promise<{ again: number; late: number }> {
  const { rows: jobs } = await database.query<{ status: string; attempts: number; result: string }>(
    `select status, attempts, result from tenant_main.jobs where kind = 'forecasting.train'`
  )
  const { rows: models } = await database.query<{ item: string; versions: number }>(
    `select item_code as item, count(*)::int as versions from tenant_main.ai_models group by item_code`
  )
  const late = jobs.flatMap(({ result }): string[] => {
    const { failed }: { failed: { itemCode: string; reason: string }[] } = JSON.parse(result)
    return failed.map(({ itemCode, reason }) => `${itemCode} ${reason}`)
  })
  const wrong = [
    ...jobs.filter(({ status }) => status !== 'succeeded'),
    ...models.filter(({ versions }) => versions !== 1),
    ...late.filter((reason) => !reason.endsWith('took longer than 20 s'))
  ]
  if (wrong.length > 0 || jobs.length !== SERIES || models.length + late.length !== SERIES || models.length === 0)
    throw new Error(`${jobs.length} trainings, ${models.length} models: ${JSON.stringify({ wrong, late })}`)
  return { again: jobs.filter(({ attempts }) => attempts > 1).length, late: late.length }
}

/** What every node looks for, one of them does: an event asks for a training of all that it touches. */
export async function checkScheduled({ url, admin, database }: Cluster): Promise<void> {
  const made = await send(url, admin, 'POST', '/api/ai/events', {
    body: { name: 'Fair', dates: [new Date(Date.now() + 86_400_000).toISOString().slice(0, 10)] }
  })
  if (made.status !== 201) throw new Error(`no event: ${made.status} ${made.text}`)
  const started = async () => {
    const { rows } = await database.query<{ jobs: string }>(
      `select count(*) as jobs from tenant_main.jobs where kind = 'forecasting.nightly'`
    )
    return Number(rows[0]?.jobs)
  }
  await until('one node starts what was asked for', SCHEDULED_SECONDS, async () => (await started()) > 0)
  // Every node looks each half minute, a little more or less: the others have looked too by then.
  await sleep(LOOKED_MILLISECONDS)
  if ((await started()) !== 1) throw new Error(`${await started()} nodes started it`)
}
