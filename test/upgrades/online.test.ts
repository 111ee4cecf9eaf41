import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { sql } from 'kysely'
import pg from 'pg'
import t, { type Test } from 'tap'
import type { MigrationSet } from '../../plugins/migrate/index.js'
import { eachDialect } from '../helper.js'
import { ownTime } from '../own-time.js'
import { patience } from '../patience.js'
import { spawnNode } from '../service-process.js'
import { newPlace, type Opened, type Place, schemaOf } from './databases.js'
import { versionOne, versionTwo } from './versions.js'

/** Migrations that run while others write: backfills, long readers, indexes. */

/** Things by the thousand, as version one keeps them. */
const KILLED = fileURLToPath(new URL('./killed.js', import.meta.url))
const THINGS = 8_000
async function things(t: Test, place: Place): Promise<Opened> {
  const opened = await place.open()
  t.same(await opened.migrate([versionOne]), ['things/0001-things'])
  const numbers = sql`with recursive n (n) as (select 1 union all select n + 1 from n where n < ${sql.lit(THINGS)})`
  await sql`${numbers} insert into ${sql.table('things')} select n, 'Thing ' || n from n`.execute(opened.db)
  return opened
}

async function unfilled({ db }: Opened): Promise<number> {
  const { rows } = await sql<{ n: number }>`select count(*) as n from ${sql.table('things')}
    where id <= ${THINGS} and (lower_name is null or lower_name <> lower(name))`.execute(db)
  return Number(rows[0]?.n)
}

/** Somebody with the version before, who writes one row after the other until told to stop. */
function writer(opened: Opened, pauseMilliseconds = 2) {
  const waited: number[] = []
  let going = true
  const done = (async () => {
    const server =
      opened.schema === undefined
        ? undefined
        : await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(opened.db)
    const clock = () => ownTime(process.pid, server?.rows[0]?.pid)
    for (let id = THINGS + 1; going; id++) {
      const startedAt = clock()
      await sql`insert into ${sql.table('things')} (id, name) values (${id}, 'New')`.execute(opened.db)
      waited.push(clock() - startedAt)
      await sleep(pauseMilliseconds)
    }
  })()
  return {
    waited,
    stop: async () => {
      going = false
      await done
      return Math.max(...waited)
    }
  }
}

/** Resolves when the condition holds; it is looked at often. */
const until = patience({ seconds: 20 })

await eachDialect(t, async (t, dialect) => {
  await t.test('a backfill that is killed goes on where it was, while others write', async (t) => {
    const place = await newPlace(t, dialect)
    const opened = await things(t, place)
    t.same(await once(spawnNode([KILLED, place.url, '10']), 'close'), [null, 'SIGKILL'])
    const left = await unfilled(opened)
    t.ok(left > 0 && left < THINGS, `${left} of ${THINGS} rows were left`)
    // So fast that no batch finds nothing.
    const others = writer(await place.open(), 0)
    t.same(await opened.migrate([versionTwo]), ['things/0003-fill-lower-name'])
    const slowest = await others.stop()
    t.ok(slowest < 1_500, `of ${others.waited.length} writes meanwhile the slowest took ${slowest.toFixed(0)} ms`)
    t.equal(await unfilled(opened), 0)
  })

  await t.test('a backfill that changes nothing is refused', async (t) => {
    const opened = await things(t, await newPlace(t, dialect))
    const migrations: MigrationSet['migrations'] = {
      ...versionTwo.migrations,
      '0003-fill-lower-name': {
        online: [{ backfill: 'things', key: 'id', where: sql`name <> ''`, set: { lower_name: sql`lower(name)` } }]
      }
    }
    await t.rejects(opened.migrate([{ module: 'things', migrations }]), {
      cause: { message: 'the backfill of things would never end: "set" does not make "where" untrue' }
    })
  })
})

/** A client of its own on the database of a place. */
async function connection(t: Test, { url }: Place): Promise<pg.Client> {
  const made = new pg.Client({ connectionString: url })
  made.on('error', () => {})
  await made.connect()
  t.teardown(() => made.end().catch(() => {}))
  await made.query('set search_path = tenant_main')
  return made
}
async function indexState(asks: pg.Client): Promise<string> {
  const { rows } = await asks.query<{ valid: boolean; pid: number | null }>(
    `select i.indisvalid as valid, p.pid from pg_index i left join pg_stat_progress_create_index p on p.index_relid = i.indexrelid
     where i.indexrelid = to_regclass('things_lower_name')`
  )
  const [row] = rows
  return row === undefined ? 'absent' : row.valid ? 'valid' : row.pid === null ? 'invalid' : 'building'
}

