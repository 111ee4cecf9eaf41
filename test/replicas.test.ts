import { sql } from 'kysely'
import pg from 'pg'
import t from 'tap'
import { loadConfig } from '../plugins/config/index.js'
import { reportsOf } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { buildApp, client } from './helper.js'
import { ownTime } from './own-time.js'
import { patience } from './patience.js'
import { type Server, startPostgres, startReplica } from './services.js'

const until = patience({ seconds: 20, pauseMs: 200 })

/** A real PostgreSQL and a streaming replica of it. */

async function ask(server: Server, text: string): Promise<Record<string, unknown>[]> {
  const connection = new pg.Client({ connectionString: server.url })
  await connection.connect()
  try {
    return (await connection.query(text)).rows
  } finally {
    await connection.end()
  }
}

t.test('exports are read from a replica, never older than when they were asked for', async (t) => {
  const primary = await startPostgres()
  t.teardown(() => primary.stop())
  const replica = await startReplica(primary)
  t.teardown(() => replica.stop())
  const config = { DATABASE_URL: primary.url, DATABASE_REPLICA_URL: replica.url }
  const app = await buildApp(t, { dialect: 'postgres', config })
  const manager = client(app, 'manager')
  const places = async () => {
    const { text } = await client(app, 'admin').get('/metrics')
    const count = (place: string) => Number(new RegExp(`db_reports_total{place="${place}"} (\\d+)`).exec(text)?.[1])
    return { replica: count('replica'), primary: count('primary') }
  }
  const add = (itemCode: string) => manager.post('/api/inventory', { itemCode, name: 'Flour', unit: 'kg' })
  const codes = async () => {
    const { text } = await manager.get('/api/export/items?format=ndjson')
    return text.split('\n').flatMap((line) => (line === '' ? [] : String(JSON.parse(line).itemCode)))
  }

  const expected: string[] = []
  for (let n = 0; n < 20; n++) {
    const code = `ITEM-${String(n).padStart(2, '0')}`
    t.equal((await add(code)).status, 201)
    expected.push(code)
    t.same(await codes(), expected, 'what was just written is in it')
  }
  t.same(await places(), { replica: 20, primary: 0 })
  t.equal((await client(app, 'admin').get('/api/audit/export')).status, 200)
  t.same(await places(), { replica: 21, primary: 0 }, 'the audit trail too')

  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  const place = async () => {
    const report = await reportsOf(tenant)
    return () =>
      report(async (db) => {
        const { rows } = await sql<{ port: number }>`select inet_server_port() as port`.execute(db)
        return String(rows[0]?.port) === new URL(replica.url).port ? 'replica' : 'primary'
      })
  }
  const read = await place()
  t.equal(await read(), 'replica')

  await ask(replica, 'select pg_wal_replay_pause()')
  await add('ITEM-20')
  expected.push('ITEM-20')
  t.same(await codes(), expected, 'a replica that lags is not read')
  const before = ownTime(process.pid)
  t.same(await codes(), expected)
  t.ok(ownTime(process.pid) - before < 900, 'nor waited for again at once')
  t.same(await places(), { replica: 22, primary: 2 })
  await ask(replica, 'select pg_wal_replay_resume()')

  await until('it is read again once it has caught up', async () => (await place())().then((at) => at === 'replica'))

  await replica.kill()
  // A server process outlives the one that was killed until it looks, and may answer once more.
  await until('what began on the replica goes on without it', async () => (await read()) === 'primary')
  t.same(await codes(), expected)
})

t.test('a replica goes with PostgreSQL alone, and its address is not told', async (t) => {
  const url = 'postgres://me:secret@replica/inventory'
  t.throws(() => loadConfig({ NODE_ENV: 'test', DATABASE_URL: 'sqlite::memory:', DATABASE_REPLICA_URL: url }), {
    message:
      'DATABASE_REPLICA_URL is a value that is refused (not shown); it may be set where DATABASE_URL is a PostgreSQL server'
  })
})
