import Fastify from 'fastify'
import { sql } from 'kysely'
import t from 'tap'
import { app as register } from '../app.js'
import { createUser } from '../modules/identity/index.js'
import { loadConfig } from '../plugins/config/index.js'
import type { Auth } from '../plugins/contracts.js'
import { serverOptions } from '../plugins/http/server-options.js'
import { eventually, PASSWORD, tables, tenantOf, trail } from './audit-harness.js'
import { client, eachDialect } from './helper.js'
import { temporaryFolder } from './service-process.js'
import { freshDatabase } from './services.js'

/** Everything that a client may put a secret into, and where it must not come out again. */
await eachDialect(t, async (t, dialect) => {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const lines: string[] = []
  const options = serverOptions({ logLevel: 'trace' })
  const app = Fastify({
    ...options,
    logger: { ...options.logger, stream: { write: (line: string) => void lines.push(line) } }
  })
  t.teardown(() => app.close())
  await register(
    app,
    loadConfig({ DATA_DIR: temporaryFolder(t), ...(database === undefined ? {} : { DATABASE_URL: database.url }) })
  )
  await app.ready()
  const tenant = await tenantOf(app)
  await createUser(tenant, { username: 'owner', role: 'admin', password: PASSWORD })
  const CANARY = 'c4naryS3cretValue9'
  const token = app.getDecorator<Auth>('auth').sign({ subject: 'owner', role: 'admin', tenant: 'main' }, 600)
  const own = { authorization: `Bearer ${token}` }
  const answers: string[] = []
  const send = async (
    method: 'GET' | 'POST' | 'PATCH',
    url: string,
    payload?: object | string,
    headers: Record<string, string> = {}
  ) => {
    const answer = await app.inject({ method, url, headers, ...(payload === undefined ? {} : { payload }) })
    answers.push(`${method} ${url.split('?')[0]} ${answer.statusCode} ${answer.body}`)
    return answer
  }

  await t.test('row 51: a secret never comes out again', async (t) => {
    const json = { 'content-type': 'application/json' }
    await send('POST', '/api/auth/login', { username: 'owner', password: CANARY })
    await send('POST', '/api/auth/login', { username: CANARY, password: CANARY })
    await send('POST', '/api/auth/login', { username: 'owner', password: CANARY, otp: CANARY })
    await send('POST', '/api/auth/login', `{"username":"owner","password":"${CANARY}`, json)
    await send('POST', '/api/auth/login', `${CANARY} is no JSON`, json)
    await send('POST', '/api/auth/login', `password=${CANARY}`, { 'content-type': 'application/x-www-form-urlencoded' })
    const made = await send(
      'POST',
      '/api/users',
      { username: 'canary', role: 'staff', password: CANARY },
      { ...own, 'idempotency-key': CANARY }
    )
    t.equal(made.statusCode, 201)
    await send('PATCH', `/api/users/${made.json().id}`, { password: `${CANARY}-2` }, own)
    await send('PATCH', `/api/users/${made.json().id}`, { passwordHash: CANARY, role: 'staff' }, own)
    const signed = await app.inject({
      method: 'POST',
      url: '/api/auth/login',
      payload: { username: 'canary', password: `${CANARY}-2` }
    })
    t.equal(signed.statusCode, 200)
    const { accessToken } = signed.json()
    await send(
      'POST',
      '/api/auth/password',
      { currentPassword: `${CANARY}-2`, newPassword: `${CANARY}-3` },
      { authorization: `Bearer ${accessToken}` }
    )
    for (const authorization of [
      `Bearer ${CANARY}`,
      `Basic ${CANARY}`,
      `Bearer a.${CANARY}.b`,
      CANARY,
      `Bearer ${accessToken}`
    ])
      await send('GET', '/api/inventory', undefined, { authorization })
    for (const name of [
      'cookie',
      'x-api-key',
      'user-agent',
      'referer',
      'x-forwarded-for',
      'traceparent',
      'if-match',
      'if-none-match',
      'accept-language',
      'origin',
      'prefer',
      'content-type'
    ])
      await send('POST', '/api/inventory', '{"itemCode":"C","name":"C","unit":"each"}', { ...json, [name]: CANARY })
    await send('GET', '/api/inventory', undefined, {
      ...own,
      'x-request-id': `${CANARY} with a space`,
      cookie: `sid=${CANARY}`
    })
    await send('GET', `/api/inventory?token=${CANARY}&password=${CANARY}`, undefined, own)
    await send('GET', `/api/audit?access_token=${CANARY}`, undefined, own)
    // A defect: the database says which row it refuses, and the log says what the database said.
    const users = sql.table('users')
    const [spoil, mend] =
      dialect === 'sqlite'
        ? [
            sql`create trigger spoil before insert on users begin select raise(abort, 'spoilt'); end`,
            sql`drop trigger spoil`
          ]
        : [
            sql`alter table ${users} add constraint spoil check (false) not valid`,
            sql`alter table ${users} drop constraint spoil`
          ]
    await tenant.transact(({ db }) => spoil.execute(db))
    const failed = await send(
      'POST',
      '/api/users',
      { username: 'spoilt', displayName: 'Sp0ilt-Person', role: 'staff', password: CANARY },
      own
    )
    await tenant.transact(({ db }) => mend.execute(db))
    t.equal(failed.statusCode, 500)
    t.ok(
      lines.some((line) => line.includes('request failed')),
      'it is logged'
    )
    t.notMatch(lines.join(''), /Sp0ilt-Person/, 'without the row')

    await eventually(() => trail(app, '&outcome=denied'), 5)
    const rows = JSON.stringify(await tables(tenant.db).selectFrom('audit_entries').selectAll().execute())
    t.ok(rows.length > 2_000)
    const metrics = (await app.inject('/metrics')).body
    const [head = '', , signature = ''] = String(accessToken).split('.')
    for (const secret of [CANARY, signature, token.split('.')[2] ?? '', PASSWORD, 'argon2id']) {
      t.notMatch(lines.join(''), secret, 'no line of the log')
      t.notMatch(rows, secret, 'no audit entry')
      t.notMatch(metrics, secret, 'no metric')
      t.same(
        answers.filter((answer) => answer.includes(secret)),
        [],
        'no answer'
      )
    }
    t.ok(head.length > 10)
  })

  await t.test('row 51: line ends and escapes stay in one line of JSON', async (t) => {
    const evil = 'x\r\n{"level":50,"msg":"forged"}\u001b[31m\u2028'
    await send('POST', '/api/auth/login', { username: evil, password: evil, tenant: evil })
    await send('GET', `/api/inventory/${encodeURIComponent(evil)}`, undefined, own)
    await send('GET', `/api/nowhere/${encodeURIComponent(evil)}`, undefined, own)
    await send('POST', '/api/inventory/categories', { name: evil }, own)
    const { statusCode } = await send(
      'POST',
      '/api/ai/feedback',
      { itemCode: evil, date: '2026-01-05', subject: 'actual', verdict: 'right', comment: evil },
      own
    )
    t.ok(statusCode < 500)
    await tenant.transact(async (tx) => tx.audit({ action: evil, object: { type: evil, id: evil }, details: { evil } }))
    app.log.error({ evil, err: new Error(evil) }, evil)
    t.ok(lines.length > 1)
    for (const line of lines) {
      t.equal(line.indexOf('\n'), line.length - 1, 'one line')
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
      t.notMatch(line.slice(0, -1), /[\u0000-\u001f\u007f]/)
      t.type(JSON.parse(line), 'object')
    }
    const { body } = await client(app, 'manager').get('/api/audit/export')
    const exported = await app.inject({ url: '/api/audit/export', headers: own })
    t.equal(body, undefined)
    for (const line of exported.body.trim().split('\n')) t.type(JSON.parse(line), 'object')
    const stored = await tables(tenant.db).selectFrom('audit_entries').select(['action', 'object_id']).execute()
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
    for (const { action, object_id } of stored) t.notMatch(`${action}${object_id}`, /[\u0000-\u001f\u007f]/)
  })
})
