import { randomBytes } from 'node:crypto'
import t from 'tap'
import { createSecondFactorStore } from '../../modules/identity/second-factor-store.js'
import { base32, codeAt, matchingStep, otpauthUri, stepAt } from '../../modules/identity/totp.js'
import { loadConfig } from '../../plugins/config/index.js'
import { createSeal } from '../../plugins/seal.js'
import {
  enrolled,
  fromBase32,
  type IdentityService,
  PASSWORD,
  SEALING_KEY,
  startIdentity
} from '../identity-service.js'
import { temporaryFolder } from '../service-process.js'

/** Codes of apps and the keys that their seeds are sealed with. */

t.test('RFC 4226 appendix D, RFC 6238 appendix B, RFC 4648: the published values', async (t) => {
  const seed = Buffer.from('12345678901234567890')
  const hotp = ['755224', '287082', '359152', '969429', '338314', '254676', '287922', '162583', '399871', '520489']
  for (const [counter, code] of hotp.entries()) t.equal(codeAt(seed, counter), code, `HOTP ${counter}`)
  const totp: [seconds: number, code: string][] = [
    [59, '94287082'],
    [1_111_111_109, '07081804'],
    [1_111_111_111, '14050471'],
    [1_234_567_890, '89005924'],
    [2_000_000_000, '69279037'],
    [20_000_000_000, '65353130']
  ]
  for (const [seconds, code] of totp) t.equal(codeAt(seed, stepAt(seconds * 1000), 8), code, `TOTP at ${seconds}`)
  const texts: [string, string][] = [
    ['', ''],
    ['f', 'MY'],
    ['fo', 'MZXQ'],
    ['foo', 'MZXW6'],
    ['foob', 'MZXW6YQ'],
    ['fooba', 'MZXW6YTB'],
    ['foobar', 'MZXW6YTBOI']
  ]
  for (const [text, encoded] of texts) t.equal(base32(Buffer.from(text)), encoded)
  const random = randomBytes(20)
  t.same(fromBase32(base32(random)), random)
  const uri = new URL(otpauthUri(seed, 'Inventory Enterprise', 'zoé@north:1'))
  t.equal(`${uri.protocol}//${uri.host}`, 'otpauth://totp')
  t.equal(decodeURIComponent(uri.pathname), '/Inventory Enterprise:zoé@north:1')
  t.match(Object.fromEntries(uri.searchParams), {
    secret: base32(seed),
    issuer: 'Inventory Enterprise',
    digits: '6',
    period: '30'
  })
})

t.test('V6.5.5 a code counts for 30 s, and for one step of skew to either side', async (t) => {
  const seed = randomBytes(20)
  const at = 1_700_000_010_000
  const code = codeAt(seed, stepAt(at))
  const began = stepAt(at) * 30_000
  const table: [milliseconds: number, counts: boolean][] = [
    [began - 30_001, false],
    [began - 30_000, true],
    [began, true],
    [began + 29_999, true],
    [began + 59_999, true],
    [began + 60_000, false]
  ]
  for (const [moment, counts] of table) {
    t.equal(
      matchingStep(seed, code, moment),
      counts ? stepAt(at) : undefined,
      `${moment - began} ms after its step began`
    )
  }
  for (const wrong of ['', '00000', `${code}0`, code.slice(1), 'abcdef'])
    t.equal(matchingStep(seed, wrong, at), undefined, wrong)
})

t.test(
  'the policy: optional asks nobody, and not in production; a stricter one reaches sessions that are open',
  async (t) => {
    const folder = temporaryFolder(t)
    t.equal(loadConfig({ DATA_DIR: folder }).secondFactor, 'required')
    t.equal(loadConfig({ DATA_DIR: folder, SECOND_FACTOR: 'optional' }).secondFactor, 'optional')
    const keys = { JWT_SECRET: SEALING_KEY.secret, SECRETS_KEY: SEALING_KEY.secret }
    t.throws(
      () => loadConfig({ DATA_DIR: folder, NODE_ENV: 'production', SECOND_FACTOR: 'optional', ...keys }),
      /^SECOND_FACTOR is "optional"; with NODE_ENV=production it may be required$/
    )
    const url = `sqlite:${folder}/policy.sqlite`
    const lax = await startIdentity(url, { secondFactor: 'optional' })
    await lax.call('POST', '/users', lax.token('admin'), { username: 'ivy', role: 'admin', password: PASSWORD })
    const { accessToken, refreshToken } = (await lax.login('ivy', PASSWORD)).body
    t.equal((await lax.call('GET', '/users', accessToken)).status, 200)
    const made = await lax.call('POST', '/tokens', accessToken, { name: 'program', scopes: ['*:read'] })
    const program: string = made.body.token
    t.equal((await lax.call('GET', '/users', program)).status, 200)
    await lax.app.close()
    const strict = await startIdentity(url)
    t.teardown(() => strict.app.close())
    t.equal((await strict.call('GET', '/users', accessToken)).status, 401)
    t.equal((await strict.call('GET', '/users', program)).status, 401, 'an API token made without one')
    t.match(await strict.call('POST', '/auth/refresh', undefined, { refreshToken }), {
      status: 401,
      body: { reason: 'second-factor' }
    })
    t.match((await strict.login('ivy', PASSWORD)).body, { step: 'enrol' })
  }
)

