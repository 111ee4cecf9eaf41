import { randomUUID } from 'node:crypto'
import { readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import Sqlite from 'better-sqlite3'
import pg from 'pg'
import t, { type Test } from 'tap'
import { createImportStore } from '../modules/inventory/import-store.js'
import { IMPORT_JOB } from '../modules/inventory/imports.js'
import { removeLeftUploads } from '../modules/inventory/spool.js'
import type { Jobs } from '../plugins/contracts.js'
import type { Tenants } from '../plugins/core.js'
import { type Dialect, eachDialect } from './helper.js'
import { type Context, CSV, countRows, imported, lines, NDJSON, openImports } from './imports-harness.js'
import { patience } from './patience.js'
import { serviceEnvironment, startService } from './service-process.js'
import { freshDatabase } from './services.js'

const until = patience({ seconds: 20 })

/** Each is refused with a 4xx that names the place, and nothing of it is stored. */
async function badFiles(t: Test, { manager, db, dataDir }: Context) {
  await imported(t, manager, 'items', lines('itemCode,name,unit,barcode', 'BF-1,Known,each,BF.TAKEN', 'BF-2,Other,kg,'))
  const head = 'itemCode,quantity\n'
  const row = (rest: string, columns: string) => `itemCode,type,quantity,${columns}\nBF-1,receipt,1,${rest}\n`
  const good = `${head}${'BF-1,1\n'.repeat(300)}`
  const refused = (path: string, message: RegExp) => ({
    status: 422,
    code: 'INV_IMPORT_REFUSED',
    errors: [{ path, message }]
  })
  const unreadable = (detail: RegExp) => ({ status: 400, code: 'INV_IMPORT_UNREADABLE', detail })
  const movements: [string, string | Buffer, object, Record<string, string>?][] = [
    ['0 bytes', '', unreadable(/empty/)],
    ['only a code', 'itemCode,quantity\nBF-1', refused('row 2', /1 cell.* header has 2/)],
    ['no header', 'BF-1,5\n', unreadable(/column "BF-1" is not known/)],
    ['an unknown column', 'itemCode,quantity,colour\nBF-1,1,red', unreadable(/"colour"/)],
    ['a missing column', 'itemCode,type\nBF-1,receipt', unreadable(/column quantity is missing/)],
    ['a column twice', 'itemCode,quantity,quantity\nBF-1,1,2', unreadable(/"quantity" twice/)],
    ['__proto__ as a column', 'itemCode,quantity,__proto__\nBF-1,1,2', unreadable(/"__proto__"/)],
    ['too many cells', `${head}BF-1,1\nBF-1,1,1\n`, refused('row 3', /3 cell.* header has 2/)],
    ['semicolons', 'itemCode;quantity\nBF-1;1', unreadable(/separated by commas/)],
    ['tabs', 'itemCode\tquantity\nBF-1\t1', unreadable(/separated by commas/)],
    ['an open quote', `${head}BF-1,"1\n`, unreadable(/quote/i)],
    ['latin-1', Buffer.from(`${good}caf\xe9,1\n`, 'latin1'), unreadable(/line 302 /)],
    ['UTF-16', Buffer.from(`\ufeff${head}BF-1,1`, 'utf16le'), unreadable(/line 1 .*UTF-8/)],
    ['half a character', Buffer.concat([Buffer.from(good), Buffer.from([0xc3])]), unreadable(/line 302 /)],
    ['a zero byte', `${head}BF-1,1\nBF\u0000-1,1`, unreadable(/line 3 /)],
    ['a truncated gzip', gzipSync(good).subarray(0, 40), unreadable(/cut off/)],
    ['a broken gzip', Buffer.concat([gzipSync(good).subarray(0, 20), Buffer.alloc(40, 7)]), unreadable(/gzip/)],
    ['gzip that is none', Buffer.from([0x1f, 0x8b, 1, 2, 3, 4]), unreadable(/gzip/)],
    ['a 2 MB cell', `${head}${'x'.repeat(2_000_000)},1`, unreadable(/record|line 2/i)],
    ['a long cell', `${head}${'x'.repeat(65)},1`, refused('row 2, column itemCode', /65 characters/)],
    ['a code that is not there', `${good}BF-NONE,1\n`, refused('row 302, column itemCode', /BF-NONE/)],
    ['no code', `${head},1\n`, refused('row 2, column itemCode', /missing/)],
    ['no quantity', `${head}BF-1,\n`, refused('row 2, column quantity', /missing/)],
    ['quantity 0', `${head}BF-1,0\n`, refused('row 2, column quantity', /0/)],
    ['a word', `${head}BF-1,many\n`, refused('row 2, column quantity', /"many"/)],
    ['1e309', `${head}BF-1,1e309\n`, refused('row 2, column quantity', /"1e309"/)],
    ['hexadecimal', `${head}BF-1,0x10\n`, refused('row 2, column quantity', /0x10/)],
    ['too large', `${head}BF-1,1000000001\n`, refused('row 2, column quantity', /1000000000/)],
    ['too many decimals', `${head}BF-1,1.1234567\n`, refused('row 2, column quantity', /six decimals/)],
    ['a negative opening', `itemCode,type,quantity\nBF-1,opening,-1`, refused('row 2', /of an opening is above zero/)],
    ['a negative receipt', `${head}BF-1,-1\n`, refused('row 2, column quantity', /above zero/)],
    ['an unknown type', 'itemCode,type,quantity\nBF-1,gift,1', refused('row 2, column type', /"gift"/)],
    ['31 February', row('2024-02-31', 'occurredAt'), refused('row 2, column occurredAt', /2024-02-31/)],
    ['the wrong order', row('31/12/2024', 'occurredAt'), refused('row 2, column occurredAt', /31\/12/)],
    ['before the ledger', row('0000-01-01', 'occurredAt'), refused('row 2, column occurredAt', /before 1970/)],
    ['the future', row('2999-01-01', 'occurredAt'), refused('row 2, column occurredAt', /future/)],
    ['a location that is not there', row('NOWHERE', 'location'), refused('row 2', /NOWHERE/)],
    ['a location that is not ours', row('supplier', 'location'), refused('row 2', /supplier/)],
    ['a unit that is not there', row('parsec', 'unit'), refused('row 2', /parsec/)],
    ['a lot of what has none', row('L1', 'lot'), refused('row 2', /lot/)],
    ['a negative cost', row('-1', 'unitCost'), refused('row 2, column unitCost', /-1/)],
    ['control characters', row('"a\u0007b"', 'reason'), refused('row 2, column reason', /control/)],
    [
      'not enough stock',
      'itemCode,type,quantity\nBF-1,receipt,5\nBF-1,issue,3\nBF-1,waste,3',
      refused('row 4', /2 are available/)
    ],
    ['not JSON', lines({ itemCode: 'BF-1', quantity: 1 }, '{"itemCode":'), unreadable(/line 2/), NDJSON],
    ['not an object', lines({ itemCode: 'BF-1', quantity: 1 }, '[1]'), unreadable(/line 2/), NDJSON],
    ['an unknown field', lines({ itemCode: 'BF-1', quantity: 1, colour: 1 }), unreadable(/line 1.*"colour"/), NDJSON],
    [
      '__proto__',
      '{"itemCode":"BF-1","quantity":1,"__proto__":{"type":"issue"}}',
      unreadable(/line 1.*"__proto__"/),
      NDJSON
    ],
    ['a nested value', lines({ itemCode: 'BF-1', quantity: { $gt: 0 } }), unreadable(/line 1.*quantity/), NDJSON],
    ['1e309 as JSON', '{"itemCode":"BF-1","quantity":1e309}', refused('row 1, column quantity', /Infinity/), NDJSON],
    ['a 2 MB string', lines({ itemCode: 'x'.repeat(2_000_000), quantity: 1 }), unreadable(/line/), NDJSON],
    ['an empty file', '\n', unreadable(/empty/), NDJSON]
  ]
  const before = await countRows(db)
  for (const [name, file, { status, ...body }, headers = CSV] of movements as [
    string,
    string | Buffer,
    { status: number },
    Record<string, string>?
  ][]) {
    for (const query of ['?type=receipt', '?type=receipt&dryRun=true']) {
      const answer = await manager.post(`/api/import/movements${query}`, file, headers)
      if (query.includes('dryRun') && status === 422) {
        const { errors } = answer.body
        t.match(answer, { status: 200, body: { dryRun: true } }, `${name}: dry run`)
        t.match(
          errors[0],
          { row: Number(/row (\d+)/.exec(JSON.stringify(body))?.[1]) },
          `${name}: dry run names the row`
        )
      } else t.match(answer, { status, body }, name)
    }
  }
  const items: [string, string, object][] = [
    ['a new item without a name', 'itemCode,unit\nBF-NEW,each', refused('row 2, column name', /name is missing/)],
    ['an unknown unit', 'itemCode,name,unit\nBF-NEW,New,parsec', refused('row 2, column unit', /parsec/)],
    ['another base unit', 'itemCode,unit\nBF-1,kg', refused('row 2, column unit', /each/)],
    ['a barcode of another', 'itemCode,barcode\nBF-2,BF.TAKEN', refused('row 2, column barcode', /BF-1/)],
    [
      'a barcode twice',
      'itemCode,name,barcode\nBF-X,X,BF.NEW\nBF-Y,Y,BF.NEW',
      refused('row 3, column barcode', /BF-X/)
    ],
    ['a bad barcode', 'itemCode,barcode\nBF-2,a b', refused('row 2, column barcode', /"a b"/)],
    ['a bad tracking', 'itemCode,tracking\nBF-2,some', refused('row 2, column tracking', /"some"/)],
    ['a broken shelf life', 'itemCode,shelfLifeDays\nBF-2,1.5', refused('row 2, column shelfLifeDays', /1.5/)],
    ['a movement’s column', 'itemCode,quantity\nBF-2,1', unreadable(/"quantity"/)]
  ]
  for (const [name, file, { status, ...body }] of items as [string, string, { status: number }][]) {
    t.match(await manager.post('/api/import/items', file, CSV), { status, body }, name)
  }
  for (const [query, headers, status] of [
    ['?map=colour:Red', CSV, 400],
    ['?map=itemCode:Nowhere', CSV, 400],
    ['?map=__proto__:itemCode', CSV, 400],
    ['?map=itemCode', CSV, 400],
    ['?map=itemCode:itemCode,itemCode:quantity', CSV, 400],
    ['?type=gift', CSV, 400],
    ['?colour=red', CSV, 400],
    ['', { 'content-type': 'application/json' }, 415],
    ['', { 'content-type': 'image/png' }, 415]
  ] as const) {
    t.equal(
      (await manager.post(`/api/import/movements${query}`, good, headers)).status,
      status,
      `${query} ${headers['content-type']}`
    )
  }
  t.equal((await manager.post('/api/import/nothing', good, CSV)).status, 400)
  t.equal((await manager.post('/api/import/items', undefined, CSV)).status, 400)
  t.same(await countRows(db), before, 'nothing of all this is stored')
  // A job that has ended removes its file a moment later.
  const files = () => readdirSync(join(dataDir, 'imports'))
  await until('no file is left', () => files().length === 0)
  t.same(files(), [], 'and no file is left')
  const many = `${head}${'BF-NONE,1\n'.repeat(250)}`
  const answer = await manager.post('/api/import/movements?type=receipt', many, { ...CSV, 'accept-language': 'fr' })
  t.match(answer.body, { status: 422, rejectedRows: 250, shown: 100, detail: /250 ligne/ })
  t.equal(answer.body.errors.length, 100)
}

/** Of an import whose upload is gone nothing stays, and no upload that no import waits for. */
async function leftUploads(t: Test, { app, manager, dataDir }: Context) {
  const tenant = await app.getDecorator<Tenants>('tenants').get('main')
  const folder = join(dataDir, 'imports')
  const upload = (name: string, hoursAgo: number) => {
    const path = join(folder, name)
    writeFileSync(path, 'itemCode,name\nLU-1,x\n')
    const at = Date.now() / 1000 - hoursAgo * 3_600
    utimesSync(path, at, at)
    return path
  }
  const [ended] = (await manager.get('/api/imports?limit=1')).body.data
  const id = randomUUID()
  const waiting = `main.${id}.csv`
  const spool = upload(waiting, 2)
  await tenant.transact(({ db }) =>
    createImportStore(db).insert({
      id,
      kind: 'items',
      status: 'running',
      total_rows: 1,
      done_rows: 0,
      spool,
      options: JSON.stringify({ kind: 'items', format: 'csv', map: {} }),
      actor: 'somebody',
      request_id: 'r',
      created_at: Date.now(),
      finished_at: null
    })
  )
  const kept = [waiting, `main.${randomUUID()}.csv`, `other.${randomUUID()}.csv`]
  upload(kept[1] ?? '', 0.5)
  upload(kept[2] ?? '', 2)
  upload(`main.${randomUUID()}.csv`, 2)
  upload(`main.${ended.id}.csv`, 2)
  await removeLeftUploads(tenant, folder)
  t.same(readdirSync(folder).sort(), kept.sort(), 'what is waited for, may come to be, or is of another')

  for (const name of kept) rmSync(join(folder, name))
  const jobs = app.getDecorator<Jobs>('jobs')
  const { id: job } = await jobs.start(tenant, IMPORT_JOB, { importId: id })
  const found = await until('it ends', async () => {
    const { body } = await manager.get(`/api/jobs/${job}`)
    return body.finishedAt !== null && body
  })
  t.match(found, { status: 'failed', error: { code: 'INV_IMPORT_FILE_LOST' } })
  t.match((await manager.get(`/api/imports/${id}`)).body, { status: 'undone', done: 0 }, 'and nobody waits for it')
}

/** Past the service. @returns how many rows of the last import are posted then */
async function execute(statements: string, dataDir: string, databaseUrl: string | undefined): Promise<number> {
  const done = 'select done_rows from imports order by created_at desc limit 1'
  if (databaseUrl === undefined) {
    const file = new Sqlite(join(dataDir, 'inventory.sqlite'))
    file.exec(statements)
    const rows = file.prepare(done).pluck().get()
    file.close()
    return Number(rows)
  }
  const database = new pg.Client({ connectionString: databaseUrl })
  await database.connect()
  await database.query('set search_path to tenant_main')
  await database.query(statements)
  const { rows } = await database.query(done)
  await database.end()
  return rows[0].done_rows
}

/** More than one chunk on either engine. Whoever goes on to the last stands still in the database, however late it is killed. */
const ROWS = 4_000
const HALT = {
  sqlite: `create view endless as with recursive n (n) as (select 1 union all select n + 1 from n) select n from n;
    create trigger halt before update on imports when new.done_rows > 3000 begin select count(*) from endless; end`,
  postgres: `create function halt() returns trigger language plpgsql as 'begin perform pg_sleep(600); return new; end';
    create trigger halt before update on imports for each row when (new.done_rows > 3000) execute function halt()`
}
/** One not heard of for 45 s is taken for dead; the test does not wait so long. */
const PASS_TIME = 'update jobs set heartbeat_at = heartbeat_at - 60000'
const GO_ON = {
  sqlite: `drop trigger halt; drop view endless; ${PASS_TIME}`,
  // The server does not see at once that its client has died.
  postgres: `select pg_terminate_backend(pid, 10000) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid();
    drop function halt cascade; ${PASS_TIME}`
}

/** The real server, killed in the middle of an import: the next one ends it, with each row posted once. */
async function killed(t: Test, dialect: Dialect) {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const env = await serviceEnvironment(t, database === undefined ? {} : { DATABASE_URL: database.url })
  let server = await startService(t, env)
  const call = async (path: string, init: RequestInit = {}): Promise<ReturnType<typeof JSON.parse>> => {
    const authorization = `Bearer ${server.token}`
    const answer = await fetch(`${server.url}${path}`, { ...init, headers: { authorization, ...init.headers } })
    return JSON.parse(await answer.text())
  }
  const upload = (kind: string, body: string, prefer: string) =>
    call(`/api/import/${kind}`, { method: 'POST', body, headers: { ...CSV, prefer } })
  await upload('items', lines('itemCode,name', ...Array.from({ length: 40 }, (_, i) => `KI-${i},Item ${i}`)), 'wait=30')
  const rows = Array.from(
    { length: ROWS },
    (_, i) => `KI-${i % 40},receipt,1,2024-01-${String(1 + (i % 28)).padStart(2, '0')},R${i >> 3}`
  )
  const beside = (statements: string) => execute(statements, env.DATA_DIR, database?.url)
  const movements = lines('itemCode,type,quantity,occurredAt,reference', ...rows)
  /** @returns the job of an import whose process is killed in the middle; another has been started */
  const killedAtIt = async (meanwhile = '') => {
    await beside(HALT[dialect])
    const job = await upload('movements', movements, 'wait=0')
    await until('some are posted', async () => (await beside('')) > 0)
    await server.end('SIGKILL')
    const between = await beside(GO_ON[dialect])
    t.ok(between > 0 && between < ROWS, `killed after ${between} rows`)
    await beside(meanwhile)
    server = await startService(t, env)
    return until('it ends', async () => {
      const found = await call(`/api/jobs/${job.id}`)
      return found.finishedAt !== null && found
    })
  }
  const onHand = async () =>
    (await call('/api/inventory?limit=500')).data.map((item: { onHand: number }) => item.onHand)
  const ended = await killedAtIt()
  t.match(ended, { status: 'succeeded', result: { rows: ROWS } })
  t.match(await call('/api/ledger/verify'), { ok: true, moves: ROWS })
  t.same(await onHand(), Array(40).fill(ROWS / 40))

  // For the third time; and the undo of the one before was lost likewise.
  const { importId } = ended.result
  const lost = await killedAtIt(`update jobs set attempts = 3 where status = 'running';
    update imports set status = 'undoing' where id = '${importId}';
    insert into jobs (id, kind, status, params, progress_done, progress_total, claim, attempts, created_at, heartbeat_at)
      values ('lost', 'inventory.import-undo', 'running', '{"importId":"${importId}"}', 0, 0, 'gone', 3, 0, 0)`)
  t.match(lost, { status: 'failed', error: { code: 'JOB_LOST' } })
  const imports = async () => (await call('/api/imports?limit=2')).data
  await until('it is undone', async () => (await imports())[0].status === 'undone')
  t.match(await call('/api/ledger/verify'), { ok: true })
  t.same(await onHand(), Array(40).fill(ROWS / 40), 'nothing of the file stays')
  t.match((await imports())[1], { id: importId, status: 'failed' }, 'which may be asked for again')
  const again = await call(`/api/imports/${importId}/undo`, { method: 'POST', headers: { prefer: 'wait=20' } })
  t.match(again, { status: 'succeeded' })
  t.same(await onHand(), Array(40).fill(0))
  t.equal(await server.end('SIGTERM'), 0, 'it closes in order')
}

await eachDialect(t, async (t, dialect) => {
  const context = await openImports(t, dialect)
  await t.test('bad files', (t) => badFiles(t, context))
  await t.test('left uploads', (t) => leftUploads(t, context))
  await t.test('killed', (t) => killed(t, dialect))
})
