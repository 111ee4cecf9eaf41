import { hash } from '@node-rs/argon2'
import { sql } from 'kysely'
import t from 'tap'
import { COMMON_PASSWORDS } from '../../modules/identity/common-passwords.js'
import { createUser, linkFor, removeSecondFactor, setPassword, setupLinkFor } from '../../modules/identity/index.js'
import { checkPassword } from '../../modules/identity/password-rules.js'
import { Problem } from '../../plugins/contracts.js'
import { eachDialect } from '../helper.js'
import { enrolled, PASSWORD, PUBLIC_URL, SHORT_PASSWORD, startIdentity } from '../identity-service.js'
import { serviceEnvironment, startService } from '../service-process.js'
import { freshDatabase } from '../services.js'

/** Accounts and passwords by the rows of ASVS 5.0.0, and NIST SP 800-63B Rev. 4, that ask for them. */

const CONTEXT = { username: 'alice.liddell', tenant: 'wonderland', isSoleFactor: true }

function verdict(password: string, context: Partial<typeof CONTEXT> = {}): unknown {
  try {
    checkPassword(password, { ...CONTEXT, ...context })
    return 'accepted'
  } catch (error) {
    return error instanceof Problem ? error.params.reason : error
  }
}

t.test(
  'V6.2.1, V6.2.9 fifteen characters alone, eight beside a second factor, and long ones as they are',
  async (t) => {
    const table: [password: string, alone: string, beside: string][] = [
      ['tin-kiw', 'too-short', 'too-short'],
      ['tin-kiwi', 'too-short', 'accepted'],
      ['blue kiwi tin 4', 'accepted', 'accepted'],
      ['blue kiwi tin', 'too-short', 'accepted'],
      ['😀😁😂🤣😃😄😅', 'too-short', 'too-short'],
      ['😀😁😂🤣😃😄😅😆', 'too-short', 'accepted'],
      ['e\u0301a\u0300u\u0302o\u0308', 'too-short', 'too-short'],
      ['two words and sixty-four characters: accepted, as anybody would hope', 'accepted', 'accepted'],
      [`${'a bird in '.repeat(102)}the`, 'accepted', 'accepted'],
      [`${'a bird in '.repeat(102)}hands`, 'too-long', 'too-long'],
      ['é'.repeat(513), 'too-long', 'too-long'],
      ['half \ud83d a pair of it', 'not-text', 'not-text']
    ]
    for (const [password, alone, beside] of table) {
      const name = `${password.slice(0, 20)} (${[...password].length})`
      t.equal(verdict(password), alone, `${name} alone`)
      t.equal(verdict(password, { isSoleFactor: false }), beside, `${name} beside a second factor`)
    }
  }
)

t.test(
  'V6.2.4, V6.2.12 common passwords are refused, and what is made of them; V6.2.11 so are words of the context',
  async (t) => {
    t.ok(COMMON_PASSWORDS.size >= 3_000, `${COMMON_PASSWORDS.size} words`)
    const accepted = [...COMMON_PASSWORDS].filter((each) => verdict(each, { isSoleFactor: false }) !== 'common')
    t.same(accepted, [], 'each of the list')
    const disguised = [...COMMON_PASSWORDS].filter(
      (each) => verdict(each.toUpperCase(), { isSoleFactor: false }) !== 'common'
    )
    t.same(disguised, [], 'whatever its case')
    const table: [string, string][] = [
      ['ｐａｓｓｗｏｒｄ１', 'common'],
      ['passwordpassword', 'common'],
      ['Password2026!!!!', 'common'],
      ['2026_sunshine_2026', 'common'],
      ['aaaaaaaaaaaaaaaa', 'common'],
      ['abcabcabcabcabcabc', 'common'],
      ['1234567890123456', 'common'],
      ['6543210987654321', 'common'],
      ['qwertyuiopasdfghjkl', 'common'],
      ['zyxwvutsrqponmlkji', 'common'],
      ['Alice.Liddell', 'context'],
      ['Alice.Liddell1865', 'context'],
      ['Inventory Enterprise', 'context'],
      ['wonderland-2026', 'context'],
      ['sunshine on the roof', 'accepted'],
      ['inventory of my garden shed', 'accepted']
    ]
    for (const [password, expected] of table) t.equal(verdict(password, { isSoleFactor: false }), expected, password)
    t.equal(verdict('annual rainfall', { username: 'an', tenant: 'a' }), 'accepted', 'a name of two letters is no word')
  }
)

