import { createHash } from 'node:crypto'
import { promisify } from 'node:util'
import { gunzip as gunzipCallback } from 'node:zlib'
import type { Static, TSchema } from 'typebox'
import type { ArchiveEntry } from '../contracts.js'
import { shape } from '../http/validation.js'
import { ArchiveDamaged, HEADER, Header, MANIFEST, Manifest, type PartKind, parsePartName } from './format.js'
import type { Keyring } from './keys.js'
import { untar } from './tar.js'

const gunzip = promisify(gunzipCallback)

export interface Part {
  readonly name: string
  readonly kind: PartKind
  readonly table: string
  readonly lines: readonly string[]
}
export interface ArchiveReading {
  readonly header: Header
  /** In the order of the archive. What they hold counts only when this has ended without an error. */
  readonly parts: AsyncIterable<Part>
  /** Known when the parts have been read. */
  manifest(): Manifest
}

/**
 * Opens an archive. Whatever is not as it was written is refused, by the name of the part: the header at once, a part
 * when its turn comes, what is missing at the end.
 * @throws ArchiveDamaged, KeyRefused
 */
export async function openArchive(
  entry: ArchiveEntry,
  tenant: string,
  encrypted: AsyncIterable<Uint8Array>,
  keys: Keyring
): Promise<ArchiveReading> {
  let at = 'its header'
  const damaged = (reason: string) => new ArchiveDamaged(entry.id, at, reason)
  const named = (error: unknown) =>
    error instanceof ArchiveDamaged ? error : damaged(error instanceof Error ? error.message : String(error))
  const plain = await keys.decrypt(encrypted).catch((error: unknown) => {
    throw keys.isRefusal(error) ? error : named(error)
  })
  at = HEADER
  const files = untar(plain, (name) => {
    at = name
  })
  const first = await files.next().catch((error: unknown) => {
    throw named(error)
  })
  if (first.done === true || first.value.name !== HEADER) throw damaged('it does not begin with its description')
  const header = parsed(Header, first.value.content, damaged)
  checkIdentity(header, entry, tenant, damaged)
  let manifest: Manifest | undefined

  async function* parts(): AsyncGenerator<Part> {
    const seen: Manifest['parts'] = []
    try {
      for (;;) {
        const { done, value: file } = await files.next()
        if (done === true) break
        if (manifest !== undefined) throw damaged('it comes after the end')
        if (file.name === MANIFEST) {
          manifest = parsed(Manifest, file.content, damaged)
          continue
        }
        const part = parsePartName(file.name)
        if (part === undefined) throw damaged('it is no part of an archive')
        const sha256 = createHash('sha256').update(file.content).digest('hex')
        const lines = (await gunzip(file.content)).toString().split('\n')
        lines.pop()
        seen.push({ name: file.name, rows: lines.length, bytes: file.content.length, sha256 })
        yield { name: file.name, ...part, lines }
        at = `what follows ${file.name}`
      }
    } catch (error) {
      throw named(error)
    }
    at = MANIFEST
    if (manifest === undefined) throw damaged('it is missing')
    compare(manifest, seen, header, (part, reason) => new ArchiveDamaged(entry.id, part, reason))
  }

  return {
    header,
    parts: parts(),
    manifest: () => {
      if (manifest === undefined) throw new Error('the manifest is read last')
      return manifest
    }
  }
}

/** Reads all of it and says what it holds. @throws ArchiveDamaged, KeyRefused */
export async function checkArchive(
  reading: ArchiveReading,
  advance: (rows: number) => void = () => {}
): Promise<{ rows: number; parts: number }> {
  const found = { rows: 0, parts: 0 }
  for await (const { lines } of reading.parts) {
    found.rows += lines.length
    found.parts++
    advance(found.rows)
  }
  return found
}

function parsed<T extends TSchema>(schema: T, content: Buffer, damaged: (reason: string) => Error): Static<T> {
  let value: unknown
  try {
    value = JSON.parse(content.toString())
  } catch {
    throw damaged('it is no JSON')
  }
  if (!shape(schema)(value)) throw damaged('it does not say what an archive of this format says')
  return value
}

/** An archive that was renamed, or put in the place of another, is not the one that was asked for. */
function checkIdentity(header: Header, entry: ArchiveEntry, tenant: string, damaged: (reason: string) => Error): void {
  const { id, kind, previous, stateAt } = header
  if (header.tenant !== tenant) throw damaged(`it is of the tenant ${header.tenant}`)
  const isSame =
    id === entry.id && kind === entry.kind && previous === entry.previous && Date.parse(stateAt) === entry.stateAt
  if (!isSame) throw damaged(`it is ${kind} ${id} of ${stateAt}, not what its name says`)
}

function compare(
  { id, parts }: Manifest,
  seen: Manifest['parts'],
  header: Header,
  damaged: (part: string, reason: string) => Error
): void {
  if (id !== header.id) throw damaged(MANIFEST, 'it is of another archive')
  const found = new Map(seen.map((part) => [part.name, part]))
  for (const { name, rows, bytes, sha256 } of parts) {
    const part = found.get(name)
    if (part === undefined) throw damaged(name, 'it is missing')
    if (part.rows !== rows || part.bytes !== bytes || part.sha256 !== sha256)
      throw damaged(name, 'it is not what the manifest says')
    found.delete(name)
  }
  for (const name of found.keys()) throw damaged(name, 'the manifest does not name it')
}
