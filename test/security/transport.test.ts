import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t, { type Test } from 'tap'
import { ConfigError, loadConfig } from '../../plugins/config/index.js'
import { openDatabaseServer, startFailure } from '../../plugins/database.js'
import { UNWATCHED } from '../../plugins/dialects/dialect.js'
import { checkRedis } from '../../plugins/redis.js'
import { buildApp, client } from '../helper.js'
import { runToEnd, temporaryFolder } from '../service-process.js'
import { startPostgres, startRedis } from '../services.js'
import { createAuthority } from './certificates.js'

/** What goes over the wire, to servers that are real, and where the secrets come from. */

type Env = Record<string, string>

/** Why the service would not start: the steps of its start that ask the servers. */
async function refusal(t: Test, env: Env): Promise<string> {
  const config = loadConfig({ DATA_DIR: temporaryFolder(t), ...env })
  const { DATABASE_URL: databaseUrl, postgresTls: tls, REDIS_URL, redisTls } = config
  const server = openDatabaseServer({ databaseUrl, tenancy: 'single', poolSize: 1, tls }, UNWATCHED)
  try {
    if (REDIS_URL !== undefined) await checkRedis(REDIS_URL, redisTls)
    else await server.tenants()
  } catch (error) {
    const failure = startFailure(error)
    if (failure instanceof ConfigError) return failure.message
    throw error
  } finally {
    await server.close()
  }
  return 'it starts'
}

t.test('V12.3.2 PostgreSQL: both sides are verified, or the service does not start', async (t) => {
  const authority = createAuthority(t)
  const stranger = createAuthority(t)
  const server = authority.issue('localhost')
  const own = authority.issue('app')
  const postgres = await startPostgres(
    {
      ssl: 'on',
      ssl_cert_file: '{folder}/server.pem',
      ssl_key_file: '{folder}/server.key',
      ssl_ca_file: '{folder}/ca.pem',
      hba_file: '{folder}/hba.conf'
    },
    {
      'server.pem': server.cert,
      'server.key': server.key,
      'ca.pem': authority.ca,
      'hba.conf': 'host all postgres 127.0.0.1/32 trust\nhostssl all app 127.0.0.1/32 cert\n'
    }
  )
  t.teardown(() => postgres.stop())
  const operator = new pg.Client({ connectionString: postgres.url })
  await operator.connect()
  t.teardown(() => operator.end())
  await operator.query('create role app login')
  await operator.query('create database inventory owner app')

  const port = new URL(postgres.url).port
  const DATABASE_URL = `postgres://app@localhost:${port}/inventory`
  const good = {
    DATABASE_URL,
    POSTGRES_CA_FILE: authority.caFile,
    POSTGRES_CERT_FILE: own.certFile,
    POSTGRES_KEY_FILE: own.keyFile
  }
  const other = stranger.issue('app')
  const cases: [name: string, env: Env, reason: RegExp][] = [
    ['the wrong authority', { ...good, POSTGRES_CA_FILE: stranger.caFile }, /not from an authority that is trusted/],
    ['the wrong name', { ...good, DATABASE_URL: DATABASE_URL.replace('localhost', '127.0.0.1') }, /for another name/],
    [
      'a URL that would turn it off',
      { ...good, POSTGRES_CA_FILE: stranger.caFile, DATABASE_URL: `${DATABASE_URL}?sslmode=no-verify` },
      /not from an authority/
    ],
    ['no certificate of ours', { DATABASE_URL, POSTGRES_CA_FILE: authority.caFile }, /cannot be used \(28000\)/],
    [
      'one that the server does not know',
      { ...good, POSTGRES_CERT_FILE: other.certFile, POSTGRES_KEY_FILE: other.keyFile },
      /TLS cannot be agreed on|cannot be used/
    ],
    [
      'one of another user',
      { ...good, DATABASE_URL: DATABASE_URL.replace('app@', 'postgres@').replace('inventory', 'none') },
      /cannot be used/
    ],
    ['no encryption', { DATABASE_URL }, /cannot be used \(28000\)/]
  ]
  for (const [name, env, reason] of cases) {
    const said = await refusal(t, env)
    t.match(said, /^DATABASE_URL is a value \(not shown\) [^\n]+; it may be [^\n]+$/, name)
    t.match(said, reason)
  }

  const app = await buildApp(t, { dialect: 'postgres', config: good })
  t.equal((await client(app, 'admin').post('/api/inventory', { itemCode: 'A', name: 'A', unit: 'each' })).status, 201)
  const { rows } = await operator.query<{ ssl: boolean; client_dn: string }>(
    "select ssl, client_dn from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'app'"
  )
  t.ok(rows.length > 0 && rows.every(({ ssl, client_dn }) => ssl && client_dn === '/CN=app'), 'each of its connections')
  const metrics = (await app.inject('/metrics')).body
  for (const part of ['ca', 'own']) {
    const series = new RegExp(
      `^tls_certificate_not_after_timestamp_seconds\\{server="postgres",part="${part}"\\} (\\d+)$`,
      'm'
    )
    const left = Number(series.exec(metrics)?.[1]) - Date.now() / 1000
    t.ok(left > 86_400 && left <= 2 * 86_400, `${part}: ends in ${left} s, as it was issued`)
  }
  await app.close()

  const ended = authority.issue('localhost', -1)
  postgres.write('server.pem', ended.cert)
  postgres.write('server.key', ended.key)
  process.kill(postgres.pid, 'SIGHUP')
  const deadline = Date.now() + 5_000
  let said = ''
  while (!said.includes('expired') && Date.now() < deadline) said = await refusal(t, good)
  t.match(said, /its certificate has expired \(CERT_HAS_EXPIRED\)/)
  const { code, output } = await runToEnd({ DATA_DIR: temporaryFolder(t), LOG_LEVEL: 'silent', PORT: '0', ...good })
  t.equal(code, 2, 'the program ends')
  t.match(output, /^DATABASE_URL [^\n]*expired[^\n]*\n$/, 'with one line')
})