await eachDialect(t, async (t, dialect) => {
  const database = dialect === 'postgres' ? await freshDatabase() : undefined
  if (database !== undefined) t.teardown(() => database.drop())
  const service = await startIdentity(database?.url ?? 'sqlite::memory:')
  t.teardown(() => service.app.close())
  const { call, login, token } = service
  const tenant = await service.tenant()
  const tokenIn = (url: string) => new URL(url).hash.replace('#token=', '')
  const accept = (linkToken: string, password: string) =>
    call('POST', '/auth/accept', undefined, { token: linkToken, password })
  const expire = () =>
    tenant.transact((tx) =>
      sql`update ${sql.table('one_time_links')} set expires_at = ${Date.now() - 1}`.execute(tx.db)
    )
  const kept = async (): Promise<string> => {
    const { rows } = await sql`select * from ${sql.table('one_time_links')}`.execute(tenant.db)
    return JSON.stringify(rows)
  }

  await t.test(
    'V6.3.2 no account exists at first; a link makes the first one, once, and none after that',
    async (t) => {
      t.strictSame((await call('GET', '/users', token('admin'))).body.data, [])
      for (const username of ['admin', 'root', 'inventory', 'demo'])
        t.equal((await login(username, username, `203.0.113.${username.length}`)).status, 401, username)
      const [one, two] = [await setupLinkFor(tenant, PUBLIC_URL), await setupLinkFor(tenant, PUBLIC_URL)]
      t.match(one?.url, new RegExp(`^${PUBLIC_URL}/setup#token=il_main_[\\w-]{43}$`))
      const [first, second] = [tokenIn(one?.url ?? ''), tokenIn(two?.url ?? '')]
      t.notOk((await kept()).includes(first.slice(8)), 'kept as a hash')
      const setup = (linkToken: string, username: string, password = SHORT_PASSWORD) =>
        call('POST', '/auth/setup', undefined, { token: linkToken, username, password })
      const invalid = { status: 422, body: { code: 'ID_LINK_INVALID' } }
      for (const wrong of [
        'x',
        'il_main_',
        `${first.slice(0, -1)}~`,
        `il_main_${'A'.repeat(43)}`,
        `il_nowhere_${'A'.repeat(43)}`
      ])
        t.match(await setup(wrong, 'eve'), invalid, wrong)
      t.match(await setup(first, 'alice', 'too easy'.slice(0, 7)), {
        status: 422,
        body: { code: 'ID_PASSWORD_REFUSED', minimumLength: 8 }
      })
      const answers = await Promise.all([first, second, first, second].map((each, n) => setup(each, `root${n}`)))
      const statuses = answers.map(({ status }) => status).sort()
      t.same(statuses, [201, 422, 422, 422], 'one of two links, each tried twice at once')
      const { id, username, role } = answers.find(({ status }) => status === 201)?.body ?? {}
      t.equal(role, 'admin')
      t.match((await login(username, SHORT_PASSWORD)).body, { step: 'enrol' }, 'who enrols a second factor next')
      t.equal(await setupLinkFor(tenant, PUBLIC_URL), undefined, 'no more links')
      await tenant.transact((tx) =>
        sql`insert into ${sql.table('one_time_links')} (token_hash, expires_at) values ('x', ${Date.now() + 60_000})`.execute(
          tx.db
        )
      )
      t.equal((await call('DELETE', `/users/${id}`, token('admin'))).status, 200)
      t.equal(await setupLinkFor(tenant, PUBLIC_URL), undefined, 'nor once the first user is deleted')
    }
  )

  await t.test('an invitation sets the first password, once, in its time, and signs nobody in', async (t) => {
    const { body: user } = await call('POST', '/users', token('admin'), { username: 'gina', role: 'staff' })
    for (const password of ['', '!', PASSWORD]) t.not((await login('gina', password)).status, 200, 'no password yet')
    const forged = {
      headers: { host: 'evil.example', 'x-forwarded-host': 'evil.example', origin: 'https://evil.example' }
    }
    const invite = () => call('POST', `/users/${user.id}/link`, token('admin'), undefined, forged)
    const made = await invite()
    t.match(made, { status: 201, headers: { 'cache-control': 'no-store' } })
    t.match(
      made.body.url,
      new RegExp(`^${PUBLIC_URL}/accept#token=`),
      'GHSA-9vh6-qfv6-vcqp: built from the configured address'
    )
    const linkToken = tokenIn(made.body.url)
    t.notOk((await kept()).includes(linkToken.slice(8)), 'kept as a hash')
    const newer = tokenIn((await invite()).body.url)
    const invalid = { status: 422, body: { code: 'ID_LINK_INVALID' } }
    t.match(await accept(linkToken, PASSWORD), invalid, 'a newer link voids it')
    t.match(await accept(newer, 'tin-kiwi'), { status: 422, body: { code: 'ID_PASSWORD_REFUSED', minimumLength: 15 } })
    t.match(await accept(newer, 'gina staff of main'), { status: 204 }, 'a refused password leaves the link')
    t.match(await accept(newer, PASSWORD), invalid, 'once')
    t.match(await login('gina', 'gina staff of main'), { status: 200, body: { user: { username: 'gina' } } })

    const again = tokenIn((await invite()).body.url)
    const tries = await Promise.all(Array.from({ length: 10 }, (_, n) => accept(again, `${PASSWORD} ${n}`)))
    t.equal(tries.filter(({ status }) => status === 204).length, 1, 'one of ten at once')
    const late = tokenIn((await invite()).body.url)
    await expire()
    t.match(await accept(late, PASSWORD), invalid, 'not after its time')
    const held = (
      await call('POST', '/auth/login', undefined, {
        username: 'gina',
        password: `${PASSWORD} ${tries.findIndex(({ status }) => status === 204)}`
      })
    ).body
    const reset = tokenIn((await invite()).body.url)
    t.equal((await accept(reset, PASSWORD)).status, 204)
    t.equal((await call('GET', '/auth/me', held.accessToken)).status, 401, 'a reset ends all tokens')
    t.equal(
      (await call('POST', '/auth/refresh', undefined, { refreshToken: held.refreshToken })).status,
      401,
      'refresh tokens too'
    )
    for (const change of [{ disabled: true }, { password: 'walls of old paper' }]) {
      const open = tokenIn((await invite()).body.url)
      await call('PATCH', `/users/${user.id}`, token('admin'), change)
      await call('PATCH', `/users/${user.id}`, token('admin'), { disabled: false })
      t.match(await accept(open, PASSWORD), invalid, `${Object.keys(change)} voids it`)
    }
    t.equal((await call('POST', `/users/${user.id}/link`, token('manager'))).status, 403)
    t.equal((await call('POST', '/users/0190a000-0000-7000-8000-000000000000/link', token('admin'))).status, 404)
  })

  await t.test('whoever must change the password can do nothing else', async (t) => {
    const { body: user } = await call('POST', '/users', token('admin'), {
      username: 'ned',
      role: 'staff',
      password: PASSWORD,
      mustChangePassword: true
    })
    t.equal(user.mustChangePassword, true)
    const { body } = await login('ned', PASSWORD)
    t.match(body, { step: 'password' })
    t.notOk(body.accessToken)
    const refused = {
      status: 403,
      body: {
        code: 'AUTH_SECOND_FACTOR_REQUIRED',
        use: 'password',
        routes: ['POST /api/auth/password', 'POST /api/auth/logout'].sort()
      }
    }
    const answer = await call('GET', '/auth/me', body.pendingToken)
    t.match(
      { ...answer, body: { ...answer.body, routes: [...answer.body.routes].sort() } },
      { ...refused, body: { ...refused.body, routes: ['POST /api/auth/logout', 'POST /api/auth/password'] } }
    )
    const change = { currentPassword: PASSWORD, newPassword: 'walls of old paper' }
    t.equal((await call('POST', '/auth/password', body.pendingToken, change)).status, 204)
    t.match((await login('ned', 'walls of old paper')).body, {
      tokenType: 'Bearer',
      user: { mustChangePassword: false }
    })
    const held = (await login('ned', 'walls of old paper')).body
    await call('PATCH', `/users/${user.id}`, token('admin'), { mustChangePassword: true })
    t.equal((await call('GET', '/auth/me', held.accessToken)).status, 401, 'at once')
    const max = await enrolled(service, 'max', 'manager', SHORT_PASSWORD)
    await call('PATCH', `/users/${max.id}`, token('admin'), { mustChangePassword: true })
    const pending = (await login('max', SHORT_PASSWORD)).body
    t.match(pending, { step: 'second-factor' }, 'after the second factor, not instead of it')
    const next = await call('POST', '/auth/2fa/verify', pending.pendingToken, { code: service.code(max.secret) })
    t.match(next.body, { step: 'password' })
    const shorter = { currentPassword: SHORT_PASSWORD, newPassword: 'elm-plum' }
    t.equal(
      (await call('POST', '/auth/password', next.body.pendingToken, shorter)).status,
      204,
      'eight are enough beside a factor'
    )
  })

  await t.test('a short password that is suddenly alone must be changed at the next sign-in', async (t) => {
    const max = await enrolled(service, 'mona', 'manager', SHORT_PASSWORD)
    await call('PATCH', `/users/${max.id}`, token('admin'), { role: 'staff' })
    t.match((await login('mona', SHORT_PASSWORD)).body, { step: 'second-factor' }, 'not while there is a second factor')
    await removeSecondFactor(tenant, 'mona')
    const { body } = await login('mona', SHORT_PASSWORD)
    t.match(body, { step: 'password' })
    const short = await call('POST', '/auth/password', body.pendingToken, {
      currentPassword: SHORT_PASSWORD,
      newPassword: 'elm-plum'
    })
    t.match(short, { status: 422, body: { code: 'ID_PASSWORD_REFUSED', minimumLength: 15 } })
  })

  await t.test(
    'a deleted user stays for the history, signs in by nothing, and leaves the name to others',
    async (t) => {
      const gone = await enrolled(service, 'gus', 'staff')
      const link = await linkFor(tenant, PUBLIC_URL, 'gus')
      t.match(await call('DELETE', `/users/${gone.id}`, token('admin')), {
        status: 200,
        body: { deleted: true, disabled: true }
      })
      t.equal((await call('GET', '/auth/me', gone.accessToken)).status, 401)
      t.equal((await login('gus', PASSWORD)).status, 401)
      t.equal((await accept(tokenIn(link.url), PASSWORD)).status, 422)
      t.match(await call('GET', `/users/${gone.id}`, token('admin')), {
        status: 200,
        body: { id: gone.id, username: 'gus', deleted: true }
      })
      const listed = (await call('GET', '/users?limit=500', token('admin'))).body
      t.notOk(listed.data.some(({ id }: { id: string }) => id === gone.id))
      t.equal(listed.page.total, listed.data.length)
      for (const change of [{ disabled: false }, { password: PASSWORD }, { role: 'admin' }])
        t.equal((await call('PATCH', `/users/${gone.id}`, token('admin'), change)).status, 404, JSON.stringify(change))
      for (const [method, url] of [
        ['DELETE', ''],
        ['POST', '/link'],
        ['DELETE', '/second-factor']
      ] as const)
        t.equal((await call(method, `/users/${gone.id}${url}`, token('admin'))).status, 404, `${method} ${url}`)
      const { body: next } = await call('POST', '/users', token('admin'), {
        username: 'Gus',
        role: 'viewer',
        password: PASSWORD
      })
      t.not(next.id, gone.id, 'another person of the same name')
      t.match((await login('gus', PASSWORD)).body, { user: { id: next.id, role: 'viewer' } })
      const tables = ['totp_factors', 'recovery_codes', 'passkeys', 'one_time_links']
      for (const name of tables) {
        const { rows } = await sql`select 1 from ${sql.table(name)} where user_id = ${gone.id}`.execute(tenant.db)
        t.same(rows, [], `nothing left in ${name}`)
      }
    }
  )

  await t.test(
    'V6.2.5, V6.2.8 no rule of composition, no truncation, case kept; and the console keeps the same rules',
    async (t) => {
      const plain = 'all lower case and no digit'
      const long = `${'x9-'.repeat(24)}end A`
      await createUser(tenant, { username: 'plain', role: 'viewer', password: plain })
      await createUser(tenant, { username: 'long', role: 'viewer', password: long })
      t.equal((await login('plain', plain)).status, 200)
      t.equal((await login('plain', plain.toUpperCase(), '192.0.2.3')).status, 401)
      t.equal((await login('plain', ` ${plain}`, '192.0.2.4')).status, 401)
      t.equal((await login('long', long)).status, 200)
      t.equal((await login('long', long.slice(0, 72), '192.0.2.5')).status, 401, 'the trap of bcrypt: 72 bytes')
      t.equal((await login('long', `${long.slice(0, -1)}B`, '192.0.2.6')).status, 401)
      const short = { username: 'short', password: SHORT_PASSWORD }
      await t.rejects(createUser(tenant, { ...short, role: 'staff' }), { code: 'ID_PASSWORD_REFUSED' })
      await t.rejects(createUser(tenant, { ...short, role: 'admin' }, 'optional'), { code: 'ID_PASSWORD_REFUSED' })
      await createUser(tenant, { ...short, role: 'admin' })
      await t.rejects(setPassword(tenant, 'plain', SHORT_PASSWORD), { code: 'ID_PASSWORD_REFUSED' })
      await t.rejects(setPassword(tenant, 'nobody', PASSWORD), { code: 'ID_USER_NOT_FOUND' })
      t.equal((await setPassword(tenant, 'short', 'elm-plum')).username, 'short')
    }
  )

  await t.test('V11.4.2 a hash of a lower cost is made anew at the next sign-in', async (t) => {
    const { id } = await createUser(tenant, { username: 'old', role: 'viewer', password: PASSWORD })
    const weak = await hash(PASSWORD, { memoryCost: 8_192, timeCost: 1, parallelism: 1 })
    await tenant.transact((tx) =>
      sql`update ${sql.table('users')} set password_hash = ${weak} where id = ${id}`.execute(tx.db)
    )
    t.equal((await login('old', PASSWORD)).status, 200)
    const { rows } = await sql<{
      password_hash: string
    }>`select password_hash from ${sql.table('users')} where id = ${id}`.execute(tenant.db)
    t.match(rows[0]?.password_hash, /^\$argon2id\$v=19\$m=19456,t=2,p=1\$/)
    t.equal((await login('old', PASSWORD)).status, 200)
  })
})

