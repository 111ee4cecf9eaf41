import { spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { generateHybridIdentity, generateX25519Identity, identityToRecipient } from 'age-encryption'
import fc from 'fast-check'
import S3rver from 's3rver'
import t, { type Test } from 'tap'
import { random } from '../bench/support.js'
import { expired } from '../modules/backups/retention.js'
import { dueAt } from '../modules/backups/schedule.js'
import { all, once as single } from '../plugins/archive/bytes.js'
import { chainTo, fileNameOf, type Header, parseFileName } from '../plugins/archive/format.js'
import { type ArchiveKeys, Keyring } from '../plugins/archive/keys.js'
import { checkArchive, openArchive } from '../plugins/archive/read.js'
import { type ArchiveStore, openStore } from '../plugins/archive/store.js'
import { fullArchive } from '../plugins/archive/write.js'
import { loadConfig } from '../plugins/config/index.js'
import type { ArchiveEntry, PortableRow, PortableTable } from '../plugins/contracts.js'
import { freePort, listening } from './ports.js'
import { spawnNode, temporaryFolder } from './service-process.js'

/** The form of an archive: what opens it, what refuses it, where it is kept and how long. */

const IDENTITY = await generateX25519Identity()
const KEYS: ArchiveKeys = { recipients: [await identityToRecipient(IDENTITY)], identity: IDENTITY }
const AT = Date.parse('2026-11-26T01:30:00.000Z')
const ENTRY = { id: 'a1b2c3d4e5f6', kind: 'full' as const, previous: null, stateAt: AT }

const tables: PortableTable[] = ['first', 'second', 'third'].map((name) => ({
  name,
  physical: name,
  columns: [
    { name: 'id', kind: 'integer' },
    { name: 'noise', kind: 'text' }
  ],
  key: ['id']
}))
const HEADER: Header = {
  format: 'inventory-enterprise-archive',
  version: 1,
  program: '0.0.0',
  ...ENTRY,
  tenant: 'main',
  dialect: 'sqlite',
  stateAt: new Date(AT).toISOString(),
  migrations: {},
  tables: tables.map(({ name, columns, key }) => ({ name, columns: [...columns], key: [...key] }))
}

/** Rows that do not get smaller, in parts of more than one table: what the archive holds is as long as what is written. */
async function* noise(rows: number): AsyncGenerator<PortableRow[]> {
  for (let id = 0; id < rows; id++) yield [[id, randomBytes(600).toString('base64')]]
}
const made = (keys: Keyring, rows: number) => {
  const state = {
    dialect: 'sqlite' as const,
    schema: { tables, migrations: {} },
    rows: () => noise(rows),
    find: async () => [],
    count: async () => rows
  }
  return keys.encrypt(
    fullArchive(
      HEADER,
      state,
      () => {},
      () => {}
    )
  )
}
const keyring = (t: Test, keys: ArchiveKeys = KEYS, store = openStore({ folder: temporaryFolder(t) })) =>
  new Keyring(keys, store)

async function read(bytes: Uint8Array, keys: Keyring, entry: Omit<ArchiveEntry, 'bytes'> = ENTRY) {
  return checkArchive(await openArchive({ ...entry, bytes: bytes.length }, 'main', single(bytes), keys))
}

t.test('V11.3.2 an archive with one bit changed, anywhere, is refused by the name of the part', async (t) => {
  const keys = keyring(t)
  const whole = Buffer.concat(await all(made(keys, 1_300)))
  t.same(await read(whole, keys), { rows: 3_900, parts: 6 })

  // Where each part begins, in what is encrypted: sixteen bytes more for each 64 KB.
  const header = whole.indexOf('\n---') + 1
  const payload = whole.indexOf('\n', header) + 1 + 16
  const plain = Buffer.concat(await all(await keys.decrypt(single(whole))))
  const parts: { name: string; from: number; to: number }[] = []
  for (let at = 0; plain[at] !== 0; ) {
    const name = plain.toString('utf8', at, at + 100).replace(/\0.*$/s, '')
    const blocks = 1 + Math.ceil(Number.parseInt(plain.toString('latin1', at + 124, at + 136), 8) / 512)
    parts.push({ name, from: at, to: at + blocks * 512 })
    at += blocks * 512
  }
  t.equal(parts.length, 8)
  const CHUNK = 65_536
  const next = random(20_261_126)
  const flipped = (offset: number) => {
    const copy = Buffer.from(whole)
    copy[offset] = (copy[offset] ?? 0) ^ (1 << Math.floor(next() * 8))
    return copy
  }
  for (const { name, from, to } of parts) {
    for (let n = 0; n < 3; n++) {
      const at = from + Math.floor(next() * (to - from))
      const chunk = Math.floor(at / CHUNK)
      const error = await read(flipped(payload + at + 16 * chunk), keys).then(
        () => undefined,
        (error) => error
      )
      // A piece of 64 KB is right or not as a whole: the first part that has some of it is named.
      const first = parts.find((part) => part.to > chunk * CHUNK)
      const before = parts[parts.indexOf(first ?? { name: '', from: 0, to: 0 }) - 1]
      const named = [first?.name, before === undefined ? '' : `what follows ${before.name}`]
      t.match(error, { name: 'Error', part: /./, message: /is damaged in .*: / }, `${name} at ${at}`)
      t.ok(named.includes(error?.part), `${name} at ${at}: ${error?.part} is one of ${named}`)
    }
  }
  for (let at = 0; at < payload; at += 11) await t.rejects(read(flipped(at), keys), `its header at ${at}`)
  for (const length of [0, 10, payload, payload + CHUNK + 16, whole.length - 1])
    await t.rejects(read(whole.subarray(0, length), keys), `cut off at ${length}`)
  await t.rejects(read(Buffer.concat([whole, Buffer.from('x')]), keys), 'something after its end')
})

t.test('an archive that is not the one asked for is refused', async (t) => {
  const keys = keyring(t)
  const whole = Buffer.concat(await all(made(keys, 1)))
  await t.rejects(read(whole, keys, { ...ENTRY, id: '000000000000' }), {
    message: /archive.json: .* not what its name says/
  })
  await t.rejects(read(whole, keys, { ...ENTRY, stateAt: AT + 1 }), /is damaged in archive.json/)
  const opened = openArchive({ ...ENTRY, bytes: 0 }, 'other', single(whole), keys)
  await t.rejects(opened, /it is of the tenant main/)
  await t.rejects(read(whole, keyring(t, { identity: await generateX25519Identity() })), /not for any key of ours/)
  await t.rejects(read(whole, keyring(t, { recipients: KEYS.recipients ?? [] })), /BACKUP_IDENTITY is not set/)
})

t.test('V11.4.4 a passphrase becomes a key by scrypt, and another one opens nothing', async (t) => {
  const folder = temporaryFolder(t)
  const store = openStore({ folder })
  const passphrase = 'correct horse battery staple 9'
  const whole = Buffer.concat(await all(made(keyring(t, { passphrase }, store), 1)))
  const [name = ''] = readdirSync(join(folder, 'keys'))
  const file = readFileSync(join(folder, 'keys', name), 'latin1')
  t.match(file, /^age-encryption\.org\/v1\n-> scrypt [\w+/]{22} (1[7-9]|20)\n/, 'at the least 2^17 rounds')
  t.notMatch(file, /AGE-SECRET-KEY/)
  t.same(await read(whole, keyring(t, { passphrase }, store)), { rows: 3, parts: 3 }, 'another process opens it')
  await t.rejects(read(whole, keyring(t, { passphrase: `${passphrase}x` }, store)), /opens none of 1 in keys/)
})

/** Found, or installed where that is possible, by what runs the tests. */
const AGE = process.env.TEST_AGE_BINARY
t.test(
  'the public program age opens it, and tar and gzip what is inside',
  { skip: AGE === undefined && 'no age here' },
  async (t) => {
    const folder = temporaryFolder(t)
    const path = (name: string) => join(folder, name)
    writeFileSync(path('key'), `${IDENTITY}\n`, { mode: 0o600 })
    writeFileSync(path('a.age'), Buffer.concat(await all(made(keyring(t), 10))))
    const age = spawnSync(AGE ?? '', ['-d', '-i', path('key'), '-o', path('a.tar'), path('a.age')], {
      encoding: 'utf8'
    })
    t.equal(age.status, 0, age.stderr)
    t.equal(spawnSync('tar', ['-xf', 'a.tar'], { cwd: folder }).status, 0)
    t.match(JSON.parse(readFileSync(path('archive.json'), 'utf8')), {
      format: HEADER.format,
      id: ENTRY.id,
      tenant: 'main'
    })
    const { parts, counts } = JSON.parse(readFileSync(path('manifest.json'), 'utf8'))
    t.same(counts, { first: 10, second: 10, third: 10 })
    for (const { name, rows, sha256 } of parts) {
      const content = readFileSync(path(name))
      t.equal(createHash('sha256').update(content).digest('hex'), sha256)
      t.equal(gunzipSync(content).toString().split('\n').length, rows + 1)
    }
  }
)

async function exercise(t: Test, store: ArchiveStore): Promise<void> {
  t.same(await store.list('tenants/main'), [])
  const large = randomBytes(9_000_000)
  const pieces = async function* () {
    for (let at = 0; at < large.length; at += 1_000_000) yield large.subarray(at, at + 1_000_000)
  }
  await store.put('tenants/main/large', pieces())
  await store.put('tenants/main/small', single(Buffer.from('small')))
  await store.put('tenants/main/empty', single(Buffer.alloc(0)))
  await store.put('tenants/other/x', single(Buffer.from('x')))
  t.same(
    (await store.list('tenants/main')).sort((a, b) => a.bytes - b.bytes),
    [
      { name: 'empty', bytes: 0 },
      { name: 'small', bytes: 5 },
      { name: 'large', bytes: 9_000_000 }
    ]
  )
  t.ok(Buffer.concat(await all(await store.get('tenants/main/large'))).equals(large))
  await t.rejects(store.get('tenants/main/nothing').then(all))
  // Half of one is none.
  const broken = async function* () {
    yield* pieces()
    throw new Error('broken off')
  }
  await t.rejects(store.put('tenants/main/broken', broken()), /broken off/)
  await store.remove('tenants/main/large')
  await store.tidy('tenants/main')
  t.same((await store.list('tenants/main')).map(({ name }) => name).sort(), ['empty', 'small'])
}

t.test('a folder keeps archives whole', async (t) => {
  const folder = temporaryFolder(t)
  await exercise(t, openStore({ folder }))
  t.same(readdirSync(join(folder, 'tenants/main')).sort(), ['empty', 'small'], 'nothing is left of the broken one')
})

t.test('a store that speaks S3 does too', async (t) => {
  const server = new S3rver({
    port: await freePort(),
    silent: true,
    directory: temporaryFolder(t),
    configureBuckets: [{ name: 'copies', configs: [] }]
  })
  const { port } = await server.run()
  t.teardown(() => server.close())
  const s3 = {
    endpoint: `http://127.0.0.1:${port}`,
    region: 'us-east-1',
    bucket: 'copies',
    prefix: 'site one/',
    accessKeyId: 'S3RVER',
    secretAccessKey: 'S3RVER'
  }
  await exercise(t, openStore({ s3 }))
  const wrong = openStore({ s3: { ...s3, accessKeyId: 'another' } })
  await t.rejects(wrong.put('tenants/main/y', single(Buffer.from('y'))), /refuses to take an archive \(403/)
})

t.test('a list of more than one page, and a store that is ill for a moment', async (t) => {
  const asked: (string | null)[] = []
  const { url: endpoint, close } = await listening((request, response) => {
    const marker = new URL(request.url ?? '', 'http://localhost').searchParams.get('marker')
    asked.push(marker)
    response.statusCode = asked.length === 2 ? 503 : 200
    const content = (name: string) => `<Contents><Key>p/tenants/main/${name}</Key><Size>3</Size></Contents>`
    response.end(
      `<ListBucketResult><IsTruncated>${marker === null}</IsTruncated>${marker === null ? content('a&amp;b') + content('c') : content('d')}</ListBucketResult>`
    )
  })
  t.teardown(close)
  const region = 'us-east-1'
  const s3 = { endpoint, region, bucket: 'b', prefix: 'p/', accessKeyId: 'id', secretAccessKey: 'secret' }
  const files = await openStore({ s3 }).list('tenants/main')
  t.same(
    files.map(({ name }) => name),
    ['a&b', 'c', 'd']
  )
  t.same(asked, [null, 'p/tenants/main/c', 'p/tenants/main/c'])
})

const DAY = 86_400_000
const full = (day: number, hour = 1): ArchiveEntry => ({
  ...{ id: `f${day}.${hour}`, kind: 'full', previous: null, bytes: 1 },
  stateAt: Date.parse('2026-01-01T00:00:00Z') + day * DAY + hour * 3_600_000
})
const increment = (previous: ArchiveEntry, minutes: number): ArchiveEntry => ({
  ...{ id: `${previous.id}+${minutes}`, kind: 'increment', previous: previous.id, bytes: 1 },
  stateAt: previous.stateAt + minutes * 60_000
})

t.test('what is removed, by rule', async (t) => {
  const now = Date.parse('2026-04-11T12:00:00Z')
  const nightly = Array.from({ length: 101 }, (_, day) => full(day))
  const none = { increments: 0, daily: 0, weekly: 0, monthly: 0 }
  const keptDays = (rules: object, entries = nightly) => {
    const gone = new Set(expired(entries, { ...none, ...rules }, now).map(({ id }) => id))
    return entries.filter(({ id }) => !gone.has(id)).map(({ id }) => id.replace(/^f(\d+)\.1$/, '$1'))
  }
  for (const [rules, kept] of [
    [{}, ['100']],
    [{ daily: 3 }, ['98', '99', '100']],
    // 100 is Saturday 11 April 2026; weeks end on Sunday.
    [{ weekly: 3 }, ['87', '94', '100']],
    [{ monthly: 9 }, ['30', '58', '89', '100']],
    [{ daily: 2, weekly: 2, monthly: 2 }, ['89', '94', '99', '100']]
  ] as const)
    t.same(keptDays(rules), kept, JSON.stringify(rules))

  const [old, young] = [full(98), full(100)]
  const early = increment(old, 10)
  const late = increment(early, 60 * 47)
  const after = increment(young, 5)
  const chains = [old, early, late, young, after]
  t.same(keptDays({}, chains), ['100', 'f100.1+5'], 'what follows the newest stays')
  t.same(keptDays({ daily: 5 }, chains), ['98', '100', 'f100.1+5'], 'a full one needs no increments')
  t.same(keptDays({ increments: 2 }, chains).length, 5, 'an increment that is kept keeps what it goes on from')
  t.same(
    keptDays({ increments: 90 }, [early, late, young, after]),
    ['100', 'f100.1+5'],
    'one without its beginning is of no use'
  )
  t.same(keptDays({}, []), [])
})

t.test('whatever is removed, the last state stays, and all that each archive that stays goes on from', async (t) => {
  const hour = 3_600_000
  const step = fc.record({
    kind: fc.constantFrom('full', 'increment', 'increment', 'increment'),
    /** Which one of those before it goes on from: the last, or one of a chain that had ended. */
    back: fc.integer({ min: 0, max: 2 }),
    hours: fc.integer({ min: 1, max: 40 })
  })
  const rule = fc.integer({ min: 0, max: 5 })
  const rules = fc.record({ increments: rule, daily: rule, weekly: rule, monthly: rule })
  const made = (steps: readonly { kind: string; back: number; hours: number }[]): ArchiveEntry[] => {
    const entries: ArchiveEntry[] = []
    let stateAt = AT
    for (const [n, { kind, back, hours }] of steps.entries()) {
      stateAt += hours * hour
      const previous = kind === 'full' ? undefined : entries.at(-1 - back)
      entries.push({
        ...{ id: `n${n}`, stateAt, bytes: 1, previous: previous?.id ?? null },
        kind: previous === undefined ? 'full' : 'increment'
      })
    }
    return entries
  }
  const history = fc.property(fc.array(step, { minLength: 1, maxLength: 40 }), rules, (steps, rules) => {
    const all = made(steps)
    const now = (all.at(-1)?.stateAt ?? 0) + hour
    const gone = new Set(expired(all, rules, now).map(({ id }) => id))
    const kept = all.filter(({ id }) => !gone.has(id))
    const last = chainTo(all, { at: now })
    if (chainTo(kept, { at: now }).some(({ id }, n) => id !== last[n]?.id)) throw new Error('the last state is gone')
    for (const { id } of kept) chainTo(kept, { id })
    if (expired(kept, rules, now).length > 0) throw new Error('what stays does not stay')
  })
  t.doesNotThrow(() => fc.assert(history, { numRuns: 500 }))
})

t.test('which archives make a state', async (t) => {
  const base = full(1)
  const [a, other] = [increment(base, 1), full(2)]
  const b = increment(a, 1)
  const entries = [b, other, base, a]
  t.same(chainTo(entries, { id: b.id }), [base, a, b])
  t.same(chainTo(entries, { at: b.stateAt - 1 }), [base, a])
  t.same(chainTo(entries, { at: other.stateAt }), [other])
  t.throws(() => chainTo(entries, { at: base.stateAt - 1 }), /no archive of 2026-01-02T00:59:59.999Z or before/)
  t.throws(() => chainTo(entries, { id: 'zz' }), /no archive zz/)
  t.throws(() => chainTo([b, base], { id: b.id }), /which .* goes on from, is missing/)
  const entry = { ...ENTRY, kind: 'increment' as const, previous: 'ffffffffffff', bytes: 5 }
  t.same(parseFileName(fileNameOf(entry), 5), entry)
  for (const name of ['x', '../a.age', `${fileNameOf(ENTRY)}.part`, fileNameOf(ENTRY).replace('full', 'increment')])
    t.equal(parseFileName(name, 1), undefined, name)
  t.equal(dueAt(Date.parse('2026-11-26T01:29:59Z'), 90), Date.parse('2026-11-25T01:30:00Z'))
  t.equal(dueAt(Date.parse('2026-11-26T01:30:00Z'), 90), Date.parse('2026-11-26T01:30:00Z'))
})

t.test('a process killed while it writes an archive leaves none', async (t) => {
  const folder = temporaryFolder(t)
  const script = `
    import { openStore } from ${JSON.stringify(new URL('../plugins/archive/store.js', import.meta.url).href)}
    const slow = async function* () { for (;;) { yield Buffer.alloc(300000); process.stdout.write('.'); await new Promise((r) => setTimeout(r, 5)) } }
    await openStore({ folder: ${JSON.stringify(folder)} }).put('tenants/main/x', slow())`
  const child = spawnNode(['--input-type=module', '-e', script])
  await once(child.stdout, 'data')
  child.kill('SIGKILL')
  await once(child, 'close')
  t.equal(readdirSync(join(folder, 'tenants/main')).length, 1)
  t.same(await openStore({ folder }).list('tenants/main'), [])
})

t.test('where backups go and who opens them is checked before anything starts', async (t) => {
  const passphrase = 'kT9-mX2zKp9vLt4yHc8sRd'
  const base = { DATA_DIR: temporaryFolder(t), BACKUP_URL: '/backups', BACKUP_PASSPHRASE: passphrase }
  const s3 = {
    BACKUP_URL: 's3://copies/site/one/',
    BACKUP_S3_ACCESS_KEY_ID: 'id',
    BACKUP_S3_SECRET_ACCESS_KEY: 'secret'
  }
  const { backups } = loadConfig({ ...base, BACKUP_FULL_AT: '23:05', BACKUP_RETENTION: 'daily:3,increments:1' })
  t.match(backups, {
    settings: { store: { folder: '/backups' }, keys: { passphrase } },
    fullAtMinute: 1_385,
    retention: { daily: 3, increments: 1, weekly: 0, monthly: 0 }
  })
  t.match(loadConfig({ ...base, ...s3, BACKUP_S3_REGION: 'eu-central-1' }).backups?.settings.store, {
    s3: { bucket: 'copies', prefix: 'site/one/', endpoint: 'https://s3.eu-central-1.amazonaws.com' }
  })
  t.equal(loadConfig({ DATA_DIR: base.DATA_DIR }).backups, undefined)
  for (const [wrong, message] of [
    [{ BACKUP_PASSPHRASE: '' }, /^BACKUP_PASSPHRASE is not set/],
    [{ BACKUP_PASSPHRASE: 'short' }, /^BACKUP_PASSPHRASE is a value that is refused \(not shown\)/],
    [{ BACKUP_PASSPHRASE: 'aaaaaaaaaaaaaaaaaaaaaaaa' }, /too easy to guess/],
    [{ BACKUP_RECIPIENTS: 'age1xyz' }, /only one of the two/],
    [
      { BACKUP_PASSPHRASE: '', BACKUP_IDENTITY: passphrase },
      /^BACKUP_IDENTITY is a value that is refused \(not shown\)/
    ],
    [{ BACKUP_URL: 'ftp://host/x' }, /^BACKUP_URL is "ftp/],
    [{ ...s3, BACKUP_S3_SECRET_ACCESS_KEY: '' }, /^BACKUP_S3_SECRET_ACCESS_KEY is not set/],
    [{ BACKUP_FULL_AT: '24:00' }, /^BACKUP_FULL_AT is "24:00"/],
    [{ BACKUP_RETENTION: 'yearly:1' }, /^BACKUP_RETENTION is "yearly:1"/],
    [{ DATABASE_URL: 'sqlite::memory:' }, /^BACKUP_URL is set beside a database in memory/]
  ] as const) {
    t.throws(() => loadConfig({ ...base, ...wrong }), { message }, String(message))
    const said = (() => {
      try {
        return String(loadConfig({ ...base, ...wrong }))
      } catch (error) {
        return String(error)
      }
    })()
    t.notOk(said.includes(passphrase), 'and no secret is shown')
  }
})

t.test('a public key that is mistyped or cut off is refused before anything starts', async (t) => {
  const [x25519, hybrid] = [
    await identityToRecipient(IDENTITY),
    await identityToRecipient(await generateHybridIdentity())
  ]
  const load = (...keys: string[]) =>
    loadConfig({ DATA_DIR: temporaryFolder(t), BACKUP_URL: '/backups', BACKUP_RECIPIENTS: keys.join(',') })
  t.same(load(x25519, hybrid).backups?.settings.keys, { recipients: [x25519, hybrid] })
  t.throws(
    () => load(IDENTITY),
    { message: /^BACKUP_RECIPIENTS is a value that is refused \(not shown\)/ },
    'a private key'
  )
  for (const key of [x25519, hybrid]) {
    const last = key.endsWith('q') ? 'p' : 'q'
    const at = key.length - 20
    const swapped = `${key.slice(0, at)}${key[at] === 'z' ? 'x' : 'z'}${key.slice(at + 1)}`
    for (const wrong of ['age1foo', key.slice(0, -1), `${key}q`, `${key.slice(0, -1)}${last}`, swapped]) {
      t.throws(() => load(x25519, wrong), {
        message: new RegExp(
          `^BACKUP_RECIPIENTS is a list whose key 2 of 2, "${wrong.slice(0, 80)}", is mistyped .*; it may be public keys of age`
        )
      })
    }
  }
})
