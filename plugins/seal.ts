import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto'
import type { Seal } from './contracts.js'
import { problem } from './http/problem.js'

/** AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce: good for 2³² values under one key. */
const ALGORITHM = 'aes-256-gcm'
const KEY_BYTES = 32
const NONCE_BYTES = 12
const TAG_BYTES = 16
/** Keys derived from the configured secrets (RFC 5869) differ from those of any other use of the same secret. */
const PURPOSE = 'inventory-enterprise/seal/v1'
const SEALED = /^v1\.([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]+)$/

export const SealUnreadable = problem<{ keyId: string }>('SEAL_UNREADABLE', 500, {
  en: 'A stored secret cannot be opened: it was sealed under the key {keyId}, which is not configured, or it was altered.',
  fr: 'Un secret conservé ne peut être ouvert : il a été scellé avec la clé {keyId}, qui n’est pas configurée, ou a été altéré.'
})

interface SealingKey {
  readonly id: string
  readonly secret: string
}

/** The first key seals, all open: a new key is put in front, the old one leaves once nothing is sealed under it. */
export function createSeal(keys: readonly [SealingKey, ...SealingKey[]]): Seal {
  const derived = new Map(
    keys.map(({ id, secret }) => [id, Buffer.from(hkdfSync('sha256', secret, '', PURPOSE, KEY_BYTES))])
  )
  if (derived.size < keys.length) throw new Error('two sealing keys have the same id')
  const [{ id: current }] = keys
  const keyOf = (id: string): Buffer => {
    const key = derived.get(id)
    if (key === undefined) throw new SealUnreadable({ keyId: id })
    return key
  }
  return {
    seal: (plaintext, context) => {
      const nonce = randomBytes(NONCE_BYTES)
      const cipher = createCipheriv(ALGORITHM, keyOf(current), nonce, { authTagLength: TAG_BYTES })
      cipher.setAAD(associatedData(current, context))
      const bytes = Buffer.concat([nonce, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()])
      return `v1.${current}.${bytes.toString('base64url')}`
    },
    open: (sealed, context) => {
      const [, id = '', text = ''] = SEALED.exec(sealed) ?? []
      const key = keyOf(id)
      const bytes = Buffer.from(text, 'base64url')
      try {
        const decipher = createDecipheriv(ALGORITHM, key, bytes.subarray(0, NONCE_BYTES), { authTagLength: TAG_BYTES })
        decipher.setAAD(associatedData(id, context))
        decipher.setAuthTag(bytes.subarray(-TAG_BYTES))
        return Buffer.concat([decipher.update(bytes.subarray(NONCE_BYTES, -TAG_BYTES)), decipher.final()])
      } catch {
        throw new SealUnreadable({ keyId: id })
      }
    },
    isOutdated: (sealed) => SEALED.exec(sealed)?.[1] !== current
  }
}

/** What is sealed for one row and purpose cannot be opened as another's: the context is authenticated, not stored. */
const associatedData = (id: string, context: string) => Buffer.from(`v1.${id}.${context}`)