t.test('V6.3.2 the server prints the link at its start, to whoever started it, until there is a user', async (t) => {
  const env = await serviceEnvironment(t, { PUBLIC_URL: 'https://stock.example.org/' })
  const service = await startService(t, env)
  const link = () => /https:\/\/stock\.example\.org\/setup#token=(il_main_[\w-]{43})/.exec(service.output())?.[1]
  while (link() === undefined && service.child.exitCode === null)
    await new Promise((resolve) => setTimeout(resolve, 20))
  const logged = service
    .output()
    .split('\n')
    .filter((line) => line.startsWith('{'))
  t.notOk(
    logged.some((line) => line.includes(link() ?? 'none')),
    'and not to the log'
  )
  const send = (path: string, body: object) =>
    fetch(`${service.url}${path}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body)
    }).then(async (answer) => ({ status: answer.status, text: await answer.text() }))
  t.equal((await send('/api/auth/setup', { token: link(), username: 'ada', password: PASSWORD })).status, 201)
  t.equal((await send('/api/auth/login', { username: 'ada', password: PASSWORD })).status, 200)
  await service.end('SIGTERM')
  const again = await startService(t, env)
  t.equal((await send('/api/auth/login', { username: 'ada', password: PASSWORD })).status, 200)
  await again.end('SIGTERM')
  t.notMatch(again.output(), /setup#token/, 'no link once there is a user')
})
