import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto'

/**
 * A passkey in software: what a browser and its authenticator answer to WebAuthn's options (Level 3, 6.5), with ES256 and no
 * attestation. The fields of `Behaviour` make it lie.
 */

type CborValue = number | string | Uint8Array | Map<number | string, CborValue>

/** Just what the answers need of RFC 8949: integers, text, bytes and maps. */
function cbor(value: CborValue): Buffer {
  if (typeof value === 'number') return value >= 0 ? head(0, value) : head(1, -1 - value)
  if (typeof value === 'string') return Buffer.concat([head(3, Buffer.byteLength(value)), Buffer.from(value)])
  if (value instanceof Map) return Buffer.concat([head(5, value.size), ...[...value].flat().map(cbor)])
  return Buffer.concat([head(2, value.length), value])
}
function head(type: number, length: number): Buffer {
  if (length < 24) return Buffer.from([(type << 5) | length])
  if (length < 256) return Buffer.from([(type << 5) | 24, length])
  return Buffer.from([(type << 5) | 25, length >> 8, length & 255])
}

const FLAGS = { present: 0x01, verified: 0x04, attested: 0x40 }
const sha256 = (data: string | Uint8Array) => createHash('sha256').update(data).digest()
const base64url = (data: string | Uint8Array) => Buffer.from(data).toString('base64url')

interface Behaviour {
  origin?: string
  rpId?: string
  type?: string
  isVerified?: boolean
  /** Sends a signature of something else. */
  isForged?: boolean
  /** Says that it was signed this many times; without it one more than before. */
  counter?: number
  fmt?: string
  attStmt?: Map<string, CborValue>
}
interface Options {
  challenge: string
  rp?: { id?: string }
  rpId?: string
  user?: { id: string }
}

export function createAuthenticator(origin: string) {
  const id = randomBytes(32)
  const { privateKey, publicKey }: { privateKey: KeyObject; publicKey: KeyObject } = generateKeyPairSync('ec', {
    namedCurve: 'P-256'
  })
  let counter = 0
  let userHandle: string | undefined

  const clientData = ({ challenge }: Options, type: string, behaviour: Behaviour) =>
    JSON.stringify({
      type: behaviour.type ?? type,
      challenge,
      origin: behaviour.origin ?? origin,
      crossOrigin: false
    })
  const authenticatorData = (rpId: string, behaviour: Behaviour, attested?: Buffer) => {
    counter = behaviour.counter ?? counter + 1
    const count = Buffer.alloc(4)
    count.writeUInt32BE(counter)
    const flags =
      FLAGS.present | (behaviour.isVerified === false ? 0 : FLAGS.verified) | (attested ? FLAGS.attested : 0)
    return Buffer.concat([sha256(behaviour.rpId ?? rpId), Buffer.from([flags]), count, attested ?? Buffer.alloc(0)])
  }
  const envelope = { id: base64url(id), rawId: base64url(id), type: 'public-key', clientExtensionResults: {} }

  return {
    /** What `navigator.credentials.create` answers. */
    register: (options: Options, behaviour: Behaviour = {}) => {
      const { x = '', y = '' } = publicKey.export({ format: 'jwk' })
      const cose = new Map<number, CborValue>([
        [1, 2],
        [3, -7],
        [-1, 1],
        [-2, Buffer.from(x, 'base64url')],
        [-3, Buffer.from(y, 'base64url')]
      ])
      const length = Buffer.from([0, id.length])
      const attested = Buffer.concat([Buffer.alloc(16), length, id, cbor(cose)])
      userHandle = options.user?.id
      const attestationObject = cbor(
        new Map<string, CborValue>([
          ['fmt', behaviour.fmt ?? 'none'],
          ['attStmt', behaviour.attStmt ?? new Map()],
          ['authData', authenticatorData(options.rp?.id ?? '', behaviour, attested)]
        ])
      )
      return {
        ...envelope,
        response: {
          clientDataJSON: base64url(clientData(options, 'webauthn.create', behaviour)),
          attestationObject: base64url(attestationObject),
          transports: ['internal']
        }
      }
    },
    /** What `navigator.credentials.get` answers. */
    assert: (options: Options, behaviour: Behaviour = {}) => {
      const data = clientData(options, 'webauthn.get', behaviour)
      const authenticator = authenticatorData(options.rpId ?? '', behaviour)
      const signed = Buffer.concat([authenticator, behaviour.isForged ? randomBytes(32) : sha256(data)])
      return {
        ...envelope,
        response: {
          clientDataJSON: base64url(data),
          authenticatorData: base64url(authenticator),
          signature: base64url(sign('sha256', signed, privateKey)),
          ...(userHandle === undefined ? {} : { userHandle })
        }
      }
    }
  }
}
