import { createHash } from 'node:crypto'
import { mkdir, open, readdir, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { Readable, Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import { PayloadTooLarge, type Tenant } from '../../plugins/contracts.js'
import { ImportUnreadable } from './errors.js'
import { createImportStore } from './import-store.js'

export const EMPTY = { en: 'it is empty (0 bytes)', fr: 'il est vide (0 octet)' }
const FILE_MAX_BYTES = 1024 ** 3
const GZIP_MAGIC = [0x1f, 0x8b]
/** Tables shrink to a tenth or a twentieth. What grows so much more, and beyond this size, is made to fill a disk. */
const GROWTH_MAX = 200
const GROWTH_FREE_BYTES = 16 * 1024 ** 2

/** Longer than an upload stands still while it comes in or is rehearsed; only then can it be on record. */
const UNKNOWN_AFTER_MS = 3_600_000

/** Where an upload waits for its import. */
export const spoolPath = (folder: string, tenant: Tenant, importId: string, format: string): string =>
  join(folder, `${tenant.id}.${importId}.${format}`)

/** Removes the uploads that no import of the tenant waits for: those of a process that died before they were on record, or after their import. */
export async function removeLeftUploads(tenant: Tenant, folder: string): Promise<void> {
  const imports = createImportStore(tenant.db)
  for (const name of await readdir(folder).catch(() => [])) {
    const [owner, importId = ''] = name.split('.')
    if (owner !== tenant.id) continue
    const path = join(folder, name)
    const written = await stat(path).catch(() => undefined)
    if (written === undefined || written.mtimeMs > Date.now() - UNKNOWN_AFTER_MS) continue
    const run = await imports.find(importId)
    if (run === undefined || run.spool === null) await rm(path, { force: true })
  }
}

/**
 * Writes an upload to a file, unpacked where it is gzip, its encoding and size checked on the way.
 * @returns a fingerprint of the content
 * @throws ImportUnreadable, PayloadTooLarge; the file is then gone
 */
export async function spoolUpload(upload: Readable, path: string): Promise<string> {
  const hash = createHash('sha256')
  try {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    const { stream, gzip } = await sniff(upload)
    const unpacked = createGunzip()
    const stages = gzip ? [stream, unpacked] : [stream]
    // Of the packed bytes, those read so far.
    const allowed = () =>
      gzip ? Math.min(FILE_MAX_BYTES, Math.max(GROWTH_FREE_BYTES, unpacked.bytesWritten * GROWTH_MAX)) : FILE_MAX_BYTES
    // Opened before the first byte is looked at: a stream that opens it later may do so after a refusal has removed it.
    const file = await open(path, 'wx', 0o600)
    await pipeline([...stages, checked(hash, allowed), file.createWriteStream()])
    return hash.digest('base64url')
  } catch (error) {
    await rm(path, { force: true })
    if (error instanceof Error && 'code' in error && /^(Z_|ERR_STREAM_PREMATURE_CLOSE)/.test(String(error.code))) {
      throw new ImportUnreadable({
        reason:
          error.message === 'unexpected end of file'
            ? { en: 'the gzip file is cut off', fr: 'le fichier gzip est tronqué' }
            : {
                en: `it is not a sound gzip file (${error.message})`,
                fr: `ce n’est pas un fichier gzip correct (${error.message})`
              }
      })
    }
    throw error
  }
}

/** Whether the bytes are gzip is asked of the bytes themselves: clients name the type in many ways. */
async function sniff(upload: Readable): Promise<{ stream: Readable; gzip: boolean }> {
  const chunks = upload[Symbol.asyncIterator]()
  const first = await chunks.next()
  if (first.done === true) throw new ImportUnreadable({ reason: EMPTY })
  const head = Buffer.from(first.value)
  async function* all() {
    yield head
    for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) yield next.value
  }
  return { stream: Readable.from(all()), gzip: GZIP_MAGIC.every((byte, index) => head[index] === byte) }
}

const REPLACEMENT = '\ufffd'
const linesBefore = (found: string, text: string) => text.slice(0, text.indexOf(found)).split('\n').length - 1

/** Without the rest of a character that began in the chunk before. */
function withoutRest(chunk: Buffer): Buffer {
  const start = chunk.subarray(0, 3).findIndex((byte) => (byte & 0xc0) !== 0x80)
  return start > 0 ? chunk.subarray(start) : chunk
}

/** Counts, hashes and refuses what is not UTF-8 text, with the place. */
function checked(hash: ReturnType<typeof createHash>, bytesAllowed: () => number): Transform {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  let bytes = 0
  let rows = 1
  const refuse = (at: number) =>
    new ImportUnreadable({
      reason: {
        en: `line ${at} holds bytes that are not UTF-8 text; save the file as UTF-8`,
        fr: `la ligne ${at} contient des octets qui ne sont pas de l’UTF-8 ; enregistrez le fichier en UTF-8`
      }
    })
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      if (bytes > bytesAllowed()) return done(new PayloadTooLarge({ limitBytes: bytesAllowed() }))
      hash.update(chunk)
      let text: string
      try {
        text = decoder.decode(chunk, { stream: true })
      } catch {
        return done(refuse(rows + linesBefore(REPLACEMENT, new TextDecoder().decode(withoutRest(chunk)))))
      }
      if (text.includes('\u0000')) return done(refuse(rows + linesBefore('\u0000', text)))
      for (let at = text.indexOf('\n'); at !== -1; at = text.indexOf('\n', at + 1)) rows++
      return done(null, chunk)
    },
    flush(done) {
      try {
        decoder.decode()
        done(bytes === 0 ? new ImportUnreadable({ reason: EMPTY }) : null)
      } catch {
        done(refuse(rows))
      }
    }
  })
}
