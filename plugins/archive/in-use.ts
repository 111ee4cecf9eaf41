import { mkdirSync, rmSync } from 'node:fs'
import { dirname } from 'node:path'
import Sqlite from 'better-sqlite3'
import type pg from 'pg'
import type { Place } from '../contracts.js'
import { connect } from '../portable/postgres.js'

/** Who works on a scratch holds a lock on its name, which the system or the server lets go when the process ends in whatever way. */

const KEY = 'hashtextextended($1, 0)'
/** Somebody who looks whether it is used has the lock for a moment. */
const LOOKED_AT_MS = 1_000
const LOCK_SUFFIX = '.lock'

/** @returns lets it go */
export async function holdScratch(place: Place): Promise<() => Promise<void>> {
  if (place.dialect === 'sqlite') {
    mkdirSync(dirname(place.path), { recursive: true, mode: 0o700 })
    const release = lockFile(place.path, LOOKED_AT_MS)
    return async () => release()
  }
  const client = await connect(place)
  try {
    await client.query(`select pg_advisory_lock(${KEY})`, [place.schema])
  } catch (error) {
    await client.end()
    throw error
  }
  return () => client.end()
}

/** Runs it unless somebody uses the file. */
export function whereFileUnused(path: string, work: () => void): void {
  let release: () => void
  try {
    release = lockFile(path, 0)
  } catch (error) {
    if (error instanceof Sqlite.SqliteError && error.code.startsWith('SQLITE_BUSY')) return
    throw error
  }
  try {
    work()
  } finally {
    release()
  }
}

/** Runs it unless somebody uses the schema. */
export async function whereSchemaUnused(
  client: pg.Client,
  schema: string,
  work: () => Promise<unknown>
): Promise<void> {
  const { rowCount } = await client.query(`select where pg_try_advisory_lock(${KEY})`, [schema])
  if (rowCount === 0) return
  try {
    await work()
  } finally {
    await client.query(`select pg_advisory_unlock(${KEY})`, [schema])
  }
}

/** SQLite takes the lock, since Node has none. @throws SqliteError (SQLITE_BUSY) while another holds it */
function lockFile(path: string, timeout: number): () => void {
  const file = new Sqlite(path + LOCK_SUFFIX, { timeout })
  try {
    file.exec('begin exclusive')
  } catch (error) {
    file.close()
    throw error
  }
  return () => {
    rmSync(path + LOCK_SUFFIX, { force: true })
    file.close()
  }
}