t.test('PostgreSQL: a reader holds on for long, and nobody waits for the migration that waits for it', async (t) => {
  const place = await newPlace(t, 'postgres')
  const opened = await things(t, place)
  const [asks, reader] = [await connection(t, place), await connection(t, place)]
  await reader.query('begin isolation level repeatable read; select count(*) from things')
  const others = writer(await place.open())
  const notices: string[] = []
  const lockTimeoutMilliseconds = 200
  const migrated = opened.migrate([versionTwo], { lockTimeoutMilliseconds, notice: (text) => notices.push(text) })
  // The column cannot be added while the table is read; those who write queue for as long as it tries, and no longer.
  await until('it waits', () => notices.length > 0)
  await sleep(2_000)
  t.same(notices, ['things/0002-lower-name waits for a table that is in use'])
  t.notOk((await schemaOf(opened)).things?.columns.lower_name, 'the column waits')
  const before = others.waited.length
  t.ok(
    Math.max(...others.waited) < lockTimeoutMilliseconds + 500,
    `the slowest write took ${Math.max(...others.waited)}`
  )
  await reader.query('commit; begin isolation level repeatable read; select 1 from migrations_things')
  // The index waits for whoever may still see the table as it was; meanwhile nobody waits for the index.
  await until('the index is being built', async () => (await indexState(asks)) === 'building')
  await sleep(500)
  t.equal(await indexState(asks), 'building', 'it waits for the reader')
  await until('others have written', () => others.waited.length > before)
  const written = others.waited.length
  await until('and write', () => others.waited.length > written)
  t.equal(await indexState(asks), 'building', 'while it waits')
  t.ok(others.waited.length > written && written > before, `${others.waited.length} writes so far`)
  await reader.query('commit')
  t.same(await migrated, ['things/0002-lower-name', 'things/0003-fill-lower-name'])
  t.equal(await indexState(asks), 'valid')
  t.equal(await unfilled(opened), 0)
  const slowest = await others.stop()
  t.ok(
    slowest < lockTimeoutMilliseconds + 500,
    `the slowest of ${others.waited.length} writes: ${slowest.toFixed(0)} ms`
  )
})

t.test('PostgreSQL: an index that was broken off is built again', async (t) => {
  const place = await newPlace(t, 'postgres')
  const opened = await things(t, place)
  const [asks, reader] = [await connection(t, place), await connection(t, place)]
  // From before the index: it waits for this one, and the column does not.
  await reader.query('begin isolation level repeatable read; select 1 from migrations_things')
  const child = spawnNode([KILLED, place.url])
  const ended = once(child, 'close')
  await until('the index is being built', async () => (await indexState(asks)) === 'building')
  // Who drops it waits for whoever reads the table.
  await reader.query('select count(*) from things')
  child.kill('SIGKILL')
  t.same(await ended, [null, 'SIGKILL'])
  t.equal(await indexState(asks), 'building', 'the server goes on for a client that is dead')
  const second = opened.migrate([versionTwo])
  await sleep(300)
  await asks.query('select pg_terminate_backend(pid) from pg_stat_progress_create_index where relid = $1::regclass', [
    'things'
  ])
  await until('it is left invalid', async () => (await indexState(asks)) !== 'building')
  await reader.query('commit')
  t.same(await second, ['things/0003-fill-lower-name'])
  t.equal(await indexState(asks), 'valid')

  const unique: MigrationSet = {
    module: 'things',
    migrations: {
      ...versionTwo.migrations,
      '0004-unique': { online: [{ index: 'things_once', on: 'things', columns: ['name'], unique: true }] }
    }
  }
  await sql`insert into ${sql.table('things')} (id, name) values (${THINGS + 1}, 'Thing 1')`.execute(opened.db)
  await t.rejects(opened.migrate([unique]), /migration things\/0004-unique failed: could not create unique index/)
  const { rows } = await asks.query("select to_regclass('things_once') as found")
  t.same(rows, [{ found: null }], 'nothing is left of one that cannot be')
  await sql`delete from ${sql.table('things')} where id > ${THINGS}`.execute(opened.db)
  t.same(await opened.migrate([unique]), ['things/0004-unique'])
})
