import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { armor, Encrypter, generateX25519Identity, identityToRecipient } from 'age-encryption'
import Sqlite from 'better-sqlite3'
import pg from 'pg'
import t from 'tap'
import { loadConfig } from '../plugins/config/index.js'
import { build } from '../server.js'
import { runCommand } from './command.js'
import { freePort } from './ports.js'
import { temporaryFolder } from './service-process.js'
import { freshDatabase } from './services.js'

/** The operator's commands as a person types them: what they print, and how they end. */

const CLI = fileURLToPath(new URL('../cli.js', import.meta.url))

/** The program itself, for what is the process's own: its streams, its exit code, signals. */
function start(args: readonly string[], env: Record<string, string>, input = '') {
  const { PATH = '', NODE_V8_COVERAGE } = process.env
  const counted = NODE_V8_COVERAGE === undefined ? {} : { NODE_V8_COVERAGE }
  const child = spawn(process.execPath, [CLI, ...args], { env: { PATH, ...counted, ...env } })
  const run = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk: Buffer) => {
    run.stdout += chunk.toString()
  })
  child.stderr.on('data', (chunk: Buffer) => {
    run.stderr += chunk.toString()
  })
  child.stdin.end(input)
  const ended = once(child, 'close').then(([code]) => ({ ...run, code }))
  return { child, run, ended }
}

t.test('a token is all that is printed, and the service takes it', async (t) => {
  const env = { DATA_DIR: temporaryFolder(t) }
  const { code, stdout, stderr } = await start(['token', '--role', 'staff', '--ttl', '5m'], env).ended
  t.equal(code, 0)
  t.equal(stderr, '')
  t.match(stdout, /^[\w-]+\.[\w-]+\.[\w-]+\n$/)
  const service = await build(loadConfig({ ...env, LOG_LEVEL: 'silent' }))
  t.teardown(() => service.close())
  const headers = { authorization: `Bearer ${stdout.trim()}` }
  t.equal((await service.inject({ url: '/api/inventory', headers })).statusCode, 200)
  t.equal((await service.inject({ url: '/api/users', headers })).statusCode, 403, 'of the role asked for')
})

t.test('the log never comes between what a command answers', async (t) => {
  const env = { DATA_DIR: temporaryFolder(t), LOG_LEVEL: 'debug', SLOW_QUERY_MS: '1', REDIS_URL: 'redis://127.0.0.1:1' }
  const token = await start(['token', '--role', 'viewer'], env).ended
  t.match(token, { code: 0, stderr: /"level":40.*redis/i })
  t.match(token.stdout, /^[\w-]+\.[\w-]+\.[\w-]+\n$/)
  const { code, stdout } = await start(['verify', '--json'], env).ended
  t.equal(code, 0)
  t.match(JSON.parse(stdout), { ok: true })

  const reads = start(['export', 'items'], env)
  reads.child.stdout.destroy()
  const { stderr } = await reads.ended
  t.notMatch(stderr, /EPIPE/, 'who reads no further, as `head`, is no failure')
})

t.test('a command that is misused says how, and ends with 2', async (t) => {
  const env = { DATA_DIR: temporaryFolder(t) }
  const misuses: [string[], RegExp, Record<string, string>?][] = [
    [['token'], /--role/],
    [['token', '--role', 'owner'], /viewer, staff, manager, admin/],
    [['token', '--role', 'staff', '--ttl', '2 weeks'], /1s to 366d/],
    [['tokens'], /unknown command/],
    [['tenants', 'list'], /TENANCY=multi/],
    [['tenants', 'drop', 'acme'], /--yes/, { TENANCY: 'multi' }],
    [['token', '--role', 'admin'], /--tenant/, { TENANCY: 'multi' }],
    [['import', 'items', '/no/such/file.csv'], /no file/],
    [['import', 'items', env.DATA_DIR], /no file/],
    [['import', 'cats', '/no/such/file.csv'], /items, movements/],
    [['export', 'cats'], /items, movements, stock/],
    [['migrate'], /^PORT is "nonsense"/, { PORT: 'nonsense' }],
    [['users', 'create', 'ada'], /password/]
  ]
  const runs = misuses.map(([args, , more = {}]) => runCommand({ ...env, ...more }, args))
  for (const [index, { code, stdout, stderr }] of (await Promise.all(runs)).entries()) {
    const [args, said] = misuses[index] ?? [[], /-/]
    t.equal(code, 2, args.join(' '))
    t.match(stderr, said)
    t.equal(stdout, '', 'nothing that a script could take for an answer')
  }
  t.match(await start(['token', '--role', 'owner'], env).ended, { code: 2, stderr: /viewer, staff/, stdout: '' })
  const help = await runCommand(env, ['--help'])
  t.equal(help.code, 0)
  for (const name of [
    'serve',
    'demo',
    'migrate',
    'import',
    'export',
    'token',
    'users',
    'verify',
    'tenants',
    'worker'
  ]) {
    t.match(help.stdout, name)
  }
})

