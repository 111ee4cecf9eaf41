import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { gathered } from './bytes.js'
import { type S3Options, s3Store } from './s3.js'

/** Where archives are: a folder, or a bucket. Paths are `tenants/<tenant>/<name>` and `keys/<name>`. */
export interface ArchiveStore {
  /** Files right below a path; none where nothing is. */
  list(path: string): Promise<StoredFile[]>
  /** All of it is there under its name, durably, or nothing is. */
  put(path: string, content: AsyncIterable<Uint8Array>): Promise<void>
  get(path: string): Promise<AsyncIterable<Uint8Array>>
  remove(path: string): Promise<void>
  /** Takes away what killed processes have left. */
  tidy(path: string): Promise<void>
}
export interface StoredFile {
  readonly name: string
  readonly bytes: number
}

export type StoreOptions = { readonly folder: string } | { readonly s3: S3Options }

export const openStore = (options: StoreOptions): ArchiveStore =>
  'folder' in options ? folderStore(options.folder) : s3Store(options.s3)

const UNFINISHED = /\.[0-9a-f]{8}\.part$/
const UNFINISHED_MILLISECONDS = 86_400_000
const WRITE_BYTES = 1 << 18

function folderStore(root: string): ArchiveStore {
  const at = (path: string) => join(root, path)
  return {
    list: async (path) => {
      const names = await readdir(at(path)).catch(absent<string[]>([]))
      const files = names
        .filter((name) => !UNFINISHED.test(name))
        .map(async (name) => {
          // Another process may remove one meanwhile.
          const found = await stat(at(join(path, name))).catch(absent(undefined))
          return found?.isFile() === true ? [{ name, bytes: found.size }] : []
        })
      return (await Promise.all(files)).flat()
    },
    put: async (path, content) => {
      const folder = dirname(at(path))
      await mkdir(folder, { recursive: true, mode: 0o700 })
      const fresh = `${at(path)}.${randomBytes(4).toString('hex')}.part`
      try {
        const file = await open(fresh, 'wx', 0o600)
        try {
          for await (const chunk of gathered(content, WRITE_BYTES)) await file.writeFile(chunk)
          await file.sync()
        } finally {
          await file.close()
        }
        await rename(fresh, at(path))
      } catch (error) {
        await rm(fresh, { force: true })
        throw error
      }
      const directory = await open(folder, 'r')
      await directory.sync().finally(() => directory.close())
    },
    get: async (path) => {
      // Opened here, so that what is not there is told at once.
      const file = await open(at(path), 'r')
      return createReadStream('', { fd: file, highWaterMark: WRITE_BYTES })
    },
    remove: (path) => rm(at(path), { force: true }),
    tidy: async (path) => {
      for (const name of await readdir(at(path)).catch(absent<string[]>([]))) {
        if (!UNFINISHED.test(name)) continue
        const found = await stat(at(join(path, name))).catch(absent(undefined))
        const left = found !== undefined && Date.now() - found.mtimeMs > UNFINISHED_MILLISECONDS
        if (left) await rm(at(join(path, name)), { force: true })
      }
    }
  }
}

const absent =
  <T>(instead: T) =>
  (error: unknown): T => {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return instead
    throw error
  }
