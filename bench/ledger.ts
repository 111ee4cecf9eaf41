import { join } from 'node:path'
import Sqlite from 'better-sqlite3'
import pg from 'pg'
import { postMovement } from '../modules/inventory/movements.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Tenant, Tenants } from '../plugins/core.js'
import type { NewMovement } from '../schemas/inventory.js'
import { build } from '../server.js'
import { movementOf, seedCatalogue } from './catalogue.js'
import { fire } from './fire.js'
import {
  type Cleanup,
  newSecret,
  numbers,
  postgres,
  quantile,
  random,
  type Service,
  say,
  startService,
  table,
  withCleanup
} from './support.js'

const CLIENTS = [1, 16, 64]
/** So much of each item that no issue fails. */
const OPENING = 900_000
const AUTHOR = { actor: 'bench', requestId: 'bench' }
const next = random(11)

interface Result {
  perSecond: number
  p50: number
  p95: number
  max: number
}
type Row = (string | number)[]

/** Single-line receipts and issues of random items for `--seconds` at each number of clients. */
export async function run(args: string[]): Promise<void> {
  const options = numbers(args, { seconds: 4, items: 500 })
  await withCleanup(async (cleanup) => {
    const rows: Row[] = []
    const sqlite = `sqlite:${join(cleanup.folder(), 'inventory.sqlite')}`
    rows.push(...(await measure(cleanup, 'SQLite', sqlite, options)))
    rows.push(...rawSqlite(cleanup, options.seconds))
    const server = await postgres(cleanup)
    if (server !== undefined) {
      rows.push(...(await measure(cleanup, 'PostgreSQL', server.url, options)))
      for (const clients of CLIENTS) rows.push(await rawPostgres(cleanup, server.url, clients, options.seconds))
    }
    process.stdout.write(
      [
        `\nSingle-line postings, ${options.items} items, ${options.seconds} s each; every posting is synced to disk before it is acknowledged`,
        table(['', 'clients', 'postings/s', 'p50 ms', 'p95 ms', 'max ms'], rows),
        'The ceilings write one move and one balance and nothing else: no request, no check of stock, no lot, no cost, no event.\n'
      ].join('\n')
    )
  })
}

async function measure(
  cleanup: Cleanup,
  name: string,
  databaseUrl: string,
  { seconds, items }: { seconds: number; items: number }
): Promise<Row[]> {
  const service = await startService(cleanup, { databaseUrl, secret: newSecret() })
  say(`${name}: creating ${items} items`)
  const codes = await seedCatalogue(service, items, OPENING)
  const rows: Row[] = []
  for (const clients of CLIENTS) {
    say(`${name}: ${clients} clients over HTTP`)
    rows.push(row(`${name}, over HTTP`, clients, await overHttp(service, codes, clients, seconds)))
  }
  const tenant = await open(cleanup, databaseUrl)
  for (const clients of CLIENTS) {
    say(`${name}: ${clients} clients through the store`)
    const post = () => tenant.transact((tx) => postMovement(tx, movement(codes), AUTHOR))
    rows.push(row(`${name}, through the store`, clients, await atOnce(clients, seconds, post)))
  }
  return rows
}

const row = (name: string, clients: number, { perSecond, p50, p95, max }: Result): Row => [
  name,
  String(clients),
  perSecond,
  p50,
  p95,
  max
]

const spread = (times: ArrayLike<number>) => ({
  p50: quantile(times, 0.5),
  p95: quantile(times, 0.95),
  max: quantile(times, 1)
})

const movement = (codes: readonly string[]): NewMovement => movementOf(codes, next, 1 + Math.floor(next() * 5))

async function overHttp(service: Service, codes: readonly string[], clients: number, seconds: number): Promise<Result> {
  const { perSecond, times } = await fire(service, {
    connections: clients,
    duration: seconds,
    requests: [
      {
        method: 'POST',
        path: '/api/movements',
        headers: { authorization: `Bearer ${service.token}`, 'content-type': 'application/json' },
        setupRequest: (request) => ({ ...request, body: JSON.stringify(movement(codes)) })
      }
    ]
  })
  return { perSecond, ...spread(times) }
}