t.test('users, from the first to the last password', async (t) => {
  const env = { DATA_DIR: temporaryFolder(t) }
  t.match(await runCommand(env, ['users', 'list']), { code: 0, stdout: 'no users\n' })
  const setup = await runCommand({ ...env, PUBLIC_URL: 'https://stock.example.org' }, ['users', 'link'])
  t.match(setup, { code: 0, stdout: /^https:\/\/stock\.example\.org\/setup#token=il_main_\S{43}\n$/ })
  const named = ['users', 'create', 'ada', '--role', 'manager', '--name', 'Ada L.']
  const created = await start(named, env, 'blue-horse-river\n').ended
  t.match(created, { code: 0, stdout: 'ada (manager)\n' })
  t.notMatch(created.stdout + created.stderr, 'blue-horse-river')
  const again = await runCommand({ ...env, INVENTORY_PASSWORD: 'green-horse-river' }, ['users', 'create', 'ADA'])
  t.equal(again.code, 1)
  t.match(again.stderr, /^error: .*ADA/)
  t.equal((await start(['users', 'create', 'bob'], env, 'short\n').ended).code, 1)
  t.match(JSON.parse((await runCommand(env, ['users', 'list', '--json'])).stdout), [
    { username: 'ada', role: 'manager', displayName: 'Ada L.' }
  ])
  t.match(await runCommand(env, ['users', 'password', 'ada'], 'another-horse-river\n'), { code: 0 })
  t.match(await runCommand(env, ['users', 'link']), { code: 1, stderr: /there is a user/ })
  const link = await runCommand(env, ['users', 'link', 'ada'])
  t.match(link, { code: 0, stdout: /^http:\/\/localhost:8083\/accept#token=il_main_\S{43}\n$/ })
  t.match(await runCommand(env, ['users', 'reset-second-factor', 'ada']), { stdout: 'ada has no second factor\n' })
  t.match(await runCommand(env, ['users', 'disable', 'ada']), { code: 0, stdout: 'ada disabled\n' })
  t.match(await runCommand(env, ['users', 'list']), { stdout: 'ada\tmanager\tdisabled\n' })

  const { stdout: token } = await runCommand(env, ['token', '--role', 'admin'])
  const service = await build(loadConfig({ ...env, LOG_LEVEL: 'silent' }))
  t.teardown(() => service.close())
  const headers = { authorization: `Bearer ${token.trim()}` }
  const { data } = (await service.inject({ url: '/api/audit?actor=cli', headers })).json()
  t.same(
    data.map(({ action, method }: { action: string; method: string }) => [action, method]).reverse(),
    [
      'user.setup-link',
      'user.create',
      'user.update',
      'user.password',
      'user.link',
      'user.tokens.end',
      'user.second-factor.remove',
      'user.update',
      'token.print'
    ].map((action) => [action, 'console']),
    'the audit trail has each change, as done at the console'
  )
})

t.test('tenants are created, listed and dropped', async (t) => {
  const env = { DATA_DIR: temporaryFolder(t), TENANCY: 'multi' }
  t.match(await runCommand(env, ['tenants', 'list']), { code: 0, stdout: 'no tenants\n' })
  t.match(await runCommand(env, ['tenants', 'create', 'acme']), { code: 0, stdout: 'acme created\n' })
  t.match(await runCommand(env, ['tenants', 'create', 'acme']), { code: 0, stdout: 'acme is there already\n' })
  t.match(await runCommand(env, ['tenants', 'create', '../acme']), { code: 1, stderr: /cannot name a tenant/ })
  t.match(await runCommand(env, ['migrate', '--json']), { code: 0, stdout: '{"tenants":["acme"]}\n' })
  t.match(await runCommand(env, ['verify', '--tenant', 'acme']), { code: 0, stdout: /every balance agrees/ })
  t.match(await runCommand(env, ['verify', '--tenant', 'nobody']), { code: 1, stderr: /nobody/ })
  t.match(await runCommand(env, ['tenants', 'drop', 'acme', '--yes']), { code: 0, stdout: 'acme dropped\n' })
  t.match(await runCommand(env, ['tenants', 'list', '--json']), { stdout: '[]\n' })
  const kept = readFileSync(join(env.DATA_DIR, 'dropped-tenants.ndjson'), 'utf8')
  t.match(
    JSON.parse(kept),
    {
      at: /Z$/,
      action: 'tenant.drop',
      tenant: 'acme',
      actor: 'cli',
      trail: { ok: true, entries: 2, head: { batch: 1, hash: /^[0-9a-f]{64}$/ } }
    },
    'with what its audit trail ended: that it was created and dropped'
  )
})

t.test('files in and out', async (t) => {
  const folder = temporaryFolder(t)
  const env = { DATA_DIR: folder }
  const file = (name: string, text: string) => {
    writeFileSync(join(folder, name), text)
    return join(folder, name)
  }
  const items = file('items.csv', 'itemCode,name,unit\nA,Apple,kg\nB,Banana,kg\n')
  t.match(JSON.parse((await runCommand(env, ['import', 'items', items, '--dry-run'])).stdout), {
    dryRun: true,
    created: 2
  })
  t.match(JSON.parse((await runCommand(env, ['import', 'items', items])).stdout), { dryRun: false, created: 2 })
  const moves = file('moves.ndjson', '{"Sku":"A","Qty":3}\n{"Sku":"B","Qty":4.5}\n')
  const mapped = ['import', 'movements', moves, '--map', 'itemCode:Sku,quantity:Qty', '--type', 'receipt']
  t.match(JSON.parse((await runCommand(env, mapped)).stdout), { accepted: 2 })
  const bad = await runCommand(env, ['import', 'items', file('bad.csv', 'itemCode,name\nC,\n')])
  t.equal(bad.code, 1)
  t.match(bad.stderr, /row 2, column name: name is missing/)
  const mauvais = await runCommand({ ...env, LANG: 'fr_FR.UTF-8' }, [
    'import',
    'items',
    file('bad.csv', 'itemCode,name\nC,\n')
  ])
  t.match(mauvais.stderr, /row 2, column name: name manque, et l’article est nouveau/)
  t.match(await runCommand(env, ['export', 'stock']), { code: 0, stdout: /A,Apple,kg,3\r\nB,Banana,kg,4.5\r\n$/ })
  t.equal((await runCommand(env, ['export', 'everything'])).code, 2)
  t.match(JSON.parse((await runCommand(env, ['verify', '--json'])).stdout), { ok: true, moves: 2, mismatches: [] })
  const database = new Sqlite(join(folder, 'inventory.sqlite'))
  database.exec('update stock_balances set on_hand = on_hand + 1000000 where on_hand = 3000000')
  database.close()
  const { code, stdout, stderr } = await runCommand(env, ['verify'])
  t.equal(code, 1)
  t.match(stdout, /^1 transactions, 2 moves: MISMATCHES$/m)
  t.match(stderr, /^error: A: .* is 4\S*, the moves say 3/)
})

t.test('backups are made, listed, read and tried', async (t) => {
  const identity = await generateX25519Identity()
  const env = {
    DATA_DIR: temporaryFolder(t),
    BACKUP_URL: temporaryFolder(t),
    BACKUP_RECIPIENTS: await identityToRecipient(identity),
    BACKUP_IDENTITY: identity,
    BACKUP_INCREMENT_SECONDS: '0'
  }
  t.match(await runCommand(env, ['backup', 'list']), { code: 0, stdout: 'no backups\n' })
  t.match(await runCommand(env, ['backup', 'verify']), { code: 1, stderr: 'error: there are no backups\n' })
  const made = await runCommand(env, ['backup'])
  t.match(made, { code: 0, stdout: /^[0-9a-f]{12}: \d+ rows, \d+ bytes\n$/ })
  const id = made.stdout.slice(0, 12)
  t.match(JSON.parse((await runCommand(env, ['backup', 'list', '--json'])).stdout), [{ id, kind: 'full' }])
  t.match((await runCommand(env, ['backup', 'list'])).stdout, new RegExp(`^\\S+Z\\t${id}\\tfull\\t\\d+\\n$`))
  t.match((await runCommand(env, ['backup', 'verify'])).stdout, new RegExp(`^${id}: \\d+ rows .* as they were written`))
  t.match(JSON.parse((await runCommand(env, ['backup', 'verify', id, '--json'])).stdout), { backupId: id, archives: 1 })
  t.match(await runCommand(env, ['backup', 'drill']), { code: 0, stdout: /rows restored and proved in/ })
  t.match(await runCommand(env, ['restore', '--yes', '--at', 'yesterday']), { code: 2, stderr: /with its offset/ })
  t.match(await runCommand(env, ['restore', '--yes', '--backup', 'last']), { code: 2, stderr: /12 digits/ })
  t.match(await runCommand(env, ['restore', '--yes', '--at', new Date().toISOString()]), {
    code: 0,
    stdout: /^main is as it was at .*\nledger: 0 checked, all agree\n(.*\n)*what was there is kept as /
  })
})

t.test('a key file that a passphrase protects is refused, and the key in it is taken', async (t) => {
  const identity = await generateX25519Identity()
  const plain = `# created: 2026-11-26T09:00:00Z\n# public key: ${await identityToRecipient(identity)}\n${identity}\n`
  const encrypter = new Encrypter()
  encrypter.setPassphrase('four words out of many')
  encrypter.setScryptWorkFactor(10)
  const locked = await encrypter.encrypt(plain)
  const file = join(temporaryFolder(t), 'key.age')
  const env = { DATA_DIR: temporaryFolder(t), BACKUP_URL: temporaryFolder(t), BACKUP_IDENTITY_FILE: file }
  // As `age -p` and as `age -p -a` write it.
  for (const content of [locked, armor.encode(locked)]) {
    writeFileSync(file, content)
    const { code, stderr } = await runCommand(env, ['backup', 'list'])
    t.equal(code, 2)
    t.match(stderr, /^BACKUP_IDENTITY is a key file that a passphrase protects .*`age -d <file>` prints it\n$/)
  }
  writeFileSync(file, plain)
  t.match(await runCommand(env, ['backup', 'list']), { code: 0, stdout: 'no backups\n' })
})

t.test('a copy on PostgreSQL is made, compared and let go', async (t) => {
  const copy = await freshDatabase()
  t.teardown(copy.drop)
  const alone = { DATA_DIR: temporaryFolder(t) }
  t.match(await runCommand(alone, ['mirror', 'start']), { code: 1, stderr: /MIRROR_URL is not set/ })
  t.match(await runCommand({ ...alone, DATABASE_URL: copy.url }, ['mirror', 'status']), {
    stderr: /only a SQLite file/
  })
  const env = { ...alone, MIRROR_URL: copy.url }
  t.match(await runCommand(env, ['mirror', 'status']), { stdout: 'mirror off, primary sqlite, service not running\n' })
  const started = await runCommand(env, ['mirror', 'start'])
  t.match(started, {
    code: 0,
    stdout: 'the copy is complete and follows\n',
    stderr: /^No service runs on this database/
  })
  t.match((await runCommand(env, ['mirror', 'verify'])).stdout, /^main: \d+ rows of \d+ tables, 0 differ, \S+\n$/)
  t.match(JSON.parse((await runCommand(env, ['mirror', 'status', '--json'])).stdout), { on: true, primary: 'sqlite' })
  t.match(await runCommand(env, ['mirror', 'stop']), { code: 0, stdout: 'the mirror is off\n' })
})

t.test('a tenant is moved to another server, backed up there, lost, and restored there', async (t) => {
  const [home, east] = [await freshDatabase(), await freshDatabase()]
  for (const { drop } of [home, east]) t.teardown(drop)
  const env = {
    DATA_DIR: temporaryFolder(t),
    TENANCY: 'multi',
    DATABASE_URL: home.url,
    DATABASE_SERVERS: `east=${east.url}`,
    BACKUP_URL: temporaryFolder(t),
    BACKUP_PASSPHRASE_FILE: join(temporaryFolder(t), 'passphrase')
  }
  writeFileSync(env.BACKUP_PASSPHRASE_FILE, `${randomBytes(24).toString('base64')}\n`)
  t.match(await runCommand(env, ['tenants', 'create', 'acme']), { code: 0 })
  t.match(await runCommand(env, ['tenants', 'move', 'nobody', '--to', 'east']), { code: 1, stderr: /no tenant nobody/ })
  t.match(await runCommand(env, ['tenants', 'move', 'acme', '--to', 'east']), {
    code: 0,
    stdout: /^acme is on east: \d+ rows of \d+ tables compared, \S+; no writes for \d/
  })
  t.match(await runCommand(env, ['tenants', 'move', 'acme', '--to', 'east']), {
    code: 0,
    stdout: 'acme is on east already\n',
    stderr: ''
  })
  t.match(await runCommand(env, ['tenants', 'move', 'acme', '--to', 'west']), {
    code: 1,
    stdout: '',
    stderr: 'error: there is no server west; there are: home, east\n'
  })
  t.match(await runCommand(env, ['verify', '--tenant', 'acme']), { code: 0, stdout: /every balance agrees/ })
  const backup = await runCommand(env, ['backup', '--tenant', 'acme', '--json'])
  t.match(backup, { code: 0 }, backup.stderr)
  const there = new pg.Client({ connectionString: east.url })
  await there.connect()
  await there.query('drop schema tenant_acme cascade')
  const restored = await runCommand(env, ['restore', '--tenant', 'acme', '--yes', '--json'])
  t.match(restored, { code: 0 }, restored.stderr)
  t.match(JSON.parse(restored.stdout), { tenant: 'acme', backupId: JSON.parse(backup.stdout).backupId })
  t.match((await there.query('select count(*)::int as units from tenant_acme.units')).rows, [{ units: 23 }])
  await there.end()
  t.match(await runCommand(env, ['verify', '--tenant', 'acme']), { code: 0, stdout: /every balance agrees/ })
  t.match(await runCommand({ ...env, BACKUP_PASSPHRASE: 'another' }, ['backup', 'list', '--tenant', 'acme']), {
    stderr: /BACKUP_PASSPHRASE_FILE is set beside BACKUP_PASSPHRASE/
  })
})

t.test('the service and the worker end when they are told to', async (t) => {
  const env = { DATA_DIR: temporaryFolder(t), PORT: String(await freePort()) }
  const service = start(['serve'], env)
  const answers = async () =>
    (await fetch(`http://127.0.0.1:${env.PORT}/health`).catch(() => undefined))?.status === 200
  while (!(await answers()) && service.child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 50))
  service.child.kill('SIGTERM')
  t.equal((await service.ended).code, 0)
  const worker = start(['worker'], env)
  while (!worker.run.stderr.includes('waiting for work') && worker.child.exitCode === null) {
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  worker.child.kill('SIGTERM')
  t.match(await worker.ended, { code: 0 })
})