t.test('V12.3.4 Redis: both sides are verified and a password given, or the service does not start', async (t) => {
  const authority = createAuthority(t)
  const stranger = createAuthority(t)
  const server = authority.issue('localhost')
  const own = authority.issue('app')
  const password = 'kV3-nY8wRq5tZm2x'
  const redis = await startRedis({
    settings: {
      'tls-cert-file': '{folder}/server.pem',
      'tls-key-file': '{folder}/server.key',
      'tls-ca-cert-file': '{folder}/ca.pem',
      requirepass: password
    },
    files: { 'server.pem': server.cert, 'server.key': server.key, 'ca.pem': authority.ca }
  })
  t.teardown(() => redis.stop())
  const url = (host: string, secret: string) => `rediss://:${secret}@${host}:${new URL(redis.url).port}`
  const good = {
    REDIS_URL: url('localhost', password),
    REDIS_CA_FILE: authority.caFile,
    REDIS_CERT_FILE: own.certFile,
    REDIS_KEY_FILE: own.keyFile
  }
  const cases: [name: string, env: Env, reason: RegExp][] = [
    ['the wrong authority', { ...good, REDIS_CA_FILE: stranger.caFile }, /not from an authority that is trusted/],
    ['the wrong name', { ...good, REDIS_URL: url('127.0.0.1', password) }, /for another name/],
    [
      'no certificate of ours',
      { REDIS_URL: good.REDIS_URL, REDIS_CA_FILE: authority.caFile },
      /TLS cannot be agreed on|wants another certificate/
    ],
    ['the wrong password', { ...good, REDIS_URL: url('localhost', 'canary') }, /does not let us in \(WRONGPASS\)/],
    ['no password', { ...good, REDIS_URL: url('localhost', '').replace(':@', '') }, /does not let us in \(NOAUTH\)/]
  ]
  for (const [name, env, reason] of cases) {
    const said = await refusal(t, env)
    t.match(said, /^REDIS_URL is a value \(not shown\) [^\n]+; it may be [^\n]+$/, name)
    t.match(said, reason, name)
    t.notMatch(said, /canary/)
  }
  redis.freeze()
  const late = refusal(t, { ...good, REDIS_URL: url('localhost', 'canary') })
  await sleep(700)
  redis.thaw()
  t.match(await late, /does not let us in \(WRONGPASS\)/, 'one that is slow to answer is heard out')

  const app = await buildApp(t, { dialect: 'sqlite', redisUrl: good.REDIS_URL, config: good })
  const admin = client(app, 'admin')
  let health = ''
  for (let n = 0; n < 100 && health !== 'ok'; n++) {
    health = (await app.inject('/health')).json().status
    await sleep(50)
  }
  t.equal(health, 'ok')
  t.match((await admin.get('/api/cache/stats')).body, { backend: 'redis' })
  t.match(
    await admin.post('/api/ai/consumption/derive', {}, { prefer: 'wait=20' }),
    { status: 200, body: { status: 'succeeded' } },
    'jobs go that way too'
  )
  await app.close()

  await redis.kill()
  t.equal(await refusal(t, good), 'it starts', 'one that is away is no reason not to start')
  const ended = authority.issue('localhost', -1)
  redis.write('server.pem', ended.cert)
  redis.write('server.key', ended.key)
  await redis.restart()
  t.match(await refusal(t, good), /its certificate has expired \(CERT_HAS_EXPIRED\)/)
  const { code, output } = await runToEnd({ DATA_DIR: temporaryFolder(t), LOG_LEVEL: 'silent', PORT: '0', ...good })
  t.equal(code, 2, 'the program ends')
  t.match(output, /^REDIS_URL [^\n]*expired[^\n]*\n$/, 'with one line')
})