t.test('seeds move to a new key as they are used, and are unreadable without their own', async (t) => {
  const url = `sqlite:${temporaryFolder(t)}/keys.sqlite`
  const next = { id: 's2', secret: 'Qe7-rT2yUi9pAs4dFg6hJk1lZx3cVb5n' }
  const sealedOf = async (service: IdentityService, id: string) =>
    (await createSecondFactorStore((await service.tenant()).db).totp(id))?.seed ?? ''
  const before = await startIdentity(url)
  const user = await enrolled(before, 'kim', 'staff')
  t.match(await sealedOf(before, user.id), /^v1\.s1\./)
  await before.app.close()
  const attempt = async (service: IdentityService) => {
    service.clock.at = before.clock.at + 30_000
    const { pendingToken } = (await service.login('kim', PASSWORD)).body
    const answer = await service.call('POST', '/auth/2fa/verify', pendingToken, { code: service.code(user.secret) })
    before.clock.at = service.clock.at
    return answer.status
  }
  const rotated = await startIdentity(url, { secretsKeys: [next, SEALING_KEY] })
  t.equal(await attempt(rotated), 200)
  t.match(await sealedOf(rotated, user.id), /^v1\.s2\./)
  t.equal(await attempt(rotated), 200)
  await rotated.app.close()
  const without = await startIdentity(url, { secretsKeys: [SEALING_KEY] })
  t.teardown(() => without.app.close())
  t.equal(await attempt(without), 500)
})

const OLD = { id: 'old', secret: 'Zr8#kq2Lw9-Tn4vXb7yHd3mPf6sJg1cQ' }
const NEW = { id: 'new', secret: 'aN5!uE0oRi7-Wt2zKx9lVb4hYc8qMd6f' }
const CONTEXT = 'totp main 0190'

t.test(
  'V6.5.2, V11.3.2: what is sealed opens under its key and for its owner only; no byte of it can be changed',
  async (t) => {
    const seal = createSeal([OLD])
    const secret = randomBytes(20)
    const sealed = seal.seal(secret, CONTEXT)
    t.match(sealed, /^v1\.old\.[\w-]+$/)
    t.same(seal.open(sealed, CONTEXT), secret)
    t.same(seal.open(seal.seal('', CONTEXT), CONTEXT), Buffer.alloc(0))
    t.not(seal.seal(secret, CONTEXT), sealed, 'a nonce of its own each time')
    const refused = { code: 'SEAL_UNREADABLE', params: { keyId: 'old' } }
    t.throws(() => seal.open(sealed, 'totp main 0191'), refused, 'another owner')
    t.throws(() => createSeal([{ ...NEW, id: 'old' }]).open(sealed, CONTEXT), refused, 'another key of the same id')
    const bytes = Buffer.from(sealed.slice('v1.old.'.length), 'base64url')
    for (let n = 0; n < bytes.length; n++) {
      const flipped = Buffer.from(bytes)
      flipped.writeUInt8(flipped.readUInt8(n) ^ 1, n)
      t.throws(() => seal.open(`v1.old.${flipped.toString('base64url')}`, CONTEXT), refused, `byte ${n}`)
    }
    for (const length of [0, 5, 12, 27]) {
      t.throws(() => seal.open(`v1.old.${bytes.subarray(0, length).toString('base64url')}`, CONTEXT), {
        code: 'SEAL_UNREADABLE'
      })
    }
    for (const nothing of ['', 'v1', 'v2.old.AAAA', secret.toString('hex')]) {
      t.throws(() => seal.open(nothing, CONTEXT), { code: 'SEAL_UNREADABLE' }, nothing)
    }
  }
)

t.test('the key is rotated without losing what was sealed', async (t) => {
  const sealed = createSeal([OLD]).seal('seed', CONTEXT)
  const rotated = createSeal([NEW, OLD])
  t.equal(rotated.open(sealed, CONTEXT).toString(), 'seed')
  t.equal(rotated.isOutdated(sealed), true)
  const anew = rotated.seal('seed', CONTEXT)
  t.equal(rotated.isOutdated(anew), false)
  t.throws(() => createSeal([OLD]).open(anew, CONTEXT), { code: 'SEAL_UNREADABLE', params: { keyId: 'new' } })
  t.throws(() => rotated.open(sealed.replace('old', 'new'), CONTEXT), {
    code: 'SEAL_UNREADABLE',
    params: { keyId: 'new' }
  })
  t.throws(() => createSeal([OLD, OLD]), /same id/)
})