/** The service in this process, behind no HTTP. */
async function open(cleanup: Cleanup, databaseUrl: string): Promise<Tenant> {
  const app = await build(loadConfig({ DATA_DIR: cleanup.folder(), DATABASE_URL: databaseUrl, LOG_LEVEL: 'warn' }))
  await app.ready()
  cleanup.add(() => app.close())
  return app.getDecorator<Tenants>('tenants').get('main')
}

/** So many loops at once, each waiting for its own posting before the next. */
async function atOnce(clients: number, seconds: number, work: (client: number) => Promise<unknown>): Promise<Result> {
  const times: number[] = []
  const startedAt = performance.now()
  const until = startedAt + seconds * 1000
  const loop = async (client: number) => {
    while (performance.now() < until) {
      const sentAt = performance.now()
      await work(client)
      times.push(performance.now() - sentAt)
    }
  }
  await Promise.all(Array.from({ length: clients }, (_, client) => loop(client)))
  const perSecond = (times.length / (performance.now() - startedAt)) * 1000
  return { perSecond, ...spread(times) }
}

const ITEMS = 500

/** One insert and one upsert, prepared, synced: one by one and 64 to a commit. */
function rawSqlite(cleanup: Cleanup, seconds: number): Row[] {
  const db = new Sqlite(join(cleanup.folder(), 'raw.sqlite'))
  cleanup.add(() => db.close())
  db.pragma('journal_mode = WAL')
  db.pragma('synchronous = FULL')
  db.exec(`create table moves (id integer primary key, item integer not null, quantity integer not null, at integer not null);
    create table balances (item integer primary key, on_hand integer not null)`)
  const insert = db.prepare('insert into moves (item, quantity, at) values (?, ?, ?)')
  const upsert = db.prepare(
    'insert into balances values (?, ?) on conflict (item) do update set on_hand = on_hand + excluded.on_hand'
  )
  return [1, 64].map((group) => {
    say(`SQLite: ceiling, ${group} to a commit`)
    const post = db.transaction(() => {
      for (let n = 0; n < group; n++) {
        const item = Math.floor(next() * ITEMS)
        insert.run(item, 1, Date.now())
        upsert.run(item, 1)
      }
    })
    const times: number[] = []
    const startedAt = performance.now()
    while (performance.now() - startedAt < seconds * 1000) {
      const sentAt = performance.now()
      post()
      times.push(performance.now() - sentAt)
    }
    const perSecond = (times.length * group * 1000) / (performance.now() - startedAt)
    return row(`SQLite, ceiling: ${group} to a commit`, group, { perSecond, ...spread(times) })
  })
}

/** One statement that inserts and upserts, as pgbench would send it, on as many connections as clients. */
async function rawPostgres(cleanup: Cleanup, url: string, clients: number, seconds: number): Promise<Row> {
  say(`PostgreSQL: ceiling, ${clients} connections`)
  const pool = new pg.Pool({ connectionString: url, max: clients })
  cleanup.add(() => pool.end())
  await pool.query(`create schema if not exists ceiling;
    create table if not exists ceiling.moves (id bigint generated always as identity primary key, item int not null, quantity int not null, at bigint not null);
    create table if not exists ceiling.balances (item int primary key, on_hand bigint not null)`)
  const text = `with moved as (insert into ceiling.moves (item, quantity, at) values ($1, $2, $3) returning item, quantity)
    insert into ceiling.balances select item, quantity from moved
    on conflict (item) do update set on_hand = ceiling.balances.on_hand + excluded.on_hand`
  const result = await atOnce(clients, seconds, () =>
    pool.query({ name: 'ceiling', text, values: [Math.floor(next() * ITEMS), 1, Date.now()] })
  )
  return row('PostgreSQL, ceiling: one statement', clients, result)
}