t.test('V13.3.1 secrets come from files, and what is wrong with one is said without it', async (t) => {
  const DATA_DIR = temporaryFolder(t)
  const file = (name: string, text: string) => {
    const path = join(DATA_DIR, name)
    writeFileSync(path, text)
    return path
  }
  const secret = 'kV3-nY8wRq5tZm2xLc7pHd9sJf4bGu6e'
  const config = loadConfig({
    DATA_DIR,
    JWT_SECRET_FILE: file('jwt', `${secret}\n`),
    METRICS_TOKEN_FILE: file('metrics', 'scrape-me-if-you-can'),
    DATABASE_URL_FILE: file('database', 'sqlite::memory:\r\n'),
    REDIS_URL_FILE: file('redis', 'redis://localhost:6379')
  })
  t.match(config, {
    jwtKeys: [{ secret }],
    METRICS_TOKEN: 'scrape-me-if-you-can',
    DATABASE_URL: 'sqlite::memory:',
    REDIS_URL: 'redis://localhost:6379'
  })
  t.match(loadConfig({ DATA_DIR, JWT_KEYS_FILE: file('keys', `new:${secret},old:${secret}x`) }).jwtKeys, [
    { id: 'new' },
    { id: 'old' }
  ])
  const pem = createAuthority(t)
  const { certFile, keyFile } = pem.issue('app')
  const broken = file('broken', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n')
  for (const [env, message] of [
    [
      { JWT_SECRET_FILE: join(DATA_DIR, 'none') },
      /^JWT_SECRET_FILE is ".*none", which cannot be read \(ENOENT\); it may be a file$/
    ],
    [{ JWT_SECRET_FILE: DATA_DIR }, /^JWT_SECRET_FILE is .* \(EISDIR\)/],
    [{ JWT_SECRET_FILE: file('short', 'canary') }, /^JWT_SECRET is a value that is refused \(not shown\)/],
    [{ JWT_SECRET_FILE: file('jwt', secret), JWT_SECRET: secret }, /^JWT_SECRET_FILE is set beside JWT_SECRET/],
    [{ POSTGRES_CA_FILE: join(DATA_DIR, 'none') }, /^POSTGRES_CA_FILE is ".*none", which cannot be read/],
    [
      { POSTGRES_CA_FILE: file('text', 'canary') },
      /^POSTGRES_CA_FILE is ".*text", which holds no certificate; it may be a PEM file$/
    ],
    [{ POSTGRES_CA_FILE: broken }, /^POSTGRES_CA_FILE is ".*broken", which holds no certificate/],
    [{ REDIS_CERT_FILE: certFile }, /^REDIS_KEY_FILE is not set/],
    [{ REDIS_KEY_FILE: keyFile }, /^REDIS_CERT_FILE is not set/],
    [
      { REDIS_CERT_FILE: keyFile, REDIS_KEY_FILE: keyFile },
      /^REDIS_CERT_FILE is ".*key.pem", which holds no certificate/
    ]
  ] as const) {
    let said = ''
    try {
      loadConfig({ DATA_DIR, ...env })
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error
      said = error.message
    }
    t.match(said, message)
    t.notMatch(said, /canary|\n/)
  }
})

t.test('V13.2.3 production takes no secret that can be guessed', async (t) => {
  const DATA_DIR = temporaryFolder(t)
  const sound = {
    NODE_ENV: 'production',
    DATA_DIR,
    JWT_SECRET: 'kV3-nY8wRq5tZm2xLc7pHd9sJf4bGu6e',
    SECRETS_KEY: 'pX9-bT4vNq7yKd2mWc6rHf8sJz3gLu5a'
  }
  t.doesNotThrow(() =>
    loadConfig({
      ...sound,
      DATABASE_URL: 'postgres://app:zT7-canQ@db/x',
      REDIS_URL: 'redis://cache',
      METRICS_TOKEN: 'hW4nT8bXq2LmV6zK'
    })
  )
  for (const [variable, value] of [
    ['JWT_SECRET', ''],
    ['JWT_SECRET', 'short'],
    ['JWT_SECRET', 'a'.repeat(64)],
    ['JWT_SECRET', 'changeme-changeme-changeme-changeme'],
    ['JWT_SECRET', 'my-super-secret-key-for-signing-tokens'],
    ['JWT_SECRET', '01234567890123456789012345678901'],
    ['SECRETS_KEY', ''],
    ['SECRETS_KEY', 'b'.repeat(64)],
    ['JWT_KEYS', 'a:password-password-password-password'],
    ['METRICS_TOKEN', 'aaaaaaaaaaaaaaaa'],
    ['METRICS_TOKEN', 'changeme-changeme'],
    ['DATABASE_URL', 'postgres://postgres:postgres@db/x'],
    ['DATABASE_URL', 'postgres://inventory:inventory@db/x'],
    ['DATABASE_URL', 'postgres://app:application-password@db/x'],
    ['DATABASE_URL', 'postgres://longname:longname@db/x'],
    ['REDIS_URL', 'redis://:redis@cache'],
    ['REDIS_URL', 'redis://:12345678@cache']
  ] as const) {
    t.throws(
      () => loadConfig({ ...sound, [variable]: value }),
      { message: new RegExp(`^${variable} is (not set|a value)`) },
      `${variable}=${value}`
    )
  }
})
