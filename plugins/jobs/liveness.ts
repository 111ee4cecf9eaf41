import { randomUUID } from 'node:crypto'
import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import Sqlite from 'better-sqlite3'

export interface Liveness {
  /** Names this process in what it claims. */
  readonly id: string
  /** True when the process of that name has certainly ended; false when it lives or nothing is known of it. */
  isDead(id: string): boolean
  /** Forgets processes that are dead, once what they held is taken back. */
  forget(ids: readonly string[]): void
  close(): void
}

const ID = /^[0-9a-f-]{36}$/

/**
 * Which processes of one data folder are alive. Each holds a lock on a file of its own there, which the system lets go when the
 * process ends in whatever way: whoever can take the lock knows that its owner is gone. SQLite takes the locks, since Node
 * has none; a process id would not do, because it is used again, and says nothing from one container to the next.
 */
export function createLiveness(dataDir: string | undefined): Liveness {
  const id = randomUUID()
  if (dataDir === undefined) return { id, isDead: () => false, forget: () => {}, close: () => {} }
  const folder = join(dataDir, 'processes')
  const pathOf = (owner: string) => join(folder, `${owner}.lock`)
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const own = lock(pathOf(id))
  return {
    id,
    isDead(owner) {
      if (owner === id || !ID.test(owner) || !existsSync(pathOf(owner))) return false
      try {
        lock(pathOf(owner)).close()
        return true
      } catch {
        return false
      }
    },
    forget(ids) {
      for (const owner of ids) rmSync(pathOf(owner), { force: true })
    },
    close() {
      own.close()
      rmSync(pathOf(id), { force: true })
    }
  }
}

/** @throws SqliteError (SQLITE_BUSY) while another process holds it */
function lock(path: string): Sqlite.Database {
  const file = new Sqlite(path, { timeout: 0 })
  try {
    file.exec('begin exclusive')
    return file
  } catch (error) {
    file.close()
    throw error
  }
}
