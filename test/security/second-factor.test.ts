import { randomBytes } from 'node:crypto'
import t from 'tap'
import { createSeal } from '../../plugins/seal.js'

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
