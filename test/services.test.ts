import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, readlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Redis } from 'ioredis'
import pg from 'pg'
import t from 'tap'
import { freshDatabase, postgresUrl, redisUrl, startPostgres, startRedis } from './services.js'

async function query(url: string, sql: string): Promise<Record<string, unknown>[]> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  try {
    return (await client.query(sql)).rows
  } finally {
    await client.end()
  }
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    // A process that nobody has waited for yet is dead too.
    const stat = `/proc/${pid}/stat`
    return !existsSync(stat) || !/\) Z /.test(readFileSync(stat, 'utf8'))
  } catch {
    return false
  }
}

async function until(what: () => boolean, timeoutMs: number): Promise<boolean> {
  const deadline = Date.now() + timeoutMs
  while (!what() && Date.now() < deadline) await sleep(50)
  return what()
}

t.test('a fresh database is empty, is its own, takes pg_trgm and goes when dropped', async (t) => {
  const [a, b] = await Promise.all([freshDatabase(), freshDatabase()])
  t.not(a.url, b.url)
  await query(a.url, 'CREATE EXTENSION pg_trgm; CREATE TABLE item (name text)')
  t.same(await query(a.url, "SELECT lower('ÉCROU') AS low, 'abc' % 'abd' AS near"), [{ low: 'écrou', near: true }])
  t.same(await query(b.url, "SELECT to_regclass('item') AS item"), [{ item: null }])

  const idle = new pg.Client({ connectionString: a.url })
  idle.on('error', () => {})
  await idle.connect()
  await Promise.all([a.drop(), b.drop()])
  await t.rejects(query(a.url, 'SELECT 1'), { code: '3D000' })
  const version = await query(postgresUrl(), "SELECT current_setting('server_version_num')::int >= 140000 AS ok")
  t.same(version, [{ ok: true }])
})

t.test('the shared Redis answers, and a helper without its environment says what to run', async (t) => {
  const redis = new Redis(redisUrl())
  const key = `services-test:${process.pid}`
  await redis.set(key, 'é', 'EX', 10)
  t.equal(await redis.getdel(key), 'é')
  await redis.quit()

  const kept = process.env.TEST_REDIS_URL
  delete process.env.TEST_REDIS_URL
  t.throws(redisUrl, { message: /TEST_REDIS_URL is not set: run npm test/ })
  process.env.TEST_REDIS_URL = kept
})

t.test('a private Redis can be frozen, thawed, killed, restarted and stopped', async (t) => {
  const server = await startRedis()
  const redis = new Redis(server.url, { commandTimeout: 300, maxRetriesPerRequest: 0, retryStrategy: () => 50 })
  redis.on('error', () => {})
  t.equal(await redis.ping(), 'PONG')

  server.freeze()
  await t.rejects(redis.ping(), /timed out/)
  server.thaw()
  t.equal(await redis.ping(), 'PONG')

  const { pid } = server
  await server.kill()
  t.notOk(alive(pid))
  await t.rejects(redis.ping())
  await server.restart()
  const again = new Redis(server.url)
  t.equal(await again.ping(), 'PONG')
  await again.quit()
  redis.disconnect()

  const last = server.pid
  await server.stop()
  t.notOk(alive(last))
  t.throws(() => server.pid, /not running/)
})

t.test('a private PostgreSQL keeps over SIGKILL what it has acknowledged', async (t) => {
  const server = await startPostgres()
  const settings = await query(
    server.url,
    "SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS commit"
  )
  t.same(settings, [{ fsync: 'on', commit: 'on' }])
  await query(server.url, 'CREATE TABLE posting (n int PRIMARY KEY)')

  const client = new pg.Client({ connectionString: server.url })
  client.on('error', () => {})
  await client.connect()
  let acknowledged = 0
  const writing = (async () => {
    for (;;) {
      await client.query('INSERT INTO posting VALUES ($1)', [acknowledged + 1])
      acknowledged += 1
    }
  })().catch(() => {})
  await until(() => acknowledged > 20, 5000)
  await server.kill()
  await writing
  await client.end().catch(() => {})
  await server.restart()
  const [row] = await query(server.url, 'SELECT count(*)::int AS n FROM posting')
  t.ok(Number(row?.n) >= acknowledged && acknowledged > 20, `${row?.n} rows, ${acknowledged} acknowledged`)
  await server.stop()
})

t.test('servers and folders go with a process that dies by SIGKILL', async (t) => {
  const services = join(dirname(fileURLToPath(import.meta.url)), 'services.js')
  const script = `
    import { startPostgres, startRedis } from ${JSON.stringify(services)}
    const all = await Promise.all([startPostgres(), startRedis()])
    console.log(JSON.stringify(all.map(({ pid }) => pid)))
    setInterval(() => {}, 1000)`
  const host = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [line] = await once(host.stdout, 'data')
  const pids = String(line).match(/\d+/g)?.map(Number) ?? []
  t.equal(pids.length, 2)
  const folders = process.platform === 'linux' ? pids.map((pid) => readlinkSync(`/proc/${pid}/cwd`)) : []
  t.ok(pids.every(alive), 'both run')

  host.kill('SIGKILL')
  await once(host, 'exit')
  t.ok(await until(() => !pids.some(alive), 10_000), 'both are gone')
  t.ok(await until(() => !folders.some((path) => existsSync(path)), 10_000), 'and so are their folders')
})
