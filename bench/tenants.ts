import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { inParallel } from '../alerts/run.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Tenants } from '../plugins/core.js'
import { build } from '../server.js'
import { BenchError, newSecret, numbers, postgres, progress, say, startTarget, table, withCleanup } from './support.js'

const IDLE_SECONDS = 20
const CREATING = 8
const MEGABYTE = 1024 ** 2

/** What tenants cost on one PostgreSQL: to make, to start with, to hold open, and to do nothing with. */
export async function run(args: string[]): Promise<void> {
  const { tenants: count } = numbers(args, { tenants: 1_000 })
  await withCleanup(async (cleanup) => {
    const server = await postgres(cleanup, { max_connections: '50', max_locks_per_transaction: '1024' })
    if (server === undefined) throw new BenchError('this bench needs PostgreSQL')
    const database = new pg.Client({ connectionString: server.url })
    await database.connect()
    cleanup.add(() => database.end())
    const env = {
      DATA_DIR: cleanup.folder(),
      DATABASE_URL: server.url,
      TENANCY: 'multi',
      JWT_SECRET: newSecret(),
      SECRETS_KEY: newSecret(),
      LOG_LEVEL: 'error'
    }
    const rows: [string, string][] = []
    const note = (what: string, figure: string) => void rows.push([what, figure])

    const created = await createAll(env, count)
    note(
      `${count} tenants made, each with every migration`,
      `${seconds(created)} s, ${perTenant(created, count)} ms each`
    )
    note('disk for each, empty', `${((await sizeOf(database)) / count / MEGABYTE).toFixed(2)} MB`)

    const one = await started(cleanup, { ...env, DATABASE_URL: await emptyDatabase(database, server.url) })
    const all = await started(cleanup, env)
    note('start with none', `${seconds(one.milliseconds)} s`)
    note(
      `start with ${count}`,
      `${seconds(all.milliseconds)} s, ${perTenant(all.milliseconds - one.milliseconds, count)} ms each`
    )
    note(
      'memory for each that is open',
      `${((all.bytes - one.bytes) / count / 1024).toFixed(0)} kB (${(one.bytes / MEGABYTE).toFixed(0)} MB without)`
    )
    const { statements, cpu, connections } = await idle(database, all)
    note('statements a second while nobody asks anything', statements.toFixed(0))
    note('share of a core for that, of one node', `${(cpu * 100).toFixed(0)} %`)
    note('connections of one node', String(connections))
    process.stdout.write(`${table(['what', 'figure'], rows)}\n`)
  })
}

type Environment = Record<string, string>
const seconds = (milliseconds: number) => (milliseconds / 1000).toFixed(1)
const perTenant = (milliseconds: number, count: number) => (milliseconds / count).toFixed(1)

async function createAll(env: Environment, count: number): Promise<number> {
  const service = await build(loadConfig(env))
  await service.ready()
  const tenants = service.getDecorator<Tenants>('tenants')
  const shown = progress('making tenants', count)
  const startedAt = performance.now()
  let made = 0
  const names = Array.from({ length: count }, (_, n) => `t${n}`)
  await inParallel(names, CREATING, async (name) => {
    await tenants.create(name)
    shown(++made)
  })
  const milliseconds = performance.now() - startedAt
  await service.close()
  return milliseconds
}

async function emptyDatabase(database: pg.Client, url: string): Promise<string> {
  await database.query('create database none')
  const other = new URL(url)
  other.pathname = '/none'
  return other.href
}

async function sizeOf(database: pg.Client): Promise<number> {
  const { rows } = await database.query<{ size: string }>('select pg_database_size(current_database()) as size')
  return Number(rows[0]?.size)
}

interface Started {
  milliseconds: number
  bytes: number
  cpuMilliseconds(): number
}

async function started(cleanup: Parameters<typeof startTarget>[0], env: Environment): Promise<Started> {
  const startedAt = performance.now()
  const target = await startTarget(cleanup, { file: 'server.js', env, path: '/health/ready' })
  const milliseconds = performance.now() - startedAt
  await sleep(2_000)
  const text = await (await fetch(`${target.url}/metrics`)).text()
  const bytes = Number(/^process_resident_memory_bytes (\d+)$/m.exec(text)?.[1])
  return { milliseconds, bytes, cpuMilliseconds: target.cpuMilliseconds }
}

/** What a node asks by itself: due work of every tenant. */
async function idle(database: pg.Client, { cpuMilliseconds }: Started) {
  const transactions = async () => {
    const { rows } = await database.query<{ done: string; open: string }>(
      `select xact_commit + xact_rollback as done,
         (select count(*) from pg_stat_activity where application_name = 'inventory-enterprise') as open
       from pg_stat_database where datname = current_database()`
    )
    return { done: Number(rows[0]?.done), open: Number(rows[0]?.open) }
  }
  const before = await transactions()
  const cpuBefore = cpuMilliseconds()
  say(`watching it do nothing for ${IDLE_SECONDS} s`)
  await sleep(IDLE_SECONDS * 1000)
  const after = await transactions()
  return {
    statements: (after.done - before.done) / IDLE_SECONDS,
    cpu: (cpuMilliseconds() - cpuBefore) / (IDLE_SECONDS * 1000),
    connections: after.open
  }
}
