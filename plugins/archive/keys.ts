import { createHash } from 'node:crypto'
import { all, bytesOf, cut, once, streamOf } from './bytes.js'
import type { ArchiveStore } from './store.js'

/** Loaded with the first archive: every start would pay for it, and most commands of the console make none. */
const age = () => import('age-encryption')

/** Whom archives are encrypted to, and who may open them: either a passphrase alone, or public keys and perhaps a private one. */
export interface ArchiveKeys {
  readonly passphrase?: string
  /** `age1…` */
  readonly recipients?: readonly string[]
  /** `AGE-SECRET-KEY-1…`, or a file of `age-keygen` with some of them. */
  readonly identity?: string
}

/** Nothing we have opens it. */
export class KeyRefused extends Error {}

/** 2^17 rounds of scrypt, 128 MB: half a second for us, and for each guess of somebody else. */
const SCRYPT_WORK_FACTOR = 17
/** A stream that fails forgets what is still queued; less than a chunk of age's at a time, so that what is whole is seen first. */
const PIECE_BYTES = 32_768
const KEY_FILE = /^[0-9a-f]{16}\.age$/

/**
 * With a passphrase there is one key pair, which is kept beside the archives, encrypted by the passphrase: deriving a key from
 * it for each archive would cost a second for each. `age -d -i keys/<name>.age` takes such a file as it is.
 */
export class Keyring {
  readonly #keys: ArchiveKeys
  readonly #store: ArchiveStore
  #pairs: Promise<{ identities: readonly string[]; refused: number }> | undefined

  constructor(keys: ArchiveKeys, store: ArchiveStore) {
    this.#keys = keys
    this.#store = store
  }

  /** What was encrypted, as it comes. */
  async *encrypt(plain: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    const encrypter = new (await age()).Encrypter()
    for (const recipient of await this.#recipients()) encrypter.addRecipient(recipient)
    yield* bytesOf(await encrypter.encrypt(streamOf(plain)))
  }

  /** Rejects when the header is damaged or nothing we have opens it; what follows is checked as it is read. @throws KeyRefused */
  async decrypt(encrypted: AsyncIterable<Uint8Array>): Promise<AsyncIterable<Uint8Array>> {
    const decrypter = new (await age()).Decrypter()
    const { identities, refused } = await this.#identities()
    if (identities.length === 0) throw new KeyRefused(noKey(this.#keys, refused))
    for (const identity of identities) decrypter.addIdentity(identity)
    const plain = decrypter.decrypt(streamOf(cut(encrypted, PIECE_BYTES)))
    return bytesOf(
      await plain.catch((error: unknown) => {
        // With the header damaged in its keys, nothing of ours opens it either.
        const isOthers = error instanceof Error && /no identity matched/.test(error.message)
        throw isOthers ? new KeyRefused('it is not for any key of ours, or its header is damaged') : error
      })
    )
  }

  isRefusal(error: unknown): boolean {
    return error instanceof KeyRefused
  }

  async #recipients(): Promise<readonly string[]> {
    const { passphrase, recipients } = this.#keys
    if (recipients !== undefined) return recipients
    const { identities } = await this.#identities()
    const identity = identities[0] ?? (passphrase === undefined ? undefined : await this.#makePair(passphrase))
    if (identity === undefined) throw new KeyRefused(noKey(this.#keys, 0))
    return [await (await age()).identityToRecipient(identity)]
  }

  async #makePair(passphrase: string): Promise<string> {
    const { Encrypter, generateX25519Identity, identityToRecipient } = await age()
    const identity = await generateX25519Identity()
    const encrypter = new Encrypter()
    encrypter.setPassphrase(passphrase)
    encrypter.setScryptWorkFactor(SCRYPT_WORK_FACTOR)
    const file = await encrypter.encrypt(`# Opens the archives beside it. Made by Inventory Enterprise.\n${identity}\n`)
    // Two nodes that begin at once make two keys, and both stay: none replaces another.
    const recipient = await identityToRecipient(identity)
    const name = createHash('sha256').update(recipient).digest('hex').slice(0, 16)
    await this.#store.put(`keys/${name}.age`, once(file))
    this.#pairs = undefined
    return identity
  }

  #identities() {
    this.#pairs ??= this.#readPairs()
    this.#pairs.catch(() => {
      this.#pairs = undefined
    })
    return this.#pairs
  }

  async #readPairs() {
    const { passphrase, identity } = this.#keys
    const identities = secretKeysOf(identity ?? '')
    let refused = 0
    if (passphrase === undefined) return { identities, refused }
    const { Decrypter } = await age()
    for (const { name } of await this.#store.list('keys')) {
      if (!KEY_FILE.test(name)) continue
      const decrypter = new Decrypter()
      decrypter.addPassphrase(passphrase)
      const file = Buffer.concat(await all(await this.#store.get(`keys/${name}`)))
      try {
        identities.push(...secretKeysOf(await decrypter.decrypt(file, 'text')))
      } catch {
        // Of a passphrase that was used before, or damaged: what it opened cannot be opened any more.
        refused++
      }
    }
    return { identities, refused }
  }
}

/** A key file that is encrypted itself, as `age-keygen | age -p` makes one, with `-a` or without. */
export const isLockedKeyFile = (text: string): boolean =>
  /^\s*(age-encryption\.org\/v1\n|-----BEGIN AGE ENCRYPTED FILE-----)/.test(text)

export const secretKeysOf = (text: string): string[] => text.match(/AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]+/g) ?? []

function noKey({ passphrase, recipients = [] }: ArchiveKeys, refused: number): string {
  if (passphrase !== undefined)
    return refused === 0
      ? 'there is no key beside the archives that the passphrase could open'
      : `the passphrase is another one, or the key is damaged: it opens none of ${refused} in keys/`
  return recipients.length > 0
    ? 'archives can be written but not opened here: BACKUP_IDENTITY is not set'
    : 'neither BACKUP_PASSPHRASE nor BACKUP_IDENTITY is set'
}
