import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import Sqlite from 'better-sqlite3'
import { type Kysely, sql } from 'kysely'
import t, { type Test } from 'tap'
import { openDatabaseServer } from '../plugins/database.js'
import { type TenantDatabase, UNWATCHED } from '../plugins/dialects/dialect.js'
import { createWriteBack, keepLog, sizeOf } from '../plugins/dialects/sqlite-log.js'
import { patience } from './patience.js'

const until = patience({ seconds: 30 })

const serverAt = (path: string, tenancy: 'single' | 'multi' = 'single') =>
  openDatabaseServer({ databaseUrl: `sqlite:${path}`, tenancy, poolSize: 1 }, UNWATCHED)
const makeTable = (db: Kysely<unknown>) => sql`create table t (id integer primary key, v blob)`.execute(db)
/** Some 1 MB. */
const ROWS = 250
const addRows = (db: Kysely<unknown>) =>
  sql`insert into t (v) select randomblob(3900) from json_each(${JSON.stringify(Array(ROWS).fill(0))})`.execute(db)
async function rowsIn({ db }: TenantDatabase): Promise<number> {
  const { rows } = await sql<{ rows: number }>`select count(*) as rows from t`.execute(db)
  return rows[0]?.rows ?? 0
}
async function write(database: TenantDatabase, megabytes: number): Promise<void> {
  for (let n = 0; n < megabytes; n++) await database.transact(addRows)
}

t.test('the log is written back beside the commits and begins anew', async (t) => {
  const path = join(t.testdir(), 'log.sqlite')
  const server = serverAt(path)
  const database = await server.open('main')
  await database.transact(makeTable)
  const version = database.foreignVersion?.()
  // A commit by itself would begin at 128 MB.
  await write(database, 40)
  await until('the log begins anew', async () => {
    await database.transact((db) => sql`insert into t (v) values (null)`.execute(db))
    return ((await server.statistics())?.checkpoints ?? 0) >= 1
  })
  t.equal(database.foreignVersion?.(), version, 'which is no commit of somebody else, so caches stay')
  const written = await rowsIn(database)
  await server.close()
  t.equal(sizeOf(`${path}-wal`), 0, 'whoever closes last writes the rest back')
  const again = serverAt(path)
  t.teardown(() => again.close())
  t.equal(await rowsIn(await again.open('main')), written)
})

t.test('a tenant that is dropped while its log is written back takes nothing from the next of its name', async (t) => {
  const server = serverAt(join(t.testdir(), 'main.sqlite'), 'multi')
  for (let round = 1; round <= 3; round++) {
    await server.create('alpha')
    const before = await server.open('alpha')
    await before.transact(makeTable)
    // The last of these has just asked for it.
    await write(before, 33)
    await server.drop('alpha')
    await server.create('alpha')
    const after = await server.open('alpha')
    await after.transact(makeTable)
    await write(after, 2)
    await after.close()
    const reopened = await server.open('alpha')
    t.equal(await rowsIn(reopened), 2 * ROWS, `round ${round}`)
    t.equal(await integrity(reopened), 'ok')
    await server.drop('alpha')
  }
  await server.close()
})

t.test('a file that is gone is not made anew', async (t) => {
  const path = join(t.testdir(), 'gone.sqlite')
  const writeBack = createWriteBack()
  await writeBack.file(path)
  await writeBack.close()
  t.notOk(existsSync(path))
})

async function integrity({ db }: TenantDatabase): Promise<unknown> {
  const { rows } = await sql<{ integrity_check: string }>`pragma integrity_check`.execute(db)
  return rows[0]?.integrity_check
}

t.test('a reader that began long ago is waited for, and not asked about at every commit', async (t) => {
  const { writer, other, reader, add } = openThree(t)
  let asked = 0
  let held: Promise<void> | undefined
  const log = keepLog(
    writer,
    async () => {
      asked++
      other.pragma('wal_checkpoint(PASSIVE)')
      await held
    },
    (work) => work()
  )
  const commit = async (megabytes: number) => {
    for (let n = 0; n < megabytes; n++) {
      add()
      log.committed()
      await new Promise(setImmediate)
    }
  }
  const pages = () => writer.prepare<[], { log: number }>('pragma wal_checkpoint(NOOP)').get()?.log ?? 0
  reader.exec('begin; select count(*) from t')
  await commit(60)
  t.ok(pages() > 12_000, `the log keeps what came after: ${pages()} pages`)
  t.ok(asked >= 2 && asked <= 10, `written back ${asked} times in 60 commits`)
  reader.exec('commit')
  const before = asked
  await commit(6)
  t.ok(asked > before)
  t.ok(pages() < 4_000, `and begins anew once the reader has ended: ${pages()} pages`)
  let letGo = () => {}
  held = new Promise((resolve) => {
    letGo = resolve
  })
  await commit(40)
  let closed = false
  const closing = log.close().then(() => {
    closed = true
  })
  await sleep(20)
  t.notOk(closed, 'whoever closes waits for the thread, which has the file open')
  letGo()
  await closing
  const last = asked
  await commit(40)
  t.equal(asked, last, 'nothing begins after the end')
})

function openThree(t: Test) {
  const path = join(t.testdir(), 'three.sqlite')
  const [writer, other, reader] = [new Sqlite(path), new Sqlite(path), new Sqlite(path)]
  t.teardown(() => {
    for (const db of [reader, other, writer]) db.close()
  })
  writer.exec('pragma journal_mode = wal; create table t (id integer primary key, v blob)')
  const insert = writer.prepare('insert into t (v) values (randomblob(3900))')
  return { writer, other, reader, add: writer.transaction(() => repeat(ROWS, () => insert.run())) }
}

function repeat(times: number, work: () => void): void {
  for (let n = 0; n < times; n++) work()
}
